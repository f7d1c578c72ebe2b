"""A real release repository and a device, joined by a link in memory that a test may cut or tamper with."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aggregator.releases.errors import ReleaseNotFound
from aggregator.releases.keys import open_targets_key
from aggregator.releases.repository import Repository
from edge_sdk.artifact.graph_lock import graph_digest
from edge_sdk.artifact.schema import CategoryField, Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.weights import read_vector, write_vector
from edge_sdk.inference import Models
from edge_sdk.ota.activation import Activation
from edge_sdk.ota.fetcher import Block, NotFound, TimedOut
from edge_sdk.ota.rules import ReleaseFeed
from edge_sdk.ota.slots import Model, Slots

NOW = 1_800_000_000.0
TASK = "churn"
PASSPHRASE = b"a passphrase"
SCHEMA = Schema((NumberField("calls"), CategoryField("plan", ("a", "b"))), Label(TASK, "binary", ("stays", "leaves")))
RECORD = {"calls": 2.0, "plan": "a"}


def model_bytes(seed: int, hidden: int = 8) -> bytes:
    """The same graph for the same `hidden`, other weights for every seed."""
    start = tabular_classifier(SCHEMA, [hidden], 0)
    weights = np.random.default_rng(seed).normal(size=read_vector(start).size).astype(np.float32)
    return write_vector(start, weights)


@dataclass
class Link:
    """Answers block requests from a repository. `instead` replaces whole files, `tamper` single blocks."""

    repository: Repository
    instead: dict[str, bytes] = field(default_factory=dict)
    tamper: Callable[[str, Block], Block] = lambda path, block: block
    cut_after: int | None = None
    asked: list[str] = field(default_factory=list)
    sent: int = 0

    def __call__(self, path: str, offset: int, length: int) -> Block:
        self.asked.append(path)
        if self.cut_after is not None and self.sent + length > self.cut_after:
            raise TimedOut
        if path in self.instead:
            data = self.instead[path]
            block = Block(len(data), data[offset : offset + length])
        else:
            try:
                block = Block(*self.repository.read(path, offset, length))
            except ReleaseNotFound:
                raise NotFound from None
        self.sent += len(block.data)
        return self.tamper(path, block)

    def whole(self, path: str) -> bytes:
        """A file as the repository serves it now."""
        return self.repository.read(path, 0, 1 << 20)[1]


@dataclass
class Fleet:
    """One repository and one device of a fleet."""

    directory: Path
    repository: Repository
    link: Link
    models: Models = field(default_factory=Models)
    bundled: Path | None = None

    def publish(self, version: int, seed: int | None = None, now: float = NOW) -> None:
        """Release a model whose weights depend on the version alone."""
        self.repository.publish(TASK, version, model_bytes(seed or version), {"round": str(version)}, now)

    def feed(self) -> ReleaseFeed:
        """A feed as a fresh process would open it."""
        return ReleaseFeed(self.directory / "device", self.repository_root, self.link, block_bytes=512)

    @property
    def repository_root(self) -> bytes:
        """The root of the trust bundle: always the first one."""
        return self.repository.read("metadata/1.root.json", 0, 1 << 20)[1]

    def slots(self) -> Slots:
        """The slots as a fresh process would open them."""
        return Slots(self.directory / "device" / TASK, self.bundled)

    def serve(self, model: Model | None) -> None:
        """Put a model into service."""
        if model is None:
            self.models.unload(TASK)
        else:
            self.models.load(TASK, model.path.read_bytes(), model.version)

    def device(self) -> Activation:
        """A started device, as after a restart of its process."""
        self.open_slots = self.slots()
        device = Activation(TASK, self.feed(), self.open_slots, self.serve)
        device.start()
        return device

    def version_serving(self) -> int:
        """Predict once, and say by which release."""
        return self.models.predict(TASK, [RECORD])[0].model_version


def new_repository(directory: Path, hidden: int = 8) -> Repository:
    """A repository whose graph is locked."""
    repository = Repository.create(directory, directory / "offline", PASSPHRASE, NOW)
    key = open_targets_key(directory / "offline", PASSPHRASE)
    repository.lock_graph(TASK, graph_digest(model_bytes(1, hidden)).hex(), 1 << 16, key, NOW)
    return repository


KILLED = 137
_FILE_EVENTS = {"open", "os.rename", "os.remove"}


def exit_code_of(action: Callable[[], None], kill_at: int | None = None) -> int:
    """Run in a child process; end it on the spot, as kill -9 would, before its n-th event on a file."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = kill_at

    def hook(event: str, _: object) -> None:
        nonlocal left
        if left is not None and event in _FILE_EVENTS:
            left -= 1
            if left < 0:
                os._exit(KILLED)

    sys.addaudithook(hook)
    try:
        action()
    except BaseException:
        os._exit(1)
    os._exit(0)
