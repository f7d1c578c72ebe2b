"""One rehearsal from understood columns to figures: choose a model, run the fleet, train what it is measured against.

Reads and writes nothing. A task that `tasks.settle` refuses becomes advice, and the figures without privacy are there
all the same. Refuses, with DataRefused, rows of which none can be tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aggregator import tasks
from aggregator.errors import AggregatorError, TaskRefused
from aggregator.evaluation import LOWER_IS_BETTER, Heldout, heldout, logits
from aggregator.rehearsal import encoding
from aggregator.rehearsal.advice import advise, roaming
from aggregator.rehearsal.choosing import Choice, Encoded, candidates, choose
from aggregator.rehearsal.fleet import Figures, VirtualFleet
from aggregator.rehearsal.inference import Understood
from aggregator.rehearsal.population import Population, Roaming
from aggregator.rehearsal.references import PlainPlan, alone, central, central_dp
from aggregator.rehearsal.scores import Scores, part, score, score_outputs, score_own
from aggregator.rehearsal.settings import METRICS, Asked, spec_for, without_noise
from aggregator.rehearsal.splits import Split
from edge_sdk.artifact.features import INPUT, features, labels
from edge_sdk.artifact.schema import Schema
from edge_sdk.artifact.weights import read_vector
from edge_sdk.privacy import statement
from edge_sdk.protocol.messages import PrivacyTerms
from edge_sdk.protocol.secagg.committee import SMALLEST

PERSONAL: Final = "aggregator.rehearsal.personal"
MOST_ALONE: Final = 200  # devices that are also trained alone
MOST_CURVE: Final = 40  # rounds after which the metric is taken
MOST_TESTED: Final = 20_000  # rows by which it is taken then
SHORT_PASS: Final = 2e6  # rows times columns of a pass that Newton may make often
MOST_PASSES: Final = 400_000  # rows that a reference looks at, all passes together

Whole = npt.NDArray[np.int64]
Say = Callable[[str], None]


@dataclass(slots=True)
class Trial:
    """What a rehearsal found. Scores by run; a run that could not be is not there."""

    metric: str
    schema: Schema
    spec: tasks.TaskSpec
    choice: Choice
    names: tuple[str, ...]
    train: Whole  # rows by device
    test: Whole
    heldout: Heldout
    owners: Whole
    terms: PrivacyTerms | None = None
    refused: TaskRefused | None = None
    scores: dict[str, Scores] = field(default_factory=dict)
    curve: list[tuple[int, float]] = field(default_factory=list)
    figures: list[Figures] = field(default_factory=list)
    outputs: npt.NDArray[np.float64] | None = None  # of the reported model over the test rows
    plain_seconds: float = 0.0
    masked: bool = True
    roaming: Roaming | None = None  # customer unit
    advice: list[str] = field(default_factory=list)

    @property
    def model(self) -> bytes:
        """The first checkpoint."""
        return self.choice.candidate.model

    @property
    def reported(self) -> str:
        """The run that calibration and confusion are drawn of."""
        return "fleet" if "fleet" in self.scores else "fleet_no_privacy"

    @property
    def statement(self) -> statement.PrivacyStatement | None:
        """What the whole task promises; None where it was refused."""
        if self.terms is None:
            return None
        return statement.state(self.terms, read_vector(self.model).size, self.spec.rounds, self.spec.n_min)

    def overall(self, run: str) -> float | None:
        """The metric of a run over all test rows."""
        return self.scores[run].overall.get(self.metric) if run in self.scores else None


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
    metric = METRICS[found.answers.kind]
    if plain.schema.label.log:
        metric = "mae"  # an error of squares would be that of the few largest alone
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
    _measure_references(trial, people, seed, say, clock)
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


# -- what it is measured against ---------------------------------------------------------------------------------------


def _measure_references(trial: Trial, people: Population, seed: int, say: Say, clock: Callable[[], float]) -> None:
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
    """Each device's own version of the fleet's model, where the product has that part."""
    if find_spec(PERSONAL) is None:
        return
    make: Callable[..., Iterable[tuple[int, bytes]]] | None = getattr(import_module(PERSONAL), "personalise", None)
    if make is None:
        return
    chosen = _some_places(trial, seed)
    say(f"a version of its own on each of {len(chosen)} devices")
    models: Iterator[tuple[int, bytes]] = (
        (int(chosen[place]), own) for place, own in make(model, _only(people, chosen), seed=seed)
    )
    trial.scores["personalised"] = score_own(models, trial.heldout, trial.owners, trial.names)


# -- words -------------------------------------------------------------------------------------------------------------


def summary(trial: Trial, found: Understood) -> dict[str, Any]:
    """For `summary.json` and --json."""
    promised = trial.statement
    return {
        "metric": trial.metric,
        "lower_is_better": trial.metric in LOWER_IS_BETTER,
        "rows": {"train": int(trial.train.sum()), "test": int(trial.test.sum())},
        "devices": len(trial.names),
        "model": trial.choice.candidate.name,
        "weights": int(read_vector(trial.model).size),
        "scores": {run: _shown(trial, scores) for run, scores in trial.scores.items()},
        "privacy": None if promised is None else promised.to_dict(),
        "refused": None if trial.refused is None else {"error": str(trial.refused), "hint": trial.refused.hint},
        "rounds": [figures.as_dict() for figures in trial.figures],
        "curve": trial.curve,
        "masks": trial.masked,
        "customers_on_several_devices": roaming(trial),
        "devices_per_second": _rate(trial),
        "plain_pass_seconds": trial.plain_seconds,
        "assumptions": [asdict(one) for one in found.assumptions],
        "warnings": found.warnings,
        "advice": trial.advice,
        "tried": [
            dict(zip(("model", "optimizer", "rate", "validation"), one, strict=True)) for one in trial.choice.tried
        ],
        "by_device": _by_device(trial),
    }


def _shown(trial: Trial, scores: Scores) -> dict[str, Any]:
    values = scores.spread(trial.metric)
    spread = np.quantile(values, [0, 0.25, 0.5, 0.75, 1.0]).tolist() if values else []
    return {**scores.overall, "device_mean": scores.mean(trial.metric), "device_quartiles": spread}


def _rate(trial: Trial) -> float | None:
    seconds = sum(figures.seconds for figures in trial.figures)
    return sum(figures.devices for figures in trial.figures) / seconds if seconds > 0 else None


def _by_device(trial: Trial) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    runs: Mapping[str, Scores] = trial.scores
    for place, name in enumerate(trial.names):
        entry: dict[str, Any] = {"device": name, "train": int(trial.train[place]), "test": int(trial.test[place])}
        for run in ("fleet", "fleet_no_privacy", "alone", "central", "personalised"):
            if run in runs:
                entry[run] = runs[run].by_device.get(name, {}).get(trial.metric)
        rows.append(entry)
    return rows
