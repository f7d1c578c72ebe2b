"""Whatever arrives, the conversation counts it by reason and goes on."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable

import msgspec
import pytest
from fleet_of_eight import FLEET, NOW, TASK, FleetOfEight
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk.conversation import Conversation, Speaker
from edge_sdk.device_db import TIME_FLOOR, TIME_LATEST, counters, fact, open_device_db, raise_fact
from edge_sdk.identity.epoch_keys import EpochKeys
from edge_sdk.privacy.accounting import compose, subsampled_gaussian
from edge_sdk.privacy.curves import pack
from edge_sdk.privacy.ledger import Ledger
from edge_sdk.protocol import codec, topics
from edge_sdk.protocol.messages import (
    UP,
    Ack,
    Ask,
    Block,
    Echo,
    Get,
    Grant,
    Heartbeat,
    Message,
    Offer,
    OpeningNotice,
    Receipt,
    Refusal,
    Report,
    Share,
    Spent,
    State,
)


class Desk:
    """A conversation whose host writes everything down."""

    def __init__(self, home) -> None:
        self.fleet = FleetOfEight()
        self.me = self.fleet.members[2]
        self.home = home
        self.db = open_device_db(home / "device.db")
        speaker = Speaker(
            FLEET, self.me.name, self.me.sign.sign, self.fleet.aggregator.public_key().public_bytes_raw(),
            EpochKeys(home / "identity", self.me), os.urandom,
        )  # fmt: skip
        self.sent: list[Message] = []
        self.offers: list[Offer] = []
        self.hints: list[str] = []
        self.talk = Conversation(speaker, self.db, home / "outbox", self, heartbeat_s=30.0, silence_s=5.0)

    def publish(self, topic: str, payload: bytes, qos: int) -> bool:
        public = self.me.entry.sign_key
        self.sent.append(
            codec.decode(
                payload, fleet=FLEET, sender=self.me.name, recipient="aggregator", public_key=public, accepted=UP
            )
        )
        return True

    def offered(self, frame: bytes, offer: Offer) -> None:
        self.offers.append(offer)

    def hinted(self, task: str) -> None:
        self.hints.append(task)

    def active_models(self) -> dict[str, bytes]:
        return {}

    def phase(self) -> str:
        return "idle"

    def say(self, message: Message, recipient: str = "", change: Callable[[bytes], bytes] = bytes) -> None:
        everybody = recipient == "all"
        to = recipient or self.me.name
        frame = codec.encode(message, fleet=FLEET, sender="aggregator", recipient=to, sign=self.fleet.aggregator.sign)
        topic = topics.to_all(FLEET, message.topic) if everybody else topics.down(FLEET, self.me.name, message.topic)
        self.talk.message(topic, change(frame), 1.0, NOW)

    def refusals(self) -> dict[str, int]:
        return counters(self.db, "refusal")

    def last(self, kind: type[Message]) -> Message:
        return [message for message in self.sent if isinstance(message, kind)][-1]


@pytest.fixture
def desk(tmp_path) -> Desk:
    made = Desk(tmp_path)
    made.talk.connection(True, 0.0)
    made.talk.turn(0.0, NOW)
    return made


def test_on_every_connect_it_beats_and_asks(desk):
    assert {type(message) for message in desk.sent} == {Heartbeat, Ask}


def test_a_state_brings_offers_and_openings_and_the_time(desk):
    offer = desk.fleet.offer()
    notice, _ = desk.fleet.opening(offer, codec.offer_hash(desk.fleet.frame(offer)), desk.me.name)
    asked = desk.last(Ask)
    desk.say(State(asked.nonce, NOW + 5000, 1, (desk.fleet.frame(offer),), (notice,), None, 60))
    assert desk.offers == [offer]
    assert desk.talk.now(0.0) == NOW + 5000, "a clock in 1970 costs nothing"
    desk.talk.turn(2.0, NOW)
    assert desk.refusals() == {"unknown-offer": 1}, "it did not verify that offer itself"
    assert not desk.talk.blobs.busy
    assert desk.last(Report).reason == "unknown-offer"


def test_a_state_that_was_not_asked_for_is_refused(desk):
    desk.say(State(bytes(8), NOW, 1, (), (), None, 60))
    asked = desk.last(Ask)
    desk.say(State(asked.nonce, NOW, 1, (), (), None, 60))
    desk.say(State(asked.nonce, NOW, 1, (), (), None, 60))
    assert desk.refusals() == {"nonce": 2}


def test_an_opening_is_answered_once_and_with_the_same_bytes(desk):
    offer = desk.fleet.offer()
    frame = desk.fleet.frame(offer)
    desk.talk._held.hold(frame, offer, desk.fleet.blobs["roster/1"])
    notice, blob = desk.fleet.opening(offer, codec.offer_hash(frame), desk.me.name)
    for tick in (2.0, 3.0):
        desk.say(notice)
        desk.talk.turn(tick, NOW)
        if tick == 2.0:
            get = desk.last(Get)
            desk.say(Block(get.request, get.path, 0, len(blob), True, blob[: get.length]))
            desk.talk.turn(2.5, NOW)
    shares = [message for message in desk.sent if isinstance(message, Share)]
    assert len(shares) == 2
    assert shares[0] == shares[1]


def hold(desk: Desk, number: int = 1, task: str = TASK) -> Offer:
    offer = msgspec.structs.replace(desk.fleet.offer(number), task=task)
    desk.talk._held.hold(desk.fleet.frame(offer), offer, desk.fleet.blobs["roster/1"])
    return offer


def test_openings_nobody_offered_or_larger_than_the_roster_allows_are_not_fetched(desk):
    offer = hold(desk)
    _, blob = desk.fleet.opening(offer, codec.offer_hash(desk.fleet.frame(offer)), desk.me.name, devices=8)
    for number in range(2, 500):
        desk.say(OpeningNotice(TASK, number, 1000, bytes(32)))
    desk.say(OpeningNotice(TASK, 1, 3 * len(blob), bytes(32)))
    assert desk.refusals() == {"unknown-offer": 498, "size": 1}
    assert not desk.talk.blobs.busy
    desk.say(OpeningNotice(TASK, 1, len(blob), bytes(32)))
    assert desk.talk.blobs.busy, "all eight devices fit"


def test_at_most_sixteen_openings_are_fetched_at_a_time_even_over_reconnects(desk):
    for number in range(1, 21):
        hold(desk, number)
    for _ in range(2):
        for number in range(1, 21):
            desk.say(OpeningNotice(TASK, number, 1000, bytes(32)))
        desk.talk.connection(True, 1.0)
    assert len(desk.talk.blobs._fetches) == 16
    assert desk.refusals() == {"busy": 8}


def test_offers_of_the_newest_64_tasks_are_held_and_older_ones_go(desk):
    for number in range(70):
        hold(desk, task=f"task-{number}")
    kept = {number for number in range(70) if desk.talk._held.of_round(f"task-{number}", 1)}
    assert kept == set(range(6, 70))


def test_a_round_key_of_low_order_does_not_raise_out_of_an_opening(desk):
    offer = desk.fleet.offer()
    offer = msgspec.structs.replace(offer, round_key=offer.round_key[:1184] + bytes(32))
    frame = desk.fleet.frame(offer)
    desk.talk._held.hold(frame, offer, desk.fleet.blobs["roster/1"])
    notice, blob = desk.fleet.opening(offer, codec.offer_hash(frame), desk.me.name)
    desk.say(notice)
    desk.talk.turn(2.0, NOW)
    get = desk.last(Get)
    desk.say(Block(get.request, get.path, 0, len(blob), True, blob[: get.length]))
    assert desk.refusals() == {"round-key": 1}


def test_a_message_signed_by_another_or_for_another_or_on_the_wrong_topic_is_refused(desk):
    desk.say(Echo(bytes(8), NOW), change=lambda frame: frame[:-1] + bytes([frame[-1] ^ 1]))
    desk.say(Echo(bytes(8), NOW), change=lambda frame: frame[:10] + bytes(20) + frame[30:])
    assert desk.refusals() == {"signature": 2}
    frame = desk.fleet.frame(desk.fleet.offer())
    desk.talk.message(topics.down(FLEET, desk.me.name, "grant"), frame, 1.0, NOW)
    desk.talk.message(topics.to_all(FLEET, "model"), frame, 1.0, NOW)
    desk.talk.message(topics.down(FLEET, "device-5", "echo"), frame, 1.0, NOW)
    desk.talk.message("#", frame, 1.0, NOW)
    assert desk.refusals() == {"signature": 2, "kind": 2, "topic": 2}
    assert desk.offers == []


def test_answers_to_nothing_are_refused(desk):
    for message in (Grant(bytes(16), 8, b""), Ack(bytes(16), b""), Receipt(bytes(16), True, ""), Echo(bytes(8), 1)):
        desk.say(message)
    desk.say(Block(bytes(8), "roster/1", 0, 1, True, b"x"))
    assert desk.refusals() == {"unknown-upload": 3, "nonce": 1, "unasked-block": 1}


def test_two_missing_echoes_mean_a_dead_connection(desk):
    assert not desk.talk.silent(60.0)
    assert desk.talk.silent(66.0)
    desk.say(Echo(desk.last(Heartbeat).nonce, NOW))
    assert not desk.talk.silent(66.0)
    desk.talk.connection(False, 70.0)
    assert not desk.talk.silent(500.0)


def test_the_last_words_count_above_this_connection_and_below_the_next(desk):
    for _ in range(3):
        _, will = desk.talk.last_words()
        desk.talk.connection(True, 0.0)
        desk.talk.turn(0.0, NOW)
        beat = desk.last(Heartbeat)
        words = codec.unpack(will[68:], Heartbeat)
        assert words.phase == "gone"
        assert beat.counter < words.counter < beat.counter + (1 << 16)


def test_with_a_full_disk_messages_still_do_no_harm_and_are_counted_when_there_is_room(desk):
    desk.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    desk.db.execute(f"PRAGMA max_page_count = {desk.db.execute('PRAGMA page_count').fetchone()[0]}")
    for number in range(10_000):
        with contextlib.suppress(sqlite3.OperationalError):
            desk.db.execute("INSERT INTO counters VALUES ('fill', ?, 1)", (f"{number}",))
    for _ in range(30):
        desk.say(Receipt(bytes(16), True, ""))
    desk.say(Refusal("get", "x" * 64, "", None))
    assert desk.refusals() == {}, "nothing more fits"
    desk.talk.connection(True, 1.0)
    desk.talk.report(TASK, 1, "e", "r", "d")
    desk.talk.turn(2.0, NOW)
    assert desk.last(Heartbeat).counter > 2 << 16
    desk.db.execute("PRAGMA max_page_count = 100000")
    desk.say(Echo(bytes(8), NOW))
    assert desk.refusals() == {"unknown-upload": 30, "nonce": 1}
    assert counters(desk.db, "refused-by-aggregator") == {"x" * 64: 1}


def test_a_time_in_the_far_future_is_not_believed_and_does_not_end_learning(desk):
    never = 2**40
    desk.say(msgspec.structs.replace(desk.fleet.offer(), issued_at=never), "all")
    assert desk.refusals() == {}, "an offer is not believed a time before it is judged"
    desk.say(Echo(desk.last(Heartbeat).nonce, never))
    asked = desk.last(Ask)
    desk.say(State(asked.nonce, never, 1, (), (), None, 60))
    desk.talk.judged(msgspec.structs.replace(desk.fleet.offer(), issued_at=never), NOW)
    assert desk.talk.now(NOW) == NOW
    assert fact(desk.db, TIME_FLOOR) == 0
    assert desk.refusals() == {"time": 3}
    assert not desk.talk.silent(60.0), "the echo itself counts"


def test_a_time_counts_up_to_the_end_of_the_newest_roster_whatever_the_clock_says(desk):
    raise_fact(desk.db, TIME_LATEST, NOW + 500)
    for ahead, floor in ((400, 400), (501, 400), (500, 500)):
        desk.talk.judged(msgspec.structs.replace(desk.fleet.offer(), issued_at=NOW + ahead), 0.0)
        assert desk.talk.now(0.0) == NOW + floor


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bytes_on_any_topic_do_harm(desk, data):
    kinds = ["grant", "ack", "receipt", "blk", "state", "opening", "echo", "refusal", "offer", "model", "nonsense"]
    kind = data.draw(st.sampled_from(kinds))
    frame = desk.fleet.frame(desk.fleet.offer())
    cut = data.draw(st.integers(0, len(frame)))
    payload = data.draw(st.sampled_from([frame[:cut], frame + b"x", data.draw(st.binary(max_size=200))]))
    before = sum(desk.refusals().values())
    topic = data.draw(st.sampled_from([topics.down(FLEET, desk.me.name, kind), topics.to_all(FLEET, kind)]))
    desk.talk.message(topic, payload, 1.0, NOW)
    assert payload == frame or sum(desk.refusals().values()) == before + 1


def test_what_was_spent_is_told_at_every_connect_and_before_the_upload_that_was_paid_for(desk):
    assert not [message for message in desk.sent if isinstance(message, Spent)], "nothing was spent"
    spend = subsampled_gaussian(0.1, 1.0, 10)
    work_thread = open_device_db(desk.home / "device.db")
    ledger = Ledger(work_thread)
    for number, tick in ((1, 10.0), (2, 20.0)):
        ledger.charge("intent", "customer", number, spend)
        desk.talk.turn(tick, NOW)
        desk.talk.turn(tick + 1, NOW)
    desk.talk.connection(False, 30.0)
    desk.talk.connection(True, 31.0)
    desk.talk.turn(31.0, NOW)
    told = [message for message in desk.sent if isinstance(message, Spent)]
    assert [message.counter for message in told] == [1, 2, 3]
    assert [message.entries[0].rounds for message in told] == [1, 2, 2]
    assert told[2].entries[0].curve == pack(compose([spend, spend]))
    assert fact(desk.db, "spents") == 3, "it goes on counting after a restart"
    work_thread.close()


def test_an_unreadable_ledger_is_said_once_and_stops_nothing_else(desk):
    Ledger(desk.db).charge("intent", "customer", 1, subsampled_gaussian(0.1, 1.0, 10))
    desk.db.execute("UPDATE privacy_spends SET accountant = 99")
    for tick in (10.0, 11.0, 12.0):
        desk.talk.turn(tick, NOW)
    assert desk.refusals() == {"accountant-version": 1}
