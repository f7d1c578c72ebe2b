"""What a column is taken for, which side a row falls on, and what is said about it."""

from __future__ import annotations

import random
from datetime import datetime

import numpy as np
import pytest

from aggregator.rehearsal import cells
from aggregator.rehearsal.encoding import boundless, records_of, schema_of
from aggregator.rehearsal.inference import guess, understand
from aggregator.rehearsal.splits import split
from aggregator.rehearsal.tables import DataRefused, Table
from aggregator.rehearsal.understood import Wishes
from edge_sdk.artifact.features import features
from edge_sdk.artifact.schema import CategoryField, NumberField, TextField

ROWS = 200
RNG = random.Random(3)


def table(**columns):
    made = {"y": [RNG.choice("ab") for _ in range(ROWS)], "by": [f"shop {i % 8}" for i in range(ROWS)]}
    made |= columns
    return Table(made, ROWS)


def numbers():
    return [f"{RNG.gauss(0, 1):.4f}" for _ in range(ROWS)]


def texts(words):
    return ["".join(RNG.choices(words, k=9)) for _ in range(ROWS)]


@pytest.mark.parametrize(
    ("text", "value"),
    [("12", 12.0), ("1,234.5", 1234.5), ("7 %", 7.0), ("$3", 3.0), ("-2e3", -2000.0), ("１２", 12.0)]
    + [(word, None) for word in ("", "abc", "1_000", "inf", "nan", "1,2", "12a", "1e999")],
)
def test_a_number_is_found_as_people_write_it(text, value):
    assert cells.number(text) == value


def test_a_decimal_comma_is_one_only_where_commas_do_not_cut_cells():
    assert cells.number("3,14", decimal_comma=True) == 3.14
    assert cells.number("3,14") is None


@pytest.mark.parametrize(
    "text",
    ["2024-05-31", "2024/5/31", "20240531", "2024年5月31日", "31.5.2024", "31/5/2024", "31 May 2024", "May 31, 2024"],
)
def test_a_date_is_found_in_every_form(text):
    assert cells.dates([text, "x"]) == [datetime(2024, 5, 31), None]
    assert cells.dates([f"{text} 14:05"])[0] == datetime(2024, 5, 31, 14, 5)


def test_the_order_of_day_and_month_is_that_of_the_whole_column():
    assert cells.dates(["03/04/2024"]) == [datetime(2024, 3, 4)]
    assert cells.dates(["03/04/2024", "13/04/2024"])[0] == datetime(2024, 4, 3)


@pytest.mark.parametrize(
    ("name", "column", "role"),
    [
        ("age", [str(RNG.randrange(18, 90)) for _ in range(ROWS)], "number"),
        ("price", numbers(), "number"),
        ("gaps", [RNG.choice(["3.5", "2", "", "?"]) for _ in range(ROWS)], "number"),
        ("id", [str(1000 + i * 7) for i in range(ROWS)], "dropped"),
        ("n", [str(i + 1) for i in range(ROWS)], "dropped"),
        ("customer", [f"C-{i:x}" for i in range(ROWS)], "dropped"),
        ("zip", [f"0{RNG.randrange(1000, 9999)}" for _ in range(ROWS)], "category"),
        ("colour", [RNG.choice(["red", "green"]) for _ in range(ROWS)], "category"),
        ("flag", [RNG.choice(["True", "False"]) for _ in range(ROWS)], "category"),
        ("note", texts(["good ", "bad ", "service ", "slow "]), "text"),
        ("评论", texts("服务态度很好再也不来了"), "text"),
        ("at", [f"2024-0{1 + i % 9}-1{i % 9} 0{i % 9}:00" for i in range(ROWS)], "time"),
        ("year", [str(1990 + i % 30) for i in range(ROWS)], "number"),
        ("same", ["x"] * ROWS, "dropped"),
        ("none", [""] * ROWS, "dropped"),
    ],
)
def test_a_column_is_taken_for_what_it_is(name, column, role):
    assert guess(name, column, False)[0] == role


@pytest.mark.parametrize(
    ("values", "kind", "names"),
    [
        (["no", "yes"], "binary", ("no", "yes")),
        (["yes", "no"], "binary", ("no", "yes")),
        (["True", "False"], "binary", ("False", "True")),
        (["1", "0"], "binary", ("0", "1")),
        (["差评", "好评"], "binary", ("差评", "好评")),
        (["red", "green", "blue"], "classes", ("blue", "green", "red")),
        (["5", "1", "10"], "classes", ("1", "5", "10")),
        ([f"{i * 1.5}" for i in range(40)], "number", ()),
    ],
)
def test_the_kind_of_the_label_follows_from_its_values(values, kind, names):
    found = understand(table(y=[values[i % len(values)] for i in range(ROWS)], x=numbers()), Wishes("y", "by"))
    assert (found.answers.kind, found.answers.names) == (kind, names)
    assert found.assumptions[0].override


def test_options_override_what_was_guessed():
    given = table(x=[str(i % 7) for i in range(ROWS)], z=numbers(), day=["2024-05-31", "2024-06-02"] * (ROWS // 2))
    wishes = Wishes("y", "by", category=["x"], drop=["z"], number=["day"], positive="a")
    found = understand(given, wishes)
    assert {one.name: one.role for one in found.features} == {"x": "category", "day": "number"}
    assert found.answers.names == ("b", "a")
    days = {value for one in found.features if one.name == "day" for value in one.values}
    assert max(days) - min(days) == 2.0


def test_rows_without_a_label_or_a_device_are_left_out_and_counted():
    given = table(x=numbers())
    given.columns["y"][0] = given.columns["by"][1] = ""
    found = understand(given, Wishes("y", "by"))
    assert found.rows == ROWS - 2 == len(found.features[0].values)
    assert "2 of 200 rows" in found.warnings[0]


def test_a_column_that_says_the_answer_is_named_and_kept():
    given = table(x=numbers())
    given.columns["leak"] = ["left" if answer == "a" else "stayed" for answer in given.columns["y"]]
    found = understand(given, Wishes("y", "by"))
    assert any("'leak' alone predicts" in one for one in found.warnings)
    assert not any("'x' alone" in one for one in found.warnings)
    assert "leak" in [one.name for one in found.features]


@pytest.mark.parametrize(
    ("columns", "wishes", "word"),
    [
        ({"x": ["1"] * ROWS}, Wishes("y", "by"), "no column is left"),
        ({"y": ["a"] * ROWS}, Wishes("y", "by"), "every row has the same"),
        ({"y": [""] * ROWS}, Wishes("y", "by"), "no row has"),
        ({"y": [f"word {i}" for i in range(ROWS)]}, Wishes("y", "by"), "nearly every row|too many"),
        ({}, Wishes("Y", "by"), "no column of the file"),
        ({}, Wishes("y", "nobody"), "no column of the file"),
        ({}, Wishes("y", "y"), "something else"),
        ({}, Wishes("y", "by", positive="c"), "no value"),
        ({}, Wishes("y", "by", kind="number"), "does not hold numbers"),
        ({"x": ["a", "b"] * 100}, Wishes("y", "by", number=["x"]), "holds no numbers"),
        ({"x": ["a", "b"] * 100}, Wishes("y", "by", time=["x"]), "holds no dates"),
    ],
)
def test_what_cannot_be_learnt_is_refused_with_a_remedy(columns, wishes, word):
    with pytest.raises(DataRefused, match=word) as refused:
        understand(table(**columns), wishes)
    assert refused.value.hint


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(DataRefused) as refused:
        understand(table(satisfied=numbers()), Wishes("satisfed", "by"))
    assert "did you mean 'satisfied'?" in refused.value.hint


def everything():
    heavy = [f"{np.exp(3 * RNG.gauss(0, 1)):.3f}" for _ in range(ROWS)]
    gaps = ["" if i % 9 == 0 else f"{i % 5}" for i in range(ROWS)]
    many = [f"w{RNG.randrange(150)}" for _ in range(ROWS)]
    few = [RNG.choice(["red", "green", ""]) for _ in range(ROWS)]
    note = texts(["good ", "bad ", "service ", "slow "])
    day = [f"2024-0{1 + i % 9}-1{i % 9}" for i in range(ROWS)]
    return understand(table(heavy=heavy, gaps=gaps, many=many, few=few, note=note, day=day), Wishes("y", "by"))


@pytest.mark.parametrize("intervals", [False, True])
def test_every_kind_of_column_becomes_a_field_that_encodes_every_row(intervals):
    found = everything()
    schema = schema_of(found, np.arange(150), intervals=intervals)
    by_name = {field.name: field for field in schema.fields}
    assert isinstance(by_name["heavy"], NumberField)
    assert by_name["heavy"].log
    assert bool(by_name["heavy"].edges) == intervals
    assert by_name["gaps"].missing
    assert len(by_name["gaps"].edges) == 4
    assert isinstance(by_name["many"], CategoryField)
    assert by_name["many"].buckets
    assert by_name["few"].vocabulary == ("green", "red")
    assert isinstance(by_name["note"], TextField)
    assert set(by_name) >= {"day weekday", "day month"}
    matrix = features(schema, records_of(found.features, np.arange(ROWS)))["features"]
    assert matrix.shape == (ROWS, schema.width)
    assert np.isfinite(matrix).all()


def test_each_device_keeps_its_share_of_rows_for_the_test():
    found = understand(table(x=numbers()), Wishes("y", "by"))
    cut = split(found, devices=None, test_share=0.2, seed=0)
    assert [str(found.owners[row]) for row in cut.order] == [cut.names[owner] for owner in cut.owners]
    assert np.bincount(cut.owners, cut.test).tolist() == [5.0] * 8
    assert sorted(cut.order.tolist()) == list(range(ROWS))


def test_a_customer_stays_on_one_side_and_one_device_of_a_cut_value():
    given = table(x=numbers(), who=[f"c{i % 40}" for i in range(ROWS)], by=["one"] * ROWS)
    found = understand(given, Wishes("y", "by", subject="who"))
    cut = split(found, devices=6, test_share=0.3, seed=1)
    assert 3 <= len(cut.names) <= 6
    for subject in range(40):
        own = cut.subjects == subject
        assert len(set(cut.test[own])) == 1
        assert len(set(cut.owners[own])) == 1


def test_devices_regroup_whole_values_of_the_column():
    given = table(x=numbers(), by=[f"u{i % 50}" for i in range(ROWS)])
    found = understand(given, Wishes("y", "by"))
    cut = split(found, devices=5, test_share=0.2, seed=0)
    assert len(cut.names) == 5
    homes = {(found.owners[row], owner) for row, owner in zip(cut.order, cut.owners, strict=True)}
    assert len(homes) == 50


def test_too_few_devices_are_refused_with_a_remedy():
    found = understand(table(x=numbers(), by=["one", "two"] * 100), Wishes("y", "by"))
    with pytest.raises(DataRefused, match="2 devices") as refused:
        split(found, devices=None, test_share=0.2, seed=0)
    assert "--devices" in refused.value.hint


def test_a_time_of_day_is_an_hour_of_some_day():
    assert cells.dates(["14:05", "2:30 PM"]) == [datetime(1970, 1, 1, 14, 5), datetime(1970, 1, 1, 14, 30)]
    found = understand(table(at=[f"{8 + i % 9:02}:{i % 60:02}:00" for i in range(ROWS)]), Wishes("y", "by"))
    assert [one.name for one in found.features] == ["at hour"]


def test_a_column_without_a_scale_is_named_with_the_option_that_drops_it():
    huge = [f"{(-1) ** i * (i + 1)}e305" for i in range(ROWS)]
    found = understand(table(x=numbers(), huge=huge), Wishes(label="y", by="by"))
    (said,) = boundless(found, np.arange(ROWS))
    assert "'huge'" in said
    assert "--drop huge" in said
