"""How old an example is, on a device whose clock may be wrong. Pure: no clock, no database.

Ages are counted on a clock of their own, which runs back only to correct an error that the fleet disproves. A wall
clock that starts in 1970 must not keep examples for ever, and one that jumps to 2099 must not erase them all: refuses
to run ahead of what the fleet signed by more than the time that this process saw pass.
"""

from __future__ import annotations

from typing import Final

DAY_S: Final = 86_400
FIRST_SWEEP_S: Final = DAY_S  # what a start may add where nobody vouches for the clock: a device runs about once a day
PLAUSIBLE: Final = 1_735_689_600  # 2025-01-01: before it no example of this software was recorded


def age_clock(before: int, now: int, vouched: int, elapsed_s: float) -> int:
    """The next value of the age clock, seconds since 1970.

    `before`: its last value, 0 at first; `now`: the device's time; `vouched`: the fleet signed that it may be as late
    as this, 0 where nobody did; `elapsed_s`: seconds since `before` was set that this process itself saw.
    """
    if now <= vouched < before:  # it once believed a clock that was ahead
        return now
    if before < PLAUSIBLE:
        return max(before, now)
    believed = max(vouched, before + int(elapsed_s))
    return max(before, min(now, believed))


def starts_anew(before: int, after: int) -> bool:
    """True where the first plausible time arrives: ages counted before it mean nothing and begin at `after`."""
    return before < PLAUSIBLE <= after
