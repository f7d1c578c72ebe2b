"""Numbers with a unit are numbers, times since 1970 are times, and what cannot be told apart is said."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from aggregator.rehearsal import cells, units
from aggregator.rehearsal.inference import understand
from aggregator.rehearsal.tables import DataRefused, Table
from aggregator.rehearsal.understood import Wishes

ROWS = 200
RNG = random.Random(8)
FIRST = datetime(2024, 3, 1, tzinfo=UTC)


def table(**columns):
    made = {"y": [RNG.choice("ab") for _ in range(ROWS)], "by": [f"shop {i % 8}" for i in range(ROWS)]}
    return Table(made | columns, ROWS)


def amounts():
    return [round(60 + 12 * RNG.gauss(0, 1), 1) for _ in range(ROWS)]


def taken(column, name="x", **wishes):
    """(role, why, values) of one column, and all warnings."""
    found = understand(table(**{name: column, "z": [str(one) for one in amounts()]}), Wishes("y", "by", **wishes))
    (said,) = [one for one in found.assumptions if one.column == name]
    values = [one.values for one in found.features if one.name == name]
    return said, values[0] if values else None, found.warnings


@pytest.mark.parametrize(
    ("form", "unit"),
    [
        ("{} kg", "kg"), ("USD {}", "USD"), ("{}°C", "°C"), ("{}s", "s"), ("{}元", "元"), ("{} EUR", "EUR"),
        ("{} km/h", "km/h"), ("{} m²", "m²"), ("{} 公斤", "公斤"), ("US${}", "US$"), ("{} hours", "hour"),
        ("{}lbs.", "lb"), ("{} sq ft", "sq ft"),
    ],
)  # fmt: skip
def test_numbers_with_one_and_the_same_unit_are_numbers(form, unit):
    numbers = amounts()
    column = [form.format(one) for one in numbers]
    column[3], column[5] = "", "unknown"
    said, values, _ = taken(column)
    assert values == [None if place in (3, 5) else one for place, one in enumerate(numbers)]
    assert said.taken_as == "number"
    assert f"in {unit}," in said.why
    assert said.override == "--category x"
    said, values, _ = taken(column, number=["x"])
    assert (said.why.split(";")[1], values[0]) == (f" in {unit}", numbers[0])


def test_one_and_several_are_the_same_unit():
    said, values, warnings = taken([f"{i % 4} year{'s' if i % 4 > 1 else ''}" for i in range(ROWS)])
    assert said.taken_as == "number"
    assert values == [float(i % 4) for i in range(ROWS)]
    assert warnings == []


@pytest.mark.parametrize(
    "column",
    [
        [f"{RNG.choice('ABCDEF')}{RNG.randrange(30)}" for _ in range(ROWS)],
        [f"{RNG.randrange(30)}{RNG.choice('ABCDEF')}" for _ in range(ROWS)],
        [f"{RNG.randrange(30)}{RNG.choice('AB')}" for _ in range(ROWS)],
        [f"room {RNG.randrange(30)}" for _ in range(ROWS)],
        [f"00{RNG.randrange(30)}A" for _ in range(ROWS)],
        [RNG.choice(["1st", "2nd", "3rd", "4th"]) for _ in range(ROWS)],
        [RNG.choice(["8am", "10am", "2pm"]) for _ in range(ROWS)],
        [RNG.choice(["1st class", "2nd class"]) for _ in range(ROWS)],
        [RNG.choice(["1. Yes", "2. No"]) for _ in range(ROWS)],
        [RNG.choice(["5 hours", "6 hours", "4 or less hours"]) for _ in range(ROWS)],
        [f"{RNG.randrange(90)} {RNG.choice(['Elm', 'Oak', 'Ash', 'Main'])} Street" for _ in range(ROWS)],
    ],
)
def test_codes_and_names_with_numbers_in_them_stay_words(column):
    said, _, warnings = taken(column)
    assert said.taken_as in ("category", "text")
    assert not any("holds numbers in" in one for one in warnings)


def test_mixed_units_stay_words_and_are_named_with_the_remedy():
    numbers = amounts()
    column = [f"{one * 1000:.0f} g" if i % 3 == 0 else f"{one} kg" for i, one in enumerate(numbers)]
    said, _, warnings = taken(column)
    assert said.taken_as in ("category", "left out")
    (told,) = [one for one in warnings if "holds numbers in" in one]
    assert "'x' holds numbers in kg and g" in told
    assert "all in one unit" in told
    assert "--number x takes those in kg" in told
    _, values, warnings = taken(column, number=["x"])
    assert values == [None if i % 3 == 0 else one for i, one in enumerate(numbers)]
    assert any("the others count as missing" in one for one in warnings)
    assert not any("holds numbers in" in one for one in taken(column, drop=["x"])[2])


def test_a_label_with_a_unit_is_a_number():
    numbers = amounts()
    found = understand(table(price=[f"{one} EUR" for one in numbers], z=["a", "b"] * 100), Wishes("price", "by"))
    assert (found.answers.kind, found.answers.values) == ("number", numbers)
    assert found.assumptions[0].why.endswith(", in EUR")


def test_a_label_of_mixed_units_is_refused_or_warned_of_by_name():
    prices = [f"{i}.5 {'EUR' if i % 2 else 'USD'}" for i in range(300)]
    made = Table({"price": prices, "by": [f"{i % 8}" for i in range(300)], "z": ["a", "b"] * 150}, 300)
    with pytest.raises(DataRefused, match="too many") as refused:
        understand(made, Wishes("price", "by"))
    assert "USD and EUR" in refused.value.hint
    few = Table({**made.columns, "price": [prices[i % 40] for i in range(300)]}, 300)
    assert any("USD and EUR" in one for one in understand(few, Wishes("price", "by")).warnings)


def test_numbers_without_a_unit_go_with_the_others_unless_most_have_none():
    assert units.numbers_in(["3 kg", "4", "x"], ("kg",), decimal_comma=False) == [3.0, 4.0, None]
    assert units.units_of(["3 kg", "4 kg", "5"], decimal_comma=False) == ("kg",)
    assert units.units_of(["3 kg", "4", "5"], decimal_comma=False) == ()
    assert units.units_of(["3,5 kg", "4,25 kg"], decimal_comma=True) == ("kg",)


# -- times -------------------------------------------------------------------------------------------------------------


def moments():
    return [FIRST + timedelta(minutes=53 * i) for i in range(ROWS)]


@pytest.mark.parametrize("name", ["ts", "created_at", "Timestamp", "eventTime", "下单时间"])
@pytest.mark.parametrize("parts", [1, 1000])
def test_seconds_since_1970_in_a_column_named_like_a_time_are_times(name, parts):
    column = [str(round(at.timestamp() * parts)) for at in moments()]
    found = understand(table(**{name: column}), Wishes("y", "by"))
    assert [one.name for one in found.features] == [f"{name} weekday", f"{name} hour"]
    assert found.features[1].values == [f"{at.hour:02}" for at in moments()]
    (said,) = [one for one in found.assumptions if one.column == name]
    assert "since 1970, read in UTC" in said.why
    assert said.override.startswith("--number ")


def test_seconds_since_1970_under_another_name_are_numbers_with_a_hint():
    column = [str(round(at.timestamp())) for at in moments()]
    said, _, _ = taken(column, name="visit")
    assert (said.taken_as, said.override) == ("number", "--time visit")
    assert "since 1970" in said.why
    said, _, _ = taken(column, name="visit", time=["visit"])
    assert said.taken_as == "time: weekday, hour"


@pytest.mark.parametrize("column", [[str(10**6 + i * 7) for i in range(ROWS)], [str(i % 90) for i in range(ROWS)]])
def test_other_numbers_in_a_column_named_like_a_time_stay_numbers(column):
    said, _, _ = taken(column, name="time")
    assert (said.taken_as, said.override) == ("number", "--category time")
    assert cells.epochs(["946684799", "2208988800", "x"]) == [None, None, None]


def test_an_offset_that_is_left_out_is_said():
    column = [at.strftime("%Y-%m-%dT%H:%M:%S") + ("+08:00", "-05:00")[i % 2] for i, at in enumerate(moments())]
    for wishes in ({}, {"time": ["x"]}):
        said, _, _ = taken(column, **wishes)
        assert "local time as written (+08:00, -05:00 left out)" in said.why
    assert "left out" not in taken([one[:-6] for one in column])[0].why
    assert cells.offsets(["2024-05-31", "2024-05-31 10:00Z", "31 May 2024 2:05 PM +0100"]) == ["+0100", "Z"]
