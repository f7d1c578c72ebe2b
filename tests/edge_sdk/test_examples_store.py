"""Examples on the disk: encrypted, bounded, forgotten on request."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_sdk.examples_store import Example, ExamplesStore


@pytest.fixture
def store(tmp_path: Path) -> ExamplesStore:
    return ExamplesStore(tmp_path / "examples.db", tmp_path / "examples.key", 5, os.urandom)


def reopened(tmp_path: Path) -> ExamplesStore:
    return ExamplesStore(tmp_path / "examples.db", tmp_path / "examples.key", 5, os.urandom)


def test_what_is_recorded_is_read_back_after_a_restart(store, tmp_path):
    assert store.add("churn", {"plan": "gold", "minutes": 12.5}, "stays", "customer-7")
    store.close()
    assert reopened(tmp_path).read("churn") == [Example({"plan": "gold", "minutes": 12.5}, "stays")]


def test_the_oldest_makes_room_for_the_newest_of_its_task_only(store):
    store.add("other", {"n": 0}, "x")
    for n in range(9):
        store.add("churn", {"n": n}, "x")
    assert [example.fields["n"] for example in store.read("churn")] == [4, 5, 6, 7, 8]
    assert store.counts() == {"churn": 5, "other": 1}


def test_nothing_is_on_the_disk_in_the_clear(store, tmp_path):
    store.add("churn", {"city": "Rotterdam-Noord"}, "cancels", "customer-7")
    store.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for secret in (b"Rotterdam", b"cancels", b"customer-7"):
        assert secret not in stored
    assert (tmp_path / "examples.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "examples.db").stat().st_mode & 0o777 == 0o600


def test_forget_erases_every_example_of_the_subject_and_no_other(store):
    for subject in ("a", "b", "a", None):
        store.add("churn", {"of": str(subject)}, "x", subject)
    assert store.forget("a") == 2
    assert [example.fields["of"] for example in store.read("churn")] == ["b", "None"]
    assert store.forget("a") == 0


def test_a_value_that_cannot_be_kept_is_dropped_and_counted(store):
    assert not store.add("churn", {"x": object()}, "x")
    assert not store.add("churn", {"x": 2**70}, "x")
    assert store.dropped == 2
    assert store.count("churn") == 0


def test_a_row_that_does_not_open_is_skipped(store, tmp_path):
    store.add("churn", {"n": 1}, "x")
    (tmp_path / "examples.key").write_bytes(os.urandom(32))
    store.close()
    assert reopened(tmp_path).read("churn") == []
