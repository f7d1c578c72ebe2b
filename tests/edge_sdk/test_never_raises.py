"""What an app passes in cannot make an entry point raise, and a task in service is not waited for."""

from __future__ import annotations

import time

import pytest

from edge_sdk.answer import Answer
from edge_sdk.artifact.schema import Label, NumberField, Schema, SeriesField
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.testing import FakeAggregator

MODEL = tabular_classifier(Schema((NumberField("calls"),), Label("churn", "binary", ("stays", "leaves"))), [4], seed=1)
WINDOWED = tabular_classifier(
    Schema((SeriesField("recent", 4, key="site", time="day"), NumberField("rain")), Label("visitors", "number")),
    [],
    seed=1,
)


class Unspeakable:
    """An object that cannot be made text."""

    def __str__(self) -> str:
        raise RuntimeError("the app's own mistake")


@pytest.mark.parametrize("k", ["x", None, 1.5, float("nan"), float("inf"), -3, 2, "2", object(), b"x"])
def test_top_gives_a_list_whatever_it_is_asked_for(k):
    answer = Answer((("a", 0.7), ("b", 0.3)))
    assert answer.top(k) == list(answer.ranked[: len(answer.top(k))])
    assert answer.top(2) == [("a", 0.7), ("b", 0.3)]


@pytest.mark.filterwarnings("ignore")
def test_forgetting_something_that_is_no_text_is_told_and_does_not_raise(tmp_path):
    told: list[BaseException] = []
    with FakeAggregator(tmp_path) as fake, fake.client(on_error=told.append) as fl:
        fl.forget(Unspeakable())  # type: ignore[arg-type]
        fl.forget("\ud800")
        assert fl.flush(5.0)
        assert fl.status()["phase"] != "failed"
    assert "own mistake" in str(told[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("given", [None, 7, "text", b"x", [], {}, {"calls": object()}, {1: 2}, Unspeakable(), "\ud800"])
def test_predictions_and_replies_come_back_whatever_is_asked(tmp_path, given):
    with FakeAggregator(tmp_path) as fake:
        fake.install("churn", MODEL)
        fake.install("demand", WINDOWED)
        with fake.client() as fl:
            for task in ("churn", "demand", "nobody", given):
                assert not fl.predict(task, given).available
                assert not fl.predict(task, {"calls": [given]}, subject=given).available
                for language in ("en", "zh", given):
                    reply = fl.answer(task, given, language)
                    assert reply.handed_over
                    assert isinstance(reply.text, str)
                    assert reply.text
            for key in ("site", "day", "rain"):
                fl.record("demand", {"site": "a", "day": "2024-05-01", "rain": 1.0, key: given}, given, given)
            assert fl.flush(5.0)
            assert fl.status()["phase"] != "failed"


def test_a_prediction_at_the_start_waits_for_its_own_task_only(tmp_path):
    with FakeAggregator(tmp_path) as fake:
        fake.install("churn", MODEL, version=3)
        with fake.client() as fl:
            assert fl.predict("churn", {"calls": 1.0}).available
            assert fl._engine is not None
            fl._engine.opened.clear()  # as while a second task's model is still being opened
            begin = time.monotonic()
            assert fl.predict("churn", {"calls": 1.0}).model_version == 3
            assert time.monotonic() - begin < 1.0
            fl._engine.opened.set()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("given", [None, [("calls", 1.0)], 7])
def test_a_record_that_is_none_is_told_what_one_is(tmp_path, given):
    told: list[BaseException] = []
    with FakeAggregator(tmp_path) as fake:
        fake.install("churn", MODEL)
        with fake.client(on_error=told.append) as fl:
            said = fl.predict("churn", given).error
            assert "a record must be a mapping of field names to values ('calls')" in said
            assert f"not {given!r}" in said
            fl.record("churn", given, "stays")
    assert "a mapping of field names to values" in str(told[0])
    assert f"not str and {type(given).__name__}" in str(told[0])
