"""What each task has spent of a unit's privacy, kept in SQLite. Refuses to overspend (BudgetSpent).

Never commits: a charge belongs to the transaction that releases what it pays for. One round of a task is
charged once per unit, however often it is retried; a second, different charge for it is refused.
"""

from __future__ import annotations

import math
import sqlite3
import struct
from typing import Final

from edge_sdk.privacy.accounting import ACCOUNTANT_VERSION, NOTHING, ORDERS, Spend, compose, epsilon

_FORMAT: Final = f"<{len(ORDERS)}d"
_TABLE: Final = """
CREATE TABLE IF NOT EXISTS privacy_spends (
    task TEXT NOT NULL,
    unit TEXT NOT NULL,
    round INTEGER NOT NULL,
    accountant INTEGER NOT NULL,
    spend BLOB NOT NULL,
    PRIMARY KEY (task, unit, round)
) WITHOUT ROWID
"""


class LedgerError(Exception):
    """The ledger cannot vouch for this charge. `reason` is a kebab-case word for counters and logs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BudgetSpent(LedgerError):
    """The spend would take the unit over its budget."""


class Ledger:
    """One privacy ledger over the caller's connection, whose transactions it takes part in."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Makes the table where it is missing."""
        self._connection = connection
        connection.execute(_TABLE)

    def spent(self, task: str, unit: str) -> Spend:
        """Everything charged so far, as Renyi divergences at accounting.ORDERS."""
        rows = self._connection.execute(
            "SELECT accountant, spend FROM privacy_spends WHERE task = ? AND unit = ?", (task, unit)
        )
        return compose(_unpack(version, blob) for version, blob in rows)

    def rounds(self, task: str, unit: str) -> list[int]:
        """The rounds charged, in order."""
        rows = self._connection.execute(
            "SELECT round FROM privacy_spends WHERE task = ? AND unit = ? ORDER BY round", (task, unit)
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

        Raises LedgerError where the round was charged a different spend, or the spend is not one.
        """
        blob = _pack(spend)
        key = (task, unit, round_number)
        row = self._connection.execute(
            "SELECT spend FROM privacy_spends WHERE task = ? AND unit = ? AND round = ?", key
        ).fetchone()
        if row is None:
            values = (*key, ACCOUNTANT_VERSION, blob)
            self._connection.execute("INSERT INTO privacy_spends VALUES (?, ?, ?, ?, ?)", values)
            return True
        if row[0] != blob:
            raise LedgerError(
                "charged-differently",
                f"round {round_number} of {task!r} is already charged with another spend for each {unit}: "
                "resend the update that was paid for, or skip to the next round",
            )
        return False


def _pack(spend: Spend) -> bytes:
    if len(spend) != len(NOTHING) or any(math.isnan(value) or value < 0 for value in spend):
        raise LedgerError("not-a-spend", f"a spend is {len(NOTHING)} divergences of at least 0")
    return struct.pack(_FORMAT, *spend)


def _unpack(version: int, blob: bytes) -> Spend:
    if version != ACCOUNTANT_VERSION or len(blob) != struct.calcsize(_FORMAT):
        raise LedgerError("accountant-version", f"a spend was written by accountant {version}: update the software")
    return tuple(struct.unpack(_FORMAT, blob))
