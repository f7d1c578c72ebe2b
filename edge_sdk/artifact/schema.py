"""What a record of a task looks like: its fields, their encoding, and the label. Travels as JSON in the model.

Refuses a schema that could not be encoded: no fields, a name twice, too few label names, too many columns, a label or
a series that refers to a field that is not there.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final, Literal

import msgspec

from edge_sdk.artifact.errors import SchemaError
from edge_sdk.artifact.fields import (
    FARTHEST,
    NARROWEST,
    WIDEST,
    CategoryField,
    Field,
    NumberField,
    SequenceField,
    SeriesField,
    TextField,
    check_ascending,
    check_field,
    check_scale,
    check_vocabulary,
)

__all__ = [
    "FARTHEST", "NARROWEST", "WIDEST", "CategoryField", "Field", "Label", "LabelKind", "NumberField", "Schema",
    "SequenceField", "SeriesField", "TextField", "check_schema",
]  # fmt: skip

WIDEST_RECORD: Final = 2**17
MOST_QUANTILES: Final = 99
LabelKind = Literal["binary", "classes", "number"]
# The keys that every schema has written out since the first release; others are left out at their defaults, so that
# what was signed before they existed still has the same bytes.
_ALWAYS: Final = frozenset(("kind", "name", "mean", "scale", "vocabulary", "width", "keep", "names", "fields", "label"))


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is predicted. `names`: two for "binary" (the second is positive), K for "classes", none for "number".

    A number y is learned as (T(y) - mean) / scale, and as the nearer of -1e6 and 1e6 beyond them, with T(y) =
    sign(y) log(1 + |y|) where `log`, else y. `relative_to` names a SeriesField: then ((T(y) - base) / spread - mean) /
    scale, by that series' own level. `quantiles`, which must hold 0.5: one output each; the median is the prediction,
    the first and the last are its interval. `unseen_of` names a SequenceField whose words are not ranked.
    """

    name: str
    kind: LabelKind
    names: tuple[str, ...] = ()
    mean: float = 0.0
    scale: float = 1.0
    log: bool = False
    relative_to: str = ""
    quantiles: tuple[float, ...] = ()
    unseen_of: str = ""

    @property
    def outputs(self) -> int:
        """Columns of the logits: K for classes, one for each quantile, else 1."""
        return len(self.names) if self.kind == "classes" else len(self.quantiles) or 1

    @property
    def median(self) -> int:
        """The column of a number's prediction."""
        return self.quantiles.index(0.5) if self.quantiles else 0


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fields in the order of their columns, and the label."""

    fields: tuple[Field, ...]
    label: Label

    @property
    def width(self) -> int:
        """F: columns of the graph input "features", float32 [B, F]."""
        return sum(field.width for field in self.fields)

    @property
    def references(self) -> tuple[str, ...]:
        """Entries of a record that a series needs beside the fields: its key and its time."""
        own = {field.name for field in self.fields}
        named = [name for each in self.fields if isinstance(each, SeriesField) for name in (each.key, each.time)]
        return tuple(dict.fromkeys(name for name in named if name and name not in own))

    @property
    def times(self) -> dict[str, bool]:
        """Entries of a record that hold a date; True where a calendar needs the hour too."""
        dated = [each for each in self.fields if isinstance(each, SeriesField) and each.calendar]
        return {
            each.time: any("hour" in other.calendar for other in dated if other.time == each.time) for each in dated
        }

    @property
    def reach_of_label(self) -> int:
        """Later records that may hold this one's label: in a series of numbers, or in a ranking's history."""
        numbers = self.label.kind == "number"
        windows = [each.window for each in self.fields if isinstance(each, SeriesField) and numbers]
        histories = [each for each in self.fields if isinstance(each, SequenceField)]
        return max([0, *windows, *(each.last for each in histories if each.name == self.label.unseen_of)])

    def series(self, name: str) -> SeriesField:
        """The series of that name. Raises SchemaError."""
        for field in self.fields:
            if isinstance(field, SeriesField) and field.name == name:
                return field
        raise SchemaError("schema", f"the label is relative to {name!r}, which is no series of the record")

    def to_json(self) -> str:
        """Canonical JSON: the same schema always gives the same text."""
        plain = {"fields": [_plain(field) for field in self.fields], "label": _plain(self.label)}
        return msgspec.json.encode(plain).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Schema:
        """Read and check. Raises SchemaError."""
        try:
            schema = msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
            raise SchemaError("schema", f"the record schema is not readable: {error}") from error
        check_schema(schema)
        return schema


def _plain(part: msgspec.Struct) -> dict[str, Any]:
    defaults = {field.name: field.default for field in msgspec.structs.fields(part)}
    values: dict[str, Any] = msgspec.to_builtins(part)
    return {key: value for key, value in values.items() if key in _ALWAYS or value != defaults.get(key)}


def column_spans(schema: Schema) -> dict[str, slice]:
    """Field name to its columns of the feature matrix."""
    spans, start = {}, 0
    for field in schema.fields:
        spans[field.name] = slice(start, start + field.width)
        start += field.width
    return spans


def check_schema(schema: Schema) -> None:
    """Raise SchemaError unless every field and the label can be encoded."""
    names = [field.name for field in schema.fields]
    if not names:
        raise SchemaError("schema", "a record schema needs at least one field")
    for name, uses in Counter([*names, schema.label.name]).items():
        if not name or uses > 1:
            raise SchemaError("schema", f"the field name {name!r} is empty or used twice")
    # A key may also be a category of the record, nothing else that the record holds.
    taken = {each.name for each in schema.fields if not isinstance(each, CategoryField)} | {schema.label.name}
    times = {each.time for each in schema.fields if isinstance(each, SeriesField)} - {""}
    for field in schema.fields:
        check_field(field)
        if field.name in times or (isinstance(field, SeriesField) and field.key in taken | times):
            raise SchemaError(
                "schema", f"the key and the time of a series must be entries of their own: {field.name!r}"
            )
    if schema.label.name in times:
        raise SchemaError("schema", f"the time of a series cannot be the label {schema.label.name!r}")
    if schema.width > WIDEST_RECORD:
        raise SchemaError("schema", f"the record takes {schema.width} columns; at most {WIDEST_RECORD} are possible")
    _check_label(schema)


def _check_label(schema: Schema) -> None:
    label = schema.label
    count = len(set(label.names))
    wanted = {"binary": count == 2, "classes": count >= 2, "number": count == 0}[label.kind]
    if not wanted or count != len(label.names):
        raise SchemaError("schema", f"a {label.kind} label cannot have the names {list(label.names)[:9]}")
    check_vocabulary(label.name, label.names)
    check_scale(label.name, label.mean, label.scale)
    if label.kind != "number" and (label.log or label.relative_to or label.quantiles):
        raise SchemaError("schema", f"log, relative_to and quantiles are for a number, and {label.name!r} is none")
    _check_quantiles(label)
    if label.relative_to and schema.series(label.relative_to).log != label.log:
        raise SchemaError("schema", f"{label.name!r} and {label.relative_to!r} must both be `log`, or neither")
    if label.unseen_of:
        _check_unseen(schema)


def _check_quantiles(label: Label) -> None:
    check_ascending(label.name, label.quantiles, MOST_QUANTILES)
    if label.quantiles and (0.5 not in label.quantiles or not 0 < label.quantiles[0] <= label.quantiles[-1] < 1):
        raise SchemaError("schema", f"the quantiles of {label.name!r} must lie between 0 and 1 and hold 0.5")


def _check_unseen(schema: Schema) -> None:
    label = schema.label
    found = [each for each in schema.fields if isinstance(each, SequenceField) and each.name == label.unseen_of]
    if label.kind != "classes" or not found or set(found[0].vocabulary) != set(label.names):
        what = f"{label.unseen_of!r} must be a sequence whose vocabulary is the names of the classes {label.name!r}"
        raise SchemaError("schema", what)
