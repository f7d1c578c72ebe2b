"""What each column of a table is taken for, and why. Pure.

Every guess becomes an `Assumption` with the option that overrides it; what looks wrong (an identifier, a column that
says the answer) becomes a warning. Refuses, with DataRefused, a label that is not there or says nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, Final

from aggregator.rehearsal import cells, units
from aggregator.rehearsal.label_guess import answers_of
from aggregator.rehearsal.leaks import leaks
from aggregator.rehearsal.tables import DataRefused, Table
from aggregator.rehearsal.understood import Answers, Assumption, Feature, Role, Understood, Wishes, shell

PARSED: Final = 0.98  # of a column's values, for it to be taken for numbers or dates
STRAY_WORDS: Final = 3
SAMPLE: Final = 5000  # values looked at to guess what a column is
DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_CJK: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_ID_NAME: Final = re.compile(
    r"(.*[_ .-])?(id|ids|uuid|guid|key|rownames|rowname|index|idx|serial)|.*[a-z]ID|.*Id|row|unnamed.*|column 1"
    r"|no\.?"
    r"|编号|序号|.*编号|.*ID",
    re.IGNORECASE,
)
_TIME_NAME: Final = re.compile(
    r"(?i:(.*[_ .-])?(ts|dt|time|timestamp|date|datetime|day|when|at|on|epoch|unix|created|updated|modified|seen|login"
    r"|start|begin|end)(s|[_ .-].*)?)|.*(Time|Date|Timestamp|At|时间戳?|日期|时刻)"
)


def understand(table: Table, wishes: Wishes) -> Understood:
    """Find out what the columns are. Raises DataRefused."""
    _check_columns(table, wishes)
    notes = list(table.notes)
    table = _labelled(table, wishes, notes)
    assumptions: list[Assumption] = []
    answers = answers_of(table, wishes, assumptions, notes)
    kept = [place for place, value in enumerate(answers.values) if value is not None]
    if len(kept) < table.rows:
        table = table.take(kept)
        answers = Answers(answers.name, answers.kind, answers.names, [answers.values[i] for i in kept])
    owners = table.columns[wishes.by] if wishes.by else [""] * table.rows
    subjects = table.columns[wishes.subject] if wishes.subject else None
    found = Understood([], answers, owners, subjects, assumptions, notes)
    _add_features(found, table, wishes)
    if not found.features:
        raise DataRefused(
            f"no column is left to learn {wishes.label!r} from", "name one with --number, --category or --text"
        )
    found.warnings += leaks(found)
    return found


def _check_columns(table: Table, wishes: Wishes) -> None:
    named = {"--label": [wishes.label], "--by": [wishes.by], "--subject": [wishes.subject], "--drop": wishes.drop}
    named |= {f"--{role}": getattr(wishes, role) for role in ("number", "category", "text", "time")}
    for option, names in named.items():
        for name in names:
            if name and name not in table.columns:
                raise DataRefused(f"{option} names {name!r}, which is no column of the file", _nearest(name, table))
    if wishes.label in (wishes.by, wishes.subject, *wishes.drop):
        raise DataRefused(f"{wishes.label!r} is the label and something else", "name different columns")


def _nearest(name: str, table: Table) -> str:
    near = difflib.get_close_matches(name, table.columns, 1, 0.6)
    names = ", ".join(one[:30] for one in list(table.columns)[:12])
    more = ", …" if len(table.columns) > 12 else ""
    return (f"did you mean {near[0]!r}? " if near else "") + f"the columns are {names}{more}"


def _labelled(table: Table, wishes: Wishes, notes: list[str]) -> Table:
    answers = table.columns[wishes.label]
    kept = [
        place for place, value in enumerate(answers) if value and (not wishes.by or table.columns[wishes.by][place])
    ]
    if not kept:
        raise DataRefused(f"no row has a {wishes.label!r}", "choose another --label")
    if len(kept) < table.rows:
        by = f" or no {wishes.by!r}" if wishes.by else ""
        notes.append(f"{table.rows - len(kept)} of {table.rows} rows have no {wishes.label!r}{by} and are left out")
    return table.take(kept) if len(kept) < table.rows else table


# -- the other columns -------------------------------------------------------------------------------------------------


def _add_features(found: Understood, table: Table, wishes: Wishes) -> None:
    asked = wishes.roles()
    for name, column in table.columns.items():
        if name in (wishes.label, wishes.by, wishes.subject):
            continue
        role, why, override = guess(name, column, table.decimal_comma)
        if name in asked:
            role, why, override = asked[name], _as_said(column, asked[name], table.decimal_comma), ""
        elif role == "dropped" and why.startswith("looks like an identifier"):
            found.warnings.append(f"{name!r} {why} and is left out; {override} keeps it")
        if name not in asked or role == "number":
            found.warnings += _mixed_units(name, column, role, table.decimal_comma)
        features = _features(name, column, role, table.decimal_comma)
        taken = role if role != "time" else f"time: {', '.join(one.name[len(name) + 1 :] for one in features)}"
        missing = sum(not cell for cell in column)
        gone = f"; {missing / len(column):.0%} missing" if missing and role != "dropped" else ""
        found.assumptions.append(Assumption(name, "left out" if role == "dropped" else taken, why + gone, override))
        found.features += features
    for role_of, name, option in (("device", wishes.by, "--by"), ("customer", wishes.subject, "--subject")):
        if name:
            found.assumptions.append(Assumption(name, f"whose {role_of}; not learnt from", "as you said", option))


def _as_said(column: Sequence[str], role: Role, decimal_comma: bool) -> str:
    known = [cell for cell in column if cell]
    if role == "time":
        return f"as you said; {_time_words(known)}" if known else "as you said"
    held = units.units_of(known, decimal_comma=decimal_comma) if role == "number" else ()
    return f"as you said; in {held[0]}" if held else "as you said"


def _mixed_units(name: str, column: Sequence[str], role: Role, decimal_comma: bool) -> list[str]:
    """A warning where the numbers of a column are in several units."""
    held = () if role == "time" else units.units_of(column, decimal_comma=decimal_comma)
    if len(held) < 2:
        return []
    if role == "number":
        return [f"{units.mixed(name, held)}; only those in {held[0]} are taken, the others count as missing"]
    return [f"{units.mixed(name, held)}, or --number {shell(name)} takes those in {held[0]} alone"]


def guess(name: str, column: Sequence[str], decimal_comma: bool) -> tuple[Role, str, str]:
    """Role, reason and the option that overrides it."""
    known = [cell for cell in column if cell]
    distinct = len(set(known))
    if distinct == 0:
        return "dropped", "has no value", ""
    if distinct == 1:
        return "dropped", f"has the one value {known[0][:20]!r}", f"--category {shell(name)}"
    seen = known[:: max(1, len(known) // SAMPLE)]
    found_dates = cells.dates(seen)
    if sum(value is not None for value in found_dates) >= PARSED * len(seen) and not _plain_years(seen):
        return "time", _time_words(seen), f"--category {shell(name)}"
    since_1970 = sum(value is not None for value in cells.epochs(seen)) >= PARSED * len(seen)
    if since_1970 and _TIME_NAME.fullmatch(name):
        return "time", _time_words(seen), f"--number {shell(name)}"
    role, why, override = _number_or_words(name, known, distinct, decimal_comma)
    if since_1970 and role == "number":
        return role, f"perhaps times counted since 1970; {why}", f"--time {shell(name)}"
    return role, why, override


def _number_or_words(name: str, known: Sequence[str], distinct: int, decimal_comma: bool) -> tuple[Role, str, str]:
    seen = known[:: max(1, len(known) // SAMPLE)]
    numbers = [cells.number(cell, decimal_comma=decimal_comma) for cell in seen]
    parsed = sum(value is not None for value in numbers) / len(seen)
    strays = {cell for cell, value in zip(seen, numbers, strict=True) if value is None}
    if parsed >= PARSED or (parsed >= 0.5 and len(strays) <= 1):
        return _number_or_code(name, known, distinct, numbers, strays)
    if len(held := units.units_of(seen, decimal_comma=decimal_comma)) == 1:
        return "number", f"numbers in {held[0]}, {distinct} different", f"--category {shell(name)}"
    return _words(name, known, distinct)


def _time_words(known: Sequence[str]) -> str:
    """How the times of a column are read."""
    such = f"such as {known[0][:26]}"
    if not any(cells.dates(known)) and any(cells.epochs(known)):
        return f"counted since 1970, read in UTC; {such}"
    offsets = cells.offsets(known)
    some = ", ".join(offsets[:3]) + (", …" if len(offsets) > 3 else "")
    return f"local time as written ({some} left out); {such}" if offsets else f"parses as dates {such}"


def _plain_years(seen: Sequence[str]) -> bool:
    """Eight digits are a date only where most of them vary as dates do; four are never one."""
    return all(cell.isdecimal() and len(cell) != 8 for cell in seen)


def _number_or_code(
    name: str, known: Sequence[str], distinct: int, numbers: Sequence[float | None], strays: set[str]
) -> tuple[Role, str, str]:
    values = [value for value in numbers if value is not None]
    whole = all(value.is_integer() for value in values)
    if whole and distinct == len(known) > 20 and (_ID_NAME.fullmatch(name) or _counts_up(known)):
        return "dropped", "looks like an identifier: a whole number of its own in each row", f"--number {shell(name)}"
    if any(len(cell) > 1 and cell[0] == "0" and cell.isdecimal() for cell in known):
        return "category", "numbers written with leading zeros are codes", f"--number {shell(name)}"
    stray = f"; {', '.join(sorted(strays))[:30]!r} counts as missing" if strays else ""
    return "number", f"parses as numbers, {distinct} different{stray}", f"--category {shell(name)}"


def _counts_up(known: Sequence[str]) -> bool:
    """1, 2, 3, … in the order of the rows."""
    steps = [cells.number(cell) or 0.0 for cell in known[:SAMPLE]]
    return all(later - earlier == 1 for earlier, later in pairwise(steps))


def _words(name: str, known: Sequence[str], distinct: int) -> tuple[Role, str, str]:
    seen = known[:: max(1, len(known) // SAMPLE)]
    words = sum(len(cell.split()) for cell in seen) / len(seen)
    chinese = sum(len(_CJK.findall(cell)) for cell in seen) / len(seen)
    share = distinct / len(known)
    if share > 0.3 and distinct > 20 and (words >= 3 or chinese >= 4):
        size = f"{chinese:.0f} characters" if chinese > words else f"{words:.0f} words"
        return "text", f"{distinct} different texts of {size} on average", f"--category {shell(name)}"
    if distinct > 20 and (share > 0.9 or (share > 0.5 and _ID_NAME.fullmatch(name))):
        return (
            "dropped",
            f"looks like an identifier: {distinct} words for {len(known)} rows",
            f"--category {shell(name)}",
        )
    return "category", f"{distinct} different words", f"--text {shell(name)}"


def _features(name: str, column: Sequence[str], role: Role, decimal_comma: bool) -> list[Feature]:
    if role == "dropped":
        return []
    if role == "time":
        return _calendar(name, column)
    if role == "number":
        dated = cells.dates([cell for cell in column if cell])
        held = units.units_of(column, decimal_comma=decimal_comma)
        values = units.numbers_in(column, held, decimal_comma=decimal_comma)
        if not any(value is not None for value in values) and any(dated):
            days = {cell: when.timestamp() / 86_400 if when else None for cell, when in _by_cell(column).items()}
            values = [days.get(cell) for cell in column]
        known = [value for value in values if value is not None]
        if not known:
            raise DataRefused(f"--number names {name!r}, which holds no numbers", f"give --category {shell(name)}")
        return [Feature(name, "number", values, all(value.is_integer() for value in known))]
    return [Feature(name, role, [cell or None for cell in column])]


def _by_cell(column: Sequence[str]) -> dict[str, Any]:
    known = [cell for cell in column if cell]
    when = cells.dates(known)
    return dict(zip(known, when if any(when) else cells.epochs(known), strict=True))


def _calendar(name: str, column: Sequence[str]) -> list[Feature]:
    """Weekday, month and hour as words; what never varies is left out. The day itself will not come again."""
    when = _by_cell(column)
    if not any(when.values()):
        raise DataRefused(
            f"--time names {name!r}, which holds no dates", f"write dates as 2024-05-31, or --drop {shell(name)}"
        )
    parts: dict[str, Callable[[datetime], str]] = {
        "weekday": lambda at: DAYS[at.weekday()],
        "month": lambda at: MONTHS[at.month - 1],
        "hour": lambda at: f"{at.hour:02}",
    }
    made = []
    for part, word in parts.items():
        words = {cell: word(at) if at else None for cell, at in when.items()}
        values = [words.get(cell) for cell in column]
        if len({value for value in values if value}) > 1:
            made.append(Feature(f"{name} {part}", "category", values))
    return made
