"""Free text as hashed n-grams: the same from the text and from what is kept of it, bounded, and no way back to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.artifact.errors import RecordError, SchemaError
from edge_sdk.artifact.features import features
from edge_sdk.artifact.schema import Label, NumberField, Schema, TextField, check_schema
from edge_sdk.artifact.text import LONGEST, hashed
from edge_sdk.field_rules import FieldRules

LABEL = Label("y", "binary", ("no", "yes"))
SCHEMA = Schema((NumberField("n"), TextField("asked", 64)), LABEL)


def row(value) -> np.ndarray:
    return features(SCHEMA, [{"n": 1.0, "asked": value}])["features"][0, 1:]


@given(st.text(max_size=300))
def test_what_is_kept_gives_the_same_features_as_the_text(text):
    kept = FieldRules.of_schema(SCHEMA).apply({"n": 1.0, "asked": text})["asked"]
    assert not isinstance(kept, str)
    assert np.array_equal(row(kept), row(text))
    assert np.isclose(np.linalg.norm(row(text)), 1.0 if kept else 0.0)


@pytest.mark.parametrize("text", ["我的卡被吞了", "My card was swallowed", "卡 card 卡"])
def test_like_text_is_near_and_other_text_is_far(text):
    wide = Schema((TextField("asked", 4096),), LABEL)
    near, far = text + "!", "Bitte um Rückruf morgen früh"
    a, b, c = features(wide, [{"asked": value} for value in (text, near, far)])["features"]
    assert a @ b > 0.8
    assert abs(a @ c) < 0.4


def test_width_of_letters_and_case_do_not_matter_and_length_is_bounded():
    assert hashed("ＡＢＣ  abc", 64) == hashed("abc abc", 64)
    assert hashed("x" * LONGEST + "y" * 10**6, 64) == hashed("x" * LONGEST, 64)
    assert hashed("", 64) == hashed("   ", 64) == []


def test_a_schema_that_says_keep_keeps_the_text():
    keeping = Schema((TextField("asked", 64, keep=True),), LABEL)
    assert FieldRules.of_schema(keeping).apply({"asked": "card"}) == {"asked": "card"}
    assert Schema.from_json(keeping.to_json()) == keeping


@pytest.mark.parametrize(
    "value", [7, None, [[64, 0.5]], [[-1, 0.5]], [[1]], [[1, 2.0]], [[1, float("nan")]], [["1", 0.5]]]
)
def test_what_is_neither_a_text_nor_its_features_is_refused(value):
    with pytest.raises(RecordError):
        row(value)


@pytest.mark.parametrize("width", [0, 7, 2**16 + 1])
def test_a_width_out_of_bounds_is_refused(width):
    with pytest.raises(SchemaError):
        check_schema(Schema((TextField("asked", width),), LABEL))
