"""Random bytes from AES-256-CTR under a 32-byte key. Draws nothing from the system: the key is passed in.

One key serves one purpose once: the same key gives the same bytes, which would cancel a mask. SPEC 7.4.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from edge_sdk.protocol.errors import LocalProtocolError

KEY_BYTES: Final = 32
_ZEROS: Final = bytes(1 << 18)


class Keystream:
    """A position in the AES-256-CTR stream of one key. Hides itself when printed."""

    def __init__(self, key: bytes, offset: int = 0) -> None:
        """Start at byte `offset`, a multiple of 16. Raises LocalProtocolError for another key length or offset."""
        if len(key) != KEY_BYTES:
            raise LocalProtocolError(f"a keystream key has {KEY_BYTES} bytes, not {len(key)}", reason="key-length")
        if offset < 0 or offset % 16:
            raise LocalProtocolError("a keystream starts at a multiple of 16 bytes", reason="key-offset")
        # The key is fresh for every use, so the counter may start at the block number itself.
        nonce = (offset // 16).to_bytes(16, "big")
        self._stream = Cipher(algorithms.AES(key), modes.CTR(nonce)).encryptor()

    def __repr__(self) -> str:
        return "Keystream(...)"

    def fill(self, out: npt.NDArray[Any]) -> None:
        """Overwrite a contiguous array with the next bytes of the stream."""
        view = out.view(np.uint8).reshape(-1).data
        for start in range(0, len(view), len(_ZEROS)):
            part = view[start : start + len(_ZEROS)]
            self._stream.update_into(memoryview(_ZEROS)[: len(part)], part)

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        return self._stream.update(bytes(count))

    def uint16(self, count: int) -> npt.NDArray[np.uint16]:
        """The next `count` little-endian 16-bit words."""
        words = np.empty(count, "<u2")
        self.fill(words)
        return words

    def uint32(self, count: int) -> npt.NDArray[np.uint32]:
        """The next `count` little-endian 32-bit words."""
        words = np.empty(count, "<u4")
        self.fill(words)
        return words

    def uint64(self, count: int) -> npt.NDArray[np.uint64]:
        """The next `count` little-endian 64-bit words."""
        words = np.empty(count, "<u8")
        self.fill(words)
        return words


def binomial(keystream: Keystream, count: int) -> npt.NDArray[np.int8]:
    """`count` centred binomial draws, popcount of 64 bits less 32: sigma 4, |value| <= 32, free of branches."""
    return np.bitwise_count(keystream.uint64(count)).view(np.int8) - np.int8(32)
