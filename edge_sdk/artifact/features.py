"""Records to tensors by the schema alone; `decide` is the way back. Refuses a record that does not fit (RecordError).

The one implementation for devices, for held-out evaluation and for rehearsals. A missing, extra, wrongly typed or not
finite field is an error, and the message names the field and what was expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_sdk.artifact.decide import decide, interval_ends, intervals, levels
from edge_sdk.artifact.encoding import expected, fill, may_be_missing, standardise, transform
from edge_sdk.artifact.errors import RecordError
from edge_sdk.artifact.schema import Schema, SeriesField, column_spans
from edge_sdk.artifact.values import finite, shown

__all__ = ["INPUT", "column_spans", "decide", "features", "intervals", "labels", "scores"]

INPUT: Final = "features"
Array = npt.NDArray[Any]


def features(schema: Schema, records: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """The graph's inputs: {"features": float32 [B, F]}. Raises RecordError.

    A record has every field of the schema (those that may be missing can be left out) and, where a series names a key
    or a time, these as texts; the key may be left out.
    """
    _check_names(schema, records)
    matrix = np.zeros((len(records), schema.width), np.float32)
    spans = column_spans(schema)
    for field in schema.fields:
        fill(matrix[:, spans[field.name]], field, records)
    return {INPUT: matrix}


def labels(schema: Schema, values: Sequence[Any], records: Sequence[Mapping[str, Any]] | None = None) -> Array:
    """Targets [B]: float32 0/1 for binary, int64 class index, standardised float32 for number. Raises RecordError.

    `records` are needed where the label is `relative_to` a series of theirs.
    """
    label = schema.label
    if label.kind == "number":
        what = f"{label.name!r} must be a finite number"
        numbers = np.array([finite(value, f"record {index}: {what}") for index, value in enumerate(values)], np.float64)
        targets, level = transform(numbers, label.log), levels(schema, records)
        if level is not None:
            targets = (targets - level[:, 0]) / level[:, 1]
        return standardise(targets, label.mean, label.scale)
    places = {name: place for place, name in enumerate(label.names)}
    for index, value in enumerate(values):
        if not isinstance(value, str) or value not in places:
            known = list(label.names[:20])
            raise RecordError("label", f"record {index}: label {label.name!r} must be one of {known}")
    indices = np.array([places[value] for value in values], np.int64)
    return indices.astype(np.float32) if label.kind == "binary" else indices


def scores(schema: Schema, logits: Array, values: Sequence[Any], records: Sequence[Mapping[str, Any]]) -> Array:
    """How far each number lay outside its interval, below 0 inside: float64 [B], in units of the label's scale.

    The conformity score of conformalised quantile regression (Romano, Patterson and Candès 2019, section 4). The same
    for a small site and a large one where the label is relative to a series. Raises RecordError.
    """
    low, high = interval_ends(schema.label, np.asarray(logits, np.float64).reshape(-1, schema.label.outputs))
    targets = labels(schema, values, records).astype(np.float64)
    return np.maximum(low - targets, targets - high)


def _check_names(schema: Schema, records: Sequence[Mapping[str, Any]]) -> None:
    fields = {field.name: field for field in schema.fields}
    needed = [(name, field) for name, field in fields.items() if not may_be_missing(field)]
    known = fields.keys() | set(schema.references)
    for index, record in enumerate(records):
        for name, field in needed:
            if name not in record:
                what = f"the field {name!r} is missing: give {expected(field)}"
                raise RecordError("missing-field", f"record {index}: {what}")
        for name in record:
            if name not in known:
                what = f"unknown field {name!r}; known are {[*fields, *schema.references]}"
                raise RecordError("extra-field", f"record {index}: {what}")
        _check_references(schema, record, index)


def _check_references(schema: Schema, record: Mapping[str, Any], index: int) -> None:
    for name in schema.references:
        if name in record and not isinstance(record[name], str):
            what = f"{name!r} must be a text, not {shown(record[name])}"
            raise RecordError("wrong-type", f"record {index}: {what}")
    for field in schema.fields:
        if isinstance(field, SeriesField) and field.calendar and field.time not in record:
            what = f"the field {field.time!r} is missing: give an ISO date such as 2024-05-31"
            raise RecordError("missing-field", f"record {index}: {what}")
