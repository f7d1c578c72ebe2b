"""A spend as bytes, for ledgers and for the wire. Pure; refuses bytes of another accountant, and what is no spend."""

from __future__ import annotations

import math
import struct
from typing import Final

from edge_sdk.privacy.accounting import ACCOUNTANT_VERSION, NOTHING, ORDERS, Spend

_FORMAT: Final = f"<{len(ORDERS)}d"


class LedgerError(Exception):
    """A ledger cannot vouch for this charge. `reason` is a kebab-case word for counters and logs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def pack(spend: Spend) -> bytes:
    """Little-endian float64 at accounting.ORDERS. Raises LedgerError "not-a-spend"."""
    if len(spend) != len(NOTHING) or any(math.isnan(value) or value < 0 for value in spend):
        raise LedgerError("not-a-spend", f"a spend is {len(NOTHING)} divergences of at least 0")
    return struct.pack(_FORMAT, *spend)


def unpack(accountant: int, blob: bytes) -> Spend:
    """Inverse of `pack`. Raises LedgerError "accountant-version" or "not-a-spend"."""
    if accountant != ACCOUNTANT_VERSION:
        raise LedgerError("accountant-version", f"a spend was written by accountant {accountant}: update the software")
    if len(blob) != struct.calcsize(_FORMAT):
        raise LedgerError("not-a-spend", f"a spend is {struct.calcsize(_FORMAT)} bytes, not {len(blob)}")
    spend = tuple(struct.unpack(_FORMAT, blob))
    pack(spend)
    return spend


def largest(first: Spend, second: Spend) -> Spend:
    """The larger divergence at each order: a bound wherever either of the two is one."""
    return tuple(map(max, first, second))


def above(first: Spend, second: Spend) -> Spend:
    """What `first` holds beyond `second` at each order; what rounding alone explains is nothing."""
    return tuple(0.0 if at_most(a, b) else a - b for a, b in zip(first, second, strict=True))


def at_most(a: float, b: float) -> bool:
    """a <= b, but for the rounding of sums that were made in another order."""
    return a <= b or a - b <= 1e-9 * abs(b)
