"""Blobs in blocks: whole, in a window of eight, resumed after silence, bounded."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.blobs import WINDOW, BlobAbsent, BlobError, BlobReader, BlobTimeout, BlobTooLong
from edge_sdk.protocol.errors import UnexpectedMessage
from edge_sdk.protocol.messages import MAX_BLOCK_BYTES, Block, Get

BLOB = os.urandom(20 * MAX_BLOCK_BYTES + 17)


class Reading:
    """A reader, its clock and what came out."""

    def __init__(self, limit: int = len(BLOB), start: int = 0, length: int | None = None) -> None:
        self.reader, self.now, self.results = BlobReader(os.urandom), 0.0, []
        self.reader.fetch(
            "checkpoint/x",
            lambda *result: self.results.append(result),
            self.now,
            limit=limit,
            start=start,
            length=length,
        )

    def asked(self) -> list[Get]:
        gets: list[Get] = []
        self.reader.pump(lambda get: gets.append(get) is None, self.now)
        return gets

    def serve(self, get: Get, blob: bytes = BLOB) -> None:
        data = blob[get.offset : get.offset + get.length]
        self.reader.receive(Block(get.request, get.path, get.offset, len(blob), True, data), self.now)


@settings(max_examples=25, deadline=None)
@given(lost=st.sets(st.integers(0, 60), max_size=30), order=st.randoms())
def test_a_blob_arrives_whole_whatever_is_lost_and_in_any_order(lost, order):
    reading, number = Reading(), 0
    while not reading.results:
        gets = reading.asked()
        order.shuffle(gets)
        for get in gets:
            if number not in lost:
                reading.serve(get)
            number += 1
        reading.now += 5.0
    assert reading.results == [(BLOB, len(BLOB), None)]


def test_no_more_than_eight_blocks_are_asked_for_at_once():
    reading = Reading()
    reading.serve(reading.asked()[0])
    assert len(reading.asked()) == WINDOW
    assert reading.asked() == []


def test_a_range_is_a_range():
    reading = Reading(start=1000, length=70_000)
    while not reading.results:
        for get in reading.asked():
            reading.serve(get)
    assert reading.results == [(BLOB[1000:71_000], len(BLOB), None)]


def test_an_empty_blob_is_a_blob():
    reading = Reading()
    reading.serve(reading.asked()[0], b"")
    assert reading.results == [(b"", 0, None)]


@pytest.mark.parametrize(
    ("total", "found", "data", "error"),
    [
        (0, False, b"", BlobAbsent),
        (len(BLOB) + 1, True, BLOB[:MAX_BLOCK_BYTES], BlobTooLong),
        (len(BLOB), True, BLOB[: MAX_BLOCK_BYTES - 1], BlobError),
    ],
)
def test_an_answer_that_cannot_be_right_ends_the_fetch(total, found, data, error):
    reading = Reading()
    get = reading.asked()[0]
    reading.reader.receive(Block(get.request, get.path, get.offset, total, found, data), 0.0)
    assert isinstance(reading.results[0][2], error)
    assert not reading.reader.busy


def test_a_block_nobody_asked_for_is_refused():
    reading = Reading()
    get = reading.asked()[0]
    with pytest.raises(UnexpectedMessage):
        reading.reader.receive(Block(bytes(8), get.path, get.offset, 1, True, b"x"), 0.0)
    with pytest.raises(UnexpectedMessage):
        reading.reader.receive(Block(get.request, "another", get.offset, 1, True, b"x"), 0.0)


def test_silence_ends_in_a_timeout_not_in_waiting_for_ever():
    reading = Reading()
    for _ in range(20):
        reading.asked()
        reading.now += 5.0
    assert isinstance(reading.results[0][2], BlobTimeout)


def test_after_a_reconnect_what_was_asked_for_is_asked_again_at_once():
    reading = Reading()
    first = reading.asked()[0]
    reading.reader.reconnected()
    again = reading.asked()[0]
    assert again.offset == first.offset
    assert again.request != first.request
