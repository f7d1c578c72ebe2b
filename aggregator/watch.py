"""What the aggregator remembers of its devices and refusals between writes. Pure: time is an argument.

Refuses a heartbeat or report whose counter does not grow (SPEC 4.3).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Final

from aggregator import cohort
from aggregator.store.store import Store
from edge_sdk.protocol.errors import UnexpectedMessage
from edge_sdk.protocol.messages import Heartbeat

log = logging.getLogger(__name__)
LOG_EVERY_S: Final = 5.0
MOST_LOGGED: Final = 10_000


class Presence:
    """Who was heard from, when, in which phase, with which models."""

    def __init__(self, store: Store, now: float) -> None:
        """Take up what is known. A device that did not say goodbye is given the benefit of our own absence."""
        self._store = store
        self._seen: dict[str, tuple[float, str, dict[str, str]]] = {}
        for device, (at, phase, active) in store.presence().items():
            self._seen[device] = (at if phase == cohort.GONE else now, phase, active)
        self._changed: set[str] = set()
        self._counters: dict[tuple[str, str], int] = {}

    def heard(self, device: str, now: float) -> None:
        """A verified message came."""
        _, phase, active = self._seen.get(device, (now, "", {}))
        self._seen[device] = (now, "" if phase == cohort.GONE else phase, active)
        self._changed.add(device)

    def check_counter(self, device: str, kind: str, counter: int) -> None:
        """Raises UnexpectedMessage for a counter that does not grow."""
        if counter <= self._counters.get((device, kind), -1):
            raise UnexpectedMessage(f"counter {counter} was seen", reason="repeat")
        self._counters[device, kind] = counter

    def beat(self, device: str, heartbeat: Heartbeat, now: float) -> None:
        """Take a heartbeat. A goodbye may be the broker's, signed long ago: it says nothing about models and time."""
        self.check_counter(device, "hb", heartbeat.counter)
        active = {task: digest.hex() for task, digest in heartbeat.active.items()}
        if heartbeat.phase == cohort.GONE:
            now, _, active = self._seen.get(device, (now, "", {}))
        self._seen[device] = (now, heartbeat.phase, active)
        self._changed.add(device)

    def live(self, now: float, horizon_s: float) -> frozenset[str]:
        """Devices heard from within the horizon."""
        return cohort.live({device: seen[:2] for device, seen in self._seen.items()}, now, horizon_s)

    def forget(self, device: str) -> None:
        """A revoked device is not there; should its name be enrolled again, its counters begin anew."""
        self._seen.pop(device, None)
        self._counters = {key: value for key, value in self._counters.items() if key[0] != device}

    def write(self) -> None:
        """Write what changed."""
        changed = {device: self._seen[device] for device in self._changed if device in self._seen}
        self._changed.clear()
        if changed:
            self._store.see(changed)


class Refusals:
    """Counts every refused message by kind and reason; logs at most one a reason every few seconds."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unwritten: Counter[tuple[str, str]] = Counter()
        self._logged_at: dict[tuple[str, str], float] = {}
        self.total = 0

    def count(self, kind: str, reason: str, device: str, message: str, now: float) -> None:
        """One refusal. `kind` is the topic's, `device` the name in it."""
        key = (kind, reason)
        self._unwritten[key] += 1
        self.total += 1
        if now - self._logged_at.get(key, float("-inf")) >= LOG_EVERY_S and len(self._logged_at) < MOST_LOGGED:
            self._logged_at[key] = now
            log.warning("refused %s from %s: %s (%s)", kind, device, reason, message)

    def write(self) -> None:
        """Add the new counts to the tables."""
        if self._unwritten:
            counts: Mapping[tuple[str, str], int] = dict(self._unwritten)
            self._store.count_refusals(counts)
            self._unwritten.clear()
