"""What a rehearsed fleet is measured against: centres, each device alone, versions of its own. Writes nothing.

Where there are many devices some of them stand for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aggregator.errors import AggregatorError, TaskRefused
from aggregator.evaluation import logits
from aggregator.rehearsal.fleet import VirtualFleet
from aggregator.rehearsal.local_only import alone
from aggregator.rehearsal.personal import personalise
from aggregator.rehearsal.population import Population
from aggregator.rehearsal.references import PlainPlan, central, central_dp
from aggregator.rehearsal.scores import score, score_outputs, score_own
from aggregator.rehearsal.settings import without_noise
from aggregator.rehearsal.trial import Trial
from edge_sdk.artifact.weights import read_vector

MOST_ALONE: Final = 200  # devices that are also trained alone
SHORT_PASS: Final = 2e6  # rows times columns of a pass that Newton may make often
MOST_PASSES: Final = 400_000  # rows that a reference looks at, all passes together

Whole = npt.NDArray[np.int64]
Say = Callable[[str], None]


def measure_references(trial: Trial, people: Population, seed: int, say: Say, clock: Callable[[], float]) -> None:
    """Train each of them and keep its scores. Raises TrainingFailed."""
    plan = _plan(trial, people)
    began = clock()
    one = PlainPlan("adam", 0.02, epochs=1)
    central(trial.model, people.features, people.labels, plan=one, watched=0, seed=seed)
    trial.plain_seconds = clock() - began
    say("training the references: one centre with all rows")
    held = trial.choice.candidate.encoded.held
    watched: Any = held if 0 < held.sum() < len(held) else 0.0
    whole = central(
        trial.model,
        people.features,
        people.labels,
        plan=plan,
        watched=watched,
        refit=not _long(plan, people),
        seed=seed,
    )
    trial.scores["central"] = score(whole, trial.heldout, trial.owners, trial.names)
    chosen = _some_places(trial, seed)
    say(f"each of {len(chosen)} devices alone")
    own = alone(trial.model, _only(people, chosen), plan=plan, seed=seed)
    trial.scores["alone"] = score_own(
        ((int(chosen[place]), model) for place, model in own), trial.heldout, trial.owners, trial.names
    )
    bare = _no_privacy(trial, people, seed, say)
    if trial.terms is not None and not trial.terms.insecure_without_noise and trial.spec.target_epsilon is not None:
        say("one centre with the same privacy")
        try:
            private = central_dp(trial.model, people, trial.spec, across=True, seed=seed)
            trial.scores["central_dp"] = score(private, trial.heldout, trial.owners, trial.names)
        except AggregatorError as error:
            say(f"no private centre to compare with: {error}")
    if bare is not None:
        _personalised(trial, people, bare, seed, say)


def _long(plan: PlainPlan, people: Population) -> bool:
    return plan.optimizer == "adam" and len(people.labels) > MOST_PASSES // 40


def _plan(trial: Trial, people: Population) -> PlainPlan:
    """Newton's method where the model is linear in its weights and a pass is short; else Adam."""
    bent = trial.choice.candidate.name == "one hidden layer"
    columns = max(people.features.shape[1], read_vector(trial.model).size // trial.schema.label.outputs)
    if not bent and people.features.shape[0] * columns <= SHORT_PASS:
        return PlainPlan("lbfgs", epochs=40, weight_decay=1e-4, patience=8)
    epochs = int(np.clip(MOST_PASSES / max(1, len(people.labels)), 8, 40))
    return PlainPlan("adam", 0.02 if bent else 0.05, epochs=epochs, batch_size=128, weight_decay=1e-5, patience=4)


def _some_places(trial: Trial, seed: int) -> Whole:
    """Devices that are trained alone: all that have rows on both sides, or some of them."""
    able = np.flatnonzero((trial.train > 0) & (trial.test > 0))
    if len(able) > MOST_ALONE:
        able = np.sort(np.random.default_rng([seed, 2]).choice(able, MOST_ALONE, replace=False))
    return able


def _only(people: Population, places: Whole) -> Population:
    rows = np.concatenate(
        [np.arange(people.bounds[p], people.bounds[p + 1]) for p in places] or [np.empty(0, np.int64)]
    )
    bounds = np.concatenate([[0], np.cumsum(np.diff(people.bounds)[places])]).astype(np.int64)
    names = [people.names[place] for place in places]
    subjects = None if people.subjects is None else people.subjects[rows]
    return Population(names, bounds, people.features[rows], people.labels[rows], subjects)


def _no_privacy(trial: Trial, people: Population, seed: int, say: Say) -> bytes | None:
    """The same fleet without noise: its model; None where that task is refused too."""
    if "fleet" in trial.scores and trial.spec.insecure_without_noise:
        trial.scores["fleet_no_privacy"] = trial.scores["fleet"]
    try:
        bare = VirtualFleet(people, trial.model, without_noise(trial.spec), seed=seed, fast=True)
    except TaskRefused as refusal:
        say(f"no fleet without privacy to compare with: {refusal}; {refusal.hint}")
        return None
    bare.run()
    outputs = logits(bare.model, trial.heldout.inputs)
    trial.scores.setdefault("fleet_no_privacy", score_outputs(outputs, trial.heldout, trial.owners, trial.names))
    trial.outputs = outputs if trial.outputs is None else trial.outputs
    return bare.model


def _personalised(trial: Trial, people: Population, model: bytes, seed: int, say: Say) -> None:
    """Each device's own version of the fleet's model."""
    chosen = _some_places(trial, seed)
    say(f"a version of its own on each of {len(chosen)} devices")
    models = ((int(chosen[place]), own) for place, own in personalise(model, _only(people, chosen), seed=seed))
    trial.scores["personalised"] = score_own(models, trial.heldout, trial.owners, trial.names)
