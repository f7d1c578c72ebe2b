"""Blocks to files: whole, resumed, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError

from edge_sdk.ota.fetcher import Block, BlockFetcher, NotFound, Range, TimedOut

TARGET = "block:///targets/models/churn/" + "a" * 64 + ".1.onnx"
METADATA = "block:///metadata/timestamp.json"


class File:
    """One file of a repository that remembers what was asked."""

    def __init__(self, data: bytes, cut_after: int = 1 << 30) -> None:
        self.data = data
        self.cut_after = cut_after
        self.ranges: list[tuple[int, int]] = []
        self.batches: list[int] = []

    def request(self, path: str, offset: int, length: int) -> Block:
        if len(self.ranges) >= self.cut_after:
            raise TimedOut
        self.ranges.append((offset, length))
        return Block(len(self.data), self.data[offset : offset + length])

    def request_many(self, ranges: Sequence[Range]) -> list[Block]:
        self.batches.append(len(ranges))
        return [self.request(*wanted) for wanted in ranges]


@given(data=st.binary(max_size=400), block_bytes=st.integers(1, 64), window=st.integers(1, 9), target=st.booleans())
def test_every_file_arrives_whole_at_every_block_size_and_window(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, block_bytes: int, window: int, target: bool
) -> None:
    file = File(data)
    fetcher = BlockFetcher(
        file.request,
        tmp_path_factory.mktemp("partial"),
        request_many=file.request_many,
        block_bytes=block_bytes,
        window=window,
    )
    assert fetcher.download_bytes(TARGET if target else METADATA, len(data)) == data
    assert max(file.batches, default=1) <= window


def test_a_window_asks_for_eight_blocks_at_once(tmp_path: Path) -> None:
    file = File(bytes(17 * 10))
    fetcher = BlockFetcher(file.request, tmp_path, request_many=file.request_many, block_bytes=10)
    fetcher.download_bytes(TARGET, 170)
    assert file.batches == [8, 8]


def test_a_resumed_target_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    data = bytes(range(100))
    with pytest.raises(DownloadError):
        BlockFetcher(File(data, cut_after=4).request, tmp_path, block_bytes=10).download_bytes(TARGET, 100)
    rest = File(data)
    assert BlockFetcher(rest.request, tmp_path, block_bytes=10).download_bytes(TARGET, 100) == data
    assert [offset for offset, _ in rest.ranges] == [40, 50, 60, 70, 80, 90]
    assert not list(tmp_path.iterdir())


def test_a_target_that_was_complete_when_the_process_died_is_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / ("a" * 64 + ".part")).write_bytes(b"whole")
    file = File(b"whole")
    assert BlockFetcher(file.request, tmp_path).download_bytes(TARGET, 5) == b"whole"
    assert [offset for offset, _ in file.ranges] == [5]


def test_absence_is_a_404_at_once_and_silence_is_not(tmp_path: Path) -> None:
    def absent(path: str, offset: int, length: int) -> Block:
        raise NotFound

    with pytest.raises(DownloadHTTPError) as caught:
        BlockFetcher(absent, tmp_path).fetch(METADATA)
    assert caught.value.status_code == 404
    with pytest.raises(DownloadError) as silent:
        BlockFetcher(File(b"x", cut_after=0).request, tmp_path).fetch(METADATA)
    assert not isinstance(silent.value, DownloadHTTPError)


@pytest.mark.parametrize("data", [b"", b"short", b"x" * 11])
def test_a_block_of_another_length_than_asked_for_is_refused(tmp_path: Path, data: bytes) -> None:
    fetcher = BlockFetcher(lambda path, offset, length: Block(100, data), tmp_path, block_bytes=10)
    for url in (TARGET, METADATA):
        with pytest.raises(DownloadError):
            fetcher.download_bytes(url, 100)


def test_a_file_that_changes_its_size_is_refused(tmp_path: Path) -> None:
    fetcher = BlockFetcher(lambda path, offset, length: Block(100 + offset, bytes(length)), tmp_path, block_bytes=10)
    with pytest.raises(DownloadError, match="changed its size"):
        fetcher.download_bytes(METADATA, 500)


def test_a_target_longer_than_signed_leaves_no_partial_file(tmp_path: Path) -> None:
    with pytest.raises(DownloadLengthMismatchError):
        BlockFetcher(File(bytes(100)).request, tmp_path, block_bytes=10).download_bytes(TARGET, 99)
    assert not list(tmp_path.iterdir())
