"""Randomness that privacy rests on: AES-256-CTR under a key of operating-system entropy. Imports no torch.

torch's CPU generator keeps 32 bits of its seed, so its noise can be found by trying; Opacus' secure mode
cannot be installed. A key is used for one training job and never stored.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

KEY_BYTES = 32


class SecretStream:
    """Draws from one keystream in order. Hides its key when printed."""

    def __init__(self, key: bytes) -> None:
        """`key` is KEY_BYTES from the operating system. Raises ValueError for another length."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"a noise key has {KEY_BYTES} bytes, not {len(key)}")
        # One key, one stream, from counter 0: the nonce may be zero.
        self._encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def __repr__(self) -> str:
        return "SecretStream(...)"

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """uint64 [count], uniform."""
        return np.frombuffer(self._encryptor.update(bytes(8 * count)), "<u8")

    def normal(self, count: int) -> npt.NDArray[np.float32]:
        """float32 [count], standard normal (Box, Muller 1958), drawn from 53-bit uniforms: tails to 8.5 sigma."""
        half = (count + 1) // 2
        uniform = (self.words(2 * half) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log1p(-uniform[:half]))
        angle = 2.0 * np.pi * uniform[half:]
        pair = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        return pair[:count].astype(np.float32)

    def poisson_sample(self, count: int, rate: float) -> npt.NDArray[np.int64]:
        """Indices below `count`, each present independently with probability `rate` (within 2^-53)."""
        uniform = (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return np.flatnonzero(uniform < rate)

    def permutation(self, count: int) -> npt.NDArray[np.int64]:
        """0 .. count-1 in random order."""
        return np.argsort(self.words(count), kind="stable")
