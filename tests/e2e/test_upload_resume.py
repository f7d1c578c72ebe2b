"""A 3 MB upload by the real client, over a real broker that is killed twice and an aggregator that is killed once."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "aggregator"), str(ROOT / "tests" / "e2e")]

import test_aggregator_kill as kill  # noqa: E402 # after the path above
from small_fleet import FLEET, first_model, make_task  # noqa: E402 # as above

from aggregator.fleet.registry import Device  # noqa: E402 # as above
from aggregator.releases.repository import Repository  # noqa: E402 # as above
from edge_sdk.client import EdgeClient, System  # noqa: E402 # as above
from edge_sdk.config import Config, load  # noqa: E402 # as above
from edge_sdk.identity.enrolment import Identity  # noqa: E402 # as above
from edge_sdk.identity.keys import DeviceKeys, private_directory, write_private  # noqa: E402 # as above
from edge_sdk.identity.trust import save_bundle  # noqa: E402 # as above
from edge_sdk.protocol import chunks, codec, topics  # noqa: E402 # as above
from edge_sdk.protocol.messages import DOWN, Ack, Grant, Receipt  # noqa: E402 # as above
from edge_sdk.transport.interface import Callbacks, QoS  # noqa: E402 # as above
from edge_sdk.transport.mqtt import MqttSettings, MqttTransport  # noqa: E402 # as above

HIDDEN = (75_000,)  # 1,050,001 weights: 3.1 MB masked
CHUNKS = 65
NAME = "patient-device"
CHUNK_S = 0.06  # a slow uplink, so that a kill falls into the middle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


class SlowLink:
    """The real transport behind an uplink of a chunk every 60 ms, with a record of what crossed it."""

    def __init__(self, inner: MqttTransport, fleet_key: bytes) -> None:
        self.inner, self.fleet_key = inner, fleet_key
        self.sent: list[int] = []
        self.needless: list[int] = []
        self.held: set[int] = set()
        self.receipts: list[Receipt] = []
        self._next = 0.0

    def start(self, callbacks: Callbacks) -> None:
        def receive(topic: str, payload: bytes) -> None:
            self._note(topic, payload)
            callbacks.on_message(topic, payload)

        self.inner.start(Callbacks(receive, callbacks.on_connection, callbacks.on_capacity, callbacks.on_refused))

    def _note(self, topic: str, payload: bytes) -> None:
        if topics.parse(topic).kind not in ("grant", "ack", "receipt"):
            return
        message = codec.decode(
            payload, fleet=FLEET, sender="aggregator", recipient=NAME, public_key=self.fleet_key, accepted=DOWN
        )
        if isinstance(message, Grant | Ack):
            bitmap = chunks.Bitmap.decode(message.received, CHUNKS)
            self.held |= set(range(CHUNKS)) - set(bitmap.missing())
        elif isinstance(message, Receipt):
            self.receipts.append(message)

    def publish(self, topic: str, payload: bytes, qos: QoS = 1) -> bool:
        if topics.parse(topic).kind != "data":
            return self.inner.publish(topic, payload, qos)
        if time.monotonic() < self._next or not self.inner.publish(topic, payload, qos):
            return False
        self._next = time.monotonic() + CHUNK_S
        index = codec.decode_chunk(payload).index
        self.sent.append(index)
        if index in self.held:
            self.needless.append(index)
        return True

    def stop(self) -> None:
        self.inner.stop()

    @property
    def in_flight(self) -> int:
        return self.inner.in_flight

    @property
    def connected(self) -> bool:
        return self.inner.connected

    @property
    def counters(self) -> dict[str, int]:
        return self.inner.counters


class SlowSystem(System):
    """The real surroundings, with the slow uplink and a short backoff."""

    link: SlowLink | None = None

    def connect(
        self, identity: Identity, last_words: Callable[[], tuple[str, bytes]], now: Callable[[], float]
    ) -> SlowLink:
        settings = MqttSettings(
            host=identity.bundle.broker_host, port=identity.bundle.broker_port, name=identity.device,
            ca_file=identity.ca_file, certificate_file=identity.certificate_file, key_file=identity.key_file,
            subscriptions=topics.device_filters(FLEET, NAME), backoff_first_s=0.1, backoff_last_s=0.5,
        )  # fmt: skip
        transport = MqttTransport(settings, rng=random.Random(11), now=now, will=last_words)
        self.link = self.link or SlowLink(transport, identity.bundle.aggregator_key)
        self.link.inner = transport
        return self.link


class Patient(kill.World):
    """The fleet of the kill tests, with one real client beside its one-hot devices."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kill, "HIDDEN", HIDDEN)
        super().__init__(directory, "auto")
        home = directory / NAME
        keys = DeviceKeys.generate()
        folder = private_directory(home / "identity")
        keys.save(folder)
        issued = self.authority.issue(keys.request(FLEET, NAME), now=time.time())
        root = Repository(self.home.releases).trusted_root().decode()
        bundle = self.authority.bundle(broker_host="localhost", broker_port=self.broker.port, tuf_root=root)
        save_bundle(folder, bundle)
        write_private(folder / "device.crt", issued.chain_pem.encode())
        row = Device(NAME, keys.sign_public, keys.epoch_public, "1", 2**33, "active", "kiosk", False, 1, None)
        self._add(row)
        self.broker.reload([*self.names, NAME])
        config = load(
            {},
            home=home,
            min_examples=5,
            silence_s=2.0,
            heartbeat_s=10.0,
            max_epsilon=50.0,
            fields=tuple(f"churn.f{i}" for i in range(12)),
        )
        self.system = SlowSystem(config)
        self.client = self._client(config)

    def _add(self, row: Device) -> None:
        places = ",".join("?" * len(row))
        self.connection.execute(f"INSERT INTO devices ({', '.join(Device._fields)}) VALUES ({places})", row)

    def _client(self, config: Config) -> EdgeClient:
        client = EdgeClient(config, surroundings=self.system)
        rng = random.Random(2)
        for _ in range(20):
            fields = {f"f{i}": rng.gauss(0, 1) for i in range(12)}
            client.record("churn", fields, "yes" if fields["f0"] > 0 else "no")
        assert client.flush(10.0)
        return client

    @property
    def link(self) -> SlowLink:
        assert self.system.link is not None
        return self.system.link

    def kill_broker(self) -> None:
        assert self.broker.pid is not None
        os.kill(self.broker.pid, signal.SIGKILL)

    def close(self) -> None:
        self.client.close()
        super().close()


@pytest.fixture
def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Patient]:
    made = Patient(tmp_path, monkeypatch)
    try:
        yield made
    finally:
        made.close()


def test_an_upload_survives_two_broker_kills_and_one_of_the_aggregator(patient: Patient) -> None:
    patient.serve("none")
    kill.eventually(lambda: len(patient.store.presence()) == kill.COUNT + 1, what="the devices are heard")
    make_task(
        patient.home, now=time.time(), rounds=1, hidden=HIDDEN, unit="device", n_min=5, window_s=150, clip=1.0,
        steps=2, learning_rate=0.01, sample_rate=0.5,
    )  # fmt: skip
    link = lambda: len(patient.system.link.sent) if patient.system.link else 0  # noqa: E731 - read often below
    kill.eventually(lambda: link() >= 12, 90, what="the upload begins")
    patient.kill_broker()
    kill.eventually(lambda: link() >= 30, 60, what="it goes on after the broker's first death")
    patient.kill()
    patient.serve("none")
    kill.eventually(lambda: link() >= 48, 60, what="it goes on after the aggregator's death")
    patient.kill_broker()
    accepted = lambda: patient.client.status()["uploads"][0]["state"] == "accepted"  # noqa: E731 - as above
    kill.eventually(accepted, 60, what="the receipt")

    upload = patient.client.status()["uploads"][0]
    assert upload["size_bytes"] > 3_000_000
    assert set(patient.link.sent) == set(range(CHUNKS)), "every chunk was sent"
    assert patient.link.needless == [], "a chunk that the aggregator had acknowledged was sent again"
    again = len(patient.link.sent) - CHUNKS
    assert again <= 4 * 8, "no more than a window is sent again for each interruption"
    assert (upload["chunks_sent"], upload["chunks_resent"]) == (len(patient.link.sent), again)
    assert {receipt.accepted for receipt in patient.link.receipts} == {True}
    kill.eventually(patient.finished, 60, what=f"the round ends: {patient.log.read_text()[-2000:]}")
    mine = [u for u in patient.store.uploads("churn", 1, "accepted", "summed") if u.device == NAME]
    assert len(mine) == 1, "counted exactly once"
    assert list((patient.client.config.home / "outbox").iterdir()) == []


def test_the_model_of_this_test_makes_an_upload_of_three_megabytes() -> None:
    assert chunks.chunk_count(3 * len(first_model(HIDDEN)) // 4) in (CHUNKS - 1, CHUNKS, CHUNKS + 1)
