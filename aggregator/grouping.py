"""How many groups a round has, and which of them are opened. Pure: nothing is drawn or remembered.

Groups exist so that the aggregator can take a median of sums it may see. Who is in which is settled by the offer and
its roster (SPEC 7.5.1); every group that is opened has at least n_min devices, and one that stays smaller is left out:
added to another it could be told apart again. f malicious devices spoil at most f groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from edge_sdk.protocol.secagg.committee import CommitteePlan
from edge_sdk.protocol.secagg.ring import Profile

MOST_GROUPS: Final = 64
FEWEST_ROBUST: Final = 3  # the median of two groups is their mean
_ANSWER_BYTES: Final = 58_000  # of a Share's 60,000: the rest is its seal and the body's other fields


@dataclass(frozen=True, slots=True)
class Grouping:
    """`settled`: the group of every device of the roster; `fewest` of them (1, or 3 for a robust average) must fill."""

    settled: Mapping[str, int]
    fewest: int
    n_min: int

    def group_for(self, device: str) -> int:
        """The group (from 0) of a device's upload."""
        return self.settled[device]

    def opened(self, sizes: Mapping[int, int]) -> list[int]:
        """The groups that may be opened; `sizes`: devices accepted, by group."""
        return [group for group in sorted(sizes) if sizes[group] >= self.n_min]


def how_many(wanted: int, fewest: int, n_min: int, live: int, most: int) -> int:
    """The groups to offer: as many as the live devices can fill, at most `wanted` and `most`, at least `fewest`."""
    return max(fewest, min(wanted, most, live // n_min))


def fills(settled: Mapping[str, int], live: Collection[str], groups: int, n_min: int) -> bool:
    """Can the live devices fill every group?"""
    sizes = Counter(settled[device] for device in live)
    return all(sizes[group] >= n_min for group in range(groups))


def most_groups(ring: Profile, plan: CommitteePlan) -> int:
    """How many sums of shares fit one answer: a small committee packs its secrets less tightly."""
    return min(MOST_GROUPS, _ANSWER_BYTES // (2 * (ring.degree // plan.packing) + 3))
