"""Topics: who may speak where. Pure. Refuses every topic that these functions would not have built (SPEC 3).

    fl/v1/{fleet}/{shard}/{device}/up/{kind}      written by one device, read by the aggregator
    fl/v1/{fleet}/{shard}/{device}/down/{kind}    written by the aggregator, read by one device
    fl/v1/{fleet}/all/{kind}                      written by the aggregator, read by every device

The shard stands before the device so that a second ingest worker can take half the fleet with one subscription.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, Literal

import msgspec

from edge_sdk.protocol.errors import LocalProtocolError, MalformedMessage

PREFIX: Final = "fl/v1"
SHARDS: Final = 64
NAME_MAX: Final = 48

Direction = Literal["up", "down", "all"]

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?")


class Address(msgspec.Struct, frozen=True):
    """What a topic says. `shard` and `device` are None exactly when `direction` is "all"."""

    fleet: str
    shard: int | None
    device: str | None
    direction: Direction
    kind: str


def is_name(text: str) -> bool:
    """True for 1 to 48 characters of a-z, 0-9 and '-', with no '-' at either end."""
    return _NAME.fullmatch(text) is not None


def is_device_name(text: str) -> bool:
    """True for a name that a device may have: `all`, `broker` and whatever begins with `aggregator` are reserved."""
    return is_name(text) and text not in ("all", "broker") and not text.startswith("aggregator")


def _checked(text: str, what: str) -> str:
    if not is_name(text):
        raise LocalProtocolError(
            f"{what} {text!r} is not a name: use 1 to {NAME_MAX} of a-z, 0-9 and '-', no '-' at an end", reason="name"
        )
    return text


def shard(device: str) -> int:
    """The device's shard: big-endian u32 of SHA-256(device)[:4], modulo 64."""
    return int.from_bytes(hashlib.sha256(device.encode()).digest()[:4], "big") % SHARDS


def _of_device(fleet: str, device: str, direction: str, kind: str) -> str:
    _checked(device, "device")
    return f"{PREFIX}/{_checked(fleet, 'fleet')}/{shard(device)}/{device}/{direction}/{kind}"


def up(fleet: str, device: str, kind: str) -> str:
    """Topic on which `device` speaks to the aggregator."""
    return _of_device(fleet, device, "up", _checked(kind, "kind"))


def down(fleet: str, device: str, kind: str) -> str:
    """Topic on which the aggregator speaks to `device`."""
    return _of_device(fleet, device, "down", _checked(kind, "kind"))


def to_all(fleet: str, kind: str) -> str:
    """Topic on which the aggregator speaks to every device of the fleet."""
    return f"{PREFIX}/{_checked(fleet, 'fleet')}/all/{_checked(kind, 'kind')}"


def device_uri(fleet: str, device: str) -> str:
    """The URI in a device's certificate, by which the NATS server and name constraints know it."""
    return f"fleet://{fleet}/device/{device}"


def aggregator_uri(fleet: str, name: str) -> str:
    """The URI in an aggregator's certificate."""
    return f"fleet://{fleet}/aggregator/{name}"


def device_filters(fleet: str, device: str) -> tuple[str, str]:
    """The two subscriptions of a device: its own `down` and the fleet's `all`."""
    return _of_device(fleet, device, "down", "+"), f"{PREFIX}/{fleet}/all/+"


def aggregator_filters(fleet: str, shards: range | None = None) -> tuple[str, ...]:
    """The subscriptions of an aggregator: every shard in one filter, or one filter for each shard named."""
    _checked(fleet, "fleet")
    levels = ["+"] if shards is None else [str(s) for s in shards]
    return tuple(f"{PREFIX}/{fleet}/{level}/+/up/+" for level in levels)


def _malformed(topic: str, why: str) -> MalformedMessage:
    return MalformedMessage(f"topic {topic[:120]!r}: {why}", reason="topic")


def parse(topic: str) -> Address:
    """Read a topic strictly. Raises MalformedMessage, also where the shard is not the device's own."""
    parts = topic.split("/")
    if len(parts) not in (5, 7) or "/".join(parts[:2]) != PREFIX:
        raise _malformed(topic, "not a topic of this protocol")
    if not is_name(parts[2]) or not is_name(parts[-1]):
        raise _malformed(topic, "fleet or kind is not a name")
    if len(parts) == 5:
        if parts[3] != "all":
            raise _malformed(topic, "a topic of five levels goes to all")
        return Address(parts[2], None, None, "all", parts[4])
    number, device, direction = parts[3:6]
    if not is_name(device) or number != str(shard(device)):
        raise _malformed(topic, "the shard does not fit the device")
    if direction == "up":
        return Address(parts[2], int(number), device, "up", parts[6])
    if direction == "down":
        return Address(parts[2], int(number), device, "down", parts[6])
    raise _malformed(topic, "the direction is neither up nor down")
