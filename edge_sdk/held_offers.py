"""Offers this device verified itself, with the rosters behind them. Kept so that a member can answer after a restart.

Refuses nothing: what is put here was checked by `device_round`. An offer is kept until a later round of its task has
been over for a week, so an old opening can still be judged; of more than 64 tasks, the one longest without a new offer
goes first.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

from edge_sdk.device_db import transaction
from edge_sdk.device_round import Seen
from edge_sdk.protocol import codec
from edge_sdk.protocol.messages import Offer

KEPT_ROUNDS: Final = 64
KEPT_TASKS: Final = 64


@dataclass(frozen=True, slots=True)
class HeldOffer:
    """A verified offer and its hash H."""

    offer: Offer
    offer_hash: bytes


class HeldOffers:
    """The tables `offers`, `rosters` and `uploaded`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

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
