"""Labelled examples, encrypted on this device's disk and never sent. Reads no clock; refuses to grow past its caps.

Each subject's rows are AES-256-GCM under a key of its own, which is wrapped under a key file of mode 0600; a subject
is kept only as a keyed hash. `forget` erases the rows and the key, so that what a disk or a backup keeps of the rows
stays closed. What was erased also says which tasks' uploads have to go (`owed`), durably and in the same transaction.
Examples that the key file does not open any more are set aside, and the device goes on with an empty file.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from edge_sdk import consent as consents
from edge_sdk.example_keys import NOBODY, ExamplesUnreadable, owner_of
from edge_sdk.retention import DAY_S, age_clock, starts_anew
from edge_sdk.sealed_rows import Ring, SealedRows
from edge_sdk.window_rows import WindowRows, WindowsErased

__all__ = ["Example", "ExamplesStore", "ExamplesUnreadable", "NewExample"]

UNSENT_S: Final = 7 * DAY_S  # an upload waits no longer than the longest round
MOST_NAMES: Final = 100  # dropped fields counted by name
SEAL_BYTES: Final = 28  # nonce and tag of a sealed row

log = logging.getLogger("edge_sdk")
Kept = tuple[dict[str, Any], Any]  # fields by name, and the label


@dataclass(frozen=True, slots=True)
class Example:
    """Fields by name and their label, as the app recorded them. `subject`: a keyed hash, b"" for nobody."""

    fields: dict[str, Any] = field(repr=False)
    label: Any = field(repr=False)
    subject: bytes = field(default=NOBODY, repr=False, compare=False)


class NewExample(NamedTuple):
    """What an app records. `consent`: the version of the notice that the subject agreed to, 0 where none is carried."""

    task: str
    fields: Mapping[str, Any]
    label: Any
    subject: str | None = None
    consent: int = 0


class _Sealed(NamedTuple):
    new: NewExample
    subject: bytes
    plain: bytes


class ExamplesStore:
    """A ring of at most `cap` examples a task. One thread at a time; several processes may each have one open."""

    def __init__(
        self, path: Path, key_file: Path, cap: int, entropy: Callable[[int], bytes], *,
        max_bytes: int = 2**62, retention_s: int = 2**40,
    ) -> None:  # fmt: skip
        """`entropy(n)` gives n fresh random bytes: keys and nonces.

        `damage` says what had to be set aside, or is None. Raises OSError, sqlite3.Error where the disk refuses.
        """
        self._cap, self._max_bytes, self._retention_s = cap, max_bytes, retention_s
        self._file = SealedRows(path, key_file, entropy)
        self._db, self._keys, self.damage = self._file.db, self._file.keys, self._file.damage
        self.windows = WindowRows(self._file)
        self.dropped = 0
        self.withheld = 0  # recorded for a subject that has withdrawn

    # -- recording ---------------------------------------------------------------------------------------------------

    def add(
        self, task: str, fields: Mapping[str, Any], label: Any, subject: str | None = None, *, consent: int = 0,
        now: int = 0,
    ) -> bool:  # fmt: skip
        """Keep one example; False, counted, where it cannot be kept (a full disk, a value that is not plain data)."""
        return self.add_many([NewExample(task, fields, label, subject, consent)], now) == 1

    def add_many(self, examples: Iterable[tuple[Any, ...]], now: int = 0, *, windows_erased: int | None = None) -> int:
        """Keep several `NewExample`s in one transaction, recorded at `now`; returns how many were kept.

        One of a subject that has withdrawn from its task is not kept, and counted in `withheld`; one that is larger
        than the whole store may be, or that had to make room for a later one of the same call, in `dropped`. So are all
        where windows were erased more than `windows_erased` times: some may be filled with what is to be forgotten.
        """
        rows = [row for row in map(self._row, examples) if row is not None]
        try:
            with self._file.transaction():
                self.windows.check(windows_erased)
                at = self.recorded_at(now)
                (before,) = self._db.execute("SELECT COALESCE(MAX(id), 0) FROM examples").fetchone()
                inserted = sum(self._keep(row, at) for row in rows)
                for task in {row.new.task for row in rows}:
                    self._make_room(task)
                (kept,) = self._db.execute("SELECT COUNT(*) FROM examples WHERE id > ?", (before,)).fetchone()
        except WindowsErased as error:
            self.dropped += len(rows)
            log.warning("%d examples were not kept: %s", len(rows), error)
            return 0
        except sqlite3.Error as error:
            self.dropped += len(rows)
            log.warning("%d examples were not kept: %s; make room on the disk", len(rows), error)
            return 0
        self.dropped += inserted - kept
        return int(kept)

    def recorded_at(self, now: int) -> int:
        """When something counts as recorded that is recorded now."""
        return self._file.fact("age-clock") or now

    def _row(self, example: tuple[Any, ...]) -> _Sealed | None:
        try:
            new = NewExample(*example)
            plain = msgspec.msgpack.encode((dict(new.fields), new.label))
            new.task.encode()
            if len(plain) + SEAL_BYTES > self._max_bytes:
                raise ValueError(f"it has {len(plain)} bytes, the whole store may have {self._max_bytes}")
            return _Sealed(new, self._keys.name(new.subject), plain)
        except Exception as error:
            # Whatever one value does when it is read, encoded or nested without end, it costs this example alone.
            self.dropped += 1
            why = error if isinstance(error, (TypeError, ValueError)) else type(error).__name__
            log.warning("an example was not kept: %s; record plain numbers, text and dates", why)
            return None

    def _keep(self, row: _Sealed, at: int) -> bool:
        task = row.new.task
        agreed = consents.holds(self._db, row.subject, task) if row.subject else None
        if agreed == consents.WITHDRAWN:
            # Only `give` undoes a withdrawal: an app that carries an old version along must not.
            self.withheld += 1
            return False
        if row.subject and row.new.consent > (agreed or 0):
            consents.write(self._db, row.subject, (task,), row.new.consent, at)
        self._file.insert(task, row.subject, row.plain, at)
        return True

    def _make_room(self, task: str) -> None:
        self._db.execute(
            "DELETE FROM examples WHERE task = ? AND id <="
            " (SELECT id FROM examples WHERE task = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (task, task, self._cap),
        )
        (held,) = self._db.execute("SELECT COALESCE(SUM(LENGTH(sealed)), 0) FROM examples").fetchone()
        while held > self._max_bytes:
            oldest, size = self._db.execute("SELECT id, LENGTH(sealed) FROM examples ORDER BY id LIMIT 1").fetchone()
            self._db.execute("DELETE FROM examples WHERE id = ?", (oldest,))
            held -= size

    def fields_dropped(self, task: str, names: Collection[str]) -> None:
        """Count fields that were not kept because no signed schema names them; at most 100 names a task."""
        with self._file.transaction():
            (known,) = self._db.execute("SELECT COUNT(*) FROM dropped WHERE task = ?", (task,)).fetchone()
            for name in names:
                shown = str(name)[:64] if known < MOST_NAMES else "…"
                self._db.execute(
                    "INSERT INTO dropped VALUES (?, ?, 1) ON CONFLICT (task, field) DO UPDATE SET n = n + 1",
                    (task, shown),
                )

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, task: str, consent: int = 0) -> list[Example]:
        """All examples of a task that may be learnt from, oldest first; a row that does not open is skipped and logged.

        `consent` > 0: only of subjects that agreed to the notice of that number or a later one, and still do.
        """
        rows = self._db.execute(
            f"SELECT subject, sealed, {consents.AGREED} FROM examples WHERE task = ? ORDER BY id", (task,)
        ).fetchall()
        ring: Ring = {}
        opened = [
            self._opened(task, subject, sealed, ring)
            for subject, sealed, agreed in rows
            if (agreed or 0) >= consent and agreed != consents.WITHDRAWN
        ]
        return [example for example in opened if example is not None]

    def _opened(self, task: str, subject: bytes, sealed: bytes, ring: Ring) -> Example | None:
        plain = self._file.open(task, subject, sealed, ring)
        if plain is None:
            log.warning("an example of %s does not open under this device's key; it is skipped", task)
            return None
        fields, label = msgspec.msgpack.decode(plain)
        return Example(fields, label, subject)

    def count(self, task: str) -> int:
        """Examples of a task."""
        return int(self._db.execute("SELECT COUNT(*) FROM examples WHERE task = ?", (task,)).fetchone()[0])

    def newest(self, task: str) -> int:
        """The number of the newest example of a task, which only grows; 0 without one."""
        return int(self._db.execute("SELECT COALESCE(MAX(id), 0) FROM examples WHERE task = ?", (task,)).fetchone()[0])

    def newer(self, task: str, number: int) -> int:
        """Examples of a task after that one."""
        query = "SELECT COUNT(*) FROM examples WHERE task = ? AND id > ?"
        return int(self._db.execute(query, (task, number)).fetchone()[0])

    def counts(self) -> dict[str, int]:
        """Examples by task."""
        return dict(self._db.execute("SELECT task, COUNT(*) FROM examples GROUP BY task ORDER BY task").fetchall())

    def held(self, subject: str) -> list[dict[str, Any]]:
        """All that is held of a subject, opened: task, recorded_at (seconds since 1970), fields and label."""
        name = self._keys.name(subject)
        rows = self._db.execute(
            "SELECT task, recorded_at, sealed FROM examples WHERE subject = ? ORDER BY id", (name,)
        ).fetchall()
        ring: Ring = {}
        opened = [(task, at, self._opened(task, name, sealed, ring)) for task, at, sealed in rows]
        return [
            {"task": task, "recorded_at": at, "fields": example.fields, "label": example.label}
            for task, at, example in opened
            if example is not None
        ]

    def tasks_of(self, subject: str) -> list[dict[str, Any]]:
        """Tasks that examples of a subject were held for since the last `forget`, with the first and the last time."""
        rows = self._db.execute(
            "SELECT task, first_at, last_at FROM seen WHERE subject = ? ORDER BY task", (self._keys.name(subject),)
        )
        return [{"task": task, "first_at": first, "last_at": last} for task, first, last in rows]

    def name(self, text: str | None) -> bytes:
        """The keyed hash that stands for a text on this device; b"" for None. From any thread."""
        return self._keys.name(text)

    # -- consent -----------------------------------------------------------------------------------------------------

    def consent_given(self, subject: str, version: int, purposes: tuple[str, ...], now: int) -> None:
        """Enter a consent (`edge_sdk.consent`)."""
        with self._file.transaction():
            consents.write(self._db, self._keys.name(subject), purposes, version, now)

    def consent_withdrawn(self, subject: str, purposes: tuple[str, ...], now: int) -> int:
        """Enter a withdrawal and erase the subject's examples of these purposes; returns how many there were."""
        name = self._keys.name(subject)
        with self._file.transaction():
            consents.write(self._db, name, purposes, consents.WITHDRAWN, now)
            gone = self._erase(name, None if consents.EVERY_TASK in purposes else purposes)
            self._file.owe_truncation()
        self._file.truncate()
        return gone

    def withdrawn(self, task: str, subject: str | None) -> bool:
        """Has this subject withdrawn from the task?"""
        return subject is not None and consents.holds(self._db, self._keys.name(subject), task) == consents.WITHDRAWN

    def consent_history(self, subject: str) -> list[dict[str, Any]]:
        """Every consent and withdrawal of a subject, oldest first."""
        return consents.history(self._db, self._keys.name(subject))

    # -- erasing -----------------------------------------------------------------------------------------------------

    def forget(self, subject: str) -> int:
        """Erase every example of a subject and the key that opened them; returns how many there were.

        The consent history stays, under a keyed hash: a withdrawal has to hold for what is recorded later.
        """
        with self._file.transaction():
            gone = self._erase(self._keys.name(subject), None)
            self._file.owe_truncation()
        self._file.truncate()
        return gone

    def _erase(self, subject: bytes, tasks: tuple[str, ...] | None) -> int:
        """In the caller's transaction. What was seen of the subject says whose uploads are owed a withdrawal."""
        seen = [task for (task,) in self._db.execute("SELECT task FROM seen WHERE subject = ?", (subject,))]
        gone = 0
        for task in seen if tasks is None else set(seen) & set(tasks):
            where, what = "subject = ? AND task = ?", (subject, task)
            gone += self._db.execute(f"DELETE FROM examples WHERE {where}", what).rowcount
            self._db.execute(f"DELETE FROM seen WHERE {where}", what)
            self._db.execute(
                "INSERT INTO erasures VALUES (?, 1, 1) ON CONFLICT (task) DO UPDATE SET n = n + 1, owed = 1", (task,)
            )
        self.windows.erase(subject, tasks)
        self._db.execute(
            "DELETE FROM keys WHERE owner = ? AND NOT EXISTS (SELECT 1 FROM examples WHERE subject = ?)"
            " AND NOT EXISTS (SELECT 1 FROM windows WHERE subject = ?)",
            (owner_of("", subject), subject, subject),
        )
        return gone

    def erasures(self, task: str) -> int:
        """How often a subject's examples of a task were erased: where it grew, what was read before is void."""
        row = self._db.execute("SELECT n FROM erasures WHERE task = ?", (task,)).fetchone()
        return int(row[0]) if row else 0

    def owed(self) -> dict[str, int]:
        """Tasks whose pending uploads may contain what was erased -> their erasures so far."""
        return dict(self._db.execute("SELECT task, n FROM erasures WHERE owed = 1").fetchall())

    def settled(self, task: str, erasures: int) -> None:
        """The uploads of a task were dropped after so many erasures."""
        self._db.execute("UPDATE erasures SET owed = 0 WHERE task = ? AND n = ?", (task, erasures))

    def truncate_owed(self) -> None:
        """Empty the database's log of erased pages where a reader, or the end of a process, was in the way before."""
        self._file.truncate_owed()

    def sweep(self, now: int, *, vouched: int, elapsed_s: float) -> int:
        """Erase what is older than the retention; returns how many there were. Arguments as for `age_clock`."""
        with self._file.transaction():
            before = self._file.fact("age-clock")
            at = age_clock(before, now, vouched, elapsed_s)
            self._file.set_fact("age-clock", at)
            if starts_anew(before, at):
                self._db.execute("UPDATE examples SET recorded_at = ?", (at,))
                self._db.execute("UPDATE seen SET first_at = ?, last_at = ?", (at, at))
                self.windows.recorded_again(at, anew=True)
            elif at < before:
                self._db.execute("UPDATE examples SET recorded_at = ? WHERE recorded_at > ?", (at, at))
                self._db.execute("UPDATE seen SET first_at = MIN(first_at, ?), last_at = MIN(last_at, ?)", (at, at))
                self.windows.recorded_again(at, anew=False)
            oldest = at - self._retention_s
            gone = self._db.execute("DELETE FROM examples WHERE recorded_at < ?", (oldest,)).rowcount
            self._db.execute(
                "DELETE FROM seen WHERE last_at < ? AND NOT EXISTS (SELECT 1 FROM examples WHERE"
                " examples.subject = seen.subject AND examples.task = seen.task)",
                (oldest - UNSENT_S,),
            )
            swept = self.windows.sweep(oldest)
            self._drop_idle_keys()
            if gone or swept:
                self._file.owe_truncation()
        self._file.truncate_owed()
        return gone

    def _drop_idle_keys(self) -> None:
        """A key whose last example went with the ring or its age."""
        self._db.execute(
            "DELETE FROM keys WHERE SUBSTR(owner, 1, 1) = X'73'"
            " AND NOT EXISTS (SELECT 1 FROM examples WHERE subject = SUBSTR(keys.owner, 2))"
            " AND NOT EXISTS (SELECT 1 FROM windows WHERE subject = SUBSTR(keys.owner, 2))"
        )

    # -- fields --------------------------------------------------------------------------------------------------------

    def schema(self, task: str) -> int:
        """The digest that `set_schema` was last given for a task, 0 for none."""
        return self._file.fact(f"schema:{task}")

    def set_schema(self, task: str, digest: int) -> None:
        """Remember by which schema the examples of a task were kept."""
        if self.schema(task) != digest:
            self._file.set_fact(f"schema:{task}", digest)

    def rewrite(self, task: str, change: Callable[[dict[str, Any], Any], Kept | None]) -> tuple[int, int]:
        """Store examples of a task anew where `change` gives other fields or another label, erase where it gives None.

        Returns how many were stored anew and how many erased.
        """
        changed = erased = 0
        with self._file.transaction():
            rows = self._db.execute("SELECT id, subject, sealed FROM examples WHERE task = ?", (task,)).fetchall()
            ring: Ring = {}
            for number, subject, sealed in rows:
                example = self._opened(task, subject, sealed, ring)
                if example is None:
                    continue
                kept = change(example.fields, example.label)
                if kept is None:
                    self._db.execute("DELETE FROM examples WHERE id = ?", (number,))
                    erased += 1
                elif kept != (example.fields, example.label):
                    again = self._file.seal(task, subject, msgspec.msgpack.encode(kept))
                    self._db.execute("UPDATE examples SET sealed = ? WHERE id = ?", (again, number))
                    changed += 1
            if changed or erased:
                self._file.owe_truncation()
        self._file.truncate_owed()
        return changed, erased

    def close(self) -> None:
        self._db.close()
