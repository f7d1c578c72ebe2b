"""Signs what the aggregator says and hands it to the transport as room appears. Bounded: when full, the oldest goes.

Everything here may be lost: a device that misses a message asks again (SPEC 4.4), so nothing is kept while offline.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.protocol import codec, topics
from edge_sdk.protocol.messages import Block, Echo, Message
from edge_sdk.transport.interface import QoS, Transport

LONGEST: Final = 8192
MOST_BLOCK_BYTES: Final = 64 * 2**20


class Post:
    """Outgoing messages of one aggregator. Used from the protocol's thread alone."""

    def __init__(self, fleet: str, key: Ed25519PrivateKey, transport: Transport) -> None:
        self._fleet, self._key, self._transport = fleet, key, transport
        self._waiting: deque[tuple[str, bytes, QoS]] = deque()
        self._bytes = 0
        self.dropped = 0

    def __repr__(self) -> str:
        return f"Post({len(self._waiting)} waiting)"

    def frame(self, message: Message, recipient: str) -> bytes:
        """The signed frame of a message."""
        return codec.encode(
            message, fleet=self._fleet, sender=codec.AGGREGATOR, recipient=recipient, sign=self._key.sign
        )

    def send(self, device: str, message: Message) -> None:
        """To one device."""
        qos: QoS = 0 if isinstance(message, Echo) else 1
        self._put(topics.down(self._fleet, device, message.topic), self.frame(message, device), qos)

    def publish(self, kind: str, frame: bytes) -> None:
        """A frame that is signed already, to every device."""
        self._put(topics.to_all(self._fleet, kind), frame, 1)

    def announce(self, message: Message) -> None:
        """To every device."""
        self.publish(message.topic, self.frame(message, codec.EVERYBODY))

    def room_for_blocks(self) -> bool:
        """Blocks are dropped first: whoever asked asks again."""
        return self._bytes < MOST_BLOCK_BYTES and len(self._waiting) < LONGEST // 2

    def answer(self, device: str, block: Block) -> None:
        """A block, where there is room for it."""
        if self.room_for_blocks():
            self.send(device, block)
        else:
            self.dropped += 1

    def pump(self) -> None:
        """Hand over as much as the transport takes."""
        if not self._transport.connected:
            self._waiting.clear()
            self._bytes = 0
            return
        while self._waiting:
            topic, frame, qos = self._waiting[0]
            if not self._transport.publish(topic, frame, qos) and qos == 1:
                return
            self._waiting.popleft()
            self._bytes -= len(frame)

    def _put(self, topic: str, frame: bytes, qos: QoS) -> None:
        if len(self._waiting) >= LONGEST:
            self._bytes -= len(self._waiting.popleft()[1])
            self.dropped += 1
        self._waiting.append((topic, frame, qos))
        self._bytes += len(frame)
