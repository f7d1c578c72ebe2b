"""What each task has spent of a unit's privacy, kept in SQLite. Refuses to overspend (BudgetSpent).

Never commits: a charge belongs to the transaction that releases what it pays for. One round of a task is
charged once per unit, however often it is retried; a second, different charge for it is refused. What an earlier
installation of the device had spent is carried in as round 0 (SPEC 7.8) and counts like everything else. A budget is
held against all units of a task together: a record is inside a customer, and a customer inside a device.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from edge_sdk.privacy.accounting import ACCOUNTANT_VERSION, Spend, compose, epsilon
from edge_sdk.privacy.curves import LedgerError, above, pack, unpack
from edge_sdk.protocol.messages import PrivacyTerms, SpentEntry

__all__ = ["CARRIED", "MOST_ENTRIES", "BudgetSpent", "Ledger", "LedgerError", "Under"]

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
    # The terms that were charged under, each with the newest round: what a figure means, once its offers are gone.
    """CREATE TABLE IF NOT EXISTS privacy_terms (
        task TEXT NOT NULL, unit TEXT NOT NULL, terms BLOB NOT NULL, n_min INTEGER NOT NULL, round INTEGER NOT NULL,
        PRIMARY KEY (task, unit, terms, n_min)
    ) WITHOUT ROWID""",
)


class Under(NamedTuple):
    """What a round was charged under. `n_min`: the smallest cohort that its offer let be opened."""

    terms: PrivacyTerms
    n_min: int


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
        return _total(rows)

    def of_task(self, task: str) -> Spend:
        """Everything charged so far for any unit of the task: a bound for each of them, for the smallest above all."""
        return _total(
            self._connection.execute(
                "SELECT accountant, spend, count(*) FROM privacy_spends WHERE task = ? GROUP BY accountant, spend",
                (task,),
            )
        )

    def rounds(self, task: str, unit: str) -> list[int]:
        """The rounds charged by this installation, in order."""
        rows = self._connection.execute(
            "SELECT round FROM privacy_spends WHERE task = ? AND unit = ? AND round > ? ORDER BY round",
            (task, unit, CARRIED),
        )
        return [number for (number,) in rows]

    def counts(self, task: str, unit: str) -> tuple[int, int]:
        """(rounds charged in all, those of them that an earlier installation had charged)."""
        carried, _ = self._carried(task, unit)
        return len(self.rounds(task, unit)) + carried, carried

    def under(self, task: str, unit: str) -> Under | None:
        """The terms that a figure of the task and unit must be read by: the delta of the newest charge, and of all
        charges the placement that promises least and needs the largest share of honest devices.

        None where no charge of this installation is known with its terms.
        """
        rows = self._connection.execute(
            "SELECT terms, n_min FROM privacy_terms WHERE task = ? AND unit = ? ORDER BY round DESC", (task, unit)
        ).fetchall()
        found = [Under(msgspec.msgpack.decode(blob, type=PrivacyTerms), n_min) for blob, n_min in rows]
        if not found:
            return None
        weakest = max(found, key=lambda u: (u.terms.placement == "shared", u.terms.honest / max(1, u.n_min)))
        return weakest._replace(terms=msgspec.structs.replace(weakest.terms, delta=found[0].terms.delta))

    def epsilon(self, task: str, unit: str, delta: float) -> float:
        """Epsilon spent so far at `delta`; 0.0 before the first charge."""
        return epsilon(self.spent(task, unit), delta)

    def check(
        self, task: str, unit: str, spend: Spend, budget_epsilon: float, delta: float, *, basis: str = ""
    ) -> None:
        """Raise BudgetSpent where `spend` on top of all that the task was charged exceeds the budget at `delta`.

        For every unit all units' charges count: an offer of another unit starts no new budget for the same people.
        `basis`: what the figures mean (statement.basis), for the message.
        """
        spent = self.of_task(task)
        after = epsilon(compose([spent, spend]), delta)
        if after <= budget_epsilon:
            return
        now = epsilon(spent, delta)
        basis = basis or f"for each {unit}, delta {delta:g}; Renyi, version {ACCOUNTANT_VERSION}"
        raise BudgetSpent(
            "budget-spent",
            f"task {task!r} has spent epsilon {now:.3f} of {budget_epsilon:g} ({basis}; charges of all units of the "
            f"task together), {max(0.0, budget_epsilon - now):.3f} is left, and this round would bring it to "
            f"{after:.3f}: wait for a round with more noise or fewer steps, or have the privacy officer raise the "
            "budget",
        )

    def charge(self, task: str, unit: str, round_number: int, spend: Spend, under: Under | None = None) -> bool:
        """Enter the spend inside the caller's transaction; False where this very charge is already there.

        `under`: its terms, kept for whoever shows the figure.
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
            if under is not None:
                self._keep(key, under)
            return True
        if row[0] != blob:
            raise LedgerError(
                "charged-differently",
                f"round {round_number} of {task!r} is already charged with another spend for each {unit}: "
                "resend the update that was paid for, or skip to the next round",
            )
        return False

    def _keep(self, key: tuple[str, str, int], under: Under) -> None:
        task, unit, number = key
        self._connection.execute(
            "INSERT INTO privacy_terms VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " round = max(round, excluded.round)",
            (task, unit, msgspec.msgpack.encode(under.terms), under.n_min, number),
        )

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
        carried = self._carried(task, unit)
        curve = pack(self.spent(task, unit))
        rounds, last = rounds + carried[0], max(last, carried[1])
        return SpentEntry(task, unit, rounds, last, ACCOUNTANT_VERSION, curve)  # type: ignore[arg-type] # a unit's name

    def _carried(self, task: str, unit: str) -> tuple[int, int]:
        """(rounds, the last of them) of an earlier installation."""
        row = self._connection.execute(
            "SELECT rounds, last_round FROM privacy_carried WHERE task = ? AND unit = ?", (task, unit)
        ).fetchone()
        return (int(row[0]), int(row[1])) if row else (0, 0)

    def place(self) -> int:
        """A number that grows with every charge: whoever told the ledger asks whether there is more to tell."""
        return int(self._connection.execute("SELECT coalesce(max(place), 0) FROM privacy_newest").fetchone()[0])


def _total(rows: Iterable[tuple[int, bytes, int]]) -> Spend:
    return compose(tuple(n * value for value in unpack(version, blob)) for version, blob, n in rows)
