"""A round learns only from who agreed, and nothing leaves that was trained on what was erased meanwhile (SPEC 6.7)."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from fleet_of_eight import TASK
from test_round_work import Bench

from edge_sdk.round_work import NotNow

NOW = 1_800_000_000


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Thirty examples of nobody, and ten each of five customers."""
    bench = Bench(tmp_path)
    for n in range(50):
        bench.examples.add(TASK, {"minutes": 1000.0 + n % 5, "calls": 1.0}, "yes", f"customer-{n % 5}")
    return bench


def asking(bench: Bench, consent: int, number: int = 1):
    return msgspec.structs.replace(bench.fleet.offer(number), consent=consent)


def learnt_from(bench: Bench) -> list[int]:
    """Rows of each customer in the last job; the customers' own field tells them apart."""
    minutes = bench.given[-1].features["features"][:, 0] * 50.0 + 100.0
    return [int((abs(minutes - 1000.0 - n) < 0.5).sum()) for n in range(5)]


def test_only_who_agreed_to_the_notice_or_a_later_one_is_learnt_from(bench):
    for n, version in enumerate((1, 2, 3, 4)):
        bench.examples.consent_given(f"customer-{n}", version, (TASK,), NOW)
    bench.examples.consent_given("customer-4", 4, ("another-task",), NOW)
    bench.take_part(asking(bench, 2))
    assert learnt_from(bench) == [0, 10, 10, 10, 0]
    assert len(bench.given[-1].labels) == 30, "who has no name has given no consent"
    assert bench.db.execute("SELECT consent FROM outbox").fetchall() == [(2,)]


def test_where_nobody_is_asked_all_are_learnt_from_but_those_who_withdrew(bench):
    bench.examples.consent_withdrawn("customer-3", ("*",), NOW)
    bench.take_part(asking(bench, 0))
    assert learnt_from(bench) == [10, 10, 10, 0, 10]
    assert len(bench.given[-1].labels) == 70


def test_with_too_few_who_agreed_the_device_waits_and_says_why(bench):
    bench.examples.consent_given("customer-0", 5, ("*",), NOW)
    with pytest.raises(NotNow) as not_now:
        bench.take_part(asking(bench, 5))
    assert not_now.value.reason == "consent"
    assert bench.trace() == (0, 0, 0)
    bench.examples.consent_given("customer-1", 5, ("*",), NOW)
    bench.take_part(asking(bench, 5))
    assert learnt_from(bench) == [10, 10, 0, 0, 0]


@pytest.mark.parametrize("how", ["forget", "withdraw"])
def test_what_was_trained_on_somebody_erased_meanwhile_is_neither_released_nor_charged(bench, how):
    train = bench.train
    stopped: list[bool] = []

    def while_training(given, cancelled):
        result = train(given, cancelled)
        if how == "forget":
            bench.examples.forget("customer-2")
        else:
            bench.examples.consent_withdrawn("customer-2", (TASK,), NOW)
        stopped.append(cancelled())
        return result

    bench.work._train = while_training
    with pytest.raises(NotNow) as not_now:
        bench.take_part(asking(bench, 0))
    assert not_now.value.reason == "consent"
    assert stopped == [True], "the job in hand is told to stop"
    assert bench.trace() == (0, 0, 0)
    bench.work._train = train
    bench.take_part(asking(bench, 0))
    assert learnt_from(bench) == [10, 10, 0, 10, 10]
    assert bench.trace() == (1, 1, 1)


def test_an_erasure_of_another_task_disturbs_nothing(bench):
    bench.examples.add("intent", {"minutes": 1.0}, "yes", "customer-9")
    train = bench.train

    def while_training(given, cancelled):
        bench.examples.forget("customer-9")
        return train(given, cancelled)

    bench.work._train = while_training
    bench.take_part(asking(bench, 0))
    assert bench.trace() == (1, 1, 1)
