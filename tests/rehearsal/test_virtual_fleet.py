"""A rehearsed round is the round that real devices would hold: same integers, same sums, same model."""

from __future__ import annotations

import hashlib
from functools import reduce

import numpy as np
import pytest

from aggregator.errors import TaskRefused
from aggregator.rehearsal.fleet import Population, VirtualDevice, VirtualFleet
from aggregator.rehearsal.seeds import Seeds
from aggregator.tasks import build_spec
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.weights import read_vector
from edge_sdk.privacy.charges import sigma_steps, update_scale

WIDTH, DEVICES, ROWS = 5, 7, 24
TRUTH = np.linspace(-1.5, 1.5, WIDTH)


def model(hidden=(4,)):
    schema = Schema(tuple(NumberField(f"x{i}") for i in range(WIDTH)), Label("y", "binary", ("no", "yes")))
    return tabular_classifier(schema, hidden, 0)


def people(devices=DEVICES, rows=ROWS):
    made = []
    for index in range(devices):
        x = np.random.default_rng(index).normal(size=(rows, WIDTH)).astype(np.float32)
        made.append(VirtualDevice(f"shop {index}", x, (x @ TRUTH > 0).astype(np.float32), np.arange(rows) // 3))
    return made


def spec(**given):
    least = {"name": "rehearsed", "unit": "record", "placement": "shared", "n_min": 5, "n_max": 50, "rounds": 3}
    least |= {"noise_multiplier": 1.0, "sample_rate": 0.5, "units_per_device": ROWS, "accept_little_signal": True}
    return build_spec(**(least | given))


def digest(fleet):
    return hashlib.sha256(fleet.model).hexdigest()


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"unit": "customer"},
        {"unit": "device", "steps": 2},
        {"placement": "local", "unit": "customer", "steps": 2},
        {"server_optimizer": "adam", "server_learning_rate": 0.1},
        {"groups": 3, "robust": "median", "n_min": 3},
    ],
)
def test_masks_change_no_byte_of_the_model(given):
    many = people(24 if "groups" in given else DEVICES)
    plain, masked = (VirtualFleet(many, model(), spec(**given), masks=masks, seed=4) for masks in (False, True))
    figures = [fleet.run(2) for fleet in (plain, masked)]
    assert digest(plain) == digest(masked) != hashlib.sha256(model()).hexdigest()
    assert [one.devices for one in figures[0]] == [one.devices for one in figures[1]]
    assert figures[0][1].epsilon == figures[1][1].epsilon > figures[0][0].epsilon


def test_another_seed_gives_another_model_and_the_same_seed_the_same():
    fleets = [VirtualFleet(people(), model(), spec(), seed=seed) for seed in (1, 1, 2)]
    for fleet in fleets:
        fleet.run(1)
    assert digest(fleets[0]) == digest(fleets[1]) != digest(fleets[2])


@pytest.mark.parametrize("unit", ["record", "customer"])
def test_a_round_without_noise_is_one_step_of_gradient_descent_on_all_rows(unit):
    import torch

    from edge_sdk.training.dp_sgd import loss_sum
    from edge_sdk.training.module import GraphModule

    given = spec(unit=unit, noise_multiplier=None, insecure_without_noise=True, sample_rate=1.0, max_grad_norm=1e3,
                 learning_rate=0.5, units_per_device=ROWS)  # fmt: skip
    several = people()
    for fast in (False, True):
        fleet = VirtualFleet(several, model(), given, fast=fast)
        fleet.run(1)
        module = GraphModule(model())
        x, y = (torch.from_numpy(np.concatenate([getattr(one, name) for one in several])) for name in
                ("features", "labels"))  # fmt: skip
        loss_sum(module.loss_name, module({"features": x}), y).backward()
        gradient = module.flatten(lambda parameter: parameter.grad)
        expected = read_vector(model()) - 0.5 / (DEVICES * ROWS) * gradient
        # Each device rounds to steps and each mask has a floor of deviation 4: both are far below the movement.
        allowed = 6 * 4.1 * np.sqrt(DEVICES) * fleet.terms.step * update_scale(fleet.terms) / DEVICES
        assert np.abs(read_vector(fleet.model) - expected).max() < allowed + 2e-4 * np.abs(expected).max()


@pytest.mark.parametrize("unit", ["record", "customer"])
def test_one_pooled_pass_is_the_sum_of_the_devices_own_passes(unit):
    given = spec(unit=unit, noise_multiplier=None, insecure_without_noise=True, sample_rate=1.0, max_grad_norm=0.3)
    uneven = [VirtualDevice(one.name, one.features[:n], one.labels[:n], one.subjects[:n])
              for one, n in zip(people(), (24, 3, 7, 24, 12, 1, 24), strict=True)]  # fmt: skip
    fleet = VirtualFleet(uneven, model(), given, fast=True)
    weights = read_vector(fleet.model)
    everybody = np.arange(DEVICES)
    each = [fleet._training.update(place, weights, bytes(32)).astype(np.float64) for place in everybody]
    pooled = fleet._training.pooled_update(everybody, weights, bytes(32))
    assert np.allclose(pooled, reduce(np.add, each), rtol=1e-4, atol=1e-5)
    some = fleet._training.pooled_update(everybody[[0, 4]], weights, bytes(32))
    assert np.allclose(some, each[0] + each[4], rtol=1e-4, atol=1e-5)


def test_a_device_that_reaches_its_clip_is_scaled_down_in_the_pooled_pass_too():
    """Ten times as many rows as the task guesses: the device's own sum is projected, and only its own."""
    given = spec(noise_multiplier=None, insecure_without_noise=True, sample_rate=1.0, units_per_device=2, clip=1.5)
    large = people(rows=40)
    large[1:] = [VirtualDevice(one.name, one.features[:1], one.labels[:1]) for one in large[1:]]
    fleet = VirtualFleet(large, model(), given, fast=True)
    weights = read_vector(fleet.model)
    each = [fleet._training.update(place, weights, bytes(32)).astype(np.float64) for place in range(DEVICES)]
    norms = [np.linalg.norm(one) for one in each]
    assert norms[0] > 1.5 > max(norms[1:])
    expected = each[0] * 1.5 / norms[0] + reduce(np.add, each[1:])
    assert np.allclose(fleet._training.pooled_update(np.arange(DEVICES), weights, bytes(32)), expected, atol=1e-5)


@pytest.mark.parametrize("fast", [False, True])
def test_the_opened_sum_carries_the_noise_of_all_devices(fast):
    """Zero gradients (clip 1e-6 of nothing): what moves the model is noise, of the deviation that is charged."""
    still = [VirtualDevice(str(k), np.zeros((4, WIDTH), np.float32), np.full(4, 0.5, np.float32)) for k in range(6)]
    given = spec(sample_rate=1.0, units_per_device=4, noise_multiplier=2.0, n_min=6, learning_rate=1.0)
    fleet = VirtualFleet(still, model(hidden=(32,)), given, fast=fast, seed=3)
    before, terms = read_vector(fleet.model), fleet.terms
    fleet.run(3)
    moved = (read_vector(fleet.model) - before).astype(np.float64)
    deviation = np.sqrt(3 * 6 * (sigma_steps(terms) ** 2 + 16)) * terms.step * update_scale(terms) / 6
    assert moved.std() == pytest.approx(deviation, rel=6 / np.sqrt(2 * len(moved)))


def test_a_device_with_too_little_to_draw_stays_out_and_a_fleet_of_such_is_refused():
    mixed = people()
    mixed[2] = VirtualDevice("empty", mixed[2].features[:0], mixed[2].labels[:0], mixed[2].subjects[:0])
    mixed[3] = VirtualDevice("one", mixed[3].features[:1], mixed[3].labels[:1], mixed[3].subjects[:1])
    assert VirtualFleet(mixed, model(), spec()).run(1)[0].devices == DEVICES - 2
    assert VirtualFleet(mixed, model(), spec(sample_rate=1.0)).run(1)[0].devices == DEVICES - 1
    with pytest.raises(TaskRefused, match="4 of 7 devices"):
        VirtualFleet(mixed[:3] + [mixed[3]] * 2 + mixed[4:6], model(), spec())


def test_a_round_takes_no_more_devices_than_the_task_allows():
    fleet = VirtualFleet(people(), model(), spec(n_max=5))
    assert [one.devices for one in fleet.run()] == [5, 5, 5]
    assert len({tuple(fleet._cohort(number)) for number in range(1, 9)}) > 1


def test_subjects_of_two_devices_are_two_customers():
    population = Population.of(people())
    apart = population.unit_subjects()
    assert len(np.unique(apart)) == DEVICES * ROWS / 3
    assert population.units(customers=True).tolist() == [ROWS // 3] * DEVICES
    assert population.roaming() == (len(np.unique(population.subjects)), *_roaming(population))
    lonely = Population(["a", "b"], np.array([0, 3, 5]), np.zeros((5, 1), np.float32), np.zeros(5),
                        np.array([-1, -1, 4, 4, 4]))  # fmt: skip
    assert lonely.units(customers=True).tolist() == [3, 1]
    assert lonely.unit_subjects()[:2].tolist() == [-1, -1]


def _roaming(population):
    held = [set(population.device(place).subjects.tolist()) for place in range(len(population))]
    counts = [sum(one in own for own in held) for one in set().union(*held)]
    return sum(count > 1 for count in counts), max(counts)


def test_keys_differ_by_purpose_round_device_and_seed():
    keys = {Seeds(seed).key(purpose, number, device) for seed in (0, 1) for purpose in ("train", "noise")
            for number in (1, 11) for device in (1, 11)}  # fmt: skip
    assert len(keys) == 16
