"""Gaussian noise inside training: Box-Muller in float32 over the secret stream, in slabs that fit a core's cache.

Float side channels that stay. Sampled floats are a lattice finer than any real Gaussian, but not a Gaussian: their low
bits can tell which sum they were added to (Mironov 2012; Haney et al. 2021, arXiv 2107.10138). Noise of the local
placement is of this kind; it is rounded to the round's grid of integers before it
leaves the device, which hides those bits from whoever sees it but is no proof. Shared noise, and all noise of the device
unit, is integer Skellam noise (privacy/mechanism) and has no such channel.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch

from edge_sdk.training.secure_random import SecretStream

_SLAB_PAIRS: Final = 1 << 16
# Below this word the lattice of 31-bit uniforms is coarse beside the logarithm: 53 more bits are drawn there.
_FINE: Final = 1 << 15


class Gaussian:
    """Independent normal draws from one stream. Not for two threads."""

    def __init__(self, stream: SecretStream) -> None:
        self._stream = stream
        self._bytes = bytearray()

    def fill(self, out: torch.Tensor, deviation: float) -> None:
        """Overwrite `out`, contiguous float32 [d], with draws of mean 0 and that standard deviation (tails to 10.3)."""
        flat = out.view(-1)
        for start in range(0, len(flat), 2 * _SLAB_PAIRS):
            self._slab(flat[start : start + 2 * _SLAB_PAIRS], deviation)

    def _slab(self, out: torch.Tensor, deviation: float) -> None:
        """Box and Muller 1958: sqrt(-2 ln u) times the cosine and the sine of a uniform angle."""
        half = (len(out) + 1) // 2
        words = self._words(2 * half)
        radius = self._radius(words[:half].bitwise_and_(0x7FFF_FFFF)).mul_(deviation)
        angle = words[half:].float().mul_(math.pi * 2.0**-31)
        torch.cos(angle, out=out[:half]).mul_(radius)
        rest = len(out) - half
        torch.sin(angle[:rest], out=out[half:]).mul_(radius[:rest])

    def _words(self, count: int) -> torch.Tensor:
        """int32 [count], uniform; overwritten by the next call."""
        wanted = self._stream.buffer_bytes(4 * count)
        if len(self._bytes) < wanted:
            self._bytes = bytearray(wanted)
        self._stream.fill(self._bytes, 4 * count)
        return torch.frombuffer(self._bytes, dtype=torch.int32, count=count)

    def _radius(self, words: torch.Tensor) -> torch.Tensor:
        """float32: sqrt(-2 ln((w + v) / 2^31)), v in (0, 1] where w is small and 0 elsewhere."""
        uniform = words.float()
        if len(words) and int(words.min()) < _FINE:
            small = torch.nonzero(words < _FINE).view(-1)
            parts = torch.from_numpy(self._stream.uniform(len(small)))
            uniform[small] = (words[small].double() + 1.0 - parts).float()
        return uniform.mul_(2.0**-31).log_().mul_(-2.0).clamp_(min=0.0).sqrt_()


def normal(stream: SecretStream, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """float32 [count], standard normal."""
    out = torch.empty(count)
    Gaussian(stream).fill(out, 1.0)
    return out.numpy()
