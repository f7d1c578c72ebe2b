"""What a record adds to a query's answer is bounded whatever it holds, and exact where it is sound."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.analytics import contributions, layout
from edge_sdk.analytics.contributions import Asked, Records
from edge_sdk.artifact.schema import CategoryField, Label, NumberField, Schema, SequenceField, SeriesField
from edge_sdk.protocol import codec
from edge_sdk.protocol.messages import Query, Statistic

SCHEMA = Schema(
    (
        NumberField("age"), CategoryField("plan", ("basic", "gold")), SequenceField("seen", ("a", "b", "c")),
        SeriesField("calls", 4),
    ),
    Label("left", "binary", ("no", "yes")),
)  # fmt: skip
AGE = Statistic("moments", "age", 0.0, 100.0, 0, ())
AGES = Statistic("histogram", "age", 0.0, 100.0, 4, ())
PLAN = Statistic("words", "plan", 0.0, 0.0, 0, ("basic", "gold"))
SEEN = Statistic("words", "seen", 0.0, 0.0, 0, ("a", "b"))
CALLS = Statistic("moments", "calls", 0.0, 10.0, 0, ())
LEFT = Statistic("words", "", 0.0, 0.0, 0, ("no", "yes"))
MODEL = Statistic("model", "", 0.0, 4.0, 5, ())
ALL = Query("all", (AGE, AGES, PLAN, SEEN, CALLS, LEFT, MODEL))
BOUND = 0.7


def asked(query: Query = ALL, predict=lambda records: np.zeros((len(records), 1)), schema: Schema = SCHEMA) -> Asked:
    return Asked(query, schema, BOUND, predict)


def raw(query: Query, fields: list[dict[str, Any]], labels: list[Any], **more: Any) -> list[np.ndarray]:
    """Each statistic's values as they are before they are weighed, of all records together."""
    rows = contributions.vectors(asked(query, **more), fields, labels).sum(axis=0)
    return [rows[part.columns] / part.weight for part in layout.parts(query, BOUND)]


HOSTILE = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**400), 10**400), st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=5), st.sampled_from(["a", "b", "gold", "yes"]), st.lists(st.text(max_size=2), max_size=6),
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=6), st.binary(max_size=3),
    st.lists(st.one_of(st.none(), st.sampled_from(["a", "z"]), st.integers()), max_size=5),
)  # fmt: skip
RECORDS = st.lists(
    st.tuples(st.fixed_dictionaries({}, optional={f.name: HOSTILE for f in SCHEMA.fields}), HOSTILE), min_size=1
)
LOGITS = st.floats(-1e30, 1e30)


@given(RECORDS, st.lists(LOGITS, min_size=1), st.lists(st.integers(0, 3)))
def test_no_unit_adds_more_than_the_clip_whatever_its_records_hold(records, logits, owners):
    fields, labels = [fields for fields, _ in records], [label for _, label in records]
    given_ = asked(predict=lambda rows: np.resize(np.array(logits), (len(rows), 1)))
    rows = contributions.vectors(given_, fields, labels)
    assert np.isfinite(rows).all()
    assert (np.linalg.norm(rows, axis=1) <= BOUND * (1 + 1e-12)).all()
    sizes = np.bincount(np.resize(np.array([*owners, 0]), len(labels)))
    bounds = np.concatenate([[0], np.cumsum(sizes[sizes > 0])])
    total = contributions.total(given_, Records(fields, labels, bounds))
    assert np.linalg.norm(total) <= (len(bounds) - 1) * BOUND * (1 + 1e-9)


@given(st.lists(st.lists(st.floats(-1e12, 1e12), min_size=3, max_size=3), min_size=1))
def test_a_vector_is_clipped_to_the_bound_and_a_shorter_one_left_alone(rows):
    given_ = np.array(rows)
    short = contributions.clipped(given_, BOUND)
    assert (np.linalg.norm(short, axis=1) <= BOUND * (1 + 1e-12)).all()
    inside = np.linalg.norm(given_, axis=1) <= BOUND
    np.testing.assert_array_equal(short[inside], given_[inside])


def test_every_statistic_counts_what_it_says():
    fields = [
        {"age": 0.0, "plan": "gold", "seen": ["a", "a", "z"], "calls": [1.0, 5.0, None]},
        {"age": 75, "plan": "lead", "seen": [], "calls": [None]},
        {"age": None, "plan": "basic", "seen": ["b"], "calls": [99.0]},
    ]
    moments, parts, plan, seen, calls, left, model = raw(ALL, fields, ["yes", "no", "maybe"])
    np.testing.assert_allclose(moments, [2.0, -1.0 + 0.5, 1.0 + 0.25])
    np.testing.assert_allclose(parts, [1, 0, 0, 1])
    np.testing.assert_allclose(plan, [1, 1, 1])
    np.testing.assert_allclose(seen, [2 / 3, 1, 1 / 3])
    np.testing.assert_allclose(calls, [2, 0.0 + 1.0, 0.0 + 1.0])  # 5 and, clamped, 10 of 0 to 10
    np.testing.assert_allclose(left, [1, 1, 1])
    # Logit 0: "no" and "yes" at 0.5 each, the first of them is the answer; "maybe" is no label of this task.
    np.testing.assert_allclose(model[:3], [2.0, 2 * math.log(2) / 4.0, 1.0])
    np.testing.assert_allclose(model[3:], [0, 0, 1, 0, 0, 0, 0, 1, 0, 0])


def test_of_classes_the_best_score_is_counted_by_whether_it_was_right():
    schema = Schema((NumberField("age"),), Label("desk", "classes", ("a", "b", "c")))
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]))
    (model,) = raw(Query("q", (MODEL,)), [{"age": 1.0}] * 2, ["a", "b"], schema=schema, predict=lambda records: logits)
    np.testing.assert_allclose(model[:3], [2.0, -(math.log(0.7) + math.log(0.3)) / 4.0, 1.0])
    np.testing.assert_allclose(model[3:], [0, 0, 0, 1, 0, 0, 0, 0, 1, 0])


def test_of_a_number_the_distance_to_the_truth_is_counted_and_its_square():
    schema = Schema((NumberField("age"),), Label("wait", "number", mean=10.0, scale=2.0))
    query = Query("q", (Statistic("model", "", 0.0, 8.0, 0, ()),))
    (model,) = raw(query, [{"age": 1.0}] * 3, [12.0, 100.0, "x"], schema=schema)
    np.testing.assert_allclose(model, [2.0, 2 / 8 + 1.0, (2 / 8) ** 2 + 1.0])


@pytest.mark.parametrize("units", [1, 3, 4000])
def test_a_unit_adds_the_mean_of_its_records_however_many_they_are(units):
    rng = np.random.default_rng(units)
    sizes = rng.integers(1, 6000 if units == 1 else 9, units)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    fields = [{"age": float(value), "plan": "gold"} for value in rng.uniform(-10, 110, bounds[-1])]
    query = Query("q", (AGE, AGES, PLAN))
    rows = contributions.vectors(asked(query), fields, [None] * len(fields))
    expected = sum(rows[a:b].mean(axis=0) for a, b in pairwise(bounds))
    given_ = contributions.total(asked(query), Records(fields, [None] * len(fields), bounds))
    np.testing.assert_allclose(given_, expected, rtol=1e-9, atol=1e-9)


def test_the_reach_of_each_statistic_is_what_the_specification_says():
    spec = (Path(codec.__file__).parent / "SPEC.md").read_text(encoding="utf-8").split("### 7.9")[1].split("## 8.")[0]
    stated = dict(re.findall(r"^\| (moments|histogram|words|model) \|.*\| (\S+) \|$", spec, re.M))
    numbers = {kind: math.sqrt(3) if reach == "sqrt(3)" else float(reach) for kind, reach in stated.items()}
    assert numbers == layout.REACH


@pytest.mark.parametrize(
    ("statistic", "said"),
    [
        (Statistic("moments", "age", 5.0, 5.0, 0, ()), "higher bound"),
        (Statistic("moments", "age", float("nan"), 5.0, 0, ()), "not finite"),
        (Statistic("histogram", "age", -1e308, 1e308, 3, ()), "not finite"),
        (Statistic("histogram", "age", 0.0, 5.0, 0, ()), "no bins"),
        (Statistic("histogram", "age", 0.0, 5.0, -3, ()), "no bins"),
        (Statistic("words", "plan", 0.0, 0.0, 0, ()), "are none"),
        (Statistic("words", "plan", 0.0, 0.0, 0, ("a", "a")), "comes twice"),
        (Statistic("model", "", 0.0, 0.0, 3, ()), "above 0"),
    ],
)
def test_a_statistic_without_a_sound_vector_is_refused(statistic, said):
    with pytest.raises(layout.QueryRefused, match=said):
        layout.check(Query("q", (statistic,)))


@pytest.mark.parametrize(
    ("statistic", "said"),
    [
        (Statistic("moments", "income", 0.0, 5.0, 0, ()), "hold no 'income'"),
        (Statistic("moments", "plan", 0.0, 5.0, 0, ()), "is a category"),
        (Statistic("words", "age", 0.0, 0.0, 0, ("a",)), "is a number"),
        (Statistic("histogram", "", 0.0, 1.0, 3, ()), "is a category"),
    ],
)
def test_a_field_that_records_do_not_hold_is_refused(statistic, said):
    with pytest.raises(layout.QueryRefused, match=said):
        layout.check_fields(Query("q", (statistic,)), SCHEMA)


@pytest.mark.parametrize("field", [CategoryField("shop", buckets=8), SequenceField("shop", buckets=8)])
def test_the_words_of_a_hashed_field_are_refused_because_no_device_keeps_them(field):
    with pytest.raises(layout.QueryRefused, match="number of its bucket"):
        layout.check_fields(
            Query("q", (Statistic("words", "shop", 0.0, 0.0, 0, ("a",)),)), Schema((field,), SCHEMA.label)
        )
