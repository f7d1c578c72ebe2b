"""Topics: what is built is read back, and nothing else is read."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.protocol import topics
from edge_sdk.protocol.errors import LocalProtocolError, MalformedMessage
from edge_sdk.protocol.topics import Address

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?", fullmatch=True)


@given(NAMES, NAMES, NAMES)
def test_what_is_built_is_read_back(fleet: str, device: str, kind: str) -> None:
    shard = topics.shard(device)
    assert topics.parse(topics.up(fleet, device, kind)) == Address(fleet, shard, device, "up", kind)
    assert topics.parse(topics.down(fleet, device, kind)) == Address(fleet, shard, device, "down", kind)
    assert topics.parse(topics.to_all(fleet, kind)) == Address(fleet, None, None, "all", kind)


@given(st.one_of(st.text(max_size=200), st.lists(st.sampled_from(["fl", "v1", "f0", "all", "up", "kiosk-a", "", "+"]))))
def test_whatever_is_read_would_have_been_built(garbage: str | list[str]) -> None:
    topic = garbage if isinstance(garbage, str) else "/".join(garbage)
    try:
        address = topics.parse(topic)
    except MalformedMessage:
        return
    if address.device is None:
        assert topics.to_all(address.fleet, address.kind) == topic
    else:
        builder = topics.up if address.direction == "up" else topics.down
        assert builder(address.fleet, address.device, address.kind) == topic


def test_the_shard_is_the_specifications() -> None:
    digest = hashlib.sha256(b"kiosk-a").digest()
    slow = (digest[0] * 256**3 + digest[1] * 256**2 + digest[2] * 256 + digest[3]) % 64
    assert topics.shard("kiosk-a") == slow == 61


def test_a_shard_that_is_not_the_devices_own_is_refused() -> None:
    for number in range(64):
        if number != 61:
            with pytest.raises(MalformedMessage, match="shard does not fit"):
                topics.parse(f"fl/v1/f0/{number}/kiosk-a/up/hello")
    with pytest.raises(MalformedMessage):
        topics.parse("fl/v1/f0/061/kiosk-a/up/hello")


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/",
        "fl/v1",
        "fl/v2/f0/61/kiosk-a/up/hello",
        "fl/v1/f0/61/kiosk-a/up",
        "fl/v1/f0/61/kiosk-a/up/hello/more",
        "fl/v1/f0/61/kiosk-a/sideways/hello",
        "fl/v1/f0/61/kiosk-a/up/+",
        "fl/v1/+/61/kiosk-a/up/hello",
        "fl/v1/f0/61/Kiosk-A/up/hello",
        "fl/v1/f0/61/kiosk-a/up/hello\n",
        "fl/v1/f0/some/offer",
        "fl/v1/f0/all/",
        "$SYS/v1/f0/all/offer",
    ],
)
def test_a_foreign_topic_is_refused(topic: str) -> None:
    with pytest.raises(MalformedMessage):
        topics.parse(topic)


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a.b", "a b", "a+", "#", "a/b", "ü", "a" * 49, "a\n"])
def test_a_bad_name_is_refused_where_a_topic_is_built(name: str) -> None:
    assert not topics.is_name(name)
    for build in (
        lambda: topics.up(name, "a", "b"),
        lambda: topics.up("a", name, "b"),
        lambda: topics.down("a", "b", name),
    ):
        with pytest.raises(LocalProtocolError, match="use 1 to 48"):
            build()


def test_an_aggregator_may_listen_to_some_shards_only() -> None:
    assert topics.aggregator_filters("f0") == ("fl/v1/f0/+/+/up/+",)
    assert topics.aggregator_filters("f0", range(2)) == ("fl/v1/f0/0/+/up/+", "fl/v1/f0/1/+/up/+")
    assert topics.device_filters("f0", "kiosk-a") == ("fl/v1/f0/61/kiosk-a/down/+", "fl/v1/f0/all/+")


@pytest.mark.parametrize("name", ["all", "broker", "aggregator", "aggregator-1", "-x"])
def test_reserved_names_are_no_devices(name: str) -> None:
    assert not topics.is_device_name(name)
    assert topics.is_device_name("kiosk-a")
