"""When the aggregator is told what this device has spent: after every charge, and at every connect (SPEC 7.8).

Reads no clock and sends nothing itself. Tells nothing where nothing was spent.
"""

from __future__ import annotations

import sqlite3

from edge_sdk.device_db import fact, raise_fact
from edge_sdk.privacy.curves import LedgerError
from edge_sdk.privacy.ledger import Ledger
from edge_sdk.protocol.messages import Spent

COUNTER = "spents"


class LedgerReport:
    """Over the loop thread's connection; charges come from the work thread's."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db, self._ledger = connection, Ledger(connection)
        self._told: int | None = None

    def connected(self) -> None:
        """A message may be lost with a connection, so the next one hears it again."""
        self._told = None

    def turn(self) -> Spent | None:
        """What to send now. Raises sqlite3.Error or OSError (disk full), to be asked again, or LedgerError."""
        place = self._ledger.place()
        if place == self._told:
            return None
        try:
            entries = self._ledger.entries()
        except LedgerError:
            self._told = place  # it will not become readable by asking again
            raise
        counter = raise_fact(self._db, COUNTER, fact(self._db, COUNTER) + 1) if entries else 0
        self._told = place
        return Spent(counter, entries) if entries else None
