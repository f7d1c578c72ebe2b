"""What records add to a query's answer: one vector a unit, never longer than the clip. Pure; draws nothing.

A unit's vector is the mean over its records, so that every unit counts once. A value that is missing, of another type
or not finite counts nowhere: its part of the vector stays 0. Refuses nothing that a record may hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_sdk.analytics.layout import COUNT, LABEL, LOSS, RIGHT, SCORES, Part, length, parts
from edge_sdk.artifact.decide import decide
from edge_sdk.artifact.schema import Schema
from edge_sdk.protocol.messages import Query

Floats = npt.NDArray[np.float64]
_SLAB: Final = 2048  # records at a time: a vector may have thousands of values
_LEAST: Final = 1e-12
# logits of these records, float [B, K]; called where the model itself is asked about
Predict = Callable[[Sequence[Mapping[str, Any]]], npt.NDArray[Any]]


class Asked(NamedTuple):
    """A query over records of a schema; `bound`: the L2 clip of one unit's vector."""

    query: Query
    schema: Schema
    bound: float
    predict: Predict


class Records(NamedTuple):
    """Records by name and their labels, and how they form units: those of unit k are bounds[k] to bounds[k + 1]."""

    fields: Sequence[Mapping[str, Any]]
    labels: Sequence[Any]
    bounds: npt.NDArray[np.int64]  # [U + 1]

    def __repr__(self) -> str:
        return f"Records({len(self.labels)} of {len(self.bounds) - 1} units, ...)"


def total(asked: Asked, records: Records) -> Floats:
    """The sum over units of their vectors, float64 [length(query)]; each is clipped to L2 norm `bound`."""
    summed, bounds, first = np.zeros(length(asked.query)), records.bounds, 0
    while first < len(bounds) - 1:
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + _SLAB, side="right")) - 1)
        summed += clipped(_means(asked, records, first, last), asked.bound).sum(axis=0)
        first = last
    return summed


def _means(asked: Asked, records: Records, first: int, last: int) -> Floats:
    """The mean vector of each of these units, float64 [last - first, d]."""
    bounds = records.bounds[first : last + 1]
    sums = np.zeros((last - first, length(asked.query)))
    for start in range(int(bounds[0]), int(bounds[-1]), _SLAB):
        end = min(start + _SLAB, int(bounds[-1]))
        rows = vectors(asked, records.fields[start:end], records.labels[start:end])
        np.add.at(sums, np.searchsorted(bounds, np.arange(start, end), side="right") - 1, rows)
    return sums / np.diff(bounds)[:, None]


def clipped(rows: Floats, bound: float) -> Floats:
    """Each row scaled down to L2 norm `bound` where it is longer."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    shorter: Floats = rows * np.minimum(1.0, bound / np.maximum(norms, _LEAST))
    return shorter


def vectors(asked: Asked, fields: Sequence[Mapping[str, Any]], labels: Sequence[Any]) -> Floats:
    """One row a record, float64 [B, d]."""
    rows = np.zeros((len(labels), length(asked.query)))
    for part in parts(asked.query, asked.bound):
        columns = rows[:, part.columns]
        if part.statistic.kind == "model":
            _fill_model(columns, part, asked, fields, labels)
        else:
            name = part.statistic.field
            values = labels if name == LABEL else [record.get(name) for record in fields]
            (_fill_words if part.statistic.kind == "words" else _fill_numbers)(columns, part, values)
        columns *= part.weight
    return rows


def _fill_numbers(columns: Floats, part: Part, values: Sequence[Any]) -> None:
    known = [(row, number) for row, value in enumerate(values) if (number := _number(value)) is not None]
    if not known:
        return
    rows = np.array([row for row, _ in known])
    inside = _inside([number for _, number in known], part.statistic.low, part.statistic.high)
    if part.statistic.kind == "histogram":
        columns[rows, np.minimum((inside * part.width).astype(np.int64), part.width - 1)] = 1.0
        return
    x = 2.0 * inside - 1.0
    columns[rows] = np.stack([np.ones_like(x), x, x * x], axis=1)


def _inside(numbers: Sequence[float], low: float, high: float) -> Floats:
    """The place of each between low (0) and high (1)."""
    kept = np.clip(np.array(numbers, np.float64), low, high)
    return np.clip((kept - low) / (high - low), 0.0, 1.0)


def _number(value: Any) -> float | None:
    """A finite number; of a series its newest known one; None for everything else."""
    if isinstance(value, list | tuple):
        known = (number for each in reversed(value) if (number := _number_alone(each)) is not None)
        return next(known, None)
    return _number_alone(value)


def _number_alone(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer that no float holds
        return None
    return number if math.isfinite(number) else None


def _fill_words(columns: Floats, part: Part, values: Sequence[Any]) -> None:
    """A word counts 1; of a list each item counts its equal share of 1."""
    places = {word: place for place, word in enumerate(part.statistic.words)}
    for row, value in enumerate(values):
        words = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
        words = [word for word in words if isinstance(word, str)]
        for word in words:
            columns[row, places.get(word, len(places))] += 1.0 / len(words)


def _fill_model(
    columns: Floats, part: Part, asked: Asked, fields: Sequence[Mapping[str, Any]], labels: Sequence[Any]
) -> None:
    if not fields:
        return
    schema = asked.schema
    ranked = decide(schema, asked.predict(fields), fields)
    for row, (answers, label) in enumerate(zip(ranked, labels, strict=True)):
        if schema.label.kind == "number":
            _fill_error(columns[row], part, answers[0][1], label)
        else:
            _fill_score(columns[row], part, dict(answers), label, schema.label.names)


def _fill_score(row: Floats, part: Part, scores: dict[str, float], label: Any, names: Sequence[str]) -> None:
    """Count, clipped loss, right or not; then the score by whether it came true.

    The score of a binary label is that of its second name, of classes that of the best.
    """
    if not isinstance(label, str) or label not in scores or not all(map(math.isfinite, scores.values())):
        return
    best = max(scores, key=scores.__getitem__)
    row[COUNT], row[RIGHT] = 1.0, float(best == label)
    row[LOSS] = min(-math.log(max(scores[label], _LEAST)), part.statistic.high) / part.statistic.high
    if bins := part.statistic.bins:
        binary = len(names) == 2
        score, true = (scores[names[1]], label == names[1]) if binary else (scores[best], best == label)
        row[SCORES + (bins if true else 0) + min(int(score * bins), bins - 1)] = 1.0


def _fill_error(row: Floats, part: Part, predicted: float, label: Any) -> None:
    """Count, the clipped distance between prediction and truth, and its square."""
    truth = _number_alone(label)
    if truth is None or not math.isfinite(predicted):
        return
    error = min(abs(predicted - truth), part.statistic.high) / part.statistic.high
    row[COUNT], row[LOSS], row[RIGHT] = 1.0, error, error * error
