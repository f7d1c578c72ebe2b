"""Fetches files of the release repository in blocks that the device asks for. Knows no transport: it is passed in.

Targets carry their hash in their name, so a cut download goes on where it stopped. It refuses a block of another
length than asked for, a file whose size changes in between, and more bytes than the signed length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    LengthOrHashMismatchError,
)
from tuf.ngclient import FetcherInterface  # type: ignore[attr-defined] # re-exported without __all__

URL = "block:///"
BLOCK_BYTES = 48 * 1024  # a message holds 60 KiB with everything
WINDOW = 8

_CONTENT_NAME = re.compile(r"([0-9a-f]{64})\.[^/]+\Z")


@dataclass(frozen=True)
class Block:
    """An answer: the size of the whole file in bytes, and the bytes asked for."""

    total: int
    data: bytes


class NotFound(Exception):
    """The repository says that there is no such file."""


class TimedOut(Exception):
    """Nobody answered in time."""


Range = tuple[str, int, int]  # path, offset, length in bytes
Request = Callable[[str, int, int], Block]
RequestMany = Callable[[Sequence[Range]], Sequence[Block]]


class BlockFetcher(FetcherInterface):
    """TUF's view of `request(path, offset, length)`; `request_many` answers up to `window` ranges at once, in order."""

    def __init__(
        self,
        request: Request,
        partial_dir: Path,
        *,
        request_many: RequestMany | None = None,
        block_bytes: int = BLOCK_BYTES,
        window: int = WINDOW,
    ) -> None:
        self._request = request
        self._request_many = request_many
        self._partials = partial_dir
        self._block_bytes = block_bytes
        self._window = window if request_many else 1

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """As TUF asks; a target goes to a partial file on our own disk and survives a cut, metadata is short."""
        name = _CONTENT_NAME.search(url)
        if name is None:
            with super().download_file(url, max_length) as file:
                yield file
            return
        self._partials.mkdir(parents=True, exist_ok=True)
        part = self._partials / f"{name[1]}.part"
        try:
            with part.open("a+b") as file:
                self._fill(file, _path(url), max_length)
                file.seek(0)
                yield file
        except (LengthOrHashMismatchError, DownloadLengthMismatchError, OSError):
            part.unlink(missing_ok=True)  # poisoned or unwritable: going on from it would fail for ever
            raise
        part.unlink()

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = _path(url)
        first = self._ask([(path, 0, self._block_bytes)])[0]  # now, not lazily: absence must be seen as a 404
        _check_block(first, 0, self._block_bytes)
        return self._follow(path, first)

    def _follow(self, path: str, first: Block) -> Iterator[bytes]:
        yield first.data
        yield from self._rest(path, len(first.data), first.total)

    def _fill(self, file: IO[bytes], path: str, max_length: int) -> None:
        offset = file.seek(0, 2)
        if offset > max_length:
            offset = file.seek(file.truncate(0))
        first = self._ask([(path, offset, self._block_bytes)])[0]
        if first.total > max_length or first.total < offset:
            raise DownloadLengthMismatchError(f"{path}: {first.total} bytes offered, {max_length} signed")
        _check_block(first, offset, self._block_bytes)
        file.write(first.data)
        for data in self._rest(path, offset + len(first.data), first.total):
            file.write(data)
        file.flush()

    def _rest(self, path: str, offset: int, total: int) -> Iterator[bytes]:
        while offset < total:
            ends = range(offset, total, self._block_bytes)[: self._window]
            ranges = [(path, start, min(self._block_bytes, total - start)) for start in ends]
            for (_, start, length), block in zip(ranges, self._ask(ranges), strict=True):
                if block.total != total:
                    raise DownloadError(f"{path} changed its size while being fetched")
                _check_block(block, start, length)
                offset = start + length
                yield block.data

    def _ask(self, ranges: Sequence[Range]) -> Sequence[Block]:
        try:
            if self._request_many and len(ranges) > 1:
                return self._request_many(ranges)
            return [self._request(*wanted) for wanted in ranges]
        except NotFound:
            raise DownloadHTTPError(f"{ranges[0][0]} is absent", 404) from None
        except (TimedOut, OSError) as error:
            raise DownloadError(f"no answer for {ranges[0][0]}") from error


def _path(url: str) -> str:
    return url.removeprefix(URL)


def _check_block(block: Block, offset: int, length: int) -> None:
    expected = max(0, min(length, block.total - offset))
    if len(block.data) != expected:
        raise DownloadError(f"a block of {len(block.data)} bytes came where {expected} were asked for")
