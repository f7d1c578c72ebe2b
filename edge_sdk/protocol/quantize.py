"""Real vectors to integers and back: projection to an L2 ball, then unbiased rounding. SPEC 7.4. Pure.

Refuses NaN and infinity. What one unit can change is bounded in two ways. `quantize`, for a whole update: the rounding
is conditional as in Kairouz, Liu and Steinke 2021 (The Distributed Discrete Gaussian Mechanism for Federated Learning
with Secure Aggregation, algorithm 1 and proposition 4.2), drawn again until the integer vector's norm keeps the bound
that the accountant counts with. `quantize_sum`, for a sum of clipped gradients: drawn once, by a coupling.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_sdk.protocol.errors import LocalProtocolError, SizingRefused
from edge_sdk.protocol.secagg.keystream import Keystream

_ATTEMPTS: Final = 10
_SLAB: Final = 1 << 13
# What `quantize_sum` takes off every value, so that errors of floating point cannot pass the bound: float64 here, and
# above all the float32 in which training clips and adds up. A sum of n gradients of norm C errs by at most
# n^2 2^-24 C in L2: less than 2^-12 C for 64, and by far less than this worst case for any number.
SUM_SCALE: Final = 1 - 2.0**-12


def integer_bound(clip: float, step: float) -> int:
    """The largest |integer| `quantize` may return, in steps. Raises SizingRefused when 32 bits would not hold it."""
    if not (0 < clip < math.inf and 0 < step < math.inf):
        raise SizingRefused("clip and step are positive and finite", reason="clip-or-step")
    bound = math.floor(clip / step) + 1
    if bound >= 1 << 31:
        raise SizingRefused("the step is too small for this clip; take a larger step", reason="clip-or-step")
    return bound


def l2_bound(clip: float, step: float, size: int) -> float:
    """L2 sensitivity in steps of a rounded vector of `size` values: what the accountant must use instead of C/step.

    Kairouz et al. 2021, equation (4) with beta = exp(-1/2): each draw keeps it with probability at least 0.39.
    """
    integer_bound(clip, step)
    radius, root = clip / step, math.sqrt(size)
    return min(radius + root, math.sqrt(radius**2 + size / 4 + radius + root / 2))


def quantize(values: npt.NDArray[np.float32], clip: float, step: float, keystream: Keystream) -> npt.NDArray[np.int32]:
    """float32[d] -> int32[d] in steps: scaled down to norm `clip` if above, rounded up or down without bias.

    The result's norm is at most `l2_bound(clip, step, d)`, its entries at most `integer_bound(clip, step)`. After ten
    draws beyond the bound it rounds toward zero. Raises LocalProtocolError for NaN, infinity or a shape other than d.
    """
    integer_bound(clip, step)
    if values.ndim != 1:
        raise LocalProtocolError("an update is one vector", reason="vector-shape")
    norm = _norm(values)
    scale = min(1.0, clip / norm if norm > 0 else 1.0) / step
    bound = l2_bound(clip, step, len(values))
    for _ in range(_ATTEMPTS):
        rounded, squares = _round(values, scale, keystream)
        if squares <= bound**2:
            return rounded
    return np.trunc(values.astype(np.float64) * scale).astype(np.int32)


def quantize_sum(
    values: npt.NDArray[np.float32], clip: float, step: float, keystream: Keystream
) -> npt.NDArray[np.int32]:
    """float32[d] -> int32[d] in steps, for a sum of gradients clipped to C: projected to norm `clip`, rounded once.

    Sums that differ by one gradient give vectors at most C/step + sqrt(d) apart in L2 under one keystream: projection
    to a ball moves no two points apart, so the scaled values a, b differ by at most C/step; and as rounding is
    floor(a + u) with the same u, |floor(a + u) - floor(b + u)| < |a - b| + 1 in every coordinate. A divergence between
    the noised results is at most the largest over u (quasi-convexity), so that bound is the sensitivity. Drawing again
    until a norm is kept would break it: the draws of two sums would come apart. All is shrunk by SUM_SCALE, the room
    for errors of floating point. Entries are at most `integer_bound(clip, step)`. Raises LocalProtocolError as
    `quantize`.
    """
    integer_bound(clip, step)
    if values.ndim != 1:
        raise LocalProtocolError("an update is one vector", reason="vector-shape")
    norm = _norm(values)
    scale = min(1.0, clip / norm if norm > 0 else 1.0) * SUM_SCALE / step
    return _round(values, scale, keystream)[0]


def _norm(values: npt.NDArray[np.float32]) -> float:
    squares = 0.0
    for start in range(0, len(values), _SLAB):
        part = values[start : start + _SLAB].astype(np.float64)
        squares += float(part @ part)
    if not math.isfinite(squares):
        where = int(np.flatnonzero(~np.isfinite(values))[0])
        raise LocalProtocolError(
            f"the update holds {values[where]} at position {where}; the training diverged, lower the learning rate",
            reason="not-finite",
        )
    return math.sqrt(squares)


def _round(values: npt.NDArray[np.float32], scale: float, keystream: Keystream) -> tuple[npt.NDArray[np.int32], float]:
    """floor(value * scale + u), u uniform on the multiples of 2^-32 in [0, 1), and the sum of squares."""
    rounded, squares = np.empty(len(values), np.int32), 0.0
    for start in range(0, len(values), _SLAB):
        part = values[start : start + _SLAB].astype(np.float64)
        part *= scale
        uniform = keystream.uint32(len(part)).astype(np.float64)
        uniform *= 2.0**-32
        part += uniform
        np.floor(part, out=part)
        squares += float(part @ part)
        rounded[start : start + _SLAB] = part
    return rounded, squares


def dequantize(total: npt.NDArray[np.int64], step: float, devices: int) -> npt.NDArray[np.float32]:
    """Mean of `devices` vectors whose integer sum, int64[d] in steps, was opened."""
    if devices < 1:
        raise LocalProtocolError("a mean needs at least one device", reason="no-devices")
    mean: npt.NDArray[np.float32] = (total * (step / devices)).astype(np.float32)
    return mean
