"""Windows of labels that the SDK keeps: what fills a series, in which order, and what erases it."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.artifact.schema import Label, NumberField, Schema, SequenceField, SeriesField
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.cli import main
from edge_sdk.examples_store import ExamplesStore
from edge_sdk.field_rules import UnfitValue
from edge_sdk.recorder import Recorder
from edge_sdk.round_work import fits
from edge_sdk.surroundings import Live
from edge_sdk.testing import FakeAggregator
from edge_sdk.windows import TooShort, Window, Windows

DEMAND = Schema(
    (SeriesField("recent", 4, key="site", time="day", calendar=("weekday",)), NumberField("rain")),
    Label("visitors", "number", relative_to="recent", log=True),
)
NEXT = Schema(
    (SequenceField("bought", ("tea", "jam", "rice"), last=3),),
    Label("next", "classes", ("tea", "jam", "rice"), unseen_of="bought"),
)
MODEL = tabular_classifier(DEMAND, [4], seed=1)


def day(n: int) -> str:
    return f"2024-05-{n:02d}"


def learn(windows: Windows, record: dict[str, object], label: object, subject: str | None = None) -> list[object]:
    """The window that an example of this record is made with."""
    filled = windows.for_example("demand", DEMAND, record, subject)
    windows.extend(filled, label)
    return filled.fields["recent"]


@given(st.lists(st.tuples(st.integers(1, 28), st.integers(0, 99)), max_size=40))
def test_a_window_is_the_last_labels_before_the_date_in_whatever_order_they_came(recorded):
    windows, known = Windows(), {}
    for when, label in recorded:
        # The oracle forgets as the window does: what fell out of the newest four does not come back.
        known = dict(sorted({**known, when: label}.items())[-4:])
        learn(windows, {"site": "a", "day": day(when), "rain": 0}, label)
    if len(known) >= 2:
        filled = windows.for_prediction("demand", DEMAND, {"site": "a", "day": day(29), "rain": 0}, None)
        assert filled["recent"] == list(known.values())


def test_a_label_is_never_in_the_window_of_its_own_example():
    windows = Windows()
    for n in (1, 2, 3):
        assert learn(windows, {"site": "a", "day": day(n), "rain": 0}, n) == list(range(1, n))
    assert learn(windows, {"site": "a", "day": day(2), "rain": 0}, 22) == [1]
    assert learn(windows, {"site": "a", "day": day(4), "rain": 0}, 4) == [1, 22, 3]


def test_less_than_half_a_window_is_too_short_to_learn_from_and_to_predict_from():
    windows = Windows()
    record = {"site": "a", "day": day(9), "rain": 0}
    assert windows.for_example("demand", DEMAND, record, None).short
    with pytest.raises(TooShort, match="0 labels"):
        windows.for_prediction("demand", DEMAND, record, None)
    for n in (1, 2):
        learn(windows, {**record, "day": day(n)}, n)
    assert not windows.for_example("demand", DEMAND, record, None).short


def test_an_example_of_one_subject_is_not_made_from_another_ones_labels():
    windows = Windows()
    for n, subject in enumerate(("ann", "bob", "ann", None), start=1):
        learn(windows, {"site": "a", "day": day(n), "rain": 0}, n, subject)
    record = {"site": "a", "day": day(9), "rain": 0}
    assert learn(windows, record, 9, "ann") == [1, 3]
    assert windows.for_example("demand", DEMAND, {**record, "day": day(8)}, "bob").fields["recent"] == [2]
    assert windows.for_prediction("demand", DEMAND, record, None)["recent"] == [1, 2, 3, 4]


def test_a_window_that_the_app_gives_is_taken_as_it_is():
    windows = Windows()
    given_by_app = {"recent": [5, None], "site": "a", "day": day(1), "rain": 0}
    assert windows.for_example("demand", DEMAND, given_by_app, None) == (given_by_app, (), "")


def test_the_window_longest_without_a_label_goes_first():
    windows = Windows(cap=2)
    for n, site in enumerate("abac", start=1):
        filled = windows.for_example("demand", DEMAND, {"site": site, "day": day(n), "rain": 0}, None)
        assert windows.extend(filled, n) == (site == "c")
    assert {window.key for window, entries in windows.take_changed() if entries} == {b"window\0a", b"window\0c"}


def test_the_labels_of_all_windows_are_counted_and_bounded():
    windows = Windows(most=5)
    gone = []
    for n, site in enumerate("aaabbbb", start=1):
        filled = windows.for_example("demand", DEMAND, {"site": site, "day": day(n), "rain": 0}, None)
        gone.append(windows.extend(filled, n))
    assert gone == [0, 0, 0, 0, 0, 1, 0]
    assert [window.key for window, entries in windows.take_changed() if entries] == [b"window\0b"]


@pytest.mark.parametrize(
    ("field", "value"), [("day", None), ("day", "today"), ("day", 7), ("site", 7), ("site", ["a"])]
)
def test_a_key_or_a_date_that_cannot_be_read_is_named(field, value):
    with pytest.raises(UnfitValue, match=f"'{field}'"):
        Windows().for_example("demand", DEMAND, {"site": "a", "day": day(1), "rain": 0, field: value}, None)


def test_what_a_visitor_took_before_is_the_history_of_that_visitor_alone():
    windows = Windows()
    for subject, label in (("ann", "tea"), ("bob", "jam"), ("ann", "rice")):
        windows.extend(windows.for_example("shop", NEXT, {}, subject), label)
    assert windows.for_prediction("shop", NEXT, {}, "ann") == {"bought": ["tea", "rice"]}
    assert windows.for_prediction("shop", NEXT, {}, None) == {"bought": []}


# -- on the disk -----------------------------------------------------------------------------------------------------


def opened(home: Path) -> ExamplesStore:
    return ExamplesStore(home / "examples.db", home / "examples.key", 100, os.urandom, retention_s=1000)


def test_windows_are_sealed_and_an_entry_copied_to_another_window_is_left_out(tmp_path):
    store = opened(tmp_path)
    mine, other = (Window("demand", "recent", store.name(key), b"") for key in ("a", "b"))
    store.windows.write([(mine, [(1, 7777777, 0)]), (other, [(1, 8888888, 0)])])
    sealed = store._db.execute("SELECT sealed FROM windows WHERE key = ?", (mine.key,)).fetchone()[0]
    assert b"\xce" + (7777777).to_bytes(4, "big") not in sealed
    store._db.execute("UPDATE windows SET sealed = ? WHERE key = ?", (sealed, other.key))
    assert store.windows.read() == [(mine, [(1, 7777777, 0)])]


def test_each_label_is_erased_the_retention_after_it_was_recorded_whatever_came_since(tmp_path):
    store = opened(tmp_path)
    window = Window("demand", "recent", b"", store.name("ann"))
    store.windows.write([(window, [(1, 7, 10_000), (2, 8, 10_500), (3, 9, 10_200)])])
    for now, left in ((10_900, [7, 8, 9]), (11_100, [8, 9]), (11_300, [8]), (11_600, [])):
        erased = store.windows.erased()
        store.sweep(now, vouched=now, elapsed_s=900)
        assert [label for _, entries in store.windows.read() for _, label, _ in entries] == left
        assert (store.windows.erased() > erased) == (len(left) < 3)
    assert not store._db.execute("SELECT 1 FROM keys WHERE owner = ?", (b"s" + window.subject,)).fetchone()


def test_what_outlived_the_retention_is_in_no_file(tmp_path):
    store = opened(tmp_path)
    store.windows.write([(Window("demand", "recent", b"", b""), [(1, 7, 10_000)])])
    (sealed,) = store._db.execute("SELECT sealed FROM windows").fetchone()
    store.sweep(11_100, vouched=11_100, elapsed_s=900)
    assert sealed not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_ages_of_labels_begin_anew_with_the_first_plausible_time_and_run_back_with_the_clock(tmp_path):
    store, now = opened(tmp_path), 1_800_000_000

    def ages() -> list[int]:
        return [at for _, entries in store.windows.read() for _, _, at in entries]

    store.windows.write([(Window("demand", "recent", b"", b""), [(1, 7, 5), (2, 8, 9)])])
    store.sweep(now, vouched=0, elapsed_s=0)
    assert ages() == [now, now]
    store.sweep(now + 900, vouched=0, elapsed_s=900)
    store.windows.write([(Window("demand", "recent", b"", b""), [(1, 7, now), (2, 8, now + 900)])])
    store.sweep(now + 300, vouched=now + 400, elapsed_s=0)
    assert ages() == [now, now + 300]


def test_a_window_in_the_form_of_another_release_is_left_out(tmp_path):
    store = opened(tmp_path)
    window = Window("demand", "recent", b"", b"")
    with store._file.transaction():
        sealed = store._file.seal("demand", b"", msgspec.msgpack.encode(("recent", b"", [(1, 7)])))
        store._db.execute(
            "INSERT INTO windows (task, field, key, subject, recorded_at, sealed) VALUES (?, ?, ?, ?, 0, ?)",
            (*window, sealed),
        )
    assert store.windows.read() == []


def test_forgetting_leaves_neither_the_window_nor_its_key_in_any_file(tmp_path):
    store = opened(tmp_path)
    window = Window("demand", "recent", store.name("hall"), store.name("ann"))
    store.windows.write([(window, [(1, 7, 0)])])
    (sealed,) = store._db.execute("SELECT sealed FROM windows").fetchone()
    (wrapped,) = store._db.execute("SELECT wrapped FROM keys WHERE owner = ?", (b"s" + window.subject,)).fetchone()

    def written() -> bytes:
        return b"".join(path.read_bytes() for path in tmp_path.iterdir())

    assert sealed in written()
    store.forget("ann")
    assert sealed not in written()
    assert wrapped not in written()


# -- through the client ------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path: Path):
    with FakeAggregator(tmp_path) as made:
        made.install("demand", MODEL)
        yield made


def recorded(fl, days, subject=None, site="a"):
    for n in days:
        fl.record("demand", {"site": site, "day": day(n), "rain": 0.0}, 10.0 * n, subject)
    assert fl.flush(5.0)


def test_an_app_that_records_labels_alone_learns_and_predicts_through_a_restart(fake, capsys):
    with fake.client() as fl:
        recorded(fl, range(1, 6))
        status = fl.status()
        assert status["examples"] == {"demand": 3}
        assert status["dropped"] == {"example-window-short": 2}
        with contextlib.closing(opened(fl.config.home)) as store:
            kept = store.read("demand")
        assert [example.fields["recent"] for example in kept] == [
            [10.0, 20.0],
            [10.0, 20.0, 30.0],
            [10.0, 20.0, 30.0, 40.0],
        ]
        assert all(fits(DEMAND, example) for example in kept)
        before = fl.predict("demand", {"site": "a", "day": day(6), "rain": 0.0})
    with fake.client() as fl:
        again = fl.predict("demand", {"site": "a", "day": day(6), "rain": 0.0})
        assert again.available
        assert again.ranked == before.ranked
        whole = {"recent": [20.0, 30.0, 40.0, 50.0], "day": day(6), "rain": 0.0}
        assert fl.predict("demand", whole).ranked == before.ranked
        assert "'recent' needs 2" in fl.predict("demand", {"site": "b", "day": day(6), "rain": 0.0}).error
        record = json.dumps({"site": "a", "day": day(6), "rain": 0.0})
        assert main(["predict", "demand", "--json-record", record, "--json", "--home", str(fl.config.home)]) == 0
        assert json.loads(capsys.readouterr().out)["score"] == pytest.approx(before.score)
        again.feedback(61.0)
        assert fl.flush(5.0)
        assert fl.status()["examples"] == {"demand": 4}


def test_forgetting_a_subject_empties_its_windows_in_memory_and_on_the_disk(fake):
    with fake.client() as fl:
        recorded(fl, range(1, 5), "ann")
        recorded(fl, range(1, 5), "bob", site="b")
        assert [len(each["labels"]) for each in fl.export("ann")["windows"]] == [4]
        fl.forget("ann")
        assert fl.flush(5.0)
        assert fl.export("ann")["windows"] == []
        assert not fl.predict("demand", {"site": "a", "day": day(9), "rain": 0.0}).available
        assert fl.predict("demand", {"site": "b", "day": day(9), "rain": 0.0}).available


def test_a_withdrawal_empties_windows_and_keeps_later_labels_out_of_them(fake):
    with fake.client() as fl:
        recorded(fl, range(1, 5), "ann")
        fl.consent.withdraw("ann", ["demand"])
        recorded(fl, range(5, 9), "ann")
        assert fl.export("ann")["windows"] == []
        assert not fl.predict("demand", {"site": "a", "day": day(9), "rain": 0.0}).available


def test_a_subject_forgotten_by_another_process_is_gone_from_memory_within_a_turn(fake):
    with fake.client() as fl:
        recorded(fl, range(1, 5), "ann")
        assert main(["forget", "ann", "--home", str(fl.config.home)]) == 0
        deadline = time.monotonic() + 5.0
        while fl.predict("demand", {"site": "a", "day": day(9), "rain": 0.0}).available:
            assert time.monotonic() < deadline
            time.sleep(0.05)


# -- what a forgotten subject leaves behind ----------------------------------------------------------------------------


class NoFields:
    fields = ()


def recorder_of(home: Path) -> Recorder:
    return Recorder(NoFields(), opened(home), lambda: {"demand": DEMAND}, Live())


def take(recorder: Recorder, days, subject="ann") -> None:
    for n in days:
        recorder.take([("demand", {"site": "a", "day": day(n), "rain": 0.0}, 10.0 * n, subject, 0)], 0)


def labels_of(recorder: Recorder, subject="ann") -> list[list[float]]:
    return [[label for _, label, _ in each["labels"]] for each in recorder.export(subject)["windows"]]


def test_labels_that_a_full_disk_did_not_take_are_stored_with_the_next_and_forgotten_with_their_subject(tmp_path):
    recorder = recorder_of(tmp_path)
    rows = recorder.examples.windows
    store = rows.write

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    rows.write = full
    take(recorder, (1, 2), "bob")
    rows.write = store
    take(recorder, (3,))
    assert labels_of(recorder, "bob") == [[10.0, 20.0]]
    rows.write = full
    take(recorder, (4, 5), "eve")
    rows.write = store
    recorder.forget("eve")
    take(recorder, (6,), "eve")
    assert labels_of(recorder, "eve") == [[60.0]]


@pytest.mark.parametrize("step", ["_all_ruled", "_write_windows"])
def test_a_subject_forgotten_by_another_process_while_its_record_is_taken_stays_forgotten(tmp_path, step):
    recorder, other = recorder_of(tmp_path), opened(tmp_path)
    take(recorder, range(1, 5))
    real = getattr(recorder, step)

    def forgotten_after(*given):
        out = real(*given)
        other.forget("ann")
        setattr(recorder, step, real)
        return out

    setattr(recorder, step, forgotten_after)
    take(recorder, (5,))
    take(recorder, (6, 7, 8))
    seen = {label for window in labels_of(recorder) for label in window}
    for example in recorder.examples.read("demand"):
        seen |= {*example.fields["recent"], example.label}
    assert seen
    assert not seen & {10.0, 20.0, 30.0, 40.0}


# -- dates that are still to come --------------------------------------------------------------------------------------

TODAY = 1_800_000_000  # 2027-01-15


def dated(days: float) -> str:
    return datetime.fromtimestamp(TODAY + days * 86_400, UTC).isoformat()


def came(recorder: Recorder, days: float, now: int = TODAY) -> None:
    recorder.take([("demand", {"site": "a", "day": dated(days), "rain": 0.0}, days, "ann", 0)], now)


def test_a_label_dated_more_than_a_day_ahead_is_refused_and_the_field_named(tmp_path, caplog):
    recorder = recorder_of(tmp_path)
    came(recorder, 1.1)
    assert "its field 'day' is more than a day ahead" in caplog.text
    assert recorder._live.dropped == {"example": 1}
    for days in (-3.0, 0.9, -1.0, -2.0):
        came(recorder, days)
    assert labels_of(recorder) == [[-3.0, -2.0, -1.0, 0.9]]


def test_a_window_filled_while_the_clock_ran_ahead_recovers_with_the_next_label(tmp_path):
    recorder = recorder_of(tmp_path)
    for days in (400.0, 401.0, 402.0, 403.0):
        came(recorder, days, TODAY + 403 * 86_400)
    for days in (-1.0, 0.0):
        came(recorder, days)
    assert labels_of(recorder) == [[-1.0, 0.0]]


def test_a_clock_that_was_reset_refuses_no_label_of_the_time_that_the_store_saw(tmp_path):
    recorder = recorder_of(tmp_path)
    recorder.examples.sweep(TODAY, vouched=TODAY, elapsed_s=0)
    came(recorder, 0.0, TODAY - 30 * 86_400)
    assert labels_of(recorder) == [[0.0]]


def test_a_clock_that_says_1970_refuses_no_date(tmp_path):
    recorder = recorder_of(tmp_path)
    came(recorder, 0.0, 1000)
    assert labels_of(recorder) == [[0.0]]


def test_an_app_that_records_a_date_to_come_is_not_stopped_and_the_series_goes_on(fake):
    with fake.client() as fl:
        for days in (-3, 200, -2, -1):
            fl.record("demand", {"site": "a", "day": dated(days), "rain": 0.0}, float(days + 10), "ann")
        assert fl.flush(5.0)
        assert fl.status()["dropped"] == {"example": 1, "example-window-short": 2}
        assert [label for _, label, _ in fl.export("ann")["windows"][0]["labels"]] == [7.0, 8.0, 9.0]
        assert fl.predict("demand", {"site": "a", "day": dated(200), "rain": 0.0}).available


@pytest.mark.parametrize(
    ("language", "said"), [("en", "each is erased 30 days after it was recorded"), ("zh", "每个结果记录满 30 天后删除")]
)
def test_the_notice_says_how_long_each_label_stays(fake, language, said):
    with fake.client(retention_days=30.0) as fl:
        assert said in fl.explain("demand", language)


def test_a_label_keeps_the_time_at_which_it_was_recorded(tmp_path):
    recorder = recorder_of(tmp_path)
    for days in (-5.0, -4.0):
        came(recorder, days, TODAY + int(days))
    (window,) = recorder.export("ann")["windows"]
    assert [at for _, _, at in window["labels"]] == [TODAY - 5, TODAY - 4]


@pytest.mark.parametrize("site", [{}, {"site": None}, {"site": ""}])
def test_a_record_without_the_key_of_its_series_is_refused_and_the_field_named(site):
    with pytest.raises(UnfitValue, match="'site' is missing"):
        Windows().for_example("demand", DEMAND, {"day": day(1), "rain": 0, **site}, None)
    with pytest.raises(UnfitValue, match="'site' is missing"):
        Windows().for_prediction("demand", DEMAND, {"day": day(1), "rain": 0, **site}, None)


def test_an_example_of_nobody_is_never_made_from_a_customers_labels():
    windows = Windows()
    for n in range(1, 5):
        learn(windows, {"site": "a", "day": day(n), "rain": 0}, 10 * n, "alice")
    assert learn(windows, {"site": "a", "day": day(5), "rain": 0}, 50) == []
    assert learn(windows, {"site": "a", "day": day(6), "rain": 0}, 60) == [50]
