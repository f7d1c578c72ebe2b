"""Which labels a recipe is for, so that a schema made for another application is refused by name. Holds no data."""

from __future__ import annotations

from typing import Final

from edge_sdk.artifact.errors import SchemaError
from edge_sdk.artifact.schema import LabelKind, Schema, check_schema

KINDS: Final[dict[str, tuple[LabelKind, ...]]] = {
    "churn": ("binary",),
    "demand": ("number",),
    "recommendation": ("classes", "number"),
    "satisfaction": ("binary",),
    "satisfaction_text": ("binary", "classes"),
    "service": ("classes",),
}
_SAID: Final[dict[LabelKind, str]] = {
    "binary": "one of two names (binary)",
    "classes": "one of several names (classes)",
    "number": "a number",
}


def check_fits(schema: Schema, application: str) -> None:
    """Raise SchemaError for a schema that does not hold, or whose label is of a kind that the recipe is not for."""
    check_schema(schema)
    label, kinds = schema.label, KINDS[application]
    if label.kind not in kinds:
        others = ", ".join(name for name, known in KINDS.items() if label.kind in known)
        wanted = " or ".join(_SAID[kind] for kind in kinds)
        what = f"the recipe {application!r} predicts {wanted}, and the label {label.name!r} is {_SAID[label.kind]}"
        raise SchemaError("schema", f"{what}; recipes for such a label: {others}")
