"""Records to tensors, and logits to answers, by the schema alone. Refuses a record that does not fit (RecordError).

A category outside the vocabulary is no error: it has its own column. Nor is a number far from the others: it counts
as 1e6 scales from the mean. A missing, extra, wrongly typed or not finite field is one, and the message names the
field and what was expected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_sdk.artifact.errors import RecordError
from edge_sdk.artifact.schema import FARTHEST, CategoryField, Field, NumberField, Schema, TextField
from edge_sdk.artifact.text import hashed

INPUT: Final = "features"
Array = npt.NDArray[Any]


def features(schema: Schema, records: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """The graph's inputs: {"features": float32 [B, F]}. Raises RecordError."""
    matrix = np.zeros((len(records), schema.width), np.float32)
    for index, record in enumerate(records):
        _check_fields(schema, record, index)
    column = 0
    for field in schema.fields:
        _fill(matrix[:, column : column + field.width], field, [record[field.name] for record in records])
        column += field.width
    return {INPUT: matrix}


def labels(schema: Schema, values: Sequence[Any]) -> Array:
    """Targets [B]: float32 0/1 for binary, int64 class index, standardised float32 for number. Raises RecordError."""
    label = schema.label
    if label.kind == "number":
        numbers = [_number(label.name, value, index) for index, value in enumerate(values)]
        return _standardise(numbers, label.mean, label.scale)
    places = {name: place for place, name in enumerate(label.names)}
    for index, value in enumerate(values):
        if not isinstance(value, str) or value not in places:
            raise RecordError("label", f"record {index}: label {label.name!r} must be one of {list(label.names)}")
    indices = np.array([places[value] for value in values], np.int64)
    return indices.astype(np.float32) if label.kind == "binary" else indices


def decide(schema: Schema, logits: Array) -> list[list[tuple[str, float]]]:
    """Per record, (label, score) from best to worst; logits float32 [B, 1] or [B, K].

    Scores of binary and classes are probabilities that sum to 1. A number gives one pair: its name and value.
    """
    label = schema.label
    table = np.asarray(logits, np.float64).reshape(-1, label.outputs)
    if label.kind == "number":
        return [[(label.name, float(row[0]) * label.scale + label.mean)] for row in table]
    if label.kind == "binary":
        table = np.hstack([np.zeros_like(table), table])  # sigmoid(z) is softmax over (0, z)
    powers = np.exp(table - table.max(axis=1, keepdims=True))
    scores = powers / powers.sum(axis=1, keepdims=True)
    ranked = np.argsort(-scores, axis=1, kind="stable")
    return [[(label.names[k], float(row[k])) for k in order] for row, order in zip(scores, ranked, strict=True)]


def _check_fields(schema: Schema, record: Mapping[str, Any], index: int) -> None:
    wanted = {field.name: field for field in schema.fields}
    for name, field in wanted.items():
        if name not in record:
            raise RecordError(
                "missing-field", f"record {index}: the field {name!r} is missing: give {_expected(field)}"
            )
    for name in record:
        if name not in wanted:
            raise RecordError("extra-field", f"record {index}: unknown field {name!r}; known are {list(wanted)}")


def _expected(field: Field) -> str:
    if isinstance(field, NumberField):
        return "a finite number"
    if isinstance(field, TextField):
        return "a text"
    shown = ", ".join(field.vocabulary[:5])
    return f"a text such as {shown}"


def _fill(columns: Array, field: Field, values: Sequence[Any]) -> None:
    if isinstance(field, NumberField):
        numbers = [_number(field.name, value, index) for index, value in enumerate(values)]
        columns[:, 0] = _standardise(numbers, field.mean, field.scale)
        return
    if isinstance(field, TextField):
        for index, value in enumerate(values):
            for bucket, weight in _text(field, value, index):
                columns[index, bucket] = weight
        return
    places = _places(field)
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise RecordError("wrong-type", f"record {index}: {field.name!r} must be {_expected(field)}, not {value!r}")
        columns[index, places.get(value, len(places))] = 1.0


def _text(field: TextField, value: Any, index: int) -> list[tuple[int, float]]:
    """Features of a text, or the features that a device kept in its place: [bucket, value] pairs."""
    if isinstance(value, str):
        return hashed(value, field.width)
    pairs = value if isinstance(value, (list, tuple)) and len(value) <= field.width else (None,)
    for pair in pairs:
        sound = isinstance(pair, (list, tuple)) and len(pair) == 2 and type(pair[0]) is int
        if not sound or not 0 <= pair[0] < field.width or type(pair[1]) is not float or not abs(pair[1]) <= 1.0:
            raise RecordError("wrong-type", f"record {index}: {field.name!r} must be a text or its kept features")
    return [(bucket, weight) for bucket, weight in pairs]


def _places(field: CategoryField) -> dict[str, int]:
    return {word: place for place, word in enumerate(field.vocabulary)}


def _number(name: str, value: Any, index: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise RecordError("wrong-type", f"record {index}: {name!r} must be a finite number, not {value!r}")
    try:
        number = float(value)
    except OverflowError:  # an integer that no float holds
        number = math.inf
    if not math.isfinite(number):
        raise RecordError("not-finite", f"record {index}: {name!r} must be a finite number, not {number!r}")
    return number


def _standardise(numbers: Sequence[float], mean: float, scale: float) -> Array:
    with np.errstate(over="ignore"):
        scaled = (np.array(numbers, np.float64) - mean) / scale
    return np.clip(scaled, -FARTHEST, FARTHEST).astype(np.float32)
