"""Frames: verify first, parse after (SPEC 4). Bytes in, messages out; no I/O, no clock.

The signature covers the bytes that travel, with the fleet, sender and recipient, so a frame can neither be
changed nor shown to another device as its own. Bodies are MessagePack; a body that is not the canonical
encoding of what it decodes to is refused, so no two bodies mean the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_sdk.protocol.errors import LocalProtocolError, MalformedMessage, WrongSignature
from edge_sdk.protocol.messages import Message

MAGIC: Final = b"Ch"
VERSION: Final = 1
PREFIX_BYTES: Final = 4
SIGNATURE_BYTES: Final = 64
MAX_FRAME_BYTES: Final = 61_440
CHUNK_KIND: Final = 2
CHUNK_HEADER_BYTES: Final = PREFIX_BYTES + 16 + 4
EVERYBODY: Final = "all"
AGGREGATOR: Final = "aggregator"

T = TypeVar("T")
_ENCODER: Final = msgspec.msgpack.Encoder(order="deterministic")
_DECODERS: Final[dict[type[Any], msgspec.msgpack.Decoder[Any]]] = {}


def prefixed(*parts: bytes | str) -> bytes:
    """Concatenate with a two-byte big-endian length before each part: no two lists give the same bytes."""
    out = bytearray()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        out += len(data).to_bytes(2, "big") + data
    return bytes(out)


def pack(value: Any) -> bytes:
    """Canonical MessagePack of a wire type."""
    return _ENCODER.encode(value)


def unpack(data: bytes | memoryview, kind: type[T]) -> T:
    """Strict inverse of `pack`. Raises MalformedMessage."""
    decoder = _DECODERS.setdefault(kind, msgspec.msgpack.Decoder(kind, strict=True))
    try:
        value: T = decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise MalformedMessage(f"not a valid {kind.__name__}: {error}", reason="body") from error
    if pack(value) != data:
        raise MalformedMessage(f"the {kind.__name__} is not in canonical form", reason="not-canonical")
    return value


def _signed_bytes(prefix: bytes, body: bytes, fleet: str, sender: str, recipient: str) -> bytes:
    return prefixed("chorale/message/1", fleet, sender, recipient) + prefix + body


def encode(message: Message, *, fleet: str, sender: str, recipient: str, sign: Callable[[bytes], bytes]) -> bytes:
    """Frame and sign a message. Raises LocalProtocolError where it would be too large."""
    prefix = MAGIC + bytes([VERSION, message.kind])
    body = pack(message)
    frame = prefix + sign(_signed_bytes(prefix, body, fleet, sender, recipient)) + body
    if len(frame) > MAX_FRAME_BYTES:
        raise LocalProtocolError(
            f"a {type(message).__name__} of {len(frame)} bytes exceeds the limit of {MAX_FRAME_BYTES}", reason="size"
        )
    return frame


def frame_kind(frame: bytes) -> int:
    """The kind byte, after the checks that need no key. Raises MalformedMessage."""
    if not PREFIX_BYTES < len(frame) <= MAX_FRAME_BYTES:
        raise MalformedMessage(f"a frame of {len(frame)} bytes", reason="size")
    if frame[:2] != MAGIC:
        raise MalformedMessage("not a frame of this protocol", reason="magic")
    if frame[2] != VERSION:
        raise MalformedMessage(f"protocol version {frame[2]}; this side speaks {VERSION}", reason="version")
    return frame[3]


def decode(
    frame: bytes, *, fleet: str, sender: str, recipient: str, public_key: bytes, accepted: Mapping[int, type[Message]]
) -> Message:
    """Verify a frame's signature under `public_key` (32 bytes), then parse it. Raises RemoteProtocolError."""
    kind = frame_kind(frame)
    cls = accepted.get(kind)
    if cls is None:
        raise MalformedMessage(f"kind {kind} does not belong here", reason="kind")
    if len(frame) < PREFIX_BYTES + SIGNATURE_BYTES:
        raise MalformedMessage("the frame ends inside its signature", reason="truncated")
    signature = frame[PREFIX_BYTES : PREFIX_BYTES + SIGNATURE_BYTES]
    body = frame[PREFIX_BYTES + SIGNATURE_BYTES :]
    verify(public_key, signature, _signed_bytes(frame[:PREFIX_BYTES], body, fleet, sender, recipient))
    return unpack(body, cls)


def verify(public_key: bytes, signature: bytes, signed: bytes) -> None:
    """Check an Ed25519 signature. Raises WrongSignature."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, signed)
    except (InvalidSignature, ValueError) as error:
        raise WrongSignature("the signature does not hold", reason="signature") from error


def offer_hash(frame: bytes) -> bytes:
    """H of SPEC 7.1, over the body of the offer's frame as it was received."""
    return hashlib.sha256(b"chorale/offer/1\x00" + frame[PREFIX_BYTES + SIGNATURE_BYTES :]).digest()


@dataclass(frozen=True, slots=True)
class Chunk:
    """One sealed piece of an upload."""

    upload: bytes
    index: int
    sealed: bytes


def encode_chunk(chunk: Chunk) -> bytes:
    """Frame a chunk. It carries no signature: the content key in the signed hello authenticates it (SPEC 6.3)."""
    return MAGIC + bytes([VERSION, CHUNK_KIND]) + chunk.upload + chunk.index.to_bytes(4, "big") + chunk.sealed


def decode_chunk(frame: bytes) -> Chunk:
    """Raises MalformedMessage."""
    if frame_kind(frame) != CHUNK_KIND:
        raise MalformedMessage("not a chunk", reason="kind")
    if len(frame) <= CHUNK_HEADER_BYTES:
        raise MalformedMessage("an empty chunk", reason="truncated")
    return Chunk(frame[4:20], int.from_bytes(frame[20:24], "big"), frame[24:])
