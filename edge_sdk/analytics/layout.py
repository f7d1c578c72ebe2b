"""Where each statistic of a query lies in the vector that devices upload, and how it is weighed (SPEC 7.9). Pure.

Refuses, with QueryRefused, a query that has no sound vector, and one over fields that records do not have.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from edge_sdk.artifact.schema import CategoryField, Schema, SequenceField
from edge_sdk.protocol.messages import Query, Statistic

MOST_VALUES: Final = 65_536  # of all statistics together
# The largest L2 norm of what one record adds, before it is weighed: 1, x and x squared; one of n; 1, loss, right or
# not, and one score.
REACH: Final = {"moments": math.sqrt(3.0), "histogram": 1.0, "words": 1.0, "model": 2.0}
COUNT, LOSS, RIGHT, SCORES = 0, 1, 2, 3  # places within "model"

LABEL: Final = ""
HASHED: Final = "devices keep the number of its bucket, not the word, so every share would be 0"
_NUMBERS: Final = ("number", "series")
_WORDS: Final = ("category", "sequence")


class QueryRefused(ValueError):
    """The query cannot be answered; the message says what would do."""


class Part(NamedTuple):
    """One statistic's columns, and the factor that its raw values are multiplied by."""

    statistic: Statistic
    start: int
    width: int
    weight: float

    @property
    def columns(self) -> slice:
        """Its place in the vector."""
        return slice(self.start, self.start + self.width)


def width(statistic: Statistic) -> int:
    """How many values it has: moments 3, histogram one a bin, words one each and one for others, model 3 + 2 bins."""
    if statistic.kind == "moments":
        return 3
    if statistic.kind == "histogram":
        return statistic.bins
    return len(statistic.words) + 1 if statistic.kind == "words" else SCORES + 2 * statistic.bins


def length(query: Query) -> int:
    """Values of the whole vector, which the offer's `length` must equal."""
    return sum(width(statistic) for statistic in query.statistics)


def parts(query: Query, bound: float) -> list[Part]:
    """Every statistic in order, weighed so that no record's vector is longer than `bound`, whatever it holds.

    Each of k statistics may be `bound / sqrt(k)` long.
    """
    share, start, found = bound / math.sqrt(len(query.statistics)), 0, []
    for statistic in query.statistics:
        found.append(Part(statistic, start, width(statistic), share / REACH[statistic.kind]))
        start += width(statistic)
    return found


def check(query: Query) -> None:
    """Raise QueryRefused for a query that no device could answer, whatever its records."""
    for statistic in query.statistics:
        _check_numbers(statistic)
        if statistic.kind == "words" and (not statistic.words or len(set(statistic.words)) != len(statistic.words)):
            raise QueryRefused(f"the words of {_said(statistic)} are none, or one comes twice: name each once")
    if length(query) > MOST_VALUES:
        raise QueryRefused(f"the query has {length(query)} values; ask for at most {MOST_VALUES}")


def _check_numbers(statistic: Statistic) -> None:
    low, high = statistic.low, statistic.high
    if not (math.isfinite(low) and math.isfinite(high) and math.isfinite(high - low)):
        raise QueryRefused(f"the bounds of {_said(statistic)} are not finite: give two numbers")
    if statistic.kind in ("moments", "histogram") and not low < high:
        raise QueryRefused(f"{_said(statistic)} lies between {low:g} and {high:g}: give a lower and a higher bound")
    if statistic.kind == "histogram" and statistic.bins < 1:
        raise QueryRefused(f"{_said(statistic)} has no bins: ask for at least one")
    if statistic.kind == "model" and not high > 0:
        raise QueryRefused("the largest loss that counts must be above 0")


def check_fields(query: Query, schema: Schema) -> None:
    """Raise QueryRefused where a statistic is over something that this schema's records do not hold."""
    kinds = {field.name: _kind(field) for field in schema.fields}
    hashed = {
        field.name for field in schema.fields if isinstance(field, CategoryField | SequenceField) and field.buckets
    }
    kinds[LABEL] = "number" if schema.label.kind == "number" else "category"
    for statistic in query.statistics:
        if statistic.kind == "model":
            continue
        if statistic.field not in kinds:
            raise QueryRefused(f"records hold no {statistic.field!r}; they hold {sorted(kinds.keys() - {LABEL})}")
        if kinds[statistic.field] not in (_WORDS if statistic.kind == "words" else _NUMBERS):
            raise QueryRefused(f"{_said(statistic)}: that is a {kinds[statistic.field]}, ask for another statistic")
        if statistic.field in hashed:
            raise QueryRefused(f"{_said(statistic)}: {HASHED}")


def _kind(field: object) -> str:
    return str(getattr(field, "__struct_config__").tag)  # noqa: B009 - the word that names the field's kind in JSON


def _said(statistic: Statistic) -> str:
    return f"{statistic.kind} of {statistic.field or 'the label'}"
