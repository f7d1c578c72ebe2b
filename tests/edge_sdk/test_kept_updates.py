"""An update whose round was over is kept, leaves once, and only for an offer that takes it (SPEC 7.6.1)."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from fleet_of_eight import MODEL, TASK
from msgspec.structs import replace
from test_round_work import LENGTH, Bench

from edge_sdk.cli import main
from edge_sdk.engine import TRAINING_OFF
from edge_sdk.kept_updates import KEPT_S, KeptUpdates
from edge_sdk.protocol.messages import Offer
from edge_sdk.round_work import NotNow
from edge_sdk.testing import FakeAggregator
from edge_sdk.testing_rounds import fake_terms

OTHER, ERASED = bytes([9] * 32), 3


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def late(bench: Bench, offer: Offer) -> None:
    """The device trains for an offer, and a later round is open when it is done."""
    frame, over = bench.fleet.frame(offer), iter([False, True, True])
    bench.work.judge(frame, offer, offer.issued_at)
    with pytest.raises(NotNow) as not_now:
        bench.work.take_part(frame, offer, lambda: False, lambda: next(over))
    assert not_now.value.reason == "superseded"


def kept_files(bench: Bench) -> list[Path]:
    return [path for path in bench.home.glob("kept/**/*") if path.is_file()]


def test_a_late_update_leaves_with_the_next_offer_that_lists_its_model_and_is_charged_once(bench):
    first = bench.fleet.offer(1)
    late(bench, first)
    assert bench.trace() == (0, 0, 0), "nothing has left, nothing is charged"
    (file,) = kept_files(bench)
    assert file.stat().st_mode & 0o777 == 0o600
    second = replace(bench.fleet.offer(2), models=(OTHER, *first.models))
    bench.take_part(second)
    assert len(bench.given) == 1, "it was trained once"
    assert bench.trace() == (1, 1, 1)
    assert not kept_files(bench)
    bench.take_part(bench.fleet.offer(3))
    assert len(bench.given) == 2, "it left once: for a third round it is trained again"


def test_a_round_that_is_over_before_training_begins_is_not_trained_for(bench):
    offer = bench.fleet.offer(1)
    frame = bench.fleet.frame(offer)
    bench.work.judge(frame, offer, offer.issued_at)
    with pytest.raises(NotNow):
        bench.work.take_part(frame, offer, lambda: False, lambda: True)
    assert not bench.given
    assert not kept_files(bench)


def test_what_was_trained_on_somebody_erased_since_is_deleted_and_trained_anew(bench):
    bench.record(20, customers=2)
    late(bench, bench.fleet.offer(1))
    bench.examples.forget("customer 1")
    bench.take_part(bench.fleet.offer(2))
    assert len(bench.given) == 2
    assert len(bench.given[1].labels) == len(bench.given[0].labels) - 10
    assert not kept_files(bench)


def test_somebody_erased_while_it_trains_is_not_kept_either(bench):
    bench.record(20, customers=2)
    train = bench.train

    def erased_meanwhile(given, cancelled):
        result = train(given, cancelled)
        bench.examples.forget("customer 1")
        return result

    bench.work._train = erased_meanwhile
    late(bench, bench.fleet.offer(1))
    assert not kept_files(bench)


@pytest.mark.parametrize("place", [0, 1, 3, 15])
def test_an_update_counts_less_the_staler_its_model_is(tmp_path, bench, place):
    offer, kept = bench.fleet.offer(1), KeptUpdates(tmp_path)
    kept.keep(offer, bench.update, ERASED)
    newer = tuple(bytes([100 + i] * 32) for i in range(place))
    found = kept.find(replace(offer, models=(*newer, *offer.models)), ERASED)
    np.testing.assert_allclose(found, bench.update / (1 + place) ** 0.5, rtol=1e-6)
    assert len(found) == LENGTH


@pytest.mark.parametrize(
    "changes",
    [
        {"models": (OTHER,)},
        {"graph_digest": OTHER},
        {"length": LENGTH + 1},
        {"consent": 5},
        {"privacy": {"noise_multiplier": 9.0}},
        {"privacy": {"steps": 77}},
    ],
)
def test_an_offer_that_does_not_take_it_ends_it(tmp_path, bench, changes):
    offer, kept = bench.fleet.offer(1), KeptUpdates(tmp_path)
    kept.keep(offer, bench.update, ERASED)
    changes = {name: replace(offer.privacy, **value) if name == "privacy" else value for name, value in changes.items()}
    assert kept.find(replace(offer, **changes), ERASED) is None
    assert kept.find(offer, ERASED) is None
    assert not list((tmp_path / "kept").iterdir())


def test_an_erasure_and_a_spoiled_file_end_it_and_other_tasks_stay(tmp_path, bench):
    offer, kept = bench.fleet.offer(1), KeptUpdates(tmp_path)
    other = replace(offer, task="other-task")
    for each in (offer, other):
        kept.keep(each, bench.update, ERASED)
    assert kept.find(offer, ERASED + 1) is None
    assert kept.find(offer, ERASED) is None
    assert kept.find(other, ERASED) is not None
    file = tmp_path / "kept" / "other-task.update"
    file.write_bytes(file.read_bytes()[:-3])
    (tmp_path / "kept" / ".other-task.update.77.part").write_bytes(b"half")
    assert kept.find(other, ERASED) is None
    assert not list((tmp_path / "kept").iterdir())
    assert kept.find(replace(offer, task=TASK), ERASED) is None


@pytest.mark.slow
def test_a_client_that_is_late_for_one_round_uploads_the_same_training_in_the_next(tmp_path):
    with FakeAggregator(tmp_path) as fake:
        fake.lock("churn", MODEL)
        with fake.client(max_epsilon=1e6, fields=("churn.minutes", "churn.calls")) as fl:
            for i in range(60):
                fl.record("churn", {"minutes": 90.0 + i, "calls": 1.0 * i}, "yes" if i % 2 else "no")
            assert fl.flush(5.0)
            terms = replace(fake_terms("device", "shared"), steps=1500)
            late = fake.offer_round("churn", number=1, terms=terms)
            assert fake.wait_for(lambda: fl.status()["phase"] == "training", timeout_s=60)
            following = fake.offer_round("churn", number=2, terms=terms)
            assert fake.wait_for(lambda: fake.opened(following) is not None, timeout_s=180), fl.status()
            assert fake.opened(late) is None
            assert not list((tmp_path / "kept").iterdir())
    entries = [entry for (entry,) in sqlite3.connect(tmp_path / "device.db").execute("SELECT entry FROM journal")]
    assert sum(b"trained" in entry for entry in entries) == 1
    assert len(fake.uploads) == 1


def test_what_was_trained_more_than_a_week_ago_does_not_leave_and_is_deleted_without_an_offer_too(tmp_path, bench):
    offer, kept = bench.fleet.offer(1), KeptUpdates(tmp_path)
    kept.keep(offer, bench.update, ERASED)
    kept.sweep(offer.issued_at + KEPT_S)
    assert kept.find(replace(offer, issued_at=offer.issued_at + KEPT_S), ERASED) is not None
    assert kept.find(replace(offer, issued_at=offer.issued_at + KEPT_S + 1), ERASED) is None
    assert not list((tmp_path / "kept").iterdir())
    kept.keep(offer, bench.update, ERASED)
    kept.sweep(offer.issued_at + KEPT_S + 1)
    assert not list((tmp_path / "kept").iterdir())


def test_what_a_dead_process_half_wrote_for_a_task_that_ended_goes_and_what_is_being_written_stays(tmp_path, bench):
    kept = KeptUpdates(tmp_path)
    kept.keep(bench.fleet.offer(1), bench.update, ERASED)
    dead, ours = (tmp_path / "kept" / f".retired.update.{pid}.part" for pid in (77, os.getpid()))
    for half in (dead, ours):
        half.write_bytes(b"half")
    kept.sweep(bench.fleet.offer(1).issued_at)
    assert not dead.exists()
    assert ours.exists()
    assert (tmp_path / "kept" / f"{TASK}.update").exists()


@pytest.mark.parametrize("how", ["forget", "training off", "a week"])
def test_a_device_deletes_it_after_a_forget_a_no_of_its_owner_and_a_week(tmp_path, bench, how):
    with FakeAggregator(tmp_path) as fake:
        fake.install("churn", MODEL)
        with fake.client(fields=("churn.minutes", "churn.calls")) as fl:
            fl.record("churn", {"minutes": 9.0, "calls": 1.0}, "yes", "ann")
            assert fl.flush(5.0)
        issued = int(fake.clock()) - (KEPT_S + 10 if how == "a week" else 0)
        KeptUpdates(tmp_path).keep(replace(bench.fleet.offer(1), task="churn", issued_at=issued), bench.update, 0)
        file = tmp_path / "kept" / "churn.update"
        if how == "forget":
            assert main(["forget", "ann", "--home", str(tmp_path)]) == 0
            assert not file.exists(), "no device has to run for it"
            return
        (tmp_path / "kept" / ".churn.update.77.part").write_bytes(b"half")
        if how == "training off":
            (tmp_path / TRAINING_OFF).touch()
        with fake.client(fields=("churn.minutes", "churn.calls")):
            assert fake.wait_for(lambda: not file.exists())
