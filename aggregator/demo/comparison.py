"""What the fleet is measured against: every device by itself, and one centre that holds all rows.

Same model, same task, same number of steps, without noise and with the fleet's epsilon; all measured on the same
held-out rows. `aggregator.rehearsal` trains: it is what `aggregator rehearse` compares with too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from aggregator.demo.outcome import Alone
from aggregator.demo.play import Part, Play
from aggregator.evaluation import evaluate, read_heldout
from aggregator.rehearsal.population import Population, VirtualDevice
from aggregator.rehearsal.references import central_dp
from aggregator.tasks import TaskSpec
from edge_sdk.artifact.features import features, labels


class Comparison:
    """`files`: the first model and the held-out records. `epsilon`: what the fleet's task came to."""

    def __init__(self, play: Play, spec: TaskSpec, files: tuple[Path, Path], *, epsilon: float, seed: int) -> None:
        self._play, self._metric, self._seed = play, spec.metric, seed
        self._model = files[0].read_bytes()
        self._held_out = read_heldout(self._model, files[1])
        self._free = replace(spec, noise_multiplier=None, target_epsilon=None, insecure_without_noise=True)
        self._private = replace(spec, noise_multiplier=None, target_epsilon=epsilon, max_epsilon=None)

    def alone(self, part: Part) -> Alone:
        """One device by itself. Raises TrainingFailed."""
        own = Population.of([self._device(part)])
        return Alone(part.device, len(part.records), self._reached(own, self._free), self._reached(own, self._private))

    def central(self, parts: Sequence[Part]) -> tuple[float, float]:
        """The metric of a centre with everybody's rows: without noise, and with epsilon. Raises TrainingFailed."""
        everybody = Population.of([self._device(part) for part in parts])
        return self._reached(everybody, self._free), self._reached(everybody, self._private)

    def _reached(self, rows: Population, spec: TaskSpec) -> float:
        return evaluate(central_dp(self._model, rows, spec, seed=self._seed), self._held_out)[self._metric]

    def _device(self, part: Part) -> VirtualDevice:
        schema, subject = self._play.schema(), self._play.subject
        targets = [record[schema.label.name] for record in part.records]
        records = [self._play.fields(record) for record in part.records]
        subjects = (
            np.unique([str(record[subject]) for record in part.records], return_inverse=True)[1] if subject else None
        )
        return VirtualDevice(
            part.device, features(schema, records)["features"], labels(schema, targets, records), subjects
        )
