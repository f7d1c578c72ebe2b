"""The durable outbox: sealed once, charged once, sent until the signed receipt is in (SPEC 6).

Reads no clock and draws no randomness. Refuses a second upload for a round. An upload is one file of sealed chunks
(mode 0600) and one row; the file is on the disk before the row commits, and the row commits together with the charge
to the privacy ledger. Neither the content key nor anything in the clear is kept.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edge_sdk.device_db import count, transaction
from edge_sdk.device_round import OPEN_STATES, UploadEvent, UploadState, step
from edge_sdk.journal import Journal
from edge_sdk.protocol import chunks, codec
from edge_sdk.protocol.errors import LocalProtocolError, UnexpectedMessage
from edge_sdk.protocol.messages import Ack, Done, Grant, Hello, Message, Receipt, Refusal
from edge_sdk.protocol.sealing import ChunkSealer, seal_to_round

WINDOW: Final = 8
LONGEST_SILENCE_S: Final = 30.0
# The aggregator lost or never had the announcement, or its disk is full for now: say hello again, nothing is lost.
ANNOUNCE_AGAIN: Final = ("unknown-upload", "disk-full", "busy")

FILE_LOST: Final = "outbox-file"

log = logging.getLogger("edge_sdk")
Publish = Callable[[str, bytes], bool]  # topic kind, frame -> taken into the transport's window


@dataclass(frozen=True, slots=True)
class SealedUpload:
    """An upload as it lies on the disk: the hello's fields and every sealed chunk."""

    hello: Hello
    closes_at: int
    sealed: tuple[bytes, ...] = field(repr=False)


def seal_upload(
    plaintext: bytes, *, task: str, round_number: int, closes_at: int, offer_hash: bytes, device: str, round_key: bytes,
    consent: int, entropy: Callable[[int], bytes],
) -> SealedUpload:  # fmt: skip
    """Seal an upload once, under an id and a content key drawn from `entropy`. The content key is not kept."""
    upload, key = entropy(16), entropy(32)
    sealer = ChunkSealer(key, chunks.chunk_context(offer_hash, device, upload, len(plaintext)))
    total, view = chunks.chunk_count(len(plaintext)), memoryview(plaintext)
    size = chunks.CHUNK_BYTES
    sealed = tuple(sealer.seal(i, i == total - 1, view[i * size : (i + 1) * size]) for i in range(total))
    sealed_key = seal_to_round(key, round_key, chunks.hello_info(offer_hash, device, upload))
    hello = Hello(upload, task, round_number, offer_hash, len(plaintext), consent, sealed_key)
    return SealedUpload(hello, closes_at, sealed)


@dataclass(slots=True)
class _Entry:
    """The upload that is being sent."""

    hello: Hello
    closes_at: int
    state: UploadState
    held: chunks.Bitmap
    sent: set[int] = field(default_factory=set)  # in this process, for the count of what was sent again
    uncounted: list[bool] = field(default_factory=list)  # chunks sent since the row was last written; True: again
    outstanding: set[int] = field(default_factory=set)
    window: int = WINDOW
    heard_at: float = 0.0
    patience_s: float = 0.0
    greeted: bool = False
    done_sent: bool = False


class Outbox:
    """Sends the oldest unfinished upload. `now` is the verified time for deadlines, `tick` a monotonic one."""

    def __init__(
        self, connection: sqlite3.Connection, folder: Path, encode: Callable[[Message], bytes], silence_s: float,
        journal: Journal | None = None,
    ) -> None:  # fmt: skip
        """`encode` frames and signs a message of this device."""
        self._db, self._folder, self._encode, self._silence_s = connection, folder, encode, silence_s
        self._journal = journal
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._entry: _Entry | None = None
        self._connected = self._withdrawing = False
        self._remove_strays()

    # -- before sending --------------------------------------------------------------------------------------------

    @staticmethod
    def commit(connection: sqlite3.Connection, folder: Path, upload: SealedUpload, charge: Callable[[], None]) -> None:
        """Make an upload durable and charge for it: the file first, then one transaction for the row and the charge.

        `charge` runs inside the transaction and refuses by raising. Raises LocalProtocolError for a second upload of a
        round, OSError for a full disk; in both cases nothing is charged and no file is left.
        """
        path = folder / f"{upload.hello.upload.hex()}.sealed"
        hello = upload.hello
        try:
            _write_durably(path, upload.sealed)
            with transaction(connection):
                connection.execute(
                    "INSERT INTO outbox (upload, task, round, offer_hash, size, consent, sealed_key, closes_at, state)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (hello.upload, hello.task, hello.round, hello.offer_hash, hello.size, hello.consent,
                     hello.sealed_key, upload.closes_at, UploadState.ANNOUNCED.value),
                )  # fmt: skip
                connection.execute(
                    "INSERT INTO uploaded VALUES (?, ?, ?) ON CONFLICT (task) DO UPDATE"
                    " SET round = excluded.round, offer_hash = excluded.offer_hash WHERE excluded.round > round",
                    (hello.task, hello.round, hello.offer_hash),
                )
                charge()
        except sqlite3.IntegrityError as error:
            path.unlink(missing_ok=True)
            raise LocalProtocolError(f"round {hello.round} of {hello.task} has an upload", reason="round") from error
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _remove_strays(self) -> None:
        """A crash between file and row leaves a file nobody paid for."""
        known = {row[0].hex() for row in self._db.execute("SELECT upload FROM outbox WHERE state IN (?, ?, ?)", _OPEN)}
        for path in self._folder.glob("*.sealed"):
            if path.stem not in known:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    # -- the conversation ------------------------------------------------------------------------------------------

    def on_connection(self, up: bool, tick: float) -> None:
        """After a reconnect the upload is announced again; the grant says what is missing."""
        self._connected = up
        if up and self._entry is not None:
            self._again(UploadEvent.RECONNECT, tick)

    def receive(self, message: Grant | Ack | Receipt | Refusal, tick: float) -> None:
        """Take an answer about the current upload. Raises RemoteProtocolError for another upload or a bad bitmap."""
        entry = self._entry
        if entry is None or message.upload != entry.hello.upload:
            raise UnexpectedMessage("an answer about an upload that is not being sent", reason="unknown-upload")
        entry.heard_at, entry.patience_s = tick, self._silence_s
        if isinstance(message, Grant):
            self._granted(entry, message)
        elif isinstance(message, Ack):
            self._acknowledged(entry, message.received)
        elif isinstance(message, Receipt):
            self._finish(
                entry, UploadEvent.RECEIPT_ACCEPTED if message.accepted else UploadEvent.RECEIPT_REFUSED, message.reason
            )
        elif message.reason not in ANNOUNCE_AGAIN:
            self._finish(entry, UploadEvent.REFUSAL, message.reason)
        else:
            # Not at once: a refusal that repeats must not become a storm.
            entry.state, entry.greeted = step(entry.state, UploadEvent.SILENCE), True

    def pump(self, publish: Publish, now: int, tick: float) -> None:
        """Send whatever may be sent at this moment; stops when the transport's window is full.

        An upload whose file is gone or damaged ends as refused, counted as `outbox-file`: nobody can send it any more.
        """
        entry = self._entry = self._entry or self._next(tick)
        if entry is None or self._withdrawing:
            return
        if now >= entry.closes_at:
            self._finish(entry, UploadEvent.CLOSED, "closed")
            return
        if not self._connected:
            return
        if tick - entry.heard_at >= entry.patience_s:
            self._again(UploadEvent.SILENCE, tick)
        if entry.state is UploadState.ANNOUNCED and not entry.greeted:
            entry.greeted = publish("hello", self._encode(entry.hello))
        elif entry.state is UploadState.SENDING:
            try:
                self._send_chunks(entry, publish)
            except _FileLost as error:
                log.error("upload for round %d of %s cannot go on: %s", entry.hello.round, entry.hello.task, error)
                self._finish(entry, UploadEvent.REFUSAL, FILE_LOST)
            except OSError as error:  # too many open files, a disk that stumbles: until the round closes
                log.warning("upload for round %d of %s has to wait: %s", entry.hello.round, entry.hello.task, error)
        elif entry.state is UploadState.SENT and not entry.done_sent:
            entry.done_sent = publish("done", self._encode(Done(entry.hello.upload)))

    def withdraw(self, task: str | None) -> dict[str, list[bytes]]:
        """End every unfinished upload of a task, or of every task: task -> upload ids. Their bytes are deleted.

        Raises DiskFull, sqlite3.Error; then nothing at all is sent until a repeat of this call succeeds.
        """
        self._withdrawing = True
        rows = self._db.execute(
            "SELECT task, upload, state FROM outbox WHERE state IN (?, ?, ?) AND task = COALESCE(?, task)",
            (*_OPEN, task),
        ).fetchall()
        ended: dict[str, list[bytes]] = {}
        with transaction(self._db):
            for of, upload, state in rows:
                following = step(UploadState(state), UploadEvent.CONSENT_WITHDRAWN)
                self._db.execute("UPDATE outbox SET state = ? WHERE upload = ?", (following.value, upload))
                count(self._db, "upload", following.value)
                ended.setdefault(of, []).append(upload)
            for of, uploads in ended.items():
                if self._journal is not None:
                    self._journal.note("withdrawn", of, uploads=len(uploads))
        self._withdrawing = False
        if self._entry is not None and self._entry.hello.upload in {row[1] for row in rows}:
            self._entry = None
        for _, upload, _ in rows:
            with contextlib.suppress(OSError):  # a file that cannot be removed now is a stray at the next start
                (self._folder / f"{upload.hex()}.sealed").unlink(missing_ok=True)
        return ended

    def withdrawn(self, now: int) -> dict[str, list[bytes]]:
        """Withdrawn uploads whose round may still be open: task -> upload ids."""
        rows = self._db.execute(
            "SELECT task, upload FROM outbox WHERE state = ? AND closes_at > ?", (UploadState.WITHDRAWN.value, now)
        )
        told: dict[str, list[bytes]] = {}
        for task, upload in rows:
            told.setdefault(task, []).append(upload)
        return told

    def pending(self) -> int:
        """Uploads that have no final answer yet."""
        (n,) = self._db.execute("SELECT COUNT(*) FROM outbox WHERE state IN (?, ?, ?)", _OPEN).fetchone()
        return int(n)

    @property
    def sending(self) -> bool:
        """True while an upload has no final answer."""
        return self._entry is not None

    def _next(self, tick: float) -> _Entry | None:
        row = self._db.execute(
            "SELECT upload, task, round, offer_hash, size, consent, sealed_key, closes_at FROM outbox"
            " WHERE state IN (?, ?, ?) ORDER BY closes_at, round LIMIT 1",
            _OPEN,
        ).fetchone()
        if row is None:
            return None
        hello = Hello(*row[:7])
        held = chunks.Bitmap(chunks.chunk_count(hello.size))
        return _Entry(hello, row[7], UploadState.ANNOUNCED, held, heard_at=tick, patience_s=self._silence_s)

    def _again(self, event: UploadEvent, tick: float) -> None:
        entry = self._entry
        assert entry is not None
        entry.state = step(entry.state, event)
        entry.greeted = entry.done_sent = False
        entry.outstanding.clear()
        entry.heard_at = tick
        patience = self._silence_s if event is UploadEvent.RECONNECT else 2 * entry.patience_s
        entry.patience_s = min(patience, max(LONGEST_SILENCE_S, self._silence_s))

    def _granted(self, entry: _Entry, grant: Grant) -> None:
        entry.state = step(entry.state, UploadEvent.GRANT)
        entry.window = min(grant.window, WINDOW)
        entry.outstanding.clear()
        self._acknowledged(entry, grant.received)

    def _acknowledged(self, entry: _Entry, received: bytes) -> None:
        entry.held.merge(chunks.Bitmap.decode(received, entry.held.count))
        entry.outstanding = {i for i in entry.outstanding if i not in entry.held}
        complete = entry.held.complete
        entry.state = step(entry.state, UploadEvent.ACK_COMPLETE if complete else UploadEvent.ACK_PARTIAL)
        self._write_counts(entry)

    def _write_counts(self, entry: _Entry) -> None:
        # Once an acknowledgement, not once a chunk: every write is an fsync.
        self._db.execute(
            "UPDATE outbox SET sent = sent + ?, resent = resent + ? WHERE upload = ?",
            (len(entry.uncounted), sum(entry.uncounted), entry.hello.upload),
        )
        entry.uncounted.clear()

    def _send_chunks(self, entry: _Entry, publish: Publish) -> None:
        path = self._path(entry)
        for index in entry.held.missing():
            if len(entry.outstanding) >= entry.window:
                return
            if index in entry.outstanding:
                continue
            sealed = _read_chunk(path, entry.hello.size, index)
            if not publish("data", codec.encode_chunk(codec.Chunk(entry.hello.upload, index, sealed))):
                return
            entry.uncounted.append(index in entry.sent)
            entry.sent.add(index)
            entry.outstanding.add(index)

    def _finish(self, entry: _Entry, event: UploadEvent, reason: str) -> None:
        following = step(entry.state, event)
        if following not in OPEN_STATES:
            # Before the state moves: where the disk is full the upload stays open, and its answer comes again.
            with transaction(self._db):
                self._db.execute(
                    "UPDATE outbox SET state = ?, reason = ? WHERE upload = ?",
                    (following.value, reason, entry.hello.upload),
                )
                count(self._db, "upload", following.value)
                if self._journal is not None:
                    facts = {"upload": entry.hello.upload.hex(), "state": following.value, "reason": reason}
                    self._journal.note("receipt", entry.hello.task, entry.hello.round, **facts)
                if reason == FILE_LOST:
                    count(self._db, "refusal", FILE_LOST)
        entry.state = following
        if following in OPEN_STATES:
            return
        # The row stays: it is how this device knows that the round is spent. The sealed bytes are of no more use.
        self._entry = None
        with contextlib.suppress(OSError):  # a file that cannot be removed now is a stray at the next start
            self._path(entry).unlink(missing_ok=True)
        log.info("upload for round %d of %s: %s %s", entry.hello.round, entry.hello.task, entry.state.value, reason)

    def _path(self, entry: _Entry) -> Path:
        return self._folder / f"{entry.hello.upload.hex()}.sealed"


_OPEN: Final = tuple(state.value for state in OPEN_STATES)


def _write_durably(path: Path, parts: tuple[bytes, ...]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class _FileLost(Exception):
    """The sealed bytes of an upload are not there any more."""


def _read_chunk(path: Path, size: int, index: int) -> bytes:
    """One sealed chunk. Raises _FileLost; OSError where the disk may give it another time."""
    length = chunks.sealed_chunk_size(size, index)
    try:
        with path.open("rb") as file:
            file.seek(chunks.sealed_offset(index))
            sealed = file.read(length)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise _FileLost(f"{path.name} is gone") from error
    if len(sealed) != length:
        raise _FileLost(f"{path.name} ends before chunk {index}")
    return sealed
