"""Means and scales of numbers, as round figures. A fleet learns them by `aggregator analytics`; here they are read off.

They come from the training rows without noise and without charge, so a benchmark's epsilon is that of training alone.
One digit is kept, which is about what an operator knows of his own business without asking any data.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, isnan, log10
from typing import Any

import numpy as np

from edge_sdk.artifact.schema import NumberField


def number(
    name: str, values: Sequence[Any], *, log: bool = False, missing: bool = False, edges: tuple[float, ...] = ()
) -> NumberField:
    """The field for these training values; NaN and None count as missing."""
    known = np.array([value for value in values if value is not None and not isnan(value)], np.float64)
    measured = np.sign(known) * np.log1p(np.abs(known)) if log else known
    scale = one_digit(float(measured.std())) or 1.0
    return NumberField(name, one_digit(float(measured.mean())), scale, log=log, missing=missing, edges=edges)


def one_digit(value: float) -> float:
    """The nearest number with one significant digit."""
    return round(value, -floor(log10(abs(value)))) if value else 0.0
