"""The aggregator of the simulation: the real rounds, ingest, store and post on real files.

Only the model is missing: an opened sum is kept as integers instead of being averaged into ONNX weights.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from simulated_device import DeviceKeysOf
from simulated_wire import AGGREGATOR, FLEET, Packet, Wire, WireTransport, seeded_entropy

from aggregator import cohort
from aggregator.errors import DiskFull, TaskRefused
from aggregator.fleet.registry import Registry
from aggregator.home import Home
from aggregator.ingest import Ingest
from aggregator.post import Post
from aggregator.releasing import Verdict
from aggregator.rounds import Rounds
from aggregator.store.rows import TaskRow
from aggregator.store.schema import open_database
from aggregator.store.store import Store
from aggregator.tasks import TaskSpec
from edge_sdk.protocol import codec, topics
from edge_sdk.protocol.errors import MalformedMessage, RemoteProtocolError, UnexpectedMessage, WrongSignature
from edge_sdk.protocol.messages import (
    UP,
    Ask,
    Block,
    Done,
    Echo,
    Get,
    Heartbeat,
    Hello,
    Message,
    Offer,
    PrivacyTerms,
    Refusal,
    Report,
    SecAggTerms,
    Share,
    State,
)
from edge_sdk.protocol.roster import SignedRoster, Statement
from edge_sdk.protocol.sealing import ROUND_SECRET_BYTES, RoundKey

TASK = "churn"
STEPS_IN_CLIP = 4096
LENGTH = 20_000  # two chunks at three bytes a coordinate
AGGREGATOR_KEY = Ed25519PrivateKey.from_private_bytes(bytes([1] * 32))
AUTHORITY_KEY = Ed25519PrivateKey.from_private_bytes(bytes([2] * 32))


class SimulatedCrash(BaseException):
    """The process dies here."""


def privacy_terms() -> PrivacyTerms:
    """Record unit, so that nothing but the error floor is added outside of training."""
    return PrivacyTerms(
        unit="record", noise_multiplier=2.0, max_grad_norm=1.0, sample_rate=0.1, steps=1, learning_rate=0.1,
        delta=1e-5, honest=1, clip=1.0, step=1.0 / STEPS_IN_CLIP, insecure_without_noise=False,
    )  # fmt: skip


def make_offer(number: int, now: float, roster: SignedRoster, round_key: bytes, spec: TaskSpec, **changes: Any) -> Offer:
    """The offer that an honest aggregator makes."""
    statement = codec.unpack(roster.statement, Statement)
    terms = SecAggTerms(
        profile=spec.profile, n_min=spec.n_min, n_max=spec.n_max, epoch=statement.epoch,
        statement_hash=hashlib.sha256(roster.statement).digest(), stewards=spec.stewards,
        committee=cohort.committee_of(roster.statement, roster.entries, spec.stewards),
    )  # fmt: skip
    offer = Offer(
        fleet=FLEET, task=TASK, round=number, issued_at=int(now), closes_at=int(now) + spec.window_s,
        models=(bytes(32),), model_bytes=1000, graph_digest=bytes(32), length=LENGTH, secagg=terms,
        privacy=privacy_terms(), round_key=round_key,
    )  # fmt: skip
    return msgspec.structs.replace(offer, **changes)


class Offering:
    """Offers without a model."""

    def __init__(self, registry: Registry, spec: TaskSpec, entropy: Callable[[int], bytes]) -> None:
        self._registry, self._spec, self._entropy = registry, spec, entropy

    def offer(
        self, task: TaskRow, number: int, now: float, live: frozenset[str], *, may_issue: bool
    ) -> tuple[Offer, bytes, SignedRoster]:
        roster = self._registry.signed_roster()
        if roster is None:
            roster = self._registry.issue_roster(AUTHORITY_KEY, now=now, beacon=lambda: self._entropy(32))
        cohort.check_fleet(roster.entries, self._spec.n_min, self._spec.stewards)
        if len(live) < self._spec.n_min:
            raise TaskRefused("not enough devices are live", "start them", reason="not-live")
        secret = self._entropy(ROUND_SECRET_BYTES)
        return make_offer(number, now, roster, RoundKey(secret).public_bytes(), self._spec), secret, roster


class Sums:
    """Takes opened sums in place of the averaging and the releases; keeps them as files do, through any crash."""

    def __init__(self, spec: TaskSpec) -> None:
        self._spec = spec
        self.opened: dict[int, list[np.ndarray]] = {}

    def spec(self, task: TaskRow) -> TaskSpec:
        return self._spec

    def average(self, task: TaskRow, terms: Any, total: np.ndarray, devices: int) -> tuple[str, dict[str, Any]]:
        self.opened.setdefault(terms.offer.round, []).append(np.rint(total / STEPS_IN_CLIP).astype(int))
        sha256 = hashlib.sha256(total.tobytes() + terms.offer_hash).hexdigest()
        return sha256, {"parent": task.checkpoint, "epsilon": 1.0}

    def release(self, task: TaskRow, number: int, sha256: str, stats: dict[str, Any]) -> Verdict:
        return Verdict(None, "no releases here", {}, {}, usable=True)

    def record(self, task: TaskRow, number: int, sha256: str, verdict: Verdict) -> None:
        """Nothing is released."""


class SimulatedAggregator:
    """One aggregator. `crash` forgets all that is not on its disk."""

    def __init__(self, wire: Wire, folder: Path, spec: TaskSpec, devices: list[str], now: Callable[[], float]) -> None:
        self._wire, self._home, self._spec, self._now = wire, Home(folder), spec, now
        self.entropy = seeded_entropy("aggregator")
        self.sums = Sums(spec)
        self.refused: Counter[str] = Counter()
        self.crash_at = ""
        self._home.prepare()
        self._open()
        for name in devices:
            public = DeviceKeysOf(name).public
            row = (name, public.sign_key, public.epoch_key, name, 2**40, "active", "kiosk", 0, 0, None)
            self.store.connection.execute("INSERT INTO devices VALUES (?,?,?,?,?,?,?,?,?,?)", row)
        self.store.add_task(TaskRow(TASK, msgspec.json.encode(spec), "active", "", 0, "00", "", 0.0))

    def _open(self) -> None:
        connection = open_database(self._home.database)
        # A simulated crash ends the process, not the machine: what was handed to the file system stays.
        connection.execute("PRAGMA synchronous = OFF")
        self.store = Store(connection)
        self.registry = Registry(connection, FLEET)
        self.post = Post(FLEET, AGGREGATOR_KEY, WireTransport(self._wire, AGGREGATOR))
        self.ingest = Ingest(self.store, self._home)
        self._seen: dict[str, tuple[float, str]] = {}
        self.rounds = Rounds(
            store=self.store, registry=self.registry, ingest=self.ingest,
            offering=Offering(self.registry, self._spec, self.entropy),  # type: ignore[arg-type]
            releases=self.sums, post=self.post, clock=self._now, phase_hook=self._phase,  # type: ignore[arg-type]
        )  # fmt: skip
        self.rounds.restore(self._now())

    def _phase(self, name: str) -> None:
        if name == self.crash_at:
            self.crash_at = ""
            raise SimulatedCrash(name)

    def crash(self) -> None:
        self.store.connection.close()
        self._open()

    # -- messages

    def receive(self, packet: Packet) -> None:
        try:
            self._dispatch(packet)
        except DiskFull:
            self.refused["disk-full"] += 1
        except RemoteProtocolError as error:
            self.refused[error.reason] += 1
        self.post.pump()

    def _dispatch(self, packet: Packet) -> None:
        address = topics.parse(packet.topic)
        device = address.device
        if address.direction != "up" or device is None:
            raise MalformedMessage("not to the aggregator", reason="topic")
        known = self.registry.get(device)
        if known is None or known.status != "active":
            raise WrongSignature("not a device", reason="unknown-device")
        if address.kind == "data":
            self._chunk(device, codec.decode_chunk(packet.payload))
            return
        message = codec.decode(
            packet.payload, fleet=FLEET, sender=device, recipient=AGGREGATOR, public_key=known.sign_key, accepted=UP
        )
        if message.topic != address.kind:
            raise MalformedMessage("another topic's message", reason="kind")
        self._seen[device] = (self._now(), message.phase if isinstance(message, Heartbeat) else "")
        try:
            self._handle(device, message)
        except RemoteProtocolError as error:
            upload = message.upload if isinstance(message, Hello | Done) else None
            self.post.send(device, Refusal(message.topic, error.reason, "", upload))
            raise

    def _chunk(self, device: str, chunk: codec.Chunk) -> None:
        try:
            ack = self.ingest.chunk(device, chunk, self._now())
        except UnexpectedMessage as error:
            self.post.send(device, Refusal("data", error.reason, "", chunk.upload))
            raise
        if ack is not None:
            self.post.send(device, ack)

    def _handle(self, device: str, message: Message) -> None:
        now = self._now()
        match message:
            case Hello():
                self.post.send(device, self.rounds.hello(device, message, now))
            case Done():
                self.post.send(device, self.rounds.done(device, message, now))
            case Share():
                self.rounds.share(device, message)
            case Report():
                self.rounds.report(device, message)
            case Heartbeat():
                self.post.send(device, Echo(message.nonce, int(now)))
            case Ask():
                self.post.send(device, self._state(device, message))
            case Get():
                self.post.answer(device, self._block(device, message))

    def _state(self, device: str, ask: Ask) -> State:
        offers, openings = tuple(self.rounds.offers()), tuple(self.rounds.openings(device))
        return State(ask.nonce, int(self._now()), 1, offers, openings, 60)

    def _block(self, device: str, get: Get) -> Block:
        kind, _, rest = get.path.partition("/")
        blob = None
        if kind == "roster" and (signed := self.registry.signed_roster(int(rest))) is not None:
            blob = signed.to_blob()
        elif kind == "opening":
            task, _, number = rest.partition("/")
            blob = self.rounds.opening_blob(device, task, int(number))
        if blob is None:
            return Block(get.request, get.path, get.offset, 0, False, b"")
        return Block(get.request, get.path, get.offset, len(blob), True, blob[get.offset : get.offset + get.length])

    def tick(self) -> None:
        now = self._now()
        for device, message in self.ingest.due(now):
            self.post.send(device, message)
        self.rounds.tick(now, cohort.live(self._seen, now))
        self.post.pump()

    # -- what the tests ask

    def included(self, number: int) -> set[str]:
        return {row.device for row in self.store.uploads(TASK, number, "accepted", "summed")}

    def phases(self) -> dict[int, str]:
        return {row.number: row.phase for row in self.store.rounds(TASK)}
