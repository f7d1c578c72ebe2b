"""Answers one message at a time: checks it in the order of SPEC 4.1, hands it on, sends what there is to say.

Nothing that a message holds can raise out of `receive`: what is refused is counted and logged with its reason, and
answered only where the signature held. Reads no clock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from aggregator.audit import Audit
from aggregator.comparison import Comparison
from aggregator.errors import DiskFull
from aggregator.fleet.registry import Device, Registry, RegistryRefused
from aggregator.home import Home
from aggregator.ingest import Ingest
from aggregator.offering import epoch_of
from aggregator.post import Post
from aggregator.releases.errors import ReleaseNotFound
from aggregator.releases.repository import Repository
from aggregator.round_messages import RoundMessages
from aggregator.watch import Presence, Refusals
from edge_sdk.protocol import codec, topics
from edge_sdk.protocol.errors import MalformedMessage, ProtocolError, UnexpectedMessage
from edge_sdk.protocol.messages import (
    UP,
    Ask,
    Block,
    Done,
    Echo,
    EpochKey,
    Get,
    Heartbeat,
    Hello,
    LogHead,
    Message,
    Refusal,
    Report,
    Share,
    Spent,
    State,
    Withdraw,
)

log = logging.getLogger(__name__)
CHUNK_TOPIC: Final = "data"
MOST_OFFERS: Final = 12
MOST_STATE_BYTES: Final = 48_000
NEXT_CHECK_S: Final = 60
KINDS: Final = {cls.topic: cls.kind for cls in UP.values()} | {CHUNK_TOPIC: codec.CHUNK_KIND}
REMEDIES: Final = {
    "closed": "wait for the next offer",
    "roster": "wait for a round whose roster names this device",
    "already-in": "nothing to do: this round holds an upload of this device",
    "disk-full": "keep the upload and send again later",
    "key": "make another epoch key",
    "consent": "train on examples of people who agreed to the offer's notice, and say so",
    "size": "make the upload anew from the offer",
}


class Desk:
    """Where every message from a device arrives."""

    def __init__(
        self,
        *,
        fleet: str,
        home: Home,
        registry: Registry,
        repository: Repository | None,
        rounds: RoundMessages,
        ingest: Ingest,
        post: Post,
        presence: Presence,
        refusals: Refusals,
        comparison: Comparison,
        audit: Audit | None = None,
    ) -> None:
        self._fleet, self._home, self._registry, self._repository = fleet, home, registry, repository
        self._rounds, self._ingest, self._post = rounds, ingest, post
        self._presence, self._refusals, self._audit = presence, refusals, audit
        self._handlers: dict[type[Message], Callable[[str, Any, float], Message | None]] = {
            Hello: rounds.hello,
            Done: rounds.done,
            Share: self._share,
            Get: self._get,
            Heartbeat: self._heartbeat,
            Ask: self._ask,
            Report: self._report,
            EpochKey: self._epoch_key,
            Withdraw: rounds.withdraw,
        }
        self._comparison = comparison

    def receive(self, topic: str, payload: bytes, now: float) -> None:
        """Take one message off the wire."""
        kind, device = "topic", "?"
        try:
            address = topics.parse(topic)
            if address.fleet != self._fleet or address.direction != "up" or address.device is None:
                raise MalformedMessage("not addressed to this aggregator", reason="topic")
            kind, device = (address.kind if address.kind in KINDS else "topic"), address.device
            self._check_kind(address.kind, payload)
            sender = self._registry.require_active(device)
            if address.kind == CHUNK_TOPIC:
                self._chunk(device, payload, now)
            else:
                self._message(sender, payload, now)
        except (ProtocolError, RegistryRefused) as error:
            self._refusals.count(kind, error.reason, device, str(error), now)
        except DiskFull as error:
            self._refusals.count(kind, error.reason, device, str(error), now)
            self._post.send(device, Refusal(kind, error.reason, REMEDIES["disk-full"], None))
        except Exception:
            # A bug of ours, met through a message: the loop and the round go on without that message.
            self._refusals.count(kind, "internal", device, "see the log", now)
            log.exception("a %s message from %s met an error of ours", kind, device)

    def _check_kind(self, kind: str, payload: bytes) -> None:
        found = codec.frame_kind(payload)
        if KINDS.get(kind) != found:
            raise MalformedMessage(f"kind {found} does not belong on {kind}", reason="kind")

    def _chunk(self, device: str, payload: bytes, now: float) -> None:
        ack = self._ingest.chunk(device, codec.decode_chunk(payload), now)
        self._presence.heard(device, now)
        if ack is not None:
            self._post.send(device, ack)

    def _message(self, sender: Device, payload: bytes, now: float) -> None:
        message = codec.decode(
            payload,
            fleet=self._fleet,
            sender=sender.device,
            recipient=codec.AGGREGATOR,
            public_key=sender.sign_key,
            accepted=UP,
        )
        if not isinstance(message, Heartbeat):
            self._presence.heard(sender.device, now)
        try:
            if isinstance(message, Spent):  # kept as it was signed
                answer: Message | None = None
                self._comparison.take(sender, message, payload, now)
            else:
                answer = self._handlers[type(message)](sender.device, message, now)
        except ProtocolError as error:
            if error.reason != "repeat":
                self._refuse(sender.device, message, error)
            raise
        if isinstance(answer, Block):
            self._post.answer(sender.device, answer)
        elif answer is not None:
            self._post.send(sender.device, answer)

    def _refuse(self, device: str, message: Message, error: ProtocolError) -> None:
        # An upload named in a refusal is over for the device; only a hello is refused for good.
        upload = message.upload if isinstance(message, Hello) else None
        remedy = REMEDIES.get(error.reason, "see the aggregator's log")
        self._post.send(device, Refusal(message.topic, error.reason, remedy, upload))

    def _share(self, device: str, share: Share, now: float) -> None:
        del now
        self._rounds.share(device, share)

    def _report(self, device: str, report: Report, now: float) -> None:
        self._presence.check_counter(device, "report", report.counter)
        self._rounds.note(device, report, now)
        log.info(
            "%s reports %s of %s round %d: %s %s",
            *(device, report.event, report.task, report.round, report.reason, ascii(report.detail)),
        )
        self._rounds.report(device, report)

    def _heartbeat(self, device: str, heartbeat: Heartbeat, now: float) -> Echo:
        self._presence.beat(device, heartbeat, now)
        return Echo(heartbeat.nonce, int(now))

    def _epoch_key(self, device: str, key: EpochKey, now: float) -> None:
        if self._registry.require_active(device).epoch_key == key.key:
            return  # told again: a device repeats it until a roster names the key
        roster = self._registry.signed_roster()
        newest = epoch_of(roster) if roster else 0
        if key.epoch <= newest:
            raise UnexpectedMessage(f"epoch {key.epoch} is signed already", reason="repeat")
        self._registry.set_epoch_key(device, key.key, now=now)

    def _witness(self, device: str, ask: Ask, now: float) -> LogHead | None:
        """Take the head that the device has seen, give the newest. What is wrong is counted: the device did right."""
        if self._audit is None:
            return None
        wrong = self._audit.witness(device, ask.witness, now) if ask.witness is not None else ""
        if wrong:
            self._refusals.count("audit", wrong, device, "the head that it was shown is not in our log", now)
        return self._audit.newest

    def _ask(self, device: str, ask: Ask, now: float) -> State:
        roster = self._registry.signed_roster()
        offers, size = [], 0
        for frame in self._rounds.offers()[:MOST_OFFERS]:
            if size + len(frame) <= MOST_STATE_BYTES:
                offers.append(frame)
                size += len(frame)
        return State(
            nonce=ask.nonce,
            time=int(now),
            epoch=epoch_of(roster) if roster else 0,
            offers=tuple(offers),
            openings=tuple(self._rounds.openings(device)[:64]),
            log=self._witness(device, ask, now),
            next_check_s=NEXT_CHECK_S,
        )

    def _get(self, device: str, get: Get, now: float) -> Block:
        del now
        if not self._post.room_for_blocks():
            raise UnexpectedMessage("too many blocks are on their way", reason="busy")
        found = self._read(device, get.path, get.offset, get.length)
        total, data = found or (0, b"")
        return Block(get.request, get.path, get.offset, total, found is not None, data)

    def _read(self, device: str, path: str, offset: int, length: int) -> tuple[int, bytes] | None:
        """(whole size, the range) of a blob that this device may have, else None."""
        room, _, rest = path.partition("/")
        if room == "tuf" and self._repository is not None:
            try:
                return self._repository.read(rest, offset, length)
            except ReleaseNotFound:
                return None
        blob = self._blob(device, room, rest.split("/"))
        return None if blob is None else (len(blob), blob[offset : offset + length])

    def _blob(self, device: str, room: str, rest: list[str]) -> bytes | None:
        if room == "roster" and len(rest) == 1 and rest[0].isdecimal() and len(rest[0]) <= 13:
            signed = self._registry.signed_roster(int(rest[0]))
            return signed.to_blob() if signed else None
        if room == "checkpoint" and len(rest) == 1 and len(rest[0]) == 64 and set(rest[0]) <= set("0123456789abcdef"):
            file = self._home.checkpoint_file(rest[0])
            return file.read_bytes() if file.is_file() else None
        if room == "opening" and len(rest) == 2 and rest[1].isdecimal() and len(rest[1]) <= 13:
            return self._rounds.opening_blob(device, rest[0], int(rest[1]))
        return None
