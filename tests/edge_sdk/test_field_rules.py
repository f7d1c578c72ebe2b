"""What a field or a label may be on the disk: what the schema says it is, and whatever is kept can train."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.artifact.features import features, labels
from edge_sdk.artifact.schema import CategoryField, Label, NumberField, Schema, SequenceField, SeriesField, TextField
from edge_sdk.field_rules import OTHER_WORD, FieldRules, UnfitValue

FIELDS = (NumberField("n", 1.0, 0.5), CategoryField("plan", ("gold", "silver")), TextField("asked", 16))
SCHEMA = Schema(FIELDS, Label("y", "binary", ("no", "yes")))
NUMERIC = Schema(FIELDS, Label("y", "number"))
RULES = FieldRules.of_schema(SCHEMA)
RICH = Schema(
    (
        NumberField("n", missing=True, log=True, edges=(1.0,)),
        CategoryField("plan", buckets=9, missing=True),
        TextField("asked", 16, words=(1,), missing=True),
        SeriesField("sold", 3, key="shop", time="at", calendar=("hour", "weekday")),
        SequenceField("bought", ("gold", "silver"), last=2),
        SequenceField("seen", buckets=5),
    ),
    Label("y", "number", log=True, relative_to="sold", quantiles=(0.5,)),
)
RICH_RULES = FieldRules.of_schema(RICH)

LEAF = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=9)
    | st.sampled_from(["gold", "silver", "yes", OTHER_WORD, 10**400, -(2**70), 1e308, [[1, 0.5]], [[16, 0.5]]])
    | st.sampled_from([np.float64(2.5), np.float32(2.5), np.int64(7), np.bool_(True), np.array(3.0), np.str_("gold")])
)  # fmt: skip
ANYTHING = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2))


@pytest.mark.parametrize("schema", [SCHEMA, NUMERIC])
@settings(max_examples=150, deadline=None)
@given(record=st.fixed_dictionaries({"n": ANYTHING, "plan": ANYTHING, "asked": ANYTHING}), label=ANYTHING)
def test_whatever_is_kept_can_be_stored_and_learnt_from_and_is_kept_the_same_again(schema, record, label):
    rules = FieldRules.of_schema(schema)
    kept = rules.narrowed(record, label)
    if kept is None:
        return
    fields, answer = kept
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(kept)) == [fields, answer]
    assert features(schema, [fields])["features"].shape == (1, schema.width)
    assert labels(schema, [answer]).shape == (1,)
    assert type(fields["n"]) in (int, float)
    assert fields["plan"] in ("gold", "silver", OTHER_WORD)
    assert rules.narrowed(fields, answer) == kept


@pytest.mark.parametrize("number", [3, 2.5, np.float64(2.5), np.float32(2.5), np.int64(7), np.uint8(7), 2**60 + 1])
def test_numbers_of_any_kind_are_kept_as_plain_ones_with_or_without_a_schema(number):
    for rules in (RULES, FieldRules.of_list("churn", ("churn.n",))):
        assert rules is not None
        kept = rules.apply({"n": number})["n"]
        assert type(kept) in (int, float)
        assert math.isclose(kept, number)
    assert type(FieldRules.of_schema(NUMERIC).label(number)) in (int, float)


def test_a_word_outside_the_vocabulary_is_one_mark_that_trains_as_before():
    kept = RULES.apply({"n": 1, "plan": "my card is 4111", "asked": "x"})
    assert kept["plan"] == OTHER_WORD
    same = features(SCHEMA, [kept, {**kept, "plan": "my card is 4111"}])["features"]
    assert np.array_equal(same[0], same[1])


@pytest.mark.parametrize(
    ("field", "value"),
    [("n", "card 4111"), ("n", True), ("n", math.nan), ("n", 10**400), ("n", {"note": "x"}), ("plan", 7),
     ("plan", {"note": "x"}), ("asked", b"card"), ("asked", ["card"]), ("asked", [["a", "b"]]), ("asked", None)],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused_and_not_named(field, value):
    with pytest.raises(UnfitValue, match=field) as refused:
        RULES.apply({field: value})
    assert "card" not in str(refused.value)


def test_the_rules_of_an_older_release_are_told_apart_so_that_its_examples_are_narrowed_again():
    import hashlib

    assert RULES.digest != int.from_bytes(hashlib.sha256(SCHEMA.to_json().encode()).digest()[:7], "big")


NAMES = ("n", "plan", "asked", "sold", "at", "bought", "seen")
DATES = st.datetimes().map(lambda moment: moment.isoformat()) | st.just("2024-05-31T09:30:10+08:00")
FITTING = {
    "n": st.none() | st.floats(-1e30, 1e30),
    "plan": st.none() | st.text(max_size=4) | st.integers(0, 8),
    "asked": st.none() | st.text(max_size=20),
    "sold": st.lists(st.none() | st.floats(-1e30, 1e30) | st.integers(-(2**70), 2**70), max_size=3),
    "at": DATES,
    "bought": st.lists(st.sampled_from(["gold", "silver", "tin"]), max_size=4),
    "seen": st.lists(st.text(max_size=3) | st.integers(0, 4), max_size=4),
}


@settings(max_examples=70, deadline=None)
@given(record=st.fixed_dictionaries(dict.fromkeys(NAMES, ANYTHING)), label=ANYTHING)
def test_whatever_is_kept_of_any_kind_of_field_can_be_stored_and_learnt_from(record, label):
    kept = RICH_RULES.narrowed(record, label)
    if kept is not None:
        assert list(kept) == msgspec.msgpack.decode(msgspec.msgpack.encode(kept))
        assert features(RICH, [kept[0]])["features"].shape == (1, RICH.width)
        assert labels(RICH, [kept[1]], [kept[0]]).shape == (1,)


@settings(max_examples=70, deadline=None)
@given(record=st.fixed_dictionaries(FITTING))
def test_what_is_kept_gives_the_features_of_the_record_itself_and_is_kept_the_same_again(record):
    kept = RICH_RULES.apply({**record, "shop": "4"})
    assert np.array_equal(features(RICH, [record])["features"], features(RICH, [kept])["features"])
    assert RICH_RULES.apply(kept) == kept


def test_no_more_is_kept_than_what_trains():
    record = {
        "n": np.float64("nan"), "plan": "my card is 4111", "asked": "card", "sold": np.array([1.0, np.nan]),
        "shop": "kiosk of Ms Li", "at": "2024-05-31T09:47:13", "bought": ["tin", "gold", "tin"], "seen": ["4111"],
    }  # fmt: skip
    kept = RICH_RULES.apply(record)
    assert kept["n"] is None
    assert kept["sold"] == [1.0, None]
    assert kept["at"] == "2024-05-31T09:00"
    assert kept["bought"] == ["gold", OTHER_WORD]
    assert "shop" not in kept
    assert RICH_RULES.refused(record) == []
    assert all(type(kept[name]) is int for name in ("plan",))
    assert "4111" not in str(kept)
    days = Schema((SeriesField("sold", 3, time="at", calendar=("weekday",)),), Label("y", "number"))
    assert FieldRules.of_schema(days).apply({"at": "2024-05-31T09:47"}) == {"at": "2024-05-31"}


@pytest.mark.parametrize(
    ("field", "value"),
    [("n", math.inf), ("plan", 9), ("plan", True), ("asked", 7), ("sold", [1, 2, 3, 4]), ("sold", None),
     ("sold", ["card"]), ("sold", [math.inf]), ("at", "card"), ("at", None), ("bought", "card"), ("bought", [7]),
     ("bought", None), ("seen", [5]), ("seen", ["a"] * (2**16 + 1))],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused_for_every_kind_of_field(field, value):
    with pytest.raises(UnfitValue, match=field) as refused:
        RICH_RULES.apply({field: value})
    assert "card" not in str(refused.value)
