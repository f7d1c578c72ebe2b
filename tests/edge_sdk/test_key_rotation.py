"""A member's epoch key changes with time, and what was sealed to the one before cannot be opened from its disk."""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from fleet_of_eight import FLEET, NOW, TASK, FleetOfEight

from edge_sdk.config import Config
from edge_sdk.device_db import TIME_FLOOR, open_device_db, raise_fact
from edge_sdk.device_status import read_status
from edge_sdk.held_offers import OPENING_S, HeldOffers
from edge_sdk.identity.epoch_keys import EpochKeys
from edge_sdk.key_rotation import AFTER_FAILURE_S, LOOK_S, TELL_AGAIN_S, KeyRotation
from edge_sdk.protocol import codec, roster
from edge_sdk.protocol.errors import OpeningRefused, WrongSeal
from edge_sdk.protocol.messages import EpochKey, Offer, OpeningRequest
from edge_sdk.protocol.sealing import open_share
from edge_sdk.protocol.secagg.client import share_info
from edge_sdk.testing import FakeAggregator

DAY = 86_400


def state_roster(fleet: FleetOfEight, device: str, key: bytes, epoch: int) -> roster.Roster:
    """A roster in which this is the device's epoch key; among the fleet's blobs from then on."""
    entries = [msgspec.structs.replace(m.entry, epoch_key=key) if m.name == device else m.entry for m in fleet.members]
    signed = roster.sign(
        roster.freeze(entries), fleet.authority, fleet=FLEET, epoch=epoch, beacon=bytes(32), issued_at=NOW,
        expires_at=NOW + 9 * DAY,
    )  # fmt: skip
    fleet.blobs[f"roster/{epoch}"] = signed.to_blob()
    public = fleet.authority.public_key().public_bytes_raw()
    return roster.verify(
        signed.statement, signed.signature, public, fleet=FLEET, entries=signed.entries, now=NOW, min_epoch=1
    )


class Machine:
    """One member's files and what it knows of its fleet. `start` forgets all that is not on the disk."""

    def __init__(self, home: Path) -> None:
        self.home, self.fleet = home, FleetOfEight()
        self.me = self.fleet.members[2]
        self.tick, self.epoch = 0.0, 1
        self.start()

    def start(self) -> None:
        self.db = open_device_db(self.home / "device.db")
        self.held = HeldOffers(self.db)
        self.keys = EpochKeys(self.home / "identity", self.me)
        self.rotation = KeyRotation(
            self.keys, self.db, self.held, self.me.name, epoch_key_s=DAY, entropy=os.urandom, born_at=NOW - DAY // 2
        )

    def turn(self, now: float = NOW, passed: float = LOOK_S, clock: float | None = None) -> EpochKey | None:
        """`clock`: the device's own, where it is not the verified time `now`."""
        self.tick += passed
        return self.rotation.turn(int(now), self.tick, int(now if clock is None else clock))

    def state(self, key: bytes) -> roster.Roster:
        """The authority names this key of ours in the next roster."""
        self.epoch += 1
        return state_roster(self.fleet, self.me.name, key, self.epoch)

    def hold(self, number: int, known: roster.Roster | None = None, task: str = TASK, **changes: object) -> Offer:
        """An offer that this device verified, as `RoundWork.judge` leaves it."""
        offer = msgspec.structs.replace(self.fleet.offer(number, known), task=task, **changes)
        raise_fact(self.db, "epoch", offer.secagg.epoch)
        self.held.hold(self.fleet.frame(offer), offer, self.fleet.blobs[f"roster/{offer.secagg.epoch}"])
        self.rotation.look_now()
        return offer

    def change(self, task: str = "other") -> bytes:
        """From an old key to one that a roster names; the next key's public half."""
        self.rotation.heard(self.epoch)
        told = self.turn(NOW + DAY)
        assert told is not None
        self.hold(1, self.state(told.key), task)
        return told.key

    def answered(self, task: str, number: int) -> None:
        self.db.execute("INSERT INTO answers VALUES (?, ?, ?, ?)", (task, number, bytes(32), b"sealed"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def secrets_on(folder: Path) -> list[X25519PrivateKey]:
    """Every X25519 key that a thief of the disk finds, whatever file it is in."""
    found = []
    for path in filter(Path.is_file, folder.rglob("*")):
        for block in re.findall(rb"-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----\n", path.read_bytes(), re.S):
            key = load_pem_private_key(block, None)
            found += [key] if isinstance(key, X25519PrivateKey) else []
    return found


def opens(folder: Path, sealed: bytes, info: bytes) -> bool:
    """Whether what is on the disk opens a share that was captured on its way."""
    for key in secrets_on(folder):
        try:
            open_share(sealed, key, info)
        except WrongSeal:
            continue
        return True
    return False


def test_a_young_key_stays_and_an_old_one_gets_a_successor_that_is_told_for_the_next_roster(machine):
    machine.rotation.heard(4)
    assert machine.turn(NOW) is None, "half a day old"
    told = machine.turn(NOW + DAY // 2)
    assert told == EpochKey(5, machine.keys.next)
    assert machine.keys.current != told.key


def test_the_age_survives_a_restart_and_a_clock_in_1970(machine):
    machine.turn(NOW)
    machine.start()
    machine.turn(0)
    machine.rotation.heard(1)
    machine.turn(NOW + DAY // 2 - 1)
    assert machine.keys.next is None, "not older than before"
    machine.turn(NOW + DAY // 2)
    assert machine.keys.next is not None, "nor younger"


def test_a_clock_that_was_ahead_once_does_not_keep_a_key_for_years(machine):
    machine.rotation.heard(1)
    ahead = NOW + 3000 * DAY
    told = machine.turn(ahead)
    machine.hold(1, machine.state(told.key))
    machine.turn(ahead)
    assert (machine.keys.current, machine.keys.older) == (told.key, None)
    machine.start()
    machine.turn(NOW)
    machine.rotation.heard(2)
    machine.turn(NOW)
    machine.turn(NOW + DAY - 1)
    assert machine.keys.next is None
    machine.turn(NOW + DAY)
    assert machine.keys.next is not None


def test_one_signed_time_that_is_ahead_neither_stops_the_change_of_keys_nor_hides_their_age(machine):
    machine.rotation.heard(1)
    lie = NOW + 7 * DAY
    raise_fact(machine.db, TIME_FLOOR, lie)
    told = machine.turn(lie, clock=NOW)
    machine.hold(1, machine.state(told.key))
    machine.turn(lie, clock=NOW)
    machine.start()
    machine.rotation.heard(2)
    machine.turn(lie, clock=NOW + DAY - 1)
    assert machine.keys.next is None
    assert read_status(Config(home=machine.home), NOW + DAY - 1)["epoch_key"]["age_s"] == DAY - 1
    machine.turn(lie, clock=NOW + DAY)
    assert machine.keys.next is not None


def test_a_clock_that_starts_in_1970_every_time_does_not_change_the_key_every_time(machine):
    machine.rotation.heard(1)
    machine.turn(NOW, clock=5)
    machine.turn(NOW + 60, clock=NOW + 60)
    machine.turn(NOW + 61, clock=3)
    machine.turn(NOW + 70, clock=NOW + 70)
    assert machine.keys.next is None


def test_the_same_key_is_told_until_a_roster_names_it_and_no_other_is_made(machine):
    machine.rotation.heard(1)
    told = machine.turn(NOW + DAY)
    assert machine.turn(NOW + DAY) is None
    assert machine.turn(NOW + DAY, TELL_AGAIN_S) == told, "after a while"
    machine.rotation.connected()
    assert machine.turn(NOW + DAY) == told, "over a new connection"
    machine.rotation.heard(7)
    assert machine.turn(NOW + 9 * DAY) == EpochKey(8, told.key), "a roster came that does not name it"
    machine.hold(1, machine.state(told.key))
    assert machine.turn(NOW + DAY, TELL_AGAIN_S) is None
    assert machine.keys.current == told.key


def test_nothing_is_told_before_the_aggregator_said_which_roster_is_the_newest(machine):
    assert machine.turn(NOW + DAY) is None
    machine.rotation.heard(0)
    assert machine.turn(NOW + DAY) == EpochKey(1, machine.keys.next)


def test_an_epoch_from_the_end_of_the_range_makes_no_message_that_cannot_be_sent(machine):
    machine.rotation.heard(2**40)
    assert codec.pack(machine.turn(NOW + DAY))


def test_after_a_crash_between_saving_and_telling_the_saved_key_is_told(machine):
    machine.rotation.heard(1)
    machine.turn(NOW + DAY)  # what it says is lost
    saved = machine.keys.next
    assert saved is not None
    machine.start()
    machine.rotation.heard(1)
    assert machine.turn(NOW + DAY) == EpochKey(2, saved)


def test_after_a_crash_between_telling_and_the_roster_the_key_still_takes_over(machine):
    machine.rotation.heard(1)
    told = machine.turn(NOW + DAY)
    machine.start()
    machine.hold(1, machine.state(told.key))
    machine.turn(NOW + DAY)
    assert machine.keys.current == told.key


def test_after_a_crash_between_the_roster_and_the_deletion_the_older_key_goes_all_the_same(machine):
    machine.hold(1)
    key = machine.change()
    machine.start()
    machine.turn(NOW)
    assert (machine.keys.current, machine.keys.older is None) == (key, False)
    machine.answered(TASK, 1)
    machine.start()
    machine.turn(NOW)
    assert machine.keys.publics == (key,)


def test_the_table_follows_the_files_when_a_crash_came_between_them(machine):
    machine.turn(NOW)
    machine.keys.make_next(os.urandom)
    machine.start()
    machine.turn(NOW + 5)
    rows = machine.db.execute("SELECT state, number, made_at FROM epoch_keys ORDER BY number").fetchall()
    assert rows == [("current", 1, NOW - DAY // 2), ("next", 2, NOW + 5)]


def test_an_older_key_is_kept_while_a_round_may_still_be_opened_with_it(machine):
    before = machine.keys.current
    machine.hold(1)
    machine.change()
    machine.turn(NOW)
    assert machine.keys.older == before
    closes_at = machine.fleet.offer().closes_at
    machine.turn(closes_at + OPENING_S - 1)
    assert machine.keys.older == before
    machine.turn(closes_at + OPENING_S)
    assert machine.keys.older is None, "nothing is opened a day after it closed"


@pytest.mark.parametrize("ended_by", ["an answer", "a later round of the task", "not being asked at all"])
def test_an_older_key_goes_as_soon_as_nothing_can_be_asked_of_it(machine, ended_by):
    secagg = machine.fleet.offer().secagg
    if ended_by == "not being asked at all":
        others = tuple(name for name in secagg.committee if name != machine.me.name)
        machine.hold(1, secagg=msgspec.structs.replace(secagg, committee=others))
    else:
        machine.hold(1)
    key = machine.change()
    if ended_by == "an answer":
        machine.turn(NOW)
        assert machine.keys.older is not None
        machine.answered(TASK, 1)
        machine.rotation.look_now()
    elif ended_by == "a later round of the task":
        machine.turn(NOW)
        assert machine.keys.older is not None
        machine.hold(2, machine.state(key))
    machine.turn(NOW)
    assert machine.keys.publics == (key,)


def test_no_third_change_begins_while_the_older_key_is_needed(machine):
    machine.hold(1, closes_at=NOW + 7 * DAY)
    key = machine.change()
    machine.turn(NOW + DAY)
    machine.turn(NOW + 5 * DAY)
    assert (machine.keys.current, machine.keys.next) == (key, None)
    assert machine.keys.older is not None


def test_a_full_disk_makes_no_key_and_is_tried_again(machine, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    machine.turn(NOW)
    machine.rotation.heard(1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            machine.turn(NOW + DAY)
    assert machine.turn(NOW + DAY) is None, "not at every turn"
    assert machine.turn(NOW + DAY, AFTER_FAILURE_S) is not None


def test_forward_secrecy_shares_captured_before_a_change_do_not_open_from_the_disk_after_it(machine):
    offer = machine.hold(1)
    digest = codec.offer_hash(machine.fleet.frame(offer))
    notice, blob = machine.fleet.opening(offer, digest, machine.me.name)
    old = machine.me.epoch
    captured = [
        (entry.sealed, share_info(digest, entry.device, machine.me.name, 2))
        for entry in codec.unpack(blob, OpeningRequest).groups[0]
    ]
    assert all(opens(machine.home, *each) for each in captured), "before: a thief of the disk reads them"
    machine.change()
    machine.turn(NOW)
    assert all(opens(machine.home, *each) for each in captured), "the round is open: the member needs the key"
    machine.answered(TASK, 1)
    machine.rotation.look_now()
    machine.turn(NOW)
    assert len(secrets_on(machine.home)) == 1
    assert not any(opens(machine.home, *each) for each in captured)
    raw = old.private_bytes_raw()
    assert not [path for path in machine.home.rglob("*") if path.is_file() and raw in path.read_bytes()]
    assert notice.task == TASK


def test_an_opening_of_a_round_whose_key_is_deleted_is_refused_before_anything_is_fetched(machine):
    from edge_sdk.member_duty import secret_for

    offer = machine.hold(1)
    entries = roster.from_blob(machine.held.roster_blob(offer.secagg.statement_hash)).entries
    old = machine.me.epoch
    assert secret_for(entries, machine.me.name, machine.keys.find) is old
    machine.answered(TASK, 1)
    machine.change()
    machine.turn(NOW)
    with pytest.raises(OpeningRefused) as refused:
        secret_for(entries, machine.me.name, machine.keys.find)
    assert refused.value.reason == "wrong-seal"


def told_to(fake: FakeAggregator) -> list[EpochKey]:
    return [message for message in fake.received if isinstance(message, EpochKey)]


def test_a_client_tells_one_next_key_over_restarts_and_its_status_says_number_and_age(tmp_path):
    with FakeAggregator(tmp_path) as fake:
        with fake.client() as fl:
            assert fake.wait_for(lambda: fl.status()["epoch_key"].get("number") == 1)
            fake.clock.advance(7200)
            assert fl.status()["epoch_key"] == {"number": 1, "age_s": 7200, "next_sent": False, "older_kept": False}
        for _ in range(2):
            with fake.client(epoch_key_s=3600) as fl:
                seen = len(told_to(fake))
                assert fake.wait_for(lambda seen=seen: len(told_to(fake)) > seen)
                assert fake.wait_for(lambda: fl.status()["epoch_key"]["next_sent"])
                assert "PRIVATE" not in str(fl.status())
        told = told_to(fake)
        assert {message.key for message in told} == {told[0].key}
        assert told[0].epoch == 2
        assert {key.public_key().public_bytes_raw() for key in secrets_on(tmp_path)} == {
            told[0].key, fake.keys.epoch_public
        }  # fmt: skip


def test_a_client_changes_its_key_when_a_verified_roster_names_it_and_then_holds_one_key(tmp_path):
    fleet, name = FleetOfEight(), "device-1"
    with FakeAggregator(tmp_path, fleet=FLEET, device=name, authority=fleet.authority) as fake:
        fleet.members[1].sign, fleet.members[1].epoch = fake.keys.signing, fake.keys.epoch
        fleet.sign_roster(1, fleet.authority)
        fake.blobs = fleet.blobs.get
        before = fake.keys.epoch_public
        with fake.client(epoch_key_s=3600) as fl:
            fake.publish_offer(fleet.offer(1, state_roster(fleet, name, before, 1)))
            assert fake.wait_for(lambda: HeldOffers(open_device_db(tmp_path / "device.db")).of_round(TASK, 1))
            fake.clock.advance(3600)
            assert fake.wait_for(lambda: told_to(fake) != [])
            told = told_to(fake)[0]
            later = msgspec.structs.replace(
                fleet.offer(2, state_roster(fleet, name, told.key, told.epoch)), closes_at=NOW + 9000
            )
            fake.publish_offer(later)
            assert fake.wait_for(lambda: fl.status()["epoch_key"]["number"] == 2)
            assert fake.wait_for(lambda: not fl.status()["epoch_key"]["older_kept"]), "round 1 gave way to round 2"
            assert [key.public_key().public_bytes_raw() for key in secrets_on(tmp_path)] == [told.key]
            assert fl.status()["refusals"].get("roster") is None
            fake.publish_offer(msgspec.structs.replace(later, round=3, secagg=msgspec.structs.replace(
                later.secagg, statement_hash=(old := state_roster(fleet, name, before, 3)).statement_hash, epoch=3
            )))  # fmt: skip
            assert old.epoch == 3
            assert fake.wait_for(lambda: fl.status()["refusals"].get("roster") == 1), "a key it no longer holds"


def test_a_device_database_of_the_version_before_is_taken_over(tmp_path):
    connection = sqlite3.connect(tmp_path / "device.db", isolation_level=None)
    from edge_sdk.device_db import MIGRATIONS

    connection.executescript(MIGRATIONS[0] + "PRAGMA user_version = 1;")
    connection.close()
    machine = Machine(tmp_path)
    machine.turn(NOW)
    assert machine.db.execute("SELECT state, number FROM epoch_keys").fetchall() == [("current", 1)]
