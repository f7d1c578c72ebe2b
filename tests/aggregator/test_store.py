"""The tables: transactions are whole, restarts read what was written, newer files are refused."""

from __future__ import annotations

import sqlite3

import pytest

from aggregator.errors import DiskFull, HomeRefused
from aggregator.store.rows import RoundRow, SumRow, UploadRow
from aggregator.store.schema import SCRIPTS, VERSION, open_database
from aggregator.store.store import EVENTS_KEPT, Store


@pytest.fixture
def store(tmp_path):
    return Store(open_database(tmp_path / "db"))


def a_round(number: int = 1, phase: str = "offered", secret: bytes | None = b"s" * 96) -> RoundRow:
    return RoundRow("churn", number, phase, "", b"f", bytes([number]) * 32, secret, 1, 0, 0.0, {"seconds": {}}, "")


def an_upload(identity: bytes, device: str = "d1", state: str = "receiving") -> UploadRow:
    return UploadRow(identity, "churn", 1, device, 10, state, b"k" * 32, b"\0", None, 0.0)


def test_a_transaction_is_all_or_nothing(store):
    def half_done() -> None:
        with store.transaction():
            store.add_round(a_round())
            store.put_upload(an_upload(b"1" * 16))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half_done()
    assert store.rounds() == []
    assert store.upload(b"1" * 16) is None


def test_what_was_written_is_there_after_the_file_is_opened_again(tmp_path):
    first = Store(open_database(tmp_path / "db"))
    first.add_round(a_round())
    first.set_round("churn", 1, phase="collecting", stats={"seconds": {"offered": 1.5}})
    first.connection.close()
    row = Store(open_database(tmp_path / "db")).round("churn", 1)
    assert (row.phase, row.stats, row.secret) == ("collecting", {"seconds": {"offered": 1.5}}, b"s" * 96)


def test_a_round_is_unfinished_until_its_key_is_forgotten(store):
    store.add_round(a_round(1, "released", None))
    store.add_round(a_round(2, "aborted"))
    store.add_round(a_round(3, "opening"))
    assert [row.number for row in store.unfinished_rounds()] == [2, 3]
    assert store.last_number("churn") == 3


def test_one_accepted_upload_of_a_device_is_all_a_round_can_hold(store):
    store.put_upload(an_upload(b"1" * 16))
    store.put_upload(an_upload(b"2" * 16))  # takes the place of the unfinished one
    assert store.upload(b"1" * 16) is None
    store.set_upload(b"2" * 16, state="accepted")
    store.put_upload(an_upload(b"3" * 16))
    with pytest.raises(sqlite3.IntegrityError):
        store.set_upload(b"3" * 16, state="accepted")


def test_a_finished_round_keeps_who_was_in_it_and_nothing_they_sent(store):
    store.put_upload(an_upload(b"1" * 16))
    store.set_upload(b"1" * 16, state="summed", shares=b"x")
    store.put_upload(an_upload(b"2" * 16, "d2"))
    store.add_answer("churn", 1, 1, b"a")
    store.forget_uploads("churn", 1)
    (row,) = store.uploads("churn", 1, "summed")
    assert (row.device, row.shares, row.content_key) == ("d1", None, None)
    assert [row.device for row in store.uploads("churn", 1, "dropped")] == ["d2"]
    assert store.answers("churn", 1) == {}


def test_the_first_answer_of_a_member_stays(store):
    store.add_answer("churn", 1, 4, b"first")
    store.add_answer("churn", 1, 4, b"second")
    assert store.answers("churn", 1) == {4: b"first"}


def test_counters_add_up_and_events_are_bounded(store):
    store.count_refusals({("hello", "size"): 2})
    store.count_refusals({("hello", "size"): 3, ("get", "path"): 1})
    assert store.refusals() == {("hello", "size"): 5, ("get", "path"): 1}
    with store.transaction():
        for at in range(EVENTS_KEPT + 50):
            store.log(float(at), "phase", "churn", 1, phase="offered")
    events = store.events()
    assert len(events) == EVENTS_KEPT
    assert store.events(events[-2][0]) == [events[-1]]


def test_a_full_disk_undoes_the_transaction_and_says_so(store):
    store.add_round(a_round())
    store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    pages = store.connection.execute("PRAGMA page_count").fetchone()[0]
    store.connection.execute(f"PRAGMA max_page_count = {pages}")

    def too_much() -> None:
        with store.transaction():
            store.set_round("churn", 1, phase="collecting")
            store.put_upload(UploadRow(b"1" * 16, "churn", 1, "d", 9, "accepted", None, b"", bytes(200_000), 0.0))

    with pytest.raises(DiskFull):
        too_much()
    assert store.round("churn", 1).phase == "offered"


def test_a_file_of_a_newer_version_or_of_something_else_is_refused(tmp_path):
    connection = open_database(tmp_path / "db")
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    with pytest.raises(HomeRefused, match="schema"):
        open_database(tmp_path / "db")
    (tmp_path / "rubbish").write_bytes(b"not a database, not at all" * 100)
    with pytest.raises(HomeRefused, match="not a usable"):
        open_database(tmp_path / "rubbish")


def test_secrets_do_not_show():
    assert "sss" not in repr(a_round())
    assert "kkk" not in repr(an_upload(b"1" * 16))


def test_a_round_that_ran_before_groups_goes_on_as_one_group(tmp_path):
    connection = sqlite3.connect(tmp_path / "db")
    connection.executescript(f"{SCRIPTS[0]} PRAGMA user_version = 1;")
    row = {"task": "churn", "phase": "collecting", "frame": b"f", "epoch": 1, "phase_since": 0.0, "summed": 16}
    for number, secret in ((1, None), (2, b"s" * 96)):
        values = {**row, "number": number, "offer_hash": bytes([number]), "secret": secret, "snapshot": f"{number}.sum"}
        marks = ", ".join(f":{name}" for name in values)
        connection.execute(f"INSERT INTO rounds ({', '.join(values)}) VALUES ({marks})", values)
    upload = "INSERT INTO uploads (id, task, number, device, size, state, at) VALUES (x'01', 'churn', 2, 'd', 9, ?, 0)"
    connection.execute(upload, ("summed",))
    connection.commit()
    connection.close()
    store = Store(open_database(tmp_path / "db"))
    assert store.sums("churn", 1) == [], "its file is gone"
    assert store.sums("churn", 2) == [SumRow(0, "2.sum", 16)]
    assert store.members("churn", 2) == {"d": 0}
    assert [round_.secret for round_ in store.rounds()] == [None, b"s" * 96]
