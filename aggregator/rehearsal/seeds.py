"""Keys of a rehearsal, all from one number, so that it can be run again.

A REHEARSAL'S NOISE IS REPRODUCIBLE AND PROTECTS NOBODY: whoever knows the seed can take it off again. What a rehearsal
computes stays where its data already is; a device draws its keys from the operating system.
"""

from __future__ import annotations

import hashlib

import numpy as np

KEY_BYTES = 32


class Seeds:
    """Keys by purpose, round and device."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def key(self, purpose: str, number: int = 0, device: int = 0) -> bytes:
        """32 bytes; the same for the same arguments."""
        words = f"chorale/rehearsal/{self._seed}/{purpose}/{number}/{device}"
        return hashlib.sha256(words.encode()).digest()

    def generator(self, purpose: str, number: int = 0) -> np.random.Generator:
        """For choices that are no secret anywhere, such as who takes part."""
        return np.random.default_rng(int.from_bytes(self.key(purpose, number)))
