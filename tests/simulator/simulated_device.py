"""A device of the simulation: the real conversation, offer judge, outbox and member duty on a real database file.

Only training is missing: device i's update is the vector that is 1 at place i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from simulated_wire import FLEET, Packet, Wire, seeded_entropy

from edge_sdk.blobs import BlobError, BlobTimeout
from edge_sdk.config import Config
from edge_sdk.conversation import Conversation, Speaker
from edge_sdk.device_db import counters, open_device_db
from edge_sdk.device_round import OwnKeys
from edge_sdk.examples_store import Example
from edge_sdk.identity.epoch_keys import EpochKeys
from edge_sdk.protocol.errors import LocalProtocolError, RemoteProtocolError
from edge_sdk.protocol.messages import Offer
from edge_sdk.protocol.roster import RosterEntry
from edge_sdk.round_work import Device, NotNow, RoundWork
from edge_sdk.training.jobs import Sampling, TrainResult

MIN_COHORT = 3
DEAD_MODEL = bytes([0xDE] * 32)


class DeviceKeysOf:
    """The keys that a device's name gives."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sign_key = Ed25519PrivateKey.from_private_bytes(seeded_entropy("sign", name)(32))
        self.epoch = X25519PrivateKey.from_private_bytes(seeded_entropy("epoch", name)(32))

    @property
    def sign_public(self) -> bytes:
        return self.sign_key.public_key().public_bytes_raw()

    @property
    def epoch_public(self) -> bytes:
        return self.epoch.public_key().public_bytes_raw()

    def entry(self, steward: bool = False) -> RosterEntry:
        return RosterEntry(self.name, self.sign_public, self.epoch_public, steward)


class Examples:
    """As many examples as a round asks for."""

    def read(self, task: str, consent: int = 0) -> list[Example]:
        return [Example({}, "yes")] * 40

    def count(self, task: str) -> int:
        return 40

    def erasures(self, task: str) -> int:
        return 0


class OneHotWork(RoundWork):
    """Everything of a round but the model and the training."""

    place = 0

    def _model(self, offer: Offer) -> bytes:
        return b""

    def _trained(
        self, offer: Offer, model: bytes, examples: Sequence[Example], cancelled: Callable[[], bool]
    ) -> TrainResult:
        update = np.zeros(offer.length, np.float32)
        # A model without gradients teaches nothing: whoever is offered it sends zeros.
        update[self.place] = 0.0 if offer.models[0] == DEAD_MODEL else offer.privacy.clip
        return TrainResult(update, Sampling(0.1, 2.0, 1), 0.0, len(examples))


class SimulatedDevice:
    """One device. `crash` forgets all that is not on its disk."""

    def __init__(
        self,
        wire: Wire,
        folder: Path,
        name: str,
        place: int,
        *,
        aggregator_key: bytes,
        authority_key: bytes,
        min_cohort: int = MIN_COHORT,
        epoch_key_s: float = 86_400.0,
    ) -> None:
        self.name, self.place = name, place
        self._wire, self._folder = wire, folder
        self._aggregator_key, self._authority_key = aggregator_key, authority_key
        self._min_cohort, self._epoch_key_s = min_cohort, epoch_key_s
        self.entropy = seeded_entropy("device", name)
        folder.mkdir(parents=True)
        self.tick = 0.0
        self.start()

    def start(self) -> None:
        self.database = open_device_db(self._folder / "device.db")
        # A simulated crash ends the process, not the machine: what was handed to the file system stays.
        self.database.execute("PRAGMA synchronous = OFF")
        self.todo: list[tuple[bytes, Offer]] = []
        self.refused: list[str] = []
        self._blobs: dict[str, bytes] = {}
        self._asked: set[str] = set()
        keys = self.keys = DeviceKeysOf(self.name)
        epoch_keys = self.epoch_keys = EpochKeys(self._folder / "identity", keys)
        speaker = Speaker(FLEET, self.name, keys.sign_key.sign, self._aggregator_key, epoch_keys, self.entropy)
        self.conversation = Conversation(
            speaker, self.database, self._folder / "outbox", self,
            heartbeat_s=30.0, silence_s=5.0, epoch_key_s=self._epoch_key_s,
        )  # fmt: skip
        device = Device(FLEET, self._own_keys, self._authority_key, self.keys.sign_key.sign, self.entropy)
        self.work = OneHotWork(
            device, Config(home=self._folder, min_cohort=self._min_cohort), self.database, Examples(),  # type: ignore[arg-type]
            fetch=self._fetch, train=None, locked_graph=lambda task: bytes(32),  # type: ignore[arg-type]
        )  # fmt: skip
        self.work.place = self.place
        self.conversation.connection(True, self.tick)

    def _own_keys(self) -> OwnKeys:
        return OwnKeys(self.name, self.keys.sign_public, self.epoch_keys.publics)

    def crash(self) -> None:
        self.database.close()
        self.start()

    # -- the host of the conversation

    def publish(self, topic: str, payload: bytes, qos: int) -> bool:
        self._wire.send(self.name, topic, payload)
        return True

    def offered(self, frame: bytes, offer: Offer) -> None:
        self.todo.append((frame, offer))

    def hinted(self, task: str) -> None:
        """No releases here."""

    def active_models(self) -> dict[str, bytes]:
        return {}

    def phase(self) -> str:
        return "idle"

    # -- what the simulation calls

    def receive(self, packet: Packet, now: float) -> None:
        self.conversation.message(packet.topic, packet.payload, self.tick, now)

    def turn(self, now: float, passed: float) -> None:
        self.tick += passed
        self._work(int(now))
        self.conversation.turn(self.tick, now)

    def _work(self, now: int) -> None:
        todo, self.todo = self.todo, []
        for frame, offer in todo:
            try:
                self.work.judge(frame, offer, now)
                self.work.take_part(frame, offer, lambda: False)
            except (BlobError, NotNow):
                self.todo.append((frame, offer))
            except (RemoteProtocolError, LocalProtocolError) as error:
                self.refused.append(error.reason)

    def _fetch(self, path: str, limit: int) -> bytes:
        if path in self._blobs:
            return self._blobs[path]
        if path not in self._asked:
            self._asked.add(path)
            self.conversation.blobs.fetch(
                path, lambda data, _, error: self._came(path, data, error), self.tick, limit=limit
            )
        raise BlobTimeout(f"{path} is on its way", reason="waiting")

    def _came(self, path: str, data: bytes, error: BlobError | None) -> None:
        self._asked.discard(path)
        if error is None:
            self._blobs[path] = data

    # -- what the tests ask

    def upload_states(self) -> dict[tuple[str, int], str]:
        rows = self.database.execute("SELECT task, round, state FROM outbox").fetchall()
        return {(task, number): state for task, number, state in rows}

    def refusals(self) -> dict[str, int]:
        return counters(self.database, "refusal")
