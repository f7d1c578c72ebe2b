"""The device's journal: written with what it pays for, signed by the device's key, bounded, touched and found."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fleet_of_eight import MODEL, TASK
from test_round_work import Bench

from aggregator.fleet.authority import create_authority
from edge_sdk import journal
from edge_sdk.cli import main
from edge_sdk.device_db import open_device_db, transaction
from edge_sdk.identity.keys import private_directory, write_private
from edge_sdk.identity.trust import save_bundle
from edge_sdk.journal import HEAD_FILE, Journal, JournalSigner, Witness
from edge_sdk.protocol import hashlog
from edge_sdk.protocol.errors import WrongSignature
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


def test_a_witness_keeps_the_newest_head_and_every_contradiction(tmp_path):
    db = open_device_db(tmp_path / "device.db")
    note = Journal(db, lambda: NOW)
    witness = Witness(db, KEY.public_key().public_bytes_raw(), FLEET)
    assert witness.shown(signed(5, 1), note) == ""
    assert witness.shown(signed(9, 2), note) == ""
    assert "9 entries, now 5" in witness.shown(signed(5, 1, NOW + 1), note)
    assert "two different" in witness.shown(signed(9, 3), note)
    assert "two different" in witness.shown(signed(9, 3), note), "each time it is shown"
    with pytest.raises(WrongSignature):
        witness.shown(signed(12, 4, key=Ed25519PrivateKey.generate()), note)
    again = Witness(db, KEY.public_key().public_bytes_raw(), FLEET)
    assert again.newest == signed(9, 2), "it survives a restart"
    assert [hashlog.read(row.entry).kind for row in journal.rows(db)] == ["alarm", "alarm"], "once for each head"
    assert (signed(9, 3), True) in journal.seen_heads(db)


def test_a_witness_keeps_one_head_an_hour(tmp_path):
    db = open_device_db(tmp_path / "device.db")
    witness = Witness(db, KEY.public_key().public_bytes_raw(), FLEET)
    for minute in range(180):
        assert witness.shown(signed(minute + 1, 1, NOW + 60 * minute), None) == ""
    assert [head.size for head, _ in journal.seen_heads(db)] == [60, 120, 180]


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
