"""The kinds of fields that a record may have, and how many columns each takes. What a column holds: `encoding`.

Refuses a field that could not be encoded (SchemaError, which names it): a scale of zero, an empty vocabulary, edges out
of order, a window or width out of bounds.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final, Literal

import msgspec

from edge_sdk.artifact.errors import SchemaError

# Standardised numbers end here: float32 still resolves a sixteenth, and no record can drown the arithmetic of others.
FARTHEST: Final = 1e6
NARROWEST: Final = 8
WIDEST: Final = 2**16  # columns of one text field, words of one vocabulary
LONGEST_WORD: Final = 200  # characters of a word that a schema lists
LONGEST_WINDOW: Final = 512
MOST_EDGES: Final = 1024
LONGEST_GRAM: Final = 8

Calendar = Literal["weekday", "month", "hour", "yearday"]
CALENDAR_WIDTH: Final[dict[Calendar, int]] = {"weekday": 7, "month": 12, "hour": 24, "yearday": 4}


class NumberField(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="number"):
    """A number x as (T(x) - mean) / scale, and as the nearer of -1e6 and 1e6 beyond them.

    T(x) = sign(x) log(1 + |x|) where `log`, else x. `missing`: None and NaN are allowed, count as 0 and have a column
    of their own. `edges`: E ascending values of x cut it into E + 1 intervals, closed below, with one column each.
    """

    name: str
    mean: float = 0.0
    scale: float = 1.0
    log: bool = False
    missing: bool = False
    edges: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """Columns in the feature matrix: the value, [missing], [the intervals]."""
        return 1 + self.missing + (len(self.edges) + 1 if self.edges else 0)


class CategoryField(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="category"):
    """A word, one-hot over the vocabulary and a column for every other word; or hashed into `buckets` columns.

    `missing`: None is allowed and has the last column. Devices keep the number of the bucket, not the word.
    """

    name: str
    vocabulary: tuple[str, ...] = ()
    buckets: int = 0
    missing: bool = False

    @property
    def width(self) -> int:
        """Columns in the feature matrix."""
        return (self.buckets or len(self.vocabulary) + 1) + self.missing


class TextField(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="text"):
    """Free text, as hashed n-grams in `width` columns (`edge_sdk.artifact.text`).

    `chars` and `words`: the sizes of the n-grams of characters and of words. `missing`: None is allowed and is all
    zeros. Devices keep the features and drop the text, unless `keep` says that the text may stay on their disks.
    """

    name: str
    width: int = 1024
    keep: bool = False
    chars: tuple[int, ...] = (1, 2, 3)
    words: tuple[int, ...] = ()
    missing: bool = False


class SeriesField(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="series"):
    """At most `window` values, oldest first, relative to their own level (`edge_sdk.artifact.series`).

    `key` and `time` name other entries of the record, both texts: whose series it is, and the ISO date (and time) that
    the prediction is for, from which the `calendar` columns come.
    """

    name: str
    window: int
    key: str = ""
    time: str = ""
    calendar: tuple[Calendar, ...] = ()
    log: bool = True

    @property
    def width(self) -> int:
        """Columns in the feature matrix: the window, its level, its missing share, the calendar."""
        return self.window + 2 + sum(CALENDAR_WIDTH[part] for part in self.calendar)


class SequenceField(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="sequence"):
    """Words in order, newest last: the `last` of them, weighted decay**age, one column a word, of length 1 together.

    A word outside the vocabulary counts in the last column; with `buckets`, words are hashed.
    """

    name: str
    vocabulary: tuple[str, ...] = ()
    buckets: int = 0
    last: int = 20
    decay: float = 1.0

    @property
    def width(self) -> int:
        """Columns in the feature matrix."""
        return self.buckets or len(self.vocabulary) + 1


Field = NumberField | CategoryField | TextField | SeriesField | SequenceField


def check_field(field: Field) -> None:
    """Raise SchemaError unless the field can be encoded. What it says of other fields is for `check_schema`."""
    if isinstance(field, NumberField):
        check_scale(field.name, field.mean, field.scale)
        check_ascending(field.name, field.edges, MOST_EDGES)
    elif isinstance(field, TextField):
        _check_text(field)
    elif isinstance(field, SeriesField):
        _check_series(field)
    else:
        _check_words(field)
        if isinstance(field, SequenceField):
            _check_sequence(field)


def check_scale(name: str, mean: float, scale: float) -> None:
    """Raise SchemaError unless a number can be standardised by these."""
    if not (math.isfinite(mean) and math.isfinite(scale) and scale > 0):
        raise SchemaError("schema", f"{name!r} needs a finite mean and a scale above 0, not {mean} and {scale}")


def check_ascending(name: str, values: tuple[float, ...], most: int) -> None:
    """Raise SchemaError unless these are finite, each above the one before, and not too many."""
    rising = all(low < high for low, high in pairwise(values))
    if not rising or not all(map(math.isfinite, values)) or len(values) > most:
        raise SchemaError("schema", f"{name!r} needs at most {most} finite, ascending numbers, not {list(values)[:9]}")


def check_vocabulary(name: str, words: tuple[str, ...]) -> None:
    """Raise SchemaError for words that occur twice, too many of them, or one that is too long or not Unicode."""
    if len(set(words)) != len(words) or len(words) > WIDEST:
        raise SchemaError("schema", f"the vocabulary of {name!r} names a word twice or has more than {WIDEST}")
    for word in words:
        if len(word) > LONGEST_WORD or not (word.isascii() or _is_unicode(word)):
            raise SchemaError("schema", f"{name!r} has a word that is above {LONGEST_WORD} characters or no Unicode")


def _is_unicode(word: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in word)


def _check_words(field: CategoryField | SequenceField) -> None:
    check_vocabulary(field.name, field.vocabulary)
    if bool(field.vocabulary) == bool(field.buckets):
        raise SchemaError("schema", f"{field.name!r} needs either a vocabulary or buckets to hash into")
    if not 0 <= field.buckets <= WIDEST:
        raise SchemaError("schema", f"{field.name!r} has {field.buckets} buckets; choose 1 to {WIDEST}")


def _check_sequence(field: SequenceField) -> None:
    if not 1 <= field.last <= WIDEST or not 0 < field.decay <= 1:
        raise SchemaError("schema", f"{field.name!r} needs last from 1 to {WIDEST} and a decay above 0, at most 1")


def _check_text(field: TextField) -> None:
    if not NARROWEST <= field.width <= WIDEST:
        raise SchemaError("schema", f"{field.name!r} has {field.width} columns; choose {NARROWEST} to {WIDEST}")
    sizes = (*field.chars, *field.words)
    twice = len(set(field.chars)) + len(set(field.words)) != len(sizes)
    if not sizes or twice or not all(1 <= size <= LONGEST_GRAM for size in sizes):
        raise SchemaError("schema", f"{field.name!r} needs n-grams of different sizes from 1 to {LONGEST_GRAM}")


def _check_series(field: SeriesField) -> None:
    if not 1 <= field.window <= LONGEST_WINDOW:
        raise SchemaError("schema", f"{field.name!r} has a window of {field.window}; choose 1 to {LONGEST_WINDOW}")
    if len(set(field.calendar)) != len(field.calendar) or (field.calendar and not field.time):
        raise SchemaError("schema", f"the calendar of {field.name!r} names a part twice, or no `time` to take it from")
