"""Questions from queue to figures: one round of the task, its masks and ledgers; exact where there is no noise."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
from asked_fleet import CUSTOMERS, AskedFleet
from small_fleet import SmallFleet, first_model

from aggregator.analytics import Question, Questions, settle
from aggregator.errors import TaskRefused
from aggregator.ledger import Ledger
from aggregator.model_card import offer_of, promised
from aggregator.store import audit_log
from aggregator.tasks import build_spec, parse_spec
from edge_sdk.privacy import charges
from edge_sdk.protocol import hashlog
from edge_sdk.protocol.messages import Query, Statistic

MEAN = Statistic("moments", "f0", -6.0, 6.0, 0, ())
PARTS = Statistic("histogram", "f1", -6.0, 6.0, 24, ())
LABELS = Statistic("words", "", 0.0, 0.0, 0, ("no", "yes"))
MODEL = Statistic("model", "", 0.0, 4.0, 10, ())
EVERYTHING = Query("everything", (MEAN, PARTS, LABELS, MODEL))


def ask(fleet: SmallFleet, query: Query = EVERYTHING, epsilon: float | None = 4.0, **terms: object) -> int:
    return Questions(fleet.service.store).add("churn", Question(query=query, epsilon=epsilon, **terms), fleet.now)


def answer(fleet: SmallFleet, number: int) -> dict:
    questions = Questions(fleet.service.store)
    fleet.run(lambda: questions.get(number).status in ("done", "failed"))
    row = questions.get(number)
    assert row.status == "done", row.reason
    return json.loads(row.answer)


def started(path, **task: object) -> AskedFleet:
    fleet = AskedFleet(path / "home")
    fleet.task(heldout=False, **{"rounds": 0, "n_min": 6, **task})
    fleet.hello_all()
    return fleet


def near(estimate: dict, truth: float) -> bool:
    """Six deviations: one interval of 95 % in twenty misses the truth."""
    middle, half = (estimate["low"] + estimate["high"]) / 2, (estimate["high"] - estimate["low"]) / 2
    return abs(truth - middle) <= 3 * half


QUIET = {"noise_multiplier": None, "insecure_without_noise": True}


@pytest.mark.parametrize(("unit", "placement"), [("record", "shared"), ("customer", "local"), ("device", "shared")])
def test_without_noise_the_figures_are_the_statistics_of_all_records_together(tmp_path, unit, placement):
    fleet = started(tmp_path, unit=unit, placement=placement, **QUIET)
    mean, parts, labels, model = answer(fleet, ask(fleet, epsilon=None))["figures"]
    values = np.array([example.fields["f0"] for example in fleet.examples])
    units = {"record": len(values), "customer": len(fleet.devices) * CUSTOMERS, "device": len(fleet.devices)}[unit]
    assert mean["count"]["value"] == pytest.approx(units, rel=0.01)
    # Every device holds as many records and every customer too: the mean over units is the mean over records.
    assert mean["mean"]["value"] == pytest.approx(values.mean(), abs=0.02)
    assert near(mean["mean"], values.mean())
    assert mean["deviation"]["value"] == pytest.approx(values.std(), abs=0.03)
    others = np.array([example.fields["f1"] for example in fleet.examples])
    expected = np.histogram(others, bins=24, range=(-6, 6))[0] / len(others)
    assert [share["value"] for share in parts["shares"]] == pytest.approx(list(expected), abs=0.01)
    for quantile in parts["quantiles"]:
        assert near(quantile, np.quantile(others, quantile["at"]))
    share = np.mean([example.label == "yes" for example in fleet.examples])
    assert labels["words"][1]["share"]["value"] == pytest.approx(share, abs=0.01)
    assert labels["words"][2]["share"]["value"] == pytest.approx(0.0, abs=0.01)
    assert 0 < model["accuracy"]["value"] < 1


def test_with_noise_the_true_figures_lie_in_the_intervals_and_the_round_is_charged_as_offered(tmp_path):
    fleet = started(tmp_path, unit="record", placement="shared", max_epsilon=9.0)
    found = answer(fleet, ask(fleet, epsilon=4.0))
    offer = offer_of(fleet.rounds()[0])
    assert (offer.query, offer.secagg.groups, offer.privacy.steps) == (EVERYTHING, 1, 1)
    assert found["epsilon_of_question"] == pytest.approx(4.0, rel=1e-3)
    assert Ledger(fleet.service.store.connection).epsilon("churn") == pytest.approx(found["epsilon"])
    assert Ledger(fleet.service.store.connection).model("churn").spend == charges.spend(offer.privacy, offer.length)
    mean, _, labels, _ = found["figures"]
    truth = np.mean([example.fields["f0"] for example in fleet.examples])
    assert mean["mean"]["low"] - 0.5 <= truth <= mean["mean"]["high"] + 0.5  # 95 %, and half as much again
    assert mean["count"]["low"] < mean["count"]["high"]
    assert labels["words"][0]["share"]["low"] < labels["words"][0]["share"]["high"]


def test_a_question_is_a_round_of_its_task_and_no_step_of_training(tmp_path):
    fleet = started(tmp_path, rounds=2, unit="record", placement="shared", noise_multiplier=20.0)
    fleet.run(lambda: fleet.phase(1) == "released")
    answer(fleet, ask(fleet, epsilon=0.5))
    fleet.run(lambda: fleet.service.store.task("churn").status == "done")
    store = fleet.service.store
    assert [bool(offer_of(row).query) for row in fleet.rounds()].count(True) == 1
    assert store.averaged_rounds("churn") == 2
    assert len(Ledger(store.connection).by_round("churn")) == 3
    again = answer(fleet, ask(fleet, epsilon=0.5))  # when its training is over
    assert again["round"] == 4
    assert store.task("churn").status == "done"
    # What is said of the model is by the terms it was trained under, with all that the task has spent.
    said = promised(store, parse_spec(store.task("churn").spec), first_model())
    assert (said.rounds, said.epsilon) == (4, pytest.approx(Ledger(store.connection).epsilon("churn")))
    assert "drawn into a step with probability 0.1" in said.assumptions[0]
    kinds = [hashlog.read(row.entry).kind for row in audit_log.rows(store.connection)]
    assert [kinds.count(kind) for kind in ("query-queued", "query-answered", "sum-opened")] == [2, 2, 2]


def test_a_question_that_the_budget_does_not_pay_for_is_refused_and_training_goes_on(tmp_path):
    fleet = started(tmp_path, rounds=1, unit="record", placement="shared", noise_multiplier=20.0, max_epsilon=1.0)
    questions, number = Questions(fleet.service.store), ask(fleet, epsilon=6.0)
    fleet.run(lambda: fleet.service.store.task("churn").status == "done")
    assert questions.get(number).status == "failed"
    assert "budget is spent" in questions.get(number).reason
    assert fleet.service.store.averaged_rounds("churn") == 1


def test_a_round_that_does_not_open_is_asked_again_and_at_last_given_up(tmp_path):
    fleet = started(tmp_path, unit="record", placement="shared", max_epsilon=9.0, window_s=5)
    for device in fleet.devices[:2]:
        device.takes_part = False
    questions, number = Questions(fleet.service.store), ask(fleet, epsilon=4.0)
    fleet.run(lambda: questions.get(number).status == "failed")
    assert (questions.get(number).attempts, len(fleet.rounds())) == (3, 3)
    assert Ledger(fleet.service.store.connection).epsilon("churn") == 0.0


def test_a_restart_between_sum_and_figures_gives_the_same_figures_once(tmp_path):
    fleet = started(tmp_path, unit="record", placement="shared", max_epsilon=9.0)
    number = ask(fleet, epsilon=4.0)

    class Killed(BaseException):
        pass

    def kill(phase: str) -> None:
        if phase == "answering":
            fleet.hook = lambda phase: None
            raise Killed

    fleet.hook = kill
    with pytest.raises(Killed):
        answer(fleet, number)
    assert Questions(fleet.service.store).get(number).status == "asked"
    fleet.restart()
    assert answer(fleet, number)["devices"] == 6
    assert len(Ledger(fleet.service.store.connection).by_round("churn")) == 1


SPEC = build_spec(name="t", unit="record", placement="local", target_epsilon=4.0, accept_little_signal=True)


@pytest.mark.parametrize(
    ("spec", "question", "said"),
    [
        (SPEC, Question(query=EVERYTHING, epsilon=1.0, placement="shared"), "shared noise would promise less"),
        (SPEC, Question(query=EVERYTHING, epsilon=None), "an epsilon is needed"),
        (SPEC, Question(query=Query("q", (msgspec.structs.replace(MEAN, high=-7.0),)), epsilon=1.0), "a higher bound"),
        (SPEC, Question(query=EVERYTHING, epsilon=1.0, units_per_device=10**6), "do not fit|wrap around"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_with_the_reason(spec, question, said):
    if "fit" in said:
        spec = msgspec.structs.replace(spec, placement="shared", n_max=60_000)
    with pytest.raises(TaskRefused, match=said) as refused:
        settle(spec, question)
    assert refused.value.reason == "question"
    assert refused.value.hint


@pytest.mark.parametrize("unit", ["record", "customer", "device"])
@pytest.mark.parametrize("placement", ["local", "shared"])
def test_every_unit_and_placement_settles_to_the_epsilon_that_was_asked_for(unit, placement):
    spec = msgspec.structs.replace(SPEC, unit=unit, placement=placement)
    length, terms = settle(spec, Question(query=EVERYTHING, epsilon=2.0))
    assert charges.epsilon(terms, length, 1) == pytest.approx(2.0, rel=1e-3)
    assert parse_spec(msgspec.json.encode(spec)) == spec
