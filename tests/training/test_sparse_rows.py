"""Sums that skip the zeros of hashed texts are the sums of book-keeping; other models and rows go the dense way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_graph_module import build

from edge_sdk.artifact.recipes import service
from edge_sdk.training.module import GraphModule
from edge_sdk.training.plain import PlainPlan, batches, fit
from edge_sdk.training.pooled import PooledSums
from edge_sdk.training.secure_random import SecretStream
from edge_sdk.training.sparse import SparseRows

ROWS, WIDTH, DEVICES, KEY = 150, 256, 4, bytes(range(32))
OWNERS = np.sort(np.arange(ROWS) % DEVICES)
WIDE = {"features": ("f", ["b", WIDTH])}


def w(*shape):
    return np.random.default_rng(9).normal(size=shape).astype(np.float32)


MODELS = {
    "recipe": (service.model(service.schema(("a", "b", "c"), width=WIDTH), 0), 3),
    "bare product": (build([("MatMul", ["features", "u"], "logits", {})], {"u": w(WIDTH, 3)}, WIDE), 3),
    "one output": (
        build(
            [("Gemm", ["features", "u", "c"], "logits", {"transB": 1})],
            {"u": w(1, WIDTH), "c": w(1)},
            WIDE,
            loss="binary_cross_entropy",
        ),
        2,
    ),
}


def texts(seed=0):
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=(ROWS, WIDTH)) * (rng.random((ROWS, WIDTH)) < 0.04)).astype(np.float32)
    rows[[3, 17, ROWS - 1]] = 0.0
    return rows


def sums(name, monkeypatch, *, dense, rows=None, **given):
    data, classes = MODELS[name]
    labels = np.random.default_rng(1).integers(0, classes, ROWS)
    with monkeypatch.context() as patch:
        if dense:
            patch.setattr("edge_sdk.training.sparse._FULLEST", 0.0)
        settings = {"owners": OWNERS, "subjects": None, "per_customer": 4, "max_grad_norm": 0.7} | given
        made = PooledSums(GraphModule(data), {"features": texts() if rows is None else rows}, labels, **settings)
    assert (made._sparse is None) == dense
    return made


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.03])
@pytest.mark.parametrize("sizes", ["records", "customers"])
@pytest.mark.parametrize("name", MODELS)
def test_the_clipped_sum_is_that_of_the_dense_way(name, sizes, rate, monkeypatch):
    """Customers of one to nine rows, in no order, of which four count; a device is left out, another is cut."""
    rng = np.random.default_rng(2)
    subjects = None if sizes == "records" else OWNERS * 100 + rng.integers(0, 9, ROWS)
    length = GraphModule(MODELS[name][0]).update_vector().size
    weights, here = rng.normal(size=length).astype(np.float32), np.array([True, False, True, True])
    for cap in (1e9, 5.0):
        one, other = (
            sums(name, monkeypatch, dense=dense, subjects=subjects).sum(weights, rate, SecretStream(KEY), here, cap)
            for dense in (True, False)
        )
        assert np.abs(one).max() > 0
        assert np.allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(one).max())


def test_a_customer_whose_rows_nearly_cancel_is_measured_like_any_other(monkeypatch):
    rows = texts()
    rows[1] = rows[0]
    subjects = np.arange(ROWS)
    subjects[1] = 0
    totals = []
    for dense in (True, False):
        made = sums("one output", monkeypatch, dense=dense, rows=rows, subjects=subjects, max_grad_norm=1e-3)
        made._data.labels[:2] = torch.tensor([0, 1])
        totals.append(made.sum(np.zeros(WIDTH + 1, np.float32), 1.0, SecretStream(KEY), np.ones(4, bool), 1e9))
    assert np.allclose(*totals, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_training_without_privacy_is_the_dense_one(optimizer, monkeypatch):
    fitted = []
    monkeypatch.setattr("edge_sdk.training.plain._WIDE", WIDTH)
    for fullest in (0.0, 0.1):
        monkeypatch.setattr("edge_sdk.training.sparse._FULLEST", fullest)
        data = batches({"features": texts()}, np.random.default_rng(1).integers(0, 3, ROWS))
        plan = PlainPlan(optimizer, epochs=5, weight_decay=1e-3, batch_size=32)
        fitted.append(fit(GraphModule(MODELS["recipe"][0]), data, plan, np.random.default_rng(3)).weights)
    assert np.abs(fitted[0]).max() > 0.01
    assert np.allclose(*fitted, atol=1e-4)


def test_other_models_and_full_rows_go_the_dense_way():
    several = build(
        [("MatMul", ["features", "u"], "h", {}), ("Tanh", ["h"], "t", {}), ("MatMul", ["t", "v"], "logits", {})],
        {"u": w(WIDTH, 3), "v": w(3, 3)},
        WIDE,
    )
    rows = {"features": torch.from_numpy(texts())}
    assert SparseRows.of(GraphModule(several), rows) is None
    recipe = GraphModule(MODELS["recipe"][0])
    assert SparseRows.of(recipe, {"features": torch.ones(9, WIDTH)}) is None
    assert SparseRows.of(recipe, rows) is not None
