"""`kill -9` of a real aggregator process in every phase, over a real broker: no receipt is lost or doubled."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "aggregator"))

from onehot_device import OneHotDevice  # noqa: E402 # beside the tests of the aggregator
from small_fleet import FLEET, add_device, indicator, make_home, make_task, public  # noqa: E402 # as above

from aggregator.broker import Broker  # noqa: E402 # after the path above
from aggregator.fleet.authority import open_authority  # noqa: E402 # as above
from aggregator.fleet.registry import Registry  # noqa: E402 # as above
from aggregator.store.schema import open_database  # noqa: E402 # as above
from aggregator.store.store import Store  # noqa: E402 # as above
from edge_sdk.identity.keys import DeviceKeys, private_directory, write_private  # noqa: E402 # as above
from edge_sdk.protocol import topics  # noqa: E402 # as above
from edge_sdk.protocol.codec import unpack  # noqa: E402 # as above
from edge_sdk.protocol.messages import Offer  # noqa: E402 # as above
from edge_sdk.transport.interface import Callbacks  # noqa: E402 # as above
from edge_sdk.transport.mqtt import MqttSettings, MqttTransport  # noqa: E402 # as above

HIDDEN = (3000,)  # three chunks an upload
COUNT = 6
PHASES = ["offered", "collecting", "receipts", "closed", "opening", "averaging", "averaged", "published", "released"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def eventually(condition, timeout_s: float = 40.0, what: str = "") -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what or condition
        time.sleep(0.02)


class World:
    """A fleet on a real broker; the aggregator is a process that can be killed."""

    def __init__(self, directory: Path, kind: str) -> None:
        now = time.time()
        self.home = make_home(directory / "home", now=now, hidden=HIDDEN)
        self.authority = open_authority(self.home.authority, now=now)
        self.connection = open_database(self.home.database)
        self.store, self.registry = Store(self.connection), Registry(self.connection, FLEET)
        self.broker = Broker(directory / "broker", self.home.authority, fleet=FLEET, kind=kind)
        self.names = [f"device-{i}" for i in range(COUNT)]
        self.broker.start(self.names)
        self.lock = threading.RLock()
        self.transports: list[MqttTransport] = []
        self.devices = [self._device(directory, index, name) for index, name in enumerate(self.names)]
        self.process: subprocess.Popen[bytes] | None = None
        self.log = directory / "aggregator.log"
        self.stopping = threading.Event()
        self.ticker = threading.Thread(target=self._tick, daemon=True)
        self.ticker.start()

    def _device(self, directory: Path, index: int, name: str) -> OneHotDevice:
        folder = private_directory(directory / name)
        keys = DeviceKeys.generate()
        keys.save(folder)
        write_private(
            folder / "device.crt", self.authority.issue(keys.request(FLEET, name), now=time.time()).chain_pem.encode()
        )
        settings = MqttSettings(
            host="127.0.0.1",
            port=self.broker.port,
            name=name,
            ca_file=self.home.authority / "ca.pem",
            certificate_file=folder / "device.crt",
            key_file=folder / "tls.key",
            subscriptions=topics.device_filters(FLEET, name),
            backoff_first_s=0.1,
            backoff_last_s=0.5,
        )
        transport = MqttTransport(settings, rng=random.Random(index))
        device = OneHotDevice(name, FLEET, index, public(self.authority.sign_key), transport.publish)
        add_device(self.registry, device)

        def receive(topic: str, payload: bytes) -> None:
            with self.lock:
                device.receive(topic, payload)

        transport.start(Callbacks(on_message=receive))
        self.transports.append(transport)
        return device

    def _tick(self) -> None:
        while not self.stopping.wait(0.7):
            with self.lock:
                for device in self.devices:
                    device.beat()
                    device.tick()

    def serve(self, phase: str) -> None:
        (self.home.path / "reached").unlink(missing_ok=True)
        script = ROOT / "tests" / "e2e" / "aggregator_process.py"
        command = [sys.executable, str(script), str(self.home.path), str(self.broker.port), phase]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=environment)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def reached(self) -> bool:
        return (self.home.path / "reached").exists()

    def receipts(self) -> set[str]:
        with self.lock:
            given = {d.name: [r for u in d.uploads.values() for r in u.receipts] for d in self.devices}
        return {name for name, receipts in given.items() if any(r.accepted for r in receipts)}

    def finished(self) -> bool:
        rounds = self.store.rounds("churn")
        return bool(rounds) and rounds[-1].secret is None

    def close(self) -> None:
        self.stopping.set()
        self.ticker.join()
        if self.process is not None and self.process.poll() is None:
            self.kill()
        for transport in self.transports:
            transport.stop()
        self.broker.stop()
        self.connection.close()


@pytest.fixture
def world(tmp_path: Path, kind: str) -> Iterator[World]:
    made = World(tmp_path, kind)
    try:
        yield made
    finally:
        made.close()


# The NATS server comes with pip, so that all of it runs everywhere; the broker that `auto` finds takes three phases.
@pytest.mark.parametrize(
    ("kind", "phase"), [*(("nats", phase) for phase in PHASES), *(("auto", phase) for phase in PHASES[1:6:2])]
)
def test_a_killed_aggregator_goes_on_where_it_stood(world: World, kind: str, phase: str) -> None:
    late = world.devices[4:] if phase == "receipts" else []
    for device in late:
        device.takes_part = False
    world.serve(phase)
    eventually(lambda: len(world.store.presence()) == COUNT, what="the devices are heard")
    before = make_task(world.home, now=time.time(), rounds=1, groups=2, hidden=HIDDEN)
    if phase == "receipts":
        eventually(lambda: len(world.receipts()) == COUNT - len(late), what="receipts")
    else:
        eventually(world.reached, what=f"{phase} is reached: {world.log.read_text()[-2000:]}")
    acknowledged = world.receipts()
    world.kill()
    for device in late:
        device.takes_part = True
        device.done_blobs.clear()
    world.serve("none")
    eventually(world.finished, what=f"the round ends: {world.log.read_text()[-3000:]}")
    eventually(lambda: world.store.task("churn").status == "done")

    (row,) = world.store.rounds("churn")
    assert (row.number, row.phase) == (1, "released"), row.reason
    included = {upload.device for upload in world.store.uploads("churn", 1, "accepted", "summed")}
    assert acknowledged <= included
    after, _ = world.store.checkpoint("churn", 1)
    step = unpack(row.frame[68:], Offer).privacy.step
    raised = indicator(world.home, before, after, len(included), step)
    assert raised[:COUNT] == [int(name in included) for name in world.names]
    assert not any(raised[COUNT:])
    assert len(included) == COUNT
    assert world.store.last_release("churn")[:3] == (2, 1, after)
    assert not list(world.home.spool.iterdir())
    assert not list(world.home.sums.iterdir())


@pytest.mark.parametrize("kind", ["nats"])
def test_rubbish_over_the_live_socket_is_counted_and_the_round_ends_as_if_it_were_not_there(world: World, kind: str):
    sent: list[tuple[str, bytes]] = []
    attacker, rng = world.devices[0], random.Random(11)
    honest = attacker.publish

    def publish(topic: str, frame: bytes, qos: int) -> bool:
        sent.append((topic, frame))
        return honest(topic, frame, qos)

    attacker.publish = publish
    world.serve("none")
    eventually(lambda: len(world.store.presence()) == COUNT, what="the devices are heard")
    before = make_task(world.home, now=time.time(), rounds=1, hidden=HIDDEN, window_s=600)
    kinds = ["hello", "data", "done", "get", "hb", "share", "ask", "report", "key", "nonsense"]
    for count in range(400):
        with world.lock:
            topic, frame = rng.choice(sent)
        spoilt = rng.choice(
            [
                rng.randbytes(rng.randrange(0, 400)),
                frame[: rng.randrange(len(frame))],
                frame + b"\0",
                frame[:70] + rng.randbytes(30) + frame[100:],
                b"Ch\x01" + rng.randbytes(200),
            ]
        )
        target = topic if count % 2 else topics.up(FLEET, attacker.name, rng.choice(kinds))
        honest(target, spoilt, 1)
        if count % 8 == 7:
            time.sleep(0.01)
    eventually(world.finished, what=f"the round ends: {world.log.read_text()[-3000:]}")
    eventually(lambda: sum(world.store.refusals().values()) > 100, what=str(world.store.refusals()))

    assert world.process is not None
    assert world.process.poll() is None
    assert "internal" not in {reason for _, reason in world.store.refusals()}
    (row,) = world.store.rounds("churn")
    assert row.phase == "released", row.reason
    included = {upload.device for upload in world.store.uploads("churn", 1, "accepted", "summed")}
    after, _ = world.store.checkpoint("churn", 1)
    step = unpack(row.frame[68:], Offer).privacy.step
    raised = indicator(world.home, before, after, len(included), step)
    assert raised[:COUNT] == [int(name in included) for name in world.names]
