"""Metrics against slow oracles; models and records that must not pass."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.errors import ModelRefused, TaskRefused
from aggregator.evaluation import Heldout, auc, evaluate, gate, logits, read_heldout
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.weights import read_vector, write_vector

FIELDS = (NumberField("a"), NumberField("b"))
BINARY = tabular_classifier(Schema(FIELDS, Label("y", "binary", ("no", "yes"))), (), seed=1)
CLASSES = tabular_classifier(Schema(FIELDS, Label("y", "classes", ("x", "y", "z"))), (), seed=1)


def with_weights(model: bytes, seed: int) -> bytes:
    vector = np.random.default_rng(seed).normal(size=read_vector(model).size).astype(np.float32)
    return write_vector(model, vector, {})


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs_in_the_right_order(pairs):
    scores, truth = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs], np.int64)
    ups, downs = scores[truth == 1], scores[truth == 0]
    if not len(ups) or not len(downs):
        return
    slow = sum((u > d) + 0.5 * (u == d) for u in ups for d in downs) / (len(ups) * len(downs))
    assert auc(scores, truth) == pytest.approx(slow)


@given(st.integers(0, 2**32))
def test_binary_metrics_agree_with_a_loop(seed):
    rng = np.random.default_rng(seed)
    model, inputs = with_weights(BINARY, seed), rng.normal(size=(20, 2)).astype(np.float32)
    targets = rng.integers(0, 2, 20).astype(np.float32)
    found = evaluate(model, Heldout("binary", {"features": inputs}, targets))
    values = [1 / (1 + math.exp(-z)) for z in logits(model, {"features": inputs})[:, 0]]
    loss = -sum(math.log(p if t else 1 - p) for p, t in zip(values, targets, strict=True)) / 20
    assert found["log_loss"] == pytest.approx(loss, rel=1e-6)
    assert found["accuracy"] == pytest.approx(
        sum((p > 0.5) == bool(t) for p, t in zip(values, targets, strict=True)) / 20
    )


@given(st.integers(0, 2**32))
def test_metrics_of_several_classes_agree_with_a_loop(seed):
    rng = np.random.default_rng(seed)
    model, inputs = with_weights(CLASSES, seed), rng.normal(size=(15, 2)).astype(np.float32)
    targets = rng.integers(0, 3, 15)
    found = evaluate(model, Heldout("classes", {"features": inputs}, targets))
    loss = 0.0
    for row, target in zip(logits(model, {"features": inputs}), targets, strict=True):
        loss += math.log(sum(math.exp(z) for z in row)) - row[target]
    assert found["log_loss"] == pytest.approx(loss / 15, rel=1e-6)
    assert "auc" not in found


def test_a_model_that_answers_with_nan_does_not_pass():
    huge = write_vector(BINARY, np.full(read_vector(BINARY).size, 3e38, np.float32), {})
    with pytest.raises(ModelRefused) as refused:
        evaluate(huge, Heldout("binary", {"features": np.full((4, 2), 3e38, np.float32)}, np.zeros(4)))
    assert refused.value.reason == "not-finite"


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([{"a": 1.0, "y": "yes"}], "'b'"),
        ([{"a": 1.0, "b": 2.0}], "'y'"),
        ([{"a": 1.0, "b": 2.0, "y": "maybe"}], "label"),
        ([{"a": 1.0, "b": float("nan"), "y": "yes"}], "finite"),
        ([], "no record"),
    ],
)
def test_held_out_records_that_do_not_fit_are_refused_by_name(tmp_path, lines, named):
    file = tmp_path / "heldout.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.raises(TaskRefused, match=named):
        read_heldout(BINARY, file)


def test_the_gate_knows_which_way_is_better():
    assert gate({"auc": 0.8}, 0.7, "auc", 0.0) == ""
    assert "auc 0.6000" in gate({"auc": 0.6}, 0.7, "auc", 0.0)
    assert gate({"log_loss": 0.6}, 0.7, "log_loss", 0.05) == ""
    assert gate({"log_loss": 0.8}, 0.7, "log_loss", 0.0)
    assert gate({"auc": 0.6}, None, "auc", 0.0) == ""
