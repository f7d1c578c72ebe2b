"""Real brokers with a fresh fleet: `broker` runs each test once over mosquitto and once over the NATS server."""

from __future__ import annotations

import os
import queue
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aggregator.broker import Broker, find_program
from aggregator.fleet.authority import AGGREGATOR, Authority, Issued, create_authority
from edge_sdk.identity.keys import DeviceKeys, private_directory, write_private
from edge_sdk.protocol import topics
from edge_sdk.transport.interface import Callbacks
from edge_sdk.transport.mqtt import MqttSettings, MqttTransport

FLEET = "f0"


def eventually(condition: Callable[[], bool], timeout_s: float = 15.0) -> bool:
    """Wait for another process; the only kind of waiting that these tests do."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@dataclass
class Client:
    """A transport with everything that it was told."""

    transport: MqttTransport
    messages: queue.Queue[tuple[str, bytes]] = field(default_factory=queue.Queue)
    connections: list[tuple[bool, str]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    capacity: list[int] = field(default_factory=list)

    def start(self) -> Client:
        self.transport.start(
            Callbacks(
                on_message=lambda topic, payload: self.messages.put((topic, payload)),
                on_connection=lambda up, reason: self.connections.append((up, reason)),
                on_capacity=lambda: self.capacity.append(1),
                on_refused=lambda topic, reason: self.refused.append((topic, reason)),
            )
        )
        return self

    def connected(self) -> Client:
        assert eventually(lambda: self.transport.connected), self.connections
        return self

    def next(self, timeout_s: float = 10.0) -> tuple[str, bytes]:
        return self.messages.get(timeout=timeout_s)


@dataclass
class Site:
    """A running broker, its authority, and clients for the asking."""

    directory: Path
    authority: Authority
    broker: Broker
    clients: list[Client] = field(default_factory=list)

    def certify(self, device: str, authority: Authority | None = None, folder: str = "") -> tuple[Path, Issued]:
        directory = private_directory(self.directory / (folder or device))
        keys = DeviceKeys.generate()
        keys.save(directory)
        issued = (authority or self.authority).issue(keys.request(FLEET, device), now=time.time())
        write_private(directory / "device.crt", issued.chain_pem.encode())
        return directory, issued

    def client(self, name: str, certificate: Path, key: Path, **settings: object) -> Client:
        values: dict[str, object] = {
            "host": "127.0.0.1",
            "port": self.broker.port,
            "name": name,
            "ca_file": self.authority.directory / "ca.pem",
            "certificate_file": certificate,
            "key_file": key,
            "backoff_first_s": 0.1,
            "backoff_last_s": 0.5,
            **settings,
        }
        client = Client(MqttTransport(MqttSettings(**values), rng=random.Random(7)))  # type: ignore[arg-type]
        self.clients.append(client)
        return client

    def device(self, name: str, **settings: object) -> Client:
        directory = self.directory / name
        if not (directory / "device.crt").exists():
            self.certify(name)
        settings.setdefault("subscriptions", topics.device_filters(FLEET, name))
        return self.client(name, directory / "device.crt", directory / "tls.key", **settings)

    def aggregator(self) -> Client:
        home = self.authority.directory
        return self.client(
            AGGREGATOR,
            home / f"{AGGREGATOR}.crt",
            home / f"{AGGREGATOR}.key",
            subscriptions=topics.aggregator_filters(FLEET),
        )


@pytest.fixture(params=["mosquitto", "nats"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A site with devices kiosk-a and kiosk-b admitted. Skips without mosquitto, except where CI=true."""
    kind = request.param
    if find_program(kind) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{kind} is not installed, and CI tests every broker")
        pytest.skip(f"{kind} is not installed")
    authority = create_authority(tmp_path / "authority", b"correct horse", fleet=FLEET, now=time.time())
    supervised = Broker(tmp_path / "broker", authority.directory, fleet=FLEET, kind=kind)
    site = Site(tmp_path, authority, supervised)
    supervised.start(["kiosk-a", "kiosk-b"])
    yield site
    for client in site.clients:
        client.transport.stop()
    supervised.stop()
