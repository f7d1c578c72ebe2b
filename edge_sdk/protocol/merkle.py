"""Merkle tree hashes and inclusion proofs as in RFC 6962, section 2.1. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def _leaf(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(size: int) -> int:
    """The largest power of two smaller than `size`."""
    return 1 << (size - 1).bit_length() - 1


def root(leaves: Sequence[bytes]) -> bytes:
    """Tree head (32 bytes) over the leaves, which are arbitrary bytes."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    level = [_leaf(leaf) for leaf in leaves]
    while len(level) > 1:
        # Pairing neighbours and carrying an odd last node up gives the tree of RFC 6962.
        paired = [_node(a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = paired + level[2 * len(paired) :]
    return level[0]


def proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Audit path of leaf `index`, from the leaf upwards, 32 bytes each."""
    if len(leaves) <= 1:
        return []
    k = _split(len(leaves))
    if index < k:
        return [*proof(leaves[:k], index), root(leaves[k:])]
    return [*proof(leaves[k:], index - k), root(leaves[:k])]


def root_from_proof(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The head that `path` leads to, or None where the path does not fit the index and size (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return None
    position, last, digest = index, size - 1, _leaf(leaf)
    for step in path:
        if last == 0:
            return None
        if position & 1 or position == last:
            digest = _node(step, digest)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            digest = _node(digest, step)
        position, last = position >> 1, last >> 1
    return digest if last == 0 else None
