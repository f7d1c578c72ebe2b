"""Which group's sum an upload is added to, and which groups are opened together. Pure: nothing is drawn or remembered.

Groups exist so that the aggregator can take a median of sums it may see (SPEC 7.5.1); every group that is opened has at
least n_min devices, so a group protects a device as a round with one group does. An upload's group is settled when it
is accepted, so that only running sums are kept. Whoever sends decides when, never where: ties go by a key that follows
from the round's secret. However it is done, c malicious devices spoil at most c groups.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from edge_sdk.protocol.secagg.committee import CommitteePlan
from edge_sdk.protocol.secagg.ring import Profile

MOST_GROUPS: Final = 64
FEWEST_ROBUST: Final = 3  # the median of two groups is their mean
_ANSWER_BYTES: Final = 58_000  # of a Share's 60,000: the rest is its seal and the body's other fields


@dataclass(frozen=True, slots=True)
class Grouping:
    """`wanted` groups, of which `fewest` (1, or 3 where the average is robust) fill before a fourth is begun."""

    wanted: int
    fewest: int
    n_min: int
    key: bytes = field(repr=False)

    def group_for(self, device: str, sizes: Mapping[int, int]) -> int:
        """The group (from 0) of the next upload; `sizes`: devices accepted so far, by group.

        The first `fewest` groups fill to n_min side by side, then one more at a time, then all of them evenly: so n
        uploads make min(wanted, n // n_min) groups of at least n_min, and at most one that is below.
        """
        begun = sum(sizes.values()) // self.n_min + 1
        groups = range(min(self.wanted, max(self.fewest, begun)))
        return min(groups, key=lambda group: (sizes.get(group, 0), self._tie(device, group)))

    def _tie(self, device: str, group: int) -> bytes:
        return hmac.digest(self.key, f"{device}/{group}".encode(), "sha256")

    def together(self, sizes: Mapping[int, int]) -> list[list[int]]:
        """Groups as they are opened: each at least n_min devices, a smaller one added to the smallest that is not.

        Empty where there are fewer than n_min devices in all.
        """
        whole = [[group] for group in sorted(sizes) if sizes[group] >= self.n_min]
        rest = [group for group in sorted(sizes) if 0 < sizes[group] < self.n_min]
        if not whole:
            return [rest] if sum(sizes[group] for group in rest) >= self.n_min else []
        for group in rest:
            min(whole, key=lambda groups: sum(sizes[g] for g in groups)).append(group)
        return whole


def grouping_key(secret: bytes) -> bytes:
    """The key of a round's ties, from the secret of its round key."""
    return hashlib.sha256(b"chorale/group/1" + secret).digest()


def most_groups(ring: Profile, plan: CommitteePlan) -> int:
    """How many sums of shares fit one answer: a small committee packs its secrets less tightly."""
    return min(MOST_GROUPS, _ANSWER_BYTES // (2 * (ring.degree // plan.packing) + 3))
