"""Quantile regression: the loss against a loop, plain and private training by it, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.artifact.names import SCHEMA
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.weights import write_vector
from edge_sdk.training.dp_sgd import train
from edge_sdk.training.jobs import TrainingFailed, TrainingPlan
from edge_sdk.training.losses import loss_sum
from edge_sdk.training.module import GraphModule

LEVELS = (0.1, 0.5, 0.9)
SCHEMA_OF_THREE = Schema((NumberField("a"), NumberField("b")), Label("y", "number", quantiles=LEVELS))
MODEL = tabular_classifier(SCHEMA_OF_THREE, (), seed=1)


@given(st.integers(0, 2**32))
def test_the_loss_agrees_with_a_loop(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(7, 3)).astype(np.float32), rng.normal(size=7).astype(np.float32)
    slow = 0.0
    for row, y in zip(logits.tolist(), labels.tolist(), strict=True):
        for q, z in zip(LEVELS, row, strict=True):
            slow += q * (y - z) if y > z else (1 - q) * (z - y)
    found = loss_sum("pinball", torch.from_numpy(logits), torch.from_numpy(labels), torch.tensor(LEVELS))
    assert float(found) == pytest.approx(slow, rel=1e-5)


def test_plain_training_finds_the_quantiles_of_the_labels():
    rng = np.random.default_rng(3)
    labels = rng.exponential(size=4000).astype(np.float32)
    inputs = {"features": np.zeros((4000, 2), np.float32)}
    plan = TrainingPlan("device", learning_rate=0.2, steps=400, batch_size=200)
    result = train(GraphModule(MODEL), inputs, labels, plan=plan, key=bytes(32), on_step=lambda *_: None)
    found = GraphModule(MODEL)
    found.load_vector(found.update_vector() + result.update)
    logits = found({"features": torch.zeros(1, 2)}).detach().numpy()[0]
    np.testing.assert_allclose(logits, np.quantile(labels, LEVELS), atol=0.15)


@pytest.mark.parametrize("engine", ["bookkeeping", "hooks"])
def test_a_shared_step_is_the_sum_of_gradients_clipped_one_by_one(engine):
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(9, 2)).astype(np.float32), rng.normal(size=9).astype(np.float32)
    plan = TrainingPlan(
        unit="record", learning_rate=1.0, steps=1, batch_size=9, max_grad_norm=0.8, sample_rate=1.0, placement="shared"
    )
    result = train(
        GraphModule(MODEL), {"features": x}, y, plan=plan, key=bytes(32), on_step=lambda *_: None, engine=engine
    )
    module, slow = GraphModule(MODEL), np.zeros(9)
    for row in range(9):
        module.zero_grad()
        logits = module({"features": torch.from_numpy(x[row : row + 1])})
        loss_sum("pinball", logits, torch.from_numpy(y[row : row + 1]), module.quantiles).backward()
        gradient = module.flatten(lambda parameter: parameter.grad)
        slow += gradient * min(1.0, 0.8 / np.linalg.norm(gradient))
    np.testing.assert_allclose(result.update, -slow, rtol=1e-4, atol=1e-5)


def test_logits_that_are_not_the_quantiles_are_refused():
    with pytest.raises(TrainingFailed, match="quantiles"):
        loss_sum("pinball", torch.zeros(4, 2), torch.zeros(4), torch.tensor(LEVELS))


@pytest.mark.parametrize("schema", ["", Schema((NumberField("a"),), Label("y", "number")).to_json()])
def test_a_model_with_pinball_loss_and_without_quantiles_is_refused(schema):
    from onnx import helper, load_from_string

    model = load_from_string(write_vector(MODEL, np.zeros(9, np.float32)))
    kept = {each.key: each.value for each in model.metadata_props} | {SCHEMA: schema}
    helper.set_model_props(model, kept)
    with pytest.raises(Exception, match=r"quantiles|fl\.schema") as refused:
        GraphModule(model.SerializeToString())
    assert refused.type.__name__ == "UnsupportedModel"
