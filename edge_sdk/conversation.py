"""What a device and its aggregator say to each other, on the loop thread. Reads no clock, owns no thread, never blocks.

Refuses, counts and logs by reason every message that is not signed by the aggregator for this device, that does not
belong to its topic, or that answers nothing it asked. A refused message changes nothing (SPEC 4).
"""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from edge_sdk import member_duty
from edge_sdk.blobs import BlobError, BlobReader
from edge_sdk.device_db import TIME_FLOOR, TIME_LATEST, count, fact, raise_fact
from edge_sdk.held_offers import HeldOffer, HeldOffers
from edge_sdk.identity.epoch_keys import EpochKeys
from edge_sdk.journal import Journal, Witness
from edge_sdk.key_rotation import KeyRotation
from edge_sdk.ledger_report import LedgerReport
from edge_sdk.outbox import Outbox
from edge_sdk.privacy.curves import LedgerError
from edge_sdk.protocol import codec, roster, topics
from edge_sdk.protocol.errors import (
    MalformedMessage,
    OpeningRefused,
    RemoteProtocolError,
    UnexpectedMessage,
    WrongSignature,
)
from edge_sdk.protocol.messages import (
    ALL,
    DOWN,
    Ack,
    Ask,
    Block,
    Echo,
    Get,
    Grant,
    Heartbeat,
    LogHead,
    Message,
    ModelHint,
    Offer,
    OpeningNotice,
    Receipt,
    Refusal,
    Report,
    State,
    Withdraw,
)

ASK_AGAIN_S: Final = 5.0
MISSED_ECHOES: Final = 2
DAY_S: Final = 86_400
MAX_OPENINGS: Final = 16  # requests being fetched at a time
MAX_QUEUED: Final = 256
MAX_WITHDRAWN: Final = 64
COUNTER_BITS: Final = 16

log = logging.getLogger("edge_sdk")


class Host(Protocol):
    """What the conversation asks of the client around it; nothing here may block."""

    def publish(self, topic: str, payload: bytes, qos: int) -> bool:
        """Hand a message to the transport; False while its window is full."""

    def offered(self, frame: bytes, offer: Offer) -> None:
        """An offer whose signature holds."""

    def hinted(self, task: str) -> None:
        """There may be a new release of a task."""

    def active_models(self) -> dict[str, bytes]:
        """Task -> SHA-256 of the model in service."""

    def phase(self) -> str:
        """What the device is doing, in a word."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who speaks to whom. `epoch_keys` open what is sealed to this device as a committee member."""

    fleet: str
    device: str
    sign: Callable[[bytes], bytes] = field(repr=False)
    aggregator_key: bytes
    epoch_keys: EpochKeys
    entropy: Callable[[int], bytes] = field(repr=False)

    def encode(self, message: Message) -> bytes:
        """Frame and sign for the aggregator."""
        return codec.encode(
            message, fleet=self.fleet, sender=self.device, recipient=codec.AGGREGATOR, sign=self.sign
        )  # fmt: skip

    def decode(self, topic: str, payload: bytes) -> Message:
        """Verify, then parse. Raises RemoteProtocolError."""
        address = topics.parse(topic)
        if address.fleet != self.fleet or address.direction == "up" or address.device not in (None, self.device):
            raise MalformedMessage(f"topic {topic[:120]!r} is not for this device", reason="topic")
        everybody = address.direction == "all"
        message = codec.decode(
            payload,
            fleet=self.fleet,
            sender=codec.AGGREGATOR,
            recipient=codec.EVERYBODY if everybody else self.device,
            public_key=self.aggregator_key,
            accepted=ALL if everybody else DOWN,
        )
        if message.topic != address.kind:
            raise MalformedMessage(f"a {type(message).__name__} on topic {address.kind}", reason="kind")
        return message


class Conversation:
    """Timers and messages of one device. `tick` is monotonic seconds, `clock` the device's own wall clock."""

    def __init__(
        self, speaker: Speaker, connection: sqlite3.Connection, outbox_folder: Path, host: Host,
        *, heartbeat_s: float, silence_s: float, epoch_key_s: float = DAY_S, not_before: int = 0,
        journal: Journal | None = None,
    ) -> None:  # fmt: skip
        """`not_before`: a time that is surely past; the floor of a device that has heard nothing yet."""
        self._me, self._db, self._host = speaker, connection, host
        self._heartbeat_s = heartbeat_s
        self._journal = journal
        self._witness = Witness(connection, speaker.aggregator_key, speaker.fleet)
        self.outbox = Outbox(connection, outbox_folder, speaker.encode, silence_s, journal)
        self.blobs = BlobReader(speaker.entropy)
        self._held = HeldOffers(connection)
        self._spent = LedgerReport(connection)
        self._rotation = KeyRotation(
            speaker.epoch_keys, connection, self._held, speaker.device,
            epoch_key_s=epoch_key_s, entropy=speaker.entropy, born_at=not_before,
            journal=journal,
        )  # fmt: skip
        self._queue: deque[tuple[str, bytes, int]] = deque()
        self._floor = max(fact(connection, TIME_FLOOR), not_before)
        self._connections, self._reports = fact(connection, "connections"), fact(connection, "reports")
        self._beat_base = self._beats = 0
        self._connected = False
        self._asked: bytes | None = None
        self._ask_at = self._beat_at = self._echo_at = 0.0
        self._beat_nonce = b""
        self._opening: set[tuple[str, int]] = set()
        self._uncounted: Counter[tuple[str, str]] = Counter()
        self.dropped = 0

    # -- time ------------------------------------------------------------------------------------------------------

    def now(self, clock: float) -> int:
        """The clock, never behind the newest time the aggregator signed (SPEC 4.5)."""
        return max(int(clock), self._floor)

    def judged(self, offer: Offer, clock: float) -> None:
        """An offer passed this device's judgement, and its roster the authority's: what they say of the time counts."""
        self._floor = max(self._floor, fact(self._db, TIME_FLOOR))
        self._saw_time(offer.issued_at, clock)
        self._rotation.look_now()

    def _saw_time(self, time: int, clock: float) -> None:
        """Believe the aggregator a time up to the newest roster's end, or one day ahead where there is none yet.

        A floor never sinks, so a time in the far future, believed once, would end learning for ever.
        """
        now = self.now(clock)
        if time > (fact(self._db, TIME_LATEST) or now + DAY_S):
            if time > now + DAY_S:
                self.refuse("time", f"the aggregator says that it is {time}; here it is {now}")
            return
        # Written when it moves by a minute: a floor that is a minute old still costs nobody anything.
        if time > self._floor + 60:
            self._remember(TIME_FLOOR, time)
        self._floor = max(self._floor, time)

    # -- the connection --------------------------------------------------------------------------------------------

    def connection(self, up: bool, tick: float) -> None:
        """The transport connected or lost its connection."""
        self._connected = up
        self.outbox.on_connection(up, tick)
        if not up:
            return
        self._connections += 1
        self._beat_base, self._beats = self._connections << COUNTER_BITS, 0
        self._echo_at = tick
        self._ask_at = self._beat_at = tick
        self.blobs.reconnected()
        self._rotation.connected()
        self._spent.connected()
        self._remember("connections", self._connections)
        self._tell_withdrawn(self.outbox.withdrawn(self._floor))  # the aggregator may have missed it

    def last_words(self) -> tuple[str, bytes]:
        """Topic and payload of the will: what the broker says for this device when its connection dies.

        Its counter lies above every heartbeat of the connection and below those of the next.
        """
        ahead = (self._connections + 1) << COUNTER_BITS
        beat = Heartbeat(self._me.entropy(8), ahead + (1 << COUNTER_BITS) - 1, "gone", {})
        return topics.up(self._me.fleet, self._me.device, "hb"), self._me.encode(beat)

    def say_goodbye(self) -> None:
        """Tell the aggregator that this device leaves in order."""
        self._beat("gone")

    def silent(self, tick: float) -> bool:
        """Connected, but no echo came for two periods: the connection is dead and does not know it (SPEC 4.4)."""
        return self._connected and tick - self._echo_at > MISSED_ECHOES * self._heartbeat_s + ASK_AGAIN_S

    # -- what comes in ---------------------------------------------------------------------------------------------

    def message(self, topic: str, payload: bytes, tick: float, clock: float) -> None:
        """Take one message. Nothing it holds can raise out of here, nor can a disk that is full.

        What could not be written down is as if the message had been lost, which harms nothing (SPEC 4.3).
        """
        try:
            self._dispatch(self._me.decode(topic, payload), payload, tick, clock)
        except RemoteProtocolError as error:
            self.refuse(error.reason, str(error))
        except (OSError, sqlite3.Error) as error:
            self.refuse(getattr(error, "reason", "disk"), f"a message on {topic} came to nothing: {error}")

    def refuse(self, reason: str, why: str) -> None:
        """Count and log one refusal. Never raises."""
        self._count("refusal", reason)
        log.warning("refused (%s): %s", reason, why)

    def _count(self, kind: str, reason: str) -> None:
        """Count; what a full disk does not take is added with the next that it takes."""
        self._uncounted[kind, reason] += 1
        try:
            for (name, why), n in list(self._uncounted.items()):
                count(self._db, name, why, n)
                del self._uncounted[name, why]
        except (OSError, sqlite3.Error) as error:
            log.warning("counters are kept in memory for now: %s", error)

    def _remember(self, name: str, value: int) -> None:
        """A fact that this process goes on with even where it cannot be written now."""
        try:
            raise_fact(self._db, name, value)
        except (OSError, sqlite3.Error) as error:
            log.warning("%s is kept in memory for now: %s", name, error)

    def _dispatch(self, message: Message, frame: bytes, tick: float, clock: float) -> None:
        match message:
            case Grant() | Ack() | Receipt():
                self.outbox.receive(message, tick)
            case Refusal():
                self._refused(message, tick)
            case Block():
                self.blobs.receive(message, tick)
            case Echo():
                self._echoed(message, tick, clock)
            case State():
                self._state(message, tick, clock)
            case OpeningNotice():
                self._opening_asked(message, tick)
            case Offer():
                self._host.offered(frame, message)
            case ModelHint():
                self._host.hinted(message.task)
            case _:
                raise UnexpectedMessage(f"a {type(message).__name__}", reason="kind")

    def _refused(self, refusal: Refusal, tick: float) -> None:
        log.warning("the aggregator refused our %s (%s): %s", refusal.about, refusal.reason, refusal.remedy)
        self._count("refused-by-aggregator", refusal.reason)
        if refusal.upload is not None and refusal.about in ("hello", "data", "done"):
            self.outbox.receive(refusal, tick)

    def _echoed(self, echo: Echo, tick: float, clock: float) -> None:
        if echo.nonce != self._beat_nonce:
            raise UnexpectedMessage("an echo of no heartbeat of ours", reason="nonce")
        self._echo_at = tick
        self._saw_time(echo.time, clock)

    def _state(self, state: State, tick: float, clock: float) -> None:
        if state.nonce != self._asked:
            raise UnexpectedMessage("a state that was not asked for", reason="nonce")
        self._asked = None
        self._ask_at = tick + state.next_check_s
        self._rotation.heard(state.epoch)
        self._saw_time(state.time, clock)
        if state.log is not None:
            self._shown_log(state.log, clock, state.time)
        topic = topics.to_all(self._me.fleet, Offer.topic)
        for frame in state.offers:
            # The frames inside are signed on their own, to everybody.
            self.message(topic, frame, tick, clock)
        for notice in state.openings:
            self._opening_asked(notice, tick)

    def _shown_log(self, head: LogHead, clock: float, stated: int) -> None:
        """Keep the head of the aggregator's log, and raise the alarm where it contradicts one that was shown before."""
        try:
            why = self._witness.shown(head, self._journal, now=self.now(clock), stated=stated)
        except WrongSignature as error:
            self.refuse("log-signature", f"the head of the aggregator's log: {error}")
            return
        if why:
            self._count("audit", "log-conflict")
            log.error("the aggregator's log is not the one it showed before: %s", why)

    # -- committee duty --------------------------------------------------------------------------------------------

    def _opening_asked(self, notice: OpeningNotice, tick: float) -> None:
        try:
            share = member_duty.stored_answer(self._db, notice)
            if share is not None:
                self.send(share)
            elif (notice.task, notice.round) not in self._opening:
                self._fetch_opening(notice, tick)
        except RemoteProtocolError as refusal:
            self._opening_refused(notice, refusal)

    def _fetch_opening(self, notice: OpeningNotice, tick: float) -> None:
        held = self._held.of_round(notice.task, notice.round)
        if held is None:
            raise OpeningRefused("this device verified no offer of this round", reason="unknown-offer")
        entries = self._entries(held)
        member_duty.secret_for(entries, self._me.device, self._me.epoch_keys.find)
        limit = member_duty.largest_request(held, len(entries))
        if notice.size > limit:
            raise OpeningRefused(f"{notice.size} bytes are asked to be read, {limit} at most are true", reason="size")
        if len(self._opening) >= MAX_OPENINGS:
            raise OpeningRefused(f"{MAX_OPENINGS} requests are being read already", reason="busy")
        self._opening.add((notice.task, notice.round))
        path = f"opening/{notice.task}/{notice.round}"
        self.blobs.fetch(path, lambda data, _, error: self._opening_came(notice, data, error), tick, limit=notice.size)

    def _entries(self, held: HeldOffer) -> tuple[roster.RosterEntry, ...]:
        blob = self._held.roster_blob(held.offer.secagg.statement_hash)
        return roster.from_blob(blob).entries if blob else ()

    def _opening_came(self, notice: OpeningNotice, data: bytes, error: BlobError | None) -> None:
        self._opening.discard((notice.task, notice.round))
        if error is not None:
            log.info("opening request of round %d of %s: %s", notice.round, notice.task, error)
            return
        try:
            request = member_duty.read_request(notice, data)
            held = self._held.find(request.offer_hash)
            entries = self._entries(held) if held else ()
            share = member_duty.answer(
                self._db, notice, request, held, device=self._me.device,
                secret=member_duty.secret_for(entries, self._me.device, self._me.epoch_keys.find),
                sign_keys={entry.device: entry.sign_key for entry in entries}, journal=self._journal,
            )  # fmt: skip
        except RemoteProtocolError as refusal:
            self._opening_refused(notice, refusal)
            return
        self._count("opening", "answered")
        self._rotation.look_now()
        self.send(share)

    def _opening_refused(self, notice: OpeningNotice, refusal: RemoteProtocolError) -> None:
        self.refuse(refusal.reason, f"opening of round {notice.round} of {notice.task}: {refusal}")
        self.report(notice.task, notice.round, "opening-refused", refusal.reason, str(refusal))

    # -- what goes out ---------------------------------------------------------------------------------------------

    def send(self, message: Message, qos: int = 1) -> None:
        """Queue a small message; the oldest is dropped and counted when the queue is full."""
        if len(self._queue) >= MAX_QUEUED:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append((message.topic, self._me.encode(message), qos))

    def report(self, task: str, round_number: int, event: str, reason: str, detail: str) -> None:
        """Tell the aggregator what was done or refused."""
        self._reports += 1
        self._remember("reports", self._reports)
        self.send(Report(self._reports, task, round_number, event, reason, detail[:300]))

    def withdraw(self, task: str | None) -> None:
        """Consent was withdrawn: end the unfinished uploads of a task, or of every task, and tell it (SPEC 6.7)."""
        self._tell_withdrawn(self.outbox.withdraw(task))

    def _tell_withdrawn(self, ended: dict[str, list[bytes]]) -> None:
        for task, uploads in ended.items():
            log.info("%d uploads of %s are withdrawn", len(uploads), task)
            self.send(Withdraw(task, tuple(uploads[-MAX_WITHDRAWN:])))

    def turn(self, tick: float, clock: float) -> None:
        """Timers, then everything that may be sent now."""
        self._rotate(tick, clock)
        if not self._connected:
            self.outbox.pump(self._publish, self.now(clock), tick)
            self.blobs.pump(lambda _: False, tick)
            return
        if tick >= self._beat_at:
            self._beat_at = tick + self._heartbeat_s
            self._beat(self._host.phase())
        if tick >= self._ask_at:
            self._asked = self._me.entropy(8)
            self._ask_at = tick + ASK_AGAIN_S
            self.send(Ask(self._asked, self._witness.newest))
        self._tell_spent()
        while self._queue and self._publish(*self._queue[0]):
            self._queue.popleft()
        self.blobs.pump(self._ask_block, tick)
        self.outbox.pump(self._publish, self.now(clock), tick)

    def _tell_spent(self) -> None:
        """Before the upload that was paid for is announced: its acceptance must not overtake this."""
        try:
            spent = self._spent.turn()
        except (LedgerError, OSError, sqlite3.Error) as error:
            self.refuse(getattr(error, "reason", "disk"), f"what was spent could not be told now: {error}")
            return
        if spent is not None:
            self.send(spent)

    def _rotate(self, tick: float, clock: float) -> None:
        """A disk that takes no key must not keep the rest of the turn from its time; it is tried again."""
        try:
            told = self._rotation.turn(self.now(clock), tick, int(clock))
        except (OSError, sqlite3.Error) as error:
            self.refuse(getattr(error, "reason", "disk"), f"the epoch key could not be changed now: {error}")
            return
        if told is not None:
            self.send(told)

    def _beat(self, phase: str) -> None:
        self._beats += 1
        self._beat_nonce = self._me.entropy(8)
        beat = Heartbeat(self._beat_nonce, self._beat_base + self._beats, phase, self._host.active_models())
        self._publish(beat.topic, self._me.encode(beat), 0)

    def _ask_block(self, get: Get) -> bool:
        return self._publish(get.topic, self._me.encode(get))

    def _publish(self, kind: str, frame: bytes, qos: int = 1) -> bool:
        return self._host.publish(topics.up(self._me.fleet, self._me.device, kind), frame, qos)
