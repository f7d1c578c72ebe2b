"""The broker in memory keeps the real broker's rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.protocol import topics
from edge_sdk.protocol.errors import LocalProtocolError
from edge_sdk.transport.interface import MAX_PAYLOAD_BYTES, WINDOW, Callbacks
from edge_sdk.transport.memory import Envelope, MemoryBroker, MemoryTransport, matches

UP_A, DOWN_A = topics.up("f0", "kiosk-a", "hello"), topics.down("f0", "kiosk-a", "grant")
OFFER = topics.to_all("f0", "offer")


class Site:
    """An aggregator and two devices, with what each of them heard."""

    def __init__(self) -> None:
        self.broker = MemoryBroker("f0")
        self.heard: dict[str, list[tuple[str, bytes]]] = {}
        self.told: list[tuple[str, object]] = []
        self.aggregator = self.join("aggregator-1", topics.aggregator_filters("f0"))
        self.a, self.b = (self.join(name, topics.device_filters("f0", name)) for name in ("kiosk-a", "kiosk-b"))

    def join(self, name: str, subscriptions: tuple[str, ...]) -> MemoryTransport:
        transport, heard = self.broker.transport(name, subscriptions), self.heard.setdefault(name, [])
        transport.start(
            Callbacks(
                on_message=lambda topic, payload: heard.append((topic, payload)),
                on_connection=lambda up, _reason: self.told.append((name, up)),
                on_capacity=lambda: self.told.append((name, "room")),
                on_refused=lambda topic, _reason: self.told.append((name, topic)),
            )
        )
        return transport


def test_each_hears_what_is_for_it_and_nothing_else() -> None:
    site = Site()
    assert site.a.publish(UP_A, b"up")
    assert site.aggregator.publish(DOWN_A, b"down")
    assert site.aggregator.publish(OFFER, b"all")
    assert site.broker.run() == 3
    assert site.heard == {
        "aggregator-1": [(UP_A, b"up")],
        "kiosk-a": [(DOWN_A, b"down"), (OFFER, b"all")],
        "kiosk-b": [(OFFER, b"all")],
    }


@pytest.mark.parametrize(
    "topic", [UP_A, DOWN_A, OFFER, topics.down("f0", "kiosk-b", "grant"), "fl/v1/f1/all/offer", "x"]
)
def test_a_device_cannot_speak_as_another(topic: str) -> None:
    site = Site()
    assert site.b.publish(topic, b"forged")
    site.broker.run()
    assert all(not heard for heard in site.heard.values())
    assert site.told[-1] == ("kiosk-b", topic)


def test_a_greedy_subscription_hears_nothing_foreign() -> None:
    site = Site()
    site.join("kiosk-c", ("fl/v1/f0/+/+/down/+", "fl/v1/f0/+/+/up/+"))
    site.aggregator.publish(DOWN_A, b"secret")
    site.a.publish(UP_A, b"secret")
    site.broker.run()
    assert site.heard["kiosk-c"] == []


def test_the_window_fills_and_says_when_it_has_room() -> None:
    site = Site()
    taken = [site.a.publish(UP_A, b"x") for _ in range(WINDOW + 1)]
    assert taken == [True] * WINDOW + [False]
    assert site.a.in_flight == WINDOW
    assert site.a.publish(UP_A, b"beat", qos=0)
    site.broker.step()
    assert site.told[-1] == ("kiosk-a", "room")
    assert site.a.publish(UP_A, b"x")


def test_a_crash_loses_what_was_on_its_way_and_says_so() -> None:
    site = Site()
    assert site.a.publish(UP_A, b"lost")
    site.broker.crash()
    assert site.a.in_flight == 0
    assert not site.a.publish(UP_A, b"kept")
    site.broker.restart()
    assert site.broker.run() == 0
    assert [told for told in site.told if told[0] == "kiosk-a"] == [
        ("kiosk-a", True),
        ("kiosk-a", False),
        ("kiosk-a", True),
    ]


def test_a_revoked_device_does_not_come_back() -> None:
    site = Site()
    site.broker.revoked.add("kiosk-a")
    site.broker.crash()
    site.broker.restart()
    assert not site.a.connected
    assert site.b.connected


def test_a_test_may_drop_repeat_and_forge() -> None:
    site = Site()
    site.broker.tamper = lambda envelope: [envelope, envelope._replace(payload=b"forged")]
    site.a.publish(UP_A, b"true")
    site.broker.run()
    assert site.heard["aggregator-1"] == [(UP_A, b"true"), (UP_A, b"forged")]
    site.broker.tamper = lambda _envelope: []
    site.a.publish(UP_A, b"dropped")
    site.broker.run()
    assert len(site.heard["aggregator-1"]) == 2
    assert Envelope("kiosk-a", UP_A, b"", 1) == ("kiosk-a", UP_A, b"", 1)


def test_a_failing_callback_ends_nothing() -> None:
    site = Site()
    fragile = site.broker.transport("kiosk-d", topics.device_filters("f0", "kiosk-d"))
    fragile.start(Callbacks(on_message=lambda _topic, _payload: 1 / 0))
    site.aggregator.publish(OFFER, b"1")
    site.broker.run()
    assert fragile.counters["callback_errors"] == 1
    assert fragile.connected


def test_a_message_too_large_is_a_bug_of_ours() -> None:
    with pytest.raises(LocalProtocolError, match="cut it into chunks"):
        Site().a.publish(UP_A, bytes(MAX_PAYLOAD_BYTES + 1))


LEVELS = st.lists(st.sampled_from(["a", "b", "+"]), min_size=1, max_size=4)


@given(LEVELS, st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=4))
def test_subscriptions_match_as_mqtt_says(pattern: list[str], topic: list[str]) -> None:
    def slow(p: list[str], t: list[str]) -> bool:
        if not p or not t:
            return p == t
        return p[0] in ("+", t[0]) and slow(p[1:], t[1:])

    assert matches("/".join(pattern), "/".join(topic)) == slow(pattern, topic)
