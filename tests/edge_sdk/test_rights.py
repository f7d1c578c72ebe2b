"""A customer's rights: what is forgotten cannot be read back, consent holds by version, age is counted."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk import consent
from edge_sdk.examples_store import ExamplesStore
from edge_sdk.retention import DAY_S, PLAUSIBLE, age_clock

NOW = 1_800_000_000
ALL = ("*",)


def opened(home: Path, **bounds: int) -> ExamplesStore:
    return ExamplesStore(home / "examples.db", home / "examples.key", 1000, os.urandom, **bounds)


@pytest.fixture
def store(tmp_path: Path) -> ExamplesStore:
    return opened(tmp_path)


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())


def whole_copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


# -- forgetting --------------------------------------------------------------------------------------------------------


def test_what_is_forgotten_leaves_neither_row_nor_key_in_any_file(store, tmp_path):
    for n in range(40):
        store.add("churn", {"n": n}, "x", f"customer-{n % 4}")
    rows = sqlite3.connect(tmp_path / "examples.db").execute("SELECT subject, sealed FROM examples").fetchall()
    keys = dict(sqlite3.connect(tmp_path / "examples.db").execute("SELECT owner, wrapped FROM keys").fetchall())
    name = store._keys.name("customer-1")
    before = everything_in(tmp_path)
    gone = [sealed for subject, sealed in rows if subject == name]
    assert all(sealed in before for sealed in gone)
    assert keys[b"s" + name] in before
    assert store.forget("customer-1") == 10
    after = everything_in(tmp_path)
    assert not any(sealed in after for sealed in gone)
    assert keys[b"s" + name] not in after
    kept = [sealed for subject, sealed in rows if subject != name]
    assert all(sealed in after for sealed in kept)


ERASED_AND_KILLED = """
import os, signal, sys
from pathlib import Path
from edge_sdk.examples_store import ExamplesStore
from edge_sdk.sealed_rows import SealedRows
home = Path(sys.argv[1])
store = ExamplesStore(home / "examples.db", home / "examples.key", 100, os.urandom)
store.add("churn", {"n": 1}, "x", "a")
rows = store._db.execute("SELECT sealed FROM examples UNION ALL SELECT wrapped FROM keys WHERE owner <> X'636865636B'")
(home / "proof").write_text(" ".join(value.hex() for (value,) in rows))
SealedRows.truncate = lambda self: os.kill(os.getpid(), signal.SIGKILL)
store.forget("a")
"""


@pytest.mark.parametrize("running", [False, True])
def test_a_kill_in_the_middle_of_forgetting_leaves_nothing_for_long(tmp_path, running):
    """The next start empties the log of pages, and so does a device that runs while a command forgets."""
    beside = opened(tmp_path) if running else None
    ended = subprocess.run([sys.executable, "-c", ERASED_AND_KILLED, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    erased = [bytes.fromhex(value) for value in (tmp_path / "proof").read_text().split()]
    (tmp_path / "proof").unlink()
    assert len(erased) == 2
    assert any(value in everything_in(tmp_path) for value in erased)
    store = beside or opened(tmp_path)
    store.truncate_owed()
    assert not any(value in everything_in(tmp_path) for value in erased)
    assert store._file.fact("truncate-owed") == 0


def test_a_backup_of_the_rows_cannot_be_read_with_all_that_is_left_on_the_device(store, tmp_path):
    store.add("churn", {"city": "Rotterdam"}, "x", "customer-1")
    store.add("churn", {"city": "Utrecht"}, "x", "customer-2")
    connection = sqlite3.connect(tmp_path / "examples.db")
    row = connection.execute("SELECT subject, sealed FROM examples ORDER BY id LIMIT 1").fetchone()
    store.forget("customer-1")
    connection.execute("INSERT INTO examples (task, subject, recorded_at, sealed) VALUES ('churn', ?, 0, ?)", row)
    connection.commit()
    assert [example.fields["city"] for example in store.read("churn")] == ["Utrecht"]
    master = (tmp_path / "examples.key").read_bytes()
    left = [store._file.held_key(owner) for (owner,) in connection.execute("SELECT owner FROM keys")]
    for key in (master, *left):
        for bound in (b"", b"churn", b"chorale/example/2\0churn\0" + row[0]):
            with pytest.raises(InvalidTag):
                AESGCM(key).decrypt(row[1][:12], row[1][12:], bound)


def test_a_subject_that_comes_back_has_another_key(store, tmp_path):
    def key() -> bytes | None:
        return store._file.held_key(b"s" + store._keys.name("customer-1"))

    store.add("churn", {"n": 1}, "x", "customer-1")
    first = key()
    store.forget("customer-1")
    assert key() is None
    store.add("churn", {"n": 2}, "x", "customer-1")
    assert key() not in (None, first)
    assert [example.fields["n"] for example in store.read("churn")] == [2]


def test_forgetting_says_durably_whose_uploads_have_to_go(store, tmp_path):
    store.add("churn", {"n": 1}, "x", "customer-1")
    store.add("intent", {"n": 1}, "x", "customer-2")
    before = store.erasures("churn")
    store.forget("customer-1")
    store.forget("nobody")
    again = opened(tmp_path)
    assert again.owed() == {"churn": before + 1}
    store.add("churn", {"n": 1}, "x", "customer-3")
    store.forget("customer-3")
    again.settled("churn", before + 1)  # of the first only: the second came meanwhile
    assert again.owed() == {"churn": before + 2}
    again.settled("churn", before + 2)
    assert again.owed() == {}


def test_an_upload_may_hold_what_the_ring_has_dropped_since(tmp_path):
    store = ExamplesStore(tmp_path / "examples.db", tmp_path / "examples.key", 3, os.urandom)
    store.add("churn", {"n": 0}, "x", "customer-1")
    for n in range(5):
        store.add("churn", {"n": n}, "x", "customer-2")
    assert store.forget("customer-1") == 0
    assert list(store.owed()) == ["churn"]


def test_a_file_of_the_first_form_is_sealed_anew_by_subject(tmp_path):
    key = os.urandom(32)
    (tmp_path / "examples.key").write_bytes(key)
    old = sqlite3.connect(tmp_path / "examples.db")
    old.execute(
        "CREATE TABLE examples (id INTEGER PRIMARY KEY AUTOINCREMENT, task TEXT NOT NULL,"
        " subject BLOB NOT NULL, sealed BLOB NOT NULL)"
    )
    import hashlib
    import hmac

    import msgspec

    name = hmac.digest(hashlib.sha256(b"chorale/subject/1" + key).digest(), b"customer-1", "sha256")
    for subject, n in ((name, 1), (b"", 2)):
        sealed = AESGCM(key).encrypt(bytes(11) + bytes([n]), msgspec.msgpack.encode(({"n": n}, "x")), b"churn")
        row = ("churn", subject, bytes(11) + bytes([n]) + sealed)
        old.execute("INSERT INTO examples (task, subject, sealed) VALUES (?, ?, ?)", row)
    old.commit()
    old.close()
    store = opened(tmp_path)
    assert store.damage is None
    assert [example.fields["n"] for example in store.read("churn")] == [1, 2]
    assert store.forget("customer-1") == 1
    assert [example.fields["n"] for example in opened(tmp_path).read("churn")] == [2]


# -- consent -----------------------------------------------------------------------------------------------------------


def values(store: ExamplesStore, consent: int, task: str = "churn") -> list[int]:
    return [example.fields["n"] for example in store.read(task, consent)]


def test_only_the_notice_asked_for_or_a_later_one_counts(store):
    for n, subject in enumerate((None, "never", "two", "three")):
        store.add("churn", {"n": n}, "x", subject)
    store.consent_given("two", 2, ALL, NOW)
    store.consent_given("three", 3, ("churn",), NOW)
    assert [values(store, consent) for consent in range(5)] == [[0, 1, 2, 3], [2, 3], [2, 3], [3], []]
    store.add("intent", {"n": 9}, "x", "three")
    assert values(store, 1, "intent") == []


def test_a_withdrawal_erases_and_holds_until_consent_is_given_again(store):
    store.add("churn", {"n": 1}, "x", "a", consent=2)
    store.add("intent", {"n": 1}, "x", "a", consent=2)
    assert store.consent_withdrawn("a", ("churn",), NOW) == 1
    assert (values(store, 0), values(store, 2, "intent")) == ([], [1])
    assert not store.add("churn", {"n": 2}, "x", "a")
    assert not store.add("churn", {"n": 2}, "x", "a", consent=7), "an app that carries a version along undid it"
    assert store.withheld == 2
    store.consent_given("a", 3, ("churn",), NOW + 5)
    assert store.add("churn", {"n": 3}, "x", "a")
    assert values(store, 3) == [3]
    kinds = [tuple(sorted(set(entry) - {"purpose"})) for entry in store.consent_history("a")]
    assert kinds == [("given_at", "version")] * 2 + [("withdrawn_at",), ("given_at", "version")]


def test_withdrawing_everything_covers_tasks_that_were_named_one_by_one(store):
    store.consent_given("a", 1, ("churn", "intent"), NOW)
    for task in ("churn", "intent", "other"):
        store.add(task, {"n": 1}, "x", "a")
    store.consent_withdrawn("a", ALL, NOW)
    assert store.counts() == {}
    assert not store.add("new-task", {"n": 1}, "x", "a")
    assert sorted(store.owed()) == ["churn", "intent", "other"]


WORDS = st.tuples(
    st.sampled_from([("*",), ("churn",), ("intent",), ("churn", "intent"), ("churn", "*")]), st.integers(0, 2)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, max_size=7))
def test_the_newest_word_about_a_task_or_every_task_holds(words):
    database = sqlite3.connect(":memory:")
    for statement in filter(str.strip, consent.TABLE.split(";")):
        database.execute(statement)
    expected: dict[str, int] = {}
    for at, (purposes, version) in enumerate(words):
        consent.write(database, b"a", purposes, version, at)
        tasks = ("churn", "intent", "third") if "*" in purposes else purposes
        expected.update(dict.fromkeys(tasks, version))
        for task in ("churn", "intent", "third"):
            assert consent.holds(database, b"a", task) == expected.get(task)
    assert len(consent.history(database, b"a")) <= sum(len(purposes) for purposes, _ in words)


def test_a_second_withdrawal_of_everything_holds_after_a_consent_to_one_task(store):
    store.consent_withdrawn("a", ALL, NOW)
    store.consent_given("a", 3, ("churn",), NOW + 1)
    store.add("churn", {"n": 1}, "x", "a")
    assert store.consent_withdrawn("a", ALL, NOW + 2) == 1
    assert store.consent_history("a")[-1] == {"purpose": "*", "withdrawn_at": NOW + 2}
    assert not store.add("churn", {"n": 2}, "x", "a", consent=3)
    assert values(store, 3) == []


def test_forgetting_does_not_undo_a_withdrawal(store, tmp_path):
    store.consent_withdrawn("a", ALL, NOW)
    store.forget("a")
    assert not opened(tmp_path).add("churn", {"n": 1}, "x", "a")


# -- age and size ------------------------------------------------------------------------------------------------------


def sweep(store: ExamplesStore, now: int, vouched: int = 0, elapsed_s: float = DAY_S) -> int:
    return store.sweep(now, vouched=vouched, elapsed_s=elapsed_s)


def test_what_is_older_than_the_retention_goes_and_its_key_with_it(tmp_path):
    store = opened(tmp_path, retention_s=90 * DAY_S)
    sweep(store, NOW)
    store.add("churn", {"n": 1}, "x", "old")
    sweep(store, NOW + 60 * DAY_S, vouched=NOW + 61 * DAY_S)
    store.add("churn", {"n": 2}, "x", "new")
    assert sweep(store, NOW + 91 * DAY_S, vouched=NOW + 92 * DAY_S) == 1
    assert values(store, 0) == [2]
    assert store._file.held_key(b"s" + store._keys.name("old")) is None


def test_a_clock_that_starts_in_1970_neither_erases_nor_keeps_for_ever(tmp_path):
    store = opened(tmp_path, retention_s=90 * DAY_S)
    sweep(store, 100)
    store.add("churn", {"n": 1}, "x", "a", now=100)
    assert sweep(store, NOW, vouched=NOW + DAY_S) == 0, "the right time came and took what was an hour old"
    assert sweep(store, NOW + 89 * DAY_S, vouched=NOW + 90 * DAY_S) == 0
    assert sweep(store, NOW + 91 * DAY_S, vouched=NOW + 92 * DAY_S) == 1


def test_a_clock_that_jumps_ahead_is_believed_no_more_than_the_time_that_passed(tmp_path):
    store = opened(tmp_path, retention_s=90 * DAY_S)
    sweep(store, NOW, vouched=NOW + DAY_S)
    store.add("churn", {"n": 1}, "x", "a")
    assert sweep(store, NOW + 9999 * DAY_S, vouched=NOW + DAY_S) == 0
    for _ in range(88):  # and where nobody vouches for it any more, a day at a time
        assert sweep(store, NOW + 9999 * DAY_S, vouched=NOW + DAY_S) == 0
    assert sum(sweep(store, NOW + 9999 * DAY_S, vouched=NOW + DAY_S) for _ in range(3)) == 1


def test_a_clock_that_was_ahead_at_first_does_not_keep_examples_for_ever(tmp_path):
    store = opened(tmp_path, retention_s=90 * DAY_S)
    sweep(store, NOW + 9999 * DAY_S)
    store.add("churn", {"n": 1}, "x", "a")
    assert sweep(store, NOW, vouched=NOW + DAY_S) == 0
    assert sweep(store, NOW + 91 * DAY_S, vouched=NOW + 92 * DAY_S) == 1


@given(st.lists(st.tuples(st.integers(0, 2**36), st.integers(0, 2**36), st.floats(0, DAY_S)), max_size=20))
def test_the_age_clock_never_runs_back_nor_ahead_of_what_vouches_for_it(steps):
    at = 0
    for now, vouched, elapsed in steps:
        after = age_clock(at, now, vouched, elapsed)
        assert after >= at or after == now <= vouched < at
        assert after <= max(at, now)
        if at >= PLAUSIBLE:
            assert after <= max(vouched, at + elapsed)
        at = after


def test_the_store_stays_below_its_size_and_the_oldest_goes(tmp_path):
    store = opened(tmp_path, max_bytes=20_000)
    for n in range(60):
        store.add("churn", {"n": n, "pad": "x" * 900}, "x", "a")
    (held,) = sqlite3.connect(tmp_path / "examples.db").execute("SELECT SUM(LENGTH(sealed)) FROM examples").fetchone()
    assert held <= 20_000
    kept = values(store, 0)
    assert kept == list(range(kept[0], 60))


def test_large_examples_make_room_one_by_one_and_what_never_fits_is_refused(tmp_path):
    store = opened(tmp_path, max_bytes=20_000)
    for n in range(30):
        assert store.add("churn", {"n": n, "pad": "x" * 4000}, "x", "a")
    assert values(store, 0) == [26, 27, 28, 29]
    assert not store.add("churn", {"n": 99, "pad": "x" * 20_000}, "x", "a")
    assert (values(store, 0), store.dropped) == ([26, 27, 28, 29], 1)
    assert store.add_many([("churn", {"n": n, "pad": "x" * 4000}, "x", "a") for n in range(6)]) == 4
    assert (values(store, 0), store.dropped) == ([2, 3, 4, 5], 3)


def test_fields_are_taken_out_of_what_is_stored_already(store, tmp_path):
    store.add("churn", {"n": 1, "iban": "NL91ABNA0417164300"}, "x", "a")
    sealed = sqlite3.connect(tmp_path / "examples.db").execute("SELECT sealed FROM examples").fetchone()[0]
    assert store.rewrite("churn", lambda fields, label: ({"n": fields["n"]}, label)) == (1, 0)
    assert store.read("churn")[0].fields == {"n": 1}
    assert sealed not in everything_in(tmp_path)
    assert store.rewrite("churn", lambda fields, label: (fields, label)) == (0, 0)
    sealed = sqlite3.connect(tmp_path / "examples.db").execute("SELECT sealed FROM examples").fetchone()[0]
    assert store.rewrite("churn", lambda fields, label: None) == (0, 1)
    assert store.count("churn") == 0
    assert sealed not in everything_in(tmp_path)
