"""How often a task's devices were asked for figures, and what was charged for it, is in the evidence and its pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from asked_fleet import AskedFleet
from small_fleet import FLEET

from aggregator.analytics import Question, Questions
from aggregator.evidence.collect import Source, collect
from aggregator.evidence.render import page
from aggregator.fleet.authority import open_authority
from aggregator.ledger import Ledger
from aggregator.releases.repository import Repository
from edge_sdk.protocol.messages import Query, Statistic

ABOUT_FIRST = Query("weekly-kpis", (Statistic("moments", "f0", -6.0, 6.0, 0, ()),))
ABOUT_LABEL = Query("shares", (Statistic("words", "", 0.0, 0.0, 0, ("no", "yes")),))


def facts_of(fleet: AskedFleet) -> dict:
    service, home = fleet.service, fleet.home
    authority, repository = open_authority(home.authority, now=fleet.now), Repository(home.releases)
    source = Source(home, FLEET, service.store, service.registry, authority, repository)
    return collect(source, "churn", now=fleet.now)


@pytest.fixture
def fleet(tmp_path: Path) -> AskedFleet:
    made = AskedFleet(tmp_path / "home")
    made.task(heldout=False, rounds=0, n_min=6, unit="record", placement="shared", max_epsilon=9.0)
    made.hello_all()
    return made


def test_questions_are_counted_with_their_own_epsilon_and_those_that_were_opened_are_charged(fleet):
    questions = Questions(fleet.service.store)
    first = questions.add("churn", Question(query=ABOUT_FIRST, epsilon=2.0), fleet.now)
    fleet.run(lambda: questions.get(first).status == "done")
    spent = Ledger(fleet.service.store.connection).epsilon("churn")
    second = questions.add("churn", Question(query=ABOUT_LABEL, epsilon=1.0), fleet.now)
    fleet.run(lambda: questions.get(second).status == "asked")
    facts = facts_of(fleet)
    found = facts["questions"]
    assert (found["asked"], found["charged"]) == (2, 1)
    assert [one["charged"] for one in found["all"]] == [True, False]
    assert [one["epsilon"] for one in found["all"]] == pytest.approx([2.0, 1.0], rel=1e-3)
    assert facts["privacy"]["spent"] == spent
    english, chinese = page(facts, "en"), page(facts, "zh")
    assert "2 asked; 1 of them opened, and charged to the budget" in english
    assert "共询问 2 次；其中 1 次的总和被打开" in chinese
    label = facts["data"]["label"]["name"]
    for text, asks in ((english, ("mean and spread of f0", f"shares of {label}")),
                       (chinese, ("f0的平均值与离散程度", f"{label}的占比"))):  # fmt: skip
        assert all(words in text for words in asks)
        assert "weekly-kpis" in text


def test_without_a_question_the_page_says_so(fleet):
    facts = facts_of(fleet)
    assert facts["questions"] == {"asked": 0, "charged": 0, "all": []}
    assert "none was asked" in page(facts, "en")
    assert "从未询问" in page(facts, "zh")
