"""Averages of groups that a few spoiled groups cannot carry far. Pure numpy; groups are sums that were opened.

Coordinate-wise median and trimmed mean (Yin et al. 2018, definitions 1 and 2), of the groups' means and not of
devices: those nobody sees. What holds for f spoiled of G groups holds for f malicious devices, each in its own group.
Robustness costs accuracy: the median of G groups varies about pi/2 times as much as their mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

Rule = Literal["mean", "median", "trimmed_mean"]
_SLAB: Final = 1 << 16  # coordinates at a time: 64 groups of them are 32 MiB

Total = npt.NDArray[np.int64] | npt.NDArray[np.float64]


def combine(rule: Rule, sums: Sequence[npt.NDArray[np.int64]], sizes: Sequence[int], trim: float) -> tuple[Total, int]:
    """(a total [d] in steps, its divisor) of at least one group's sum, int64 [d], and its number of devices.

    "mean": the exact integer sum over all devices; the others: of the groups' means, unweighted, with divisor 1.
    """
    if rule == "mean":
        return reduce(np.add, sums), sum(sizes)
    length, cut = len(sums[0]), 0 if rule == "median" else trimmed(len(sums), trim)
    total = np.empty(length, np.float64)
    for start in range(0, length, _SLAB):
        end = min(length, start + _SLAB)
        means = np.stack([each[start:end] / size for each, size in zip(sums, sizes, strict=True)])
        total[start:end] = np.median(means, axis=0) if rule == "median" else _trimmed_mean(means, cut)
    return total, 1


def trimmed(groups: int, trim: float) -> int:
    """How many groups go at either end of each coordinate: at least one of three, and one is always left."""
    return min(math.ceil(trim * groups), (groups - 1) // 2)


def _trimmed_mean(means: npt.NDArray[np.float64], cut: int) -> Any:
    return np.sort(means, axis=0)[cut : len(means) - cut].mean(axis=0)
