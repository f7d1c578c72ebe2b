"""One bad example costs itself: the others of its batch are kept, and it is counted."""

from __future__ import annotations

import os
import sqlite3
from collections import UserDict

import pytest

from edge_sdk.examples_store import ExamplesStore
from edge_sdk.testing import FakeAggregator

RECORD = {"minutes": 120.0, "plan": "gold"}
FIELDS = ("churn.minutes", "churn.plan")
LOOP: list[object] = []
LOOP.append(LOOP)


class Unreadable(UserDict):
    """A mapping that fails when it is read."""

    def __iter__(self):
        raise RuntimeError("the app's own mistake")


BAD = {
    "a subject that is no text": ("churn", RECORD, "stays", "\ud800"),
    "a task that is no text": ("\ud800", RECORD, "stays", None),
    "a value that holds itself": ("churn", {"minutes": LOOP}, "stays", None),
    "a label that is no text": ("churn", RECORD, "\ud800", None),
    "fields that cannot be read": ("churn", Unreadable(a=1), "stays", None),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=list(BAD))
def test_a_bad_example_between_a_hundred_good_ones_is_the_only_one_dropped(tmp_path, bad):
    store = ExamplesStore(tmp_path / "examples.db", tmp_path / "examples.key", 1000, os.urandom)
    good = [("churn", RECORD, "stays", f"customer-{n}") for n in range(50)]
    assert store.add_many([*good, bad, *good]) == 100
    assert store.counts() == {"churn": 100}
    assert store.dropped == 1


@pytest.mark.filterwarnings("ignore")
def test_a_client_counts_the_bad_example_and_keeps_the_good(tmp_path):
    with FakeAggregator(tmp_path) as fake, fake.client(fields=FIELDS) as fl:
        for n in range(50):
            fl.record("churn", RECORD, "stays", f"customer-{n}")
        fl.record("churn", RECORD, "stays", "\ud800")
        fl.record("churn", {"minutes": LOOP}, "stays")
        for n in range(50):
            fl.record("churn", RECORD, "stays", f"customer-{n}")
        assert fl.flush(5.0)
        status = fl.status()
    assert status["examples"] == {"churn": 100}
    assert status["dropped"] == {"example": 2}


@pytest.mark.filterwarnings("ignore")
def test_a_batch_that_cannot_be_written_is_counted_whole(tmp_path):
    with FakeAggregator(tmp_path) as fake, fake.client(fields=FIELDS) as fl:
        assert fake.wait_for(lambda: fl.status()["phase"] == "idle")  # until then the work thread may make the table
        other = sqlite3.connect(tmp_path / "examples.db")
        other.execute("DROP TABLE examples")
        other.commit()
        for _ in range(7):
            fl.record("churn", RECORD, "stays")
        fl.flush(5.0)
        assert fl.status()["dropped"] == {"example": 7}
        other.close()
