"""When a member's epoch key changes, is told, takes over and is deleted (SPEC 7.3.2). Reads no clock, sends nothing.

Refuses to make a key while an older one is still needed. Whatever is written is on the disk before anything that
follows from it is told; after a crash the next look goes on from what the files and the held rosters say.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from typing import Final, NamedTuple

from edge_sdk.device_db import count, fact, transaction
from edge_sdk.held_offers import HeldOffers
from edge_sdk.identity.epoch_keys import EpochKeys
from edge_sdk.journal import Journal
from edge_sdk.protocol.messages import EpochKey
from edge_sdk.retention import PLAUSIBLE

LOOK_S: Final = 1.0
AFTER_FAILURE_S: Final = 60.0
TELL_AGAIN_S: Final = 600.0
LAST_EPOCH: Final = 2**40

log = logging.getLogger("edge_sdk")


class _Age(NamedTuple):
    """A key's number, and when it was made by the verified time and by the device's own clock, 0: not known."""

    number: int
    made_at: int
    clock_at: int

    def at(self, now: int, clock: int) -> int:
        """Seconds by whichever says more: one signed time that is ahead must not stop the verified time's count."""
        return max(now - self.made_at, clock - self.clock_at if self.clock_at and clock >= PLAUSIBLE else 0)


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
        self._rows: list[tuple[str, int, bytes, int, int]] = []  # the table as it was last written
        self._ages: dict[bytes, _Age] = {}  # by public key
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

    def turn(self, now: int, tick: float, clock: int) -> EpochKey | None:
        """Do what is due; the message to send now, if any. Raises OSError, sqlite3.Error where nothing can be written.

        `now`: the verified time, seconds since 1970; `tick`: monotonic seconds; `clock`: the device's own clock.
        """
        if tick >= self._look_at:
            self._look_at = tick + AFTER_FAILURE_S
            self._look(now, clock)
            self._look_at = tick + LOOK_S
        if self._keys.next is None or self._newest is None or tick < self._tell_at:
            return None
        self._tell_at = tick + TELL_AGAIN_S
        return EpochKey(min(max(self._newest, fact(self._db, "epoch")) + 1, LAST_EPOCH), self._keys.next)

    def _look(self, now: int, clock: int) -> None:
        self._write_down(now, clock)
        keys = self._keys
        if keys.next is not None and self._held.newest_own_key(self._device) == keys.next:
            keys.promote()
            self._changed(now, clock, "promoted")
        if keys.older is not None and not self._needed(keys.older, now):
            keys.delete_older()
            self._changed(now, clock, "deleted")
        # With the epoch came the time: before that a clock in 1970 would make every key too young or too old.
        if self._newest is None or keys.next is not None or keys.older is not None:
            return
        if self._ages[keys.current].at(now, clock) >= self._epoch_key_s:
            keys.make_next(self._entropy)
            self._changed(now, clock, "made")

    def _needed(self, older: bytes, now: int) -> bool:
        owed = self._held.owed(self._device, now)
        return any(self._held.own_key(offer.secagg.statement_hash, self._device) == older for offer in owed)

    def _changed(self, now: int, clock: int, what: str) -> None:
        self._write_down(now, clock)
        count(self._db, "epoch-key", what)
        number = self._ages[self._keys.current].number
        log.info("epoch keys: one was %s; number %d is the current one", what, number)
        if self._journal is not None:
            self._journal.note("epoch-key", what=what, current=number)

    def _write_down(self, now: int, clock: int) -> None:
        """Bring the table in step with the files: a crash may have come between the two."""
        keys, known = self._keys, dict(self._ages or self._stored())
        for public in filter(None, (keys.older, keys.current, keys.next)):
            number = max((age.number for age in known.values()), default=0) + 1
            age = known.get(public, _Age(number, now if known else self._born_at or now, 0))
            # A clock that was ahead once must not keep a key for years.
            made_at = age.made_at if self._newest is None else min(age.made_at, now)
            clock_at = min(age.clock_at or clock, clock) if clock >= PLAUSIBLE else age.clock_at
            known[public] = _Age(age.number, made_at, clock_at)
        states = {"older": keys.older, "current": keys.current, "next": keys.next}
        rows = [(state, known[key].number, key, *known[key][1:]) for state, key in states.items() if key]
        if rows != self._rows:
            with transaction(self._db):
                self._db.execute("DELETE FROM epoch_keys")
                self._db.executemany("INSERT INTO epoch_keys VALUES (?, ?, ?, ?, ?)", rows)
        self._rows, self._ages = rows, {key: known[key] for key in states.values() if key}

    def _stored(self) -> dict[bytes, _Age]:
        rows = self._db.execute("SELECT public, number, made_at, clock_at FROM epoch_keys")
        return {bytes(public): _Age(*map(int, row)) for public, *row in rows}
