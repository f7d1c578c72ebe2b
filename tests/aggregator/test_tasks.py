"""A task is refused before any device hears of it, and the refusal says what would make it feasible."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aggregator.cohort import check_fleet, committee_of, live
from aggregator.errors import HomeRefused, TaskRefused
from aggregator.home import Home
from aggregator.store.schema import open_database
from aggregator.store.store import Store
from aggregator.task_terms import update_scale
from aggregator.tasks import build_spec, create_task, epsilon_after, parse_spec, settle
from edge_sdk.protocol.roster import RosterEntry
from edge_sdk.protocol.secagg import committee
from edge_sdk.protocol.secagg.ring import profile


def entries(count: int, stewards: int = 0) -> list[RosterEntry]:
    return [RosterEntry(f"d{i:03}", bytes(32), bytes(32), i < stewards) for i in range(count)]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rounds": -1}, "rounds"),
        ({"colour": "red"}, "colour"),
        ({"name": "Not A Name"}, "name"),
        ({"unit": "house"}, "unit"),
        ({"n_min": 2}, "n_min"),
        ({"clip": -1.0}, "clip"),
        ({"sample_rate": 1.5}, "sample_rate"),
    ],
)
def test_a_field_that_is_wrong_is_named(fields, named):
    with pytest.raises(TaskRefused, match=named):
        build_spec(**{"name": "churn", **fields})


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({}, "target_epsilon"),
        ({"noise_multiplier": 1.0, "target_epsilon": 2.0}, "one of them"),
        ({"noise_multiplier": 1.0, "insecure_without_noise": True}, "remove"),
        ({"noise_multiplier": 0.0}, "target_epsilon"),
        ({"noise_multiplier": 0.01}, "at least 0.05"),
        ({"target_epsilon": 1e9}, "at least 0.05"),
        ({"noise_multiplier": 1.0, "n_min": 10, "n_max": 5}, "n_max"),
        ({"noise_multiplier": 1.0, "profile": "P16", "n_max": 60_000}, "profile"),
        ({"noise_multiplier": 1.0, "profile": "P16", "step": 1e-5}, "step of"),
        ({"noise_multiplier": 1.0, "placement": "shared", "steps": 4}, "placement local"),
        ({"noise_multiplier": 1.0, "placement": "shared", "n_max": 100}, "profile P32"),
        ({"noise_multiplier": 1.0, "placement": "shared", "profile": "P32", "n_max": 60_000}, "an n_max of"),
        ({"noise_multiplier": 1.0, "unit": "device", "honest_share": 0.3}, "an n_min of 7"),
        ({"target_epsilon": 0.05}, "a target_epsilon of 0.103"),
        ({"noise_multiplier": 1.0, "max_epsilon": 9.0, "rounds": 50}, "at most "),
        ({"target_epsilon": 4.0, "unit": "device", "placement": "local"}, "an n_min of"),
    ],
)
def test_terms_that_cannot_run_come_with_a_remedy(fields, hint):
    with pytest.raises(TaskRefused) as refused:
        settle(build_spec(name="churn", **fields), 100_000)
    assert hint in refused.value.hint


def test_what_a_refusal_says_would_be_feasible_is():
    drowned = {"name": "churn", "unit": "device", "placement": "local", "target_epsilon": 4.0, "rounds": 3}
    with pytest.raises(TaskRefused) as refused:
        settle(build_spec(**drowned), 100_000)
    n_min, epsilon = re.search(r"n_min of (\d+), or a target_epsilon of ([\d.]+)", refused.value.hint).groups()
    settle(build_spec(**{**drowned, "n_min": int(n_min)}), 100_000)
    settle(build_spec(**{**drowned, "target_epsilon": float(epsilon)}), 100_000)
    settle(build_spec(**{**drowned, "accept_little_signal": True}), 100_000)
    overspent = {"name": "churn", "noise_multiplier": 1.0, "max_epsilon": 4.0}
    with pytest.raises(TaskRefused) as refused:
        settle(build_spec(**overspent, rounds=200), 100)
    rounds = int(re.search(r"at most (\d+) rounds", refused.value.hint)[1])
    settle(build_spec(**overspent, rounds=rounds), 100)
    with pytest.raises(TaskRefused):
        settle(build_spec(**overspent, rounds=rounds + 1), 100)


def test_rounding_adds_at_most_two_percent_to_what_a_sum_of_gradients_is_charged():
    for length in (30, 1000, 300_000):
        shared = {"unit": "customer", "placement": "shared", "profile": "P32", "n_max": 100}
        terms = settle(build_spec(name="t", target_epsilon=3.0, **shared), length)
        assert math.sqrt(length) <= 0.02 * terms.max_grad_norm / terms.step
        assert terms.steps == 1
        assert terms.clip == pytest.approx(50 + 6 * math.sqrt(50) + 6)


@pytest.mark.parametrize("unit", ["record", "device"])
@pytest.mark.parametrize("epsilon", [0.5, 4.0])
def test_the_noise_is_the_least_that_keeps_all_rounds_within_the_target(unit, epsilon):
    spec = build_spec(name="churn", unit=unit, rounds=20, target_epsilon=epsilon, n_min=20, n_max=200)
    terms = settle(spec, 5000)
    spent = epsilon_after(terms, 5000, 20)
    assert 0.97 * epsilon < spent <= epsilon
    assert epsilon_after(terms, 5000, 21) > spent


@given(
    unit=st.sampled_from(["record", "device"]),
    name=st.sampled_from(["P16", "P24", "P32"]),
    n_min=st.integers(3, 200),
    more=st.integers(0, 1000),
    noise=st.floats(0.3, 20),
    clip=st.floats(0.01, 100),
    length=st.sampled_from([10, 1000, 1_000_000]),
)
def test_every_step_chosen_fits_the_modulus_of_the_specification(*, unit, name, n_min, more, noise, clip, length):
    spec = build_spec(
        name="t", unit=unit, profile=name, n_min=n_min, n_max=n_min + more, noise_multiplier=noise, clip=clip
    )
    try:
        terms = settle(spec, length)
    except TaskRefused:
        assume(False)
    bound = math.floor(terms.clip / terms.step) + 1
    sigma = noise * clip / (terms.step * math.sqrt(terms.honest)) if unit == "device" else 0.0
    needed = spec.n_max * bound + 6.5 * math.sqrt(spec.n_max) * math.sqrt(16 + sigma**2)
    assert profile(name).modulus / 2 > needed
    assert math.log2(terms.step).is_integer()
    assert 1 <= terms.honest <= spec.n_min


def test_without_noise_there_is_no_epsilon():
    terms = settle(build_spec(name="churn", insecure_without_noise=True), 10)
    assert epsilon_after(terms, 10, 3) is None


def test_a_small_fleet_is_told_how_many_to_enrol():
    with pytest.raises(TaskRefused) as refused:
        check_fleet(entries(4), 3, stewards=False)
    assert "enrol 1 more active devices" in refused.value.hint
    with pytest.raises(TaskRefused, match="3 stewards"):
        check_fleet(entries(40, stewards=3), 5, stewards=True)
    with pytest.raises(TaskRefused, match="needs 50"):
        check_fleet(entries(40), 50, stewards=False)
    check_fleet(entries(40, stewards=5), 5, stewards=True)


@pytest.mark.parametrize(("count", "stewards"), [(5, 0), (33, 0), (600, 0), (100, 12)])
def test_the_committee_follows_from_the_roster_and_sits_on_stewards_where_asked(count, stewards):
    roster = entries(count, stewards)
    members = committee_of(b"statement", roster, bool(stewards))
    assert members == committee_of(b"statement", list(reversed(roster)), bool(stewards))
    assert len(members) == committee.members_for(stewards or count)
    assert not stewards or set(members) == {entry.device for entry in roster if entry.steward}


def test_who_said_goodbye_or_is_silent_is_not_live():
    seen = {"a": (100.0, "idle"), "b": (100.0, "gone"), "c": (5.0, "idle")}
    assert live(seen, 110.0, 30.0) == {"a"}


def test_a_task_that_does_not_parse_or_exists_is_refused(tmp_path):
    with pytest.raises(TaskRefused, match="parse"):
        parse_spec(b"{")
    home, store = Home(tmp_path), Store(open_database(tmp_path / "db"))
    spec = build_spec(name="churn", noise_multiplier=1.0)
    with pytest.raises(TaskRefused, match="model"):
        create_task(store, home, spec, model=b"not onnx", heldout=None, now=1.0)
    from small_fleet import first_model

    create_task(store, home, spec, model=first_model(), heldout=None, now=1.0)
    with pytest.raises(HomeRefused, match="already"):
        create_task(store, home, spec, model=first_model(), heldout=None, now=1.0)


LOCAL: dict[str, object] = {"name": "t", "noise_multiplier": 1.0, "accept_little_signal": True}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"unit": "record", "placement": "shared", "proximal": 0.1, "profile": "P32"}, "placement"),
        ({"unit": "customer", "placement": "shared", "weight_bound": 10, "profile": "P32"}, "placement"),
        ({"unit": "record", "weight_bound": 10}, "privacy"),
        ({"unit": "customer", "weight_bound": 10}, "privacy"),
        ({"unit": "device", "proximal": 20.0}, "proximal"),
        ({"unit": "device", "buffer": 4}, "buffer"),
        ({"unit": "device", "buffer": 2000}, "buffer"),
    ],
)
def test_what_one_step_cannot_use_or_a_count_would_betray_is_refused_by_name(fields, reason):
    with pytest.raises(TaskRefused) as refused:
        settle(build_spec(**{**LOCAL, **fields}), 100)
    assert refused.value.reason == reason
    assert refused.value.hint


def test_proximal_and_weight_bound_reach_the_offer():
    terms = settle(build_spec(**LOCAL, unit="device", proximal=0.5, weight_bound=200), 100)
    assert (terms.proximal, terms.weight_bound) == (0.5, 200)
    free = {key: value for key, value in LOCAL.items() if key != "noise_multiplier"}
    assert settle(build_spec(**free, insecure_without_noise=True, weight_bound=7), 100).weight_bound == 7


@pytest.mark.parametrize(("guess", "scale"), [(50, 4.0), (200, 1.0), (900, 1.0)])
def test_weighted_updates_are_divided_by_the_weight_that_a_device_is_taken_to_have(guess, scale):
    spec = build_spec(**LOCAL, unit="device", weight_bound=200, units_per_device=guess)
    assert update_scale(spec, settle(spec, 100)) == scale
