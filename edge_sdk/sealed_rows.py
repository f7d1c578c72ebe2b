"""The file of the example store: its tables, and rows that only their subject's key opens. Reads no clock.

Decides nothing: what is kept, and for how long, does `examples_store`. A key file that is damaged, or not the right
one, is set aside together with the rows that it sealed, and a new file takes their place.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from edge_sdk import consent as consents
from edge_sdk.example_keys import ExampleKeys, ExamplesUnreadable, key_is_sound, owner_of, set_aside

OWED: Final = "truncate-owed"  # how often the log of pages had to be emptied since it last was
LOOKED_AT: Final = 8  # newest keys: where none of them unwraps, the device's key is not theirs
Ring = dict[bytes, bytes | None]  # owner -> key, for one call: an erased key must not live on in memory

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
    CREATE TABLE IF NOT EXISTS windows (
        number INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL, field TEXT NOT NULL, key BLOB NOT NULL,
        subject BLOB NOT NULL, recorded_at INTEGER NOT NULL, sealed BLOB NOT NULL, UNIQUE (task, field, key, subject));
    CREATE INDEX IF NOT EXISTS windows_by_subject ON windows (subject, task);
    {consents.TABLE}
"""


class SealedRows:
    """An open file. `db` is its connection, `keys` name and wrap; one thread at a time."""

    def __init__(self, path: Path, key_file: Path, entropy: Callable[[int], bytes]) -> None:
        """`damage` says what had to be set aside, or is None. Raises OSError, sqlite3.Error."""
        self._entropy = entropy
        self.damage: ExamplesUnreadable | None = None
        if not key_is_sound(key_file):
            self.damage = set_aside(path, key_file, "is damaged")
        self._open(path, key_file)
        if self.damage is None and not self._key_fits():
            self.db.close()
            self.damage = set_aside(path, key_file, "is not the one that sealed them")
            self._open(path, key_file)
        self._bring_up_to_date()

    # -- opening -----------------------------------------------------------------------------------------------------

    def _open(self, path: Path, key_file: Path) -> None:
        self.keys = ExampleKeys(key_file, self._entropy)
        self.db = sqlite3.connect(path, isolation_level=None, timeout=10.0, check_same_thread=False)
        path.chmod(0o600)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA secure_delete = ON")

    def _columns(self) -> set[str]:
        return {row[1] for row in self.db.execute("PRAGMA table_info(examples)")}

    def _key_fits(self) -> bool:
        columns = self._columns()
        if not columns:
            return True
        if "recorded_at" not in columns:
            newest = "SELECT sealed, task FROM examples ORDER BY id DESC LIMIT ?"
            old = self.db.execute(newest, (LOOKED_AT,)).fetchall()
            return not old or any(self.keys.open_first_form(*row) is not None for row in old)
        held = self.db.execute("SELECT owner, wrapped FROM keys ORDER BY rowid DESC LIMIT ?", (LOOKED_AT,)).fetchall()
        return not held or any(self.keys.unwrap(*row) is not None for row in held)

    def _bring_up_to_date(self) -> None:
        """Make the tables; seal rows of the first form anew, each under its subject's key."""
        old: list[tuple[str, bytes, bytes]] = []
        with self.transaction():
            if self._columns() and "recorded_at" not in self._columns():
                old = self.db.execute("SELECT task, subject, sealed FROM examples ORDER BY id").fetchall()
                self.db.execute("DROP TABLE examples")
            for statement in filter(str.strip, _TABLES.split(";")):
                self.db.execute(statement)
            for task, subject, sealed in old:
                plain = self.keys.open_first_form(sealed, task)
                if plain is not None:
                    self.insert(task, subject, plain, 0)
            if not self.db.execute("SELECT 1 FROM keys LIMIT 1").fetchone():
                self.db.execute("INSERT INTO keys VALUES (?, ?)", (b"check", self.keys.fresh(b"check")[1]))
        with contextlib.suppress(sqlite3.OperationalError):  # a full disk: it is owed still, where it is
            self.truncate()  # a process that was killed may have left there what it had erased

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit on success, roll back on any exception."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.OperationalError):  # a full disk has undone the transaction already
                self.db.execute("ROLLBACK")
            raise

    # -- rows ----------------------------------------------------------------------------------------------------------

    def insert(self, task: str, subject: bytes, plain: bytes, at: int) -> None:
        """Seal one row, and remember that its subject was seen; in the caller's transaction."""
        sealed = self.seal(task, subject, plain)
        self.db.execute(
            "INSERT INTO examples (task, subject, recorded_at, sealed) VALUES (?, ?, ?, ?)", (task, subject, at, sealed)
        )
        if subject:
            self.db.execute(
                "INSERT INTO seen VALUES (?, ?, ?, ?) ON CONFLICT (subject, task) DO UPDATE"
                " SET last_at = MAX(last_at, excluded.last_at)",
                (subject, task, at, at),
            )

    def seal(self, task: str, subject: bytes, plain: bytes) -> bytes:
        """Under the owner's key, which is made where there is none or where the one there is damaged."""
        owner = owner_of(task, subject)
        key = self.held_key(owner)
        if key is None:
            key, wrapped = self.keys.fresh(owner)
            self.db.execute("INSERT OR REPLACE INTO keys VALUES (?, ?)", (owner, wrapped))
        return self.keys.seal(key, plain, task, subject)

    def open(self, task: str, subject: bytes, sealed: bytes, ring: Ring) -> bytes | None:
        """What was sealed; None where no key of this device opens it."""
        owner = owner_of(task, subject)
        if owner not in ring:
            ring[owner] = self.held_key(owner)
        key = ring[owner]
        return None if key is None else self.keys.open(key, sealed, task, subject)

    def held_key(self, owner: bytes) -> bytes | None:
        """An owner's key, where it is there and unwraps."""
        row = self.db.execute("SELECT wrapped FROM keys WHERE owner = ?", (owner,)).fetchone()
        return self.keys.unwrap(owner, row[0]) if row else None

    def fact(self, name: str) -> int:
        """A remembered integer, 0 when it was never set."""
        row = self.db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def set_fact(self, name: str, value: int) -> None:
        """Remember an integer."""
        self.db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    # -- the log of pages ----------------------------------------------------------------------------------------------

    def owe_truncation(self) -> None:
        """The log has to be emptied after this transaction, which is the caller's: by whichever process comes to it."""
        self.set_fact(OWED, self.fact(OWED) + 1)

    def truncate(self) -> None:
        """Empty the log, which holds what pages looked like before. Stays owed where it is being read just now."""
        owed = self.fact(OWED)
        busy, _, _ = self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if owed and not busy:
            with contextlib.suppress(sqlite3.OperationalError):  # no room to note it: it is emptied once more
                self.db.execute("DELETE FROM facts WHERE name = ? AND value = ?", (OWED, owed))

    def truncate_owed(self) -> None:
        """Empty the log where a reader was in the way before, or where the process that erased did not get to it."""
        if self.fact(OWED):
            self.truncate()
