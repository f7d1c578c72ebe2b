"""Randomness that privacy rests on: AES-256-CTR under a key of operating-system entropy. Imports no torch.

torch's CPU generator keeps 32 bits of its seed, so its noise can be found by trying; Opacus' secure mode
cannot be installed. A key is used for one training job and never stored.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

KEY_BYTES = 32
_BLOCK_BYTES: Final = 16
_ZEROS: Final = memoryview(bytes(1 << 20))


class SecretStream:
    """Draws from one keystream in order. Hides its key when printed."""

    def __init__(self, key: bytes) -> None:
        """`key` is KEY_BYTES from the operating system. Raises ValueError for another length."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"a noise key has {KEY_BYTES} bytes, not {len(key)}")
        # One key, one stream, from counter 0: the nonce may be zero.
        self._encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(_BLOCK_BYTES))).encryptor()

    def __repr__(self) -> str:
        return "SecretStream(...)"

    @staticmethod
    def buffer_bytes(count: int) -> int:
        """The room that `fill` needs for `count` bytes: the cipher wants a block more."""
        return count + _BLOCK_BYTES

    def fill(self, buffer: bytearray, count: int) -> None:
        """Write `count` bytes to the start of `buffer`, which has room for buffer_bytes(count)."""
        view = memoryview(buffer)
        for start in range(0, count, len(_ZEROS)):
            self._encryptor.update_into(_ZEROS[: count - start], view[start:])

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """uint64 [count], uniform."""
        return np.frombuffer(self._encryptor.update(bytes(8 * count)), "<u8")

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """float64 [count], uniform on the multiples of 2^-53 in [0, 1)."""
        return (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def poisson_sample(self, count: int, rate: float) -> npt.NDArray[np.int64]:
        """Indices below `count`, each present independently with probability `rate` (within 2^-53)."""
        return np.flatnonzero(self.uniform(count) < rate)

    def permutation(self, count: int) -> npt.NDArray[np.int64]:
        """0 .. count-1 in random order."""
        return np.argsort(self.words(count), kind="stable")
