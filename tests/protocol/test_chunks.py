"""Chunks and bitmaps: every upload is cut and put together again, and no other bitmap means the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.protocol import chunks, codec
from edge_sdk.protocol.chunks import CHUNK_BYTES, Bitmap
from edge_sdk.protocol.errors import MalformedMessage, WrongSeal
from edge_sdk.protocol.messages import MAX_UPLOAD_BYTES, Grant
from edge_sdk.protocol.sealing import TAG_BYTES, ChunkSealer

SEALER = ChunkSealer(bytes(32), chunks.chunk_context(bytes(32), "d1", bytes(16), 5))
FEW = settings(max_examples=80, derandomize=True, deadline=None, database=None)


@pytest.mark.parametrize("size", [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 10**7 + 1])
def test_the_chunks_of_an_upload_cover_it_without_gap(size):
    count = chunks.chunk_count(size)
    sizes = [chunks.sealed_chunk_size(size, index) - TAG_BYTES for index in range(count)]
    assert sum(sizes) == size
    assert all(part == CHUNK_BYTES for part in sizes[:-1])
    assert 0 < sizes[-1] <= CHUNK_BYTES
    offsets = [chunks.sealed_offset(index) for index in range(count)]
    assert offsets == [sum(part + TAG_BYTES for part in sizes[:index]) for index in range(count)]


def test_the_bitmap_of_the_largest_upload_fits_its_message():
    bitmap = Bitmap(chunks.chunk_count(MAX_UPLOAD_BYTES), range(chunks.chunk_count(MAX_UPLOAD_BYTES)))
    grant = Grant(bytes(16), 8, bitmap.encode())
    assert codec.unpack(codec.pack(grant), Grant) == grant


@given(st.integers(0, 70).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, max(0, n - 1)), max_size=n))))
@FEW
def test_a_bitmap_comes_back_as_it_went(drawn):
    count, held = drawn
    bitmap = Bitmap.decode(Bitmap(count, held).encode(), count)
    assert {index for index in range(count) if index in bitmap} == held
    assert list(bitmap.missing()) == [index for index in range(count) if index not in held]
    assert len(bitmap) == len(held)
    assert bitmap.complete == (len(held) == count)


@given(st.binary(max_size=9), st.integers(0, 70))
@FEW
def test_arbitrary_bytes_are_the_one_form_of_a_bitmap_or_refused(data, count):
    try:
        again = Bitmap.decode(data, count).encode()
    except MalformedMessage as error:
        again = data if error.reason == "bitmap" else b""
    assert again == data


@pytest.mark.parametrize("index", [-1, 9, 100])
def test_a_chunk_past_the_last_is_not_held(index):
    bitmap = Bitmap(9)
    with pytest.raises(MalformedMessage) as refusal:
        bitmap.add(index)
    assert refusal.value.reason == "chunk-index"
    assert len(bitmap) == 0


def test_merging_keeps_what_either_side_has():
    left, right = Bitmap(9, [0, 3]), Bitmap(9, [3, 8])
    left.merge(right)
    assert left.encode() == Bitmap(9, [0, 3, 8]).encode()
    left.add(3)
    assert len(left) == 3


@given(st.permutations(range(5)), st.integers(0, 4))
@FEW
def test_chunks_open_in_any_order_and_only_in_their_own_place(order, other):
    sealed = [SEALER.seal(index, index == 4, bytes([index]) * (index + 1)) for index in range(5)]
    for index in order:
        assert SEALER.open(index, index == 4, sealed[index]) == bytes([index]) * (index + 1)
        if other != index:
            with pytest.raises(WrongSeal):
                SEALER.open(other, other == 4, sealed[index])
        with pytest.raises(WrongSeal):
            SEALER.open(index, index != 4, sealed[index])
