"""The device's journal: written with what it pays for, signed by the device's key, bounded, touched and found."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fleet_of_eight import MODEL, TASK
from test_round_work import Bench

from aggregator.fleet.authority import create_authority
from edge_sdk import device_db, journal
from edge_sdk.cli import main
from edge_sdk.device_db import open_device_db, transaction
from edge_sdk.identity.keys import private_directory, write_private
from edge_sdk.identity.trust import save_bundle
from edge_sdk.journal import HEAD_FILE, Journal, JournalSigner, Witness
from edge_sdk.protocol import hashlog
from edge_sdk.protocol.errors import WrongSignature
from edge_sdk.protocol.messages import LogHead
from edge_sdk.testing import FakeAggregator

FLEET, DEVICE, NOW = "f0", "kiosk-7", 1_800_000_000
KEY = Ed25519PrivateKey.generate()


class Book:
    """A journal and its signer."""

    def __init__(self, home: Path, key: Ed25519PrivateKey = KEY) -> None:
        self.home, self.key = home, key
        self.db = open_device_db(home / "device.db")
        self.journal = Journal(self.db, lambda: NOW)
        public = key.public_key().public_bytes_raw()
        self.signer = JournalSigner(
            self.db, self.journal, home, fleet=FLEET, device=DEVICE, key=public, sign=key.sign
        )  # fmt: skip

    def write(self, count: int) -> None:
        with transaction(self.db):
            for number in range(count):
                self.journal.note("upload", TASK, number, epsilon_after=0.1)

    def findings(self, key: Ed25519PrivateKey | None = None) -> list[tuple[int, str]]:
        public = (key or self.key).public_key().public_bytes_raw()
        checked = journal.check(self.db, self.home, fleet=FLEET, device=DEVICE, key=public)
        return [found[:2] for found in checked.findings]

    def entries(self) -> list[hashlog.Entry]:
        return [hashlog.read(row.entry) for row in journal.rows(self.db)]


@pytest.fixture
def book(tmp_path: Path) -> Book:
    made = Book(tmp_path)
    made.signer.begin(NOW)
    made.write(70)
    made.signer.turn(NOW + 1)
    return made


def test_the_first_entry_names_the_key_and_is_signed_by_it(tmp_path):
    made = Book(tmp_path)
    made.signer.begin(NOW)
    (entry,) = made.entries()
    assert (entry.kind, entry.data["key"]) == ("identity", KEY.public_key().public_bytes_raw().hex())
    assert made.findings() == []
    assert made.findings(Ed25519PrivateKey.generate()) != []


def test_a_new_identity_goes_on_with_the_journal_and_signs_at_once(book):
    other = Ed25519PrivateKey.generate()
    later = Book(book.home, other)
    later.signer.begin(NOW + 5)
    assert [entry.kind for entry in later.entries()].count("identity") == 2
    assert later.findings() == []
    assert book.findings(KEY)[0][1] == "signature", "the journal's last key must be the device's own"


def test_it_signs_after_64_entries_or_a_minute(book):
    sizes = [row[0] for row in book.db.execute("SELECT size FROM journal_heads")]
    assert sizes == [1, 71]
    book.write(1)
    book.signer.turn(NOW + 60)
    book.signer.turn(NOW + 61)
    assert [row[0] for row in book.db.execute("SELECT size FROM journal_heads")] == [1, 71, 72]
    book.signer.turn(NOW + 500)
    assert book.db.execute("SELECT count(*) FROM journal_heads").fetchone() == (3,)


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (("UPDATE journal SET entry = replace(entry, 'churn', 'chorn') WHERE n = 11",), [(11, "changed")]),
        (("DELETE FROM journal WHERE n = 20",), [(20, "removed")]),
        (("DELETE FROM journal WHERE n > 40", "DELETE FROM journal_heads WHERE size > 40"), [(41, "cut")]),
        (("DELETE FROM journal WHERE n <= 10",), [(1, "removed")]),
        (
            ("UPDATE journal SET n = -1 WHERE n = 5", "UPDATE journal SET n = 5 WHERE n = 6",
             "UPDATE journal SET n = 6 WHERE n = -1"),
            [(5, "moved")],
        ),
    ],
)  # fmt: skip
def test_what_is_done_to_the_journal_is_found(book, statements, expected):
    for statement in statements:
        book.db.execute(statement)
    assert book.findings() == expected


def test_a_device_that_starts_on_a_cut_journal_says_so_and_keeps_the_proof(book):
    proof = (book.home / HEAD_FILE).read_text()
    book.db.execute("DELETE FROM journal WHERE n > 40")
    book.db.execute("DELETE FROM journal_heads WHERE size > 40")
    later = Book(book.home)
    later.signer.begin(NOW + 9)
    later.write(70)
    later.signer.turn(NOW + 10)
    assert (later.home / HEAD_FILE).read_text() == proof
    assert [entry.data["reason"] for entry in later.entries() if entry.kind == "alarm"] == ["journal-lost"]
    assert [reason for _, reason in later.findings()] == ["rewritten"]


def test_another_valid_journal_is_not_this_one(book, tmp_path_factory):
    other = Book(tmp_path_factory.mktemp("other"))
    other.journal.note("installed", TASK, version=2)
    other.signer.begin(NOW + 3)
    other.write(99)
    other.signer.turn(NOW + 4)
    beside = (book.home / HEAD_FILE).read_text()
    (other.home / HEAD_FILE).write_text(beside)
    assert [reason for _, reason in other.findings()] == ["rewritten"]


def test_the_disk_is_bounded_and_what_is_left_still_holds(book, monkeypatch):
    monkeypatch.setattr(journal, "MOST_ENTRIES", 200)
    monkeypatch.setattr(journal, "LEFT_ENTRIES", 100)
    for turn in range(12):
        book.write(64)
        book.signer.turn(NOW + turn)
    kept = journal.rows(book.db)
    assert len(kept) < 300
    assert kept[0].n > 400
    assert book.findings() == []
    book.db.execute("DELETE FROM journal WHERE n = ?", (kept[0].n,))
    assert book.findings()[0][1] in ("removed", "changed")


def test_an_upload_and_its_entry_are_there_together_or_not_at_all(tmp_path):
    bench = Bench(tmp_path)
    bench.work._journal = Journal(bench.db, lambda: NOW)
    bench.take_part(bench.fleet.offer(unit="record", placement="local"))
    entries = [hashlog.read(row.entry) for row in journal.rows(bench.db)]
    assert [(entry.kind, entry.task, entry.round) for entry in entries] == [("trained", TASK, 1), ("upload", TASK, 1)]
    assert entries[1].data["epsilon_after"] > 0
    assert (entries[1].data["unit"], entries[1].data["placement"]) == ("record", "local")
    bench.db.execute("DROP TABLE journal")
    with pytest.raises(Exception, match="journal"):
        bench.take_part(bench.fleet.offer(2, unit="record", placement="local"))
    assert bench.db.execute("SELECT count(*) FROM outbox").fetchone() == (1,)
    assert bench.db.execute("SELECT count(*) FROM privacy_spends").fetchone() == (1,)


def signed(size: int, fill: int, time: int = NOW, key: Ed25519PrivateKey = KEY):
    return hashlog.sign_head((size, bytes([fill]) * 32), key, fleet=FLEET, who="aggregator", time=time)


class Witnessing:
    """A device's witness, whose hour is its own."""

    def __init__(self, home: Path) -> None:
        self.db = open_device_db(home / "device.db")
        self.journal = Journal(self.db, lambda: NOW)
        self.start()

    def start(self) -> None:
        self.witness = Witness(self.db, KEY.public_key().public_bytes_raw(), FLEET)

    def shown(self, head: LogHead, now: int = NOW, stated: int = NOW) -> str:
        return self.witness.shown(head, self.journal, now=now, stated=stated)

    def kept(self, conflict: bool = False) -> list[LogHead]:
        return [head for head, against in journal.seen_heads(self.db) if against is conflict]


@pytest.fixture
def seer(tmp_path: Path) -> Witnessing:
    return Witnessing(tmp_path)


def test_a_witness_keeps_the_newest_head_and_every_contradiction(seer):
    assert seer.shown(signed(5, 1)) == ""
    assert seer.shown(signed(9, 2)) == ""
    assert "9 entries, now 5" in seer.shown(signed(5, 1, NOW + 1))
    assert "two different" in seer.shown(signed(9, 3))
    assert "two different" in seer.shown(signed(9, 3)), "each time it is shown"
    with pytest.raises(WrongSignature):
        seer.shown(signed(12, 4, key=Ed25519PrivateKey.generate()))
    seer.start()
    assert seer.witness.newest == signed(9, 2), "it survives a restart"
    assert [hashlog.read(row.entry).kind for row in journal.rows(seer.db)] == ["alarm", "alarm"], "once for each head"
    assert (signed(9, 3), True) in journal.seen_heads(seer.db)


def test_a_witness_keeps_the_first_and_the_last_head_of_an_hour(seer):
    for minute in range(180):
        assert seer.shown(signed(minute + 1, 1, NOW + 60 * minute), NOW + 60 * minute) == ""
    assert [head.size for head in seer.kept()] == [1, 60, 61, 120, 121, 180]


def test_the_hour_is_the_devices_whatever_the_heads_say(seer):
    for size in range(1, 11):
        assert seer.shown(signed(size, 1, NOW), NOW + 86_400) == ""
    assert [head.size for head in seer.kept()] == [1, 10]


def test_no_date_that_the_aggregator_gives_a_head_makes_a_witness_drop_another(seer):
    honest = signed(3, 1)
    assert seer.shown(honest) == ""
    assert "dated 60 s before" in seer.shown(signed(4, 2, NOW - 60), NOW + 2 * 86_400)
    assert seer.shown(signed(5, 3, NOW), NOW + 2 * 86_400) == "", "the hour of the first, two days later"
    assert "after the State" in seer.shown(signed(6, 4, NOW + 9 * 86_400), NOW + 2 * 86_400)
    assert seer.kept() == [honest, signed(5, 3)]
    assert len(seer.kept(conflict=True)) == 2


def test_a_device_whose_clock_stands_still_alarms_for_no_honest_head(seer):
    for day in range(30):
        assert seer.shown(signed(day + 1, 1, NOW + day * 86_400), NOW, NOW + day * 86_400) == ""


def test_a_flood_of_heads_drops_neither_the_oldest_nor_the_newest_and_spares_some_of_every_time(seer, monkeypatch):
    monkeypatch.setattr(journal, "MOST_SEEN", 40)
    for hour in range(400):
        seer.shown(signed(hour + 1, 1, NOW + 3600 * hour), NOW + 3600 * hour, NOW + 3600 * hour)
    sizes = [head.size for head in seer.kept()]
    assert (sizes[0], sizes[-1]) == (1, 400)
    assert len(sizes) <= 40
    assert max(later - earlier for earlier, later in pairwise(sizes)) <= 40


def test_a_flood_of_contradictions_drops_the_first_proof_as_little_and_fills_no_journal(seer):
    seer.db.execute("PRAGMA synchronous = OFF")
    seer.shown(signed(9, 0))
    for fill in range(200):
        assert seer.shown(signed(8, fill))
    assert seer.kept(conflict=True) == [signed(8, fill) for fill in range(journal.MOST_CONFLICTS)]
    assert len(journal.rows(seer.db)) == journal.MOST_CONFLICTS


def forge(book: Book, base: int, fill: bytes = bytes(32)) -> None:
    """A journal of one invented entry, which begins after a head that the forger signs."""
    evil = Ed25519PrivateKey.generate()
    head = hashlog.sign_head((base, fill), evil, fleet=FLEET, who=DEVICE, time=NOW)
    row = hashlog.following((base, fill), at=NOW, kind="upload", task=TASK, number=1, data={"epsilon_after": 0.1})
    with transaction(book.db):
        book.db.execute("DELETE FROM journal")
        book.db.execute("DELETE FROM journal_heads")
        book.db.execute("INSERT INTO journal VALUES (?, ?, ?)", row)
        values = (head.size, head.head, head.time, head.signature, evil.public_key().public_bytes_raw())
        book.db.execute("INSERT INTO journal_heads VALUES (?, ?, ?, ?, ?)", values)


def test_a_journal_that_the_database_alone_makes_up_is_not_signed_away(book):
    proof = (book.home / HEAD_FILE).read_text()
    forge(book, 1_000_000)
    assert book.findings() != []
    later = Book(book.home)
    later.signer.begin(NOW + 9)
    assert later.findings() != []
    assert (later.home / HEAD_FILE).read_text() == proof
    assert [entry.data["reason"] for entry in later.entries() if entry.kind == "alarm"] == ["journal-lost"]
    (later.home / HEAD_FILE).unlink()
    assert "signature" in [reason for _, reason in later.findings()], "its first key was never this device's"


def test_nothing_is_taken_from_the_front_but_what_the_bound_lets_go(book):
    book.write(3)
    book.signer.turn(NOW + 2, all_of_it=True)
    book.db.execute("DELETE FROM journal WHERE n <= 71")
    book.db.execute("DELETE FROM journal_heads WHERE size < 71")
    assert book.findings() == [(71, "removed")]
    later = Book(book.home)
    later.signer.begin(NOW + 9)
    assert "journal-lost" in [entry.data.get("reason") for entry in later.entries()]


def test_what_the_bound_lets_go_to_the_last_entry_is_no_alarm(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "MOST_ENTRIES", 100)
    monkeypatch.setattr(journal, "LEFT_ENTRIES", 100)
    made = Book(tmp_path)
    made.signer.begin(NOW)
    made.write(100)
    made.signer.turn(NOW + 1)
    assert len(journal.rows(made.db)) == journal.LEFT_ENTRIES
    later = Book(tmp_path)
    later.signer.begin(NOW + 9)
    assert "alarm" not in [entry.kind for entry in later.entries()]
    assert later.findings() == []


def test_a_first_entry_that_was_written_anew_is_found_when_the_device_starts(tmp_path):
    made = Book(tmp_path)
    made.signer.begin(NOW)
    row = hashlog.following((0, hashlog.START), at=NOW, kind="installed", task="", number=0, data={})
    made.db.execute("UPDATE journal SET entry = ?, head = ?", (row.entry, row.head))
    later = Book(tmp_path)
    later.signer.begin(NOW + 9)
    assert [entry.kind for entry in later.entries()] == ["installed", "alarm"]


def test_older_entries_may_end_under_a_key_that_the_device_had_before(book, monkeypatch):
    monkeypatch.setattr(journal, "MOST_ENTRIES", 200)
    monkeypatch.setattr(journal, "LEFT_ENTRIES", 100)
    book.write(150)
    book.signer.turn(NOW + 2)
    later = Book(book.home, Ed25519PrivateKey.generate())
    later.signer.begin(NOW + 3)
    later.write(60)
    later.signer.turn(NOW + 90)
    assert journal.rows(later.db)[0].n > 1
    assert later.findings() == []
    again = Book(later.home, later.key)
    again.signer.begin(NOW + 99)
    assert again.findings() == []
    assert "alarm" not in [entry.kind for entry in again.entries()]


@pytest.mark.parametrize("named", ["zz", "00", ""])
def test_an_identity_that_names_no_key_is_a_finding(book, named):
    book.journal.note("identity", key=named, device=DEVICE, fleet=FLEET)
    assert (72, "signature") in book.findings()


def test_the_command_line_verifies_shows_and_exports(tmp_path, capsys):
    with FakeAggregator(tmp_path) as fake:
        fake.install("churn", MODEL, version=4)
        with fake.client() as fl:
            fl.record("churn", {"minutes": 1.0, "calls": 2}, "yes", subject="anna")
            fl.consent.give("anna", 3)
            fl.forget("anna")
            assert fl.flush(5.0)
    home = ["--home", str(tmp_path)]
    give_identity(fake)
    assert main(["audit", "verify", *home]) == 0
    assert "3 entries hold together; 3 of them" in capsys.readouterr().out
    assert main(["audit", "show", *home, "--json"]) == 0
    out = capsys.readouterr().out
    shown = [json.loads(line) for line in out.splitlines()]
    assert [entry["kind"] for entry in shown] == ["identity", "consent-given", "forgotten"]
    assert "anna" not in out, "the journal counts, and names nobody"
    assert main(["audit", "head", *home]) == 0
    assert json.loads(capsys.readouterr().out) == {"heads": []}
    with contextlib.closing(open_device_db(tmp_path / "device.db")) as db:
        db.execute("DELETE FROM journal WHERE n = 2")
    assert main(["audit", "verify", *home]) == 1
    assert "entry 2 is missing" in capsys.readouterr().err
    assert main(["audit", "verify", *home, "--json"]) == 1
    verdict = json.loads(capsys.readouterr().out)
    assert (verdict["ok"], verdict["findings"][0]["entry"]) == (False, 2)


def give_identity(fake: FakeAggregator) -> None:
    """What enrolment would have left on the disk."""
    authority = create_authority(fake.home / "ca", b"correct horse", fleet=fake.fleet, now=NOW)
    folder = private_directory(fake.home / "identity")
    fake.keys.save(folder)
    save_bundle(folder, authority.bundle(broker_host="localhost", broker_port=1, tuf_root="{}"))
    issued = authority.issue(fake.keys.request(fake.fleet, fake.device), now=NOW)
    write_private(folder / "device.crt", issued.chain_pem.encode())


def test_heads_that_an_older_version_kept_are_kept_with_the_time_they_were_dated(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "device.db")) as old:
        old.executescript(";".join(device_db.MIGRATIONS[:4]) + "; PRAGMA user_version = 4")
        for head, conflict in ((signed(5, 1), 0), (signed(9, 2, NOW + 60), 0), (signed(9, 3), 1)):
            values = (head.size, head.head, head.time, head.signature, conflict)
            old.execute("INSERT INTO seen_heads VALUES (?, ?, ?, ?, ?)", values)
        old.commit()
    seer = Witnessing(tmp_path)
    assert seer.witness.newest == signed(9, 2, NOW + 60)
    assert seer.shown(signed(10, 4, NOW + 120), NOW + 120) == ""
    assert [head.size for head in seer.kept()] == [5, 10]
    assert seer.kept(conflict=True) == [signed(9, 3)]
