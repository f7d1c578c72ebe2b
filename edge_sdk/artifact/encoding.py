"""The columns of each kind of field. Pure. Refuses, with RecordError, a value that is not of the field's kind.

A category outside the vocabulary is no error: it has its own column. Nor is a number far from the others: it counts
as 1e6 scales from the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sdk.artifact import series
from edge_sdk.artifact.errors import RecordError
from edge_sdk.artifact.fields import (
    FARTHEST,
    WIDEST,
    CategoryField,
    Field,
    NumberField,
    SequenceField,
    SeriesField,
    TextField,
)
from edge_sdk.artifact.text import bucket, hash_all
from edge_sdk.artifact.values import absent, finite, plain_numbers, shown

Array = npt.NDArray[Any]
Records = Sequence[Mapping[str, Any]]


def fill(columns: Array, field: Field, records: Records) -> None:
    """Write a field's columns [B, field.width], which are zero. A value that `may_be_missing` may be left out."""
    if isinstance(field, SeriesField):
        columns[:] = series.encode(field, records)
        return
    values = [record.get(field.name) for record in records]
    if isinstance(field, NumberField):
        _fill_numbers(columns, field, values)
    elif isinstance(field, CategoryField):
        _fill_categories(columns, field, values)
    elif isinstance(field, TextField):
        _fill_texts(columns, field, values)
    else:
        _fill_sequences(columns, field, values)


def may_be_missing(field: Field) -> bool:
    """May a record leave this field out?"""
    return isinstance(field, NumberField | CategoryField | TextField) and field.missing


def expected(field: Field) -> str:
    """What a value of this field has to be, for messages."""
    if isinstance(field, NumberField):
        kind = "a finite number"
    elif isinstance(field, TextField):
        kind = "a text"
    elif isinstance(field, SeriesField):
        kind = f"a list of at most {field.window} numbers or None, oldest first"
    else:
        such = f" such as {', '.join(field.vocabulary[:5])}" if field.vocabulary else ""
        kind = f"a list of texts{such}, newest last" if isinstance(field, SequenceField) else f"a text{such}"
    return f"{kind} or None" if may_be_missing(field) else kind


def transform(values: Array, log: bool) -> Array:
    """T of a number: sign(x) log(1 + |x|) where `log`, else x."""
    return np.sign(values) * np.log1p(np.abs(values)) if log else values


def standardise(values: Array, mean: float, scale: float) -> Array:
    """(value - mean) / scale within +-1e6: float32."""
    with np.errstate(over="ignore"):
        return np.clip((values - mean) / scale, -FARTHEST, FARTHEST).astype(np.float32)


def listed(name: str, value: Any, index: int, what: str) -> list[Any]:
    """The entries of a sequence. Raises RecordError."""
    entries = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(entries, list | tuple):
        raise RecordError("wrong-type", f"record {index}: {name!r} must be {what}, not {shown(value)}")
    if len(entries) > WIDEST:
        raise RecordError("too-long", f"record {index}: {name!r} has {len(entries)} entries; give at most {WIDEST}")
    return list(entries)


def _fill_numbers(columns: Array, field: NumberField, values: Sequence[Any]) -> None:
    found = plain_numbers(values)
    if found is None or (not field.missing and np.isnan(found).any()):
        what = f"{field.name!r} must be {expected(field)}"
        found = np.array(
            [
                np.nan if field.missing and absent(value) else finite(value, f"record {index}: {what}")
                for index, value in enumerate(values)
            ],
            np.float64,
        )
    gone = np.isnan(found)
    numbers = np.where(gone, 0.0, found)
    columns[:, 0] = np.where(gone, 0.0, standardise(transform(numbers, field.log), field.mean, field.scale))
    if field.missing:
        columns[:, 1] = gone
    if field.edges:
        first = 1 + field.missing
        intervals = np.searchsorted(np.array(field.edges), numbers, side="right")
        columns[~gone, first + intervals[~gone]] = 1.0


def _fill_categories(columns: Array, field: CategoryField, values: Sequence[Any]) -> None:
    places = {word: place for place, word in enumerate(field.vocabulary)}
    for index, value in enumerate(values):
        if field.missing and absent(value):
            columns[index, -1] = 1.0
        else:
            columns[index, _place(field, places, value, index)] = 1.0


def _place(field: CategoryField | SequenceField, places: dict[str, int], word: Any, index: int) -> int:
    """The column of a word. A hashed one is remembered in `places`; a device kept its bucket in its place."""
    if isinstance(word, str):
        if word not in places:
            if not field.buckets:
                return len(field.vocabulary)
            places[word] = bucket(word, field.buckets)
        return places[word]
    if type(word) is int and 0 <= word < field.buckets:
        return word
    raise RecordError("wrong-type", f"record {index}: {field.name!r} must be {expected(field)}, not {shown(word)}")


def _fill_texts(columns: Array, field: TextField, values: Sequence[Any]) -> None:
    texts = [index for index, value in enumerate(values) if isinstance(value, str)]
    rows, buckets, weights = hash_all([values[index] for index in texts], field.width, field.chars, field.words)
    columns[np.array(texts, np.int64)[rows], buckets] = weights
    for index, value in enumerate(values):
        if not isinstance(value, str) and not (field.missing and absent(value)):
            for place, weight in _kept_text(field, value, index):
                columns[index, place] = weight


def _kept_text(field: TextField, value: Any, index: int) -> list[tuple[int, float]]:
    """The features that a device kept in place of a text: [bucket, value] pairs."""
    pairs = value if isinstance(value, (list, tuple)) and len(value) <= field.width else (None,)
    for pair in pairs:
        sound = isinstance(pair, (list, tuple)) and len(pair) == 2 and type(pair[0]) is int
        if not sound or not 0 <= pair[0] < field.width or type(pair[1]) is not float or not abs(pair[1]) <= 1.0:
            what = f"{expected(field)}, or a text's kept features"
            raise RecordError("wrong-type", f"record {index}: {field.name!r} must be {what}, not {shown(value)}")
    return [(place, weight) for place, weight in pairs]


def _fill_sequences(columns: Array, field: SequenceField, values: Sequence[Any]) -> None:
    places = {word: place for place, word in enumerate(field.vocabulary)}
    for index, value in enumerate(values):
        words = listed(field.name, value, index, expected(field))
        # Every word is checked, so that a wrong one is found before it is among the last.
        at = [_place(field, places, word, index) for word in words][-field.last :]
        for age, place in reversed(list(enumerate(reversed(at)))):
            columns[index, place] = field.decay**age  # from the oldest: the newest of equal words stays
    lengths = np.sqrt((columns.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    columns /= np.where(lengths > 0, lengths, 1.0)
