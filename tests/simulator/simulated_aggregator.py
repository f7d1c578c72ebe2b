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
from aggregator.comparison import Comparison
from aggregator.desk import Desk
from aggregator.errors import TaskRefused
from aggregator.fleet.registry import Registry
from aggregator.grouping import how_many
from aggregator.home import Home
from aggregator.ingest import Ingest
from aggregator.offering import Offering as RealOffering
from aggregator.opening_requests import OpenedGroup
from aggregator.post import Post
from aggregator.releasing import Verdict
from aggregator.rounds import Rounds
from aggregator.store.rows import TaskRow
from aggregator.store.schema import open_database
from aggregator.store.store import Store
from aggregator.tasks import TaskSpec
from aggregator.watch import Presence, Refusals
from edge_sdk.protocol import codec
from edge_sdk.protocol.messages import Offer, PrivacyTerms, SecAggTerms
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
        unit="record", placement="local", noise_multiplier=2.0, max_grad_norm=1.0, per_customer=8, sample_rate=0.1,
        steps=1, learning_rate=0.1,
        delta=1e-5, honest=1, clip=1.0, step=1.0 / STEPS_IN_CLIP, insecure_without_noise=False, expected_batch=50,
        proximal=0.0, weight_bound=0,
    )  # fmt: skip


def make_offer(
    number: int, now: float, roster: SignedRoster, round_key: bytes, spec: TaskSpec, *, live: int = 0, **changes: Any
) -> Offer:
    """The offer that an honest aggregator makes; `live`: devices that are there to fill groups."""
    statement = codec.unpack(roster.statement, Statement)
    terms = SecAggTerms(
        profile=spec.profile, n_min=spec.n_min, n_max=spec.n_max, epoch=statement.epoch,
        statement_hash=hashlib.sha256(roster.statement).digest(), stewards=spec.stewards,
        committee=cohort.committee_of(roster.statement, roster.entries, spec.stewards),
        groups=how_many(spec.groups, 1, spec.n_min, live, 64),
    )  # fmt: skip
    offer = Offer(
        fleet=FLEET, task=TASK, round=number, issued_at=int(now), closes_at=int(now) + spec.window_s,
        models=(bytes(32),), model_bytes=1000, graph_digest=bytes(32), length=LENGTH, secagg=terms,
        privacy=privacy_terms(), consent=0, round_key=round_key, query=None,
    )  # fmt: skip
    return msgspec.structs.replace(offer, **changes)


class Offering:
    """Offers without a model; the rosters are issued by the real rules."""

    def __init__(self, registry: Registry, spec: TaskSpec, entropy: Callable[[int], bytes]) -> None:
        self._spec, self._entropy = spec, entropy
        self._rosters = RealOffering(registry, None, AUTHORITY_KEY, entropy)  # type: ignore[arg-type]  # no releases here

    def offer(
        self, task: TaskRow, number: int, now: float, live: frozenset[str], *, may_issue: bool, question: None = None
    ) -> tuple[Offer, bytes, SignedRoster]:
        roster = self._rosters.roster(now, now + self._spec.window_s + self._spec.opening_s, may_issue=may_issue)
        cohort.check_fleet(roster.entries, self._spec.n_min, self._spec.stewards)
        if len(live) < self._spec.n_min:
            raise TaskRefused("not enough devices are live", "start them", reason="not-live")
        secret = self._entropy(ROUND_SECRET_BYTES)
        key = RoundKey(secret).public_bytes()
        offer = make_offer(number, now, roster, key, self._spec, live=len(live), task=task.name)
        return offer, secret, roster


class Sums:
    """Takes opened sums in place of the averaging and the releases; keeps them as files do, through any crash."""

    def __init__(self, spec: TaskSpec) -> None:
        self._spec = spec
        self.of_task: dict[str, dict[int, list[np.ndarray]]] = {}
        self.groups: list[tuple[tuple[str, ...], np.ndarray]] = []  # whoever is in it, and its sum

    @property
    def opened(self) -> dict[int, list[np.ndarray]]:
        return self.of_task.setdefault(TASK, {})

    def spec(self, task: TaskRow) -> TaskSpec:
        return msgspec.structs.replace(self._spec, name=task.name)

    def average(self, task: TaskRow, terms: Any, groups: list[OpenedGroup]) -> tuple[str, dict[str, Any]]:
        held = [(group.devices, group.total) for group in groups if group.total is not None]
        self.groups += [(devices, np.rint(each / STEPS_IN_CLIP).astype(int)) for devices, each in held]
        total = sum(each for _, each in held)
        opened = self.of_task.setdefault(task.name, {})
        opened.setdefault(terms.offer.round, []).append(np.rint(total / STEPS_IN_CLIP).astype(int))
        sha256 = hashlib.sha256(total.tobytes() + terms.offer_hash).hexdigest()
        said = [{"devices": len(group.devices), "reason": group.reason} for group in groups]
        return sha256, {"parent": task.checkpoint, "epsilon": 1.0, "groups": said}

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
        self.crash_at = ""
        self._home.prepare()
        self._open()
        for name in devices:
            keys = DeviceKeysOf(name)
            row = (name, keys.sign_public, keys.epoch_public, name, 2**40, "active", "kiosk", 0, 0, None)
            self.store.connection.execute("INSERT INTO devices VALUES (?,?,?,?,?,?,?,?,?,?)", row)
        self.add_task(TASK)

    def _open(self) -> None:
        connection = open_database(self._home.database)
        # A simulated crash ends the process, not the machine: what was handed to the file system stays.
        connection.execute("PRAGMA synchronous = OFF")
        self.store = Store(connection)
        self.registry = Registry(connection, FLEET)
        self.post = Post(FLEET, AGGREGATOR_KEY, WireTransport(self._wire, AGGREGATOR))
        self.ingest = Ingest(self.store, self._home)
        self.rounds = Rounds(
            store=self.store, registry=self.registry, ingest=self.ingest,
            offering=Offering(self.registry, self._spec, self.entropy),  # type: ignore[arg-type]
            releases=self.sums, post=self.post, clock=self._now, phase_hook=self._phase,  # type: ignore[arg-type]
        )  # fmt: skip
        self.presence, self.refusals = Presence(self.store, self._now()), Refusals(self.store)
        self.desk = Desk(
            fleet=FLEET, home=self._home, registry=self.registry, repository=None, rounds=self.rounds.messages,
            ingest=self.ingest, post=self.post, presence=self.presence, refusals=self.refusals,
            comparison=Comparison(self.store, self.rounds.ledger, self.refusals),
        )  # fmt: skip
        self.rounds.restore(self._now())

    def add_task(self, name: str) -> None:
        spec = msgspec.structs.replace(self._spec, name=name)
        self.store.add_task(TaskRow(name, msgspec.json.encode(spec), "active", "", 0, "00", "", 0.0))

    def _phase(self, name: str) -> None:
        if name == self.crash_at:
            self.crash_at = ""
            raise SimulatedCrash(name)

    def crash(self) -> None:
        self.store.connection.close()
        self._open()

    # -- what the simulation calls

    def receive(self, packet: Packet) -> None:
        self.desk.receive(packet.topic, packet.payload, self._now())
        self.post.pump()

    def tick(self) -> None:
        now = self._now()
        for device, message in self.ingest.due(now):
            self.post.send(device, message)
        self.rounds.tick(now, self.presence.live(now, cohort.LIVE_S))
        self.presence.write()
        self.refusals.write()
        self.post.pump()

    # -- what the tests ask

    def counted(self, number: int, task: str = TASK) -> set[str]:
        """The devices of the groups that have enough of them."""
        members = self.store.members(task, number)
        sizes = Counter(members.values())
        return {device for device, group in members.items() if sizes[group] >= self._spec.n_min}

    def included(self, number: int, task: str = TASK) -> set[str]:
        return {row.device for row in self.store.uploads(task, number, "accepted", "summed")}

    def refused(self) -> dict[str, int]:
        """Messages refused, by reason."""
        self.refusals.write()
        counts: Counter[str] = Counter()
        for (_, reason), count in self.store.refusals().items():
            counts[reason] += count
        return dict(counts)

    def phases(self, task: str = TASK) -> dict[int, str]:
        return {row.number: row.phase for row in self.store.rounds(task)}
