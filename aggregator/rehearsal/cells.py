"""Single cells of a table: is it a number, is it a date. Pure; refuses nothing: what is neither is None.

Dates are local time as written: an offset from UTC is left out, and `offsets` tells which there are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

_LONGEST: Final = 40  # characters of a date
_GROUPED: Final = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
_COMMA: Final = re.compile(r"[+-]?\d+,\d+")
_MONEY: Final = "$€£¥￥ \u00a0"
_TIME: Final = r"(?:[T ,]+(\d{1,2}):(\d{2})(?::(\d{2}))?(?:\.\d+)?\s*([AaPp][Mm])?\s*(?:Z|UTC|[+-]\d{2}:?\d{2})?)?"
_YEAR_FIRST: Final = re.compile(r"(\d{4})[-/.年](\d{1,2})[-/.月](\d{1,2})日?" + _TIME)
_YEAR_LAST: Final = re.compile(r"(\d{1,2})[-/.](\d{1,2})[-/.](\d{4}|\d{2})" + _TIME)
_COMPACT: Final = re.compile(r"((?:19|20)\d{2})(\d{2})(\d{2})" + _TIME)
_DAY_NAME: Final = re.compile(r"(\d{1,2})[ -]([A-Za-z]{3})[a-z]*\.?,?[ -](\d{4})" + _TIME)
_NAME_DAY: Final = re.compile(r"([A-Za-z]{3})[a-z]*\.? (\d{1,2}),? (\d{4})" + _TIME)
_OFFSET: Final = re.compile(r".*:\d{2}(?:\.\d+)?\s*([AaPp][Mm])?\s*(Z|UTC|[+-]\d{2}:?\d{2})")
_EPOCH: Final = re.compile(r"\d{9,19}(?:\.\d+)?")
_PER_SECOND: Final = (1, 10**3, 10**6, 10**9)
_FIRST_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC).timestamp()
_LAST_EPOCH: Final = datetime(2040, 1, 1, tzinfo=UTC).timestamp()
_CLOCK: Final = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?(?:\.\d+)?\s*([AaPp][Mm])?")
_MONTHS: Final = {
    "jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6,
    "jul": 7, "aug": 8, "sep": 9, "oct": 10, "nov": 11, "dec": 12,
}  # fmt: skip


def number(text: str, *, decimal_comma: bool = False) -> float | None:
    """The finite number that a cell says: 12, 1,234.5, 7 %, $3, or 3,14 where `decimal_comma`."""
    bare = text.strip(_MONEY)
    percent = bare.endswith(("%", "％"))
    if percent:
        bare = bare[:-1].rstrip()
    if decimal_comma and _COMMA.fullmatch(bare):
        bare = bare.replace(",", ".")
    elif _GROUPED.fullmatch(bare):
        bare = bare.replace(",", "")
    if "_" in bare:  # Python's own way to group digits, and nobody else's
        return None
    try:
        value = float(bare)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def dates(texts: Sequence[str]) -> list[datetime | None]:
    """Each cell's date. 03/04/2024 is March unless some cell of the column can only be day first."""
    day_first = any(_says_day_first(text) for text in set(texts))
    known = {text: date(text, day_first=day_first) for text in set(texts)}
    return [known[text] for text in texts]


def offsets(texts: Sequence[str]) -> list[str]:
    """The offsets from UTC that dates of a column are written with, Z among them."""
    return sorted({found[2] for text in set(texts) if len(text) <= _LONGEST and (found := _OFFSET.fullmatch(text))})


def epochs(texts: Sequence[str]) -> list[datetime | None]:
    """Each cell's date in UTC, of seconds since 1970 (or milli-, micro-, nanoseconds) from 2000 to 2040."""
    known = {text: _epoch(text) for text in set(texts)}
    return [known[text] for text in texts]


def _epoch(text: str) -> datetime | None:
    if not _EPOCH.fullmatch(text):
        return None
    for parts in _PER_SECOND:
        seconds = float(text) / parts
        if _FIRST_EPOCH <= seconds < _LAST_EPOCH:
            return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    return None


def _says_day_first(text: str) -> bool:
    found = _YEAR_LAST.fullmatch(text)
    return found is not None and (int(found[1]) > 12 or "." in text[:6])


def date(text: str, *, day_first: bool) -> datetime | None:
    """ISO, 2024/5/31, 20240531, 2024年5月31日, 31.5.2024, 5/31/2024, 31 May 2024, May 31, 2024, each with a time.

    A time alone, 14:05, is one of 1 January 1970.
    """
    if len(text) > _LONGEST:
        return None
    if found := _YEAR_FIRST.fullmatch(text) or _COMPACT.fullmatch(text):
        year, month, day = found[1], found[2], found[3]
    elif found := _YEAR_LAST.fullmatch(text):
        year, month, day = found[3], *((found[2], found[1]) if day_first else (found[1], found[2]))
    elif found := _DAY_NAME.fullmatch(text):
        year, month, day = found[3], str(_MONTHS.get(found[2].lower(), 0)), found[1]
    elif found := _NAME_DAY.fullmatch(text):
        year, month, day = found[3], str(_MONTHS.get(found[1].lower(), 0)), found[2]
    elif found := _CLOCK.fullmatch(text):  # a time of day: of some day
        return _made(1970, 1, 1, found.groups())
    else:
        return None
    return _made(int(year), int(month), int(day), found.groups()[3:])


def _made(year: int, month: int, day: int, time: Sequence[str | None]) -> datetime | None:
    hour, minute, second, half = time
    at = int(hour or 0)
    if half:
        at = at % 12 + (12 if half.lower() == "pm" else 0)
    try:
        return datetime(year + (2000 if year < 100 else 0), month, day, at, int(minute or 0), int(second or 0))
    except ValueError:
        return None
