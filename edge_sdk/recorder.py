"""From what the app records to what lies on the disk: fields, waiting room, retention. Loop thread; reads no clock.

Refuses every field that neither the signed schema of the task's model nor, before there is one, the owner's list
names, and every example with a value that is not what the schema says. Examples of a task of which nothing is known
yet wait in memory, 256 at most; a restart loses them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from edge_sdk.config import Config
from edge_sdk.consent import EVERY_TASK
from edge_sdk.examples_store import ExamplesStore, NewExample
from edge_sdk.field_rules import FieldRules, UnfitValue
from edge_sdk.interval_scores import IntervalScores
from edge_sdk.retention import DAY_S, FIRST_SWEEP_S
from edge_sdk.surroundings import Live, Record
from edge_sdk.window_rows import WindowsErased
from edge_sdk.windows import MOST_WINDOWS, Filled, Windows

if TYPE_CHECKING:
    from edge_sdk.artifact.schema import Schema
    from edge_sdk.journal import Journal

MOST_WAITING: Final = 256
MOST_FILLED: Final = 3  # times that one call fills windows, where another process erases some meanwhile
MOST_NOTED: Final = 14  # purposes named in one journal entry
NOTED_CHARACTERS: Final = 64  # of each: 4 bytes a character at most, and an entry has 4 KiB
SWEEP_S: Final = 3600.0

log = logging.getLogger("edge_sdk")
Score = Callable[[str, Mapping[str, Any], Any], float | None]


def open_examples(config: Config, entropy: Callable[[int], bytes]) -> ExamplesStore:
    """The device's example store, as its settings bound it. Raises OSError, sqlite3.Error."""
    home = config.home
    return ExamplesStore(
        home / "examples.db", home / "examples.key", config.max_examples, entropy,
        max_bytes=config.max_store_mib * 2**20, retention_s=int(config.retention_days * DAY_S),
    )  # fmt: skip


class Recorder:
    """Owns the store on the loop thread."""

    def __init__(
        self, config: Config, examples: ExamplesStore, schemas: Callable[[], Mapping[str, Schema]], live: Live,
        journal: Journal | None = None, *, windows: Windows | None = None, score: Score = lambda *_: None,
    ) -> None:  # fmt: skip
        """`schemas()`: the signed schema of every task whose model is in service. `windows` is loaded here.

        `score(task, fields, label)`: how far the label lay outside the interval of that model; None without one.
        """
        self._journal = journal
        self.examples, self._schemas, self._live, self._listed = examples, schemas, live, config.fields
        self._waiting: list[NewExample] = []
        self._known: dict[str, tuple[Schema, FieldRules]] = {}
        self._warned: set[tuple[str, str]] = set()
        self._swept_at: float | None = None
        self._windows = Windows() if windows is None else windows
        self._score, self._intervals = score, IntervalScores(self._windows)
        self._windows_erased = -1
        self._now = self._at = 0  # of the records in hand: the device's time, and when they count as recorded
        self._read_windows()

    # -- recording -----------------------------------------------------------------------------------------------------

    def take(self, records: Iterable[Record], now: int) -> None:
        """Keep what may be kept; what may not is counted in `status`."""
        self._read_windows()
        self._at = self.examples.recorded_at(now)
        self._now = max(now, self._at)  # a clock that was reset is behind the time that the store saw pass
        new = [*self._admitted(), *(NewExample(*record) for record in records)]
        ready, waiting = [], list(self._waiting)
        for _ in range(MOST_FILLED):
            self._waiting = list(waiting)
            ready = self._all_ruled(new)
            try:
                filled = self._write_windows()
                break
            except WindowsErased:  # by another process, in between: what was filled holds what it erased
                self._read_windows()
                ready, filled = [], False
        if not ready:
            return
        kept, withheld = 0, self.examples.withheld
        try:
            kept = self.examples.add_many(ready, now, windows_erased=self._windows_erased if filled else None)
        finally:
            withheld = self.examples.withheld - withheld
            if withheld:
                self._live.drop("consent-withdrawn", withheld)
            if kept + withheld < len(ready):
                self._live.drop("example", len(ready) - kept - withheld)

    def _all_ruled(self, records: Iterable[NewExample]) -> list[NewExample]:
        ready: list[NewExample] = []
        for record in records:
            try:
                ready += self._ruled(record)
            except Exception as error:
                # A field's name may do anything when it is compared: it costs this example alone.
                self._live.drop("example")
                log.warning("an example was not kept: %s; give its fields plain names", type(error).__name__)
        return ready

    def _admitted(self) -> list[NewExample]:
        """Those in the waiting room whose task is known by now."""
        if not self._waiting:
            return []
        known = {task for task in {new.task for new in self._waiting} if self._rules(task) is not None}
        ready = [new for new in self._waiting if new.task in known]
        self._waiting = [new for new in self._waiting if new.task not in known]
        return ready

    def _ruled(self, new: NewExample) -> list[NewExample]:
        rules = self._rules(new.task)
        if rules is None:
            self._wait(new)
            return []
        if refused := rules.refused(new.fields):
            self._tell_dropped(new.task, refused)
        try:
            label = rules.label(new.label)
            filled = self._filled(new)
            fields = rules.apply(filled.fields)
        except UnfitValue as error:
            self._live.drop("example")
            log.warning("an example of %s was not kept: %s", new.task, error)
            return []
        if refused and not fields:
            self._live.drop("example")
            return []
        if not self._extended(new, filled, label):
            return []
        self._judge(new, fields, label)
        return [new._replace(fields=fields, label=label)]

    # -- windows -------------------------------------------------------------------------------------------------------

    def _read_windows(self) -> None:
        """From the store, at the start and where some were erased, by whichever process."""
        rows = self.examples.windows
        if (erased := rows.erased()) != self._windows_erased:
            self._windows.load(rows.read(), self.examples.name)
            self._windows_erased = erased

    def _filled(self, new: NewExample) -> Filled:
        """With the windows that the app left out. Raises UnfitValue."""
        schema = self._schemas().get(new.task)
        subject = None if new.subject is None else str(new.subject)
        if schema is None or self.examples.withdrawn(new.task, subject):
            return Filled(new.fields)
        return self._windows.for_example(new.task, schema, new.fields, subject, self._now)

    def _extended(self, new: NewExample, filled: Filled, label: Any) -> bool:
        """The label enters its windows; False where they were too short to learn from."""
        self._made_room(self._windows.extend(filled, label, self._at))
        if filled.short:
            self._live.drop("example-window-short")
            log.info("an example of %s was not kept: %s", new.task, filled.short)
        return not filled.short

    def _judge(self, new: NewExample, fields: Mapping[str, Any], label: Any) -> None:
        """Remember whether the label lay in the interval of the model in service: the next intervals follow."""
        schema, subject = self._schemas().get(new.task), None if new.subject is None else str(new.subject)
        if schema is None or self.examples.withdrawn(new.task, subject):
            return
        try:
            score = self._score(new.task, fields, label)
            if score is not None:
                gone = self._intervals.add(new.task, schema, new.fields, subject, score, now=self._now, at=self._at)
                self._made_room(gone)
        except Exception as error:  # the example itself is good
            log.info("an interval of %s was not judged: %s", new.task, type(error).__name__)

    def _made_room(self, gone: int) -> None:
        if gone:
            self._live.drop("window", gone)
            log.warning("%d windows made room for newer ones: at most %d are kept", gone, MOST_WINDOWS)

    def _write_windows(self) -> bool:
        """Store what changed; False where nothing did. What the disk does not take is tried again with the next.

        Raises WindowsErased.
        """
        changed = self._windows.take_changed()
        try:
            self.examples.windows.write(changed, self._windows_erased)
        except WindowsErased:
            raise
        except Exception as error:
            self._windows.put_back(window for window, _ in changed)
            self._live.drop("window")
            log.warning("windows were not stored: %s; make room on the disk", error)
        return bool(changed)

    def _wait(self, new: NewExample) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self._live.drop("example-waiting")
            log.warning("examples of %s wait for its model and no more fit: name its fields in edge.toml", new.task)
            return
        self._waiting.append(new)
        self._live.waiting = len(self._waiting)

    def _tell_dropped(self, task: str, names: list[str]) -> None:
        self.examples.fields_dropped(task, names)
        for name in names:
            if (task, name) not in self._warned and len(self._warned) < MOST_WAITING:
                self._warned.add((task, name))
                log.warning("the field %r of %s is not kept: the schema does not name it", name[:64], task)

    def _rules(self, task: str) -> FieldRules | None:
        schema = self._schemas().get(task)
        if schema is None:
            rules = FieldRules.of_list(task, self._listed)
            if rules is not None:
                self.examples.set_schema(task, 0)
            return rules
        known = self._known.get(task)
        if known is not None and known[0] is schema:
            return known[1]
        rules = FieldRules.of_schema(schema)
        if self.examples.schema(task) != rules.digest:
            changed, erased = self.examples.rewrite(task, rules.narrowed)
            self.examples.set_schema(task, rules.digest)
            log.info("by the schema of %s, %d examples were narrowed and %d erased", task, changed, erased)
            if erased:
                self._live.drop("example", erased)
        self._known[task] = (schema, rules)
        return rules

    # -- erasing -------------------------------------------------------------------------------------------------------

    def forget(self, subject: str) -> None:
        """Erase a subject's examples, those that wait included."""
        self._leave(subject, None)
        gone = self.examples.forget(subject)
        self._read_windows()
        log.info("%d examples of a subject were erased", gone)
        self._note("forgotten", examples=gone)

    def give(self, subject: str, version: int, purposes: tuple[str, ...], now: int) -> None:
        """Enter a consent."""
        self.examples.consent_given(subject, version, purposes, now)
        self._note("consent-given", version=version, purposes=_noted(purposes))

    def withdraw(self, subject: str, purposes: tuple[str, ...], now: int) -> None:
        """Enter a withdrawal of consent and erase what it covers."""
        self._leave(subject, None if EVERY_TASK in purposes else purposes)
        gone = self.examples.consent_withdrawn(subject, purposes, now)
        self._read_windows()
        log.info("%d examples were erased after a withdrawal", gone)
        self._note("consent-withdrawn", examples=gone, purposes=_noted(purposes))

    def _note(self, kind: str, **data: Any) -> None:
        """Into the journal: how many, never whose."""
        if self._journal is not None:
            self._journal.note(kind, **data)

    def _leave(self, subject: str, tasks: tuple[str, ...] | None) -> None:
        self._waiting = [
            new for new in self._waiting if not _is_about(new, subject) or (tasks is not None and new.task not in tasks)
        ]
        self._live.waiting = len(self._waiting)

    # -- what time does ----------------------------------------------------------------------------------------------

    def turn(self, tick: float, now: int, vouched: int) -> None:
        """Admit who waits, erase what is too old. `vouched`: see `retention.age_clock`."""
        self._read_windows()
        if self._waiting:
            self.take((), now)
            self._live.waiting = len(self._waiting)
        self.examples.truncate_owed()
        if self._swept_at is None or tick - self._swept_at >= SWEEP_S:
            elapsed = FIRST_SWEEP_S if self._swept_at is None else tick - self._swept_at
            self._swept_at = tick
            gone = self.examples.sweep(now, vouched=vouched, elapsed_s=elapsed)
            if gone:
                log.info("%d examples were older than the retention and are erased", gone)
                self._note("retention", examples=gone)

    def close(self) -> None:
        """What still waits is lost, and counted."""
        if self._waiting:
            self._live.drop("example-waiting", len(self._waiting))
            log.warning("%d examples waited for a model that never came, and are lost", len(self._waiting))
        with contextlib.suppress(Exception):  # the process ends either way
            self.examples.close()

    def export(self, subject: str) -> dict[str, Any]:
        """What is held of a subject: examples, those that wait, consent, and tasks with their times."""
        waiting = [
            {"task": new.task, "recorded_at": None, "fields": dict(new.fields), "label": new.label}
            for new in self._waiting
            if _is_about(new, subject)
        ]
        return {**held_of(self.examples, subject), "waiting": waiting}


def _is_about(new: NewExample, subject: str) -> bool:
    """Nobody's example is about no subject, whatever that one is called."""
    return new.subject is not None and str(new.subject) == subject


def _noted(purposes: tuple[str, ...]) -> list[str]:
    """So many purposes, and so much of each, as one journal entry holds in any writing."""
    more = len(purposes) - MOST_NOTED
    return [purpose[:NOTED_CHARACTERS] for purpose in purposes[:MOST_NOTED]] + (
        [f"and {more} more"] if more > 0 else []
    )


def held_of(examples: ExamplesStore, subject: str) -> dict[str, Any]:
    """What the store holds of a subject, opened."""
    return {
        "subject": subject,
        "examples": examples.held(subject),
        "windows": examples.windows.held(examples.name(subject)),
        "consent": examples.consent_history(subject),
        "tasks": examples.tasks_of(subject),
    }
