"""Named blobs, fetched in blocks that this device asks for (SPEC 8). Reads no clock; draws no randomness of its own.

Refuses a blob above the limit its reader gave, a block nobody asked for and a size that changes in between. Silence
is met by asking again for what is missing, and in the end by `BlobTimeout`; what is there already is kept meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from edge_sdk.protocol.errors import UnexpectedMessage
from edge_sdk.protocol.messages import MAX_BLOCK_BYTES, Block, Get

WINDOW: Final = 8
ASK_AGAIN_S: Final = 4.0
GIVE_UP_S: Final = 60.0


class BlobError(Exception):
    """A blob did not come. `reason` is a word for counters and logs."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class BlobAbsent(BlobError):
    """The aggregator says that there is no such blob for this device."""


class BlobTimeout(BlobError):
    """Nobody answered; ask again when the connection is back."""


class BlobTooLong(BlobError):
    """More bytes than the reader allows."""


Result = Callable[[bytes, int, BlobError | None], None]  # data, size of the whole blob, or why not


@dataclass(slots=True)
class _Fetch:
    path: str
    start: int
    length: int  # bytes wanted from `start`; known exactly once the first block names the total
    limit: int
    done: Result
    parts: dict[int, bytes] = field(default_factory=dict)
    total: int | None = None
    waiting: deque[int] = field(default_factory=deque)  # offsets not asked for yet
    progress_at: float = 0.0


@dataclass(slots=True)
class _Asked:
    fetch: _Fetch
    offset: int
    length: int
    at: float


class BlobReader:
    """Fetches blobs and ranges of blobs, at most WINDOW blocks asked for at a time. One thread owns it."""

    def __init__(self, entropy: Callable[[int], bytes]) -> None:
        """`entropy(n)` gives n fresh random bytes, for the requests' nonces."""
        self._entropy = entropy
        self._fetches: list[_Fetch] = []
        self._asked: dict[bytes, _Asked] = {}

    def fetch(
        self, path: str, done: Result, now: float, *, limit: int, start: int = 0, length: int | None = None
    ) -> None:
        """Ask for a blob, or `length` bytes of it from `start`; `done(data, total, error)` is called exactly once."""
        first = _Fetch(path, start, limit if length is None else length, limit, done, progress_at=now)
        first.waiting.append(start)
        self._fetches.append(first)

    def receive(self, block: Block, now: float) -> None:
        """Take an answer. Raises UnexpectedMessage for one that was not asked for."""
        asked = self._asked.get(block.request)
        if asked is None or (block.path, block.offset) != (asked.fetch.path, asked.offset):
            raise UnexpectedMessage("a block that was not asked for", reason="unasked-block")
        del self._asked[block.request]
        fetch = asked.fetch
        if fetch not in self._fetches:
            return
        if not block.found:
            self._end(fetch, BlobAbsent(f"there is no {fetch.path}", reason="absent"))
        elif block.total > fetch.limit:
            self._end(
                fetch, BlobTooLong(f"{fetch.path} has {block.total} bytes, {fetch.limit} allowed", reason="too-long")
            )
        elif fetch.total not in (None, block.total) or len(block.data) != max(
            0, min(asked.length, block.total - asked.offset)
        ):
            self._end(fetch, BlobError(f"{fetch.path} changed while being fetched", reason="blob-changed"))
        else:
            self._keep(fetch, block, now)

    def _keep(self, fetch: _Fetch, block: Block, now: float) -> None:
        if fetch.total is None:
            fetch.total = block.total
            fetch.length = max(0, min(fetch.length, block.total - fetch.start))
            fetch.waiting.extend(range(fetch.start + MAX_BLOCK_BYTES, fetch.start + fetch.length, MAX_BLOCK_BYTES))
        fetch.parts[block.offset] = block.data
        fetch.progress_at = now
        if sum(map(len, fetch.parts.values())) >= fetch.length:
            self._end(fetch, None)

    def pump(self, ask: Callable[[Get], bool], now: float) -> None:
        """Ask for whatever may be asked now; give up what has been silent for too long."""
        for fetch in [f for f in self._fetches if now - f.progress_at > GIVE_UP_S]:
            self._end(fetch, BlobTimeout(f"no answer for {fetch.path} in {GIVE_UP_S:.0f} s", reason="silence"))
        for nonce, asked in [(n, a) for n, a in self._asked.items() if now - a.at > ASK_AGAIN_S]:
            del self._asked[nonce]
            asked.fetch.waiting.appendleft(asked.offset)
        for fetch in self._fetches:
            while fetch.waiting and len(self._asked) < WINDOW:
                offset = fetch.waiting[0]
                length = min(MAX_BLOCK_BYTES, fetch.start + fetch.length - offset)
                nonce = self._entropy(8)
                if not ask(Get(nonce, fetch.path, offset, max(1, length))):
                    return
                fetch.waiting.popleft()
                self._asked[nonce] = _Asked(fetch, offset, max(1, length), now)

    def reconnected(self) -> None:
        """Blocks that were asked for on the old connection may never come: ask again at once."""
        for asked in self._asked.values():
            asked.fetch.waiting.appendleft(asked.offset)
        self._asked.clear()

    @property
    def busy(self) -> bool:
        return bool(self._fetches)

    def abandon(self) -> None:
        """End every fetch; the device is closing."""
        for fetch in list(self._fetches):
            self._end(fetch, BlobTimeout("this device is closing", reason="closing"))

    def _end(self, fetch: _Fetch, error: BlobError | None) -> None:
        self._fetches.remove(fetch)
        self._asked = {nonce: asked for nonce, asked in self._asked.items() if asked.fetch is not fetch}
        data = b"" if error else b"".join(fetch.parts[offset] for offset in sorted(fetch.parts))
        fetch.done(data, fetch.total or 0, error)
