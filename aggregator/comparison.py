"""A device's own ledger, taken off the wire and held against ours (SPEC 7.8). Reads no clock.

A difference that nothing explains is an alarm: a row in the ledger, an event, an audit entry, a counter, one line in
the log. It refuses nothing to the device: which of the two is wrong is for people to find out.
"""

from __future__ import annotations

from aggregator.fleet.registry import Device
from aggregator.ledger import Alarm, Ledger
from aggregator.store import audit_log
from aggregator.store.store import Store
from aggregator.watch import Refusals
from edge_sdk.protocol.messages import Spent


class Comparison:
    """Takes Spent messages."""

    def __init__(self, store: Store, ledger: Ledger, refusals: Refusals) -> None:
        self._store, self._ledger, self._refusals = store, ledger, refusals

    def take(self, sender: Device, spent: Spent, frame: bytes, now: float) -> None:
        """Keep the frame as it was signed, and compare. Raises UnexpectedMessage, MalformedMessage, DiskFull."""
        with self._store.transaction():
            alarms = self._ledger.report(sender.device, spent, frame, enrolled_at=sender.enrolled_at, now=now)
            for alarm in alarms:
                facts = {"device": alarm.device, "unit": alarm.unit, "difference": alarm.kind, "detail": alarm.detail}
                self._store.log(now, "ledger-differs", alarm.task, 0, **facts)
                audit_log.append(self._store.connection, now, "ledger-differs", alarm.task, 0, **facts)
        for alarm in alarms:
            self._refusals.count("spent", "ledger-differs", alarm.device, said(alarm), now)


def said(alarm: Alarm) -> str:
    """One line for people, with what to do."""
    return f"{alarm.device}, task {alarm.task}, {alarm.unit}: {alarm.detail} ({alarm.kind}); {REMEDIES[alarm.kind]}"


REMEDIES = {
    "counter-back": "its disk was restored from a copy, or two devices use its key: revoke it, then enrol it anew",
    "charged-less": "its disk was reset or restored, or its software does not charge: revoke it, then enrol it anew",
    "charged-more": "it took offers that are not ours, or our database was restored from a copy: see the audit log",
    "other-accountant": "update the older of the two sides",
}
