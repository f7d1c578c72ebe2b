"""What the fleet is measured against: every device by itself, and one centre that holds all customers.

Same model, same number of steps, same trainer as on the devices; all measured on the same held-out customers.
The only room of the aggregator that may import edge_sdk.training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aggregator.demo.data import LABEL, Part, Record, schema
from aggregator.demo.outcome import Alone
from aggregator.evaluation import evaluate, read_heldout
from edge_sdk.artifact.features import features, labels
from edge_sdk.artifact.weights import read_vector, write_vector
from edge_sdk.training.jobs import TrainingPlan, job
from edge_sdk.training.runner import Trainer

KEY_BYTES: Final = 32
TOTAL_STEPS: Final = 60
RECORDS_PER_DEVICE: Final = 350  # a round guess, as an operator would make: nobody counts what devices hold


@dataclass(frozen=True, slots=True)
class Recipe:
    """How everybody trains: the fleet in `rounds` of `steps`, those it is measured against in one go.

    The product of both stays near TOTAL_STEPS, and so does epsilon. Compared on a part of the training customers;
    DECISIONS 9 says what was seen of the held-out ones.
    """

    rounds: int
    sample_rate: float = 0.5
    max_grad_norm: float = 0.5
    noise_multiplier: float = 2.7
    learning_rate: float = 8.0

    @property
    def steps(self) -> int:
        """Local steps of one round."""
        return max(1, round(TOTAL_STEPS / self.rounds))

    def plan(self, records: int, *, private: bool) -> TrainingPlan:
        """All steps at once, with the fleet's noise or with none; the clip stays, so that only the noise differs."""
        return TrainingPlan(
            unit="record",
            learning_rate=self.learning_rate,
            steps=self.rounds * self.steps,
            batch_size=max(1, round(self.sample_rate * (RECORDS_PER_DEVICE if private else records))),
            max_grad_norm=self.max_grad_norm,
            noise_multiplier=self.noise_multiplier if private else 0.0,
            insecure_without_noise=not private,
            sample_rate=self.sample_rate,
        )


class Comparison:
    """Trains in one process of its own, one model after another; a context manager."""

    def __init__(self, model: bytes, held_out: Path, recipe: Recipe, metric: str, entropy: Callable[[int], bytes]):
        self._model, self._recipe, self._metric, self._entropy = model, recipe, metric, entropy
        self._held_out = read_heldout(model, held_out)
        self._trainer = Trainer(memory_mib=4096)

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *_: object) -> None:
        self._trainer.close()

    def alone(self, part: Part) -> Alone:
        """One device by itself. Raises TrainingFailed."""
        without, private = (self._metric_of(part.customers, private=private) for private in (False, True))
        return Alone(part.device, len(part.customers), without, private)

    def central(self, parts: Sequence[Part]) -> float:
        """The metric of a centre that holds everybody's customers and adds no noise. Raises TrainingFailed."""
        return self._metric_of([record for part in parts for record in part.customers], private=False)

    def _metric_of(self, customers: Sequence[Record], *, private: bool) -> float:
        fields = [{name: value for name, value in record.items() if name != LABEL} for record in customers]
        targets = labels(schema(), [record[LABEL] for record in customers])
        plan = self._recipe.plan(len(customers), private=private)
        work = job(self._model, features(schema(), fields), targets, plan, self._entropy(KEY_BYTES))
        result = self._trainer.train(work, lambda *_: None, lambda: False)
        trained = write_vector(self._model, read_vector(self._model) + result.update)
        return evaluate(trained, self._held_out)[self._metric]
