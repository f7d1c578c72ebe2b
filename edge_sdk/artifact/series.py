"""A window of values relative to its own level, and what the calendar says of the day. Pure.

So one model serves a kiosk with three visitors a day and one with three thousand. Refuses, with RecordError, a window
that is too long, a value that is no finite number, and a date that is not ISO 8601.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_sdk.artifact.errors import RecordError
from edge_sdk.artifact.fields import CALENDAR_WIDTH, Calendar, SeriesField
from edge_sdk.artifact.values import absent, finite, plain_numbers, shown

YEAR_DAYS: Final = 365.25
_SMALLEST_SPREAD: Final = 1e-6
_LARGEST: Final = 1e30  # values beyond count as this: squares stay far below what a float holds
_LEVEL_SCALE: Final = 5.0

Floats = npt.NDArray[np.float64]


def encode(field: SeriesField, records: Sequence[Mapping[str, Any]]) -> Floats:
    """Columns [B, field.width]: the window as (t - base) / spread, base / 5, share of missing values, calendar."""
    known = window(field, records)
    level = levels(field, known)
    base, spread = level[:, :1], level[:, 1:]
    relative = np.where(np.isnan(known), 0.0, (np.nan_to_num(known) - base) / spread)
    size = base if field.log else np.sign(base) * np.log1p(np.abs(base))
    absent = np.isnan(known).mean(axis=1, keepdims=True)
    return np.hstack([relative, size / _LEVEL_SCALE, absent, calendar(field, records)])


def window(field: SeriesField, records: Sequence[Mapping[str, Any]]) -> Floats:
    """t [B, window], NaN where missing: log(1 + max(x, 0)) where `log`, else x within +-1e30. Raises RecordError."""
    values = np.full((len(records), field.window), np.nan)
    for index, record in enumerate(records):
        found = known_values(field, record[field.name], index)
        values[index, field.window - len(found) :] = found
    values = np.clip(values, 0.0 if field.log else -_LARGEST, _LARGEST if not field.log else None)
    return np.asarray(np.log1p(values) if field.log else values)


def levels(field: SeriesField, known: Floats) -> Floats:
    """[B, 2]: base, the mean of the known t (0 without one), and spread, 1 where `log` or where all are equal.

    Otherwise the spread is the standard deviation over the known t, at least 1e-6.
    """
    there = ~np.isnan(known)
    count = np.maximum(there.sum(axis=1), 1)
    filled = np.where(there, known, 0.0)
    base = filled.sum(axis=1) / count
    if field.log:
        return np.column_stack([base, np.ones_like(base)])
    deviation = np.sqrt((np.where(there, known - base[:, None], 0.0) ** 2).sum(axis=1) / count)
    highest = np.where(there, known, -np.inf).max(axis=1, initial=-np.inf)
    lowest = np.where(there, known, np.inf).min(axis=1, initial=np.inf)
    return np.column_stack([base, np.where(highest > lowest, np.maximum(deviation, _SMALLEST_SPREAD), 1.0)])


def known_values(field: SeriesField, value: Any, index: int) -> Floats:
    """The values of one window [at most window], NaN where missing. Raises RecordError."""
    if type(value) is list and len(value) <= field.window and (plain := plain_numbers(value)) is not None:
        return plain
    what = f"record {index}: {field.name!r} must be a list of at most {field.window} numbers or None, oldest first"
    listed = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(listed, list | tuple):
        raise RecordError("wrong-type", f"{what}, not {shown(value)}")
    if len(listed) > field.window:
        raise RecordError("too-long", f"{what}, not {len(listed)} of them")
    return np.array([math.nan if absent(each) else finite(each, what) for each in listed], np.float64)


def calendar(field: SeriesField, records: Sequence[Mapping[str, Any]]) -> Floats:
    """Columns [B, C] of the parts of `field.calendar`, in their order. Raises RecordError."""
    columns = np.zeros((len(records), sum(CALENDAR_WIDTH[part] for part in field.calendar)))
    if not field.calendar:
        return columns
    moments = [moment(field, record, index) for index, record in enumerate(records)]
    start = 0
    for part in field.calendar:
        end = start + CALENDAR_WIDTH[part]
        _CALENDAR[part](columns[:, start:end], moments)
        start = end
    return columns


def moment(field: SeriesField, record: Mapping[str, Any], index: int) -> datetime:
    """The date and time that a record is for. Raises RecordError."""
    value = record.get(field.time)
    try:
        if isinstance(value, str):
            return datetime.fromisoformat(value)
    except ValueError:
        pass
    what = (
        f"record {index}: {field.time!r} must be an ISO date such as 2024-05-31 or 2024-05-31T09:30, not {shown(value)}"
    )
    raise RecordError("bad-date", what)


def _one_hot(columns: Floats, places: Sequence[int]) -> None:
    columns[np.arange(len(places)), np.array(places, np.int64)] = 1.0


def _yearday(columns: Floats, moments: Sequence[datetime]) -> None:
    """Sine and cosine of one turn and of two turns a year, from the first of January."""
    turn = np.array([each.timetuple().tm_yday - 1 for each in moments]) * (2 * np.pi / YEAR_DAYS)
    columns[:] = np.column_stack([np.sin(turn), np.cos(turn), np.sin(2 * turn), np.cos(2 * turn)])


_CALENDAR: Final[dict[Calendar, Callable[[Floats, Sequence[datetime]], None]]] = {
    "weekday": lambda columns, moments: _one_hot(columns, [each.weekday() for each in moments]),
    "month": lambda columns, moments: _one_hot(columns, [each.month - 1 for each in moments]),
    "hour": lambda columns, moments: _one_hot(columns, [each.hour for each in moments]),
    "yearday": _yearday,
}
