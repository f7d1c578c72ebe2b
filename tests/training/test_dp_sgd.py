"""Private training against a slow per-example loop, its noise against its distribution, its failures by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.training.dp_sgd import loss_sum, train
from edge_sdk.training.jobs import TrainingFailed, TrainingPlan
from edge_sdk.training.module import GraphModule
from edge_sdk.training.noise import normal
from edge_sdk.training.secure_random import SecretStream

FIELDS = tuple(NumberField(name) for name in "abc")
BINARY = tabular_classifier(Schema(FIELDS, Label("y", "binary", ("no", "yes"))), (6,), seed=1)
CLASSES = tabular_classifier(Schema(FIELDS, Label("y", "classes", ("p", "q", "r"))), (6,), seed=1)
NUMBER = tabular_classifier(Schema(FIELDS, Label("y", "number")), (), seed=1)
RNG = np.random.default_rng(11)
X = RNG.normal(size=(60, 3)).astype(np.float32)
TARGETS = {
    "binary": (BINARY, (X[:, 0] > 0).astype(np.float32)),
    "classes": (CLASSES, RNG.integers(0, 3, 60)),
    "number": (NUMBER, X.sum(axis=1)),
}
KEY = bytes(range(32))


def quiet(step, steps):
    pass


def fresh(model):
    """The model away from its start, where some gradients are exactly zero."""
    module = GraphModule(model)
    start = module.update_vector()
    module.load_vector(start + np.random.default_rng(3).normal(size=start.shape).astype(np.float32))
    return module


def run(name, plan, key=KEY, module=None):
    model, y = TARGETS[name]
    return train(module or fresh(model), {"features": X}, y, plan=plan, key=key, on_step=quiet)


def one_gradient(module, x, y):
    module.zero_grad()
    logits = module({"features": torch.from_numpy(x[None])})
    loss_sum(module.loss_name, logits, torch.from_numpy(np.asarray(y)[None])).backward()
    return module.flatten(lambda parameter: parameter.grad).astype(np.float64)


def clipped_sum(module, y, rows, clip):
    """The slow oracle: one example at a time."""
    total = np.zeros(len(module.update_vector()))
    for row in rows:
        gradient = one_gradient(module, X[row], y[row])
        total += gradient * min(1.0, clip / np.linalg.norm(gradient))
    return total


@pytest.mark.parametrize("clip", [0.05, 0.7, 100.0])
@pytest.mark.parametrize("name", TARGETS)
def test_the_shared_sum_is_that_of_a_loop_over_single_examples(name, clip):
    plan = TrainingPlan("record", 1.0, 1, 30, clip, placement="shared")
    rows = SecretStream(KEY).poisson_sample(60, 0.5)
    assert 15 < len(rows) < 45
    expected = clipped_sum(fresh(TARGETS[name][0]), TARGETS[name][1], rows, clip)
    result = run(name, plan)
    np.testing.assert_allclose(-result.update, expected, atol=2e-5 * clip * len(rows))
    assert result.sampling.q == 0.5
    assert result.sampling.noise_multiplier == 0


@pytest.mark.parametrize("name", TARGETS)
def test_steps_without_noise_are_those_of_the_loop(name):
    plan = TrainingPlan("record", 0.3, 4, 20, 0.5, insecure_without_noise=True)
    stream, oracle, y = SecretStream(KEY), fresh(TARGETS[name][0]), TARGETS[name][1]
    start = oracle.update_vector()
    for _ in range(4):
        rows = stream.poisson_sample(60, 20 / 60)
        step = clipped_sum(oracle, y, rows, 0.5)
        # The expected batch size divides, not the number that came.
        oracle.load_vector((oracle.update_vector() - 0.3 * step / 20).astype(np.float32))
    np.testing.assert_allclose(run(name, plan).update, oracle.update_vector() - start, atol=1e-5)


def test_a_large_batch_in_several_passes_gives_the_same_sum(monkeypatch):
    plan = TrainingPlan("record", 0.3, 2, 30, 0.5, 0.8)
    whole = run("binary", plan).update
    monkeypatch.setattr("edge_sdk.training.private_steps._HELD_NUMBERS", 31 * 4)
    np.testing.assert_allclose(run("binary", plan).update, whole, atol=1e-5)


def test_the_noise_has_the_standard_deviation_of_the_plan():
    # A batch that is expected to hold one of sixty records, a tiny clip: what is left is noise of z * C / 1.
    plan = TrainingPlan("record", 1.0, 1, 1, 1e-3, 50.0)
    updates = np.concatenate([run("binary", plan, bytes([k]) * 32).update for k in range(60)])
    deviation = 50.0 * 1e-3
    assert updates.std() == pytest.approx(deviation, rel=4 / np.sqrt(2 * updates.size))
    assert abs(updates.mean()) < 4 * deviation / np.sqrt(updates.size)


def test_an_empty_batch_is_a_step_of_noise_only():
    plan = TrainingPlan("record", 1.0, 1, 1, 1.0, 2.0)
    empty = next(k for k in range(256) if len(SecretStream(bytes([k]) * 32).poisson_sample(60, 1 / 60)) == 0)
    stream = SecretStream(bytes([empty]) * 32)
    stream.poisson_sample(60, 1 / 60)
    noise = -2.0 * normal(stream, len(fresh(BINARY).update_vector()))
    result = run("binary", plan, bytes([empty]) * 32)
    assert np.sort(result.update) == pytest.approx(np.sort(noise), abs=1e-5)


def test_two_keys_give_two_results_and_one_key_gives_one():
    plan = TrainingPlan("record", 0.5, 3, 20, 1.0, 1.0)
    assert np.array_equal(run("binary", plan).update, run("binary", plan).update)
    assert not np.allclose(run("binary", plan).update, run("binary", plan, bytes(32)).update)


@pytest.mark.parametrize("name", TARGETS)
def test_the_device_unit_learns_without_noise(name):
    module, plan = fresh(TARGETS[name][0]), TrainingPlan("device", 0.3, 60, 20)
    first = run(name, plan, module=module)
    again = run(name, TrainingPlan("device", 0.3, 1, 20), module=module)
    assert again.loss < 0.8 * first.loss
    assert first.sampling.noise_multiplier == 0


@pytest.mark.parametrize("name", TARGETS)
def test_a_step_of_the_device_unit_is_a_step_of_torchs_own_sgd(name):
    stream, oracle, y = SecretStream(KEY), fresh(TARGETS[name][0]), torch.from_numpy(TARGETS[name][1])
    start, order = oracle.update_vector(), stream.permutation(60)
    optimizer = torch.optim.SGD(oracle.parameters(), lr=0.3)
    for rows in (order[:20], order[20:40], order[40:], stream.permutation(60)[:20]):
        optimizer.zero_grad()
        logits = oracle({"features": torch.from_numpy(X[rows])})
        (loss_sum(oracle.loss_name, logits, y[rows]) / 20).backward()
        optimizer.step()
    made = run(name, TrainingPlan("device", 0.3, 4, 20)).update
    np.testing.assert_allclose(made, oracle.update_vector() - start, atol=1e-6)


@pytest.mark.parametrize("unit", ["record", "device"])
def test_a_quick_run_leaves_out_the_loss_and_changes_nothing_else(unit):
    plan = TrainingPlan(unit, 0.3, 3, 20, insecure_without_noise=True)
    whole, (model, y) = run("binary", plan), TARGETS["binary"]
    quick = train(fresh(model), {"features": X}, y, plan=plan, key=KEY, on_step=quiet, quick=True)
    assert np.array_equal(quick.update, whole.update)
    assert np.isnan(quick.loss)
    assert not np.isnan(whole.loss)


def test_private_training_learns_too():
    module = fresh(BINARY)
    first = run("binary", TrainingPlan("record", 0.5, 60, 30, 1.0, 0.5), module=module)
    assert run("binary", TrainingPlan("device", 0.1, 1, 20), module=module).loss < 0.7 * first.loss
    assert (first.sampling.q, first.sampling.noise_multiplier, first.sampling.steps) == (0.5, 0.5, 60)


def test_training_calls_back_after_every_step_and_stops_where_the_callback_raises():
    seen = []

    def stop(step, steps):
        seen.append((step, steps))
        if step == 2:
            raise KeyboardInterrupt

    model, y = TARGETS["binary"]
    plan = TrainingPlan("device", 0.1, 5, 8)
    with pytest.raises(KeyboardInterrupt):
        train(fresh(model), {"features": X}, y, plan=plan, key=KEY, on_step=stop)
    assert seen == [(1, 5), (2, 5)]


@pytest.mark.parametrize("unit", ["record", "device"])
def test_a_value_that_is_not_finite_fails_by_name(unit):
    noise = 1.0 if unit == "record" else 0.0
    bad = X.copy()
    bad[5, 1] = np.nan
    plan = TrainingPlan(unit, 0.1, 3, 30, 1.0, noise)
    with pytest.raises(TrainingFailed, match="NaN") as failure:
        train(fresh(BINARY), {"features": bad}, TARGETS["binary"][1], plan=plan, key=KEY, on_step=quiet)
    assert failure.value.reason == "not-finite"


def test_a_learning_rate_that_explodes_fails_by_name():
    with pytest.raises(TrainingFailed) as failure:
        run("number", TrainingPlan("device", 1e30, 20, 30))
    assert failure.value.reason == "not-finite"


def test_no_examples_fail_by_name():
    empty = np.zeros((0, 3), np.float32)
    plan = TrainingPlan("device", 0.1, 1, 8)
    with pytest.raises(TrainingFailed, match="no examples") as failure:
        train(fresh(BINARY), {"features": empty}, np.zeros(0, np.float32), plan=plan, key=KEY, on_step=quiet)
    assert failure.value.reason == "no-examples"


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (TrainingPlan("record", 0.1, 1, 8), "no-noise"),
        (TrainingPlan("record", 0.0, 1, 8, 1.0, 1.0), "plan"),
        (TrainingPlan("record", 0.1, 0, 8, 1.0, 1.0), "plan"),
        (TrainingPlan("record", 0.1, 1, 0, 1.0, 1.0), "plan"),
        (TrainingPlan("record", 0.1, 1, 8, float("nan"), 1.0), "plan"),
        (TrainingPlan("record", 0.1, 2, 8, placement="shared"), "plan"),
        (TrainingPlan("device", 0.1, 1, 8, 1.0, 1.0), "plan"),
    ],
)
def test_a_plan_that_would_be_unsafe_or_impossible_is_refused(plan, reason):
    with pytest.raises(TrainingFailed) as failure:
        run("binary", plan)
    assert failure.value.reason == reason


def test_the_stream_is_the_cipher_and_its_draws_have_their_distributions():
    stream = SecretStream(bytes(32))
    assert stream.words(1).tobytes().hex() == "dc95c078a2408989"  # AES-256 of zero under zero, first 8 bytes
    draws = normal(stream, 200_001)
    assert draws.size == 200_001
    assert abs(draws.mean()) < 4 / np.sqrt(draws.size)
    assert draws.std() == pytest.approx(1, abs=4 / np.sqrt(2 * draws.size))
    assert np.mean(np.abs(draws) > 3) == pytest.approx(0.0027, abs=4 * np.sqrt(0.0027 / draws.size))
    sizes = [len(stream.poisson_sample(100, 0.2)) for _ in range(2000)]
    assert np.mean(sizes) == pytest.approx(20, abs=4 * 4 / np.sqrt(2000))
    assert np.var(sizes) == pytest.approx(16, rel=0.15)
    assert sorted(stream.permutation(50)) == list(range(50))
    assert len(stream.poisson_sample(100, 1.0)) == 100
    assert "0000" not in repr(stream)


def test_neither_the_noise_nor_a_records_weight_follows_the_number_of_records():
    plan = TrainingPlan("record", 1.0, 1, 20, 0.5, 3.0, sample_rate=0.4)
    module = GraphModule(NUMBER)
    fewer, more = (
        train(module, {"features": X[:count] * 0}, np.zeros(count, np.float32), plan=plan, key=KEY, on_step=quiet)
        for count in (40, 41)
    )
    # No gradient, the same key, one record more: noise alone, of one scale, whatever the stream drew before it.
    assert (fewer.sampling.q, more.sampling.q) == (0.4, 0.4)
    many = [
        train(
            GraphModule(NUMBER),
            {"features": X[:count] * 0},
            np.zeros(count, np.float32),
            plan=plan,
            key=bytes([i] * 32),
            on_step=quiet,
        ).update
        for count in (5, 60)
        for i in range(200)
    ]
    for half in (many[:200], many[200:]):
        assert np.std(np.stack(half)) == pytest.approx(3.0 * 0.5 / 20, rel=0.1)


def test_an_update_with_a_fixed_rate_is_that_of_the_slow_oracle():
    plan = TrainingPlan("record", 0.7, 1, 25, 0.5, insecure_without_noise=True, sample_rate=0.3)
    model, y = TARGETS["binary"]
    module = fresh(model)
    rows = SecretStream(KEY).poisson_sample(60, 0.3)
    expected = -0.7 * clipped_sum(module, y, rows, 0.5) / 25
    np.testing.assert_allclose(run("binary", plan, module=fresh(model)).update, expected, atol=1e-6)
