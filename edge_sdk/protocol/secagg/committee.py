"""Committee sizes, thresholds, the draw of members and the sizing checks. SPEC 7.2, 7.3. Draws no randomness.

Refuses committees that could answer for two sets of devices, and rounds whose sum could wrap around the modulus.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edge_sdk.protocol.errors import CommitteeRefused, SizingRefused
from edge_sdk.protocol.secagg.keystream import Keystream
from edge_sdk.protocol.secagg.ring import SERVER_BOUND, Profile

SMALLEST: Final = 5
LARGEST: Final = 128
FLOOR_SIGMA: Final = 4.0
# A normal variable leaves 6.5 sigma once in 10^10 draws.
TAIL: Final = 6.5


@dataclass(frozen=True)
class CommitteePlan:
    """m members, of which `corrupt` may collude and `silent` may stay away; `answers` = threshold + packing."""

    m: int
    corrupt: int
    silent: int
    threshold: int
    packing: int
    answers: int

    def __post_init__(self) -> None:
        if not SMALLEST <= self.m <= LARGEST:
            raise CommitteeRefused(f"a committee has {SMALLEST} to {LARGEST} members, not {self.m}", reason="members")
        # SPEC 7.3: anything about a set costs threshold + 1 - c honest answers, and an honest member answers once.
        if 2 * (self.threshold + 1 - self.corrupt) <= self.m - self.corrupt:
            raise CommitteeRefused("this committee could answer for two sets of devices", reason="two-sets")
        if self.packing < 1 or self.packing & (self.packing - 1) or self.answers != self.threshold + self.packing:
            raise CommitteeRefused("packing is a power of two, answers = threshold + packing", reason="packing")
        if self.answers > self.m - self.silent:
            raise CommitteeRefused("the answers needed exceed the members expected", reason="answers")


def plan(m: int) -> CommitteePlan:
    """The plan for m members; a fifth below 32 members, else a quarter may collude, as many be silent.

    Raises CommitteeRefused for too few or too many members.
    """
    if m < SMALLEST:
        raise CommitteeRefused(f"{m} members are too few; enrol at least {SMALLEST} devices", reason="members")
    tolerated = m // 4 if m >= 32 else max(1, m // 5)
    threshold = (m + tolerated) // 2
    room = m - tolerated - threshold
    packing = 1 << (room.bit_length() - 1) if room > 0 else 0
    return CommitteePlan(m, tolerated, tolerated, threshold, packing, threshold + packing)


def members_for(eligible: int) -> int:
    """How many of `eligible` devices (the roster, or its stewards) sit on the committee."""
    if eligible <= 32:
        return eligible
    if eligible < 512:
        return 32
    return 64 if eligible < 1500 else 128


def draw(seed: bytes, eligible: Sequence[str], m: int) -> list[str]:
    """m of the eligible names, sorted; every set of m is equally likely over the 32-byte seed.

    A partial Fisher-Yates shuffle of the sorted names driven by the keystream of `seed`. Raises CommitteeRefused
    when the names repeat or do not suffice.
    """
    names = sorted(eligible)
    if len(set(names)) != len(names):
        raise CommitteeRefused("a device is listed twice among the eligible", reason="duplicate")
    if not 0 < m <= len(names):
        raise CommitteeRefused(f"{m} members cannot be drawn from {len(names)} devices", reason="members")
    stream = Keystream(seed)
    for index in range(m if m < len(names) else 0):
        chosen = index + _below(stream, len(names) - index)
        names[index], names[chosen] = names[chosen], names[index]
    return sorted(names[:m])


def _below(stream: Keystream, limit: int) -> int:
    """Uniform in [0, limit) by rejection of the words beyond the largest multiple of `limit`."""
    ceiling = (1 << 64) - (1 << 64) % limit
    while True:
        word = int.from_bytes(stream.take(8), "little")
        if word < ceiling:
            return word % limit


def check_headroom(ring: Profile, devices: int, bound: int, sigma_dp: float) -> None:
    """Refuse, with SizingRefused, a round whose sum or whose sum of secrets could wrap around.

    `bound`: the largest |x_i| of a device in steps; `sigma_dp`: standard deviation of its noise in steps. Holds up to
    the 6.5 sigma of the noise; the inputs are bounded outright.
    """
    if devices < 1 or bound < 0:
        raise SizingRefused("a round has devices, and their inputs a bound", reason="headroom")
    noise = TAIL * math.sqrt(devices) * math.sqrt(FLOOR_SIGMA**2 + sigma_dp**2)
    # Written so that a noise that is not a number refuses too.
    if not ring.modulus / 2 > devices * bound + noise:
        raise SizingRefused(
            f"{devices} devices of {bound} steps with noise {sigma_dp:.4g} do not fit {ring.name}; "
            "take a larger step or a larger profile",
            reason="headroom",
        )
    # |s_i| <= 32 outright, so up to 1023 devices this cannot fail; beyond, at 6.5 sigma (1.6 million devices).
    if TAIL * FLOOR_SIGMA * math.sqrt(devices) >= SERVER_BOUND:
        raise SizingRefused(f"the secrets of {devices} devices do not fit the share field", reason="share-headroom")
