"""Numbers written with a unit, 67.0 kg or USD 102.93: which units a column holds, and its numbers in one of them. Pure.

A unit stands after the number, before it only where it is money: B 12 and shop 3 are names, and so is 2. Yes. Refuses
nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from aggregator.rehearsal import cells

NEARLY_ALL: Final = 0.98  # of a column's cells, for them to be numbers in the units that are found
MOST_UNITS: Final = 3  # a column of more is one of codes
SAMPLE: Final = 5000  # cells looked at
_LONGEST: Final = 40
_MONEY: Final = (
    r"(?:USD|EUR|GBP|CNY|RMB|JPY|KRW|HKD|TWD|SGD|AUD|CAD|NZD|CHF|SEK|NOK|DKK|PLN|CZK|HUF|INR|RUB|BRL|MXN|ZAR|TRY|THB|"
    r"IDR|MYR|PHP|VND|AED|SAR|ILS|US\$|HK\$|NT\$|AU?\$|CA?\$|S\$|R\$|Rs\.?|kr\.?|zł|人民币|美元|港币|港元|[₹₩₽₺₫₱฿₴₦])"
)
_WITH_UNIT: Final = re.compile(
    rf"(?P<before>{_MONEY})?\s*(?P<digits>[+-]?(?!0\d)\d(?:[\d.,]*\d)?(?:[eE][+-]?\d+)?)\s*"
    rf"(?P<after>{_MONEY}|(?:[^\W\d_]|[°µ'\"′″])[^\s\d+_]{{0,15}}(?: [^\s\d+_]{{1,12}})?)?"
)
_PLURAL: Final = re.compile(r"[a-z]{2,}s")
_NO_UNITS: Final = frozenset(("st", "nd", "rd", "th", "am", "pm", "AM", "PM"))


def units_of(column: Sequence[str], *, decimal_comma: bool) -> tuple[str, ...]:
    """Units of nearly all cells that hold something, the most frequent first; () where they are plain or no numbers.

    A number without a unit goes with the others, unless most are so.
    """
    known = [cell for cell in column if cell]
    seen = known[:: max(1, len(known) // SAMPLE)]
    found = [each for cell in seen if (each := _quantity(cell, decimal_comma)) is not None]
    counts = Counter(unit for _, unit in found)
    plain = held = counts.pop("", 0)
    units: list[str] = []
    for unit, count in counts.most_common(MOST_UNITS):
        units.append(unit)
        held += count
        if held >= NEARLY_ALL * len(seen):
            break
    if not units or held < NEARLY_ALL * len(seen) or plain > counts[units[0]]:
        return ()
    codes = all(len(unit) == 1 and unit.isascii() for unit in units) and all(value.is_integer() for value, _ in found)
    return () if {unit.split()[0] for unit in units} <= _NO_UNITS or (len(units) > 1 and codes) else tuple(units)


def numbers_in(column: Sequence[str], units: Sequence[str], *, decimal_comma: bool) -> list[float | None]:
    """Each cell's number, in the first of these units where there are any; None where it is in another or is none."""
    if not units:
        return [cells.number(cell, decimal_comma=decimal_comma) for cell in column]
    found = (_quantity(cell, decimal_comma) for cell in column)
    return [each[0] if each is not None and each[1] in ("", units[0]) else None for each in found]


def _quantity(text: str, decimal_comma: bool) -> tuple[float, str] | None:
    """(number, unit, "" without one)."""
    plain = cells.number(text, decimal_comma=decimal_comma)
    if plain is not None:
        return plain, ""
    found = _WITH_UNIT.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None or (found["before"] and found["after"]):
        return None
    value = cells.number(found["digits"], decimal_comma=decimal_comma)
    unit = (found["before"] or found["after"] or "").rstrip(". ")
    return None if value is None else (value, unit[:-1] if _PLURAL.fullmatch(unit) else unit)


def mixed(name: str, units: Sequence[str]) -> str:
    """What is wrong with a column of several units, and what would help."""
    return (
        f"{name!r} holds numbers in {', '.join(units[:-1])} and {units[-1]}, which do not compare: "
        f"write them all in one unit"
    )
