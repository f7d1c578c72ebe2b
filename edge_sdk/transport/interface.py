"""What the rest of the product knows of a transport. Promises nothing about delivery: receipts are messages of ours.

A transport never blocks its caller and never raises into it; callbacks run on the transport's own thread, and an
exception in one is logged and counted, never allowed to end that thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, Protocol

import msgspec

MAX_PAYLOAD_BYTES: Final = 61_440
"""60 KiB: the largest message that every supported broker carries."""
WINDOW: Final = 8
"""QoS 1 messages that may be on their way at once."""

QoS = Literal[0, 1]


def ignore(*_: object) -> None:
    """The callback of whoever does not care."""


class Callbacks(msgspec.Struct, frozen=True):
    """What a transport calls, always from its own thread.

    `on_message(topic, payload)`; `on_connection(up, reason)`; `on_capacity()` when a full window has room again;
    `on_refused(topic, reason)` when the broker acknowledged a message only to refuse it.
    """

    on_message: Callable[[str, bytes], None] = ignore
    on_connection: Callable[[bool, str], None] = ignore
    on_capacity: Callable[[], None] = ignore
    on_refused: Callable[[str, str], None] = ignore


class Transport(Protocol):
    """A connection to the broker that heals itself."""

    def start(self, callbacks: Callbacks) -> None:
        """Begin to connect and return at once."""

    def stop(self) -> None:
        """Disconnect and end the thread."""

    def publish(self, topic: str, payload: bytes, qos: QoS = 1) -> bool:
        """True if the message was taken into the window; False (keep it, try later) if not. Never blocks or raises."""

    @property
    def in_flight(self) -> int:
        """QoS 1 messages taken and not yet acknowledged by the broker."""

    @property
    def connected(self) -> bool:
        """True between a finished subscription and the loss of the connection."""

    @property
    def counters(self) -> dict[str, int]:
        """Counts since the start, by name: a copy."""
