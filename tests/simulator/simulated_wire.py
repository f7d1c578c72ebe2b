"""The network of a simulation: packets that wait until an operation says what becomes of them. No clock, no socket."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from edge_sdk.protocol import topics
from edge_sdk.transport.interface import Callbacks, QoS

FLEET = "f0"
AGGREGATOR = "aggregator"


def seeded_entropy(*words: object) -> Callable[[int], bytes]:
    """Fixed bytes that never repeat within one source."""
    calls = iter(range(1 << 30))
    seed = " ".join(map(str, words)).encode()
    return lambda size: hashlib.shake_256(seed + next(calls).to_bytes(4, "big")).digest(size)


@dataclass(frozen=True)
class Packet:
    """An encoded frame on its way to one receiver."""

    sender: str
    receiver: str
    topic: str
    payload: bytes

    def flipped(self, bit: int) -> Packet:
        """The same with one bit of the payload changed."""
        at = bit % (8 * len(self.payload))
        changed = bytearray(self.payload)
        changed[at >> 3] ^= 1 << (at & 7)
        return replace(self, payload=bytes(changed))


@dataclass
class Wire:
    """Everything sent and not yet delivered, and everything ever sent."""

    devices: list[str]
    waiting: list[Packet] = field(default_factory=list)
    history: list[Packet] = field(default_factory=list)
    muted: bool = False
    """True while a node's output is lost, as when it dies after its effect is durable and before it spoke."""

    def send(self, sender: str, topic: str, payload: bytes) -> None:
        address = topics.parse(topic)
        receivers = {"up": [AGGREGATOR], "down": [address.device], "all": self.devices}[address.direction]
        for receiver in receivers:
            assert receiver is not None
            packet = Packet(sender, receiver, topic, payload)
            self.history.append(packet)
            if not self.muted:
                self.waiting.append(packet)

    def take(self, index: int) -> Packet | None:
        """Any waiting packet, counted round: index 0 keeps the order, another one reorders."""
        return self.waiting.pop(index % len(self.waiting)) if self.waiting else None


class WireTransport:
    """The transport of one node, without a window: the operations decide what arrives."""

    connected, in_flight = True, 0

    def __init__(self, wire: Wire, name: str) -> None:
        self._wire, self._name = wire, name

    @property
    def counters(self) -> dict[str, int]:
        return {}

    def start(self, callbacks: Callbacks) -> None:
        """Nothing to connect to."""

    def stop(self) -> None:
        """Nothing to end."""

    def publish(self, topic: str, payload: bytes, qos: QoS = 1) -> bool:
        self._wire.send(self._name, topic, payload)
        return True
