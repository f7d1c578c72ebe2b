"""Who agreed to what: the app's calls, and the record of them. Refuses versions that are no notice's number.

A purpose is a task, or "*" for every task. The record is a list that only grows, with a subject as a keyed hash: what
holds for a task is the newest entry of the task or of "*", and version 0 is a withdrawal. Never raises into the app,
never blocks it but for a bounded moment in `of`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from edge_sdk.client import EdgeClient

EVERY_TASK: Final = "*"
WITHDRAWN: Final = 0
LARGEST_VERSION: Final = 2**40

TABLE: Final = """
    CREATE TABLE IF NOT EXISTS consents (
        id INTEGER PRIMARY KEY AUTOINCREMENT, subject BLOB NOT NULL, purpose TEXT NOT NULL, version INTEGER NOT NULL,
        at INTEGER NOT NULL);
    CREATE INDEX IF NOT EXISTS consents_by_subject ON consents (subject, id);
"""
# What holds for the row `examples`: NULL where nobody ever said a word.
AGREED: Final = (
    "(SELECT version FROM consents WHERE consents.subject = examples.subject AND purpose IN (examples.task, '*')"
    " ORDER BY consents.id DESC LIMIT 1)"
)


class ConsentError(ValueError):
    """A consent that cannot be recorded; the message names the remedy."""


def checked_version(version: object) -> int:
    """The number of a notice: a whole number from 1. Raises ConsentError."""
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= LARGEST_VERSION:
        raise ConsentError(f"the consent version is {version!r}; give the notice's number, a whole number from 1")
    return version


def checked_purposes(purposes: Iterable[str] | None) -> tuple[str, ...]:
    """Tasks, or every task where none is named. Raises ConsentError."""
    if purposes is None:
        return (EVERY_TASK,)
    named = (purposes,) if isinstance(purposes, str) else tuple(purposes)
    if not named or not all(isinstance(purpose, str) and purpose for purpose in named):
        raise ConsentError(f"the purposes are {named!r}; name tasks, or leave them out for every task")
    return named


def write(connection: sqlite3.Connection, subject: bytes, purposes: tuple[str, ...], version: int, at: int) -> None:
    """Enter one word of a subject for each purpose; in the caller's transaction. What changes nothing adds no row."""
    for purpose in purposes:
        if not _changes_nothing(connection, subject, purpose, version):
            connection.execute(
                "INSERT INTO consents (subject, purpose, version, at) VALUES (?, ?, ?, ?)",
                (subject, purpose, version, at),
            )


def _changes_nothing(connection: sqlite3.Connection, subject: bytes, purpose: str, version: int) -> bool:
    """A word for every task is said again where any task's own word came after it: it is that one's newest from now."""
    if purpose != EVERY_TASK:
        return holds(connection, subject, purpose) == version
    newest = "SELECT purpose, version FROM consents WHERE subject = ? ORDER BY id DESC LIMIT 1"
    return bool(connection.execute(newest, (subject,)).fetchone() == (EVERY_TASK, version))


def holds(connection: sqlite3.Connection, subject: bytes, purpose: str) -> int | None:
    """The version that holds for a subject and a purpose; 0 withdrawn, None where nothing was ever said."""
    row = connection.execute(
        "SELECT version FROM consents WHERE subject = ? AND purpose IN (?, '*') ORDER BY id DESC LIMIT 1",
        (subject, purpose),
    ).fetchone()
    return None if row is None else int(row[0])


def history(connection: sqlite3.Connection, subject: bytes) -> list[dict[str, Any]]:
    """Every entry of a subject, oldest first: purpose, version and `given_at` or `withdrawn_at`, seconds since 1970."""
    rows = connection.execute("SELECT purpose, version, at FROM consents WHERE subject = ? ORDER BY id", (subject,))
    return [
        {"purpose": purpose, "withdrawn_at": at} if version == WITHDRAWN
        else {"purpose": purpose, "version": version, "given_at": at}
        for purpose, version, at in rows
    ]  # fmt: skip


class Consent:
    """`fl.consent`. Giving and withdrawing return at once and take effect in the order of the calls."""

    def __init__(self, client: EdgeClient) -> None:
        self._client = client

    def give(self, subject: str, version: int, purposes: Iterable[str] | None = None) -> None:
        """The subject agreed to the notice of this number, for these tasks or for every one."""
        with self._client._told():
            who, what, tasks = str(subject), checked_version(version), checked_purposes(purposes)
            self._client._on_examples(lambda recorder, now: recorder.give(who, what, tasks, now))

    def withdraw(self, subject: str, purposes: Iterable[str] | None = None) -> None:
        """The subject withdraws: its examples of these tasks are erased, nothing of it is learnt any more.

        A job in hand that may learn from it is cancelled, and what waits to be sent and may contain it is dropped.
        """
        with self._client._told():
            who, tasks = str(subject), checked_purposes(purposes)
            self._client._on_examples(lambda recorder, now: recorder.withdraw(who, tasks, now))

    def of(self, subject: str, timeout: float = 2.0) -> list[dict[str, Any]]:
        """The subject's consent history, oldest first; [] where it cannot be read within `timeout` seconds."""
        nothing: list[dict[str, Any]] = []
        return self._client._asked(lambda recorder: recorder.examples.consent_history(str(subject)), timeout, nothing)
