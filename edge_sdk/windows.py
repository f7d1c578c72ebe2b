"""The last labels by key, from which the SDK fills a series that the app leaves out. In memory; reads no clock.

A window is filled for a number's series, and for the history that a ranking leaves out (`Label.unseen_of`). An entry
belongs to the subject it was recorded for: an example of one subject is never made from another's labels, so that
erasing a subject, and a guarantee by customer, stay whole. Safe from any thread. Refuses a key or a date that cannot
be read, a label's date that is still to come (UnfitValue), a window of which less than half is known (TooShort), and
more than `cap` windows or `most` labels: the window that was longest without a label goes, counted.
"""

from __future__ import annotations

import heapq
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from edge_sdk.retention import PLAUSIBLE

if TYPE_CHECKING:
    from edge_sdk.artifact.schema import Schema

MOST_WINDOWS: Final = 10_000
MOST_LABELS: Final = 300_000  # in all windows together: some 50 MB of memory
AHEAD_S: Final = 86_400  # of the device's clock, that a label's date may be: it names no time zone
# Seconds since 1970 or a running number, the label, and when it was recorded, by the store's clock of ages.
Entry = tuple[int, Any, int]
Name = Callable[[str | None], bytes]  # a text's keyed hash; b"" for None


class TooShort(ValueError):
    """Fewer labels are known than a model can learn from."""


class Window(NamedTuple):
    """Whose labels: `key` and `subject` are keyed hashes, b"" for none."""

    task: str
    field: str
    key: bytes
    subject: bytes


@dataclass(frozen=True, slots=True)
class Own:
    """A field that the SDK fills: the last `last` labels; with `time`, those before the record's date."""

    name: str
    last: int
    key: str = ""
    time: str = ""
    personal: bool = False  # of the subject alone, also in a prediction

    @property
    def fewest(self) -> int:
        """Known labels that a window needs: half of it. A history may be empty."""
        return 0 if self.personal else (self.last + 1) // 2


class End(NamedTuple):
    """Where a record's label goes: its place in time, how many labels stay, and the latest date that one may have."""

    window: Window
    when: int | None
    last: int
    latest: int | None


class Filled(NamedTuple):
    """A record with its windows, and where its label goes."""

    fields: Mapping[str, Any]
    ends: tuple[End, ...] = ()
    short: str = ""


def own_fields(schema: Schema) -> tuple[Own, ...]:
    """Fields of a schema that the SDK can fill by the labels it sees."""
    from edge_sdk.artifact.schema import SequenceField, SeriesField

    label = schema.label
    series = [
        Own(each.name, each.window, each.key, each.time)
        for each in schema.fields
        if isinstance(each, SeriesField) and label.kind == "number"
    ]
    seen = [
        Own(each.name, each.last, personal=True)
        for each in schema.fields
        if isinstance(each, SequenceField) and each.name == label.unseen_of
    ]
    return (*series, *seen)


class Windows:
    """Every window of this device."""

    def __init__(self, cap: int = MOST_WINDOWS, most: int = MOST_LABELS) -> None:
        self._cap, self._most, self._labels = cap, most, 0
        self._name: Name = lambda text: b"" if text is None else text.encode()
        self._lock = threading.Lock()
        self._held: dict[Window, list[Entry]] = {}  # the one longest without a label first
        self._of_key: dict[tuple[str, str, bytes], dict[bytes, None]] = {}
        self._changed: dict[Window, None] = {}

    def __repr__(self) -> str:
        return f"Windows({len(self._held)})"

    # -- from the loop thread ------------------------------------------------------------------------------------------

    def load(self, rows: Iterable[tuple[Window, list[Entry]]], name: Name) -> None:
        """Put in place what the store holds, the one longest without a label first. `name` hashes keys."""
        with self._lock:
            self._name = name
            self._held, self._of_key, self._changed, self._labels = {}, {}, {}, 0
            for window, entries in rows:
                self._put(window, entries)

    def extend(self, filled: Filled, label: Any, at: int = 0) -> int:
        """Add a record's label, recorded at `at`, to its windows; returns how many windows had to go."""
        with self._lock:
            for end in filled.ends:
                entries = self._held.pop(end.window, [])
                self._labels -= len(entries)
                _enter(entries, end, label, at)
                self._put(end.window, entries[-end.last :])
                self._changed[end.window] = None
            gone = 0
            while len(self._held) > self._cap or (self._labels > self._most and len(self._held) > 1):
                self._drop(next(iter(self._held)))
                gone += 1
            return gone

    def take_changed(self) -> list[tuple[Window, list[Entry]]]:
        """Windows that changed since the last call; one without entries is gone."""
        with self._lock:
            changed, self._changed = self._changed, {}
            return [(window, list(self._held.get(window, ()))) for window in changed]

    def put_back(self, windows: Iterable[Window]) -> None:
        """These could not be stored: they are among the changed still."""
        with self._lock:
            self._changed = {**dict.fromkeys(windows), **self._changed}

    def _put(self, window: Window, entries: list[Entry]) -> None:
        self._held[window] = entries
        self._labels += len(entries)
        self._of_key.setdefault(window[:3], {})[window.subject] = None

    def _drop(self, window: Window) -> None:
        self._labels -= len(self._held.pop(window))
        subjects = self._of_key[window[:3]]
        del subjects[window.subject]
        if not subjects:
            del self._of_key[window[:3]]
        self._changed[window] = None

    # -- from any thread -----------------------------------------------------------------------------------------------

    def for_example(
        self, task: str, schema: Schema, fields: Mapping[str, Any], subject: str | None, now: int = 0
    ) -> Filled:
        """A record to learn from, filled with labels of its own subject; `short` says where too few are known.

        `now`: seconds since 1970, by which a date is still to come; no date is where it is no time of this software.
        Raises UnfitValue.
        """
        filled = self._filled(task, schema, fields, self._name(subject), now + AHEAD_S if now >= PLAUSIBLE else None)
        for own, end in zip(_left_out(schema, fields), filled.ends, strict=True):
            if end.when is not None and end.latest is not None and end.when > end.latest:
                what = "is more than a day ahead of this device's clock"
                raise _unfit(f"its field {own.time!r} {what}; record what came true, or set the clock")
        return filled

    def for_prediction(
        self, task: str, schema: Schema, fields: Mapping[str, Any], subject: str | None
    ) -> Mapping[str, Any]:
        """A record to predict from; without a subject a series is filled with all labels of its key.

        Raises UnfitValue, and TooShort where less than half of a window is known.
        """
        filled = self._filled(task, schema, fields, None if subject is None else self._name(subject))
        if filled.short:
            raise TooShort(filled.short)
        return filled.fields

    def _filled(
        self, task: str, schema: Schema, fields: Mapping[str, Any], subject: bytes | None, latest: int | None = None
    ) -> Filled:
        whole, ends, short = fields, [], ""
        for own in _left_out(schema, fields):
            key, when = self._key(own, fields), time_of(own, fields)
            whose = subject or b"" if own.personal else subject
            found = self._before((task, own.name, key), whose, when)[-own.last :]
            if len(found) < own.fewest:
                short = f"{len(found)} labels of its key are known and {own.name!r} needs {own.fewest}; record more"
            whole = {**whole, own.name: found}
            ends.append(End(Window(task, own.name, key, subject or b""), when, own.last, latest))
        return Filled(whole, tuple(ends), short)

    def _key(self, own: Own, fields: Mapping[str, Any]) -> bytes:
        if not own.key:
            return b""
        value = fields.get(own.key)
        if not isinstance(value, str) or not value:
            what = "is missing" if value in (None, "") else "is no text"
            raise _unfit(f"its field {own.key!r} {what}; give the name of whose series it is")
        return self.named(value)

    def named(self, key: str) -> bytes:
        """What stands for a series' key."""
        return self._name(f"window\0{key}")

    def subject(self, subject: str | None) -> bytes:
        """What stands for a subject; b"" for none."""
        return self._name(subject)

    def newest(self, place: tuple[str, str, bytes], last: int, *, dated: bool) -> list[Any]:
        """The last labels of a task, a field and a key, of every subject, oldest first.

        By their own times where `dated`; without, by when they were recorded: running numbers are each subject's own.
        """
        with self._lock:
            subjects = self._of_key.get(place, ())
            entries = [entry for each in subjects for entry in self._held.get(Window(*place, each), ())]
        newest = heapq.nlargest(last, entries, key=itemgetter(0, 2) if dated else itemgetter(2, 0))
        return [label for _, label, _ in reversed(newest)]

    def _before(self, place: tuple[str, str, bytes], subject: bytes | None, when: int | None) -> list[Any]:
        """Labels in their order; of every subject for None."""
        with self._lock:
            subjects = list(self._of_key.get(place, ())) if subject is None else [subject]
            parts = [self._held.get(Window(*place, each), []) for each in subjects]
            entries = parts[0] if len(parts) == 1 else sorted((e for part in parts for e in part), key=_place)
            end = len(entries) if when is None else bisect_left(entries, when, key=_place)
            return [label for _, label, _ in entries[:end]]


def _left_out(schema: Schema, fields: Mapping[str, Any]) -> list[Own]:
    """What the SDK fills of a record."""
    return [own for own in own_fields(schema) if own.name not in fields]


def _unfit(message: str) -> ValueError:
    """An UnfitValue. Imported late: its module brings what starting an app must not wait for."""
    from edge_sdk.field_rules import UnfitValue

    return UnfitValue(message)


def _place(entry: Entry) -> int:
    return entry[0]


def _enter(entries: list[Entry], end: End, label: Any, at: int) -> None:
    """In the order of time; the same time again takes the place of what it said before."""
    when = end.when
    if when is None:
        when = entries[-1][0] + 1 if entries else 0
    elif end.latest is not None:
        # A clock that once ran ahead: such dates would stay the newest for years, and nothing else would enter.
        del entries[bisect_right(entries, end.latest, key=_place) :]
    place = bisect_left(entries, when, key=_place)
    after = place + 1 if place < len(entries) and entries[place][0] == when else place
    entries[place:after] = [(when, label, at)]


def time_of(own: Own, fields: Mapping[str, Any]) -> int | None:
    """The record's time in seconds; None for a series without one, which is in the order of the calls.

    Raises UnfitValue.
    """
    if not own.time:
        return None
    value = fields.get(own.time)
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None:
        raise _unfit(f"its field {own.time!r} is no ISO date; give one such as 2024-05-31T09:30")
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
