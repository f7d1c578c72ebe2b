"""When a member's epoch key changes, is told, takes over and is deleted (SPEC 7.3.2). Reads no clock, sends nothing.

Refuses to make a key while an older one is still needed. Whatever is written is on the disk before anything that
follows from it is told; after a crash the next look goes on from what the files and the held rosters say.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from typing import Final

from edge_sdk.device_db import count, fact, transaction
from edge_sdk.held_offers import HeldOffers
from edge_sdk.identity.epoch_keys import EpochKeys
from edge_sdk.journal import Journal
from edge_sdk.protocol.messages import EpochKey

LOOK_S: Final = 1.0
AFTER_FAILURE_S: Final = 60.0
TELL_AGAIN_S: Final = 600.0
LAST_EPOCH: Final = 2**40

log = logging.getLogger("edge_sdk")


class KeyRotation:
    """The age and the number of each key, and what is due. For one thread."""

    def __init__(
        self,
        keys: EpochKeys,
        connection: sqlite3.Connection,
        held: HeldOffers,
        device: str,
        *,
        epoch_key_s: float,
        entropy: Callable[[int], bytes],
        born_at: int = 0,
        journal: Journal | None = None,
    ) -> None:
        """`born_at`: when a key of unknown age was made, seconds since 1970; 0: when it is first seen here."""
        self._keys, self._db, self._held, self._device = keys, connection, held, device
        self._journal = journal
        self._epoch_key_s, self._entropy, self._born_at = epoch_key_s, entropy, born_at
        self._rows: list[tuple[str, int, bytes, int]] = []  # the table as it was last written
        self._ages: dict[bytes, tuple[int, int]] = {}  # public key -> its number and when it was made
        self._newest: int | None = None  # epoch of the newest roster, as the aggregator says; None: it did not say yet
        self._look_at = self._tell_at = float("-inf")

    def connected(self) -> None:
        """Tell the next key again: what was sent before may be lost."""
        self._tell_at = float("-inf")

    def heard(self, epoch: int) -> None:
        """The aggregator says that its newest roster is of this epoch: the next key is meant for the one after."""
        if epoch != self._newest:
            self._newest = epoch
            self.connected()

    def look_now(self) -> None:
        """A roster was verified or an opening answered: something may be due."""
        self._look_at = float("-inf")

    def turn(self, now: int, tick: float) -> EpochKey | None:
        """Do what is due; the message to send now, if any. Raises OSError, sqlite3.Error where nothing can be written.

        `now`: the verified time, seconds since 1970; `tick`: monotonic seconds.
        """
        if tick >= self._look_at:
            self._look_at = tick + AFTER_FAILURE_S
            self._look(now)
            self._look_at = tick + LOOK_S
        if self._keys.next is None or self._newest is None or tick < self._tell_at:
            return None
        self._tell_at = tick + TELL_AGAIN_S
        return EpochKey(min(max(self._newest, fact(self._db, "epoch")) + 1, LAST_EPOCH), self._keys.next)

    def _look(self, now: int) -> None:
        self._write_down(now)
        keys = self._keys
        if keys.next is not None and self._held.newest_own_key(self._device) == keys.next:
            keys.promote()
            self._changed(now, "promoted")
        if keys.older is not None and not self._needed(keys.older, now):
            keys.delete_older()
            self._changed(now, "deleted")
        # With the epoch came the time: before that a clock in 1970 would make every key too young or too old.
        if self._newest is None or keys.next is not None or keys.older is not None:
            return
        if now - self._ages[keys.current][1] >= self._epoch_key_s:
            keys.make_next(self._entropy)
            self._changed(now, "made")

    def _needed(self, older: bytes, now: int) -> bool:
        owed = self._held.owed(self._device, now)
        return any(self._held.own_key(offer.secagg.statement_hash, self._device) == older for offer in owed)

    def _changed(self, now: int, what: str) -> None:
        self._write_down(now)
        count(self._db, "epoch-key", what)
        number = self._ages[self._keys.current][0]
        log.info("epoch keys: one was %s; number %d is the current one", what, number)
        if self._journal is not None:
            self._journal.note("epoch-key", what=what, current=number)

    def _write_down(self, now: int) -> None:
        """Bring the table in step with the files: a crash may have come between the two."""
        keys, known = self._keys, dict(self._ages or self._stored())
        for public in filter(None, (keys.older, keys.current, keys.next)):
            number = max((n for n, _ in known.values()), default=0) + 1
            number, made_at = known.get(public, (number, now if known else self._born_at or now))
            # A clock that was ahead once must not keep a key for years.
            known[public] = number, made_at if self._newest is None else min(made_at, now)
        states = {"older": keys.older, "current": keys.current, "next": keys.next}
        rows = [(state, known[public][0], public, known[public][1]) for state, public in states.items() if public]
        ages = {public: (number, made_at) for _, number, public, made_at in rows}
        if rows != self._rows:
            with transaction(self._db):
                self._db.execute("DELETE FROM epoch_keys")
                self._db.executemany("INSERT INTO epoch_keys VALUES (?, ?, ?, ?)", rows)
        self._rows, self._ages = rows, ages

    def _stored(self) -> dict[bytes, tuple[int, int]]:
        rows = self._db.execute("SELECT public, number, made_at FROM epoch_keys")
        return {bytes(public): (int(number), int(made_at)) for public, number, made_at in rows}
