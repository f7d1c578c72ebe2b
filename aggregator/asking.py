"""What an operator asks, in words, to the statistics of a query. Pure; refuses, with TaskRefused, what no record holds.

    mean:FIELD[:LOW:HIGH]               count, mean and standard deviation of a number
    histogram:FIELD[:LOW:HIGH[:BINS]]   shares of equal parts (12 of them)
    quantiles:FIELD[:LOW:HIGH[:BINS]]   the same of 64 parts, read as quantiles
    words:FIELD[:WORD,WORD...]          counts and shares
    labels                              the label: its words, or mean and histogram of a number
    model[:BINS]                        loss, accuracy, AUC and calibration of the current checkpoint (10 bins)

Where no bounds are given they are mean - 4 scale and mean + 4 scale of the schema; where no words are, its vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aggregator.errors import TaskRefused
from edge_sdk.analytics import layout
from edge_sdk.artifact.schema import CategoryField, NumberField, Schema, SequenceField
from edge_sdk.protocol.messages import Query, Statistic, StatisticKind

HINT: Final = "write mean:FIELD:LOW:HIGH, histogram:FIELD:LOW:HIGH:BINS, quantiles:FIELD, words:FIELD, labels or model"
BINS: Final = {"histogram": 12, "quantiles": 64}
REACH: Final = 4.0  # scales on either side of the mean, where no bounds are given
SCORES: Final = 10
MOST_LOSS: Final = 4.0  # a log loss above it counts as it: the truth was given 1.8 %
CLASSES_ASKED: Final = 4096


def query(asks: Sequence[str], schema: Schema, name: str = "question") -> Query:
    """The query of these words. Raises TaskRefused naming the one that is wrong."""
    if not asks:
        raise TaskRefused("nothing is asked", HINT, reason="question")
    made = Query(name, tuple(statistic for ask in asks for statistic in _statistics(ask, schema)))
    try:
        layout.check(made)
        layout.check_fields(made, schema)
    except layout.QueryRefused as error:
        raise TaskRefused(str(error), HINT, reason="question") from error
    return made


def _statistics(ask: str, schema: Schema) -> list[Statistic]:
    kind, _, rest = ask.partition(":")
    if ask == "labels":
        return _labels(schema)
    if kind == "model":
        return [_model(schema, rest)]
    field, further = _field(ask, rest, schema)
    if kind == "words":
        return [Statistic("words", field, 0.0, 0.0, 0, _words(ask, field, further, schema))]
    if kind == "mean":
        low, high, _ = _range(ask, field, further, schema)
        return [Statistic("moments", field, low, high, 0, ())]
    if kind in BINS:
        low, high, bins = _range(ask, field, further, schema)
        return [Statistic("histogram", field, low, high, bins or BINS[kind], ())]
    raise TaskRefused(f"nobody knows what {ask!r} asks", HINT, reason="question")


def _field(ask: str, rest: str, schema: Schema) -> tuple[str, str]:
    """The field that is named, the longest where names begin alike, and what follows it."""
    names = sorted((field.name for field in schema.fields), key=len, reverse=True)
    for name in names:
        if rest == name or rest.startswith(f"{name}:"):
            return name, rest[len(name) + 1 :]
    raise TaskRefused(
        f"{ask!r} names no field of the task's records", f"choose from {sorted(names)}", reason="question"
    )


def _range(ask: str, field: str, further: str, schema: Schema) -> tuple[float, float, int]:
    """(low, high, bins; 0 where not given)."""
    parts = further.split(":") if further else []
    try:
        if len(parts) in (2, 3):
            return float(parts[0]), float(parts[1]), _bins(parts[2]) if parts[2:] else 0
    except ValueError as error:
        raise TaskRefused(f"{ask!r} has bounds that are no numbers", HINT, reason="question") from error
    known = next(each for each in schema.fields if each.name == field)
    if parts or not isinstance(known, NumberField):
        raise TaskRefused(f"{ask!r} needs bounds", HINT, reason="question")
    return *around(known.mean, known.scale), 0


def _bins(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise TaskRefused(f"{text!r} is no number of bins", HINT, reason="question")
    return int(text)


def around(mean: float, scale: float) -> tuple[float, float]:
    """The bounds where none are given."""
    return mean - REACH * scale, mean + REACH * scale


def _words(ask: str, field: str, further: str, schema: Schema) -> tuple[str, ...]:
    """Those that are named, else the vocabulary; none that no record can hold."""
    known = next(each for each in schema.fields if each.name == field)
    if not isinstance(known, CategoryField | SequenceField):
        raise TaskRefused(f"{ask!r}: {field!r} holds no words", HINT, reason="question")
    if known.buckets:
        hint = f"count a field with a vocabulary, or give {field!r} one in the schema of a new task's model"
        raise TaskRefused(f"{ask!r} cannot be answered: {layout.HASHED}", hint, reason="question")
    words = tuple(further.split(",")) if further else known.vocabulary
    if unknown := [word for word in words if word not in known.vocabulary]:
        said = f"{ask!r}: devices keep {unknown[0]!r} as 'other', which is not in the vocabulary of {field!r}"
        raise TaskRefused(said, f"choose from {', '.join(known.vocabulary)[:200]}", reason="question")
    return words


def _labels(schema: Schema) -> list[Statistic]:
    label = schema.label
    if label.kind != "number":
        return [Statistic("words", layout.LABEL, 0.0, 0.0, 0, label.names[:CLASSES_ASKED])]
    low, high = around(label.mean, label.scale)
    kinds: tuple[tuple[StatisticKind, int], ...] = (("moments", 0), ("histogram", BINS["histogram"]))
    return [Statistic(kind, layout.LABEL, low, high, bins, ()) for kind, bins in kinds]


def _model(schema: Schema, bins: str) -> Statistic:
    if schema.label.kind == "number":
        return Statistic("model", layout.LABEL, 0.0, REACH * schema.label.scale, 0, ())
    return Statistic("model", layout.LABEL, 0.0, MOST_LOSS, _bins(bins) if bins else SCORES, ())
