"""Which fields of a record may touch the disk, and in what form. Refuses what is not what the signed schema says.

A field is kept where the signed schema of the task's installed model names it, or, before any model is there, the
owner's own list (`fields` in the configuration). The schema also says what a value is: a number is kept as one, a word
outside the vocabulary as one fixed mark, a hashed word as the number of its bucket, free text as features unless the
schema says `keep`, of a sequence what counts, of a date no more than the calendar needs; whose series a window is, is
not kept. Anything else could never train, so that example is refused whole.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from edge_sdk.artifact.schema import CategoryField, Field, Label, Schema, SequenceField, SeriesField, TextField

OTHER_WORD: Final = "*other*"  # kept for every word outside the vocabulary; encoded as such a word
EXACT: Final = 2**53  # integers up to here are kept as they are, larger ones as the float they are learnt as
MOST_ENTRIES: Final = 2**16  # of a sequence
LARGEST: Final = 3.4028234e38  # what a number divided by the schema's scale may be: float32
FORM: Final = b"3\0"  # of these rules: where it changes, what is stored is narrowed again


class UnfitValue(ValueError):
    """A value that is not what the schema says. The message names field and remedy, never the value."""


@dataclass(frozen=True, slots=True)
class FieldRules:
    """What holds for one task. `kinds`: the schema's fields by name, and `answer` its label; none for a list.

    `digest` names the schema behind the rules, 0 for a list of the owner's. `times`: entries that are kept as a date,
    with the hour where True.
    """

    names: frozenset[str]
    kinds: Mapping[str, Field] = field(default_factory=dict)
    answer: Label | None = None
    digest: int = 0
    times: Mapping[str, bool] = field(default_factory=dict)

    @classmethod
    def of_schema(cls, schema: Schema) -> Self:
        """The rules of a signed schema."""
        kinds = {each.name: each for each in schema.fields}
        digest = int.from_bytes(hashlib.sha256(FORM + schema.to_json().encode()).digest()[:7], "big")
        return cls(frozenset((*kinds, *schema.references)), kinds, schema.label, digest, schema.times)

    @classmethod
    def of_list(cls, task: str, entries: tuple[str, ...]) -> Self | None:
        """The rules that `task.field` entries give for a task; None where none is about it."""
        names = frozenset(name for of, _, name in (entry.partition(".") for entry in entries) if of == task and name)
        return cls(names) if names else None

    def apply(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that may be kept, as they may be kept. What was kept already stays as it is. Raises UnfitValue."""
        kept = {name for name in fields if name in self.names and self._stays(name)}
        return {name: self._kept(name, value) for name, value in fields.items() if name in kept}

    def label(self, value: Any) -> Any:
        """The label as it may be kept. Raises UnfitValue."""
        if self.answer is None:
            return _plain(value)
        if self.answer.kind == "number":
            return _number(self.answer.name, value, self.answer.mean, self.answer.scale, log=self.answer.log)
        if isinstance(value, str):
            for name in self.answer.names:
                if name == value:
                    return name
        raise UnfitValue(f"its label {self.answer.name!r} is none of the schema's; give one of {self.answer.names}")

    def narrowed(self, fields: dict[str, Any], label: Any) -> tuple[dict[str, Any], Any] | None:
        """An example that was kept by other rules, by these; None where it could never train."""
        try:
            return self.apply(fields), self.label(label)
        except UnfitValue:
            return None

    def refused(self, fields: Mapping[str, Any]) -> list[str]:
        """Names of the fields that are left out."""
        return sorted(str(name) for name in fields if name not in self.names)

    def _stays(self, name: str) -> bool:
        """A list keeps what it names; a schema its fields and dates, and not whose series a window is."""
        return not self.kinds or name in self.kinds or name in self.times

    def _kept(self, name: str, value: Any) -> Any:
        kind = self.kinds.get(name)
        if kind is not None:
            return _by_kind(kind, value)
        return _date(name, value, hour=self.times[name]) if name in self.times else _plain(value)


def _by_kind(kind: Field, value: Any) -> Any:
    from edge_sdk.artifact.encoding import may_be_missing
    from edge_sdk.artifact.schema import CategoryField, NumberField, SeriesField, TextField
    from edge_sdk.artifact.values import absent

    if may_be_missing(kind) and absent(value):
        return None
    if isinstance(kind, NumberField):
        return _number(kind.name, value, kind.mean, kind.scale, log=kind.log)
    if isinstance(kind, CategoryField):
        return _word(kind, value)
    if isinstance(kind, TextField):
        return _text(kind, value)
    return _window(kind, value) if isinstance(kind, SeriesField) else _sequence(kind, value)


def _plain(value: Any) -> Any:
    """A number of numpy's, or of any other kind, as the one of Python's that can be stored; all else as it is."""
    if type(value) in (bool, int, float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _number(name: str, value: Any, mean: float, scale: float, *, log: bool = False) -> int | float:
    """A plain number that the model can learn from."""
    try:
        plain = _plain(value)
        reach = math.log1p(abs(float(plain))) if log and type(plain) in (int, float) else plain
        if type(plain) in (int, float) and abs((float(reach) - mean) / scale) <= LARGEST:
            return plain if isinstance(plain, int) and abs(plain) <= EXACT else float(plain)
    except OverflowError:  # an integer that is larger than every float
        pass
    raise UnfitValue(f"its field {name!r} is no finite number in reach of the schema's scale; give one")


def _word(field: CategoryField | SequenceField, value: Any) -> str | int:
    """A word of the vocabulary, the mark of every other, or the number of a hashed word's bucket."""
    if isinstance(value, str):
        if not field.buckets:
            return next((word for word in field.vocabulary if word == value), OTHER_WORD)
        from edge_sdk.artifact.text import bucket

        return bucket(value, field.buckets)
    if type(value) is int and 0 <= value < field.buckets:
        return value
    raise UnfitValue(f"its field {field.name!r} is no word; give one of the schema's vocabulary")


def _sequence(field: SequenceField, value: Any) -> list[str | int]:
    """The last words, those that count, oldest first."""
    entries = _entries(value)
    if entries is None or len(entries) > MOST_ENTRIES:
        raise UnfitValue(f"its field {field.name!r} is no list of at most {MOST_ENTRIES} words; give one, newest last")
    return [_word(field, word) for word in entries][-field.last :]


def _window(field: SeriesField, value: Any) -> list[int | float | None]:
    from edge_sdk.artifact.values import absent

    entries = _entries(value)
    if entries is None or len(entries) > field.window:
        raise UnfitValue(f"its field {field.name!r} is no list of at most {field.window} numbers; give one")
    return [None if absent(each) else _number(field.name, each, 0.0, 1.0) for each in entries]


def _entries(value: Any) -> list[Any] | None:
    """Those of a list, a tuple or numpy's array of one dimension."""
    if not isinstance(value, list | tuple):
        value = value.tolist() if getattr(value, "ndim", 0) == 1 else None
    return None if value is None else list(value)


def _date(name: str, value: Any, *, hour: bool) -> str:
    """An ISO date, with the hour where the calendar needs it, and nothing finer."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None:
        raise UnfitValue(f"its field {name!r} is no ISO date; give one such as 2024-05-31T09:30")
    whole = moment.replace(minute=0, second=0, microsecond=0, tzinfo=None)
    return whole.isoformat(timespec="minutes") if hour else whole.date().isoformat()


def _text(field: TextField, value: Any) -> Any:
    """A text, or its features as [bucket, weight] pairs; features stay features."""
    name, width = field.name, field.width
    if isinstance(value, str):
        from edge_sdk.artifact.text import hashed

        return str(value) if field.keep else [list(pair) for pair in hashed(value, width, field.chars, field.words)]
    if not isinstance(value, list | tuple) or len(value) > width or not all(_is_feature(pair, width) for pair in value):
        raise UnfitValue(f"its field {name!r} is neither a text nor a text's kept features; give the text")
    return [list(pair) for pair in value]


def _is_feature(pair: Any, width: int) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    bucket, weight = pair
    return type(bucket) is int and 0 <= bucket < width and type(weight) is float and abs(weight) <= 1.0
