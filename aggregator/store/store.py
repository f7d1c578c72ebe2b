"""Reads and writes of the aggregator's state, in explicit transactions. Decides nothing and reads no clock.

A full disk comes out as DiskFull with the transaction undone. Every write outside a `transaction` is one of its own.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from aggregator.errors import DiskFull, HomeRefused
from aggregator.store.rows import RoundRow, SumRow, TaskRow, UploadRow

EVENTS_KEPT: Final = 5000
_TASK: Final = "name, spec, status, reason, created_at, checkpoint, heldout, not_before"
_ROUND: Final = (
    "task, number, phase, reason, frame, offer_hash, secret, epoch, opening_ends_at, phase_since, stats, waiting"
)
_UPLOAD: Final = "id, task, number, device, size, state, content_key, received, shares, at, in_group"


class Store:
    """The aggregator's tables on one connection, which the fleet's registry shares. Use it from one thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; a transaction within one belongs to the outer. Raises DiskFull where the disk is full."""
        if self.connection.in_transaction:
            yield
            return
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            yield
            self.connection.execute("COMMIT")
        except BaseException as error:
            with suppress(sqlite3.OperationalError):  # a full disk may have undone the transaction already
                self.connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
                raise DiskFull("the disk is full", "free space; devices send again", reason="disk-full") from error
            raise

    def _write(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> int:
        with self.transaction():
            return self.connection.execute(statement, values).rowcount

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        return self.connection.execute(statement, values).fetchall()

    def truncate_log(self) -> None:
        """Empty the write-ahead log, where a forgotten key would linger. Left for later while somebody reads."""
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # -- tasks

    def add_task(self, task: TaskRow) -> None:
        """Raises HomeRefused where the name is taken."""
        values = (task.name, task.spec, task.status, task.reason, task.created_at, task.checkpoint, task.heldout)
        try:
            self._write(f"INSERT INTO tasks ({_TASK}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*values, task.not_before))
        except sqlite3.IntegrityError as error:
            raise HomeRefused(f"there is a task {task.name!r} already", "choose another name") from error

    def tasks(self) -> list[TaskRow]:
        return [TaskRow(*row) for row in self._rows(f"SELECT {_TASK} FROM tasks ORDER BY name")]

    def task(self, name: str) -> TaskRow | None:
        return next((row for row in self.tasks() if row.name == name), None)

    def set_task(self, name: str, **columns: Any) -> None:
        """Change `status`, `reason`, `checkpoint`, `not_before` or `spec`."""
        self._set("tasks", columns, "name = :name", {"name": name})

    def _set(self, table: str, columns: Mapping[str, Any], where: str, keys: Mapping[str, Any]) -> None:
        # Column names are keyword arguments of our own code, never data.
        assignments = ", ".join(f"{column} = :new_{column}" for column in columns)
        values = {f"new_{column}": value for column, value in columns.items()}
        self._write(f"UPDATE {table} SET {assignments} WHERE {where}", {**values, **keys})

    # -- rounds

    def add_round(self, row: RoundRow) -> None:
        values = [getattr(row, name.strip()) for name in _ROUND.split(",")]
        values[-2] = json.dumps(row.stats)
        self._write(f"INSERT INTO rounds ({_ROUND}) VALUES ({', '.join('?' * len(values))})", values)

    def rounds(self, task: str | None = None, *, last: int = 1_000_000) -> list[RoundRow]:
        """The newest `last` rounds of a task (or of all), oldest first."""
        chosen = self._rows(
            f"SELECT {_ROUND} FROM rounds WHERE ?1 IS NULL OR task = ?1 ORDER BY number DESC, task LIMIT ?2", task, last
        )
        return [_round(row) for row in reversed(chosen)]

    def unfinished_rounds(self) -> list[RoundRow]:
        """Rounds that a restart must take up, those with a key not yet forgotten included."""
        rows = self._rows(
            f"SELECT {_ROUND} FROM rounds"
            " WHERE phase NOT IN ('released', 'aborted') OR secret IS NOT NULL ORDER BY task"
        )
        return [_round(row) for row in rows]

    def round(self, task: str, number: int) -> RoundRow:
        return _round(self._rows(f"SELECT {_ROUND} FROM rounds WHERE task = ? AND number = ?", task, number)[0])

    def last_number(self, task: str) -> int:
        """The highest round number ever given out for the task, 0 before the first."""
        return int(self._rows("SELECT coalesce(max(number), 0) FROM rounds WHERE task = ?", task)[0][0])

    def set_round(self, task: str, number: int, **columns: Any) -> None:
        if "stats" in columns:
            columns["stats"] = json.dumps(columns["stats"])
        self._set("rounds", columns, "task = :task AND number = :number", {"task": task, "number": number})

    # -- uploads

    def put_upload(self, row: UploadRow) -> None:
        """Insert an upload; an unfinished one of the same device and round goes (SPEC 9)."""
        with self.transaction():
            self._write(
                "DELETE FROM uploads WHERE task = ? AND number = ? AND device = ? AND state = 'receiving'",
                (row.task, row.number, row.device),
            )
            values = (row.id, row.task, row.number, row.device, row.size, row.state, row.content_key)
            self._write(
                f"INSERT INTO uploads ({_UPLOAD}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, row.received, row.shares, row.at, row.group),
            )

    def set_upload(self, upload: bytes, **columns: Any) -> None:
        self._set("uploads", columns, "id = :id", {"id": upload})

    def uploads(self, task: str, number: int, *states: str) -> list[UploadRow]:
        """Uploads of a round in any of the states, by device."""
        marks = ", ".join("?" * len(states))
        found = f"SELECT {_UPLOAD} FROM uploads WHERE task = ? AND number = ? AND state IN ({marks}) ORDER BY device"
        return [UploadRow(*row) for row in self._rows(found, task, number, *states)]

    def members(self, task: str, number: int) -> dict[str, int]:
        """The devices of every accepted upload of a round, in order, each with its group."""
        found = (
            "SELECT device, in_group FROM uploads WHERE task = ? AND number = ? AND state IN ('accepted', 'summed')"
            " ORDER BY device"
        )
        return dict(self._rows(found, task, number))

    def upload(self, upload: bytes) -> UploadRow | None:
        rows = self._rows(f"SELECT {_UPLOAD} FROM uploads WHERE id = ?", upload)
        return UploadRow(*rows[0]) if rows else None

    def forget_uploads(self, task: str, number: int) -> None:
        """Keep of a finished round who was in it, and nothing that they sent."""
        with self.transaction():
            where, keys = "task = ? AND number = ?", (task, number)
            self._write(f"UPDATE uploads SET shares = NULL, content_key = NULL WHERE {where}", keys)
            self._write(f"UPDATE uploads SET state = 'dropped' WHERE {where} AND state = 'receiving'", keys)
            self._write(f"DELETE FROM answers WHERE {where}", keys)
            self._write(f"DELETE FROM group_sums WHERE {where}", keys)

    # -- running sums

    def set_sum(self, task: str, number: int, row: SumRow) -> None:
        values = (task, number, row.group, row.snapshot, row.summed)
        self._write("INSERT OR REPLACE INTO group_sums VALUES (?, ?, ?, ?, ?)", values)

    def sums(self, task: str, number: int) -> list[SumRow]:
        """The durable sums of a round, by group."""
        found = "SELECT in_group, snapshot, summed FROM group_sums WHERE task = ? AND number = ? ORDER BY in_group"
        return [SumRow(*row) for row in self._rows(found, task, number)]

    # -- answers

    def add_answer(self, task: str, number: int, member: int, body: bytes) -> None:
        """Keep the first answer of a member; a repeat changes nothing."""
        self._write("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", (task, number, member, body))

    def answers(self, task: str, number: int) -> dict[int, bytes]:
        return dict(self._rows("SELECT member, body FROM answers WHERE task = ? AND number = ?", task, number))

    # -- checkpoints and releases

    def add_checkpoint(self, sha256: str, *, task: str, number: int, parent: str, metrics: Any, at: float) -> None:
        """The same checkpoint again changes nothing."""
        self._write(
            "INSERT OR IGNORE INTO checkpoints VALUES (?, ?, ?, ?, ?, ?)",
            (sha256, task, number, parent, json.dumps(metrics), at),
        )

    def set_metrics(self, sha256: str, metrics: Mapping[str, float]) -> None:
        self._write("UPDATE checkpoints SET metrics = ? WHERE sha256 = ?", (json.dumps(dict(metrics)), sha256))

    def release_of(self, task: str, number: int) -> int | None:
        """The version that a round released."""
        rows = self._rows("SELECT version FROM releases WHERE task = ? AND number = ?", task, number)
        return int(rows[0][0]) if rows else None

    def checkpoint(self, task: str, number: int) -> tuple[str, dict[str, float]] | None:
        """SHA-256 (hex) and metrics of a round's checkpoint."""
        rows = self._rows("SELECT sha256, metrics FROM checkpoints WHERE task = ? AND number = ?", task, number)
        return (rows[0][0], json.loads(rows[0][1])) if rows else None

    def is_averaged(self, task: str, sha256: str) -> bool:
        """Did a round of the task make this checkpoint? Not so for the model that it began with."""
        found = self._rows("SELECT 1 FROM checkpoints WHERE task = ? AND sha256 = ? AND number > 0", task, sha256)
        return bool(found)

    def parent(self, task: str, sha256: str) -> str:
        """SHA-256 (hex) of the checkpoint that a round of the task started from; empty for the task's first model."""
        rows = self._rows("SELECT parent FROM checkpoints WHERE task = ? AND sha256 = ?", task, sha256)
        return str(rows[0][0]) if rows else ""

    def lowest_checkpoint(self, task: str) -> int:
        """The least number of a task's checkpoints: 0 is its first model, and those below were made by no round."""
        return int(self._rows("SELECT COALESCE(MIN(number), 0) FROM checkpoints WHERE task = ?", task)[0][0])

    def averaged_rounds(self, task: str) -> int:
        """How many rounds have been opened into a checkpoint."""
        return int(self._rows("SELECT count(*) FROM checkpoints WHERE task = ? AND number > 0", task)[0][0])

    def uploaded_rounds(self, task: str, *, over: bool = False) -> int:
        """How many rounds took at least one upload, opened or not; `over`: without the one that still may open."""
        found = (
            "SELECT count(*) FROM rounds WHERE task = ? AND (NOT ? OR phase IN ('averaged', 'released', 'aborted')) AND"
            " EXISTS (SELECT 1 FROM uploads WHERE uploads.task = rounds.task AND uploads.number = rounds.number"
            " AND uploads.state IN ('accepted', 'summed'))"
        )
        return int(self._rows(found, task, over)[0][0])

    def add_release(
        self, task: str, version: int, *, number: int, sha256: str, metric: float | None, at: float
    ) -> None:
        self._write(
            "INSERT OR IGNORE INTO releases VALUES (?, ?, ?, ?, ?, ?)", (task, version, number, sha256, metric, at)
        )

    def last_release(self, task: str) -> tuple[int, int, str, float | None] | None:
        """(version, round, SHA-256 in hex, metric) of the newest release."""
        rows = self._rows(
            "SELECT version, number, sha256, metric FROM releases WHERE task = ? ORDER BY version DESC LIMIT 1", task
        )
        return tuple(rows[0]) if rows else None

    # -- what the operator sees

    def count_refusals(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Add to the counters by (kind, reason)."""
        with self.transaction():
            for (kind, reason), count in counts.items():
                self._write(
                    "INSERT INTO refusals VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
                    (kind, reason, count),
                )

    def refusals(self) -> dict[tuple[str, str], int]:
        return {(kind, reason): count for kind, reason, count in self._rows("SELECT * FROM refusals")}

    def see(self, seen: Mapping[str, tuple[float, str, Mapping[str, str]]]) -> None:
        """Write who was heard from: device -> (when, phase, task -> SHA-256 in hex of its model)."""
        with self.transaction():
            for device, (at, phase, active) in seen.items():
                values = (device, at, phase, json.dumps(dict(active)))
                self._write("INSERT OR REPLACE INTO presence VALUES (?, ?, ?, ?)", values)

    def presence(self) -> dict[str, tuple[float, str, dict[str, str]]]:
        rows = self._rows("SELECT device, seen_at, phase, active FROM presence")
        return {device: (at, phase, json.loads(active)) for device, at, phase, active in rows}

    def log(self, at: float, kind: str, task: str, number: int, **data: Any) -> None:
        """Append an event for whoever watches; old ones go."""
        with self.transaction():
            values = (at, kind, task, number, json.dumps(data))
            self._write("INSERT INTO events (at, kind, task, number, data) VALUES (?, ?, ?, ?, ?)", values)
            self._write("DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?", (EVENTS_KEPT,))

    def events(self, after: int = 0) -> list[tuple[int, float, str, str, int, dict[str, Any]]]:
        """(id, at, kind, task, round, data) of every event with a higher id, oldest first."""
        rows = self._rows("SELECT id, at, kind, task, number, data FROM events WHERE id > ? ORDER BY id", after)
        return [(*row[:5], json.loads(row[5])) for row in rows]

    def set_value(self, key: str, value: Any) -> None:
        self._write("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, json.dumps(value)))

    def value(self, key: str) -> Any:
        """The value under a key, None where there is none."""
        rows = self._rows("SELECT value FROM kv WHERE key = ?", key)
        return json.loads(rows[0][0]) if rows else None


def _round(row: Sequence[Any]) -> RoundRow:
    values = [*row]
    values[-2] = json.loads(row[-2])
    return RoundRow(*values)
