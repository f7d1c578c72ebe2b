"""Logits to answers, by the schema alone. Pure. Refuses, with RecordError, a label that needs records without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_sdk.artifact import series
from edge_sdk.artifact.encoding import listed
from edge_sdk.artifact.errors import RecordError
from edge_sdk.artifact.fields import SequenceField
from edge_sdk.artifact.schema import Label, Schema

_LARGEST_LOG: Final = 700.0  # exp of it is still a float

Array = npt.NDArray[Any]
Records = Sequence[Mapping[str, Any]]


def decide(schema: Schema, logits: Array, records: Records | None = None) -> list[list[tuple[str, float]]]:
    """Per record, (label, score) from best to worst; logits float32 [B, outputs].

    Scores of binary and classes are probabilities that sum to 1. A number gives one pair: its name and its value, the
    median where there are quantiles, not below 0 where no label is (`_least`). `records` are needed where the label is
    `relative_to` or `unseen_of` a field of theirs: what a record has seen is not ranked, unless it has seen all.
    """
    label = schema.label
    if label.kind == "number":
        values = in_units(label, logits, levels(schema, records))[:, label.median]
        return [[(label.name, float(value))] for value in np.maximum(values, _least(schema, values))]
    hidden = seen(schema, records)
    scores = probabilities(label, logits, hidden)
    ranked = np.argsort(-scores, axis=1, kind="stable")
    counts = [len(label.names)] * len(scores) if hidden is None else (~hidden).sum(axis=1).tolist()
    return [
        [(label.names[k], float(row[k])) for k in order[:count]]
        for row, order, count in zip(scores, ranked, counts, strict=True)
    ]


def intervals(
    schema: Schema, logits: Array, records: Records | None = None, widened: Sequence[float] | None = None
) -> list[tuple[float, float]] | None:
    """Per record the outer quantiles of a number, in its own units, around its prediction; None without quantiles.

    `widened`: how far both ends are moved outwards (below 0: inwards, at most to the prediction), one a record, in the
    unit of the logits: the label's scale. No end lies below 0 where no label does (`_least`).
    """
    label = schema.label
    if len(label.quantiles) < 2:
        return None
    table = np.array(logits, np.float64).reshape(-1, label.outputs)
    if widened is not None:
        _widen(label, table, np.asarray(widened, np.float64))
    values = in_units(label, table, levels(schema, records))
    least = _least(schema, values[:, label.median])
    low, high = (np.maximum(end, least) for end in interval_ends(label, values))
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _widen(label: Label, table: Array, by: Array) -> None:
    """Move the outer quantiles of logits [B, outputs] apart, in place."""
    low, high = interval_ends(label, table)
    prediction = table[:, label.median].copy()
    table[:, 0], table[:, -1] = np.minimum(low - by, prediction), np.maximum(high + by, prediction)


def _least(schema: Schema, prediction: Array) -> Array:
    """[B]: the least that a label may be: 0 where it is `log`, as amounts and counts are.

    Of other numbers below 0, which a `log` label may be too, a prediction below 0 tells; not of one relative to a `log`
    series, which takes all below 0 for 0.
    """
    label = schema.label
    counted = bool(label.relative_to) and schema.series(label.relative_to).log
    return np.where(label.log & (counted | (prediction >= 0)), 0.0, -np.inf)


def interval_ends(label: Label, values: Array) -> tuple[Array, Array]:
    """Lowest and highest [B] of the outer quantiles and the median, of `in_units`: quantiles learnt apart may cross."""
    outer = values[:, [0, label.median, -1]]
    return outer.min(axis=1), outer.max(axis=1)


def probabilities(label: Label, logits: Array, hidden: Array | None = None) -> Array:
    """float64 [B, 2 or K], 0 for what is hidden (bool [B, K])."""
    table = np.asarray(logits, np.float64).reshape(-1, label.outputs)
    if label.kind == "binary":
        table = np.hstack([np.zeros_like(table), table])  # sigmoid(z) is softmax over (0, z)
    if hidden is not None:
        table = np.where(hidden, -np.inf, table)
    powers = np.exp(table - table.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def in_units(label: Label, logits: Array, level: Array | None) -> Array:
    """A number's outputs float64 [B, outputs] in the label's own units; `level` [B, 2] as of `levels`."""
    values = np.asarray(logits, np.float64).reshape(-1, label.outputs) * label.scale + label.mean
    if level is not None:
        values = values * level[:, 1:] + level[:, :1]
    if not label.log:
        return values
    return np.sign(values) * np.expm1(np.minimum(np.abs(values), _LARGEST_LOG))


def levels(schema: Schema, records: Records | None) -> Array | None:
    """Base and spread float64 [B, 2] of the series that the label is relative to; None where it is to none."""
    if not schema.label.relative_to:
        return None
    if records is None:
        raise RecordError("no-records", f"{schema.label.name!r} is relative to a series: give the records too")
    field = schema.series(schema.label.relative_to)
    return series.levels(field, series.window(field, records))


def seen(schema: Schema, records: Records | None) -> Array | None:
    """bool [B, K]: classes that a record's sequence holds, unless it holds all; None where the label ranks all."""
    label = schema.label
    if not label.unseen_of:
        return None
    if records is None:
        raise RecordError("no-records", f"{label.name!r} leaves out what was seen: give the records too")
    field = next(each for each in schema.fields if isinstance(each, SequenceField) and each.name == label.unseen_of)
    places = {name: place for place, name in enumerate(label.names)}
    hidden = np.zeros((len(records), len(label.names)), bool)
    for index, record in enumerate(records):
        words = listed(field.name, record.get(field.name), index, "a list of texts")
        hidden[index, [places[word] for word in words if isinstance(word, str) and word in places]] = True
    hidden[hidden.all(axis=1)] = False
    return hidden
