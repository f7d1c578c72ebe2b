"""A whole fleet in one process: a home directory, the service on a memory broker, simulated devices, a manual clock."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from onehot_device import ONE, OneHotDevice

from aggregator import tasks
from aggregator.fleet.authority import create_authority, open_authority
from aggregator.fleet.registry import Device, Registry
from aggregator.home import Home
from aggregator.releases.keys import open_targets_key
from aggregator.releases.repository import Repository
from aggregator.service import Service
from aggregator.store.schema import open_database
from aggregator.store.store import Store
from edge_sdk.artifact.graph_lock import graph_digest
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.weights import read_vector
from edge_sdk.protocol import topics
from edge_sdk.transport.interface import Callbacks
from edge_sdk.transport.memory import MemoryBroker

FLEET = "test-fleet"
PASSPHRASE = b"correct horse"
START = 1_800_000_000.0
SCHEMA = Schema(tuple(NumberField(f"f{i}") for i in range(12)), Label("churn", "binary", ("no", "yes")))


def public(key) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def make_home(path: Path, *, now: float = START, hidden: tuple[int, ...] = ()) -> Home:
    home = Home(path)
    home.prepare()
    create_authority(home.authority, PASSPHRASE, fleet=FLEET, now=now)
    repository = Repository.create(home.releases, path / "offline", PASSPHRASE, now)
    digest = graph_digest(first_model(hidden)).hex()
    repository.lock_graph("churn", digest, 1 << 22, open_targets_key(path / "offline", PASSPHRASE), now)
    open_database(home.database).close()
    return home


def first_model(hidden: tuple[int, ...] = ()) -> bytes:
    return tabular_classifier(SCHEMA, hidden, seed=1)


def write_heldout(file: Path, rows: int = 40) -> Path:
    rng = np.random.default_rng(5)
    lines = []
    for _ in range(rows):
        record = {f"f{i}": float(value) for i, value in enumerate(rng.normal(size=12))}
        lines.append(json.dumps({**record, "churn": "yes" if record["f0"] > 0 else "no"}))
    file.write_text("\n".join(lines))
    return file


def add_device(registry: Registry, device: OneHotDevice) -> None:
    """What enrolment leaves in the registry."""
    row = Device(
        device.name, public(device.sign_key), public(device.epoch_key), "1", 2**33, "active", "kiosk", False, 1, None
    )
    columns = ", ".join(Device._fields)
    registry._db.execute(f"INSERT INTO devices ({columns}) VALUES (?,?,?,?,?,?,?,?,?,?)", row)


def make_task(home: Home, *, now: float = START, heldout: bool = True, hidden: tuple[int, ...] = (), **fields) -> str:
    connection = open_database(home.database)
    spec = tasks.build_spec(
        **{
            "name": "churn",
            "n_min": 3,
            "n_max": 20,
            "rounds": 2,
            "window_s": 60,
            "opening_s": 30,
            "noise_multiplier": 1.0,
            "min_improvement": -1.0,
            "accept_little_signal": True,  # exact sums are looked at, not models
            **fields,
        }
    )
    file = write_heldout(home.path / "given.jsonl") if heldout else None
    try:
        return tasks.create_task(Store(connection), home, spec, model=first_model(hidden), heldout=file, now=now)
    finally:
        connection.close()


def indicator(home: Home, before: str, after: str, devices: int, step: float) -> list[int]:
    """Which coordinate was raised how often, from two checkpoints."""
    old, new = (read_vector(home.checkpoint_file(sha).read_bytes()).astype(np.float64) for sha in (before, after))
    return [int(v) for v in np.round((new - old) * devices / step / ONE)]


class SmallFleet:
    """`run` moves messages and time until a condition holds."""

    def __init__(self, path: Path, count: int = 6, hidden: tuple[int, ...] = ()) -> None:
        self.home = make_home(path, hidden=hidden)
        self.hidden = hidden
        self.now = START
        self.broker = MemoryBroker(FLEET)
        self.hook: Callable[[str], None] = lambda phase: None
        self.fleet_calls: list[list[str]] = []
        key = public(open_authority(self.home.authority, now=START).sign_key)
        self.service = self.start()
        self.devices = [self.add(f"device-{i}", i, key) for i in range(count)]

    def start(self) -> Service:
        self.service = Service(
            self.home.path,
            SimpleNamespace(fleet=FLEET),
            lambda: self.now,
            os.urandom,
            lambda filters: self.broker.transport("aggregator-1", filters),
            phase_hook=self._hooked,
            fleet_changed=self.fleet_calls.append,
        )
        self.service.begin()
        return self.service

    def restart(self) -> Service:
        """As after a crash: the old service is dropped where it stands."""
        self.service._connection.close()
        return self.start()

    def add(self, name: str, index: int, key: bytes) -> OneHotDevice:
        transport = self.broker.transport(name, topics.device_filters(FLEET, name))
        device = OneHotDevice(name, FLEET, index, key, transport.publish)
        transport.start(Callbacks(on_message=device.receive))
        add_device(self.service.registry, device)
        return device

    def task(self, **fields) -> str:
        return make_task(self.home, now=self.now, hidden=self.hidden, **fields)

    def refused(self, kind: str, reason: str) -> int:
        """How often a message was refused, the counts not yet written included."""
        self.service._refusals.write()
        return self.service.store.refusals().get((kind, reason), 0)

    def hello_all(self) -> None:
        for device in self.devices:
            device.ask()

    def turn(self, seconds: float = 0.11) -> None:
        self.broker.run()
        self.service.turn(0)
        self.broker.run()
        self.now += seconds

    def run(self, until: Callable[[], bool], limit: int = 3000) -> None:
        for count in range(limit):
            if until():
                return
            self.turn()
            if count % 40 == 39:
                for device in self.devices:
                    device.tick()
                    device.beat()
        raise AssertionError(f"not reached: {[(r.number, r.phase, r.reason, r.waiting) for r in self.rounds()]}")

    def rounds(self):
        return self.service.store.rounds("churn")

    def phase(self, number: int = 1) -> str:
        return next((r.phase for r in self.rounds() if r.number == number), "none")

    def _hooked(self, phase: str) -> None:
        self.hook(phase)
