"""Masked residues on the wire and their running sum. SPEC 6.1.1, 6.6. Refuses payloads of any other length.

The layout is planar: P16 is one plane of little-endian uint16; P24 a plane of uint16 (the low 16 bits of every
residue), then a plane of uint8 (the high 8 bits); P32 one plane of uint32. The sum is kept in the same planes, so
that adding is two narrow additions and a carry, and a snapshot is the bytes themselves.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from edge_sdk.protocol.errors import LocalProtocolError, MalformedMessage
from edge_sdk.protocol.secagg.ring import Profile, Residues

# Long enough that the calls do not count, short enough that planes and carries of one slab stay in the cache.
_SLAB: Final = 1 << 18


def residue_bytes(ring: Profile, length: int) -> int:
    """Bytes of `length` residues on the wire."""
    return ring.coefficient_bytes * length


def write_residues(ring: Profile, values: Residues, out: bytearray, length: int, first: int) -> None:
    """Store residues first ... of a vector of `length` into `out`; bits above the modulus are dropped."""
    last = first + len(values)
    if ring.modulus_bits == 32:
        np.frombuffer(out, "<u4", length)[first:last] = values
        return
    np.frombuffer(out, "<u2", length)[first:last] = values.view(np.uint16)[::2]
    if ring.modulus_bits == 24:
        np.frombuffer(out, "u1", length, 2 * length)[first:last] = values.view(np.uint8)[2::4]


def encode_residues(ring: Profile, residues: Residues) -> bytes:
    """The wire form of uint32[L]; bits above the modulus are dropped."""
    out = bytearray(residue_bytes(ring, len(residues)))
    write_residues(ring, np.ascontiguousarray(residues, np.uint32), out, len(residues), 0)
    return bytes(out)


def decode_residues(ring: Profile, payload: bytes | memoryview) -> Residues:
    """uint32[L] of a wire form. Raises MalformedMessage when the length is no multiple of a residue."""
    length, rest = divmod(len(payload), ring.coefficient_bytes)
    if rest:
        raise MalformedMessage("the residues end inside a coefficient", reason="residue-length")
    if ring.modulus_bits == 32:
        return np.frombuffer(payload, "<u4", length).astype(np.uint32)
    residues = np.frombuffer(payload, "<u2", length).astype(np.uint32)
    if ring.modulus_bits == 24:
        residues |= np.frombuffer(payload, "u1", length, 2 * length).astype(np.uint32) << np.uint32(16)
    return residues


class RunningSum:
    """Sum of masked vectors modulo q. It alone stays of the uploads that went into it."""

    def __init__(self, ring: Profile, length: int) -> None:
        """A sum of nothing, over `length` residues, canaries included."""
        self.profile, self.length, self.count = ring, length, 0
        width = 4 if ring.modulus_bits == 32 else 2
        self._low: npt.NDArray[np.unsignedinteger] = np.zeros(length, f"<u{width}")
        self._high = np.zeros(length if ring.modulus_bits == 24 else 0, np.uint8)
        self._carry = np.empty(min(_SLAB, length), np.bool_)

    def add(self, payload: bytes | bytearray | memoryview) -> None:
        """Add one wire-form vector. Raises MalformedMessage for any other length and then changes nothing."""
        self._add_planes(payload)
        self.count += 1

    def merge(self, other: RunningSum) -> None:
        """Add another running sum of the same profile and length. Raises LocalProtocolError for a different one."""
        if (other.profile, other.length) != (self.profile, self.length):
            raise LocalProtocolError("only sums of one profile and length add up", reason="sum-mismatch")
        self._add_planes(other.snapshot())
        self.count += other.count

    def _add_planes(self, payload: bytes | bytearray | memoryview) -> None:
        if len(payload) != residue_bytes(self.profile, self.length):
            raise MalformedMessage("the masked vector has the wrong length", reason="residue-length")
        low = np.frombuffer(payload, self._low.dtype, self.length)
        if not len(self._high):
            np.add(self._low, low, out=self._low)
            return
        high = np.frombuffer(payload, np.uint8, self.length, 2 * self.length)
        for start in range(0, self.length, _SLAB):
            self._add_slab(low[start : start + _SLAB], high[start : start + _SLAB], start)

    def _add_slab(self, low: npt.NDArray[np.unsignedinteger], high: npt.NDArray[np.uint8], start: int) -> None:
        end = start + len(low)
        total, carry = self._low[start:end], self._carry[: len(low)]
        np.add(total, low, out=total)
        # A 16-bit addition wrapped exactly where the sum is below the summand.
        np.less(total, low, out=carry)
        upper = self._high[start:end]
        np.add(upper, high, out=upper)
        np.add(upper, carry.view(np.uint8), out=upper)

    def snapshot(self) -> bytes:
        """The sum in wire form; with `count` it is all that `restore` needs."""
        return self._low.tobytes() + self._high.tobytes()

    @classmethod
    def restore(cls, ring: Profile, length: int, snapshot: bytes | memoryview, count: int) -> RunningSum:
        """The running sum of `count` vectors whose snapshot is given. Raises MalformedMessage for another length."""
        total = cls(ring, length)
        total._add_planes(snapshot)
        total.count = count
        return total

    def residues(self) -> Residues:
        """The sum as uint32[L], each below q."""
        return decode_residues(self.profile, self.snapshot())
