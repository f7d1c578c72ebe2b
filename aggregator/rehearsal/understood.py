"""A table as a learning problem: what was asked, what each column was taken for, and why. Holds no rules.

Every guess is an `Assumption` with the option that overrides it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from edge_sdk.artifact.schema import LabelKind

Role = Literal["number", "category", "text", "time", "dropped"]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was asked on the command line. `by`: whose device holds a row; `subject`: whose it is."""

    label: str
    by: str = ""
    subject: str = ""
    drop: Sequence[str] = ()
    number: Sequence[str] = ()
    category: Sequence[str] = ()
    text: Sequence[str] = ()
    time: Sequence[str] = ()
    positive: str = ""
    kind: LabelKind | None = None

    def roles(self) -> dict[str, Role]:
        """Column to the role that was asked for it."""
        asked: dict[str, Role] = dict.fromkeys(self.drop, "dropped")
        for role in ("number", "category", "text", "time"):
            asked |= dict.fromkeys(getattr(self, role), role)
        return asked


@dataclass(frozen=True, slots=True)
class Assumption:
    """One line of the table that is printed: what was taken for what, why, and what overrides it."""

    column: str
    taken_as: str
    why: str
    override: str


@dataclass(frozen=True, slots=True)
class Feature:
    """A column that is learnt from. `values`: floats or texts, None where missing."""

    name: str
    role: Literal["number", "category", "text"]
    values: list[Any]
    whole: bool = False  # numbers: are all of them integers?


@dataclass(frozen=True, slots=True)
class Answers:
    """The label. `names` of the classes, in order (binary: the second is positive); values are texts or floats."""

    name: str
    kind: LabelKind
    names: tuple[str, ...]
    values: list[Any]


@dataclass(slots=True)
class Understood:
    """A table as a learning problem: rows without a label are gone from all of it."""

    features: list[Feature]
    answers: Answers
    owners: list[str]
    subjects: list[str] | None
    assumptions: list[Assumption] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """N."""
        return len(self.answers.values)


def shell(name: str) -> str:
    """A column's name as it is typed after an option."""
    return name if re.fullmatch(r"[\w.-]+", name) else "'" + name.replace("'", "'\\''") + "'"
