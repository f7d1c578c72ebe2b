"""Length-prefixed msgpack frames over a pipe, read without blocking for longer than asked. Imports no torch.

A frame is 4 bytes of little-endian length and the message. Frames above MAX_FRAME_BYTES are refused.
"""

from __future__ import annotations

import os
import select
from typing import Final, Generic, TypeVar

import msgspec

T = TypeVar("T")
MAX_FRAME_BYTES: Final = 1 << 30
_encoder: Final = msgspec.msgpack.Encoder()


class PipeClosed(Exception):
    """The other end is gone."""


class WrongFrame(Exception):
    """The other end sent something that is no frame."""


def encode(message: msgspec.Struct) -> bytes:
    """One frame."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "little") + body


class FrameReader(Generic[T]):
    """Frames of one type from a file descriptor."""

    def __init__(self, fd: int, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._fd = fd
        self._decoder = decoder
        self._buffer = bytearray()

    def poll(self, timeout_s: float) -> T | None:
        """The next frame, or None where none is complete in time. Raises PipeClosed and WrongFrame."""
        frame = self._take()
        while frame is None:
            ready, _, _ = select.select([self._fd], [], [], timeout_s)
            if not ready:
                return None
            part = os.read(self._fd, 1 << 20)
            if not part:
                raise PipeClosed
            self._buffer += part
            frame = self._take()
        return frame

    def _take(self) -> T | None:
        if len(self._buffer) < 4:
            return None
        size = int.from_bytes(self._buffer[:4], "little")
        if size > MAX_FRAME_BYTES:
            raise WrongFrame(f"a frame of {size} bytes")
        if len(self._buffer) < 4 + size:
            return None
        body = bytes(self._buffer[4 : 4 + size])
        del self._buffer[: 4 + size]
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, ValueError) as error:
            raise WrongFrame(str(error)) from error
