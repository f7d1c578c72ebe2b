"""Clipping and the integer noise of what leaves a device. Draws no randomness of its own: a keystream is passed in.

Refuses NaN, infinity and noise without variance. The noise is Skellam, the difference of two equal Poissons: sums of
Skellam variables are Skellam, so the devices' shares add up to exactly the noise that the accountant counts (Agarwal,
Kairouz and Liu 2021, The Skellam Mechanism for Differentially Private Federated Learning).
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_sdk.protocol.errors import LocalProtocolError
from edge_sdk.protocol.secagg.keystream import Keystream

_TAIL_BITS: Final = 60
_LARGEST_INDEX_BITS: Final = 18  # a table of 4 MiB, made in 0.2 s; each part of a split variance costs a pass
_SLAB: Final = 1 << 13


def clip_l2(values: npt.NDArray[np.float32], clip: float) -> npt.NDArray[np.float32]:
    """The vector scaled down to L2 norm `clip` where it is longer. Raises LocalProtocolError for NaN or infinity."""
    norm = float(np.linalg.norm(values.astype(np.float64)))
    if not math.isfinite(norm):
        raise LocalProtocolError("the update holds NaN or infinity; lower the learning rate", reason="not-finite")
    if norm <= clip:
        return values
    clipped: npt.NDArray[np.float32] = (values * (clip / norm)).astype(np.float32)
    return clipped


class SkellamSampler:
    """Skellam noise of mean 0 by an alias table (Walker 1977, Vose 1991) in exact integer arithmetic.

    One 64-bit word of a keystream is one draw: its low b bits choose a cell, the others are compared with the cell's
    threshold. Total-variation distance to Skellam: the tail cut off is below 2^-60 (Bernstein), each probability is
    rounded to a multiple of 2^-64, so it is below 2^-60 + 2^(b-64): 2^-51 at sigma 126 (b = 12). A variance whose
    table would need more than 18 bits (sigma above 14,000) is split into equal parts, drawn and added; the distances
    add up too.
    """

    def __init__(self, variance: float) -> None:
        """`variance` in squared steps. Raises LocalProtocolError unless it is positive and finite."""
        if not 0 < variance < math.inf:
            raise LocalProtocolError("the variance of the noise is positive and finite", reason="no-noise")
        self.variance = variance
        self._parts = 1
        while 2 * _reach(variance / self._parts) + 1 > 1 << _LARGEST_INDEX_BITS:
            self._parts += 1
        weights = _weights(Fraction(variance) / self._parts)
        self._reach = len(weights) // 2
        self._bits = (len(weights) - 1).bit_length()
        thresholds, alias = _alias_table(weights, self._bits)
        self._threshold = np.array(thresholds, np.uint64)
        # Entry 2i is what cell i gives below its threshold, entry 2i+1 what it gives above.
        cells = np.arange(1 << self._bits)
        self._value = (np.stack([cells, np.array(alias)], axis=1).reshape(-1) - self._reach).astype(np.int32)

    def draw(self, count: int, keystream: Keystream) -> npt.NDArray[np.int32]:
        """`count` independent draws in steps, int32[count]."""
        noise = np.empty(count, np.int32)
        for start in range(0, count, _SLAB):
            end = min(start + _SLAB, count)
            noise[start:end] = self._slab(end - start, keystream)
            for _ in range(self._parts - 1):
                noise[start:end] += self._slab(end - start, keystream)
        return noise

    def _slab(self, count: int, keystream: Keystream) -> npt.NDArray[np.int32]:
        words = keystream.uint64(count)
        cells = (words & np.uint64((1 << self._bits) - 1)).view(np.int64)
        words >>= np.uint64(self._bits)
        above = words >= self._threshold.take(cells, mode="clip")
        cells <<= 1
        cells |= above
        return self._value.take(cells, mode="clip")


def _reach(variance: float) -> int:
    """K with P[|X| > K] < 2^-60, by Bernstein: 2 exp(-K^2 / (2 (variance + K/3))) <= 2^-60."""
    exponent = (_TAIL_BITS + 1) * math.log(2)
    return math.ceil(exponent / 3 + math.sqrt((exponent / 3) ** 2 + 2 * exponent * variance)) + 1


def _weights(variance: Fraction) -> list[int]:
    """Probabilities of -K ... K in units of 2^-64, adding up to 2^64.

    P[k] is proportional to the modified Bessel function I_k(variance), which Miller's backward recurrence gives:
    I_(k-1) = I_(k+1) + (2k / variance) I_k.
    """
    reach = _reach(float(variance))
    start = reach + reach // 4 + 64
    above, here, bessel = 0, 1 << 128, [0] * (start + 1)
    for k in range(start, -1, -1):
        bessel[k] = here
        above, here = here, above + here * 2 * k * variance.denominator // variance.numerator
    total = bessel[0] + 2 * sum(bessel[1 : reach + 1])
    side = [(value << 64) // total for value in bessel[1 : reach + 1]]
    return [*reversed(side), (1 << 64) - 2 * sum(side), *side]


def _alias_table(weights: list[int], bits: int) -> tuple[list[int], list[int]]:
    """Vose's construction: 2^bits cells of equal weight, each shared by its own value and one alias."""
    size, cell = 1 << bits, 1 << (64 - bits)
    left = weights + [0] * (size - len(weights))
    threshold, alias = [cell] * size, list(range(size))
    small = [i for i, weight in enumerate(left) if weight < cell]
    large = [i for i, weight in enumerate(left) if weight >= cell]
    while small:
        poor, rich = small.pop(), large[-1]
        threshold[poor], alias[poor] = left[poor], rich
        left[rich] -= cell - left[poor]
        if left[rich] < cell:
            small.append(large.pop())
    return threshold, alias
