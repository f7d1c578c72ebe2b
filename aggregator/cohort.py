"""Who is invited to a round, who is live, who sits on its committee. Pure: time is an argument, nothing is drawn.

The committee follows from the signed roster alone (SPEC 7.3): every device draws the same one and believes no list.
Refuses a fleet too small for the task, and says what would make it large enough.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from aggregator.errors import TaskRefused
from edge_sdk.protocol.secagg import committee

LIVE_S: Final = 90.0  # three heartbeats of 30 s
GONE: Final = "gone"


class Entry(Protocol):
    """A device as the roster states it."""

    @property
    def device(self) -> str: ...
    @property
    def steward(self) -> bool: ...


def eligible(entries: Sequence[Entry], stewards: bool) -> list[str]:
    """Names that may sit on the committee, sorted."""
    return sorted(entry.device for entry in entries if entry.steward or not stewards)


def committee_of(statement: bytes, entries: Sequence[Entry], stewards: bool) -> tuple[str, ...]:
    """The committee of a roster statement, in member order. Raises CommitteeRefused."""
    names = eligible(entries, stewards)
    seed = hashlib.sha256(b"committee" + statement).digest()
    return tuple(committee.draw(seed, names, committee.members_for(len(names))))


def live(seen: Mapping[str, tuple[float, str]], now: float, horizon_s: float = LIVE_S) -> frozenset[str]:
    """Devices heard from within the horizon that did not say goodbye; `seen`: device -> (when, phase)."""
    return frozenset(device for device, (at, phase) in seen.items() if now - at <= horizon_s and phase != GONE)


def check_fleet(entries: Sequence[Entry], n_min: int, stewards: bool) -> None:
    """Raises TaskRefused where the fleet is too small for the cohort or the committee."""
    if len(entries) < n_min:
        raise TaskRefused(
            f"the fleet has {len(entries)} active devices and a round needs {n_min}",
            f"enrol {n_min - len(entries)} more, or lower n_min (never below 3)",
            reason="fleet-too-small",
        )
    names = eligible(entries, stewards)
    if len(names) < committee.SMALLEST:
        kind = "stewards" if stewards else "active devices"
        raise TaskRefused(
            f"the committee needs {committee.SMALLEST} members and the fleet has {len(names)} {kind}",
            f"enrol {committee.SMALLEST - len(names)} more {kind}",
            reason="committee-too-small",
        )
