"""Small versions of benchmarks/attacks.py: what must fail fails, and what must succeed without a defence succeeds."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from benchmarks.attacking import audit, bounds, collusion, inversion, membership, moving_target, poisoning
from benchmarks.attacking.sentences import ENGLISH
from benchmarks.attacking.tables import made_up

CLAIM = 8.0

# -- what trials prove


def test_a_rate_bounded_from_below_has_so_many_hits_once_in_twenty_times():
    rate = bounds.lowest_rate(7, 20, 0.05)
    chances = [math.comb(20, k) * rate**k * (1 - rate) ** (20 - k) for k in range(7, 21)]
    assert sum(chances) == pytest.approx(0.05, rel=1e-6)
    assert bounds.highest_rate(13, 20, 0.05) == pytest.approx(1 - rate)
    assert bounds.lowest_rate(0, 20, 0.05) == 0.0


def test_randomised_response_is_audited_below_its_epsilon_and_near_it():
    """An oracle whose epsilon is known exactly: each bit is told rightly with probability e / (1 + e)."""
    rng = np.random.default_rng(3)
    truth = rng.random(4000) < 0.5
    told = np.where(rng.random(4000) < math.e / (1 + math.e), truth, ~truth)
    one_run = bounds.from_one_run(told + 0.001 * rng.random(4000), truth, 0.0)
    count = min((~truth).sum(), truth.sum())
    scores = told + 1e-3 * rng.random(4000)
    many_runs, _ = bounds.from_threshold(scores[~truth][:count], scores[truth][:count], 0.0)
    assert 0.8 < one_run < 1.0
    assert 0.7 < many_runs < 1.0


def test_one_run_without_delta_is_a_binomial_tail():
    right = 1 / (1 + math.exp(-0.5))
    tail = sum(math.comb(30, k) * right**k * (1 - right) ** (30 - k) for k in range(25, 31))
    assert bounds.one_run_p_value(100, 30, 25, 0.5, 0.0) == pytest.approx(tail)
    # SPEC of the theorem, slowly: 2 m delta max over i of P[v > W >= v - i] / i.
    masses = [math.comb(30, k) * right**k * (1 - right) ** (30 - k) for k in range(31)]
    alpha = max(sum(masses[25 - i : 25]) / i for i in range(1, 26))
    assert bounds.one_run_p_value(100, 30, 25, 0.5, 1e-4) == pytest.approx(tail + 2 * 100 * 1e-4 * alpha)


# -- the audit


@pytest.mark.parametrize(("unit", "placement"), audit.CASES)
def test_the_audit_stays_below_the_claim_and_is_not_blind(unit, placement):
    private, without = (audit.many_runs(unit, placement, claim, 12) for claim in (CLAIM, None))
    assert private["claimed"] == pytest.approx(CLAIM, abs=0.01)
    assert 0 < private["lower_bound"] < CLAIM
    assert 2 < private["lower_bound_gaussian"] < CLAIM
    assert without["claimed"] is None
    assert without["lower_bound"] > private["lower_bound"]
    assert not audit.refuted([private, without])
    assert not audit.blind([private, without])


def test_too_little_noise_is_found_out(monkeypatch):
    """The defect that an audit is for: a device that adds a third of the noise that it charges."""
    draw = audit.SkellamSampler.draw
    monkeypatch.setattr(audit.SkellamSampler, "draw", lambda *given: draw(*given) // 3)
    row = audit.many_runs("device", "shared", 2.0, 12)
    assert row["lower_bound_gaussian"] > row["claimed"]


@pytest.mark.parametrize("unit", ["record", "customer", "device"])
def test_one_run_proves_something_only_within_the_claim(unit):
    private, without = (audit.one_run(unit, claim, 120) for claim in (CLAIM, None))
    assert private["lower_bound"] < private["claimed"]
    assert without["lower_bound"] > 1


# -- membership


def test_likelihood_ratios_find_members_whose_scores_are_moved_and_no_others():
    rng = np.random.default_rng(5)
    members = np.stack([rng.permutation(60) < 30 for _ in range(16)])
    hard = 3 * rng.normal(size=60)
    told = hard + rng.normal(size=(16, 60)) + 2.0 * members
    silent = hard + rng.normal(size=(16, 60))
    scored = [membership.judged(membership.likelihood_ratios(scores, members), members) for scores in (told, silent)]
    assert scored[0]["auc"] > 0.85
    assert scored[0]["true_at_1_percent"] > 0.1
    assert 0.4 < scored[1]["auc"] < 0.6


def test_offers_charge_the_epsilon_that_the_attack_names():
    trainer = membership.Trainer(made_up(4).schema, 2.0)
    assert membership.charges.epsilon(trainer.terms, trainer.length, membership.ROUNDS) == pytest.approx(2.0, rel=1e-3)


# -- inversion


def test_a_plain_update_is_read_back_and_what_leaves_a_device_is_not():
    found = inversion.attack([ENGLISH[0].split()], inversion.Views(), 1)
    plain, clipped, *hidden = found.values()
    assert plain["reads"] == ENGLISH[0]
    assert clipped["picked"] == [1.0]
    assert len(hidden) == 3
    for view in hidden:
        assert view["picked"][0] <= 0.3
        assert view["in_place"][0] <= 0.3
    assert inversion.hashed_words(quick=True)[0]["right"] > 10


# -- collusion


@pytest.mark.parametrize(("members", "opens_from"), [(5, 3), (10, 5)])
def test_a_device_is_opened_only_beyond_the_stated_number_of_colluders(members, opens_from):
    attack = collusion.Attack(members, random.Random(1))
    safe = range(2 * attack.plan.threshold + 2 - members)  # fewer give no equation about two lists
    assert attack.plan.corrupt in safe
    assert not any(attack.attempt(colluders) for colluders in safe)
    assert any(attack.attempt(opens_from) for _ in range(6))
    assert attack.attempt(0, answer_once=False)


def test_all_but_one_device_of_the_smallest_list_learn_the_last():
    rows = collusion.devices_in_the_list(3)
    assert [row["recovered"] for row in rows] == [0.0, 0.0, 1.0]


def test_a_target_moved_between_groups_is_not_opened():
    assert moving_target.attempt(5, 5, 0) == "wrong-group"


def test_members_that_took_any_grouping_would_open_it():
    """The defence removed: what the attack is worth."""
    assert moving_target.attempt(5, 5, 0, settled=False) == "recovered"


def test_two_groups_are_too_few_to_move_a_target_between_even_so():
    assert moving_target.attempt(5, 2, 1, settled=False) == "answers"


# -- poisoning


@pytest.fixture(scope="module")
def fleet():
    return made_up(16)


def metrics(fleet, attack, share, rule):
    return poisoning.train_rounds(fleet, poisoning.ATTACKS[attack], share, rule, rounds=2, seed=1)


def test_one_loud_device_breaks_the_mean_and_not_the_median(fleet):
    honest = metrics(fleet, 0, 0.0, "mean")["value"]
    assert honest > 0.75
    broken = metrics(fleet, 1, 0.125, "mean")
    assert broken["value"] < 0.5
    assert broken["released"] > honest - 0.1  # the gate keeps what was there
    assert metrics(fleet, 1, 1 / 16, "median")["value"] > honest - 0.1


def test_masks_change_a_poisoned_sum_by_the_error_floor_alone(fleet):
    for row in poisoning.through_the_mask(fleet):
        assert row["apart_steps"] <= 6.5 * 4 * math.sqrt(8) + 16
        assert row["largest"] > 100 * row["apart_steps"] or row["attack"] == "label flips"
