"""Metrics against slow oracles; models and records that must not pass."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator import metrics
from aggregator.errors import ModelRefused, TaskRefused
from aggregator.evaluation import (
    Heldout,
    auc,
    evaluate,
    gate,
    heldout,
    logits,
    measure,
    metrics_of,
    read_heldout,
    usual_metric,
)
from edge_sdk.artifact.schema import Label, NumberField, Schema, SequenceField, SeriesField
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


def softmax(row):
    powers = [math.exp(z - max(row)) for z in row]
    return [power / sum(powers) for power in powers]


@given(st.integers(0, 2**32), st.integers(2, 4))
def test_brier_and_macro_f1_agree_with_loops(seed, classes):
    rng = np.random.default_rng(seed)
    p, truth = np.array([softmax(row) for row in rng.normal(size=(12, classes))]), rng.integers(0, classes, 12)
    named = p.argmax(axis=1)
    if classes == 2:
        slow = np.mean([(row[1] - t) ** 2 for row, t in zip(p, truth, strict=True)])
    else:
        slow = np.mean([sum((row[k] - (k == t)) ** 2 for k in range(classes)) for row, t in zip(p, truth, strict=True)])
    assert metrics.brier(p, truth) == pytest.approx(slow)
    scores = []
    for k in set(named) | set(truth):
        right = sum(n == t == k for n, t in zip(named, truth, strict=True))
        scores.append(2 * right / (sum(named == k) + sum(truth == k)))
    assert metrics.macro_f1(named, truth) == pytest.approx(np.mean(scores))


def test_calibration_compares_each_tenth_and_does_not_depend_on_the_order():
    rng = np.random.default_rng(1)
    scores = rng.random(1000)
    hits = (rng.random(1000) < scores**2).astype(float)
    ordered = np.argsort(scores)
    slow = sum(abs(np.mean(scores[part] - hits[part])) * len(part) / 1000 for part in np.array_split(ordered, 10))
    assert metrics.calibration_error(scores, hits) == pytest.approx(slow)
    equal = np.full(1000, 0.5)
    assert metrics.calibration_error(equal, np.sort(hits > 0.5)) == pytest.approx(abs(0.5 - np.mean(hits)))
    perfect = np.repeat([0.25, 0.75], 400)
    assert metrics.calibration_error(perfect, np.tile([1, 0, 0, 0] * 100 + [1, 1, 1, 0] * 100, 1)) < 1e-12


MANY = tuple(f"i{k}" for k in range(15))
SHOP = Schema((SequenceField("had", MANY),), Label("y", "classes", MANY, unseen_of="had"))


@given(st.integers(0, 2**32))
def test_ranking_metrics_agree_with_a_sorted_list_without_what_was_seen(seed):
    rng = np.random.default_rng(seed)
    records = [{"had": list(rng.choice(MANY, rng.integers(0, 14), replace=False))} for _ in range(8)]
    answers = [rng.choice([name for name in MANY if name not in record["had"]]) for record in records]
    records[0]["had"], answers[0] = [MANY[3]], MANY[3]  # seen: can never be found
    outputs = np.round(rng.normal(size=(8, 15)), 1)
    hits, gains, firsts = [], [], []
    for record, answer, row in zip(records, answers, outputs, strict=True):
        left = sorted((k for k in range(15) if MANY[k] not in record["had"]), key=lambda k: (-row[k], k))
        place = 1 + left.index(MANY.index(answer)) if MANY.index(answer) in left else 99
        hits.append(place <= 10)
        gains.append(1 / math.log2(1 + place) if place <= 10 else 0.0)
        firsts.append(place == 1)
    records = [{"had": [str(word) for word in record["had"]]} for record in records]
    found = measure(heldout(SHOP, records, [str(answer) for answer in answers]), outputs)
    assert found["hit_rate_10"] == pytest.approx(np.mean(hits))
    assert found["ndcg_10"] == pytest.approx(np.mean(gains))
    assert found["accuracy"] == pytest.approx(np.mean(firsts))
    assert math.isfinite(found["log_loss"])


DEMAND = Schema(
    (SeriesField("last", 2),), Label("y", "number", log=True, relative_to="last", quantiles=(0.1, 0.5, 0.9))
)


def test_errors_of_numbers_are_in_the_units_of_the_label():
    records, answers = [{"last": [9, 9]}, {"last": [99]}, {"last": [None]}], [12, 90.0, 3]
    bases = [math.log(10), math.log(100), 0.0]
    outputs = np.array([[-0.1, 0.0, 0.2], [0.1, 0.2, 0.3], [1.0, 1.5, 2.0]])
    found = measure(heldout(DEMAND, records, answers), outputs)
    values = [[math.expm1(base + z) for z in row] for base, row in zip(bases, outputs, strict=True)]
    errors = [abs(row[1] - y) for row, y in zip(values, answers, strict=True)]
    assert found["wape"] == pytest.approx(sum(errors) / 105)
    assert found["mae"] == pytest.approx(sum(errors) / 3)
    assert found["rmse"] == pytest.approx(math.sqrt(sum(e**2 for e in errors) / 3))
    inside = [row[0] <= y <= row[2] for row, y in zip(values, answers, strict=True)]
    assert found["coverage"] == pytest.approx(np.mean(inside))
    targets = [math.log1p(y) - base for y, base in zip(answers, bases, strict=True)]
    assert found["mse"] == pytest.approx(np.mean((outputs[:, 1] - targets) ** 2), rel=1e-5)


def test_held_out_demand_is_read_and_measured_from_a_file(tmp_path):
    file = tmp_path / "heldout.jsonl"
    file.write_text("\n".join(json.dumps({"last": [k, k + 1], "y": k + 2}) for k in range(9)))
    model = tabular_classifier(DEMAND, (), seed=1)
    found = evaluate(model, read_heldout(model, file))
    assert set(found) == {"mse", "rmse", "mae", "wape", "coverage"}
    assert gate({"wape": 0.3}, 0.2, "wape", 0.0)


def zeros(label: Label) -> dict[str, float]:
    """Every metric of a model that answers 0 throughout, over records of every answer."""
    fields = (NumberField("a"),)
    answers = [*label.names] or [1.0, 2.0]
    held = heldout(Schema(fields, label), [{"a": 0.0}] * len(answers), answers)
    return measure(held, np.zeros((len(answers), label.outputs)))


@pytest.mark.parametrize(
    ("label", "usual"),
    [
        (Label("y", "binary", ("no", "yes")), "auc"),
        (Label("y", "classes", ("a", "b", "c")), "accuracy"),
        (Label("y", "classes", tuple("abcdefghijk")), "accuracy"),
        (Label("y", "number"), "rmse"),
        (Label("y", "number", log=True), "mae"),
        (Label("y", "number", quantiles=(0.1, 0.5, 0.9)), "wape"),
    ],
)
def test_the_metrics_of_a_label_are_those_that_are_measured(label, usual):
    assert metrics_of(label)[0] == usual_metric(label) == usual
    assert set(metrics_of(label)) == zeros(label).keys()
