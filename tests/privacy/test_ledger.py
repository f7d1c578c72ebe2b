"""The ledger survives restarts, refuses to overspend, and never charges a round twice."""

from __future__ import annotations

import sqlite3

import pytest

from edge_sdk.privacy.accounting import NOTHING, compose, epsilon, subsampled_gaussian
from edge_sdk.privacy.ledger import BudgetSpent, Ledger, LedgerError, Under
from edge_sdk.protocol.messages import PrivacyTerms

DELTA = 1e-5
SPEND = subsampled_gaussian(0.1, 1.0, 20)
OTHER = subsampled_gaussian(0.1, 2.0, 20)


def terms(**changed):
    noise = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "per_customer": 32, "sample_rate": 0.1, "steps": 10}
    wire = {"clip": 1.0, "step": 2.0**-10, "insecure_without_noise": False, "expected_batch": 50}
    wire |= {"proximal": 0.0, "weight_bound": 0}
    rest = {"unit": "record", "placement": "local", "learning_rate": 0.1, "delta": DELTA, "honest": 1}
    return PrivacyTerms(**{**noise, **wire, **rest, **changed})


@pytest.fixture
def connection(tmp_path):
    opened = sqlite3.connect(tmp_path / "device.db")
    yield opened
    opened.close()


def test_a_charge_is_there_after_a_restart(tmp_path):
    first = sqlite3.connect(tmp_path / "ledger.db")
    with first:
        assert Ledger(first).charge("intent", "record", 1, SPEND)
    first.close()
    second = sqlite3.connect(tmp_path / "ledger.db")
    assert Ledger(second).epsilon("intent", "record", DELTA) == epsilon(SPEND, DELTA)
    assert Ledger(second).spent("intent", "record") == SPEND
    second.close()


def test_a_charge_belongs_to_the_callers_transaction(tmp_path, connection):
    ledger = Ledger(connection)
    connection.execute("CREATE TABLE outbox (upload TEXT)")
    other = sqlite3.connect(tmp_path / "device.db")
    connection.execute("INSERT INTO outbox VALUES ('update')")
    ledger.charge("intent", "record", 1, SPEND)
    assert connection.in_transaction
    assert Ledger(other).rounds("intent", "record") == []
    connection.rollback()
    assert ledger.rounds("intent", "record") == []
    assert connection.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
    ledger.charge("intent", "record", 1, SPEND)
    connection.commit()
    assert Ledger(other).rounds("intent", "record") == [1]
    other.close()


def test_a_round_is_charged_once_however_often_it_is_retried(connection):
    ledger = Ledger(connection)
    assert ledger.charge("intent", "record", 4, SPEND)
    assert not ledger.charge("intent", "record", 4, SPEND)
    assert ledger.spent("intent", "record") == SPEND


def test_a_second_different_charge_for_a_round_is_refused(connection):
    ledger = Ledger(connection)
    ledger.charge("intent", "record", 4, SPEND)
    with pytest.raises(LedgerError, match="already charged") as refusal:
        ledger.charge("intent", "record", 4, OTHER)
    assert refusal.value.reason == "charged-differently"
    assert ledger.spent("intent", "record") == SPEND


def test_tasks_and_units_have_their_own_accounts(connection):
    ledger = Ledger(connection)
    ledger.charge("intent", "record", 1, SPEND)
    ledger.charge("intent", "record", 2, OTHER)
    ledger.charge("intent", "device", 1, OTHER)
    assert ledger.spent("intent", "record") == pytest.approx(compose([SPEND, OTHER]))
    assert ledger.epsilon("intent", "device", DELTA) == epsilon(OTHER, DELTA)
    assert ledger.spent("churn", "record") == NOTHING
    assert ledger.epsilon("churn", "record", DELTA) == 0
    assert ledger.rounds("intent", "record") == [1, 2]


def spend_everything(ledger, budget):
    for round_number in range(1, 1000):
        ledger.check("intent", "record", SPEND, budget, DELTA)
        ledger.charge("intent", "record", round_number, SPEND)


def test_rounds_are_admitted_until_the_budget_is_spent_and_not_one_more(connection):
    ledger, budget = Ledger(connection), 6.0
    with pytest.raises(BudgetSpent) as refusal:
        spend_everything(ledger, budget)
    admitted = len(ledger.rounds("intent", "record"))
    assert epsilon(compose([SPEND] * admitted), DELTA) <= budget < epsilon(compose([SPEND] * (admitted + 1)), DELTA)
    assert admitted > 1
    assert refusal.value.reason == "budget-spent"
    left = budget - ledger.epsilon("intent", "record", DELTA)
    assert f"{left:.3f} is left" in str(refusal.value)
    assert "wait for a round with more noise" in str(refusal.value)


def test_a_check_alone_spends_nothing(connection):
    ledger = Ledger(connection)
    ledger.check("intent", "record", SPEND, 10.0, DELTA)
    assert ledger.spent("intent", "record") == NOTHING


@pytest.mark.parametrize("unit", ["record", "customer", "device"])
def test_an_offer_of_another_unit_starts_no_new_budget(connection, unit):
    ledger, budget = Ledger(connection), epsilon(compose([SPEND] * 2), DELTA) * 1.001
    for number, charged in enumerate({"record", "customer", "device"} - {unit}, 1):
        ledger.check("intent", charged, SPEND, budget, DELTA)
        ledger.charge("intent", charged, number, SPEND)
    with pytest.raises(BudgetSpent, match="charges of all units"):
        ledger.check("intent", unit, SPEND, budget, DELTA)
    ledger.check("churn", unit, SPEND, budget, DELTA)
    assert ledger.spent("intent", unit) == NOTHING


def test_the_terms_of_a_figure_are_those_it_was_charged_under_the_weakest_of_them(connection):
    ledger = Ledger(connection)
    assert ledger.under("intent", "record") is None
    local, shared = (Under(terms(placement=place, honest=n), 40) for place, n in (("local", 1), ("shared", 30)))
    ledger.charge("intent", "record", 1, SPEND, local)
    assert ledger.under("intent", "record") == local
    ledger.charge("intent", "record", 2, SPEND, shared)
    last = Under(terms(delta=1e-6), 40)
    ledger.charge("intent", "record", 3, SPEND, last)
    assert ledger.under("intent", "record") == Under(terms(placement="shared", honest=30, delta=1e-6), 40)
    assert ledger.under("intent", "device") is None


def test_a_spend_without_noise_is_refused_by_every_finite_budget(connection):
    with pytest.raises(BudgetSpent):
        Ledger(connection).check("intent", "record", subsampled_gaussian(0.1, 0.0, 1), 1e9, DELTA)


@pytest.mark.parametrize("spend", [(), SPEND[:-1], (-1.0, *SPEND[1:]), (float("nan"), *SPEND[1:])])
def test_what_is_no_spend_is_refused(connection, spend):
    with pytest.raises(LedgerError) as refusal:
        Ledger(connection).charge("intent", "record", 1, spend)
    assert refusal.value.reason == "not-a-spend"


def test_a_spend_of_another_accountant_is_refused_not_misread(connection):
    ledger = Ledger(connection)
    ledger.charge("intent", "record", 1, SPEND)
    connection.execute("UPDATE privacy_spends SET accountant = 99")
    with pytest.raises(LedgerError, match="update the software"):
        ledger.epsilon("intent", "record", DELTA)
