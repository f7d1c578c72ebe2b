"""FedProx and weighted updates on the device, against a loop that takes one step at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.testing_rounds import fake_terms
from edge_sdk.training.dp_sgd import train
from edge_sdk.training.jobs import TrainingFailed, TrainingPlan, check_plan
from edge_sdk.training.losses import loss_sum
from edge_sdk.training.module import GraphModule
from edge_sdk.training.plans import training_plan
from edge_sdk.training.secure_random import SecretStream

MODEL = tabular_classifier(Schema(tuple(map(NumberField, "abc")), Label("y", "binary", ("no", "yes"))), (5,), seed=2)
RNG = np.random.default_rng(4)
X = RNG.normal(size=(30, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.float32)
KEY = bytes(range(32))


def trained(plan: TrainingPlan):
    return train(GraphModule(MODEL), {"features": X}, Y, plan=plan, key=KEY, on_step=lambda *_: None)


def gradient(module, rows):
    module.zero_grad()
    logits = module({"features": torch.from_numpy(X[rows])})
    loss_sum(module.loss_name, logits, torch.from_numpy(Y[rows])).backward()
    return module.flatten(lambda parameter: parameter.grad).astype(np.float64)


def clipped(module, rows, clip):
    total = np.zeros(len(module.update_vector()))
    for row in rows:
        one = gradient(module, [row])
        total += one * min(1.0, clip / np.linalg.norm(one))
    return total


@pytest.mark.parametrize("mu", [0.0, 0.5, 3.0])
def test_every_step_of_the_device_unit_is_pulled_towards_the_offered_weights(mu):
    plan = TrainingPlan("device", 0.3, 6, 10, proximal=mu)
    oracle, stream = GraphModule(MODEL), SecretStream(KEY)
    start = oracle.update_vector().astype(np.float64)
    weights, order = start.copy(), np.empty(0, np.int64)
    for _ in range(6):
        if len(order) < 10:
            order = stream.permutation(30)
        rows, order = order[:10], order[10:]
        weights = weights - 0.3 * (gradient(oracle, rows) / 10 + mu * (weights - start))
        oracle.load_vector(weights.astype(np.float32))
    np.testing.assert_allclose(trained(plan).update, weights - start, atol=1e-5)


def test_private_steps_are_pulled_too_and_the_noise_is_not():
    plan = TrainingPlan("record", 0.3, 5, 10, 0.5, insecure_without_noise=True, sample_rate=0.4, proximal=1.0)
    oracle, stream = GraphModule(MODEL), SecretStream(KEY)
    start = oracle.update_vector().astype(np.float64)
    weights = start.copy()
    for _ in range(5):
        total = clipped(oracle, stream.poisson_sample(30, 0.4), 0.5)
        weights = weights - 0.3 * (total / 10 + weights - start)
        oracle.load_vector(weights.astype(np.float32))
    np.testing.assert_allclose(trained(plan).update, weights - start, atol=1e-5)


def test_with_the_largest_pull_one_step_is_all_that_is_left():
    far = trained(TrainingPlan("device", 0.5, 20, 30)).update
    near = trained(TrainingPlan("device", 0.5, 20, 30, proximal=2.0)).update
    assert np.linalg.norm(near) < 0.3 * np.linalg.norm(far)


def test_the_weight_scales_the_whole_update():
    whole = trained(TrainingPlan("device", 0.3, 6, 10)).update
    half = trained(TrainingPlan("device", 0.3, 6, 10, weight=0.5)).update
    np.testing.assert_allclose(half, whole / 2, rtol=1e-6)


def test_the_plan_of_an_offer_weighs_by_examples_up_to_the_bound():
    terms = replace(fake_terms("device", "shared"), weight_bound=40, proximal=0.25)
    assert [training_plan(terms, n).weight for n in (10, 40, 400)] == [0.25, 1.0, 1.0]
    assert training_plan(terms, 10).proximal == 0.25
    assert training_plan(replace(terms, weight_bound=0), 10).weight == 1.0
    assert training_plan(replace(fake_terms("record", "shared"), proximal=0.25), 10).proximal == 0.0


@pytest.mark.parametrize(
    "changes",
    [{"proximal": 5.0}, {"proximal": -1.0}, {"weight": 0.0}, {"weight": 1.5}, {"unit": "record", "weight": 0.5}],
)
def test_a_pull_that_overshoots_and_a_weight_that_betrays_are_refused(changes):
    plan = replace(TrainingPlan("device", 0.3, 6, 10), **changes)
    if plan.unit == "record":
        plan = replace(plan, noise_multiplier=1.0)
    with pytest.raises(TrainingFailed) as refused:
        check_plan(plan)
    assert refused.value.reason == "plan"
