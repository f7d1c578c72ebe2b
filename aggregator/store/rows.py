"""What the tables hold, as frozen values. Secrets hide themselves when printed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task. `checkpoint`: SHA-256 (hex) that the next round trains on; `status`: active, paused, done or failed."""

    name: str
    spec: bytes
    status: str
    reason: str
    created_at: int
    checkpoint: str
    heldout: str
    not_before: float


@dataclass(frozen=True, slots=True)
class RoundRow:
    """A round. `secret` is the round key, None once forgotten."""

    task: str
    number: int
    phase: str
    reason: str
    frame: bytes
    offer_hash: bytes
    secret: bytes | None = field(repr=False)
    epoch: int
    opening_ends_at: int
    phase_since: float
    stats: dict[str, Any]
    waiting: str


@dataclass(frozen=True, slots=True)
class UploadRow:
    """An upload. `state` is receiving, accepted (durable), summed (in a durable sum) or dropped."""

    id: bytes
    task: str
    number: int
    device: str
    size: int
    state: str
    content_key: bytes | None = field(repr=False)
    received: bytes
    shares: bytes | None = field(repr=False)
    at: float
    group: int = 0  # whose sum it is in, once accepted


@dataclass(frozen=True, slots=True)
class SumRow:
    """The durable running sum of one group: the file's name, and how many uploads it holds."""

    group: int
    snapshot: str
    summed: int
