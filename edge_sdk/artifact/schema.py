"""What a record of a task looks like: its fields, their encoding, and the label. Travels as JSON in the model.

Refuses a schema that could not be encoded: no fields, a name twice, a scale of zero, too few label names.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import msgspec

from edge_sdk.artifact.errors import SchemaError

# Standardised numbers end here: float32 still resolves a sixteenth, and no record can drown the arithmetic of others.
FARTHEST: Final = 1e6
NARROWEST: Final = 8
WIDEST: Final = 2**16

LabelKind = Literal["binary", "classes", "number"]


class NumberField(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="number"):
    """A number, encoded as (value - mean) / scale, and as the nearer of -1e6 and 1e6 beyond them: one column."""

    name: str
    mean: float = 0.0
    scale: float = 1.0

    @property
    def width(self) -> int:
        """Columns in the feature matrix."""
        return 1


class CategoryField(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="category"):
    """A word, one-hot over the vocabulary; the last column stands for every word outside it."""

    name: str
    vocabulary: tuple[str, ...]

    @property
    def width(self) -> int:
        """Columns in the feature matrix."""
        return len(self.vocabulary) + 1


class TextField(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="text"):
    """Free text, as hashed character n-grams in `width` columns (`edge_sdk.artifact.text`).

    Devices keep the features and drop the text, unless `keep` says that the text itself may stay on their disks.
    """

    name: str
    width: int = 1024
    keep: bool = False


Field = NumberField | CategoryField | TextField


class Label(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is predicted. `names`: two for "binary" (the second is positive), K for "classes", none for "number".

    A "number" is learned as (value - mean) / scale, and as the nearer of -1e6 and 1e6 beyond them.
    """

    name: str
    kind: LabelKind
    names: tuple[str, ...] = ()
    mean: float = 0.0
    scale: float = 1.0

    @property
    def outputs(self) -> int:
        """Columns of the logits: K for classes, else 1."""
        return len(self.names) if self.kind == "classes" else 1


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fields in the order of their columns, and the label."""

    fields: tuple[Field, ...]
    label: Label

    @property
    def width(self) -> int:
        """F: columns of the graph input "features", float32 [B, F]."""
        return sum(field.width for field in self.fields)

    def to_json(self) -> str:
        """Canonical JSON: the same schema always gives the same text."""
        return msgspec.json.encode(self, order="deterministic").decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Schema:
        """Read and check. Raises SchemaError."""
        try:
            schema = msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise SchemaError("schema", f"the record schema is not readable: {error}") from error
        check_schema(schema)
        return schema


def check_schema(schema: Schema) -> None:
    """Raise SchemaError unless every field and the label can be encoded."""
    names = [field.name for field in schema.fields]
    if not names:
        raise SchemaError("schema", "a record schema needs at least one field")
    for name in (*names, schema.label.name):
        if not name or (*names, schema.label.name).count(name) > 1:
            raise SchemaError("schema", f"the field name {name!r} is empty or used twice")
    for field in schema.fields:
        if isinstance(field, CategoryField):
            _check_vocabulary(field)
        elif isinstance(field, TextField):
            _check_width(field)
        else:
            _check_scale(field.name, field.mean, field.scale)
    _check_label(schema.label)


def _check_vocabulary(field: CategoryField) -> None:
    if not field.vocabulary or len(set(field.vocabulary)) != len(field.vocabulary):
        raise SchemaError("schema", f"the vocabulary of {field.name!r} is empty or names a word twice")


def _check_width(field: TextField) -> None:
    if not NARROWEST <= field.width <= WIDEST:
        raise SchemaError("schema", f"{field.name!r} has {field.width} columns; choose {NARROWEST} to {WIDEST}")


def _check_scale(name: str, mean: float, scale: float) -> None:
    if not (math.isfinite(mean) and math.isfinite(scale) and scale > 0):
        raise SchemaError("schema", f"{name!r} needs a finite mean and a scale above 0, not {mean} and {scale}")


def _check_label(label: Label) -> None:
    count = len(set(label.names))
    wanted = {"binary": count == 2, "classes": count >= 2, "number": count == 0}[label.kind]
    if not wanted or count != len(label.names):
        raise SchemaError("schema", f"a {label.kind} label cannot have the names {list(label.names)}")
    _check_scale(label.name, label.mean, label.scale)
