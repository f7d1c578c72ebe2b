"""Single values of a record: is it a number, is it missing, how does a message show it. Refuses what is not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_sdk.artifact.errors import RecordError

_LONGEST_SHOWN: Final = 60
_PLAIN: Final = frozenset((float, int, type(None)))

Floats = npt.NDArray[np.float64]


def absent(value: Any) -> bool:
    """None, or a float that is not a number."""
    return value is None or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def plain_numbers(values: Sequence[Any]) -> Floats | None:
    """float64, NaN for None, where all are Python's own floats, integers and None: a fast way for most columns.

    None for other values and for infinity, which are then looked at one by one.
    """
    if not set(map(type, values)) <= _PLAIN:
        return None
    try:
        numbers = np.array(values, np.float64)
    except OverflowError:
        return None
    return None if np.isinf(numbers).any() else numbers


def finite(value: Any, what: str) -> float:
    """The number as a float; `what` says in a message which one is needed. Raises RecordError."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise RecordError("wrong-type", f"{what}, not {shown(value)}")
    try:
        number = float(value)
    except OverflowError:  # an integer that no float holds
        number = math.inf
    if not math.isfinite(number):
        raise RecordError("not-finite", f"{what}, not {number!r}")
    return number


def shown(value: Any) -> str:
    """A value as a message names it, cut to a line."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
