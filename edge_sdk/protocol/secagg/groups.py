"""Which group of a round a device is in: settled by the offer and its roster, whoever asks. SPEC 7.5.1. Pure.

A member that took any grouping would tell an aggregator that hides a device in another group for each member the sums
of all groups without it, and so the device (docs/attacks.md): answering once bounds what is told of one set of devices.
With the groups settled, each group is a round of its own, whose bound is that of SPEC 7.3. For the same reason a group
below the minimum is left out and never added to another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from edge_sdk.protocol.errors import OpeningRefused
from edge_sdk.protocol.secagg.client import prefixed


def groups_of(offer_hash: bytes, devices: Iterable[str], groups: int) -> dict[str, int]:
    """The group (from 0) of every device of the roster; sizes differ by one at most."""
    if groups == 1:
        return dict.fromkeys(devices, 0)
    drawn = sorted(devices, key=lambda device: _place(offer_hash, device))
    return {device: index % groups for index, device in enumerate(drawn)}


def _place(offer_hash: bytes, device: str) -> bytes:
    return hashlib.sha256(b"chorale/group/1" + offer_hash + prefixed(device)).digest()


def check_groups(listed: Sequence[Sequence[str]], settled: Mapping[str, int]) -> None:
    """Each listed group holds devices of one settled group, and no two of the same. Raises OpeningRefused."""
    seen: set[int] = set()
    for group in listed:
        found = {settled[device] for device in group}
        if len(found) != 1 or found & seen:
            raise OpeningRefused("the groups are not those that the offer settles", reason="wrong-group")
        seen |= found
