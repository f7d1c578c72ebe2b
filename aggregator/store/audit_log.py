"""The audit log's tables: entries, signed heads, and the heads that devices have witnessed. Nothing is ever changed.

An entry is appended inside the transaction of what it records, so that there is neither without the other; whoever has
the transaction, this process or another, reads the last head inside it. Refuses to append outside of one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Final

from edge_sdk.protocol import hashlog
from edge_sdk.protocol.errors import LocalProtocolError, MalformedMessage
from edge_sdk.protocol.hashlog import Evidence, Row, Value
from edge_sdk.protocol.messages import LogHead

TABLES: Final = """
CREATE TABLE IF NOT EXISTS audit_log (n INTEGER PRIMARY KEY, entry BLOB NOT NULL, head BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS audit_heads (
    size INTEGER PRIMARY KEY, head BLOB NOT NULL, time INTEGER NOT NULL, signature BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS audit_witnesses (
    device TEXT NOT NULL, lost INTEGER NOT NULL, size INTEGER NOT NULL, head BLOB NOT NULL, time INTEGER NOT NULL,
    signature BLOB NOT NULL, PRIMARY KEY (device, lost)
);
"""
_HEAD: Final = "size, head, time, signature"


def append(
    connection: sqlite3.Connection, at: float, kind: str, task: str = "", number: int = 0, /, **data: Value
) -> None:
    """Append an entry, in the caller's transaction. Raises LocalProtocolError where there is none."""
    if not connection.in_transaction:
        raise LocalProtocolError("an audit entry belongs into a transaction", reason="transaction")
    row = hashlog.following(last(connection), at=at, kind=kind, task=task, number=number, data=data)
    connection.execute("INSERT INTO audit_log (n, entry, head) VALUES (?, ?, ?)", row)


def last(connection: sqlite3.Connection) -> tuple[int, bytes]:
    """Number and head of the newest entry."""
    row = connection.execute("SELECT n, head FROM audit_log ORDER BY n DESC LIMIT 1").fetchone()
    return (int(row[0]), bytes(row[1])) if row else (0, hashlog.START)


def rows(connection: sqlite3.Connection, since: int = 0) -> Iterator[Row]:
    """Every row after number `since`, oldest first."""
    # As bytes, whatever somebody has made of them.
    found = "SELECT n, CAST(entry AS BLOB), CAST(head AS BLOB) FROM audit_log WHERE n > ? ORDER BY n"
    return map(Row._make, connection.execute(found, (since,)))


def unsigned(connection: sqlite3.Connection, signed: int) -> tuple[int, int]:
    """How many entries there are after number `signed`, and the Unix time of the first of them, 0 where it has none."""
    query = "SELECT count(*), CAST(entry AS BLOB), min(n) FROM audit_log WHERE n > ?"
    count, entry, _ = connection.execute(query, (signed,)).fetchone()
    try:
        return int(count), hashlog.read(entry).at if count else 0
    except MalformedMessage:
        return int(count), 0


def contains(connection: sqlite3.Connection, head: LogHead) -> bool:
    """Does the log, as it is kept, go through this head?"""
    if head.size == 0:
        return head.head == hashlog.START
    row = connection.execute("SELECT head FROM audit_log WHERE n = ?", (head.size,)).fetchone()
    return row is not None and row[0] == head.head


def keep_head(connection: sqlite3.Connection, head: LogHead) -> None:
    """Keep a signed head. One of a size that has one already changes nothing."""
    values = (head.size, head.head, head.time, head.signature)
    connection.execute(f"INSERT OR IGNORE INTO audit_heads ({_HEAD}) VALUES (?, ?, ?, ?)", values)


def newest_head(connection: sqlite3.Connection) -> LogHead | None:
    row = connection.execute(f"SELECT {_HEAD} FROM audit_heads ORDER BY size DESC LIMIT 1").fetchone()
    return LogHead(*row) if row else None


def heads(connection: sqlite3.Connection) -> list[Evidence]:
    """Every signed head that this side keeps."""
    found = connection.execute(f"SELECT {_HEAD} FROM audit_heads ORDER BY size")
    return [Evidence(LogHead(*row), "checkpoint") for row in found]


def keep_witness(connection: sqlite3.Connection, device: str, head: LogHead, *, lost: bool) -> bool:
    """Keep the newest head that a device has seen, and apart from it the largest that this log does not hold.

    True where that is news of a lost head.
    """
    values = (device, lost, head.size, head.head, head.time, head.signature)
    changed = connection.execute(
        f"INSERT INTO audit_witnesses (device, lost, {_HEAD}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (device, lost)"
        " DO UPDATE SET size = excluded.size, head = excluded.head, time = excluded.time,"
        " signature = excluded.signature WHERE excluded.size > size",
        values,
    ).rowcount
    return lost and changed > 0


def witnessed(connection: sqlite3.Connection) -> list[Evidence]:
    """Every head that devices have sent back."""
    found = connection.execute(f"SELECT device, {_HEAD} FROM audit_witnesses ORDER BY size, device")
    return [Evidence(LogHead(*row[1:]), f"witnessed by {row[0]}") for row in found]
