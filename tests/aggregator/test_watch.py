"""Who is there: counters only grow, for goodbyes too (SPEC 4.3), and a device's will fits in."""

from __future__ import annotations

import os

import pytest
from small_fleet import FLEET
from test_epoch_keys import fresh

from aggregator.store.schema import open_database
from aggregator.store.store import Store
from aggregator.watch import Presence
from edge_sdk.conversation import Conversation, Speaker
from edge_sdk.device_db import open_device_db
from edge_sdk.identity.epoch_keys import EpochKeys
from edge_sdk.identity.keys import DeviceKeys
from edge_sdk.protocol import codec
from edge_sdk.protocol.errors import UnexpectedMessage
from edge_sdk.protocol.messages import Heartbeat

NOW, HORIZON_S = 1_800_000_000.0, 90.0


@pytest.fixture
def presence(tmp_path):
    connection = open_database(tmp_path / "aggregator.db")
    yield Presence(Store(connection), NOW)
    connection.close()


def beat(counter: int, phase: str = "idle") -> Heartbeat:
    return Heartbeat(bytes(8), counter, phase, {})


def is_live(presence: Presence) -> bool:
    return "kiosk-a" in presence.live(NOW, HORIZON_S)


def dropped(presence: Presence, heartbeat: Heartbeat) -> bool:
    try:
        presence.beat("kiosk-a", heartbeat, NOW)
    except UnexpectedMessage as error:
        return error.reason == "repeat"
    return False


@pytest.mark.parametrize("counter", [0, 6, 7])
@pytest.mark.parametrize("phase", ["idle", "gone"])
def test_a_heartbeat_that_does_not_grow_is_dropped_whatever_it_says(presence, phase, counter):
    assert not dropped(presence, beat(7))
    assert dropped(presence, beat(counter, phase))
    assert is_live(presence)


def test_a_goodbye_that_grows_ends_it_and_the_next_heartbeat_begins_again(presence):
    assert not dropped(presence, beat(7))
    assert not dropped(presence, beat(8, "gone"))
    assert not is_live(presence)
    assert dropped(presence, beat(8))
    assert not is_live(presence)
    assert not dropped(presence, beat(9))
    assert is_live(presence)


class Kiosk:
    """The SDK's own conversation; `said` holds the heartbeats it sent."""

    def __init__(self, folder) -> None:
        keys = DeviceKeys.generate()
        self.db = open_device_db(folder / "device.db")
        speaker = Speaker(FLEET, "kiosk-a", keys.sign, fresh(), EpochKeys(folder / "identity", keys), os.urandom)
        self.talk = Conversation(speaker, self.db, folder / "outbox", self, heartbeat_s=30.0, silence_s=5.0)  # type: ignore[arg-type]
        self.said: list[Heartbeat] = []
        self.tick = 0.0

    def publish(self, topic: str, payload: bytes, qos: int) -> bool:
        if topic.endswith("/hb"):
            self.said.append(codec.unpack(payload[68:], Heartbeat))
        return True

    def phase(self) -> str:
        return "idle"

    def active_models(self) -> dict[str, bytes]:
        return {}

    def connect(self) -> tuple[Heartbeat, Heartbeat]:
        """(the will left with the broker, the connection's first heartbeat), as the transport asks for them."""
        _, frame = self.talk.last_words()
        self.talk.connection(True, self.tick)
        self.tick += 31.0
        self.talk.turn(self.tick, NOW)
        self.talk.connection(False, self.tick)
        return codec.unpack(frame[68:], Heartbeat), self.said[-1]


def test_a_will_ends_its_own_connection_and_no_later_one(presence, tmp_path):
    kiosk = Kiosk(tmp_path)
    (first_will, first), (second_will, second), (_, third) = (kiosk.connect() for _ in range(3))
    kiosk.db.close()
    assert first_will.phase == second_will.phase == "gone"
    assert not dropped(presence, first)
    assert not dropped(presence, second)
    assert dropped(presence, first_will), "the broker said it late, after the device was back"
    assert is_live(presence)
    assert not dropped(presence, second_will)
    assert not is_live(presence)
    assert dropped(presence, second), "a heartbeat that the will overtook"
    assert not dropped(presence, third)
    assert is_live(presence)
