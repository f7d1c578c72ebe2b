"""Labelled examples, encrypted on this device's disk and never sent. Reads no clock; refuses to grow past its cap.

Each row is AES-256-GCM under a key in a file of mode 0600; a subject is kept only as a keyed hash, so that `forget`
finds the rows without the file naming anybody. The oldest row of a task makes room for the newest. Examples that the
key does not open any more are set aside, one generation of them, and the device goes on with an empty file.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edge_sdk.identity.keys import write_private

KEY_BYTES: Final = 32
SET_ASIDE: Final = ".unreadable"
LOOKED_AT: Final = 8  # newest rows: where none of them opens, the key is not theirs

log = logging.getLogger("edge_sdk")


class ExamplesUnreadable(Exception):
    """The examples recorded so far are lost to this device; the message names the remedy. It goes on without them."""


@dataclass(frozen=True, slots=True)
class Example:
    """Fields by name and their label, as the app recorded them."""

    fields: dict[str, Any] = field(repr=False)
    label: Any = field(repr=False)


class ExamplesStore:
    """A ring of at most `cap` examples a task. One thread at a time."""

    def __init__(self, path: Path, key_file: Path, cap: int, entropy: Callable[[int], bytes]) -> None:
        """`entropy(n)` gives n fresh random bytes: the key on first use, a nonce for each row.

        `damage` says what had to be set aside, or is None. Raises OSError, sqlite3.Error where the disk refuses.
        """
        self._entropy, self._cap = entropy, cap
        self.dropped = 0
        self.damage: ExamplesUnreadable | None = None
        if not _key_is_sound(key_file):
            self.damage = _set_aside(path, key_file, "is damaged")
        self._open(path, key_file)
        if self.damage is None and not self._key_fits():
            self._db.close()
            self.damage = _set_aside(path, key_file, "is not the one that sealed them")
            self._open(path, key_file)

    def _open(self, path: Path, key_file: Path) -> None:
        if not key_file.exists():
            write_private(key_file, self._entropy(KEY_BYTES))
        key = key_file.read_bytes()
        self._aead, self._subject_key = AESGCM(key), hashlib.sha256(b"chorale/subject/1" + key).digest()
        self._db = sqlite3.connect(path, isolation_level=None, timeout=10.0, check_same_thread=False)
        path.chmod(0o600)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA secure_delete = ON")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS examples (id INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL,"
            " subject BLOB NOT NULL, sealed BLOB NOT NULL)"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS by_task ON examples (task, id)")

    def _key_fits(self) -> bool:
        rows = self._db.execute("SELECT task, sealed FROM examples ORDER BY id DESC LIMIT ?", (LOOKED_AT,)).fetchall()
        return not rows or any(self._opened(task, sealed) is not None for task, sealed in rows)

    def _opened(self, task: str, sealed: bytes) -> bytes | None:
        try:
            return self._aead.decrypt(sealed[:12], sealed[12:], task.encode())
        except (InvalidTag, ValueError):
            return None

    def add(self, task: str, fields: Mapping[str, Any], label: Any, subject: str | None = None) -> bool:
        """Keep one example; False, counted, where it cannot be kept (a full disk, a value that is not plain data)."""
        return self.add_many([(task, fields, label, subject)]) == 1

    def add_many(self, examples: list[tuple[str, Mapping[str, Any], Any, str | None]]) -> int:
        """Keep several in one transaction; returns how many were kept."""
        rows = [row for row in map(self._row, examples) if row is not None]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT INTO examples (task, subject, sealed) VALUES (?, ?, ?)", rows)
            for task in {row[0] for row in rows}:
                self._db.execute(
                    "DELETE FROM examples WHERE task = ? AND id NOT IN"
                    " (SELECT id FROM examples WHERE task = ? ORDER BY id DESC LIMIT ?)",
                    (task, task, self._cap),
                )
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self.dropped += len(rows)
            log.warning("%d examples were not kept: %s; make room on the disk", len(rows), error)
            return 0
        return len(rows)

    def _row(self, example: tuple[str, Mapping[str, Any], Any, str | None]) -> tuple[str, bytes, bytes] | None:
        try:
            task, fields, label, subject = example
            plain = msgspec.msgpack.encode((dict(fields), label))
            nonce = self._entropy(12)
            return task, self._subject(subject), nonce + self._aead.encrypt(nonce, plain, task.encode())
        except Exception as error:
            # Whatever one value does when it is read, encoded or nested without end, it costs this example alone.
            self.dropped += 1
            why = error if isinstance(error, (TypeError, ValueError)) else type(error).__name__
            log.warning("an example was not kept: %s; record plain numbers, text and dates", why)
            return None

    def _subject(self, subject: str | None) -> bytes:
        return b"" if subject is None else hmac.digest(self._subject_key, str(subject).encode(), "sha256")

    def read(self, task: str) -> list[Example]:
        """All examples of a task, oldest first; a row that does not open is skipped and logged."""
        examples: list[Example] = []
        for (sealed,) in self._db.execute("SELECT sealed FROM examples WHERE task = ? ORDER BY id", (task,)):
            plain = self._opened(task, sealed)
            if plain is None:
                log.warning("an example of %s does not open under this device's key; it is skipped", task)
                continue
            examples.append(Example(*msgspec.msgpack.decode(plain)))
        return examples

    def count(self, task: str) -> int:
        """Examples of a task."""
        return int(self._db.execute("SELECT COUNT(*) FROM examples WHERE task = ?", (task,)).fetchone()[0])

    def counts(self) -> dict[str, int]:
        """Examples by task."""
        return dict(self._db.execute("SELECT task, COUNT(*) FROM examples GROUP BY task ORDER BY task").fetchall())

    def forget(self, subject: str) -> int:
        """Erase every example of a subject; returns how many there were."""
        gone = self._db.execute("DELETE FROM examples WHERE subject = ?", (self._subject(subject),)).rowcount
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone

    def close(self) -> None:
        self._db.close()


def _key_is_sound(key_file: Path) -> bool:
    """True for a whole key, and for none at all: one is made on first use."""
    return not key_file.exists() or key_file.stat().st_size == KEY_BYTES


def _set_aside(path: Path, key_file: Path, what: str) -> ExamplesUnreadable:
    """Rename the examples and their key. The log goes first: left behind, it would be replayed into the new file."""
    aside = path.with_name(path.name + SET_ASIDE)
    for end in ("-wal", "-shm", ""):
        old, new = path.with_name(path.name + end), aside.with_name(aside.name + end)
        new.unlink(missing_ok=True)
        if old.exists():
            old.replace(new)
    key_file.replace(key_file.with_name(key_file.name + SET_ASIDE))
    return ExamplesUnreadable(
        f"{key_file} {what}, so the examples recorded so far cannot be read; they were set aside as {aside.name}:"
        f" put the right key and that file back from a copy, or remove {aside}"
    )
