"""What every model and every device has spent, entered in the transaction that spends it (SPEC 7.8).

A round's cost is known when it is offered; the model is charged when its sum can be read, used or not, a device when
its upload is accepted. What a device says of its own ledger is kept, compared with ours and with what it said before,
and given back when the device is enrolled anew.
Refuses (TaskRefused) a round that would take a task over its budget. Reads no clock.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import sqlite3
from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple

from aggregator.errors import HomeRefused, TaskRefused
from edge_sdk.privacy import accounting, charges, statement
from edge_sdk.privacy.accounting import ACCOUNTANT_VERSION, NOTHING, Spend
from edge_sdk.privacy.curves import LedgerError, at_most, largest, pack, unpack
from edge_sdk.privacy.ledger import MOST_ENTRIES
from edge_sdk.protocol.codec import PREFIX_BYTES, SIGNATURE_BYTES
from edge_sdk.protocol.codec import pack as pack_message
from edge_sdk.protocol.codec import unpack as unpack_message
from edge_sdk.protocol.enrolment import MOST_STATED
from edge_sdk.protocol.errors import MalformedMessage, UnexpectedMessage
from edge_sdk.protocol.messages import Offer, PrivacyTerms, Spent, SpentEntry

log = logging.getLogger(__name__)
SEEN: Final = 64  # messages of a device that are known again
COUNTER_BACK: Final = "counter-back"
Source = Literal["accepted", "reported", "carried"]
SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS curves (digest BLOB PRIMARY KEY, accountant INTEGER NOT NULL, spend BLOB NOT NULL)",
    """CREATE TABLE IF NOT EXISTS round_charges (
        task TEXT NOT NULL, number INTEGER NOT NULL, unit TEXT NOT NULL, delta REAL NOT NULL, curve BLOB NOT NULL,
        offered_at REAL NOT NULL, opened_at REAL, PRIMARY KEY (task, number))""",
    # source: accepted (of its uploads, here), reported (by the device), carried (stated at its enrolment)
    """CREATE TABLE IF NOT EXISTS device_spends (
        device TEXT NOT NULL, task TEXT NOT NULL, unit TEXT NOT NULL, source TEXT NOT NULL, rounds INTEGER NOT NULL,
        last_round INTEGER NOT NULL, accountant INTEGER NOT NULL, spend BLOB NOT NULL,
        PRIMARY KEY (device, task, unit, source)) WITHOUT ROWID""",
    # Of its accepted uploads, since it was last enrolled: what goes on top of what was stated to it then.
    """CREATE TABLE IF NOT EXISTS accepted_since (
        device TEXT NOT NULL, task TEXT NOT NULL, unit TEXT NOT NULL, rounds INTEGER NOT NULL,
        accountant INTEGER NOT NULL, spend BLOB NOT NULL, PRIMARY KEY (device, task, unit)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS spent_frames (
        device TEXT PRIMARY KEY, counter INTEGER NOT NULL, at REAL NOT NULL, frame BLOB NOT NULL)""",
    # The newest messages, so that one that is only delivered again is told from one of a restored disk.
    """CREATE TABLE IF NOT EXISTS spent_seen (
        device TEXT NOT NULL, counter INTEGER NOT NULL, digest BLOB NOT NULL,
        PRIMARY KEY (device, counter, digest)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS ledger_alarms (
        device TEXT NOT NULL, task TEXT NOT NULL, unit TEXT NOT NULL, kind TEXT NOT NULL, since REAL NOT NULL,
        at REAL NOT NULL, times INTEGER NOT NULL, standing INTEGER NOT NULL, detail TEXT NOT NULL,
        PRIMARY KEY (device, task, unit, kind))""",
)


class Account(NamedTuple):
    """What one device has spent of one task and unit, by one source."""

    device: str
    task: str
    unit: str
    source: Source
    rounds: int
    last_round: int
    accountant: int
    spend: bytes


class Alarm(NamedTuple):
    """A difference between a device's ledger and ours. `standing`: its newest message still shows it."""

    device: str
    task: str
    unit: str
    kind: str
    since: float
    at: float
    times: int
    standing: bool
    detail: str


class ModelSpend(NamedTuple):
    """What the opened sums of a task have spent."""

    task: str
    unit: str
    delta: float
    rounds: int
    spend: Spend

    @property
    def epsilon(self) -> float:
        return accounting.epsilon(self.spend, self.delta)


@functools.lru_cache(maxsize=256)
def cost(terms: PrivacyTerms, length: int) -> Spend:
    """What one round of these terms spends; nothing is claimed, so nothing charged, without noise."""
    return NOTHING if terms.insecure_without_noise else charges.spend(terms, length)


class Ledger:
    """The ledgers of one fleet over a connection whose transactions it takes part in."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Makes the tables where they are missing."""
        self._db = connection
        for table in SCHEMA:
            connection.execute(table)

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        return self._db.execute(statement, values).fetchall()

    # -- models

    def offered(self, task: str, number: int, terms: PrivacyTerms, length: int, at: float) -> None:
        """Enter what a round will cost; in the transaction that makes the round."""
        spend = pack(cost(terms, length))
        digest = hashlib.sha256(ACCOUNTANT_VERSION.to_bytes(4, "big") + spend).digest()
        self._db.execute("INSERT OR IGNORE INTO curves VALUES (?, ?, ?)", (digest, ACCOUNTANT_VERSION, spend))
        row = (task, number, terms.unit, terms.delta, digest, at)
        self._db.execute("INSERT OR IGNORE INTO round_charges VALUES (?, ?, ?, ?, ?, ?, NULL)", row)

    def opened(self, task: str, number: int, at: float) -> bool:
        """Charge the model, once; False where it was. In the transaction that keeps what became of the sum."""
        charge = "UPDATE round_charges SET opened_at = ? WHERE task = ? AND number = ? AND opened_at IS NULL"
        return self._db.execute(charge, (at, task, number)).rowcount > 0

    def is_opened(self, task: str, number: int) -> bool:
        """Was the model charged for this round?"""
        found = "SELECT 1 FROM round_charges WHERE task = ? AND number = ? AND opened_at IS NOT NULL"
        return bool(self._rows(found, task, number))

    def model(self, task: str) -> ModelSpend | None:
        """What the task's opened sums have spent; None before its first offer. Of several units, that of the last."""
        newest = self._rows("SELECT unit, delta FROM round_charges WHERE task = ? ORDER BY number DESC LIMIT 1", task)
        if not newest:
            return None
        unit, delta = newest[0]
        count, spend = self._sum("task = ? AND unit = ? AND opened_at IS NOT NULL", task, unit)
        return ModelSpend(task, unit, delta, count, spend)

    def epsilon(self, task: str) -> float:
        """Epsilon that the task's opened sums have spent, at its delta; 0.0 before the first."""
        spent = self.model(task)
        return 0.0 if spent is None else spent.epsilon

    def by_round(self, task: str) -> list[tuple[int, float, float]]:
        """(round, when it was opened, epsilon spent up to and with it), for every opened sum of the newest unit."""
        newest = self.model(task)
        if newest is None:
            return []
        found, spent = [], NOTHING
        for number, at, accountant, spend in self._rows(
            "SELECT number, opened_at, accountant, spend FROM round_charges JOIN curves ON curves.digest = curve"
            " WHERE task = ? AND unit = ? AND opened_at IS NOT NULL ORDER BY opened_at, number",
            *(task, newest.unit),
        ):
            spent = accounting.compose([spent, unpack(accountant, spend)])
            found.append((number, at, accounting.epsilon(spent, newest.delta)))
        return found

    def epsilon_with(self, task: str, terms: PrivacyTerms, length: int, number: int = 0) -> tuple[int, float]:
        """(rounds, epsilon) once another round, of these terms, is opened too: `number`, which may be charged already
        because a first try at its sum was refused."""
        others = "task = ? AND unit = ? AND opened_at IS NOT NULL AND number != ?"
        count, spent = self._sum(others, task, terms.unit, number)
        return count + 1, accounting.epsilon(accounting.compose([spent, cost(terms, length)]), terms.delta)

    def _sum(self, where: str, *values: Any) -> tuple[int, Spend]:
        """(how many rounds, their spends together) of the round charges that fit."""
        rows = self._rows(
            "SELECT accountant, spend, count(*) FROM round_charges JOIN curves ON curves.digest = curve"
            f" WHERE {where} GROUP BY curve",
            *values,
        )
        total = accounting.compose(tuple(n * value for value in unpack(by, spend)) for by, spend, n in rows)
        return sum(n for _, _, n in rows), total

    def check_budget(self, task: str, terms: PrivacyTerms, length: int, budget: float | None, n_min: int) -> None:
        """Refuse, before it is offered, the round that would overspend the budget. Raises TaskRefused "spent"."""
        if budget is None or terms.insecure_without_noise:
            return
        _, spent = self._sum("task = ? AND unit = ? AND opened_at IS NOT NULL", task, terms.unit)
        now, after = accounting.epsilon(spent, terms.delta), self.epsilon_with(task, terms, length)[1]
        if not at_most(after, budget):
            raise TaskRefused(
                f"the budget is spent: epsilon {now:.4g} of {budget:g}, and another round would bring it to "
                f"{after:.4g} ({statement.basis(terms, n_min)})",
                "create a task of another name with more noise, fewer steps or a budget that the privacy officer "
                "has agreed to; its spend adds to this one's where the same people are learnt from",
                reason="spent",
            )

    # -- devices: what we accepted from them

    def accepted(self, device: str, task: str, number: int) -> None:
        """Charge a device for its upload; once, in the transaction that accepts it."""
        rows = self._rows(
            "SELECT unit, accountant, spend FROM round_charges JOIN curves ON curves.digest = curve"
            " WHERE task = ? AND number = ?",
            *(task, number),
        )
        if not rows:
            return
        unit, accountant, spend = rows[0]
        if not any(unpack(accountant, spend)):
            return
        one = Account(device, task, unit, "accepted", 1, number, ACCOUNTANT_VERSION, spend)
        before = self._account(device, task, unit, "accepted")
        self._put(one if before is None else _together(before, one))
        since = self._since(device).get((task, unit))
        total = one if since is None else _together(since, one)
        row = (device, task, unit, total.rounds, total.accountant, total.spend)
        self._db.execute("INSERT OR REPLACE INTO accepted_since VALUES (?, ?, ?, ?, ?, ?)", row)

    def _since(self, device: str) -> dict[tuple[str, str], Account]:
        """What was accepted from a device since it was last enrolled."""
        found = "SELECT task, unit, rounds, accountant, spend FROM accepted_since WHERE device = ?"
        return {
            (task, unit): Account(device, task, unit, "accepted", rounds, 0, accountant, spend)
            for task, unit, rounds, accountant, spend in self._rows(found, device)
        }

    def accounts(self, device: str | None = None, task: str | None = None) -> list[Account]:
        """Every account, by device, task, unit and source."""
        where = "?1 IS NULL" if device is None else "device = ?1"
        found = f"SELECT * FROM device_spends WHERE {where} AND (?2 IS NULL OR task = ?2) ORDER BY 1, 2, 3, 4"
        return [Account(*row) for row in self._rows(found, device, task)]

    def _account(self, device: str, task: str, unit: str, source: Source) -> Account | None:
        found = "SELECT * FROM device_spends WHERE device = ? AND task = ? AND unit = ? AND source = ?"
        return next((Account(*row) for row in self._rows(found, device, task, unit, source)), None)

    def _put(self, account: Account) -> None:
        self._db.execute("INSERT OR REPLACE INTO device_spends VALUES (?, ?, ?, ?, ?, ?, ?, ?)", account)

    # -- devices: what they say of themselves

    def report(self, device: str, spent: Spent, frame: bytes, *, enrolled_at: float, now: float) -> list[Alarm]:
        """Keep a device's ledger and compare it with ours; in a transaction. Returns the alarms that are new.

        A counter that does not grow is an alarm: the device signed another message under it, or a later one, before.
        What it said before is kept where it was more. Raises UnexpectedMessage "repeat" for a message that is only
        delivered again, MalformedMessage "body" for a curve that is none.
        """
        digest = hashlib.sha256(pack_message(spent)).digest()
        seen = "SELECT 1 FROM spent_seen WHERE device = ? AND counter = ? AND digest = ?"
        if self._rows(seen, device, spent.counter, digest):
            raise UnexpectedMessage(f"counter {spent.counter} was seen", reason="repeat")
        _check_curves(spent)
        before = {(a.task, a.unit): a for a in self.accounts(device) if a.source == "reported"}
        back = self._keep(device, spent, frame, digest, now)
        for entry in spent.entries:
            numbers = (entry.rounds, entry.last_round, entry.accountant)
            new = Account(device, entry.task, entry.unit, "reported", *numbers, entry.curve)
            old = before.get((entry.task, entry.unit))
            same = old is not None and old.accountant == new.accountant == ACCOUNTANT_VERSION
            self._put(_larger(old, new) if old is not None and same else new)
        found = self._compare(device, spent, before, enrolled_at)
        if back:
            keys = {(entry.task, entry.unit) for entry in spent.entries} | set(before)
            found |= {(*key, COUNTER_BACK): back for key in keys}
        return self._alarm(device, found, now)

    def _keep(self, device: str, spent: Spent, frame: bytes, digest: bytes, now: float) -> str:
        """Keep the frame of the largest counter; in words how a counter went back, "" where it did not."""
        self._db.execute("INSERT INTO spent_seen VALUES (?, ?, ?)", (device, spent.counter, digest))
        known = self._rows("SELECT counter FROM spent_frames WHERE device = ?", device)
        if known and spent.counter <= known[0][0]:
            return f"its message {spent.counter} came after its message {known[0][0]}, and is not the one we had"
        row = (device, spent.counter, now, frame)
        self._db.execute("INSERT OR REPLACE INTO spent_frames VALUES (?, ?, ?, ?)", row)
        self._db.execute("DELETE FROM spent_seen WHERE device = ? AND counter <= ?", (device, spent.counter - SEEN))
        return ""

    def frame(self, device: str) -> bytes | None:
        """The newest Spent message of a device, as it signed it."""
        return next((frame for (frame,) in self._rows("SELECT frame FROM spent_frames WHERE device = ?", device)), None)

    def _compare(
        self, device: str, spent: Spent, before: dict[tuple[str, str], Account], enrolled_at: float
    ) -> dict[tuple[str, str, str], str]:
        """(task, unit, kind) -> in words, of every difference. `before`: what the device said until now."""
        said: dict[tuple[str, str], SpentEntry] = {(entry.task, entry.unit): entry for entry in spent.entries}
        full = len(said) >= MOST_ENTRIES
        ours = {(a.task, a.unit) for a in self.accounts(device) if a.source == "accepted"}
        found: dict[tuple[str, str, str], str] = {}
        for key in ours | set(said) | set(before):
            if key not in said and full:
                continue  # the message has room for the newest tasks alone
            difference = _less_than_before(before.get(key), said.get(key))
            difference = difference or self._difference(device, key, said.get(key), enrolled_at)
            if difference is not None:
                found[key[0], key[1], difference[0]] = difference[1]
        return found

    def _difference(
        self, device: str, key: tuple[str, str], said: SpentEntry | None, enrolled_at: float
    ) -> tuple[str, str] | None:
        """(kind, in words) where the device's account cannot be explained by what was offered to it."""
        task, unit = key
        carried = self._account(device, task, unit, "carried")
        for account in (said, carried):
            if account is not None and account.accountant != ACCOUNTANT_VERSION:
                return "other-accountant", f"its accountant is {account.accountant}, ours {ACCOUNTANT_VERSION}"
        theirs = NOTHING if said is None else unpack(said.accountant, said.curve)
        mine = self._account(device, task, unit, "accepted")
        least = NOTHING if mine is None else unpack(mine.accountant, mine.spend)
        if not _within(least, theirs):
            rounds = mine.rounds if mine else 0
            return "charged-less", f"it has charged {said.rounds if said else 0} rounds, {rounds} were accepted from it"
        if _within(theirs, least):
            return None
        before = NOTHING if carried is None else unpack(carried.accountant, carried.spend)
        # Rounds that it charged for uploads which never came to be accepted: at most all that it was offered.
        offers, since = self._sum("task = ? AND unit = ? AND offered_at >= ?", task, unit, int(enrolled_at))
        if _within(theirs, accounting.compose([before, since])):
            return None
        known = (carried.rounds if carried else 0) + offers
        return "charged-more", f"it has charged {said.rounds if said else 0} rounds, {known} at most were offered to it"

    def _alarm(self, device: str, found: dict[tuple[str, str, str], str], now: float) -> list[Alarm]:
        standing = {(a.task, a.unit, a.kind) for a in self.alarms(device) if a.standing}
        if standing:
            # A counter that went back stays so: what was lost between comes back with a new enrolment alone.
            settled = "UPDATE ledger_alarms SET standing = 0 WHERE device = ? AND kind != ?"
            self._db.execute(settled, (device, COUNTER_BACK))
        for (task, unit, kind), detail in found.items():
            self._db.execute(
                "INSERT INTO ledger_alarms VALUES (?, ?, ?, ?, ?, ?, 1, 1, ?) ON CONFLICT DO UPDATE"
                " SET at = excluded.at, times = times + 1, standing = 1, detail = excluded.detail",
                (device, task, unit, kind, now, now, detail),
            )
        new = set(found) - standing
        return [a for a in self.alarms(device) if (a.task, a.unit, a.kind) in new]

    def alarms(self, device: str | None = None) -> list[Alarm]:
        """Every difference that was ever found, of one device or of all, the newest first."""
        where = "WHERE ?1 IS NULL" if device is None else "WHERE device = ?1"
        rows = self._rows(f"SELECT * FROM ledger_alarms {where} ORDER BY at DESC, device, task, unit, kind", device)
        return [Alarm._make((*row[:7], bool(row[7]), row[8])) for row in rows]

    # -- enrolled anew

    def carry_over(self, device: str) -> tuple[SpentEntry, ...]:
        """What a device that is enrolled (again) under this name has spent, by all that is known; in the transaction
        that enrols it: the larger of what it said, and what was stated to it last with what was accepted since. Its
        own messages are counted anew from here. What it said by another accountant is left out: of that, what was
        accepted from it has been charged by this one too."""
        best = self._known(device)
        for account in best.values():
            self._put(account._replace(source="carried"))
        self._db.execute("DELETE FROM device_spends WHERE device = ? AND source = 'reported'", (device,))
        for table in ("accepted_since", "spent_frames", "spent_seen"):
            self._db.execute(f"DELETE FROM {table} WHERE device = ?", (device,))
        self._db.execute("UPDATE ledger_alarms SET standing = 0 WHERE device = ? AND kind = ?", (device, COUNTER_BACK))
        newest = sorted(best.values(), key=lambda a: (-a.last_round, a.task, a.unit))[:MOST_STATED]
        return tuple(SpentEntry(a.task, a.unit, *a[4:]) for a in newest)  # type: ignore[arg-type] # a unit's name

    def _known(self, device: str) -> dict[tuple[str, str], Account]:
        """By task and unit the most that is known of a device, in its present accountant's curves."""
        best: dict[tuple[str, str], Account] = {}
        since = self._since(device)
        for account in self.accounts(device):
            if account.accountant == ACCOUNTANT_VERSION:
                key = (account.task, account.unit)
                later = since.get(key) if account.source == "carried" else None
                known = account if later is None else _together(account, later)
                best[key] = _larger(best[key], known) if key in best else known
        return best

    # -- older homes

    def catch_up(self) -> None:
        """Enter rounds that an older version left, and all of them anew where the accountant has changed; in a
        transaction. What devices reported by another accountant stays as they said it.

        Raises HomeRefused for a round whose offer this version cannot read: its cost must not be forgotten."""
        stale = self._rows("SELECT 1 FROM curves WHERE accountant != ? LIMIT 1", ACCOUNTANT_VERSION)
        read = dict[tuple[str, int], float]()
        if stale:
            charged = "SELECT task, number, opened_at FROM round_charges WHERE opened_at IS NOT NULL"
            read = {(task, number): at for task, number, at in self._rows(charged)}
            for table in ("round_charges", "curves", "device_spends WHERE source = 'accepted'", "accepted_since"):
                self._db.execute(f"DELETE FROM {table}")
        missing = self._rows(
            "SELECT r.task, r.number, r.frame, c.at FROM rounds r LEFT JOIN checkpoints c USING (task, number)"
            " WHERE NOT EXISTS (SELECT 1 FROM round_charges g WHERE g.task = r.task AND g.number = r.number)"
            " ORDER BY r.task, r.number"
        )
        for task, number, frame, opened_at in missing:
            try:
                offer = unpack_message(frame[PREFIX_BYTES + SIGNATURE_BYTES :], Offer)
            except MalformedMessage as error:
                what = f"round {number} of task {task} was offered by a version that this one cannot read"
                raise HomeRefused(what, "go on with that version, or make a new home") from error
            self.offered(task, number, offer.privacy, offer.length, float(offer.issued_at))
            read_at = read.get((task, number), opened_at)
            if read_at is not None:
                self.opened(task, number, read_at)
            in_it = "SELECT device FROM uploads WHERE task = ? AND number = ? AND state IN ('accepted', 'summed')"
            for (device,) in self._rows(in_it, task, number):
                self.accepted(device, task, number)


def _check_curves(spent: Spent) -> None:
    for entry in spent.entries:
        if entry.accountant == ACCOUNTANT_VERSION:
            try:
                unpack(entry.accountant, entry.curve)
            except LedgerError as error:
                raise MalformedMessage(f"task {entry.task}: {error}", reason="body") from error


def _within(first: Iterable[float], second: Iterable[float]) -> bool:
    return all(at_most(a, b) for a, b in zip(first, second, strict=True))


def _less_than_before(before: Account | None, said: SpentEntry | None) -> tuple[str, str] | None:
    """(kind, in words) where a device says less than it said in an earlier message."""
    if before is None or before.accountant != ACCOUNTANT_VERSION:
        return None
    if said is not None and said.accountant != ACCOUNTANT_VERSION:
        return None
    theirs = NOTHING if said is None else unpack(said.accountant, said.curve)
    if _within(unpack(before.accountant, before.spend), theirs):
        return None
    return "charged-less", f"it has charged {said.rounds if said else 0} rounds, and said {before.rounds} before"


def _together(first: Account, second: Account) -> Account:
    """Both accounts, one after the other."""
    spend = accounting.compose([unpack(first.accountant, first.spend), unpack(second.accountant, second.spend)])
    rounds, last = first.rounds + second.rounds, max(first.last_round, second.last_round)
    return first._replace(rounds=rounds, last_round=last, accountant=ACCOUNTANT_VERSION, spend=pack(spend))


def _larger(first: Account, second: Account) -> Account:
    """An account that bounds both, order by order."""
    spend = largest(unpack(first.accountant, first.spend), unpack(second.accountant, second.spend))
    rounds, last = max(first.rounds, second.rounds), max(first.last_round, second.last_round)
    return first._replace(rounds=rounds, last_round=last, spend=pack(spend))
