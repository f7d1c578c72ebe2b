"""Book-keeping against Opacus' hooks and against a loop over single examples; customers against their own oracle."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from test_graph_module import IDS, MODELS, SEQUENCE, X, build, example, ints, w

from edge_sdk.training import private_steps
from edge_sdk.training.bookkeeping import Direct, Owners, booked, clip_factors, unsupported_layer
from edge_sdk.training.dp_sgd import train
from edge_sdk.training.hooks import hooked
from edge_sdk.training.jobs import TrainingFailed, TrainingPlan, job
from edge_sdk.training.losses import Batches, loss_sum
from edge_sdk.training.module import Elementwise, GraphModule
from edge_sdk.training.noise import normal
from edge_sdk.training.private_steps import ClippedSums, FlatWeights
from edge_sdk.training.secure_random import SecretStream
from edge_sdk.training.units import Drawn, Units

KEY = bytes(range(32))
ROWS = 12
SIZES = {"record": [1] * ROWS, "customers alike": [3] * 4, "customers unlike": [1, 7, 2, 1, 1]}


def head(value, width, channels=4):
    """A flattened trained layer's end."""
    nodes = [("Flatten", [value], "flat", {}), ("Gemm", ["flat", "hw", "hc"], "logits", {"transB": 1})]
    return nodes, {"hw": w(channels, width), "hc": w(channels)}


def rows_model(width, outputs):
    """A layer on each of nine rows of three columns: "features" [B, 3, 9], turned."""
    nodes, weights = head("m", 9 * outputs)
    start = [("Transpose", ["features"], "t", {"perm": [0, 2, 1]}), ("MatMul", ["t", "u"], "h", {})]
    middle = [("Tanh", ["h"], "a", {}), ("MatMul", ["a", "v"], "n", {}), ("Add", ["n", "b"], "m", {})]
    return build(
        [*start, *middle, *nodes],
        {"u": 0.3 * w(3, width), "v": w(width, outputs), "b": w(outputs), **weights},
        SEQUENCE,
    )


def text_model():
    nodes, weights = head("r", 7 * 6)
    start = [("Gather", ["e", "features"], "g", {}), ("Transpose", ["g"], "t", {"perm": [0, 2, 1]})]
    conv = [("Conv", ["t", "k", "kb"], "h", {"kernel_shape": [3], "pads": [1, 1]}), ("Relu", ["h"], "r", {})]
    return build([*start, *conv, *nodes], {"e": w(20, 5), "k": w(6, 5, 3), "kb": w(6), **weights}, IDS)


ZOO = {
    **MODELS,
    "perceptron": build(
        [("Gemm", ["features", "a", "b"], "h", {"transB": 1}), ("Relu", ["h"], "r", {}), *head("r", 9)[0]],
        {"a": w(9, 4), "b": w(9), **head("r", 9)[1]},
        X,
    ),
    "rows, each gradient held": rows_model(5, 4),
    "rows, in pairs": rows_model(90, 80),
    "text": text_model(),
}


def prepared(name):
    module = GraphModule(ZOO[name])
    _, like = example(ZOO[name], ROWS)
    rng = np.random.default_rng(4)
    x = rng.integers(-7, 20, like.shape) if like.dtype == np.int64 else rng.normal(size=like.shape).astype(np.float32)
    features = {"features": torch.from_numpy(x)}
    classes = module(features).flatten(1).shape[1]
    labels = np.random.default_rng(1).integers(0, classes, ROWS)
    if module(features).dim() > 2:
        module.loss_name = "mse"
        labels = np.random.default_rng(1).normal(size=module(features).shape).astype(np.float32)
    return module, Batches(features, torch.from_numpy(labels))


def slow_gradients(module, data):
    """One example at a time, [B, d]."""
    rows = []
    for row in range(len(data)):
        features, labels = data.take(np.array([row]))
        module.zero_grad()
        loss_sum(module.loss_name, module(features), labels).backward()
        rows.append(module.flatten(lambda parameter: parameter.grad).astype(np.float64))
    return np.stack(rows)


def by_unit(gradients, sizes):
    return np.add.reduceat(gradients, np.cumsum([0, *sizes[:-1]]), axis=0)


def clipped(gradients, clip):
    norms = np.linalg.norm(gradients, axis=1)
    return norms, (gradients * np.minimum(1, clip / np.maximum(norms, 1e-30))[:, None]).sum(0)


def ours(module, data, sizes, clip, engine):
    """Norms and clipped sum of all examples, in order, as units of those sizes."""
    owners = Owners(np.array(sizes))
    with engine(module) as gradients:
        weights = FlatWeights(module)
        total = torch.zeros_like(weights.vector)
        totals = weights.views(total)
        parts = gradients.parts(data, np.arange(len(data)), totals)
        squares = torch.stack([part.squares(owners) for part in parts]).sum(0)
        for part in parts:
            part.add(clip_factors(squares, clip), owners)
        return squares.sqrt().numpy(), module.flatten(totals.__getitem__)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", ZOO)
def test_norms_and_clipped_sums_are_those_of_a_loop_and_of_the_hooks(name, sizes):
    module, data = prepared(name)
    assert unsupported_layer(module) is None
    gradients = by_unit(slow_gradients(module, data), sizes)
    clip = float(np.median(np.linalg.norm(gradients, axis=1)))
    norms, total = clipped(gradients, clip)
    for engine in (booked, hooked):
        found_norms, found = ours(module, data, sizes, clip, engine)
        np.testing.assert_allclose(found_norms, norms, rtol=1e-5, atol=1e-12)
        assert np.linalg.norm(found - total) <= 1e-5 * max(np.linalg.norm(total), clip)


@pytest.mark.parametrize("name", ZOO)
def test_the_clipped_sum_is_that_of_opacus_own_optimizer(name):
    module, data = prepared(name)
    _, total = ours(module, data, [1] * ROWS, 2.0, booked)
    recorded = GradSampleModule(module, batch_first=True, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(recorded.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=2.0, expected_batch_size=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss_sum(module.loss_name, recorded(data.features), data.labels).backward()
    optimizer.clip_and_accumulate()
    theirs = module.flatten(lambda parameter: parameter.summed_grad)
    recorded.to_standard_module()
    assert np.linalg.norm(total - theirs) <= 1e-5 * np.linalg.norm(theirs)


RNG = np.random.default_rng(8)
DATA = RNG.normal(size=(60, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, 60)
SUBJECTS = np.where(RNG.random(60) < 0.1, -1, RNG.integers(0, 12, 60))
CUSTOMER = TrainingPlan("customer", 1.0, 1, 8, 0.6, placement="shared", sample_rate=1.0)


def run(plan=CUSTOMER, keep=slice(None), subjects=SUBJECTS, **more):
    more = {"key": KEY, **more}
    return train(
        GraphModule(ZOO["perceptron"]), {"features": DATA[keep]}, LABELS[keep], plan=plan, subjects=subjects[keep],
        on_step=lambda *_: None, **more,
    )  # fmt: skip


def subject_sums():
    """Explicit gradient of each unit: a subject, or one example that has none."""
    gradients = slow_gradients(
        GraphModule(ZOO["perceptron"]), Batches({"features": torch.from_numpy(DATA)}, torch.from_numpy(LABELS))
    )
    groups = [np.flatnonzero(k == SUBJECTS) for k in range(12)] + [[k] for k in np.flatnonzero(SUBJECTS < 0)]
    return np.stack([gradients[group].sum(0) for group in groups])


@pytest.mark.parametrize("engine", ["bookkeeping", "hooks"])
def test_a_customers_examples_are_summed_and_clipped_once(engine):
    result = run(engine=engine)
    _, expected = clipped(subject_sums(), 0.6)
    np.testing.assert_allclose(-result.update, expected, atol=2e-5)
    assert (result.engine, result.records, result.sampling.q) == (engine, 60, 1.0)


def test_removing_one_subject_moves_the_sum_by_at_most_the_clip():
    whole, moved = run().update, []
    for subject in range(12):
        keep = subject != SUBJECTS
        moved.append(np.linalg.norm(run(keep=keep).update - whole))
    assert max(moved) <= 0.6 * (1 + 1e-5)
    # The bound is reached, and one example's clip would not have held it.
    assert max(moved) == pytest.approx(0.6, rel=1e-4)
    as_records = TrainingPlan("record", 1.0, 1, 8, 0.6, placement="shared", sample_rate=1.0)
    busy = np.bincount(SUBJECTS[SUBJECTS >= 0]).argmax()
    assert np.linalg.norm(run(as_records, busy != SUBJECTS).update - run(as_records).update) > 2 * 0.6


def test_a_subject_that_nearly_cancels_itself_is_still_clipped_by_its_true_norm():
    x = np.zeros((2, 4), np.float32)
    x[0], x[1] = 3e4, 3e4
    x[1, 0] += 0.05
    model = build([("Gemm", ["features", "a", "b"], "logits", {})], {"a": w(4, 1), "b": w(1)}, X, loss="mse")
    module, data = GraphModule(model), Batches({"features": torch.from_numpy(x)}, torch.tensor([1.0, -1.0]))
    module.load_vector(np.zeros(5, np.float32))
    true = np.linalg.norm(slow_gradients(module, data).sum(0))
    norms, _ = ours(module, data, [2], 1.0, booked)
    assert true < 1e-5 * np.linalg.norm(x[0])
    assert norms[0] == pytest.approx(true, rel=0.01)


def summed_rows_model():
    """Nine rows through one product of 90 by 80 and added up: a single example's rows can cancel."""
    start = [("Transpose", ["features"], "t", {"perm": [0, 2, 1]}), ("MatMul", ["t", "u"], "h", {})]
    nodes = [*start, ("MatMul", ["h", "v"], "m", {}), ("ReduceSum", ["m", "axis"], "logits", {"keepdims": 0})]
    constants = {"u": w(3, 90), "axis": ints(1)}
    return build(nodes, {"v": np.zeros((90, 80), np.float32)}, SEQUENCE, constants=constants, trainable=["v"])


LINEAR = [("Gemm", ["features", "a", "b"], "logits", {"transB": 1})]
DEEP = [("Gemm", ["features", "c", "d"], "h", {"transB": 1}), ("Relu", ["h"], "r", {})]
# Weights of zero: every label pulls equally, so that the examples of one customer can cancel.
OPPOSED = {
    "number": (build(LINEAR, {"a": 0 * w(1, 4), "b": 0 * w(1)}, X, loss="mse"), (4,), False),
    "binary": (build(LINEAR, {"a": 0 * w(1, 4), "b": 0 * w(1)}, X, loss="binary_cross_entropy"), (4,), True),
    "perceptron": (
        build([*DEEP, ("Gemm", ["r", "a", "b"], "logits", {"transB": 1})],
              {"c": w(9, 4), "d": w(9), "a": 0 * w(2, 9), "b": 0 * w(2)}, X), (4,), True,
    ),
    "rows": (summed_rows_model(), (3, 9), True),
}  # fmt: skip


def opposed(shape, classes, size, drift, count):
    """`count` examples of `size` that pull to both sides in turn, and differ by `drift` of it in one column."""
    rng = np.random.default_rng(count)
    x = np.broadcast_to(rng.normal(size=shape) * size, (count, *shape)).copy()
    if len(shape) == 2:
        x[:, :, 1::2], x[:, :, -1] = -x[:, :, :-1:2], 0
    x.reshape(count, -1)[::2, 1] += drift * size
    pull = np.arange(count) % 2
    return x.astype(np.float32), pull if classes else np.where(pull, 1, -1) * min(size, 1e3)


@pytest.mark.parametrize("engine", ["bookkeeping", "hooks"])
@pytest.mark.parametrize("unit", ["customer", "record"])
@pytest.mark.parametrize("name", OPPOSED)
def test_no_unit_adds_more_than_the_clip_whatever_its_records_hold(name, unit, engine):
    model, shape, classes = OPPOSED[name]
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(11, *shape)).astype(np.float32), rng.integers(0, 2, 11)
    plan = TrainingPlan(unit, 1.0, 1, 8, 0.6, placement="shared", sample_rate=1.0)

    def summed(more, labels):
        features, kind = np.concatenate([x, more]), np.int64 if classes else np.float32
        subjects = np.append(np.arange(11), np.full(len(more), 99))
        return train(
            GraphModule(model), {"features": features}, np.append(y, labels).astype(kind), plan=plan, key=KEY,
            on_step=lambda *_: None, subjects=subjects if unit == "customer" else None, engine=engine,
        ).update.astype(np.float64)  # fmt: skip

    without, moved = summed(x[:0], y[:0]), []
    for size in (1e-20, 1.0, 1e6, 1e9, 1e12, 1e15):
        for drift, count in ((0.0, 2), (1e-7, 2), (1e-5, 9), (0.1, 40)):
            more = opposed(shape, classes, size, drift, 1 if unit == "record" else count)
            moved.append(np.linalg.norm(summed(*more) - without))
    assert max(moved) <= 0.6 * (1 + 1e-4)
    assert max(moved) == pytest.approx(0.6, rel=1e-4)


def test_a_long_gradient_of_equal_numbers_is_measured_within_a_millionth_part():
    for value in (0.3, 0.7003, 1.1):
        each = torch.full((1, 300_001), value)
        true = np.sqrt(300_001.0) * float(each[0, 0])
        assert Direct(each, each[0]).squares(Owners(np.ones(1, np.int64))).sqrt().item() == pytest.approx(
            true, rel=4e-6
        )


@pytest.mark.parametrize("held", [1, 200, 10**9])
def test_passes_of_any_size_give_one_sum(monkeypatch, held):
    monkeypatch.setattr(private_steps, "_HELD_NUMBERS", held)
    _, expected = clipped(subject_sums(), 0.6)
    np.testing.assert_allclose(-run().update, expected, atol=2e-5)


def test_single_examples_go_in_small_passes_and_units_of_several_in_large_ones(monkeypatch):
    monkeypatch.setattr(private_steps, "_HELD_OF_SINGLES", 1)
    monkeypatch.setattr(private_steps, "_FIRST_EXAMPLES", 3)
    sums, passes = {}, {}
    for kind, bounds in (("singles", np.arange(ROWS + 1)), ("pairs", np.arange(0, ROWS + 1, 2))):
        module, data = prepared("perceptron")
        with booked(module) as gradients:
            counted = Counted(gradients)
            clipped_sums = ClippedSums(counted, data, FlatWeights(module), 1e9)
            clipped_sums.add(Drawn(np.arange(ROWS), bounds))
        passes[kind], sums[kind] = counted.rows, clipped_sums.total.numpy()
    assert passes["singles"] == [3] + [1] * (ROWS - 3)
    assert passes["pairs"] == [2, ROWS - 2]
    np.testing.assert_allclose(sums["singles"], sums["pairs"], rtol=1e-4, atol=1e-6)


class Counted:
    """Gradients, and how many rows each pass had."""

    def __init__(self, inner):
        self.inner, self.rows = inner, []

    def parts(self, data, rows, totals):
        self.rows.append(len(rows))
        return self.inner.parts(data, rows, totals)


def test_local_customer_steps_are_those_of_the_oracle_and_divide_by_units():
    plan = TrainingPlan("customer", 0.3, 1, 8, 0.6, sample_rate=0.5, insecure_without_noise=True)
    drawn = Units(60, SUBJECTS, 32).draw(SecretStream(KEY), 0.5)
    gradients = slow_gradients(
        GraphModule(ZOO["perceptron"]), Batches({"features": torch.from_numpy(DATA)}, torch.from_numpy(LABELS))
    )
    _, total = clipped(by_unit(gradients[drawn.rows], drawn.sizes), 0.6)
    np.testing.assert_allclose(run(plan).update, -0.3 * total / 8, atol=1e-5)


def test_customers_are_drawn_whole_and_at_the_rate_of_the_plan():
    units, stream, hits = Units(60, SUBJECTS, 100), SecretStream(KEY), np.zeros(60)
    for _ in range(2000):
        rows = units.draw(stream, 0.3).rows
        hits[rows] += 1
        taken = np.isin(np.arange(60), rows)
        assert all(len(set(taken[k == SUBJECTS])) == 1 for k in (0, 5))
    # 6 standard deviations for each of at most 60 units: error probability below 1.2e-7.
    assert np.abs(hits - 600).max() < 6 * np.sqrt(2000 * 0.3 * 0.7)
    assert np.abs(hits - 600).max() > 0
    assert len(units) == 12 + (SUBJECTS < 0).sum()


def test_no_customer_gives_more_than_its_share_and_each_example_has_the_same_chance():
    units, stream, hits = Units(7, np.array([4, 4, 9, 4, 4, 9, 4]), 2), SecretStream(KEY), np.zeros(7)
    for _ in range(2000):
        drawn = units.draw(stream, 1.0)
        assert list(drawn.sizes) == [2, 2]
        assert len(set(drawn.rows)) == 4
        hits[drawn.rows] += 1
    assert list(hits[[2, 5]]) == [2000, 2000]
    # 6 standard deviations of five examples: error probability below 1e-8.
    assert np.abs(hits[[0, 1, 3, 4, 6]] - 800).max() < 6 * np.sqrt(2000 * 0.4 * 0.6)


def test_an_empty_draw_has_no_rows_and_splits_keep_every_unit_whole():
    assert len(Units(5, None, 1).draw(SecretStream(KEY), 1e-12)) == 0
    rest = Drawn(np.arange(10), np.array([0, 1, 8, 10]))
    parts = []
    while len(rest):
        first, rest = rest.split(3)
        parts.append(list(first.rows))
    assert parts == [[0], [1, 2, 3, 4, 5, 6, 7], [8, 9]]


def within(draws, deviation):
    """Chi-square test of the variance by its normal limit: rejects a true hypothesis with probability 6e-7."""
    n = draws.size
    return abs(np.sum((draws / deviation) ** 2) - n) < 5 * np.sqrt(2 * n)


def test_the_noise_of_a_customer_step_has_the_deviation_of_the_plan_and_five_percent_less_is_seen():
    plan = TrainingPlan("customer", 0.5, 1, 4, 1e-3, 40.0, sample_rate=1e-9)
    draws = np.concatenate([run(plan, key=bytes([k]) * 32).update for k in range(120)])
    deviation = 0.5 * 40.0 * 1e-3 / 4
    assert draws.size > 9_000
    assert within(draws, deviation)
    assert not within(draws, 1.05 * deviation)
    assert not within(draws, 0.95 * deviation)


def test_float_noise_is_normal_in_its_body_and_its_tails():
    from scipy import stats

    draws = normal(SecretStream(KEY), 200_001).astype(np.float64)
    # Error probability 1e-6 each.
    assert stats.kstest(draws, "norm").pvalue > 1e-6
    for edge in (0.001, 1.0, 3.0, 4.0):
        count, chance = int((np.abs(draws) < edge).sum()), float(stats.chi2.cdf(edge**2, 1))
        assert stats.binomtest(count, draws.size, chance).pvalue > 1e-6
    halves = draws[:200_000].reshape(2, -1)
    assert abs(np.corrcoef(halves)[0, 1]) < 5 / np.sqrt(100_000)
    assert stats.kstest(0.97 * draws, "norm").pvalue < 1e-6


@pytest.mark.parametrize(
    ("plan", "subjects", "reason"),
    [
        (CUSTOMER, None, "no-subjects"),
        (CUSTOMER, SUBJECTS[:-1], "wrong-shape"),
        (TrainingPlan("customer", 1.0, 1, 8, 0.6), SUBJECTS, "no-noise"),
        (TrainingPlan("customer", 1.0, 2, 8, 0.6, placement="shared"), SUBJECTS, "plan"),
        (TrainingPlan("customer", 1.0, 1, 8, 0.6, 1.0, "shared"), SUBJECTS, "plan"),
        (TrainingPlan("customer", 1.0, 1, 8, 0.6, 1.0, per_customer=0), SUBJECTS, "plan"),
    ],
)
def test_a_customer_job_that_would_protect_nobody_is_refused(plan, subjects, reason):
    with pytest.raises(TrainingFailed) as failure:
        job(ZOO["perceptron"], {"features": DATA}, LABELS, plan, KEY, subjects=subjects)
    assert failure.value.reason == reason


def test_a_layer_that_does_not_keep_examples_apart_is_refused():
    fixed = build(
        [("Gather", ["e", "places"], "g", {}), ("Add", ["g", "features"], "logits", {})],
        {"e": w(9, 4)},
        X,
        constants={"places": ints(3)},
    )
    plan = TrainingPlan("record", 1.0, 1, 8, 0.6, 1.0, sample_rate=1.0)
    with pytest.raises(TrainingFailed) as failure:
        train(GraphModule(fixed), {"features": DATA}, LABELS, plan=plan, key=KEY, on_step=lambda *_: None)
    assert failure.value.reason == "wrong-shape"
    with pytest.raises(TrainingFailed, match="spans the batch"):
        Elementwise("Mul", (60, 4)).by_example(torch.zeros(60, 4))


MIXED = {
    "softmax over the batch": [("Gemm", ["features", "a"], "h", {}), ("Softmax", ["h"], "logits", {"axis": 0})],
    "less the batch's mean": [
        ("Gemm", ["features", "a"], "h", {}),
        ("ReduceMean", ["h", "axis"], "m", {}),
        ("Sub", ["h", "m"], "logits", {}),
    ],
}


@pytest.mark.parametrize("nodes", MIXED.values(), ids=MIXED)
def test_a_model_in_which_one_example_moves_another_is_refused(nodes):
    model = build(nodes, {"a": w(4, 4)}, X, constants={"axis": ints(0)})
    plan = TrainingPlan("record", 1.0, 1, 8, 0.6, 1.0, sample_rate=1.0)
    with pytest.raises(TrainingFailed) as failure:
        train(GraphModule(model), {"features": DATA}, LABELS, plan=plan, key=KEY, on_step=lambda *_: None)
    assert failure.value.reason == "mixed-examples"
