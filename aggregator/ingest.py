"""Uploads, from the hello to the receipt (SPEC 6): opened on arrival, durable before acknowledged. Reads no clock.

Refuses, with the reason of the specification, whatever is not an upload of a device in the round's roster, of the
exact size, sealed for this round and signed. A refused message changes nothing; a full disk loses nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from aggregator.grouping import Grouping
from aggregator.home import Home
from aggregator.round_terms import RoundTerms
from aggregator.spool import SpoolFile
from aggregator.store.rows import UploadRow
from aggregator.store.store import Store
from aggregator.summing import GroupSums
from edge_sdk.protocol.chunks import CHUNK_BYTES, Bitmap, chunk_context, chunk_count, hello_info, sealed_chunk_size
from edge_sdk.protocol.codec import Chunk
from edge_sdk.protocol.errors import MalformedMessage, RemoteProtocolError, UnexpectedMessage, WrongSeal
from edge_sdk.protocol.messages import Ack, Grant, Hello, Message, Receipt
from edge_sdk.protocol.sealing import CONTENT_KEY_BYTES, ChunkSealer
from edge_sdk.protocol.secagg.client import MaskedUpload, verify_upload

WINDOW: Final = 8
ACK_CHUNKS: Final = 8
ACK_S: Final = 0.5
MOST_REMEMBERED: Final = 8  # withdrawn uploads of one device in one round, of which nothing else is known


@dataclass(slots=True)
class _Arriving:
    """An upload of which chunks are missing. `held` are written, `durable` are on disk and in the tables."""

    row: UploadRow
    terms: RoundTerms
    file: SpoolFile
    sealer: ChunkSealer = field(repr=False)
    held: Bitmap
    durable: bytes
    since: float | None = None  # of the oldest chunk that is owed an acknowledgement
    unacknowledged: int = 0


class Verified(NamedTuple):
    """`shares`: signature and sealed shares, for the committee; `residues`: what the sum takes (SPEC 6.1.1)."""

    shares: bytes
    residues: bytes | bytearray | memoryview


@dataclass(slots=True)
class _Open:
    """A round that takes uploads."""

    terms: RoundTerms
    grouping: Grouping
    sums: GroupSums


class Ingest:
    """The uploads of every open round."""

    def __init__(self, store: Store, home: Home) -> None:
        self._store, self._home = store, home
        self._rounds: dict[tuple[str, int], _Open] = {}
        self._arriving: dict[bytes, _Arriving] = {}
        self.bytes_received = 0

    # -- rounds

    def open_round(self, terms: RoundTerms, grouping: Grouping, now: float) -> None:
        """Begin or take up a round: its last snapshots, then every accepted upload that they do not hold."""
        opened = _Open(terms, grouping, GroupSums(self._store, self._home, terms))
        self._rounds[terms.name] = opened
        for row in self._store.uploads(*terms.name, "accepted"):
            opened.sums[row.group].take_up(SpoolFile(self._home.spool, row.id, row.size), now)
        for row in self._store.uploads(*terms.name, "receiving"):
            self._take_up(row, terms)

    def close_round(self, task: str, number: int) -> GroupSums:
        """Take nothing more, make the sums durable and give them. Raises DiskFull: call again."""
        opened = self._rounds[task, number]
        for each in opened.sums:
            each.snapshot()
        for upload in [u for u in self._arriving.values() if u.terms.name == (task, number)]:
            self._drop(upload)
        return opened.sums

    def forget_round(self, task: str, number: int) -> None:
        """The round is over: nothing of its uploads stays."""
        for upload in [u for u in self._arriving.values() if u.terms.name == (task, number)]:
            self._drop(upload)
        if (opened := self._rounds.pop((task, number), None)) is not None:
            for each in opened.sums:
                each.forget()

    def sweep(self) -> None:
        """Remove files that no table names: what a crash left behind."""
        named = {upload.file.path for upload in self._arriving.values()}
        for opened in self._rounds.values():
            rows = self._store.uploads(*opened.terms.name, "accepted")
            named |= {self._home.spool / f"{row.id.hex()}.upload" for row in rows}
            named |= {each.file for each in opened.sums if each.file is not None}
        for directory in (self._home.spool, self._home.sums):
            for file in directory.iterdir():
                if file not in named:
                    file.unlink()

    def _take_up(self, row: UploadRow, terms: RoundTerms) -> _Arriving:
        assert row.content_key is not None
        context = chunk_context(terms.offer_hash, row.device, row.id, row.size)
        held = Bitmap.decode(row.received, chunk_count(row.size)) if row.received else Bitmap(chunk_count(row.size))
        file = SpoolFile(self._home.spool, row.id, row.size)
        sealer = ChunkSealer(row.content_key, context)
        upload = _Arriving(row, terms, file, sealer, held, durable=held.encode())
        self._arriving[row.id] = upload
        return upload

    def _drop(self, upload: _Arriving) -> None:
        del self._arriving[upload.row.id]
        self._store.set_upload(upload.row.id, state="dropped", content_key=None)
        upload.file.remove()

    def drop_device(self, device: str) -> None:
        """A revoked device's unfinished uploads go."""
        for upload in [u for u in self._arriving.values() if u.row.device == device]:
            self._drop(upload)

    def withdraw(self, device: str, task: str, uploads: Collection[bytes], now: float) -> int:
        """Drop what a device withdraws (SPEC 6.7), all of the task where nothing is named; returns how many there were.

        What is accepted is in a masked sum and stays there. An id that is not known yet is remembered as dropped, so
        that its Hello, delivered late, grants nothing.
        """
        mine = [u for u in self._arriving.values() if u.row.device == device and u.terms.name[0] == task]
        dropped = [u for u in mine if not uploads or u.row.id in uploads]
        for upload in dropped:
            self._drop(upload)
        for terms in [opened.terms for opened in self._rounds.values() if opened.terms.name[0] == task]:
            if any(u.row.device == device and u.terms is terms for u in self._arriving.values()):
                continue
            known = [row for row in self._store.uploads(*terms.name, "dropped") if row.device == device]
            unknown = [identity for identity in uploads if self._store.upload(identity) is None]
            for identity in unknown[: max(0, MOST_REMEMBERED - len(known))]:
                self._store.put_upload(UploadRow(identity, *terms.name, device, 0, "dropped", None, b"", None, now))
        return len(dropped)

    # -- messages

    def receipt_for(self, device: str, upload: bytes) -> Receipt | None:
        """The final word on an upload of this device, where there is one."""
        row = self._store.upload(upload)
        if row is None or row.state == "receiving":
            return None
        if row.device != device:
            raise UnexpectedMessage("this upload id is another device's", reason="upload-id")
        accepted = row.state in ("accepted", "summed")
        return Receipt(upload, accepted, "" if accepted else "dropped")

    def hello(self, device: str, hello: Hello, now: float) -> Grant:
        """Grant an upload. The caller has asked the round whether this device may send.

        Raises RemoteProtocolError: "closed", "roster", "size", "upload-id", "round-seal"; DiskFull.
        """
        terms = self._terms_for(device, hello)
        known = self._arriving.get(hello.upload)
        if known is not None:
            if known.row.device != device:
                raise UnexpectedMessage("this upload id is another device's", reason="upload-id")
            self._flush([known])
            return Grant(hello.upload, WINDOW, known.durable)
        key = terms.key.open(hello.sealed_key, hello_info(terms.offer_hash, device, hello.upload))
        if len(key) != CONTENT_KEY_BYTES:
            raise WrongSeal("the content key has the wrong length", reason="round-seal")
        empty = Bitmap(chunk_count(hello.size)).encode()
        row = UploadRow(hello.upload, *terms.name, device, hello.size, "receiving", key, empty, None, now)
        SpoolFile(self._home.spool, hello.upload, hello.size)  # a full disk is met here
        for old in [u for u in self._arriving.values() if u.row.device == device and u.terms is terms]:
            self._drop(old)
        self._store.put_upload(row)
        return Grant(hello.upload, WINDOW, self._take_up(row, terms).durable)

    def _terms_for(self, device: str, hello: Hello) -> RoundTerms:
        opened = self._rounds.get((hello.task, hello.round))
        if opened is None or opened.terms.offer_hash != hello.offer_hash:
            raise UnexpectedMessage(f"no open round {hello.round} of {hello.task} has this offer", reason="closed")
        if device not in opened.terms.roster:
            raise UnexpectedMessage(f"{device} is not in the round's roster", reason="roster")
        if hello.size != opened.terms.upload_bytes:
            raise MalformedMessage(
                f"an upload of {hello.size} bytes; the offer implies {opened.terms.upload_bytes}", reason="size"
            )
        return opened.terms

    def chunk(self, device: str, chunk: Chunk, now: float) -> Ack | None:
        """Open and write a chunk; an acknowledgement where it is time for one. Raises RemoteProtocolError, DiskFull."""
        upload = self._arriving.get(chunk.upload)
        if upload is None or upload.row.device != device:
            raise UnexpectedMessage("no such upload of this device", reason="unknown-upload")
        if chunk.index >= upload.held.count:
            raise MalformedMessage(f"chunk {chunk.index} of {upload.held.count}", reason="chunk-index")
        upload.since = now if upload.since is None else upload.since
        if chunk.index not in upload.held:
            self._write(upload, chunk)
        if upload.unacknowledged >= ACK_CHUNKS or upload.held.complete:
            return self._flush([upload])[0]
        return None

    def _write(self, upload: _Arriving, chunk: Chunk) -> None:
        if len(chunk.sealed) != sealed_chunk_size(upload.row.size, chunk.index):
            raise MalformedMessage("the chunk has the wrong length", reason="chunk-seal")
        plain = upload.sealer.open(chunk.index, chunk.index == upload.held.count - 1, chunk.sealed)
        upload.file.write(chunk.index * CHUNK_BYTES, plain)
        upload.held.add(chunk.index)
        upload.unacknowledged += 1
        self.bytes_received += len(chunk.sealed)

    def _flush(self, uploads: list[_Arriving]) -> list[Ack]:
        """Make what is written durable, then say so. Raises DiskFull: nothing is said, nothing is lost."""
        for upload in uploads:
            upload.file.flush()
        with self._store.transaction():
            for upload in uploads:
                if upload.unacknowledged:
                    self._store.set_upload(upload.row.id, received=upload.held.encode())
        for upload in uploads:
            upload.durable, upload.since, upload.unacknowledged = upload.held.encode(), None, 0
        return [Ack(upload.row.id, upload.durable) for upload in uploads]

    def due(self, now: float) -> list[tuple[str, Message]]:
        """Acknowledgements that are due, by device; sums that are due for a snapshot are made durable."""
        owed = [u for u in self._arriving.values() if u.since is not None and now - u.since >= ACK_S]
        answers: list[tuple[str, Message]] = []
        if owed:
            answers = list(zip([u.row.device for u in owed], self._flush(owed), strict=True))
        for opened in self._rounds.values():
            for each in opened.sums:
                if each.due(now):
                    each.snapshot()
        return answers

    # -- the end of an upload

    def incomplete(self, device: str, upload: bytes) -> Ack | None:
        """What to answer a Done that comes too early; None where every chunk is there.

        Raises UnexpectedMessage "unknown-upload".
        """
        arriving = self._arriving.get(upload)
        if arriving is None or arriving.row.device != device:
            raise UnexpectedMessage("no such upload of this device", reason="unknown-upload")
        return None if arriving.held.complete else self._flush([arriving])[0]

    def round_of(self, upload: bytes) -> tuple[str, int]:
        """(task, round) of an arriving upload."""
        return self._arriving[upload].terms.name

    def verify(self, upload: bytes) -> Verified:
        """Check a complete upload's form and signature.

        Raises RemoteProtocolError after dropping the upload: no later chunk could mend it; DiskFull: nothing is lost.
        """
        arriving = self._arriving[upload]
        terms, device = arriving.terms, arriving.row.device
        self._flush([arriving])
        try:
            decoded = MaskedUpload.decode(
                arriving.file.read(), profile=terms.profile, plan=terms.plan, length=terms.length
            )
            verify_upload(decoded, terms.offer_hash, device, terms.roster[device])
        except RemoteProtocolError:
            self._drop(arriving)
            raise
        return Verified(b"".join([decoded.signature, *decoded.sealed_shares]), decoded.residues)

    def accept(self, upload: bytes, shares: bytes) -> None:
        """Mark a verified upload accepted, in its group; in the caller's transaction, with the round's own change."""
        self._store.set_upload(
            upload, state="accepted", shares=shares, content_key=None, in_group=self._group_of(self._arriving[upload])
        )

    def _group_of(self, arriving: _Arriving) -> int:
        opened = self._rounds[arriving.terms.name]
        return opened.grouping.group_for(arriving.row.device)

    def add(self, upload: bytes, residues: bytes | bytearray | memoryview, now: float) -> None:
        """Add an accepted upload to its group's sum, once its acceptance is durable: opens no file, so cannot fail."""
        group = self._group_of(self._arriving[upload])
        arriving = self._arriving.pop(upload)
        self._rounds[arriving.terms.name].sums[group].add(arriving.file, residues, now)
