"""The aggregator's audit log: written with what it records, signed, witnessed, and found out where it was touched."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from small_fleet import FLEET, START, SmallFleet, add_device, make_home, public

from aggregator import audit
from aggregator.audit import HEAD_FILE, Audit, HeadsRefused
from aggregator.home import Home
from aggregator.store import audit_log
from aggregator.store.schema import open_database
from aggregator.store.store import Store
from edge_sdk.conversation import Conversation, Speaker
from edge_sdk.device_db import counters, open_device_db
from edge_sdk.identity.epoch_keys import EpochKeys
from edge_sdk.identity.keys import DeviceKeys
from edge_sdk.journal import Journal, heads_json, seen_heads
from edge_sdk.protocol import hashlog, topics
from edge_sdk.protocol.errors import LocalProtocolError
from edge_sdk.protocol.hashlog import Evidence
from edge_sdk.transport.interface import Callbacks

KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw()


class Books:
    """A store with an audit log that is signed, and nothing else."""

    def __init__(self, path: Path) -> None:
        self.home = Home(path)
        self.home.prepare()
        self.store = Store(open_database(self.home.database))
        self.audit = Audit(self.store, KEY, FLEET, path)

    def write(self, count: int, at: float = START, kind: str = "upload") -> None:
        for number in range(count):
            with self.store.transaction():
                audit_log.append(self.store.connection, at, kind, "churn", 1, device=f"d-{number}")

    def execute(self, *words: str) -> None:
        """What somebody does who holds the database."""
        for statement in words:
            self.store.connection.execute(statement)

    def findings(self, *witnesses: Evidence) -> list[tuple[int, str]]:
        return [f[:2] for f in audit.check(self.store, self.home.path, PUBLIC, FLEET, witnesses).findings]

    def restart(self) -> Books:
        self.store.connection.close()
        return Books(self.home.path)


@pytest.fixture
def books(tmp_path: Path) -> Books:
    made = Books(tmp_path / "home")
    made.audit.begin(START)
    made.write(70)
    made.audit.due(START + 1)
    return made


def test_an_entry_shares_the_fate_of_what_it_records(books):
    def charge() -> None:
        with books.store.transaction():
            books.store.set_value("epsilon", 3.0)
            audit_log.append(books.store.connection, START, "charge")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        charge()
    assert books.store.value("epsilon") is None
    assert audit_log.last(books.store.connection)[0] == 71
    with pytest.raises(LocalProtocolError):
        audit_log.append(books.store.connection, START, "charge")


def test_it_signs_after_64_entries_or_a_minute_and_at_the_end(books):
    assert [proof.head.size for proof in audit_log.heads(books.store.connection)] == [1, 71]
    books.write(1)
    books.audit.due(START + 59)
    assert books.audit.newest.size == 71
    books.audit.due(START + 62)
    assert books.audit.newest.size == 72
    books.audit.due(START + 200)
    assert books.audit.newest.time == START + 62, "nothing new, nothing to sign"
    books.audit.end(START + 201)
    assert books.audit.newest.size == 73
    (beside,) = audit.read_heads(books.home.path / HEAD_FILE)
    assert beside.head == books.audit.newest
    assert books.findings() == []


def test_a_crash_between_an_entry_and_its_signature_loses_neither(books):
    books.write(5)
    later = books.restart()
    assert later.findings() == []
    later.audit.begin(START + 9)
    assert later.audit.newest.size == 77
    assert later.findings() == []
    assert later.store.value(audit.ALARMS) is None


def test_a_crash_between_the_table_and_the_file_is_no_alarm(books):
    old = (books.home.path / HEAD_FILE).read_bytes()
    books.write(70)
    books.audit.due(START + 2)
    (books.home.path / HEAD_FILE).write_bytes(old)
    later = books.restart()
    later.audit.begin(START + 9)
    assert later.findings() == []
    assert later.store.value(audit.ALARMS) is None


def test_a_service_that_lacks_the_head_of_its_own_newest_checkpoint_says_so(books):
    books.execute("DELETE FROM audit_log WHERE n > 40")
    (books.home.path / HEAD_FILE).unlink()
    later = books.restart()
    later.audit.begin(START + 9)
    (alarm,) = later.store.value(audit.ALARMS)
    assert (alarm["size"], alarm["source"]) == (71, "its newest checkpoint")


def test_no_head_is_dated_before_the_one_before_it_but_where_a_clock_was_a_day_ahead(books):
    books.write(1)
    books.audit.sign(START - 3600)
    assert (books.audit.newest.size, books.audit.newest.time) == (72, START + 1), "the clock was set back an hour"
    books.write(1)
    books.audit.sign(START + 9 * 86_400)
    books.write(1)
    books.audit.sign(START + 60)
    assert (books.audit.newest.size, books.audit.newest.time) == (74, START + 60)


CUT = ("DELETE FROM audit_log WHERE n > 40", "DELETE FROM audit_heads WHERE size > 40")
TOUCHED: dict[str, tuple[tuple[str, ...], list[tuple[int, str]]]] = {
    "changed": (("UPDATE audit_log SET entry = replace(entry, 'd-9', 'd-8') WHERE n = 11",), [(11, "changed")]),
    "bytes": (("UPDATE audit_log SET entry = CAST(x'00' AS BLOB) WHERE n = 11",), [(11, "changed")]),
    "removed": (("DELETE FROM audit_log WHERE n = 20",), [(20, "removed")]),
    "moved": (
        (
            "UPDATE audit_log SET n = -1 WHERE n = 30",
            "UPDATE audit_log SET n = 30 WHERE n = 31",
            "UPDATE audit_log SET n = 31 WHERE n = -1",
        ),
        [(30, "moved")],
    ),
    "cut": (CUT, [(41, "cut")]),
    "emptied": (("DELETE FROM audit_log", "DELETE FROM audit_heads"), [(1, "cut")]),
}


@pytest.mark.parametrize("how", TOUCHED)
def test_what_is_done_to_the_tables_is_found(books, how):
    statements, expected = TOUCHED[how]
    books.execute(*statements)
    assert books.findings() == expected


def test_a_log_cut_together_with_its_file_is_found_by_a_witness(books, tmp_path):
    witness = books.audit.newest
    books.execute(*CUT)
    (books.home.path / HEAD_FILE).unlink()
    assert books.findings() == [], "the machine that was broken into cannot know"
    file = tmp_path / "kiosk-7.heads"
    file.write_text(heads_json([(witness, "kiosk-7")]))
    assert books.findings(*audit.read_heads(file)) == [(41, "cut")]
    books.write(60, kind="invented")
    books.audit.sign(START + 5)
    found = audit.check(books.store, books.home.path, PUBLIC, FLEET, audit.read_heads(file)).findings
    assert [f[:2] for f in found] == [(2, "rewritten")]
    assert "kiosk-7" in found[0].said


def test_heads_signed_anew_by_another_key_prove_nothing(books):
    rows = list(audit_log.rows(books.store.connection))
    forged = hashlog.sign_head((71, rows[70].head), Ed25519PrivateKey.generate(), fleet=FLEET, who="aggregator", time=1)
    books.store.connection.execute("UPDATE audit_heads SET signature = ? WHERE size = 71", (forged.signature,))
    assert books.findings() == [(71, "signature")]


def test_a_service_that_starts_on_a_cut_log_says_so_and_keeps_the_proof(books):
    books.execute(*CUT)
    later = books.restart()
    later.audit.begin(START + 9)
    (alarm,) = later.store.value(audit.ALARMS)
    assert (alarm["size"], alarm["source"]) == (71, HEAD_FILE)
    assert [e[2] for e in later.store.events()][-1] == "alarm"
    assert hashlog.read(list(audit_log.rows(later.store.connection))[-1].entry).kind == "alarm"
    later.write(70)
    later.audit.due(START + 10)
    (beside,) = audit.read_heads(later.home.path / HEAD_FILE)
    assert beside.head.size == 71, "the file is the proof: no newer head is written over it"
    assert later.findings()[0][1] == "rewritten"
    again = later.restart()
    again.audit.begin(START + 99)
    assert len(again.store.value(audit.ALARMS)) == 1, "told once"


def test_refused_messages_are_recorded_in_bulk(books):
    books.store.count_refusals({("hello", "closed"): 7, ("data", "chunk-seal"): 2})
    books.audit.due(START + 3700)
    books.store.count_refusals({("hello", "closed"): 1})
    books.audit.due(START + 3800)
    books.audit.end(START + 3900)
    entries = [hashlog.read(row.entry) for row in audit_log.rows(books.store.connection)]
    assert [entry.data for entry in entries if entry.kind == "refused"] == [
        {"hello/closed": 7, "data/chunk-seal": 2},
        {"hello/closed": 1},
    ]


def _append_many(path: str, word: str, count: int) -> None:
    store = Store(open_database(Path(path)))
    for _ in range(count):
        with store.transaction():
            audit_log.append(store.connection, START, word)
    store.connection.close()


def test_two_processes_append_to_one_chain(books):
    context = multiprocessing.get_context("fork")
    path = str(books.home.database)
    books.store.connection.close()
    workers = [context.Process(target=_append_many, args=(path, word, 50)) for word in ("one", "two")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    later = Books(books.home.path)
    kinds = [hashlog.read(row.entry).kind for row in audit_log.rows(later.store.connection)]
    assert (kinds.count("one"), kinds.count("two"), len(kinds)) == (50, 50, 171)
    assert later.findings() == []


def test_a_file_that_holds_no_heads_is_refused(tmp_path):
    file = tmp_path / "heads"
    for text in ("", "{}", '{"heads": [{"size": -1, "head": "", "time": 0, "signature": ""}]}', '{"heads": 3}'):
        file.write_text(text)
        with pytest.raises(HeadsRefused):
            audit.read_heads(file)
    with pytest.raises(HeadsRefused):
        audit.read_heads(tmp_path / "none")


# -- a whole round, and real devices -----------------------------------------------------------------------------------


def kinds(store: Store) -> list[str]:
    return [hashlog.read(row.entry).kind for row in audit_log.rows(store.connection)]


def test_a_round_leaves_its_whole_story_in_the_log(tmp_path):
    fleet = SmallFleet(tmp_path, count=5)
    fleet.hello_all()
    fleet.task(rounds=1)
    fleet.run(lambda: fleet.phase() == "released")
    fleet.run(lambda: fleet.service.store.task("churn").status == "done")
    found = kinds(fleet.service.store)
    story = ["service-started", "task-created", "release", "roster", "offer", "upload", "sum-opened", "task-done"]
    assert [kind for kind in dict.fromkeys(found) if kind in story] == story
    assert found.count("upload") == 5
    entries = [hashlog.read(row.entry) for row in audit_log.rows(fleet.service.store.connection)]
    opened = next(entry for entry in entries if entry.kind == "sum-opened")
    assert opened.data["devices"] == 5
    assert opened.data["epsilon"] > 0
    released = [entry.data for entry in entries if entry.kind == "release"]
    assert released[-1]["sha256"] == opened.data["sha256"]
    assert released[0]["keys"], "who approved: the key ids of the role that signs releases"
    fleet.service.end()


class RealDevice:
    """A device's own conversation on the memory broker."""

    def __init__(self, fleet: SmallFleet, home: Path, name: str = "kiosk-7") -> None:
        self.keys, self.fleet = DeviceKeys.generate(), fleet
        self.db = open_device_db(home / "device.db")
        self.transport = fleet.broker.transport(name, topics.device_filters(FLEET, name))
        key = public(fleet.service._audit._key)
        speaker = Speaker(FLEET, name, self.keys.sign, key, EpochKeys(home / "identity", self.keys), os.urandom)
        self.talk = Conversation(
            speaker, self.db, home / "outbox", self, heartbeat_s=30.0, silence_s=5.0,
            journal=Journal(self.db, lambda: fleet.now),
        )  # fmt: skip
        arrived = lambda topic, payload: self.talk.message(topic, payload, fleet.now, fleet.now)  # noqa: E731 - one line
        self.transport.start(Callbacks(on_message=arrived))
        self.name, self.sign_key, self.epoch_key = name, self.keys.signing, self.keys.epoch
        add_device(fleet.service.registry, self)  # type: ignore[arg-type] # has a name and two keys, as it asks

    def publish(self, topic: str, payload: bytes, qos: int) -> bool:
        return self.transport.publish(topic, payload, 1)

    def offered(self, frame: bytes, offer: object) -> None: ...
    def hinted(self, task: str) -> None: ...
    def active_models(self) -> dict[str, bytes]:
        return {}

    def phase(self) -> str:
        return "idle"

    def connect(self) -> None:
        """Connect, ask, and take the answer."""
        self.talk.connection(True, self.fleet.now)
        self.talk.turn(self.fleet.now, self.fleet.now)
        for _ in range(4):
            self.fleet.turn(1.1)

    def alarms(self) -> dict[str, int]:
        return counters(self.db, "audit")


@pytest.fixture
def met(tmp_path: Path) -> tuple[SmallFleet, RealDevice]:
    (tmp_path / "device").mkdir()
    fleet = SmallFleet(tmp_path / "home", count=0)
    device = RealDevice(fleet, tmp_path / "device")
    device.connect()
    return fleet, device


def rewrite(fleet: SmallFleet, act: Callable[[sqlite3.Connection], object]) -> None:
    """Stop the service, change its log and forget its heads, start it again."""
    fleet.service.end()
    connection = open_database(fleet.home.database)
    act(connection)
    connection.execute("DELETE FROM audit_heads")
    connection.execute("DELETE FROM audit_witnesses")
    connection.close()
    (fleet.home.path / HEAD_FILE).unlink()
    fleet.start()


def test_a_device_keeps_the_head_and_gives_it_back(met):
    fleet, device = met
    newest = fleet.service._audit.newest
    assert device.talk._witness.newest == newest
    device.connect()
    assert [(p.head, p.source) for p in audit_log.witnessed(fleet.service.store.connection)] == [
        (newest, "witnessed by kiosk-7")
    ]
    assert device.alarms() == {}
    assert fleet.refused("audit", "log-lost") == 0


def test_a_log_cut_short_alarms_the_device_and_the_aggregator(met, tmp_path):
    fleet, device = met
    for _ in range(5):
        with fleet.service.store.transaction():
            audit_log.append(fleet.service.store.connection, fleet.now, "revoked", device="kiosk-1")
    fleet.now += 61
    fleet.turn()
    device.connect()
    shown = device.talk._witness.newest
    rewrite(fleet, lambda c: c.execute("DELETE FROM audit_log WHERE n > 2"))
    device.connect()
    assert device.alarms() == {"log-conflict": 1}
    entries = [hashlog.read(row[0]) for row in device.db.execute("SELECT entry FROM journal")]
    assert [entry.kind for entry in entries] == ["alarm"]
    assert fleet.refused("audit", "log-lost") == 1
    assert "alarm" in kinds(fleet.service.store)
    assert fleet.service.store.value(audit.ALARMS)[0]["head"] == shown.head.hex()
    # What the device holds proves it to anybody, also after the log has grown again.
    file = tmp_path / "heads"
    file.write_text(heads_json((head, "kiosk-7") for head, _ in seen_heads(device.db)))
    for _ in range(20):
        with fleet.service.store.transaction():
            audit_log.append(fleet.service.store.connection, fleet.now, "invented")
    key = public(fleet.service._audit._key)
    found = audit.check(fleet.service.store, fleet.home.path, key, FLEET, audit.read_heads(file)).findings
    assert "rewritten" in [f.reason for f in found]


def test_two_logs_of_one_length_alarm_the_device(met):
    fleet, device = met
    size = fleet.service._audit.newest.size

    def another(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM audit_log")
        for _ in range(size - 1):  # the start of the service is the last
            connection.execute("BEGIN IMMEDIATE")
            audit_log.append(connection, START, "invented")
            connection.execute("COMMIT")

    rewrite(fleet, another)
    device.connect()
    assert device.alarms() == {"log-conflict": 1}
    assert [conflict for _, conflict in seen_heads(device.db)] == [False, True]


def test_a_head_that_the_aggregator_never_signed_is_counted_and_nothing_more(met):
    fleet, device = met
    newest = device.talk._witness.newest
    forged = hashlog.sign_head((99, bytes(32)), KEY, fleet=FLEET, who="aggregator", time=1)
    device.talk._witness.newest = forged
    device.connect()
    assert fleet.refused("audit", "witness-signature") == 1
    assert fleet.service.store.value(audit.ALARMS) is None
    assert newest is not None


def test_a_home_without_a_service_verifies_after_enrolments_from_other_processes(tmp_path):
    home = make_home(tmp_path)
    store = Store(open_database(home.database))
    assert audit.check(store, home.path, PUBLIC, FLEET).findings == ()
    store.connection.close()
