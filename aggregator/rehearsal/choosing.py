"""Which model, and how fast it learns: short fleets without masks, judged by a validation part of the training rows.

The choice looks at the rows without privacy, as a rehearsal may and a fleet may not; the test rows are not looked at.
The noise of a smaller number of rows is made smaller alike, so that what is chosen suits the whole. Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from aggregator import tasks
from aggregator.errors import AggregatorError, TaskRefused
from aggregator.evaluation import Heldout, evaluate
from aggregator.rehearsal.fleet import VirtualFleet
from aggregator.rehearsal.population import Floats, Population
from aggregator.rehearsal.settings import Asked, Pace, spec_for
from edge_sdk.artifact.schema import Schema
from edge_sdk.artifact.starter import fourier_classifier, linear_classifier, tabular_classifier
from edge_sdk.artifact.weights import read_vector

MOST_ROWS: Final = 4000
MOST_CELLS: Final = 1e7  # of the rows by which is chosen
MOST_ROUNDS: Final = 50
WIDE: Final = 512  # columns beyond which only a linear model is tried
PAIRS: Final = 400
FOURIER: Final = 512
HIDDEN: Final = 16
BETTER: Final = 0.01  # of the loss, by which a less plain model must win
LOSS: Final = {"binary": "log_loss", "classes": "log_loss", "number": "mse"}
# Largest second derivative of each loss by an output.
CURVATURE: Final = {"binary": 0.25, "classes": 0.5, "number": 2.0}


@dataclass(frozen=True, slots=True)
class Encoded:
    """Training rows under one schema, device by device; `held`, bool [N]: the validation part."""

    schema: Schema
    people: Population
    held: npt.NDArray[np.bool_]
    values: npt.NDArray[np.float64] | None  # a number's, in its own units


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model over an encoding, and the paces to try it with."""

    name: str
    encoded: Encoded
    model: bytes
    paces: tuple[Pace, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """What won; `tried`: (model, optimizer, learning rate, loss on the validation rows)."""

    candidate: Candidate
    pace: Pace
    tried: tuple[tuple[str, str, float, float], ...]


def candidates(plain: Encoded, cut: Encoded | None, seed: int) -> Iterator[Candidate]:
    """From plain to bent. `cut`: the same rows with intervals."""
    yield _linear("linear", plain)
    if plain.schema.width > WIDE:
        return
    if cut is not None:
        yield _linear("linear with intervals", cut)
    bandwidth = 1.0 / max(_distance(plain.people.features, seed), 1e-3)
    model = fourier_classifier(plain.schema, FOURIER, bandwidth, seed)
    yield Candidate("random Fourier features", plain, model, _paces(1.0, plain.schema, 1.0, (0.05,)))
    hidden = tuple(Pace("adam", rate, 2.0) for rate in (0.01, 0.03))
    yield Candidate("one hidden layer", plain, tabular_classifier(plain.schema, (HIDDEN,), seed), hidden)


def _linear(name: str, encoded: Encoded) -> Candidate:
    features = encoded.people.features
    lengths = np.sqrt(np.minimum(np.einsum("ij,ij->i", features, features), 1e8) + 1.0)
    clip = float(f"{0.5 * np.median(lengths):.2g}")
    adam = (0.05, 0.3) if encoded.schema.width > WIDE else (0.03,)
    return Candidate(
        name, encoded, linear_classifier(encoded.schema), _paces(_steepness(features), encoded.schema, clip, adam)
    )


def _paces(steepness: float, schema: Schema, clip: float, adam: Sequence[float]) -> tuple[Pace, ...]:
    """Momentum at shares of the fastest stable rate, and Adam."""
    fastest = 1.0 / (CURVATURE[schema.label.kind] * steepness)
    steady = [Pace("momentum", float(f"{share * fastest:.2g}"), clip) for share in (0.1, 0.4, 1.5)]
    return (*steady, *(Pace("adam", rate, clip) for rate in adam))


def _steepness(features: Floats) -> float:
    """Largest eigenvalue of the mean of x x^T with a constant column, by power iteration on at most MOST_ROWS rows."""
    some = np.minimum(np.abs(features[:: max(1, len(features) // MOST_ROWS)]), 100.0) * np.sign(
        features[:: max(1, len(features) // MOST_ROWS)]
    )
    vector = np.ones(some.shape[1], np.float32) / np.sqrt(some.shape[1] + 1)
    bias, value = 1.0, 1.0
    for _ in range(20):
        answers = some @ vector + bias
        vector, bias = some.T @ answers / len(some), float(answers.mean())
        value = float(np.hypot(np.linalg.norm(vector), bias))
        vector, bias = vector / max(value, 1e-9), bias / max(value, 1e-9)
    return max(value, 1e-3)


def _distance(features: Floats, seed: int) -> float:
    """Median distance of two rows."""
    rng = np.random.default_rng(seed)
    one, other = (np.clip(features[rng.integers(0, len(features), PAIRS)], -10, 10) for _ in range(2))
    return float(np.median(np.linalg.norm(one - other, axis=1)))


def choose(found: Sequence[Candidate], asked: Asked, seed: int, say: Callable[[str], None]) -> Choice:
    """The candidate and pace whose short rehearsal is best; a plainer one unless the gain is clear."""
    best: tuple[float, Candidate, Pace] | None = None
    tried = []
    for candidate in found:
        own = [(_tried(candidate, pace, asked, seed), pace) for pace in candidate.paces]
        tried += [(candidate.name, pace.optimizer, pace.learning_rate, score) for score, pace in own]
        score, pace = min(own, key=lambda pair: pair[0] if np.isfinite(pair[0]) else np.inf)
        say(f"  {candidate.name}: validation loss {score:.4g}")
        if np.isfinite(score) and (best is None or best[0] - score > BETTER * best[0]):
            best = (score, candidate, pace)
    if best is None:  # too few rows to judge by
        return Choice(found[0], found[0].paces[1], tuple(tried))
    return Choice(best[1], best[2], tuple(tried))


def _tried(candidate: Candidate, pace: Pace, asked: Asked, seed: int) -> float:
    """NaN where it does not work out."""
    encoded = candidate.encoded
    rows = np.flatnonzero(~encoded.held)
    most = min(MOST_ROWS, max(1000, int(MOST_CELLS / encoded.schema.width)))
    people = part_of(encoded.people, rows[:: -(-len(rows) // most) or 1])
    if not len(people):
        return float("nan")
    spec = _proxy(candidate, pace, asked, people)
    try:
        fleet = VirtualFleet(people, candidate.model, spec, seed=seed, fast=True)
        fleet.run()
        return evaluate(fleet.model, _validation(encoded))[LOSS[encoded.schema.label.kind]]
    except AggregatorError:
        return float("nan")


def _proxy(candidate: Candidate, pace: Pace, asked: Asked, people: Population) -> tasks.TaskSpec:
    """One pooled step a round, with as much noise for these rows as the task has for all."""
    pooled = replace(
        asked,
        placement="shared",
        unit="record" if asked.unit == "device" else asked.unit,
        given={key: asked.given[key] for key in ("max_grad_norm",) if key in asked.given},
        rounds=min(MOST_ROUNDS, asked.rounds or MOST_ROUNDS),
    )
    whole = spec_for(pooled, candidate.encoded.people, candidate.model, pace, "log_loss")
    part = spec_for(pooled, people, candidate.model, pace, "log_loss")
    quiet = msgspec.structs.replace(
        part, target_epsilon=None, insecure_without_noise=True, n_min=3, n_max=max(3, len(people)), clip=None
    )
    if asked.epsilon is None:
        return quiet
    try:
        terms = tasks.settle(
            msgspec.structs.replace(whole, accept_little_signal=True), read_vector(candidate.model).size
        )
    except TaskRefused:
        return quiet
    devices = len(candidate.encoded.people)
    # Deviation of all noise for each unit: the same here as there.
    there = terms.noise_multiplier * np.sqrt(devices / terms.honest) / (devices * terms.expected_batch)
    honest = max(1, int(part.honest_share * 3))
    here = float(there * len(people) * part.units_per_device / np.sqrt(len(people) / honest))
    noisy = msgspec.structs.replace(
        quiet, insecure_without_noise=False, noise_multiplier=here, accept_little_signal=True
    )
    try:
        tasks.settle(noisy, read_vector(candidate.model).size)
    except TaskRefused:  # too little noise to be worth a promise is also too little to matter here
        return quiet
    return noisy


def part_of(people: Population, rows: npt.NDArray[np.int64]) -> Population:
    """Some rows, ascending; devices without any are gone."""
    owners = people.owners()[rows]
    places, counts = np.unique(owners, return_counts=True)
    return Population(
        [people.names[place] for place in places],
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        people.features[rows],
        people.labels[rows],
        None if people.subjects is None else people.subjects[rows],
    )


def _validation(encoded: Encoded) -> Heldout:
    label, rows = encoded.schema.label, np.flatnonzero(encoded.held)
    rows = rows[:: max(1, len(rows) // MOST_ROWS)]
    inputs: dict[str, Any] = {"features": encoded.people.features[rows]}
    values = None if encoded.values is None else encoded.values[rows]
    return Heldout(label.kind, inputs, encoded.people.labels[rows], label, values)
