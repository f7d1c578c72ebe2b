"""Which fields of a record may touch the disk, and in what form. Refuses, by leaving out, every other field.

A field is kept where the signed schema of the task's installed model names it, or, before any model is there, the
owner's own list (`fields` in the configuration). Free text is kept as features unless the schema says `keep`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from edge_sdk.artifact.schema import Schema


@dataclass(frozen=True, slots=True)
class FieldRules:
    """What holds for one task. `text`: names of free-text fields that are featured, with the width of their features.

    `digest` names the schema behind the rules, 0 for a list of the owner's.
    """

    names: frozenset[str]
    text: Mapping[str, int] = field(default_factory=dict)
    digest: int = 0

    @classmethod
    def of_schema(cls, schema: Schema) -> Self:
        """The rules of a signed schema."""
        from edge_sdk.artifact.schema import TextField

        text = {f.name: f.width for f in schema.fields if isinstance(f, TextField) and not f.keep}
        digest = int.from_bytes(hashlib.sha256(schema.to_json().encode()).digest()[:7], "big")
        return cls(frozenset(f.name for f in schema.fields), text, digest)

    @classmethod
    def of_list(cls, task: str, entries: tuple[str, ...]) -> Self | None:
        """The rules that `task.field` entries give for a task; None where none is about it."""
        names = frozenset(name for of, _, name in (entry.partition(".") for entry in entries) if of == task and name)
        return cls(names) if names else None

    def apply(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that may be kept, as they may be kept. A text that is featured already stays as it is."""
        return {name: self._kept(name, value) for name, value in fields.items() if name in self.names}

    def refused(self, fields: Mapping[str, Any]) -> list[str]:
        """Names of the fields that are left out."""
        return sorted(str(name) for name in fields if name not in self.names)

    def _kept(self, name: str, value: Any) -> Any:
        if name not in self.text or not isinstance(value, str):
            return value
        from edge_sdk.artifact.text import hashed

        return [list(pair) for pair in hashed(value, self.text[name])]
