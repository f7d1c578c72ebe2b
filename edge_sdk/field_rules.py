"""Which fields of a record may touch the disk, and in what form. Refuses what is not what the signed schema says.

A field is kept where the signed schema of the task's installed model names it, or, before any model is there, the
owner's own list (`fields` in the configuration). The schema also says what a value is: a number is kept as one, a word
outside the vocabulary as one fixed mark, free text as features unless the schema says `keep`. Anything else could
never train, so that example is refused whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from edge_sdk.artifact.schema import Field, Label, Schema

OTHER_WORD: Final = "*other*"  # kept for every word outside the vocabulary; encoded as such a word
EXACT: Final = 2**53  # integers up to here are kept as they are, larger ones as the float they are learnt as
LARGEST: Final = 3.4028234e38  # what a number divided by the schema's scale may be: float32
FORM: Final = b"2\0"  # of these rules: where it changes, what is stored is narrowed again


class UnfitValue(ValueError):
    """A value that is not what the schema says. The message names field and remedy, never the value."""


@dataclass(frozen=True, slots=True)
class FieldRules:
    """What holds for one task. `kinds`: the schema's fields by name, and `answer` its label; none for a list.

    `digest` names the schema behind the rules, 0 for a list of the owner's.
    """

    names: frozenset[str]
    kinds: Mapping[str, Field] = field(default_factory=dict)
    answer: Label | None = None
    digest: int = 0

    @classmethod
    def of_schema(cls, schema: Schema) -> Self:
        """The rules of a signed schema."""
        kinds = {each.name: each for each in schema.fields}
        digest = int.from_bytes(hashlib.sha256(FORM + schema.to_json().encode()).digest()[:7], "big")
        return cls(frozenset(kinds), kinds, schema.label, digest)

    @classmethod
    def of_list(cls, task: str, entries: tuple[str, ...]) -> Self | None:
        """The rules that `task.field` entries give for a task; None where none is about it."""
        names = frozenset(name for of, _, name in (entry.partition(".") for entry in entries) if of == task and name)
        return cls(names) if names else None

    def apply(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that may be kept, as they may be kept. What was kept already stays as it is. Raises UnfitValue."""
        return {name: self._kept(name, value) for name, value in fields.items() if name in self.names}

    def label(self, value: Any) -> Any:
        """The label as it may be kept. Raises UnfitValue."""
        if self.answer is None:
            return _plain(value)
        if self.answer.kind == "number":
            return _number(self.answer.name, value, self.answer.mean, self.answer.scale)
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

    def _kept(self, name: str, value: Any) -> Any:
        if name not in self.kinds:
            return _plain(value)
        from edge_sdk.artifact.schema import CategoryField, NumberField

        kind = self.kinds[name]
        if isinstance(kind, NumberField):
            return _number(name, value, kind.mean, kind.scale)
        if isinstance(kind, CategoryField):
            return _word(name, value, kind.vocabulary)
        return _text(name, value, kind.width, kind.keep)


def _plain(value: Any) -> Any:
    """A number of numpy's, or of any other kind, as the one of Python's that can be stored; all else as it is."""
    if type(value) in (bool, int, float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _number(name: str, value: Any, mean: float, scale: float) -> int | float:
    """A plain number that the model can learn from."""
    try:
        plain = _plain(value)
        if type(plain) in (int, float) and abs((float(plain) - mean) / scale) <= LARGEST:
            return plain if isinstance(plain, int) and abs(plain) <= EXACT else float(plain)
    except OverflowError:  # an integer that is larger than every float
        pass
    raise UnfitValue(f"its field {name!r} is no finite number in reach of the schema's scale; give one")


def _word(name: str, value: Any, vocabulary: tuple[str, ...]) -> str:
    if not isinstance(value, str):
        raise UnfitValue(f"its field {name!r} is no word; give one of the schema's vocabulary")
    return next((word for word in vocabulary if word == value), OTHER_WORD)


def _text(name: str, value: Any, width: int, keep: bool) -> Any:
    """A text, or its features as [bucket, weight] pairs; features stay features."""
    if isinstance(value, str):
        from edge_sdk.artifact.text import hashed

        return str(value) if keep else [list(pair) for pair in hashed(value, width)]
    if not isinstance(value, list | tuple) or len(value) > width or not all(_is_feature(pair, width) for pair in value):
        raise UnfitValue(f"its field {name!r} is neither a text nor a text's kept features; give the text")
    return [list(pair) for pair in value]


def _is_feature(pair: Any, width: int) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    bucket, weight = pair
    return type(bucket) is int and 0 <= bucket < width and type(weight) is float and abs(weight) <= 1.0
