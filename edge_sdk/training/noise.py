"""Gaussian noise inside training: Box-Muller in float32 over the secret stream, in slabs that fit a core's cache.

Float side channels that stay. Sampled floats are a fine lattice, not a Gaussian: their low bits can tell which sum they
were added to (Mironov 2012; arXiv 2107.10138). Noise of the local placement is of this kind. The trained weights are
rounded to the round's grid of integers before they leave the device, which hides those bits from whoever sees it but is
no proof. Shared noise, and all noise of the device unit, is integer Skellam noise (privacy/mechanism): no such channel.
Imports no torch: numpy's float32 logarithm, sine and cosine take a third to a half of torch's time here.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_sdk.training.secure_random import SecretStream

Floats = npt.NDArray[np.float32]

_SLAB_PAIRS: Final = 1 << 15
# Below this word the lattice of 31-bit uniforms is coarse beside the logarithm: 53 more bits are drawn there.
_FINE: Final = 1 << 10


class Gaussian:
    """Independent normal draws from one stream. Not for two threads."""

    def __init__(self, stream: SecretStream) -> None:
        self._stream = stream
        self._bytes = bytearray(stream.buffer_bytes(8 * _SLAB_PAIRS))
        self._words = np.frombuffer(self._bytes, "<i4", 2 * _SLAB_PAIRS)
        self._radius, self._angle = np.empty((2, _SLAB_PAIRS), np.float32)

    def fill(self, out: Floats, deviation: float) -> None:
        """Overwrite `out` [d] with draws of mean 0 and that standard deviation (largest possible: 10.8 of them)."""
        for start in range(0, len(out), 2 * _SLAB_PAIRS):
            self._slab(out[start : start + 2 * _SLAB_PAIRS], deviation)

    def _slab(self, out: Floats, deviation: float) -> None:
        """Box and Muller 1958: sqrt(-2 ln u) times the cosine and the sine of a uniform angle."""
        half = (len(out) + 1) // 2
        rest = len(out) - half
        self._stream.fill(self._bytes, 8 * half)
        radius, angle = self._radius[:half], self._angle[:half]
        self._uniform(self._words[:half], radius)
        np.log(radius, out=radius)
        np.multiply(radius, np.float32(-2.0 * deviation * deviation), out=radius)
        np.sqrt(radius, out=radius)
        np.copyto(angle, self._words[half : 2 * half], casting="same_kind")
        np.multiply(angle, np.float32(math.pi * 2.0**-31), out=angle)
        np.cos(angle, out=out[:half])
        np.sin(angle[:rest], out=out[half:])
        np.multiply(out[:half], radius, out=out[:half])
        np.multiply(out[half:], radius[:rest], out=out[half:])

    def _uniform(self, words: npt.NDArray[np.int32], out: Floats) -> None:
        """(w + v) / 2^31 in (0, 1], w of 31 bits; v in (0, 1] where w is small and 0 elsewhere."""
        np.bitwise_and(words, 0x7FFF_FFFF, out=words)
        np.copyto(out, words, casting="same_kind")
        if words.min() < _FINE:
            small = np.flatnonzero(words < _FINE)
            out[small] = words[small] + (1.0 - self._stream.uniform(len(small)))
        np.multiply(out, np.float32(2.0**-31), out=out)


def normal(stream: SecretStream, count: int) -> Floats:
    """float32 [count], standard normal."""
    out = np.empty(count, np.float32)
    Gaussian(stream).fill(out, 1.0)
    return out
