"""What an answer says beside its label: between which bounds a number lies, and which fields pushed it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.answer import Answer
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import linear_classifier
from edge_sdk.artifact.weights import write_vector
from edge_sdk.cli import main
from edge_sdk.testing import FakeAggregator

FIELDS = (NumberField("calls"), NumberField("months"), NumberField("rain"))
CHURN = Schema(FIELDS, Label("churn", "binary", ("stays", "leaves")))
DEMAND = Schema(FIELDS, Label("visitors", "number", mean=100.0, scale=10.0, quantiles=(0.1, 0.5, 0.9)))
LEAVES = write_vector(linear_classifier(CHURN), np.array([1.0, -2.0, 0.0, 0.5], np.float32))
BOUNDS = write_vector(linear_classifier(DEMAND), np.array([1, 0, 0] * 3 + [-1, 0, 3], np.float32))
RECORD = {"calls": 2.0, "months": 3.0, "rain": 9.0}


@pytest.fixture
def fl(tmp_path: Path):
    with FakeAggregator(tmp_path) as fake:
        fake.install("churn", LEAVES)
        fake.install("demand", BOUNDS)
        with fake.client() as client:
            yield client


def test_the_pushes_are_the_weights_times_the_values_strongest_first(fl):
    answer = fl.predict("churn", RECORD)
    assert answer.why() == [
        ("months", pytest.approx(-6.0)),
        ("calls", pytest.approx(2.0)),
        ("rain", pytest.approx(0.0)),
    ]
    assert [name for name, _ in answer.why(1)] == ["months"]
    assert answer.interval is None


def test_a_number_with_quantiles_has_an_interval_in_its_own_units(fl):
    answer = fl.predict("demand", RECORD)
    assert answer.score == pytest.approx(120.0)
    assert answer.interval == pytest.approx((110.0, 150.0))
    assert answer.why(1) == [("calls", pytest.approx(2.0))]


@pytest.mark.parametrize("k", ["x", None, float("nan"), -1, object()])
def test_why_gives_a_list_whatever_it_is_asked_for(fl, k):
    assert fl.predict("churn", RECORD).why(k) == []
    assert Answer().why(k) == []


def test_what_cannot_be_explained_is_not_explained():
    def fails() -> list[tuple[str, float]]:
        raise RuntimeError("no")

    assert Answer((("a", 1.0),), pushes=fails).why() == []


def test_the_command_shows_bounds_and_fields(fl, capsys):
    home = str(fl.config.home)
    assert main(["predict", "demand", "--json-record", json.dumps(RECORD), "--why", "--home", home]) == 0
    said = capsys.readouterr().out
    between = "between  110.000 and 150.000 (not calibrated: too little was recorded here)"
    assert f"{between}\npushed by calls  +2.000\n" in said
    assert main(["predict", "demand", "--json-record", json.dumps(RECORD), "--why", "--json", "--home", home]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["interval"], told["calibrated"], told["why"][0]) == ([110.0, 150.0], False, ["calls", 2.0])
