"""Labelled examples, encrypted on this device's disk and never sent. Reads no clock; refuses to grow past its caps.

Each subject's rows are AES-256-GCM under a key of its own, which is wrapped under a key file of mode 0600; a subject
is kept only as a keyed hash. `forget` erases the rows and the key, so that what a disk or a backup keeps of the rows
stays closed. What was erased also says which tasks' uploads have to go (`owed`), durably and in the same transaction.
Examples that the key file does not open any more are set aside, and the device goes on with an empty file.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from edge_sdk import consent as consents
from edge_sdk.example_keys import (
    NOBODY,
    ExampleKeys,
    ExamplesUnreadable,
    key_is_sound,
    owner_of,
    set_aside,
)
from edge_sdk.retention import DAY_S, age_clock, starts_anew

__all__ = ["Example", "ExamplesStore", "ExamplesUnreadable", "NewExample"]

LOOKED_AT: Final = 8  # newest rows: where none of them opens, the key is not theirs
UNSENT_S: Final = 7 * DAY_S  # an upload waits no longer than the longest round
MOST_NAMES: Final = 100  # dropped fields counted by name

_TABLES: Final = f"""
    CREATE TABLE IF NOT EXISTS examples (
        id INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL, subject BLOB NOT NULL, recorded_at INTEGER NOT NULL,
        sealed BLOB NOT NULL);
    CREATE INDEX IF NOT EXISTS by_task ON examples (task, id);
    CREATE INDEX IF NOT EXISTS by_subject ON examples (subject, task);
    CREATE TABLE IF NOT EXISTS keys (owner BLOB PRIMARY KEY, wrapped BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS seen (
        subject BLOB NOT NULL, task TEXT NOT NULL, first_at INTEGER NOT NULL, last_at INTEGER NOT NULL,
        PRIMARY KEY (subject, task));
    CREATE TABLE IF NOT EXISTS erasures (task TEXT PRIMARY KEY, n INTEGER NOT NULL, owed INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS dropped (
        task TEXT NOT NULL, field TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (task, field));
    CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
    {consents.TABLE}
"""
log = logging.getLogger("edge_sdk")


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
        self._entropy, self._cap, self._max_bytes, self._retention_s = entropy, cap, max_bytes, retention_s
        self._untruncated = False
        self.dropped = 0
        self.withheld = 0  # recorded for a subject that has withdrawn
        self.damage: ExamplesUnreadable | None = None
        if not key_is_sound(key_file):
            self.damage = set_aside(path, key_file, "is damaged")
        self._open(path, key_file)
        if self.damage is None and not self._key_fits():
            self._db.close()
            self.damage = set_aside(path, key_file, "is not the one that sealed them")
            self._open(path, key_file)
        self._bring_up_to_date()

    # -- opening -----------------------------------------------------------------------------------------------------

    def _open(self, path: Path, key_file: Path) -> None:
        self._keys = ExampleKeys(key_file, self._entropy)
        self._db = sqlite3.connect(path, isolation_level=None, timeout=10.0, check_same_thread=False)
        path.chmod(0o600)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA secure_delete = ON")

    def _columns(self) -> set[str]:
        return {row[1] for row in self._db.execute("PRAGMA table_info(examples)")}

    def _key_fits(self) -> bool:
        columns = self._columns()
        if not columns:
            return True
        if "recorded_at" not in columns:
            old = self._db.execute(
                "SELECT sealed, task FROM examples ORDER BY id DESC LIMIT ?", (LOOKED_AT,)
            ).fetchall()
            return not old or any(self._keys.open_first_form(*row) is not None for row in old)
        held = self._db.execute("SELECT owner, wrapped FROM keys ORDER BY rowid DESC LIMIT ?", (LOOKED_AT,)).fetchall()
        return not held or any(self._keys.unwrap(*row) is not None for row in held)

    def _bring_up_to_date(self) -> None:
        """Make the tables; seal rows of the first form anew, each under its subject's key."""
        old: list[tuple[str, bytes, bytes]] = []
        with self._transaction():
            if self._columns() and "recorded_at" not in self._columns():
                old = self._db.execute("SELECT task, subject, sealed FROM examples ORDER BY id").fetchall()
                self._db.execute("DROP TABLE examples")
            for statement in filter(str.strip, _TABLES.split(";")):
                self._db.execute(statement)
            for task, subject, sealed in old:
                plain = self._keys.open_first_form(sealed, task)
                if plain is not None:
                    self._insert(task, subject, plain, 0)
            if not self._db.execute("SELECT 1 FROM keys LIMIT 1").fetchone():
                self._db.execute("INSERT INTO keys VALUES (?, ?)", (b"check", self._keys.fresh(b"check")[1]))
        if old:
            self._truncate()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.OperationalError):  # a full disk has undone the transaction already
                self._db.execute("ROLLBACK")
            raise

    # -- recording ---------------------------------------------------------------------------------------------------

    def add(
        self, task: str, fields: Mapping[str, Any], label: Any, subject: str | None = None, *, consent: int = 0,
        now: int = 0,
    ) -> bool:  # fmt: skip
        """Keep one example; False, counted, where it cannot be kept (a full disk, a value that is not plain data)."""
        return self.add_many([NewExample(task, fields, label, subject, consent)], now) == 1

    def add_many(self, examples: Iterable[tuple[Any, ...]], now: int = 0) -> int:
        """Keep several `NewExample`s in one transaction, recorded at `now`; returns how many were kept.

        One of a subject that has withdrawn from its task is not kept, and counted in `withheld`.
        """
        rows = [row for row in map(self._row, examples) if row is not None]
        kept = 0
        try:
            with self._transaction():
                at = self._fact("age-clock") or now
                for row in rows:
                    kept += self._keep(row, at)
                for task in {row.new.task for row in rows}:
                    self._make_room(task)
        except sqlite3.Error as error:
            self.dropped += len(rows)
            log.warning("%d examples were not kept: %s; make room on the disk", len(rows), error)
            return 0
        return kept

    def _row(self, example: tuple[Any, ...]) -> _Sealed | None:
        try:
            new = NewExample(*example)
            plain = msgspec.msgpack.encode((dict(new.fields), new.label))
            new.task.encode()
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
        self._insert(task, row.subject, row.plain, at)
        return True

    def _insert(self, task: str, subject: bytes, plain: bytes, at: int) -> None:
        owner = owner_of(task, subject)
        sealed = self._keys.seal(self._key(owner), plain, task, subject)
        self._db.execute(
            "INSERT INTO examples (task, subject, recorded_at, sealed) VALUES (?, ?, ?, ?)", (task, subject, at, sealed)
        )
        if subject:
            self._db.execute(
                "INSERT INTO seen VALUES (?, ?, ?, ?) ON CONFLICT (subject, task) DO UPDATE"
                " SET last_at = MAX(last_at, excluded.last_at)",
                (subject, task, at, at),
            )

    def _key(self, owner: bytes) -> bytes:
        """The owner's key, made where there is none or where the one there is damaged."""
        key = self._held_key(owner)
        if key is None:
            key, wrapped = self._keys.fresh(owner)
            self._db.execute("INSERT OR REPLACE INTO keys VALUES (?, ?)", (owner, wrapped))
        return key

    def _held_key(self, owner: bytes) -> bytes | None:
        row = self._db.execute("SELECT wrapped FROM keys WHERE owner = ?", (owner,)).fetchone()
        return self._keys.unwrap(owner, row[0]) if row else None

    def _make_room(self, task: str) -> None:
        self._db.execute(
            "DELETE FROM examples WHERE task = ? AND id <="
            " (SELECT id FROM examples WHERE task = ? ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (task, task, self._cap),
        )
        (held,) = self._db.execute("SELECT COALESCE(SUM(LENGTH(sealed)), 0) FROM examples").fetchone()
        while held > self._max_bytes:
            oldest = self._db.execute("SELECT id, LENGTH(sealed) FROM examples ORDER BY id LIMIT 64").fetchall()
            held -= sum(size for _, size in oldest)
            self._db.execute("DELETE FROM examples WHERE id <= ?", (oldest[-1][0],))

    def fields_dropped(self, task: str, names: Collection[str]) -> None:
        """Count fields that were not kept because no signed schema names them; at most 100 names a task."""
        with self._transaction():
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
        ring: dict[bytes, bytes | None] = {}  # of this call only: an erased key must not live on in memory
        opened = [
            self._opened(task, subject, sealed, ring)
            for subject, sealed, agreed in rows
            if (agreed or 0) >= consent and agreed != consents.WITHDRAWN
        ]
        return [example for example in opened if example is not None]

    def _opened(self, task: str, subject: bytes, sealed: bytes, ring: dict[bytes, bytes | None]) -> Example | None:
        owner = owner_of(task, subject)
        if owner not in ring:
            ring[owner] = self._held_key(owner)
        key = ring[owner]
        plain = None if key is None else self._keys.open(key, sealed, task, subject)
        if plain is None:
            log.warning("an example of %s does not open under this device's key; it is skipped", task)
            return None
        fields, label = msgspec.msgpack.decode(plain)
        return Example(fields, label, subject)

    def count(self, task: str) -> int:
        """Examples of a task."""
        return int(self._db.execute("SELECT COUNT(*) FROM examples WHERE task = ?", (task,)).fetchone()[0])

    def counts(self) -> dict[str, int]:
        """Examples by task."""
        return dict(self._db.execute("SELECT task, COUNT(*) FROM examples GROUP BY task ORDER BY task").fetchall())

    def held(self, subject: str) -> list[dict[str, Any]]:
        """All that is held of a subject, opened: task, recorded_at (seconds since 1970), fields and label."""
        name = self._keys.name(subject)
        rows = self._db.execute(
            "SELECT task, recorded_at, sealed FROM examples WHERE subject = ? ORDER BY id", (name,)
        ).fetchall()
        ring: dict[bytes, bytes | None] = {}
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

    # -- consent -----------------------------------------------------------------------------------------------------

    def consent_given(self, subject: str, version: int, purposes: tuple[str, ...], now: int) -> None:
        """Enter a consent (`edge_sdk.consent`)."""
        with self._transaction():
            consents.write(self._db, self._keys.name(subject), purposes, version, now)

    def consent_withdrawn(self, subject: str, purposes: tuple[str, ...], now: int) -> int:
        """Enter a withdrawal and erase the subject's examples of these purposes; returns how many there were."""
        name = self._keys.name(subject)
        with self._transaction():
            consents.write(self._db, name, purposes, consents.WITHDRAWN, now)
            gone = self._erase(name, None if consents.EVERY_TASK in purposes else purposes)
        self._truncate()
        return gone

    def consent_history(self, subject: str) -> list[dict[str, Any]]:
        """Every consent and withdrawal of a subject, oldest first."""
        return consents.history(self._db, self._keys.name(subject))

    # -- erasing -----------------------------------------------------------------------------------------------------

    def forget(self, subject: str) -> int:
        """Erase every example of a subject and the key that opened them; returns how many there were.

        The consent history stays, under a keyed hash: a withdrawal has to hold for what is recorded later.
        """
        with self._transaction():
            gone = self._erase(self._keys.name(subject), None)
        self._truncate()
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
        self._db.execute(
            "DELETE FROM keys WHERE owner = ? AND NOT EXISTS (SELECT 1 FROM examples WHERE subject = ?)",
            (owner_of("", subject), subject),
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

    def _truncate(self) -> None:
        """Empty the log, which holds what pages looked like before. Tried again later where it is being read."""
        busy, _, _ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._untruncated = bool(busy)

    def truncate_owed(self) -> None:
        """Empty the log where a reader was in the way before."""
        if self._untruncated:
            self._truncate()

    def sweep(self, now: int, *, vouched: int, elapsed_s: float) -> int:
        """Erase what is older than the retention; returns how many there were. Arguments as for `age_clock`."""
        with self._transaction():
            before = self._fact("age-clock")
            at = age_clock(before, now, vouched, elapsed_s)
            self._db.execute("INSERT OR REPLACE INTO facts VALUES ('age-clock', ?)", (at,))
            if starts_anew(before, at):
                self._db.execute("UPDATE examples SET recorded_at = ?", (at,))
                self._db.execute("UPDATE seen SET first_at = ?, last_at = ?", (at, at))
            elif at < before:
                self._db.execute("UPDATE examples SET recorded_at = ? WHERE recorded_at > ?", (at, at))
                self._db.execute("UPDATE seen SET first_at = MIN(first_at, ?), last_at = MIN(last_at, ?)", (at, at))
            oldest = at - self._retention_s
            gone = self._db.execute("DELETE FROM examples WHERE recorded_at < ?", (oldest,)).rowcount
            self._db.execute(
                "DELETE FROM seen WHERE last_at < ? AND NOT EXISTS (SELECT 1 FROM examples WHERE"
                " examples.subject = seen.subject AND examples.task = seen.task)",
                (oldest - UNSENT_S,),
            )
            self._drop_idle_keys()
        if gone:
            self._truncate()
        return gone

    def _drop_idle_keys(self) -> None:
        """A key whose last example went with the ring or its age."""
        self._db.execute(
            "DELETE FROM keys WHERE SUBSTR(owner, 1, 1) = X'73'"
            " AND NOT EXISTS (SELECT 1 FROM examples WHERE subject = SUBSTR(keys.owner, 2))"
        )

    def _fact(self, name: str) -> int:
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    # -- fields --------------------------------------------------------------------------------------------------------

    def schema(self, task: str) -> int:
        """The digest that `set_schema` was last given for a task, 0 for none."""
        return self._fact(f"schema:{task}")

    def set_schema(self, task: str, digest: int) -> None:
        """Remember by which schema the examples of a task were kept."""
        if self.schema(task) != digest:
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (f"schema:{task}", digest))

    def rewrite(self, task: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> int:
        """Store examples of a task anew where `change` gives other fields; returns how many."""
        changed = 0
        with self._transaction():
            rows = self._db.execute("SELECT id, subject, sealed FROM examples WHERE task = ?", (task,)).fetchall()
            ring: dict[bytes, bytes | None] = {}
            for number, subject, sealed in rows:
                example = self._opened(task, subject, sealed, ring)
                fields = {} if example is None else change(example.fields)
                if example is None or fields == example.fields:
                    continue
                plain = msgspec.msgpack.encode((fields, example.label))
                again = self._keys.seal(self._key(owner_of(task, subject)), plain, task, subject)
                self._db.execute("UPDATE examples SET sealed = ? WHERE id = ?", (again, number))
                changed += 1
        if changed:
            self._truncate()
        return changed

    def close(self) -> None:
        self._db.close()
