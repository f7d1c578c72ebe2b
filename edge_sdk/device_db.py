"""The device's one SQLite file: what must survive a restart. Refuses a file written by a newer version.

Tables are made by numbered migrations. Autocommit is on; `transaction` opens the few transactions there are, so
that a charge to the privacy ledger and the release of an upload commit together or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

MIGRATIONS: Final = (
    """
    CREATE TABLE outbox (
        upload BLOB PRIMARY KEY, task TEXT NOT NULL, round INTEGER NOT NULL, offer_hash BLOB NOT NULL,
        size INTEGER NOT NULL, sealed_key BLOB NOT NULL, closes_at INTEGER NOT NULL, state TEXT NOT NULL,
        reason TEXT NOT NULL DEFAULT '', sent INTEGER NOT NULL DEFAULT 0, resent INTEGER NOT NULL DEFAULT 0,
        UNIQUE (task, round));
    CREATE TABLE offers (
        offer_hash BLOB PRIMARY KEY, task TEXT NOT NULL, round INTEGER NOT NULL, frame BLOB NOT NULL,
        UNIQUE (task, round));
    CREATE TABLE rosters (statement_hash BLOB PRIMARY KEY, epoch INTEGER NOT NULL, blob BLOB NOT NULL);
    CREATE TABLE answers (
        task TEXT NOT NULL, round INTEGER NOT NULL, digest BLOB NOT NULL, sealed BLOB NOT NULL,
        PRIMARY KEY (task, round));
    CREATE TABLE uploaded (task TEXT PRIMARY KEY, round INTEGER NOT NULL, offer_hash BLOB NOT NULL);
    CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
    CREATE TABLE counters (kind TEXT NOT NULL, reason TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (kind, reason));
    """,
    """
    ALTER TABLE outbox ADD COLUMN consent INTEGER NOT NULL DEFAULT 0;
    """,
    """
    CREATE TABLE epoch_keys (
        state TEXT PRIMARY KEY, number INTEGER NOT NULL, public BLOB NOT NULL, made_at INTEGER NOT NULL);
    """,
    """
    CREATE TABLE journal (n INTEGER PRIMARY KEY, entry BLOB NOT NULL, head BLOB NOT NULL);
    CREATE TABLE journal_heads (
        size INTEGER PRIMARY KEY, head BLOB NOT NULL, time INTEGER NOT NULL, signature BLOB NOT NULL,
        key BLOB NOT NULL);
    CREATE TABLE seen_heads (
        size INTEGER NOT NULL, head BLOB NOT NULL, time INTEGER NOT NULL, signature BLOB NOT NULL,
        conflict INTEGER NOT NULL, PRIMARY KEY (size, head));
    """,
    """
    CREATE TABLE seen_heads_of_all_hours (
        size INTEGER NOT NULL, head BLOB NOT NULL, time INTEGER NOT NULL, signature BLOB NOT NULL,
        conflict INTEGER NOT NULL, seen_at INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (size, head, conflict));
    INSERT INTO seen_heads_of_all_hours SELECT *, time FROM seen_heads ORDER BY rowid;
    DROP TABLE seen_heads;
    ALTER TABLE seen_heads_of_all_hours RENAME TO seen_heads;
    ALTER TABLE epoch_keys ADD COLUMN clock_at INTEGER NOT NULL DEFAULT 0;
    """,
)

TIME_FLOOR: Final = "time-floor"  # it is at least as late as this
TIME_LATEST: Final = "time-latest"  # the aggregator is believed no time after this: the newest roster has expired then


class DeviceDbError(Exception):
    """The file cannot be used; the message names the remedy."""


class DiskFull(OSError):
    """Nothing was written and nothing is lost; works again when space is freed."""

    reason: Final = "disk-full"

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, "the disk is full, device.db was not changed: free space, it is tried again")


def open_device_db(path: Path) -> sqlite3.Connection:
    """Open, migrate and return a connection that any one thread at a time may use. Raises DeviceDbError."""
    try:
        connection = sqlite3.connect(path, isolation_level=None, timeout=10.0, check_same_thread=False)
        path.chmod(0o600)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        _migrate(connection)
    except (sqlite3.Error, OSError) as error:
        raise DeviceDbError(
            f"cannot open {path}: {error}; check the disk, or move the file away and enrol again"
        ) from error
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    with transaction(connection):
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise DeviceDbError(
                f"device.db has version {version}, this SDK knows {len(MIGRATIONS)}; install a newer SDK"
            )
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            for statement in filter(str.strip, script.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")


@contextlib.contextmanager
def _full_disk_named() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" in str(error):
            raise DiskFull from error
        raise


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit on success, roll back on any exception. Raises DiskFull where SQLite found no space."""
    with _full_disk_named():
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.OperationalError):  # a full disk has undone the transaction already
                connection.execute("ROLLBACK")
            raise


def fact(connection: sqlite3.Connection, name: str) -> int:
    """A remembered integer, 0 when it was never set."""
    row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else 0


def raise_fact(connection: sqlite3.Connection, name: str, value: int) -> int:
    """Remember the larger of `value` and what was known; returns it. Times and epochs only grow. Raises DiskFull."""
    with _full_disk_named():
        connection.execute(
            "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = MAX(value, excluded.value)",
            (name, value),
        )
    return fact(connection, name)


def count(connection: sqlite3.Connection, kind: str, reason: str, n: int = 1) -> None:
    """Add to a counter that survives restarts. Raises DiskFull."""
    with _full_disk_named():
        connection.execute(
            "INSERT INTO counters VALUES (?, ?, ?) ON CONFLICT (kind, reason) DO UPDATE SET n = n + excluded.n",
            (kind, reason, n),
        )


def counters(connection: sqlite3.Connection, kind: str) -> dict[str, int]:
    """All counters of a kind, by reason."""
    rows = connection.execute("SELECT reason, n FROM counters WHERE kind = ? ORDER BY reason", (kind,))
    return {str(reason): int(n) for reason, n in rows}
