"""Merkle trees by the definition of RFC 6962: a proof leads to the head from its own leaf and place only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.protocol import merkle
from edge_sdk.protocol.secagg.server import share_proofs

FEW = settings(max_examples=80, derandomize=True, deadline=None, database=None)
LEAVES = st.lists(st.binary(max_size=6), min_size=1, max_size=40)


def head(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962, 2.1: split at the largest power of two smaller than the size."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = max(2**k for k in range(len(leaves).bit_length()) if 2**k < len(leaves))
    return hashlib.sha256(b"\x01" + head(leaves[:split]) + head(leaves[split:])).digest()


@given(st.lists(st.binary(max_size=6), max_size=40))
@FEW
def test_the_head_is_that_of_the_definition(leaves):
    assert merkle.root(leaves) == head(leaves)


@given(LEAVES, st.data())
@FEW
def test_a_proof_leads_from_its_leaf_to_the_head(leaves, data):
    index = data.draw(st.integers(0, len(leaves) - 1))
    path = merkle.proof(leaves, index)
    assert merkle.root_from_proof(leaves[index], index, len(leaves), path) == head(leaves)
    assert share_proofs(leaves)[index] == path


@given(LEAVES, st.data())
@FEW
def test_no_other_leaf_place_size_or_path_leads_there(leaves, data):
    index = data.draw(st.integers(0, len(leaves) - 1))
    path, size = merkle.proof(leaves, index), len(leaves)
    assert merkle.root_from_proof(leaves[index] + b"x", index, size, path) != head(leaves)
    for other in range(size):
        if other != index:
            found = merkle.root_from_proof(leaves[index], other, size, path)
            assert found != head(leaves) or leaves[other] == leaves[index]
    for longer in ([*path, bytes(32)], path[:-1] if path else [bytes(32)]):
        assert merkle.root_from_proof(leaves[index], index, size, longer) is None
    for at in range(len(path)):
        changed = [*path[:at], bytes(32), *path[at + 1 :]]
        assert merkle.root_from_proof(leaves[index], index, size, changed) != head(leaves)


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0), (5, 2)])
def test_a_place_outside_the_tree_has_no_head(index, size):
    assert merkle.root_from_proof(b"leaf", index, size, []) is None


def test_an_inner_node_is_not_a_leaf():
    """The second preimage of plain hash trees: two hashes laid end to end, shown as one leaf."""
    leaves = [b"a", b"b", b"c", b"d"]
    inner = hashlib.sha256(b"\x00a").digest() + hashlib.sha256(b"\x00b").digest()
    right = merkle.root(leaves[2:])
    assert merkle.root_from_proof(inner, 0, 2, [right]) != merkle.root(leaves)
