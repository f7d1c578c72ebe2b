"""What the demo says of itself: promises that do not hold are told, and no line shows a figure of another round."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aggregator.demo.desk import Question, Replied, promises, replies_of
from aggregator.demo.outcome import Alone, Outcome
from aggregator.demo.plays import play
from aggregator.demo.plots import device_by_device
from aggregator.demo.report import upload_words
from aggregator.demo.screen import Screen


def replied(language: str, reason: str = "", intent: str = "hours") -> Replied:
    return Replied(Question("?", language, "hours"), "At nine.", intent, 0.7, reason)


ALL = [replied("en"), replied("zh"), replied("en", "below-threshold")]


@pytest.mark.parametrize(
    ("missing", "word"), [(ALL[0], "English"), (ALL[1], "Chinese"), (ALL[2], "handed")], ids=["en", "zh", "person"]
)
def test_a_promise_of_the_desk_needs_a_reply_that_shows_it(missing: Replied, word: str) -> None:
    assert all(held for _, held in promises(ALL))
    instead = replace(missing, reason="no-answer")
    broken = [sentence for sentence, held in promises([instead if one is missing else one for one in ALL]) if not held]
    assert len(broken) == 1
    assert word in broken[0]


def test_only_a_play_with_a_desk_promises_answers() -> None:
    told = {name: len(Outcome(12, 1, play(name)).checks()) for name in ("churn", "intents")}
    assert told["intents"] > told["churn"]
    assert not all(held for _, held in Outcome(12, 1, play("intents")).checks()[-1:])


def test_a_reply_too_few_is_an_error() -> None:
    said = {"text": "At nine.", "intent": "hours", "confidence": 0.7, "reason": ""}
    asked = [Question("a", "en", "hours"), Question("b", "en", "return")]
    assert [one.recognised for one in replies_of(asked, [said, said])] == [True, False]
    with pytest.raises(ValueError, match="shorter"):
        replies_of(asked, [said])


def test_a_round_is_shown_once_it_is_released_and_once_only(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen() as screen:
        for phase, metric in (("opening", 1.3), ("averaged", 1.3), ("released", 1.25), ("released", 1.25)):
            screen.show({"tasks": [task(phase, metric)]})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert "RMSE 1.2500" in lines[0]


def task(phase: str, metric: float) -> dict[str, Any]:
    entry = {"round": 1, "phase": phase, "devices_in": 12, "metric": metric, "epsilon": 2.0, "upload_bytes": 40}
    privacy = {"unit": "customer", "delta": 1e-5, "placement": "shared"}
    rounds = [{**entry, "float32_bytes": 20, "seconds": {"opening": 0.5}}]
    return {"metric_name": "rmse", "privacy": privacy, "rounds": rounds}


def test_devices_beyond_the_scale_are_counted_in_the_picture() -> None:
    outcome = Outcome(8, 1, play("recommend"), task={"metric_name": "rmse", "release": {"metric": 1.2, "sha256": "ab"}})
    outcome.alone = [Alone("a", 10, 1.3, 1.9), Alone("b", 10, 1.4, 1.35)]
    outcome.central = 1.1
    assert "1 beyond the scale" in device_by_device(outcome)
    outcome.alone = [Alone("a", 10, 1.3, 1.4), Alone("b", 10, 1.4, 1.35)]
    assert "beyond the scale" not in device_by_device(outcome)


@pytest.mark.parametrize("weight_bytes", [3, 4])
def test_the_bytes_of_an_upload_are_told_by_the_profile_of_the_task(weight_bytes: int) -> None:
    shown = {"metric": 0.8, "float32_bytes": 4000, "upload_bytes": 1000 * weight_bytes + 500}
    words = upload_words(Outcome(8, 1, play("churn"), task={"rounds": [shown]}, weight_bytes=weight_bytes))
    assert f"masked weights of {weight_bytes} bytes each ({1000 * weight_bytes:,}), and 1,940 that hardly" in words
