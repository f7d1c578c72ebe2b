"""What each task has spent of a unit's privacy, kept in SQLite. Refuses to overspend (BudgetSpent).

Never commits: a charge belongs to the transaction that releases what it pays for. One round of a task is
charged once per unit, however often it is retried; a second, different charge for it is refused. What an earlier
installation of the device had spent is carried in as round 0 (SPEC 7.8) and counts like everything else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Final

from edge_sdk.privacy.accounting import ACCOUNTANT_VERSION, Spend, compose, epsilon
from edge_sdk.privacy.curves import LedgerError, above, pack, unpack
from edge_sdk.protocol.messages import SpentEntry

__all__ = ["CARRIED", "MOST_ENTRIES", "BudgetSpent", "Ledger", "LedgerError"]

CARRIED: Final = 0  # the round that an earlier installation's spend is kept under; offers begin at 1
MOST_ENTRIES: Final = 24  # of a Spent message
_TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS privacy_spends (
        task TEXT NOT NULL,
        unit TEXT NOT NULL,
        round INTEGER NOT NULL,
        accountant INTEGER NOT NULL,
        spend BLOB NOT NULL,
        PRIMARY KEY (task, unit, round)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS privacy_carried (
        task TEXT NOT NULL, unit TEXT NOT NULL, rounds INTEGER NOT NULL, last_round INTEGER NOT NULL,
        PRIMARY KEY (task, unit)
    ) WITHOUT ROWID""",
    # Which tasks were charged last, for a message that has room for the newest alone.
    "CREATE TABLE IF NOT EXISTS privacy_newest (task TEXT PRIMARY KEY, place INTEGER NOT NULL)",
)


class BudgetSpent(LedgerError):
    """The spend would take the unit over its budget."""


class Ledger:
    """One privacy ledger over the caller's connection, whose transactions it takes part in."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Makes the tables where they are missing."""
        self._connection = connection
        for table in _TABLES:
            connection.execute(table)

    def spent(self, task: str, unit: str) -> Spend:
        """Everything charged so far, as Renyi divergences at accounting.ORDERS."""
        rows = self._connection.execute(
            "SELECT accountant, spend, count(*) FROM privacy_spends WHERE task = ? AND unit = ?"
            " GROUP BY accountant, spend",
            (task, unit),
        )
        return compose(tuple(n * value for value in unpack(version, blob)) for version, blob, n in rows)

    def rounds(self, task: str, unit: str) -> list[int]:
        """The rounds charged by this installation, in order."""
        rows = self._connection.execute(
            "SELECT round FROM privacy_spends WHERE task = ? AND unit = ? AND round > ? ORDER BY round",
            (task, unit, CARRIED),
        )
        return [number for (number,) in rows]

    def epsilon(self, task: str, unit: str, delta: float) -> float:
        """Epsilon spent so far at `delta`; 0.0 before the first charge."""
        return epsilon(self.spent(task, unit), delta)

    def check(self, task: str, unit: str, spend: Spend, budget_epsilon: float, delta: float) -> None:
        """Raise BudgetSpent where `spend` on top of what is charged exceeds `budget_epsilon` at `delta`."""
        spent = self.spent(task, unit)
        after = epsilon(compose([spent, spend]), delta)
        if after <= budget_epsilon:
            return
        now = epsilon(spent, delta)
        raise BudgetSpent(
            "budget-spent",
            f"task {task!r} has spent epsilon {now:.3f} of {budget_epsilon:g} for each {unit} (delta {delta:g}), "
            f"{max(0.0, budget_epsilon - now):.3f} is left, and this round would bring it to {after:.3f}: "
            "wait for a round with more noise or fewer steps, or have the privacy officer raise the budget",
        )

    def charge(self, task: str, unit: str, round_number: int, spend: Spend) -> bool:
        """Enter the spend inside the caller's transaction; False where this very charge is already there.

        Raises LedgerError where the round was charged a different spend, or is no round, or the spend is none.
        """
        blob = pack(spend)
        if round_number <= CARRIED:
            raise LedgerError("round", f"round {round_number} of {task!r}: rounds begin at 1")
        key = (task, unit, round_number)
        row = self._connection.execute(
            "SELECT spend FROM privacy_spends WHERE task = ? AND unit = ? AND round = ?", key
        ).fetchone()
        if row is None:
            values = (*key, ACCOUNTANT_VERSION, blob)
            self._connection.execute("INSERT INTO privacy_spends VALUES (?, ?, ?, ?, ?)", values)
            self._connection.execute(
                "INSERT OR REPLACE INTO privacy_newest SELECT ?, coalesce(max(place), 0) + 1 FROM privacy_newest",
                (task,),
            )
            return True
        if row[0] != blob:
            raise LedgerError(
                "charged-differently",
                f"round {round_number} of {task!r} is already charged with another spend for each {unit}: "
                "resend the update that was paid for, or skip to the next round",
            )
        return False

    # -- across installations --------------------------------------------------------------------------------------

    def carry(self, entries: Iterable[SpentEntry]) -> None:
        """Raise what is spent to at least what the fleet states of an earlier life; a repeat changes nothing.

        Belongs into a transaction of the caller's, before anything is charged. Raises LedgerError for a curve that this
        accountant cannot read: a device that does not know what it spent must not spend more.
        """
        for entry in entries:
            stated = unpack(entry.accountant, entry.curve)
            key = (entry.task, entry.unit)
            missing = above(stated, self.spent(*key))
            if not any(missing):
                continue
            before = self._connection.execute(
                "SELECT accountant, spend FROM privacy_spends WHERE task = ? AND unit = ? AND round = ?",
                (*key, CARRIED),
            ).fetchone()
            carried = compose([unpack(*before), missing]) if before else missing
            self._connection.execute(
                "INSERT OR REPLACE INTO privacy_spends VALUES (?, ?, ?, ?, ?)",
                (*key, CARRIED, ACCOUNTANT_VERSION, pack(carried)),
            )
            rounds = max(0, entry.rounds - len(self.rounds(*key)))
            self._connection.execute(
                "INSERT INTO privacy_carried VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " rounds = max(rounds, excluded.rounds), last_round = max(last_round, excluded.last_round)",
                (*key, rounds, entry.last_round),
            )

    def entries(self) -> tuple[SpentEntry, ...]:
        """The whole ledger as it is told to the aggregator; of more than MOST_ENTRIES the tasks charged last."""
        keys = self._connection.execute(
            "SELECT DISTINCT s.task, s.unit, coalesce(n.place, 0) AS place FROM privacy_spends s"
            " LEFT JOIN privacy_newest n ON n.task = s.task ORDER BY place DESC, s.task, s.unit LIMIT ?",
            (MOST_ENTRIES,),
        ).fetchall()
        return tuple(self._entry(task, unit) for task, unit, _ in keys)

    def _entry(self, task: str, unit: str) -> SpentEntry:
        rounds, last = self._connection.execute(
            "SELECT count(*), coalesce(max(round), 0) FROM privacy_spends WHERE task = ? AND unit = ? AND round > ?",
            (task, unit, CARRIED),
        ).fetchone()
        carried = self._connection.execute(
            "SELECT rounds, last_round FROM privacy_carried WHERE task = ? AND unit = ?", (task, unit)
        ).fetchone() or (0, 0)
        curve = pack(self.spent(task, unit))
        rounds, last = rounds + carried[0], max(last, carried[1])
        return SpentEntry(task, unit, rounds, last, ACCOUNTANT_VERSION, curve)  # type: ignore[arg-type] # a unit's name

    def place(self) -> int:
        """A number that grows with every charge: whoever told the ledger asks whether there is more to tell."""
        return int(self._connection.execute("SELECT coalesce(max(place), 0) FROM privacy_newest").fetchone()[0])
