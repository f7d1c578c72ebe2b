"""The tables, in one place, and the one way to open the file. Refuses a file written by a newer version."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aggregator.errors import HomeRefused
from aggregator.store import audit_log

BUSY_S: Final = 10.0

TABLES: Final = """
CREATE TABLE IF NOT EXISTS tasks (
    name TEXT PRIMARY KEY, spec BLOB NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
    created_at INTEGER NOT NULL, checkpoint TEXT NOT NULL, heldout TEXT NOT NULL DEFAULT '',
    not_before REAL NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS rounds (
    task TEXT NOT NULL, number INTEGER NOT NULL, phase TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
    frame BLOB NOT NULL, offer_hash BLOB NOT NULL UNIQUE, secret BLOB, epoch INTEGER NOT NULL,
    opening_ends_at INTEGER NOT NULL DEFAULT 0, snapshot TEXT NOT NULL DEFAULT '', summed INTEGER NOT NULL DEFAULT 0,
    phase_since REAL NOT NULL, stats TEXT NOT NULL DEFAULT '{}', waiting TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (task, number)
);
CREATE TABLE IF NOT EXISTS uploads (
    id BLOB PRIMARY KEY, task TEXT NOT NULL, number INTEGER NOT NULL, device TEXT NOT NULL, size INTEGER NOT NULL,
    state TEXT NOT NULL, content_key BLOB, received BLOB NOT NULL DEFAULT x'', shares BLOB, at REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS uploads_of_round ON uploads (task, number, device);
CREATE UNIQUE INDEX IF NOT EXISTS one_upload_a_device
    ON uploads (task, number, device) WHERE state IN ('accepted', 'summed');
CREATE TABLE IF NOT EXISTS answers (
    task TEXT NOT NULL, number INTEGER NOT NULL, member INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (task, number, member)
);
CREATE TABLE IF NOT EXISTS checkpoints (
    sha256 TEXT PRIMARY KEY, task TEXT NOT NULL, number INTEGER NOT NULL, parent TEXT NOT NULL,
    metrics TEXT NOT NULL DEFAULT '{}', at REAL NOT NULL, UNIQUE (task, number)
);
CREATE TABLE IF NOT EXISTS releases (
    task TEXT NOT NULL, version INTEGER NOT NULL, number INTEGER NOT NULL, sha256 TEXT NOT NULL,
    metric REAL, at REAL NOT NULL, PRIMARY KEY (task, version), UNIQUE (task, number)
);
CREATE TABLE IF NOT EXISTS refusals (
    kind TEXT NOT NULL, reason TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (kind, reason)
);
CREATE TABLE IF NOT EXISTS presence (
    device TEXT PRIMARY KEY, seen_at REAL NOT NULL, phase TEXT NOT NULL, active TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL, task TEXT NOT NULL,
    number INTEGER NOT NULL, data TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS kv (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""

# One running sum a group; before groups there was one sum a round.
GROUPS: Final = """
CREATE TABLE group_sums (
    task TEXT NOT NULL, number INTEGER NOT NULL, in_group INTEGER NOT NULL, snapshot TEXT NOT NULL,
    summed INTEGER NOT NULL, PRIMARY KEY (task, number, in_group)
);
INSERT INTO group_sums SELECT task, number, 0, snapshot, summed FROM rounds
    WHERE snapshot != '' AND secret IS NOT NULL;
ALTER TABLE rounds DROP COLUMN snapshot;
ALTER TABLE rounds DROP COLUMN summed;
ALTER TABLE uploads ADD COLUMN in_group INTEGER NOT NULL DEFAULT 0;
"""

QUESTIONS: Final = """
CREATE TABLE questions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL, asked BLOB NOT NULL,
    status TEXT NOT NULL DEFAULT 'queued', number INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '', created_at REAL NOT NULL, answer TEXT NOT NULL DEFAULT ''
);
"""

# Script n takes a file from version n to n + 1. Append; never edit one that is there.
SCRIPTS: Final = (TABLES, GROUPS, audit_log.TABLES, QUESTIONS)
VERSION: Final = len(SCRIPTS)


def open_database(path: Path) -> sqlite3.Connection:
    """Open or make the file: write-ahead log, every commit on disk before it returns. Raises HomeRefused."""
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")  # round keys are deleted, not merely unlinked
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found > VERSION:
            raise HomeRefused(f"{path} has schema {found}, this version knows {VERSION}", "install the newer version")
        if found < VERSION:
            _migrate(connection)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise HomeRefused(f"{path} is not a usable database: {error}", "restore it from a copy") from error
    path.chmod(0o600)
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    """Run what is missing. The version is read again inside: another process may have come first."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        for statement in _statements("".join(SCRIPTS[found:])):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """One at a time: `executescript` would commit first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
