"""What the demo needs to know of an application: its data, its model, its task, and what the report shows of it.

The story is the same for all (`aggregator.demo.run`); `aggregator.demo.plays` has one module an application.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from edge_sdk.artifact.schema import Schema

if TYPE_CHECKING:
    from aggregator.demo.desk import Desk

KINDS: Final = ("kiosk", "call-centre")

Record = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """What one device holds: labelled records. `share` says in a few words which."""

    device: str
    kind: str
    share: tuple[str, ...]
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """Every part, and the held-out records that the aggregator measures with: they are on no device."""

    parts: tuple[Part, ...]
    held_out: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A section of the report. `body` is HTML, already escaped: an SVG or a table; `words` is plain text."""

    title: str
    body: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """One application on the stage.

    `question`: what the model answers, as a title. `source`: the data's origin, for the report. `records`, `shares`:
    what the rows and their groups are called ("customers", "states"). `subject`: the field that says whose a record is;
    no feature. `rounds`: how many it plays where none are asked for. `task(devices, rounds)`: fields of a TaskSpec.
    `words`: what the metric means. `protected`: what one unit of privacy is in these data.
    `reaches_alone`: the demo promises to beat a device alone even where that one pays nothing for privacy.
    `pictures(model, rows)`: what the released model does with held-out records. `desk`: set where the play ends with a
    device that answers customers.
    """

    name: str
    question: str
    source: str
    records: str
    shares: str
    words: str
    protected: str
    schema: Callable[[], Schema]
    model: Callable[[], bytes]
    load: Callable[[int], Rows]
    task: Callable[[int, int], dict[str, Any]]
    rounds: int
    subject: str = ""
    reaches_alone: bool = True
    pictures: Callable[[bytes, Rows], Sequence[Picture]] = lambda _model, _rows: ()
    desk: Desk | None = None

    def fields(self, record: Record) -> Record:
        """The record as an app would give it to `predict`: without its label and its subject."""
        hidden = (self.schema().label.name, self.subject)
        return {name: value for name, value in record.items() if name not in hidden}


def fleet_of(groups: Mapping[str, Sequence[Record]], devices: int) -> tuple[Part, ...]:
    """Deal groups, in the order of their names, to devices: kiosks and call-centre terminals in turn."""
    return tuple(
        _part(number, names, groups) for number, names in enumerate(deal(sorted(groups), min(devices, len(groups))))
    )


def _part(number: int, names: tuple[str, ...], groups: Mapping[str, Sequence[Record]]) -> Part:
    kind = KINDS[number % len(KINDS)]
    records = tuple(record for name in names for record in groups[name])
    return Part(f"{kind}-{number + 1:02}", kind, names, records)


def deal(things: Sequence[T], hands: int) -> list[tuple[T, ...]]:
    """Cut a sequence into so many neighbouring runs of nearly the same length."""
    edges = [round(len(things) * part / hands) for part in range(hands + 1)]
    return [tuple(things[low:high]) for low, high in pairwise(edges)]


def write_lines(path: Path, records: Sequence[Record]) -> None:
    """One JSON object a line, the label among the fields under its own name."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
