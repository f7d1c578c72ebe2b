"""Server optimizers against one coordinate at a time in plain Python, and their state through crashes of a service."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onehot_device import ONE
from small_fleet import SmallFleet

from aggregator import optimizers
from aggregator.averaging import advance
from aggregator.errors import ModelRefused
from aggregator.optimizers import Optimizer
from aggregator.tasks import build_spec
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.weights import read_vector
from edge_sdk.protocol.codec import unpack
from edge_sdk.protocol.messages import Offer

MODEL = tabular_classifier(Schema((NumberField("a"), NumberField("b")), Label("y", "binary", ("no", "yes"))), (), 3)
LENGTH = read_vector(MODEL).size
STEP, DEVICES, SCALE = 2.0**-10, 7, 0.5
RULES = ("fedavg", "momentum", "adam", "yogi")
DECAYS = ("none", "linear", "cosine")


class Crash(BaseException):
    """The process ends here."""


def decayed(name: str, done: int, rounds: int) -> float:
    return {"none": 1.0, "linear": 1 - done / rounds, "cosine": math.cos(math.pi * done / rounds) / 2 + 0.5}[name]


def one_coordinate(rule: Optimizer, weight: float, changes: list[float]) -> float:
    """The slow oracle: Reddi et al. 2021, algorithm 2, line by line."""
    m, v = 0.0, rule.tau**2
    for done, change in enumerate(changes):
        rate = rule.learning_rate * decayed(rule.decay, done, rule.rounds)
        if rule.name == "fedavg":
            weight += rate * change
        elif rule.name == "momentum":
            m = rule.momentum * m + change
            weight += rate * m
        else:
            m = rule.momentum * m + (1 - rule.momentum) * change
            if rule.name == "adam":
                v = rule.beta2 * v + (1 - rule.beta2) * change**2
            elif change**2 > v:
                v = v + (1 - rule.beta2) * change**2
            elif change**2 < v:
                v = v - (1 - rule.beta2) * change**2
            weight += rate * m / (math.sqrt(v) + rule.tau)
        weight = float(np.float32(weight))  # a checkpoint holds float32
    return weight


def moved(model: bytes, total, optimizer: Optimizer, state: bytes):
    return advance(model, total, step=STEP, devices=DEVICES, scale=SCALE, optimizer=optimizer, state=state, metadata={})


@given(seed=st.integers(0, 2**32), rule=st.sampled_from(RULES), decay=st.sampled_from(DECAYS))
def test_every_rule_moves_every_coordinate_as_its_paper_says(seed, rule, decay):
    rng = np.random.default_rng(seed)
    optimizer = Optimizer(rule, 0.3, rng.uniform(0, 0.99), rng.uniform(0, 0.999), 10 ** rng.uniform(-4, 0), decay, 4)
    totals = rng.integers(-5000, 5000, (4, LENGTH))
    model, state = MODEL, b""
    for total in totals:
        model, state = moved(model, total, optimizer, state)
    changes = SCALE * STEP / DEVICES * totals
    expected = [one_coordinate(optimizer, w, list(changes[:, i])) for i, w in enumerate(read_vector(MODEL).tolist())]
    np.testing.assert_allclose(read_vector(model), expected, rtol=2e-6, atol=2e-6)


def test_momentum_of_a_steady_change_goes_ten_times_as_far():
    optimizer = Optimizer("momentum", 1.0, 0.9)
    model, state, total = MODEL, b"", np.full(LENGTH, 700)
    for _ in range(200):
        before = read_vector(model)
        model, state = moved(model, total, optimizer, state)
    np.testing.assert_allclose(read_vector(model) - before, 10 * SCALE * STEP * 100, rtol=1e-3)


def test_a_robust_average_passes_through_like_a_sum():
    optimizer = Optimizer("adam", 0.1)
    total = np.arange(LENGTH) * 70
    of_sum = moved(MODEL, total, optimizer, b"")
    of_median = advance(
        MODEL, total / DEVICES, step=STEP, devices=1, scale=SCALE, optimizer=optimizer, state=b"", metadata={}
    )
    np.testing.assert_allclose(read_vector(of_median.model), read_vector(of_sum.model), rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_without_a_total_neither_weights_nor_state_move(rule):
    optimizer = Optimizer(rule, 0.1, decay="linear", rounds=9)
    first = moved(MODEL, np.arange(LENGTH), optimizer, b"")
    stayed = moved(first.model, None, optimizer, first.state)
    np.testing.assert_array_equal(read_vector(stayed.model), read_vector(first.model))
    assert stayed.state == first.state
    assert moved(MODEL, None, optimizer, b"").state  # so that the next round does not miss it


def test_plain_averaging_keeps_no_state():
    assert moved(MODEL, np.arange(LENGTH), Optimizer(), b"").state == b""


def test_a_state_of_another_rule_model_or_length_is_refused():
    optimizer = Optimizer("adam", 0.1)
    state = moved(MODEL, np.arange(LENGTH), optimizer, b"").state
    spoiled = [state[:-1], state + b"\0", b"x" * 10, state[:-8] + np.float64(np.nan).tobytes()]
    for data in spoiled:
        with pytest.raises(ModelRefused, match="no state of the server optimizer"):
            optimizers.read(optimizer, data, LENGTH)
    with pytest.raises(ModelRefused):
        optimizers.read(optimizer, state, LENGTH + 1)
    with pytest.raises(ModelRefused):
        optimizers.read(Optimizer("yogi"), state, LENGTH)


def test_the_task_says_which_optimizer():
    spec = build_spec(
        name="t", noise_multiplier=1.0, server_optimizer="yogi", server_learning_rate=0.02, server_momentum=0.8,
        server_beta2=0.95, server_tau=0.1, server_decay="cosine", rounds=40,
    )  # fmt: skip
    assert optimizers.of(spec) == Optimizer("yogi", 0.02, 0.8, 0.95, 0.1, "cosine", 40)


def movements(folder, crash_at: str = "", *, torn: bool = False) -> list[list[float]]:
    """How far each of three rounds moved the devices' coordinates, where 1 is their mean update.

    The process dies once, in the second round; `torn`: between the checkpoint's file and the state's.
    """
    fleet = SmallFleet(folder)
    reached: list[str] = []

    def hook(phase: str) -> None:
        if phase == crash_at:
            reached.append(phase)
            if len(reached) == 2:
                raise Crash

    fleet.hook = hook
    first = fleet.task(rounds=3, release_every=9, server_optimizer="momentum", server_decay="linear")
    fleet.hello_all()
    done = lambda: fleet.service.store.task("churn").status == "done"  # noqa: E731 - it is read once
    if crash_at:
        with pytest.raises(Crash):
            fleet.run(done)
        if torn:
            files = sorted(fleet.home.checkpoints.glob("*.optimizer"), key=lambda file: file.stat().st_mtime_ns)
            files[-1].unlink()
        fleet.restart()
    fleet.run(done)
    shas = [first, *(fleet.service.store.checkpoint("churn", number)[0] for number in (1, 2, 3))]
    assert {file.stem for file in fleet.home.checkpoints.glob("*.optimizer")} == set(shas[2:])  # in force, and before
    weights = np.array([read_vector(fleet.home.checkpoint_file(sha).read_bytes()) for sha in shas], np.float64)
    step = unpack(fleet.service.store.round("churn", 1).frame[68:], Offer).privacy.step
    return (np.diff(weights, axis=0)[:, : len(fleet.devices)] * 6 / (ONE * step)).tolist()


@pytest.mark.parametrize(
    ("phase", "torn"), [("", False), ("closed", False), ("averaging", False), ("averaging", True), ("averaged", False)]
)
def test_a_crash_between_any_two_writes_gives_the_same_movements(tmp_path, phase, torn):
    direction, expected = 0.0, []
    for done in range(3):
        direction = 0.9 * direction + 1
        expected.append([(1 - done / 3) * direction] * 6)
    np.testing.assert_allclose(movements(tmp_path / "home", phase, torn=torn), expected, atol=0.08)  # the error floor


def test_a_state_that_is_gone_stops_the_task_before_anybody_trains_and_names_the_remedy(tmp_path):
    fleet = SmallFleet(tmp_path / "home")
    fleet.task(rounds=3, server_optimizer="momentum", pause_s=20)
    fleet.hello_all()
    fleet.run(lambda: fleet.phase() == "released")
    (file,) = fleet.home.checkpoints.glob("*.optimizer")
    data = file.read_bytes()
    file.unlink()
    fleet.run(lambda: "put it back" in fleet.service.store.task("churn").reason)
    assert fleet.phase(2) == "none"
    file.write_bytes(data)
    fleet.run(lambda: fleet.phase(2) == "released")
