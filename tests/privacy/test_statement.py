"""No epsilon is shown without its unit, adjacency, delta, accountant, placement and against whom it holds."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from aggregator.tasks import build_spec, settle
from edge_sdk.privacy import charges, statement

LENGTH = 200
EVERY = [(unit, placement) for unit in ("record", "customer", "device") for placement in ("local", "shared")]


def terms_of(unit, placement, **fields):
    wishes = {"target_epsilon": 4.0, "rounds": 20, "n_min": 20, "n_max": 40, "profile": "P32", **fields}
    return settle(build_spec(name="t", unit=unit, placement=placement, **wishes), LENGTH)


@pytest.mark.parametrize(("unit", "placement"), EVERY)
def test_a_figure_comes_with_all_that_it_means_nothing_without(unit, placement):
    terms = terms_of(unit, placement)
    made = statement.state(terms, LENGTH, 20, 20)
    said, in_chinese = made.sentence(), made.sentence("zh")
    assert made.epsilon == charges.epsilon(terms, LENGTH, 20)
    for part in (
        f"epsilon {made.epsilon:.4g}",
        "delta 1e-05",
        f"each {unit}",
        "added or removed",
        "20 rounds",
        "Renyi",
    ):
        assert part in said
    for part in (f"{made.epsilon:.4g}", "1e-05", "20 轮", "Renyi", "聚合方"):
        assert part in in_chinese
    assert ("everyone, the aggregator included" in said) == (placement == "local")
    assert ("16 of the 20" in said) == (placement == "shared") == ("16 台诚实" in in_chinese)
    assert len(made.assumptions) == len(made.chinese[2]) >= 3
    assert ("probability 0.1" in made.assumptions[0]) == (unit != "device")
    several = [one for one in made.assumptions if "several devices" in one or "k devices" in one]
    assert len(several) == (unit != "record")
    assert all(("add up" in one) == (placement == "local") for one in several)
    assert json.loads(json.dumps(made.to_dict()))["sentence_zh"] == in_chinese


def test_without_noise_nothing_is_promised_to_anybody():
    terms = settle(build_spec(name="t", insecure_without_noise=True), LENGTH)
    made = statement.state(terms, LENGTH, 5, 5)
    assert made.epsilon is None
    assert made.lines() == ["no differential privacy: the task runs insecure_without_noise"]
    assert "insecure_without_noise" in made.sentence("zh")
    assert made.to_dict()["against"] == "nobody"


@pytest.mark.parametrize(("unit", "placement"), EVERY)
@pytest.mark.parametrize(("target", "rounds"), [(0.6, 30), (4.0, 5)])
def test_calibration_and_back_for_every_unit_and_placement(unit, placement, target, rounds):
    terms = terms_of(unit, placement, target_epsilon=target, rounds=rounds)
    spent = charges.epsilon(terms, LENGTH, rounds)
    assert 0.995 * target < spent <= target
    assert charges.calibrate(terms, LENGTH, rounds, target) == pytest.approx(terms.noise_multiplier, rel=2e-4)
    assert charges.rounds_within(terms, LENGTH, target) == rounds
    assert charges.epsilon(terms, LENGTH, rounds + 1) > spent
    more = replace(terms, noise_multiplier=1.1 * terms.noise_multiplier)
    assert charges.epsilon(more, LENGTH, rounds) < spent


def test_shared_noise_on_sums_costs_what_central_dp_sgd_costs_but_for_rounding():
    shared = terms_of("record", "shared")
    central = replace(shared, placement="local", steps=1)
    assert charges.epsilon(shared, LENGTH, 20) == pytest.approx(charges.epsilon(central, LENGTH, 20), rel=0.08)
    assert charges.epsilon(shared, LENGTH, 20) > charges.epsilon(central, LENGTH, 20)


@pytest.mark.parametrize("unit", ["customer", "device"])
def test_a_person_on_two_devices_of_one_sum_pays_what_half_the_noise_costs(unit):
    terms = terms_of(unit, "shared", target_epsilon=8.0, sample_rate=1.0)
    halved = charges.epsilon(replace(terms, noise_multiplier=terms.noise_multiplier / 2), LENGTH, 20)
    assert charges.epsilon_on_devices(terms, LENGTH, 20, 2) == halved > 2.3 * charges.epsilon(terms, LENGTH, 20)
    assert charges.epsilon_on_devices(terms, LENGTH, 20, 4) == pytest.approx(50, rel=0.05)
    made = statement.state(terms, LENGTH, 20, 20)
    assert any(f"two devices: epsilon {halved:.3g}" in one and "k-fold" in one for one in made.assumptions)
    assert any(f"ε = {halved:.3g}" in one and "1/k" in one for one in made.chinese[2])
    unknown = statement.charged(terms, 8.0, 20, 20)
    assert any("k-fold" in one for one in unknown.assumptions)
    assert not any("two devices" in one for one in unknown.assumptions)


def test_with_local_noise_the_spends_of_a_persons_devices_add_up():
    terms = terms_of("customer", "local")
    twice = charges.epsilon_on_devices(terms, LENGTH, 20, 2)
    assert twice == charges.epsilon(terms, LENGTH, 40) < 2 * charges.epsilon(terms, LENGTH, 20)
