"""What the label of a table is: yes or no, one of some classes, or a number. Pure.

Refuses, with DataRefused, a label that says nothing, or too much.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from aggregator.rehearsal import cells, units
from aggregator.rehearsal.tables import DataRefused, Table
from aggregator.rehearsal.understood import Answers, Assumption, Wishes
from edge_sdk.artifact.schema import LabelKind

MOST_CLASSES: Final = 200
FEW_NUMBERS: Final = 10  # so many different whole numbers are classes
PARSED: Final = 0.98  # of the values, for them to be numbers
LONGEST_NAME: Final = 200
_YES: Final = frozenset((
    "1", "yes", "y", "true", "t", "on", "positive", "pos", "good", "churn", "churned", "left", "default",
    "died", "bad", "spam", "是", "有", "真", "对", "好评", "正面", "流失",
))  # fmt: skip
_NO: Final = frozenset(("0", "no", "n", "false", "f", "off", "negative", "neg", "否", "无", "假", "错", "差评", "负面"))


def answers_of(table: Table, wishes: Wishes, said: list[Assumption], notes: list[str]) -> Answers:
    """The label, None where a row's is none of it; what was taken for what goes to `said`. Raises DataRefused."""
    words = table.columns[wishes.label]
    held = units.units_of(words, decimal_comma=table.decimal_comma)
    numbers = units.numbers_in(words, held, decimal_comma=table.decimal_comma)
    counts = Counter(words)
    if len(counts) == 1:
        raise DataRefused(f"every row has the same {wishes.label!r}, {words[0][:40]!r}", "choose another --label")
    kind, why = _label_kind(wishes, counts, numbers, units.mixed(wishes.label, held) if len(held) > 1 else "")
    if len(held) > 1:
        notes.append(units.mixed(wishes.label, held))
    if kind == "number":
        known = [value for value in numbers if value is not None]
        if len(set(known)) < 2:
            raise DataRefused(f"{wishes.label!r} does not hold numbers", "leave --kind number out")
        if len(known) < len(words):
            notes.append(f"{len(words) - len(known)} rows whose {wishes.label!r} is no number are left out")
        unit = f", in {held[0]}" if held else ""
        said.append(Assumption(wishes.label, "label: a number", why + unit, "--kind classes"))
        return Answers(wishes.label, kind, (), numbers)
    names = _class_names(wishes, counts, notes)
    which = f"label: {names[1]!r} or not" if kind == "binary" else f"label: one of {len(names)} classes"
    numeric = any(value is not None for value in numbers)
    override = "--positive VALUE" if kind == "binary" else "--kind number" if numeric else "--label"
    said.append(Assumption(wishes.label, which, why, override))
    values = [word if word in set(names) else None for word in words]
    return Answers(wishes.label, kind, names, values)


def _label_kind(
    wishes: Wishes, counts: Counter[str], numbers: Sequence[float | None], mixed: str
) -> tuple[LabelKind, str]:
    """The kind and why. `mixed`: what is wrong with its units, "" where nothing."""
    if wishes.kind == "binary" and len(counts) > 2:
        raise DataRefused(f"{wishes.label!r} has {len(counts)} values, not two", "give --kind classes or number")
    if wishes.kind:
        return ("binary" if wishes.kind == "classes" and len(counts) == 2 else wishes.kind), "as you said"
    if len(counts) == 2:
        return "binary", "two values"
    known = [value for value in numbers if value is not None]
    if len(known) >= PARSED * len(numbers):
        if len(counts) <= FEW_NUMBERS and all(value.is_integer() for value in known):
            return "classes", f"{len(counts)} different whole numbers; an order among them is not used"
        return "number", f"{len(set(known))} different numbers"
    if len(counts) > MOST_CLASSES:
        raise DataRefused(
            f"{wishes.label!r} has {len(counts)} different texts: too many to be classes",
            mixed or f"choose a label of at most {MOST_CLASSES} values, or a number",
        )
    return "classes", f"{len(counts)} different texts"


def _class_names(wishes: Wishes, counts: Counter[str], notes: list[str]) -> tuple[str, ...]:
    if len(counts) > MOST_CLASSES:
        raise DataRefused(f"{wishes.label!r} has {len(counts)} classes", f"choose a label of at most {MOST_CLASSES}")
    if len(counts) == 2:
        return _two_names(wishes, counts)
    names = sorted(name for name, count in counts.items() if count >= 2)
    if len(names) < len(counts):
        notes.append(f"{len(counts) - len(names)} classes with a single row are left out")
    if len(names) < 2:
        raise DataRefused(f"nearly every row has a {wishes.label!r} of its own", "choose another --label")
    if max(map(len, names)) > LONGEST_NAME:
        raise DataRefused(f"{wishes.label!r} holds long texts", "choose a label of short names, or a number")
    return tuple(sorted(names, key=_in_order))


def _in_order(name: str) -> tuple[float, str]:
    value = cells.number(name)
    return (float("inf") if value is None else value), name


def _two_names(wishes: Wishes, counts: Counter[str]) -> tuple[str, ...]:
    if wishes.positive and wishes.positive not in counts:
        raise DataRefused(f"--positive {wishes.positive!r} is no value of {wishes.label!r}", f"give one of {[*counts]}")
    rare = min(counts, key=lambda name: (counts[name], name))
    guessed = [name for name in counts if name.lower() in _YES]
    negative = [name for name in counts if name.lower() in _NO]
    positive = wishes.positive or (guessed[0] if len(guessed) == 1 else "")
    if not positive:
        positive = next(name for name in counts if name not in negative) if len(negative) == 1 else rare
    other = next(name for name in counts if name != positive)
    if max(len(positive), len(other)) > LONGEST_NAME:
        raise DataRefused(f"{wishes.label!r} holds long texts", "choose a label of short names, or a number")
    return other, positive
