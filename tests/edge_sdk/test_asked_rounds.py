"""A query on the device: refused by the same checks as training, charged alike, and never without its noise."""

from __future__ import annotations

import math
import os

import msgspec
import numpy as np
import pytest
from fleet_of_eight import MODEL, NOW, SCHEMA, TASK
from test_round_work import Bench

from edge_sdk import asked_round
from edge_sdk.analytics import layout
from edge_sdk.config import load
from edge_sdk.disclosure import notice
from edge_sdk.examples_store import Example
from edge_sdk.journal import Journal
from edge_sdk.journal import rows as journal_rows
from edge_sdk.privacy.charges import spend
from edge_sdk.privacy.ledger import Ledger
from edge_sdk.protocol import hashlog
from edge_sdk.protocol.errors import OfferRefused
from edge_sdk.protocol.messages import Offer, Query, Statistic
from edge_sdk.round_work import NotNow

MINUTES = Statistic("moments", "minutes", 0.0, 200.0, 0, ())
LEFT = Statistic("words", "", 0.0, 0.0, 0, ("no", "yes"))
QUERY = Query("kpis", (MINUTES, LEFT, Statistic("model", "", 0.0, 4.0, 5, ())))
EVERY = [(unit, placement) for unit in ("record", "customer", "device") for placement in ("local", "shared")]


def asked(bench: Bench, number: int = 1, query: Query = QUERY, **privacy: object) -> Offer:
    terms = {"unit": "record", "placement": "shared", "steps": 1, "sample_rate": 1.0, "clip": 100.0, **privacy}
    if terms["unit"] == "device":
        terms["clip"] = 1.0
    offer = bench.fleet.offer(number, **terms)
    return msgspec.structs.replace(offer, query=query, length=layout.length(query))


@pytest.mark.parametrize(("unit", "placement"), EVERY)
def test_an_answer_is_released_and_charged_by_its_own_terms_and_nothing_is_trained(tmp_path, unit, placement):
    bench = Bench(tmp_path)
    bench.work._journal = Journal(bench.db, lambda: NOW)
    offer = asked(bench, unit=unit, placement=placement)
    bench.take_part(offer)
    assert bench.given == []
    assert bench.trace() == (1, 1, 1)
    assert Ledger(bench.db).spent(TASK, unit) == pytest.approx(spend(offer.privacy, offer.length))
    entries = [hashlog.read(row.entry) for row in journal_rows(bench.db)]
    assert [entry.kind for entry in entries] == ["asked", "upload"]
    assert entries[0].data == {"query": "kpis", "statistics": ["moments", "words", "model"]}


@pytest.mark.parametrize(
    ("settings", "query", "terms", "reason"),
    [
        ({"analytics": False}, QUERY, {}, "query"),
        ({"units": ("device",)}, QUERY, {}, "privacy"),
        ({"placements": ("local",)}, QUERY, {}, "privacy"),
        ({"max_epsilon": 0.01}, QUERY, {}, "privacy"),
        ({}, QUERY, {"noise_multiplier": 0.0, "insecure_without_noise": True}, "privacy"),
        ({}, QUERY, {"unit": "record", "placement": "local", "steps": 2}, "query"),
        ({}, Query("q", (Statistic("moments", "income", 0.0, 1.0, 0, ()),)), {}, "query"),
        ({}, Query("q", (Statistic("moments", "minutes", 1.0, 0.0, 0, ()),)), {}, "query"),
    ],
)
def test_what_the_policy_or_the_records_do_not_give_is_refused_and_costs_nothing(
    tmp_path, settings, query, terms, reason
):
    bench = Bench(tmp_path, **settings)
    with pytest.raises(OfferRefused) as refused:
        bench.take_part(asked(bench, query=query, **terms))
    assert refused.value.reason == reason
    assert bench.trace() == (0, 0, 0)


def test_a_query_of_another_length_than_its_offer_is_refused(tmp_path):
    bench = Bench(tmp_path)
    with pytest.raises(OfferRefused) as refused:
        bench.take_part(msgspec.structs.replace(asked(bench), length=17))
    assert refused.value.reason == "length"


def test_too_few_units_answer_nothing(tmp_path):
    bench = Bench(tmp_path, min_examples=31)
    with pytest.raises(NotNow) as refused:
        bench.take_part(asked(bench))
    assert refused.value.reason == "examples"


def test_local_noise_is_in_the_answer_as_wide_as_charged_and_shared_noise_is_left_to_the_mask(tmp_path):
    bench = Bench(tmp_path)
    query = Query("q", (Statistic("histogram", "minutes", 0.0, 1.0, 4000, ()),))
    examples = [Example({"minutes": 1.0, "calls": 1.0}, "no", b"")] * 50
    for placement, expected in (("local", 3.0 * 0.5), ("shared", 0.0)):
        offer = asked(bench, query=query, placement=placement, noise_multiplier=3.0, max_grad_norm=0.5)
        given = asked_round.answer(offer, MODEL, SCHEMA, examples, np.arange(50), entropy=os.urandom)
        noise = given[:-1]  # all records are in the last bin
        assert noise.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * 4000))
        assert given[-1] == pytest.approx(50 * 0.5, abs=6 * expected + 1e-3)


def test_a_sampled_query_takes_each_unit_with_the_rate_that_is_charged(tmp_path):
    bench = Bench(tmp_path)
    examples = [Example({"minutes": 1.0, "calls": 1.0}, "no", b"")] * 4000
    offer = asked(bench, query=Query("q", (LEFT,)), sample_rate=0.25)
    given = asked_round.answer(offer, MODEL, SCHEMA, examples, np.arange(4000), entropy=os.urandom)
    assert given[0] == pytest.approx(1000, abs=6 * math.sqrt(4000 * 0.25 * 0.75))


def test_the_owner_switches_queries_off_in_the_settings(tmp_path):
    (tmp_path / "edge.toml").write_text("analytics = false\n")
    assert load({}, home=tmp_path).analytics is False
    assert load({"EDGE_ANALYTICS": "yes"}, home=tmp_path).analytics is True


@pytest.mark.parametrize(("language", "said"), [("en", "figures in place of learning"), ("zh", "统计")])
def test_the_notice_says_what_was_asked(tmp_path, language, said):
    bench = Bench(tmp_path)
    assert said not in notice(bench.work._config, TASK, language)
    bench.take_part(asked(bench))
    text = notice(bench.work._config, TASK, language)
    assert said in text
    assert "minutes" in text
