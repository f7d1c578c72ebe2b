"""The pieces of an upload and who has which (SPEC 6). Pure.

A bitmap has one bit a chunk, least significant bit first in each byte; bits past the last chunk are zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from edge_sdk.protocol.codec import prefixed
from edge_sdk.protocol.errors import MalformedMessage
from edge_sdk.protocol.sealing import TAG_BYTES

CHUNK_BYTES: Final = 49_152  # of plaintext; the last chunk may be shorter
SEALED_CHUNK_BYTES: Final = CHUNK_BYTES + TAG_BYTES


def chunk_count(size: int) -> int:
    """How many chunks an upload of `size` bytes of plaintext makes."""
    return -(-size // CHUNK_BYTES)


def sealed_chunk_size(size: int, index: int) -> int:
    """Bytes of sealed chunk `index` of an upload of `size` bytes."""
    return min(CHUNK_BYTES, size - index * CHUNK_BYTES) + TAG_BYTES


def sealed_offset(index: int) -> int:
    """Where sealed chunk `index` starts in a file that holds the sealed chunks one after another."""
    return index * SEALED_CHUNK_BYTES


def hello_info(offer_hash: bytes, device: str, upload: bytes) -> bytes:
    """HPKE info of the sealed content key (SPEC 6.2)."""
    return prefixed("chorale/hello/1", offer_hash, device, upload)


def share_info(offer_hash: bytes, member: str) -> bytes:
    """HPKE info of a member's sealed answer (SPEC 7.5)."""
    return prefixed("chorale/answer/1", offer_hash, member)


def chunk_context(offer_hash: bytes, device: str, upload: bytes, size: int) -> bytes:
    """Associated data of every chunk (SPEC 6.3)."""
    return prefixed("chorale/chunk/1", offer_hash, device, upload, size.to_bytes(8, "big"))


class Bitmap:
    """Which of `count` chunks are there."""

    def __init__(self, count: int, held: Iterable[int] = ()) -> None:
        self.count = count
        self._held = set(held)

    @classmethod
    def decode(cls, data: bytes, count: int) -> Bitmap:
        """Raises MalformedMessage for a wrong length or a bit past the end."""
        if len(data) != -(-count // 8):
            raise MalformedMessage(f"a bitmap of {len(data)} bytes for {count} chunks", reason="bitmap")
        held = [i for i in range(8 * len(data)) if data[i >> 3] >> (i & 7) & 1]
        if held and held[-1] >= count:
            raise MalformedMessage("the bitmap names a chunk past the last", reason="bitmap")
        return cls(count, held)

    def encode(self) -> bytes:
        out = bytearray(-(-self.count // 8))
        for i in self._held:
            out[i >> 3] |= 1 << (i & 7)
        return bytes(out)

    def add(self, index: int) -> None:
        if not 0 <= index < self.count:
            raise MalformedMessage(f"chunk {index} of {self.count}", reason="chunk-index")
        self._held.add(index)

    def merge(self, other: Bitmap) -> None:
        self._held |= other._held

    def missing(self) -> Iterator[int]:
        return (i for i in range(self.count) if i not in self._held)

    @property
    def complete(self) -> bool:
        return len(self._held) == self.count

    def __contains__(self, index: int) -> bool:
        return index in self._held

    def __len__(self) -> int:
        return len(self._held)
