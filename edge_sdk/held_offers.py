"""Offers this device verified itself, with the rosters behind them. Kept so that a member can answer after a restart.

Refuses nothing: what is put here was checked by `device_round`. Of a task the newest offer and those up to 64 rounds
before it are kept, so an old opening can still be judged; of more than 64 tasks, the one longest without a new offer
goes first. Also tells what openings this device may still owe, which is what an older epoch key is kept for.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

from edge_sdk.device_db import transaction
from edge_sdk.device_round import Seen
from edge_sdk.protocol import codec, roster
from edge_sdk.protocol.messages import Offer

KEPT_ROUNDS: Final = 64
KEPT_TASKS: Final = 64
OPENING_S: Final = 86_400  # SPEC 7.5: an opening is asked for within a day after `closes_at`


@dataclass(frozen=True, slots=True)
class HeldOffer:
    """A verified offer and its hash H."""

    offer: Offer
    offer_hash: bytes


class HeldOffers:
    """The tables `offers`, `rosters` and `uploaded`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._named: dict[bytes, bytes | None] = {}

    def hold(self, frame: bytes, offer: Offer, roster_blob: bytes) -> None:
        """Keep a verified offer; a repeat changes nothing."""
        with transaction(self._db):
            self._db.execute(
                "INSERT OR IGNORE INTO rosters VALUES (?, ?, ?)",
                (offer.secagg.statement_hash, offer.secagg.epoch, roster_blob),
            )
            self._db.execute(
                "INSERT OR IGNORE INTO offers VALUES (?, ?, ?, ?)",
                (codec.offer_hash(frame), offer.task, offer.round, frame),
            )
            self._prune(offer.task, offer.round)

    def _prune(self, task: str, round_number: int) -> None:
        self._db.execute("DELETE FROM offers WHERE task = ? AND round < ?", (task, round_number - KEPT_ROUNDS))
        self._db.execute(
            "DELETE FROM offers WHERE task NOT IN"
            " (SELECT task FROM offers GROUP BY task ORDER BY MAX(rowid) DESC LIMIT ?)",
            (KEPT_TASKS,),
        )
        used = {self._parse(row[0]).secagg.statement_hash for row in self._db.execute("SELECT frame FROM offers")}
        for (digest,) in self._db.execute("SELECT statement_hash FROM rosters").fetchall():
            if digest not in used:
                self._db.execute("DELETE FROM rosters WHERE statement_hash = ?", (digest,))

    def find(self, offer_hash: bytes) -> HeldOffer | None:
        """The offer with this H, if this device verified it."""
        row = self._db.execute("SELECT frame FROM offers WHERE offer_hash = ?", (offer_hash,)).fetchone()
        return HeldOffer(self._parse(row[0]), offer_hash) if row else None

    def of_round(self, task: str, round_number: int) -> HeldOffer | None:
        """The offer of a round, if this device verified one."""
        return self.find(self._hash_of(task, round_number))

    def newest(self, task: str) -> Offer | None:
        """The offer of the highest round held for a task."""
        row = self._db.execute(
            "SELECT frame FROM offers WHERE task = ? ORDER BY round DESC LIMIT 1", (task,)
        ).fetchone()
        return self._parse(row[0]) if row else None

    def roster_blob(self, statement_hash: bytes) -> bytes | None:
        """The roster blob behind a held offer."""
        row = self._db.execute("SELECT blob FROM rosters WHERE statement_hash = ?", (statement_hash,)).fetchone()
        return bytes(row[0]) if row else None

    def own_key(self, statement_hash: bytes, device: str) -> bytes | None:
        """The epoch key (32 bytes) by which a held roster names the device, which is this one."""
        if statement_hash in self._named:
            return self._named[statement_hash]
        if (blob := self.roster_blob(statement_hash)) is None:
            return None
        if len(self._named) >= KEPT_ROUNDS:
            self._named.clear()
        named = next((entry.epoch_key for entry in roster.from_blob(blob).entries if entry.device == device), None)
        self._named[statement_hash] = named
        return named

    def newest_own_key(self, device: str) -> bytes | None:
        """The epoch key by which the newest held roster names the device."""
        row = self._db.execute("SELECT statement_hash FROM rosters ORDER BY epoch DESC LIMIT 1").fetchone()
        return self.own_key(bytes(row[0]), device) if row else None

    def owed(self, device: str, now: int) -> list[Offer]:
        """Offers of whose rounds the device may still have to open its part (SPEC 7.3.2).

        Not those it answered, those followed by a later round of their task (the aggregator is done with a round before
        it offers the next), those that closed more than a day ago, and those whose committee it does not sit on.
        """
        rows = self._db.execute(
            "SELECT frame FROM offers o WHERE round = (SELECT MAX(round) FROM offers WHERE task = o.task)"
            " AND NOT EXISTS (SELECT 1 FROM answers a WHERE a.task = o.task AND a.round = o.round)"
        )
        offers = [self._parse(row[0]) for row in rows.fetchall()]
        return [each for each in offers if device in each.secagg.committee and now < each.closes_at + OPENING_S]

    def seen(self, task: str, round_number: int) -> Seen:
        """What `device_round` wants to know about a task and round."""
        uploaded = self._db.execute("SELECT round, offer_hash FROM uploaded WHERE task = ?", (task,)).fetchone()
        number, digest = uploaded or (0, b"")
        return Seen(int(number), bytes(digest), self._hash_of(task, round_number))

    def _hash_of(self, task: str, round_number: int) -> bytes:
        row = self._db.execute(
            "SELECT offer_hash FROM offers WHERE task = ? AND round = ?", (task, round_number)
        ).fetchone()
        return bytes(row[0]) if row else b""

    @staticmethod
    def _parse(frame: bytes) -> Offer:
        # The signature was checked before the frame was put here; the file is this device's own.
        return codec.unpack(frame[codec.PREFIX_BYTES + codec.SIGNATURE_BYTES :], Offer)
