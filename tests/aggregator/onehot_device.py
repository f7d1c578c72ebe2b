"""A device made of the protocol's own pieces: it uploads a one-hot vector and answers openings. No thread, no clock.

The real device is tested elsewhere; this one shows what the aggregator makes of exact, known inputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_sdk.protocol import codec, roster, topics
from edge_sdk.protocol.chunks import CHUNK_BYTES, Bitmap, chunk_context, chunk_count, hello_info, share_info
from edge_sdk.protocol.messages import (
    ALL,
    DOWN,
    Ack,
    Ask,
    Block,
    Done,
    Echo,
    Get,
    Grant,
    Heartbeat,
    Hello,
    LogHead,
    Message,
    ModelHint,
    Offer,
    OpeningNotice,
    OpeningRequest,
    Receipt,
    Refusal,
    Share,
    ShareBody,
    State,
)
from edge_sdk.protocol.sealing import ChunkSealer, seal_to_round
from edge_sdk.protocol.secagg.client import Member, protect
from edge_sdk.protocol.secagg.committee import plan
from edge_sdk.protocol.secagg.member import SealedShare, answer
from edge_sdk.protocol.secagg.ring import profile

ONE = 1000  # steps: far above the error floor of a small cohort
BLOCK = 49_152


class Upload:
    """One upload on its way."""

    def __init__(self, offer: Offer, digest: bytes, hello: Hello, chunks: list[bytes]) -> None:
        self.offer, self.digest, self.hello, self.chunks = offer, digest, hello, chunks
        self.have = Bitmap(len(chunks))
        self.receipts: list[Receipt] = []
        self.silence = 0

    @property
    def over(self) -> bool:
        return bool(self.receipts)


class OneHotDevice:
    """`publish(topic, frame, qos)` sends; `receive` takes every message that arrives; `tick` sends again."""

    def __init__(self, name: str, fleet: str, index: int, aggregator_key: bytes, publish: Callable[..., bool]) -> None:
        self.name, self.fleet, self.index, self.key = name, fleet, index, aggregator_key
        self.publish = publish
        self.sign_key, self.epoch_key = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
        self.uploads: dict[tuple[str, int], Upload] = {}
        self.offers: dict[tuple[str, int], tuple[Offer, bytes]] = {}
        self.answers: dict[tuple[str, int], Share] = {}
        self.notices: dict[tuple[str, int], OpeningNotice] = {}
        self.blobs: dict[str, bytearray] = {}
        self.done_blobs: dict[str, bytes] = {}
        self.refusals: list[Refusal] = []
        self.hints = 0
        self.echoes = 0
        self.states = 0
        self.seen_log: LogHead | None = None  # the newest head of the aggregator's log
        self.counter = 0
        self.takes_part = True
        self.answers_openings = True
        self.chunks_sent = 0

    # -- sending

    def say(self, message: Message, qos: int = 1) -> None:
        frame = codec.encode(
            message, fleet=self.fleet, sender=self.name, recipient=codec.AGGREGATOR, sign=self.sign_key.sign
        )
        self.publish(topics.up(self.fleet, self.name, message.topic), frame, qos)

    def ask(self) -> None:
        self.say(Ask(os.urandom(8), self.seen_log))

    def beat(self, phase: str = "idle") -> None:
        self.counter += 1
        self.say(Heartbeat(os.urandom(8), self.counter, phase, {}), 0)

    def get(self, path: str) -> None:
        self.blobs.setdefault(path, bytearray())
        self.say(Get(os.urandom(8), path, len(self.blobs[path]), BLOCK))

    def tick(self) -> None:
        """Send again what nobody answered."""
        for upload in self.uploads.values():
            if not upload.over:
                self.say(upload.hello)
        for path in list(self.blobs):
            self.get(path)
        for share in self.answers.values():
            self.say(share)

    # -- receiving

    def receive(self, topic: str, payload: bytes) -> None:
        everybody = topics.parse(topic).direction == "all"
        message = codec.decode(
            payload,
            fleet=self.fleet,
            sender=codec.AGGREGATOR,
            recipient=codec.EVERYBODY if everybody else self.name,
            public_key=self.key,
            accepted=ALL if everybody else DOWN,
        )
        if isinstance(message, Offer):
            self.on_offer(message, payload)
        elif isinstance(message, ModelHint):
            self.hints += 1
        else:
            getattr(self, f"on_{message.topic}")(message)

    def on_offer(self, offer: Offer, frame: bytes) -> None:
        self.offers[offer.task, offer.round] = (offer, codec.offer_hash(frame))
        self.get(f"roster/{offer.secagg.epoch}")

    def on_state(self, state: State) -> None:
        self.states += 1
        self.seen_log = state.log
        for frame in state.offers:
            self.receive(topics.to_all(self.fleet, "offer"), frame)
        for notice in state.openings:
            self.on_opening(notice)

    def on_blk(self, block: Block) -> None:
        if block.path not in self.blobs or not block.found:
            self.done_blobs.setdefault(block.path, b"") if not block.found else None
            return
        held = self.blobs[block.path]
        if block.offset == len(held):
            held += block.data
        if len(held) < block.total:
            self.get(block.path)
            return
        self.done_blobs[block.path] = bytes(self.blobs.pop(block.path))
        self.on_blob(block.path)

    def on_blob(self, path: str) -> None:
        kind, _, rest = path.partition("/")
        if kind == "roster":
            for offer, digest in list(self.offers.values()):
                if offer.secagg.epoch == int(rest) and self.takes_part:
                    self.upload(offer, digest)
        elif kind == "opening":
            task, number = rest.split("/")
            self.answer(task, int(number))

    def entries(self, offer: Offer) -> dict[str, roster.RosterEntry]:
        signed = roster.from_blob(self.done_blobs[f"roster/{offer.secagg.epoch}"])
        return {entry.device: entry for entry in signed.entries}

    def values(self, offer: Offer) -> np.ndarray:
        vector = np.zeros(offer.length, np.int32)
        vector[self.index % offer.length] = ONE
        return vector

    def upload(self, offer: Offer, digest: bytes) -> None:
        if (offer.task, offer.round) in self.uploads:
            return
        entries = self.entries(offer)
        masked = protect(
            profile=profile(offer.secagg.profile),
            plan=plan(len(offer.secagg.committee)),
            offer_hash=digest,
            device=self.name,
            members=[Member(name, entries[name].epoch_key) for name in offer.secagg.committee],
            values=self.values(offer),
            noise=None,
            sign=self.sign_key.sign,
            entropy=os.urandom,
        )
        self.send(offer, digest, masked.encode())

    def send(self, offer: Offer, digest: bytes, plain: bytes) -> None:
        upload, content_key = os.urandom(16), os.urandom(32)
        sealed_key = seal_to_round(content_key, offer.round_key, hello_info(digest, self.name, upload))
        sealer = ChunkSealer(content_key, chunk_context(digest, self.name, upload, len(plain)))
        count = chunk_count(len(plain))
        pieces = [plain[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES] for i in range(count)]
        sealed = [sealer.seal(i, i == count - 1, piece) for i, piece in enumerate(pieces)]
        hello = Hello(upload, offer.task, offer.round, digest, len(plain), offer.consent, sealed_key)
        self.uploads[offer.task, offer.round] = Upload(offer, digest, hello, sealed)
        self.say(hello)

    def upload_by_id(self, upload: bytes) -> Upload | None:
        return next((u for u in self.uploads.values() if u.hello.upload == upload), None)

    def on_grant(self, grant: Grant) -> None:
        self.progress(grant.upload, grant.received)

    def on_ack(self, ack: Ack) -> None:
        self.progress(ack.upload, ack.received, only_done=True)

    def progress(self, upload_id: bytes, received: bytes, *, only_done: bool = False) -> None:
        upload = self.upload_by_id(upload_id)
        if upload is None or upload.over:
            return
        upload.have = Bitmap.decode(received, len(upload.chunks))
        if upload.have.complete:
            self.say(Done(upload_id))
            return
        if not only_done:
            for index in list(upload.have.missing())[:8]:
                self.send_chunk(upload, index)

    def send_chunk(self, upload: Upload, index: int) -> None:
        self.chunks_sent += 1
        frame = codec.encode_chunk(codec.Chunk(upload.hello.upload, index, upload.chunks[index]))
        self.publish(topics.up(self.fleet, self.name, "data"), frame, 1)

    def on_receipt(self, receipt: Receipt) -> None:
        upload = self.upload_by_id(receipt.upload)
        if upload is not None:
            upload.receipts.append(receipt)

    def on_opening(self, notice: OpeningNotice) -> None:
        key = (notice.task, notice.round)
        if not self.answers_openings:
            return
        if key in self.answers:
            self.say(self.answers[key])
            return
        self.notices[key] = notice
        self.get(f"opening/{notice.task}/{notice.round}")

    def answer(self, task: str, number: int) -> None:
        offer, digest = self.offers[task, number]
        request = codec.unpack(self.done_blobs[f"opening/{task}/{number}"], OpeningRequest)
        place = offer.secagg.committee.index(self.name)
        given = answer(
            profile=profile(offer.secagg.profile),
            plan=plan(len(offer.secagg.committee)),
            offer_hash=digest,
            member=self.name,
            index=place,
            secret=self.epoch_key,
            n_min=offer.secagg.n_min,
            roster={name: entry.sign_key for name, entry in self.entries(offer).items()},
            groups=[[SealedShare(e.device, e.signature, e.sealed, e.proof) for e in g] for g in request.groups],
            group_count=offer.secagg.groups,
        )
        sums = tuple(np.asarray(part).astype("<u2").tobytes() for part in given.sums)
        body = ShareBody(digest, given.survivors_hash, place + 1, sums)
        sealed = seal_to_round(codec.pack(body), offer.round_key, share_info(digest, self.name))
        self.answers[task, number] = Share(task, number, sealed)
        self.say(self.answers[task, number])

    def on_refusal(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)

    def on_echo(self, echo: Echo) -> None:
        self.echoes += 1
