"""One rehearsal from understood columns to figures: choose a model, run the fleet, train what it is measured against.

Reads and writes nothing. A task that `tasks.settle` refuses becomes advice, and the figures without privacy are there
all the same. Refuses, with DataRefused, rows of which none can be tested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from aggregator import tasks
from aggregator.errors import TaskRefused
from aggregator.evaluation import heldout, logits
from aggregator.rehearsal import encoding
from aggregator.rehearsal.advice import advise
from aggregator.rehearsal.against import measure_references
from aggregator.rehearsal.choosing import Choice, Encoded, candidates, choose
from aggregator.rehearsal.fleet import Figures, VirtualFleet
from aggregator.rehearsal.population import Population
from aggregator.rehearsal.scores import part, score, score_outputs
from aggregator.rehearsal.settings import Asked, metric_for, spec_for
from aggregator.rehearsal.splits import Split
from aggregator.rehearsal.trial import Trial
from aggregator.rehearsal.understood import Understood
from edge_sdk.artifact.features import INPUT, features, labels
from edge_sdk.artifact.weights import read_vector
from edge_sdk.protocol.secagg.committee import SMALLEST

MOST_CURVE: Final = 40  # rounds after which the metric is taken
MOST_TESTED: Final = 20_000  # rows by which it is taken then

Say = Callable[[str], None]


def rehearse(
    found: Understood, split: Split, asked: Asked, *, masks: bool, seed: int, say: Say, clock: Callable[[], float]
) -> Trial:
    """Everything. Raises DataRefused, TaskRefused for settings that nothing can come of, TrainingFailed."""
    for warning in (large := encoding.boundless(found, split.order[~split.test])):
        say(f"warning: {warning}")
    found.warnings += large
    plain = _encoded(found, split, intervals=False, seed=seed)
    cut = None if plain.schema.width > 400 else _encoded(found, split, intervals=True, seed=seed)
    if cut is not None and cut.schema == plain.schema:
        cut = None
    metric = metric_for(asked, plain.schema.label)
    say("choosing a model by a validation part of the training rows (this choice is not private)")
    choice = choose(list(candidates(plain, cut, seed)), asked, seed, say)
    trial = _prepared(found, split, choice, asked, metric)
    trial.masked = masks
    say(f"chosen: {choice.candidate.name}, {read_vector(trial.model).size:,} weights")
    people = choice.candidate.encoded.people
    if trial.spec.unit == "customer":
        trial.roaming = people.roaming()
    if trial.roaming is not None and trial.roaming.several:
        say(f"warning: {trial.roaming.several:,} of {trial.roaming.people:,} customers have rows on several devices")
    _measure_private(trial, people, masks, seed, say)
    measure_references(trial, people, seed, say, clock)
    trial.advice = advise(trial)
    return trial


def _encoded(found: Understood, split: Split, *, intervals: bool, seed: int) -> Encoded:
    rows = split.order[~split.test]
    schema = encoding.schema_of(found, rows, intervals=intervals)
    records = encoding.records_of(found.features, rows)
    answers = [found.answers.values[row] for row in rows.tolist()]
    owners = split.owners[~split.test]
    people = Population(
        split.names,
        np.searchsorted(owners, np.arange(len(split.names) + 1)).astype(np.int64),
        features(schema, records)[INPUT],
        labels(schema, answers, records),
        None if split.subjects is None else split.subjects[~split.test],
    )
    held = _validation_part(people, seed)
    return Encoded(schema, people, held, np.array(answers, np.float64) if found.answers.kind == "number" else None)


def _validation_part(people: Population, seed: int) -> npt.NDArray[np.bool_]:
    """A fifth of the rows; of customers, all rows of a fifth of them."""
    rng = np.random.default_rng([seed, 1])
    if people.subjects is None:
        return rng.random(len(people.labels)) < 0.2
    chance = rng.random(int(people.subjects.max()) + 1 if people.subjects.size else 1)
    return np.where(people.subjects >= 0, chance[people.subjects], rng.random(len(people.labels))) < 0.2


def _prepared(found: Understood, split: Split, choice: Choice, asked: Asked, metric: str) -> Trial:
    schema, people = choice.candidate.encoded.schema, choice.candidate.encoded.people
    rows = split.order[split.test]
    records = encoding.records_of(found.features, rows)
    held = heldout(schema, records, [found.answers.values[row] for row in rows.tolist()])
    owners = split.owners[split.test]
    measured = score(choice.candidate.model, held, owners, split.names)
    if metric not in measured.overall:
        if asked.given.get("metric"):
            hint = "give a larger --test-share, or leave the metric out of --task"
            raise TaskRefused(f"the {len(rows)} rows held back for the test give no {metric}", hint, reason="metric")
        metric = "log_loss"  # an AUC of test rows that are all of one class
    spec = spec_for(asked, people, choice.candidate.model, choice.pace, metric)
    counts = (np.diff(people.bounds), np.bincount(owners, minlength=len(split.names)))
    return Trial(metric, schema, spec, choice, split.names, *counts, held, owners, scores={"start": measured})


# -- the fleet ---------------------------------------------------------------------------------------------------------


def _measure_private(trial: Trial, people: Population, masks: bool, seed: int, say: Say) -> None:
    """The task itself. What it is refused for is kept."""
    try:
        _check_committee(people)
        trial.terms = tasks.settle(trial.spec, read_vector(trial.model).size)
        fleet = VirtualFleet(people, trial.model, trial.spec, masks=masks, seed=seed)
    except TaskRefused as refusal:
        trial.refused, trial.terms = refusal, None
        say(f"the private task is refused: {refusal}; {refusal.hint}")
        return
    able = int((trial.train > 0).sum())
    share = f"{trial.spec.n_max:,} of {able:,} devices a round" if trial.spec.n_max < able else f"{able:,} devices"
    say(f"running {trial.spec.rounds} rounds, {share}, {'with' if masks else 'without'} masks")
    fleet.run(on_round=_watched(trial, fleet, say))
    trial.figures = fleet.figures
    trial.outputs = logits(fleet.model, trial.heldout.inputs)
    trial.scores["fleet"] = score_outputs(trial.outputs, trial.heldout, trial.owners, trial.names)


def _check_committee(people: Population) -> None:
    """Masks need somebody to open their sum."""
    able = int((np.diff(people.bounds) > 0).sum())
    if able < SMALLEST:
        raise TaskRefused(
            f"{able} devices have training rows, and masks need a committee of at least {SMALLEST}",
            f"join more devices, or rehearse with --devices {2 * SMALLEST}, which cuts each value of --by into several",
            reason="cohort",
        )


def _watched(trial: Trial, fleet: VirtualFleet, say: Say) -> Callable[[Figures], None]:
    every = max(1, trial.spec.rounds // MOST_CURVE)
    some = np.arange(0, len(trial.owners), max(1, len(trial.owners) // MOST_TESTED))
    rows, owners = part(trial.heldout, some), trial.owners[some]

    def watch(now: Figures) -> None:
        line = f"round {now.round} of {trial.spec.rounds}: {now.devices} devices, {now.seconds:.2f} s"
        if now.round % every == 0 or now.round == trial.spec.rounds:
            value = score(fleet.model, rows, owners, trial.names).overall.get(trial.metric)
            if value is not None:
                trial.curve.append((now.round, value))
                line += f", {trial.metric} {value:.4g}"
        if now.epsilon is not None:
            line += f", epsilon {now.epsilon:.3g}"
        if now.round == 1 and now.seconds * trial.spec.rounds > 60:
            line += f"; about {now.seconds * trial.spec.rounds / 60:.0f} minutes in all (fewer with --rounds)"
        say(line)

    return watch
