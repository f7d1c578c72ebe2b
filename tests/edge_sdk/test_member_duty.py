"""A committee member answers once per (task, round), and never where one device could be learnt."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from fleet_of_eight import TASK, FleetOfEight

from edge_sdk import member_duty
from edge_sdk.device_db import open_device_db
from edge_sdk.held_offers import HeldOffer, HeldOffers
from edge_sdk.protocol import chunks, codec
from edge_sdk.protocol.errors import OpeningRefused
from edge_sdk.protocol.messages import OpeningNotice, OpeningRequest, Share, ShareBody


class Duty:
    """A member, its disk, and an offer that it verified."""

    def __init__(self, home: Path) -> None:
        self.fleet, self.home = FleetOfEight(), home
        self.me = self.fleet.members[2]
        self.offer = self.fleet.offer()
        self.frame = self.fleet.frame(self.offer)
        self.digest = codec.offer_hash(self.frame)
        self.db = open_device_db(home / "device.db")
        HeldOffers(self.db).hold(self.frame, self.offer, self.fleet.blobs["roster/1"])
        self.keys = {m.name: m.entry.sign_key for m in self.fleet.members}

    def ask(self, notice: OpeningNotice, blob: bytes, held: HeldOffer | None = None, device: str = "") -> Share:
        """What the conversation does with a notice and the blob it names."""
        stored = member_duty.stored_answer(self.db, notice)
        if stored is not None:
            return stored
        request = member_duty.read_request(notice, blob)
        return member_duty.answer(
            self.db, notice, request, held or HeldOffers(self.db).find(request.offer_hash),
            device=device or self.me.name, secret=self.me.epoch, sign_keys=self.keys,
        )  # fmt: skip

    def opening(self, devices: int = 6) -> tuple[OpeningNotice, bytes]:
        return self.fleet.opening(self.offer, self.digest, self.me.name, devices)

    def refused(self, *arguments: object) -> str:
        with pytest.raises(OpeningRefused) as refusal:
            self.ask(*arguments)  # type: ignore[arg-type]
        return refusal.value.reason


@pytest.fixture
def duty(tmp_path: Path) -> Duty:
    return Duty(tmp_path)


def test_the_answer_opens_under_the_round_key_and_names_the_member(duty):
    share = duty.ask(*duty.opening())
    plain = duty.fleet.round_key.open(share.sealed, chunks.share_info(duty.digest, duty.me.name))
    body = codec.unpack(plain, ShareBody)
    assert (body.offer_hash, body.member, len(body.sums)) == (duty.digest, 3, 1)


def test_asked_again_it_sends_the_same_bytes_even_after_a_restart(duty):
    notice, blob = duty.opening()
    first = duty.ask(notice, blob)
    duty.db.close()
    duty.db = open_device_db(duty.home / "device.db")
    assert duty.ask(notice, blob) == first


def test_of_two_connections_that_answer_at_once_one_answer_counts(duty):
    notice, blob = duty.opening()
    start = threading.Barrier(2)

    def race() -> Share:
        db = open_device_db(duty.home / "device.db")
        request, held = member_duty.read_request(notice, blob), HeldOffers(db).find(duty.digest)
        start.wait()
        try:
            return member_duty.answer(
                db, notice, request, held, device=duty.me.name, secret=duty.me.epoch, sign_keys=duty.keys
            )
        finally:
            db.close()

    with ThreadPoolExecutor(2) as pool:
        first, second = [racer.result() for racer in [pool.submit(race), pool.submit(race)]]
    assert first == second
    assert duty.db.execute("SELECT sealed FROM answers").fetchall() == [(first.sealed,)]
    # Whoever comes later with another list, and did not look first, is refused in the transaction.
    other, theirs = duty.opening(7)
    with pytest.raises(OpeningRefused) as refused:
        member_duty.answer(
            duty.db, other, member_duty.read_request(other, theirs), HeldOffers(duty.db).find(duty.digest),
            device=duty.me.name, secret=duty.me.epoch, sign_keys=duty.keys,
        )  # fmt: skip
    assert refused.value.reason == "answered"


def test_another_list_for_the_same_round_is_refused(duty):
    duty.ask(*duty.opening(6))
    assert duty.refused(*duty.opening(5)) == "answered"


def test_another_offer_for_the_same_round_is_refused_after_an_answer(duty):
    duty.ask(*duty.opening())
    other = msgspec.structs.replace(duty.offer, closes_at=duty.offer.closes_at + 1)
    digest = codec.offer_hash(duty.fleet.frame(other))
    notice, blob = duty.fleet.opening(other, digest, duty.me.name)
    assert duty.refused(notice, blob, HeldOffer(other, digest)) == "answered"


def test_an_offer_it_did_not_verify_itself_is_not_answered_for(duty):
    digest = hashlib.sha256(b"never seen").digest()
    assert duty.refused(*duty.fleet.opening(duty.offer, digest, duty.me.name)) == "unknown-offer"


def test_an_offer_of_another_round_is_not_answered_for(duty):
    notice, blob = duty.opening()
    request = msgspec.structs.replace(codec.unpack(blob, OpeningRequest), round=2)
    blob = codec.pack(request)
    notice = OpeningNotice(TASK, 2, len(blob), hashlib.sha256(blob).digest())
    assert duty.refused(notice, blob) == "unknown-offer"


def test_who_is_not_in_the_committee_does_not_answer(duty):
    assert duty.refused(*duty.opening(), None, "device-99") == "not-member"


def test_fewer_devices_than_the_offer_promises_are_refused_and_nothing_is_stored(duty):
    assert duty.refused(*duty.opening(4))
    assert duty.db.execute("SELECT * FROM answers").fetchall() == []
    assert duty.ask(*duty.opening(6))


def test_a_request_that_the_notice_does_not_name_is_refused(duty):
    notice, blob = duty.opening()
    assert duty.refused(notice, blob + b"\x00") == "digest"
