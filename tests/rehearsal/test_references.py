"""What a fleet is measured against: plain training that converges, and a centre with Opacus' noise."""

from __future__ import annotations

import numpy as np
import pytest

from aggregator import tasks
from aggregator.errors import TaskRefused
from aggregator.evaluation import Heldout, evaluate
from aggregator.rehearsal.fleet import Population, VirtualDevice, VirtualFleet
from aggregator.rehearsal.local_only import _worth, alone
from aggregator.rehearsal.references import PlainPlan, central, central_dp, centre_noise
from aggregator.rehearsal.scores import score, score_own
from aggregator.tasks import build_spec
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.weights import read_vector
from edge_sdk.privacy import accounting
from edge_sdk.training.module import GraphModule
from edge_sdk.training.plain import loss_of

WIDTH, DEVICES = 4, 6
TRUTH = np.array([1.0, -2.0, 0.5, 0.0])
SCHEMA = Schema(tuple(NumberField(f"x{i}") for i in range(WIDTH)), Label("y", "binary", ("no", "yes")))
LINEAR = tabular_classifier(SCHEMA, (), 0)


def rows(seed, count):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, WIDTH)).astype(np.float32)
    return x, (x @ TRUTH + rng.logistic(size=count) > 0).astype(np.float32)


def population(count=40):
    drawn = [rows(seed, count) for seed in range(DEVICES)]
    return Population.of([VirtualDevice(f"d{i}", x, y, np.arange(count) // 2) for i, (x, y) in enumerate(drawn)])


def spec(**given):
    least = {"name": "reference", "unit": "customer", "placement": "shared", "n_min": DEVICES, "n_max": 9, "rounds": 20}
    least |= {"target_epsilon": 8.0, "sample_rate": 0.5, "units_per_device": 20, "learning_rate": 2.0}
    return build_spec(**(least | given))


@pytest.mark.parametrize("optimizer", ["adam", pytest.param("lbfgs", marks=pytest.mark.slow)])
def test_the_centre_finds_the_minimum_that_newtons_method_finds(optimizer):
    x, y = rows(0, 300)
    plan = PlainPlan(optimizer, epochs=150, batch_size=300, learning_rate=0.05, weight_decay=0.01)
    weights = read_vector(central(LINEAR, x, y, plan=plan, watched=0.0)).astype(np.float64)
    wide, best = np.hstack([x, np.ones((300, 1))]), np.zeros(WIDTH + 1)
    decay = 0.01 * np.diag([1.0] * WIDTH + [0.0])
    for _ in range(20):
        p = 1 / (1 + np.exp(-wide @ best))
        curved = (wide * (p * (1 - p))[:, None]).T @ wide / 300 + decay
        best -= np.linalg.solve(curved, wide.T @ (p - y) / 300 + decay @ best)
    assert weights == pytest.approx(best, abs=0.02 if optimizer == "adam" else 1e-3)


def test_watched_rows_end_training_before_it_learns_noise_by_heart():
    """Labels that mean nothing: the best number of passes is next to none, and far less is learnt by heart."""
    x, y = rows(1, 60)
    y = np.random.default_rng(5).permutation(y)
    model, held = tabular_classifier(SCHEMA, (64,), 0), np.arange(60) % 3 == 0
    plan = PlainPlan(learning_rate=0.03, epochs=120, batch_size=20)
    own = {watched is held: evaluate(central(model, x, y, plan=plan, watched=watched, refit=False),
                                     Heldout("binary", {"features": x[~held]}, y[~held]))["log_loss"]
           for watched in (0.0, held)}  # fmt: skip
    assert own[False] < 0.3
    assert own[True] > 0.5


def test_each_device_alone_learns_from_its_own_rows_only():
    two = Population.of([VirtualDevice(name, x, y) for name, (x, y) in
                         {"right": rows(0, 400), "wrong": (rows(1, 400)[0], 1 - rows(1, 400)[1])}.items()])  # fmt: skip
    models = dict(alone(LINEAR, two, plan=PlainPlan(epochs=20)))
    x, y = rows(9, 500)
    rights = [evaluate(models[place], Heldout("binary", {"features": x}, y))["auc"] for place in (0, 1)]
    assert rights[0] > 0.8
    assert rights[1] < 0.2
    scored = score_own(models.items(), Heldout("binary", {"features": x}, y), np.arange(500) % 2, two.names)
    assert scored.spread("auc") == [scored.by_device[name]["auc"] for name in ("wrong", "right")]
    assert scored.mean("auc") == pytest.approx(0.5, abs=0.1)
    one = score(models[0], Heldout("binary", {"features": x}, y), np.zeros(500, np.int64), two.names)
    assert one.overall == one.by_device["right"]
    assert one.mean("auc") == one.overall["auc"]


def test_devices_alone_are_not_held_back_by_a_log_loss_that_few_rows_make_worse():
    """Five rows of each of twelve classes and much confidence: answers get better while the log loss does not."""
    names = tuple(f"c{i}" for i in range(12))
    schema = Schema(tuple(NumberField(f"x{i}") for i in range(30)), Label("y", "classes", names))
    rng = np.random.default_rng(3)
    middles = rng.normal(size=(12, 30))

    def drawn(count):
        y = rng.integers(0, 12, count)
        return (middles[y] + 1.5 * rng.normal(size=(count, 30))).astype(np.float32), y

    people = Population.of([VirtualDevice(f"d{i}", *drawn(60)) for i in range(6)])
    x, y = drawn(600)
    first = tabular_classifier(schema, (), 0)
    plan = PlainPlan("lbfgs", epochs=40, patience=8)
    rights = {
        watched: np.mean(
            [
                evaluate(model, Heldout("classes", {"features": x}, y))["accuracy"]
                for _, model in alone(first, people, plan=plan, watched=watched)
            ]
        )
        for watched in (0.0, 0.2)
    }
    assert rights[0.2] > 0.5
    assert rights[0.2] > rights[0.0] - 0.02


def test_passes_are_judged_by_answers_and_not_by_how_sure_they_are():
    schema = Schema(SCHEMA.fields, Label("y", "classes", ("a", "b", "c")))
    many, truth = GraphModule(tabular_classifier(schema, (), 0)), np.array([0, 1, 2, 0])
    modest = np.zeros((4, 3), np.float32)  # a log loss of 1.1, and two right answers
    bold = np.array([[9, 0, 0], [0, 9, 0], [0, 0, 9], [0, 9, 0]], np.float32)  # 2.3, and three
    assert loss_of(many, bold, truth) > loss_of(many, modest, truth)
    assert _worth(many, bold, truth) > _worth(many, modest, truth)
    two, yes = GraphModule(LINEAR), np.array([1.0, 0.0, 1.0, 0.0], np.float32)
    ordered, sure = (np.array(each, np.float32).reshape(4, 1) for each in ([5, 4, 4.5, 4], [0.1, 0.2, 0.3, -0.1]))
    assert loss_of(two, ordered, yes) > loss_of(two, sure, yes)
    assert _worth(two, ordered, yes) > _worth(two, sure, yes)
    number = GraphModule(tabular_classifier(Schema(SCHEMA.fields, Label("y", "number")), (), 0))
    assert _worth(number, yes.reshape(4, 1), yes) > _worth(number, ordered, yes)
    assert _worth(number, np.full((4, 1), np.nan, np.float32), yes) == -np.inf


def test_devices_alone_stop_where_their_rows_together_say_so():
    """Labels by chance, learnt by heart in 100 passes: as few as any are as good, and the rule takes the fewest."""
    schema = Schema(tuple(NumberField(f"x{i}") for i in range(40)), Label("y", "number"))
    rng = np.random.default_rng(4)
    people = Population.of(
        [
            VirtualDevice(f"d{i}", rng.normal(size=(50, 40)).astype(np.float32), rng.normal(size=50).astype(np.float32))
            for i in range(8)
        ]
    )
    first = tabular_classifier(schema, (), 0)
    plan = PlainPlan(learning_rate=0.05, epochs=100, batch_size=10)
    size = {
        watched: np.mean(
            [np.linalg.norm(read_vector(model)) for _, model in alone(first, people, plan=plan, watched=watched)]
        )
        for watched in (0.0, 0.2)
    }
    assert size[0.2] < 0.5 * size[0.0]


def test_the_private_centre_without_noise_walks_with_the_fleet():
    given = spec(target_epsilon=None, insecure_without_noise=True, sample_rate=1.0, max_grad_norm=0.4, rounds=5,
                 server_optimizer="momentum")  # fmt: skip
    people = population()
    fleet = VirtualFleet(people, LINEAR, given)
    fleet.run()
    apart = read_vector(central_dp(LINEAR, people, given)) - read_vector(fleet.model)
    assert np.abs(apart).max() < 0.01 * np.abs(read_vector(fleet.model)).max()


def test_the_private_centre_adds_the_noise_of_its_epsilon_to_every_step():
    given = spec(rounds=30, target_epsilon=3.0)
    terms = tasks.settle(given, 5)
    noise = centre_noise(given, terms)
    # tests/privacy holds this accountant against Opacus' own.
    spent = accounting.epsilon(accounting.subsampled_gaussian(0.5, noise, 30), 1e-5)
    assert spent == pytest.approx(3.0, rel=1e-3)
    # No gradient at all: each step moves every weight by noise times clip over the divisor, and nothing else.
    still = Population.of([VirtualDevice(str(i), np.zeros((20, 400), np.float32), np.full(20, 0.5, np.float32),
                                         np.arange(20)) for i in range(DEVICES)])  # fmt: skip
    wide = tabular_classifier(Schema(tuple(NumberField(f"x{i}") for i in range(400)), SCHEMA.label), (), 0)
    moved = read_vector(central_dp(wide, still, given))[:400]
    divisor = DEVICES * terms.expected_batch
    assert moved.std() == pytest.approx(noise * 2.0 / divisor * np.sqrt(30), rel=0.2)


def test_the_centre_clips_a_person_of_several_devices_once():
    """One person on every device: what moves the model is one clipped gradient, not one for each device."""
    x, y = np.ones((2, WIDTH), np.float32), np.ones(2, np.float32)
    given = spec(target_epsilon=None, insecure_without_noise=True, sample_rate=1.0, max_grad_norm=0.1, rounds=1,
                 server_optimizer="fedavg", units_per_device=1)  # fmt: skip
    people = Population.of([VirtualDevice(f"d{i}", x, y, np.zeros(2, np.int64)) for i in range(DEVICES)])
    assert people.roaming() == (1, 1, DEVICES)
    moved = [np.linalg.norm(read_vector(central_dp(LINEAR, people, given, across=across)) - read_vector(LINEAR))
             for across in (False, True)]  # fmt: skip
    # The mean over units is the same; of the sum, 0.1 * 2.0 is what one person may add.
    assert moved == pytest.approx([0.2, 0.2], rel=1e-3)
    strangers = Population.of([VirtualDevice(f"d{i}", x, y, np.full(2, i)) for i in range(DEVICES)])
    apart = [
        read_vector(central_dp(LINEAR, strangers, spec(sample_rate=1.0, units_per_device=1), across=across))
        for across in (False, True)
    ]
    assert apart[0].tolist() == apart[1].tolist()


def test_the_centre_takes_no_more_devices_rows_than_a_round_of_the_fleet():
    """Noise over what is learnt is the fleet's: half of the devices a round, a divisor half as large."""
    given = spec(n_min=3, n_max=3, rounds=30, target_epsilon=3.0)
    terms = tasks.settle(given, 401)
    still = Population.of([VirtualDevice(str(i), np.zeros((20, 400), np.float32), np.full(20, 0.5, np.float32),
                                         np.arange(20)) for i in range(DEVICES)])  # fmt: skip
    wide = tabular_classifier(Schema(tuple(NumberField(f"x{i}") for i in range(400)), SCHEMA.label), (), 0)
    moved = read_vector(central_dp(wide, still, given))[:400]
    expected = centre_noise(given, terms) * 2.0 / (3 * terms.expected_batch) * np.sqrt(30)
    assert moved.std() == pytest.approx(expected, rel=0.2)


def test_a_private_centre_without_an_epsilon_is_refused():
    given = spec(target_epsilon=None, noise_multiplier=2.0)
    with pytest.raises(TaskRefused, match="needs an epsilon"):
        central_dp(LINEAR, population(), given)


def test_the_device_units_centre_is_trusted_with_the_noise():
    given = spec(unit="device", steps=2, rounds=2, honest_share=0.5, target_epsilon=50.0, accept_little_signal=True)
    people = population()
    moved = [np.linalg.norm(read_vector(one) - read_vector(LINEAR)) for one in
             (central_dp(LINEAR, people, given), _ran(VirtualFleet(people, LINEAR, given)).model)]  # fmt: skip
    assert 0 < moved[0] < moved[1]


def _ran(fleet):
    fleet.run()
    return fleet
