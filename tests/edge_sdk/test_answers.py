"""Stored answers: what is said to a recognised intent, when a person takes over, and which lists are refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nobodys_broker import enrol

from edge_sdk.answer_list import MAX_BYTES, AnswersRefused, check_intents, read_signed, read_written, sealed, unanswered
from edge_sdk.answering import HANDOVER
from edge_sdk.artifact.features import features
from edge_sdk.artifact.schema import Label, Schema, TextField
from edge_sdk.artifact.starter import linear_classifier
from edge_sdk.artifact.weights import write_vector
from edge_sdk.cli import main
from edge_sdk.stored_answers import BEFORE, NEWEST, load, store
from edge_sdk.testing import FakeAggregator

ROOT = Path(__file__).parents[2]
DESK = ROOT / "firmware_examples" / "service_desk" / "main.py"
SAID = {
    "hours": ["when do you open", "opening hours on sunday", "你们几点开门", "营业时间"],
    "return": ["return a parcel", "I want to send it back", "我要退货", "退回包裹"],
    "oos": ["what is the meaning of life", "今天天气怎么样"],
}
SCHEMA = Schema((TextField("asked", 512),), Label("intent", "classes", tuple(SAID)))
WRITTEN = {
    "answers": [
        {"intent": "hours", "text": "We are open from nine to six.", "title": "weekdays"},
        {"intent": "hours", "text": "On sunday we are closed.", "tags": ["sunday", "weekend"]},
        {"intent": "hours", "language": "zh", "text": "工作日九点到十八点营业。"},
        {"intent": "hours", "language": "zh", "text": "周日休息。"},
        {"intent": "return", "text": "You have thirty days to return it."},
    ],
    "threshold": 0.6,
    "handover": {"en": "A colleague will help you.", "zh": "同事会帮助您。"},
}


def intents(sharpness: float = 12.0) -> bytes:
    """A model that knows the sentences of SAID: a row of weights is the mean of its sentences' features."""
    rows = [features(SCHEMA, [{"asked": text} for text in texts])["features"].mean(axis=0) for texts in SAID.values()]
    return write_vector(
        linear_classifier(SCHEMA), np.concatenate([sharpness * np.concatenate(rows), np.zeros(3)]).astype(np.float32)
    )


def changed(**parts: object) -> bytes:
    return json.dumps({**WRITTEN, **parts}).encode()


@pytest.fixture
def fake(tmp_path: Path):
    with FakeAggregator(tmp_path) as made:
        made.install("service", intents())
        made.put_answers("service", changed())
        yield made


# -- what is said ------------------------------------------------------------------------------------------------------


def test_the_nearest_answer_of_the_intent_in_the_language_asked_for_is_given(fake):
    with fake.client() as fl:
        sunday = fl.answer("service", "opening hours on sunday")
        assert (sunday.text, sunday.intent, sunday.handed_over) == ("On sunday we are closed.", "hours", False)
        assert sunday.confidence >= 0.6
        assert [label for label, _ in sunday.alternatives] != []
        assert fl.answer("service", {"asked": "when do you open on weekdays"}).text == "We are open from nine to six."
        assert fl.answer("service", "周日营业时间", "zh-CN").text == "周日休息。"
        assert fl.answer("service", "你们工作日几点开门", "zh").text == "工作日九点到十八点营业。"


@pytest.mark.parametrize(
    ("text", "language", "reason", "said"),
    [
        ("what is the meaning of life", "en", "out-of-scope", "A colleague will help you."),
        ("今天天气怎么样", "zh", "out-of-scope", "同事会帮助您。"),
        ("我要退货", "zh-Hans-CN", "no-answer", "同事会帮助您。"),
        ("zzzz", "en", "below-threshold", "A colleague will help you."),
        ("", "fr", "below-threshold", "A colleague will help you."),
    ],
)
def test_a_person_takes_over_and_the_reason_is_named(fake, text, language, reason, said):
    with fake.client() as fl:
        reply = fl.answer("service", text, language)
        assert (reply.handed_over, reply.reason, reply.text) == (True, reason, said)
        assert reply.intent in SAID


def test_without_a_list_the_intent_is_told_and_a_person_takes_over(tmp_path):
    with FakeAggregator(tmp_path) as fake:
        fake.install("service", intents())
        with fake.client() as fl:
            reply = fl.answer("service", "我要退货", "zh")
            assert (reply.reason, reply.intent, reply.text) == ("no-list", "return", HANDOVER["zh"])


def test_the_command_answers_by_the_same_list(fake, capsys):
    with fake.client() as fl:
        home = str(fl.config.home)
    assert main(["answer", "opening hours on sunday", "--task", "service", "--home", home]) == 0
    assert capsys.readouterr().out == "On sunday we are closed.\n"
    assert main(["answer", "我要退货", "--task", "service", "--language", "zh", "--json", "--home", home]) == 0
    assert json.loads(capsys.readouterr().out)["reason"] == "no-answer"


# -- which lists are refused -------------------------------------------------------------------------------------------


def test_the_service_desk_answers_hands_over_and_learns_from_a_colleague(fake, tmp_path):
    home = ["--home", str(enrol(tmp_path)), "--task", "service", "--field", "asked", "--json-lines"]
    done = subprocess.run(
        [sys.executable, str(DESK), *home], input="opening hours on sunday\n周日营业吗\nhello\n= return\n",
        capture_output=True, text=True, timeout=60, check=True, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
    )  # fmt: skip
    sunday, chinese, unsure = map(json.loads, done.stdout.splitlines())
    assert (sunday["question"], sunday["text"]) == ("opening hours on sunday", "On sunday we are closed.")
    assert (chinese["text"], chinese["reason"]) in {("周日休息。", ""), ("同事会帮助您。", "below-threshold")}
    assert (unsure["text"], unsure["handed_over"]) == ("A colleague will help you.", True)
    with fake.client() as fl:
        assert fl.status()["examples"] == {"service": 1}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{", b"\xff\xfe", b'{"answers": []}', b"[" * 100_000, b" " * (MAX_BYTES + 1),
        changed(threshold=1.5), changed(threshold=float("nan")), changed(threshold="0.6"), changed(more=1),
        changed(handover={"not a language": "x"}), changed(handover={"en": ""}), changed(refuse="oos"),
        changed(answers=[{"intent": "hours", "text": "   "}]), changed(answers=[{"intent": "hours"}]),
        changed(answers=[{"intent": "hours", "text": "x" * 4001}]), changed(answers=[{"intent": "", "text": "x"}]),
        changed(answers=[{"intent": "hours", "text": "x", "language": "../../etc"}]),
        changed(answers=[{"intent": "hours", "text": "x", "tags": ["t"] * 33}]),
        changed(answers=[{"intent": "hours", "text": "x", "html": "<b>"}]),
        changed().replace(b"We are open", b"\\ud800"),
    ],
)  # fmt: skip
def test_a_list_of_another_form_is_refused_with_a_remedy(data):
    with pytest.raises(AnswersRefused) as caught:
        read_written(data)
    assert caught.value.remedy


@given(st.binary(max_size=300))
def test_no_bytes_at_all_raise_anything_else(data):
    for read in (read_written, lambda each: read_signed(each, "service", 1)):
        with pytest.raises(AnswersRefused):
            read(data)


def test_an_intent_that_the_model_does_not_know_is_named():
    written = read_written(changed(answers=[{"intent": "refund", "text": "x"}, {"intent": "hours", "text": "x"}]))
    with pytest.raises(AnswersRefused, match="refund") as caught:
        check_intents(written, tuple(SAID))
    assert "return" in caught.value.remedy
    with pytest.raises(AnswersRefused, match="refused: hours"):
        check_intents(read_written(changed(refuse=["hours"])), tuple(SAID))
    assert unanswered(read_written(changed()), tuple(SAID)) == {"en": [], "zh": ["return"]}


# -- on the disk -------------------------------------------------------------------------------------------------------


def test_a_damaged_file_gives_way_to_the_list_before(tmp_path):
    for version in (1, 2):
        store(tmp_path, "service", version, sealed(read_written(changed()), "service", version))
    folder = tmp_path / "models" / "service"
    (folder / NEWEST).write_bytes(b"{")
    found = load(tmp_path, "service")
    assert found is not None
    assert found.version == 1
    store(tmp_path, "service", 2, sealed(read_written(changed()), "service", 2))
    (folder / NEWEST).unlink()
    assert (folder / BEFORE).exists()
    (folder / BEFORE).write_bytes(b"\0")
    assert load(tmp_path, "service") is None


def test_the_list_in_the_documentation_is_one_that_can_be_published():
    page = (Path(__file__).parents[2] / "docs" / "embedding.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    written = read_written(shown.encode())
    labels = {answer.intent for answer in written.answers}
    assert len(labels) == 6
    assert unanswered(written, sorted(labels)) == {"en": [], "zh": []}
