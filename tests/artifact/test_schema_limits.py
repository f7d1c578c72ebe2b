"""Schemas of every kind survive their JSON; those that could not be encoded, or would cost too much, are refused."""

from __future__ import annotations

import json

import pytest

from edge_sdk.artifact.errors import SchemaError
from edge_sdk.artifact.schema import (
    CategoryField,
    Label,
    NumberField,
    Schema,
    SequenceField,
    SeriesField,
    TextField,
    check_schema,
)

LABEL = Label("y", "binary", ("no", "yes"))
NUMBER = Label("y", "number")
FULL = Schema(
    (
        NumberField("n", 1.0, 2.0, log=True, missing=True, edges=(0.0, 1.5)),
        CategoryField("c", buckets=12, missing=True),
        CategoryField("who", ("a", "b")),
        TextField("t", 64, chars=(2,), words=(1, 2), missing=True),
        SeriesField("s", 28, key="who", time="at", calendar=("weekday", "yearday")),
        SequenceField("h", ("tea", "茶"), last=5, decay=0.5),
    ),
    Label("y", "number", log=True, relative_to="s", quantiles=(0.1, 0.5, 0.9)),
)


def of(*fields, label=LABEL):
    return Schema(fields, label)


def test_a_schema_of_every_kind_survives_its_json():
    assert Schema.from_json(FULL.to_json()) == FULL
    assert Schema.from_json(FULL.to_json()).to_json() == FULL.to_json()
    assert FULL.references == ("at",)
    assert FULL.times == {"at": False}


def test_what_a_schema_does_not_use_is_not_in_its_json():
    plain = json.loads(of(NumberField("n"), CategoryField("c", ("a",))).to_json())
    assert plain["fields"][0] == {"kind": "number", "name": "n", "mean": 0.0, "scale": 1.0}
    assert plain["label"] == {"name": "y", "kind": "binary", "names": ["no", "yes"], "mean": 0.0, "scale": 1.0}


GOOD = [
    of(TextField("t", 2**16), TextField("u", 2**15), TextField("v", 2**15)),
    of(SeriesField("s", 512)),
    of(CategoryField("c", ("x" * 200,))),
    of(CategoryField("c", tuple(map(str, range(2**16))))),
    of(NumberField("n"), label=Label("y", "number", quantiles=(0.5,))),
]


@pytest.mark.parametrize("schema", GOOD, ids=range(5))
def test_a_schema_at_its_limits_is_taken(schema):
    check_schema(schema)


BAD = {
    "too wide": of(TextField("t", 2**16), TextField("u", 2**16), NumberField("n")),
    "window 0": of(SeriesField("s", 0)),
    "window 513": of(SeriesField("s", 513)),
    "long word": of(CategoryField("c", ("x" * 201,))),
    "no Unicode": of(CategoryField("c", ("\ud800",))),
    "many words": of(CategoryField("c", tuple(map(str, range(2**16 + 1))))),
    "no words": of(CategoryField("c")),
    "words and buckets": of(SequenceField("h", ("a",), buckets=3)),
    "negative buckets": of(CategoryField("c", buckets=-5)),
    "many buckets": of(CategoryField("c", buckets=2**16 + 1)),
    "edges fall": of(NumberField("n", edges=(1.0, 1.0))),
    "edges not finite": of(NumberField("n", edges=(1.0, float("inf")))),
    "edges NaN": of(NumberField("n", edges=(float("nan"),))),
    "no grams": of(TextField("t", chars=(), words=())),
    "gram 0": of(TextField("t", chars=(0, 1))),
    "gram 9": of(TextField("t", words=(9,))),
    "gram twice": of(TextField("t", chars=(1, 1))),
    "last 0": of(SequenceField("h", ("a",), last=0)),
    "decay 0": of(SequenceField("h", ("a",), decay=0.0)),
    "decay NaN": of(SequenceField("h", ("a",), decay=float("nan"))),
    "calendar without time": of(SeriesField("s", 3, calendar=("hour",))),
    "calendar twice": of(SeriesField("s", 3, time="at", calendar=("hour", "hour"))),
    "time is a field": of(SeriesField("s", 3, time="c"), CategoryField("c", ("a",))),
    "time is the label": of(SeriesField("s", 3, time="y")),
    "key is a number": of(SeriesField("s", 3, key="n"), NumberField("n")),
    "key is the label": of(SeriesField("s", 3, key="y")),
    "key is a time": of(SeriesField("s", 3, key="at", time="at")),
    "key is another's time": of(SeriesField("s", 3, key="at"), SeriesField("p", 3, time="at")),
    "quantiles fall": of(NumberField("n"), label=Label("y", "number", quantiles=(0.5, 0.1))),
    "quantile 0": of(NumberField("n"), label=Label("y", "number", quantiles=(0.0, 0.5))),
    "quantile 1": of(NumberField("n"), label=Label("y", "number", quantiles=(0.5, 1.0))),
    "no median": of(NumberField("n"), label=Label("y", "number", quantiles=(0.1, 0.9))),
    "quantiles of classes": of(NumberField("n"), label=Label("y", "classes", ("a", "b"), quantiles=(0.5,))),
    "log of a binary": of(NumberField("n"), label=Label("y", "binary", ("a", "b"), log=True)),
    "relative to none": of(NumberField("n"), label=Label("y", "number", relative_to="n")),
    "relative unlike": of(SeriesField("s", 3), label=Label("y", "number", relative_to="s")),
    "unseen of none": of(NumberField("n"), label=Label("y", "classes", ("a", "b"), unseen_of="h")),
    "unseen unlike": of(SequenceField("h", ("a",)), label=Label("y", "classes", ("a", "b"), unseen_of="h")),
    "unseen hashed": of(SequenceField("h", buckets=2), label=Label("y", "classes", ("a", "b"), unseen_of="h")),
    "unseen of a number": of(SequenceField("h", ("a", "b")), label=Label("y", "number", unseen_of="h")),
}


@pytest.mark.parametrize("name", BAD)
def test_a_schema_that_could_not_be_encoded_is_refused(name):
    with pytest.raises(SchemaError):
        check_schema(BAD[name])


@pytest.mark.parametrize(
    "text",
    [
        '{"fields":[{"kind":"series","name":"s","window":3,"calendar":["moon"]}],"label":{"name":"y","kind":"number"}}',
        '{"fields":[{"kind":"number","name":"n","edges":["a"]}],"label":{"name":"y","kind":"number"}}',
        '{"fields":[{"kind":"number","name":"n","log":1}],"label":{"name":"y","kind":"number"}}',
        '{"fields":[{"kind":"number","name":"n","more":1}],"label":{"name":"y","kind":"number"}}',
        '{"fields":' + "[" * 10**5,
    ],
)
def test_json_that_is_no_schema_is_refused(text):
    with pytest.raises(SchemaError):
        Schema.from_json(text)
