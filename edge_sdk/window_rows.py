"""The windows of `windows` in the example store's file: one row a window, sealed under its subject's key.

Decides nothing and reads no clock. Times of labels, labels and keys are in no row in the clear, but for one: when the
oldest of its labels was recorded. A row that does not open, or that another row's place was copied to, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from edge_sdk.sealed_rows import Ring, SealedRows
from edge_sdk.windows import Entry, Window

ERASED: Final = "windows-erased"  # how often windows were erased: a process that holds them in memory reads them anew


_Row = tuple[str, bytes, list[tuple[int, Any, int]]]  # field, key, entries


class WindowsErased(Exception):
    """Windows were erased, by whichever process, since they were read: read them anew and fill again."""


class WindowRows:
    """The rows of an open file. One thread at a time."""

    def __init__(self, file: SealedRows) -> None:
        self._file, self._db = file, file.db

    def read(self) -> list[tuple[Window, list[Entry]]]:
        """Every window, the one longest without a label first."""
        columns = "task, field, key, subject, sealed"
        rows = self._db.execute(f"SELECT {columns} FROM windows ORDER BY number").fetchall()
        ring: Ring = {}
        opened = [(Window(*place), self._opened(Window(*place), sealed, ring)) for *place, sealed in rows]
        return [(window, entries) for window, entries in opened if entries]

    def _opened(self, window: Window, sealed: bytes, ring: Ring) -> list[Entry]:
        plain = self._file.open(window.task, window.subject, sealed, ring)
        if plain is None:
            return []
        try:
            field, key, entries = msgspec.msgpack.decode(plain, type=_Row)
        except msgspec.MsgspecError:  # of another release of this software
            return []
        return entries if (field, key) == (window.field, window.key) else []

    def write(self, changed: Iterable[tuple[Window, list[Entry]]], erased: int | None = None) -> None:
        """Store windows as they are now, those without entries not at all.

        `erased`: how often windows were erased when these were read. Raises WindowsErased, sqlite3.Error.
        """
        changed = list(changed)
        if not changed:
            return
        with self._file.transaction():
            self.check(erased)
            for window, entries in changed:
                self._db.execute("DELETE FROM windows WHERE task = ? AND field = ? AND key = ? AND subject = ?", window)
                if entries:
                    at, sealed = self._sealed(window, entries)
                    self._db.execute(
                        "INSERT INTO windows (task, field, key, subject, recorded_at, sealed)"
                        " VALUES (?, ?, ?, ?, ?, ?)",
                        (*window, at, sealed),
                    )

    def _sealed(self, window: Window, entries: list[Entry]) -> tuple[int, bytes]:
        """What a row holds: when the oldest of its labels was recorded, and all of them."""
        plain = msgspec.msgpack.encode((window.field, window.key, entries))
        return min(at for _, _, at in entries), self._file.seal(window.task, window.subject, plain)

    def held(self, subject: bytes) -> list[dict[str, object]]:
        """The windows of a subject: task, field, and [time or number, label, when recorded] lists, oldest first."""
        return [
            {"task": window.task, "field": window.field, "labels": [list(entry) for entry in entries]}
            for window, entries in self.read()
            if window.subject == subject
        ]

    def erase(self, subject: bytes, tasks: tuple[str, ...] | None) -> None:
        """A subject's windows, of these tasks or of all; in the caller's transaction."""
        if tasks is None:
            self._db.execute("DELETE FROM windows WHERE subject = ?", (subject,))
        else:
            of = "DELETE FROM windows WHERE subject = ? AND task = ?"
            self._db.executemany(of, [(subject, task) for task in tasks])
        # Where no row is gone, too: memory may hold what a full disk did not take.
        self._file.set_fact(ERASED, self.erased() + 1)

    def sweep(self, oldest: int) -> bool:
        """Erase labels that were recorded before `oldest`; True where there were any. In the caller's transaction."""
        return self._rewrite(oldest, lambda entries: [entry for entry in entries if entry[2] >= oldest])

    def recorded_again(self, at: int, *, anew: bool) -> None:
        """All labels were recorded at `at`, or, where not `anew`, none after it; in the caller's transaction."""
        self._rewrite(
            None, lambda entries: [(when, label, at if anew else min(was, at)) for when, label, was in entries]
        )

    def _rewrite(self, oldest: int | None, change: Callable[[list[Entry]], list[Entry]]) -> bool:
        """Of the rows with a label recorded before `oldest`, or of all: their entries as `change` gives them."""
        query = "SELECT number, task, field, key, subject, sealed FROM windows"
        where, what = ("", ()) if oldest is None else (" WHERE recorded_at < ?", (oldest,))
        rows = self._db.execute(query + where, what).fetchall()
        ring: Ring = {}
        for number, *place, sealed in rows:
            window = Window(*place)
            entries = change(self._opened(window, sealed, ring))
            if entries:
                at, again = self._sealed(window, entries)
                self._db.execute("UPDATE windows SET recorded_at = ?, sealed = ? WHERE number = ?", (at, again, number))
            else:
                self._db.execute("DELETE FROM windows WHERE number = ?", (number,))
        if rows:
            self._file.set_fact(ERASED, self.erased() + 1)
        return bool(rows)

    def check(self, erased: int | None) -> None:
        """In the caller's transaction. Raises WindowsErased where it happened more often than that; None asks not."""
        if erased is not None and erased != self.erased():
            raise WindowsErased("windows were erased since they were read")

    def erased(self) -> int:
        """How often windows were erased so far, by whichever process."""
        return self._file.fact(ERASED)
