"""What the process gives the SDK, and what the SDK shows of the moment. Holds no behaviour beyond a counter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from edge_sdk.identity.enrolment import Identity
    from edge_sdk.protocol.messages import Offer
    from edge_sdk.transport.interface import Transport

Record = tuple[str, Mapping[str, Any], Any, str | None, int]  # task, fields, label, subject, consent


class Surroundings(Protocol):
    """Time, randomness, an identity and a way to the broker."""

    def clock(self) -> float:
        """Seconds since 1970, right or wrong."""

    def tick(self) -> float:
        """Monotonic seconds."""

    def hour(self) -> int:
        """The local hour, 0 to 23."""

    def entropy(self, count: int) -> bytes:
        """Fresh random bytes from the operating system."""

    def identity(self) -> Identity:
        """This device's identity. Raises IdentityError."""

    def connect(
        self, identity: Identity, last_words: Callable[[], tuple[str, bytes]], now: Callable[[], float]
    ) -> Transport:
        """A transport that is not started yet. `last_words()` gives topic and payload of its will.

        `now()` is the verified time, never behind what the fleet signed: certificates are judged by it.
        """


@dataclass(slots=True)
class OpenOffer:
    """An offer that is still open, and what this device does about it."""

    frame: bytes
    offer: Offer
    try_at: float
    working: bool = False
    final: bool = False


@dataclass(slots=True)
class Live:
    """What `status` shows of this very moment. Written by the loop and the work thread, read by any."""

    phase: str = "starting"
    connected: bool = False
    dropped: dict[str, int] = field(default_factory=dict)
    objection: str = ""
    progress: str = ""
    rebuilt: int = 0
    waiting: int = 0  # examples in memory, until their task's schema is known

    def drop(self, what: str, n: int = 1) -> None:
        """Count something that could not be taken."""
        self.dropped[what] = self.dropped.get(what, 0) + n
