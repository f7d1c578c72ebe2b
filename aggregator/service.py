"""The running aggregator: owns the clock, the entropy, the connection and the one thread that speaks the protocol.

The transport's thread only puts messages into a bounded queue; full, it drops and counts. Refuses to start without
exact arithmetic (SPEC 10). Nothing that a message or a full disk does ends the loop.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from aggregator import config as settings
from aggregator.audit import Audit
from aggregator.cohort import LIVE_S
from aggregator.comparison import Comparison
from aggregator.desk import Desk
from aggregator.errors import AggregatorError, DiskFull
from aggregator.fleet.authority import Authority, open_authority
from aggregator.fleet.registry import Registry
from aggregator.home import Home
from aggregator.ingest import Ingest
from aggregator.offering import Offering
from aggregator.post import Post
from aggregator.releases.errors import ReleaseNotFound
from aggregator.releases.repository import Repository
from aggregator.releasing import Releases
from aggregator.rounds import Rounds
from aggregator.store.schema import open_database
from aggregator.store.store import Store
from aggregator.watch import Presence, Refusals
from edge_sdk.protocol import topics
from edge_sdk.protocol.secagg.selftest import known_answer_test
from edge_sdk.transport.interface import Callbacks, Transport

log = logging.getLogger(__name__)
QUEUE: Final = 4096
BATCH: Final = 64
WAKE_S: Final = 0.05
TICK_S: Final = 0.1
WRITE_S: Final = 1.0
TIMESTAMP_S: Final = 86_400.0

TransportFactory = Callable[[tuple[str, ...]], Transport]


class ServiceConfig(Protocol):
    """What the service needs of the configuration."""

    @property
    def fleet(self) -> str: ...


def _ignore_fleet(active: list[str]) -> None:
    del active


def _ignore_phase(phase: str) -> None:
    del phase


class Service:
    """One fleet's aggregator. Build it and call `run` from one thread; it returns when `stop` is set."""

    def __init__(
        self,
        home: Path,
        config: ServiceConfig,
        clock: Callable[[], float],
        entropy: Callable[[int], bytes],
        transport_factory: TransportFactory,
        *,
        fleet_changed: Callable[[list[str]], None] = _ignore_fleet,
        phase_hook: Callable[[str], None] = _ignore_phase,
        live_s: float = LIVE_S,
    ) -> None:
        """`transport_factory(subscriptions)` gives a transport not yet started; `fleet_changed(active devices)` is
        called at the start and whenever a device came or was revoked; `live_s`: silence after which a device is not
        waited for. Raises AggregatorError or SelfTestFailed."""
        known_answer_test()
        self._clock, self._fleet, self._fleet_changed, self._live_s = clock, config.fleet, fleet_changed, live_s
        self.home = Home(home)
        self.home.prepare()
        self._connection: sqlite3.Connection = open_database(self.home.database)
        self.store = Store(self._connection)
        self.registry = Registry(self._connection, config.fleet)
        self._repository = _open_repository(self.home.releases)
        self._transport = transport_factory(topics.aggregator_filters(config.fleet))
        self._ingest = Ingest(self.store, self.home)
        self._presence = Presence(self.store, clock())
        self._refusals = Refusals(self.store)
        authority = open_authority(self.home.authority, now=clock())
        self._post = Post(config.fleet, authority.sign_key, self._transport)
        self._audit = Audit(self.store, authority.sign_key, config.fleet, self.home.path)
        self._rounds = self._make_rounds(authority, entropy, phase_hook)
        self._desk = self._make_desk()
        self._queue: queue.Queue[tuple[str, bytes] | None] = queue.Queue(QUEUE)
        self._connected = threading.Event()
        self._overflow = 0
        self._active: list[str] | None = None
        self._ticked = self._written = 0.0
        self._complained: dict[str, float] = {}

    def _make_rounds(
        self, authority: Authority, entropy: Callable[[int], bytes], phase_hook: Callable[[str], None]
    ) -> Rounds:
        releases = Releases(self.store, self.home, self._repository, self._clock)
        return Rounds(
            store=self.store,
            registry=self.registry,
            ingest=self._ingest,
            offering=Offering(self.registry, releases, authority.roster_key, entropy),
            releases=releases,
            post=self._post,
            clock=self._clock,
            phase_hook=phase_hook,
        )

    def _make_desk(self) -> Desk:
        return Desk(
            fleet=self._fleet,
            home=self.home,
            registry=self.registry,
            repository=self._repository,
            rounds=self._rounds.messages,
            ingest=self._ingest,
            post=self._post,
            presence=self._presence,
            refusals=self._refusals,
            comparison=Comparison(self.store, self._rounds.ledger, self._refusals),
            audit=self._audit,
        )

    # -- from the transport's thread

    def _on_message(self, topic: str, payload: bytes) -> None:
        try:
            self._queue.put_nowait((topic, payload))
        except queue.Full:
            self._overflow += 1

    def _on_connection(self, up: bool, reason: str) -> None:
        log.info("broker %s: %s", "connected" if up else "lost", reason)
        if up:
            self._connected.set()

    def _on_capacity(self) -> None:
        if self._queue.empty():
            self._queue.put_nowait(None)

    # -- the loop

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set, then close everything. Raises AggregatorError where the home is not whole."""
        self.begin()
        try:
            while not stop.is_set():
                self.turn()
        finally:
            self.end()

    def begin(self) -> None:
        """Take up what the last run left and connect."""
        now = self._clock()
        self._audit.begin(now, settings=_settings_digest(self.home.path))
        self._rounds.restore(now)
        callbacks = Callbacks(
            on_message=self._on_message, on_connection=self._on_connection, on_capacity=self._on_capacity
        )
        self._transport.start(callbacks)

    def end(self) -> None:
        """Disconnect, write the counters, close the tables."""
        self._transport.stop()
        self._guarded("the status", lambda: self._write(self._clock()))
        self._guarded("the audit log", lambda: self._audit.end(self._clock()))
        self._connection.close()

    def turn(self, wait_s: float = WAKE_S) -> None:
        """One turn of the loop: the messages that are there (the first waited for), then what time asks for."""
        self._receive(wait_s)
        now = self._clock()
        if not 0 <= now - self._ticked < TICK_S:
            self._ticked = now
            self._guarded("the rounds", lambda: self._tick(now))
        if not 0 <= now - self._written < WRITE_S:
            self._written = now
            self._guarded("the fleet", lambda: self._look_at_fleet(now))
            self._guarded("the status", lambda: self._write(now))
            self._guarded("the audit log", lambda: self._audit.due(now))
        self._guarded("sending", self._post.pump)

    def _receive(self, wait_s: float) -> None:
        for index in range(BATCH):
            try:
                item = self._queue.get(timeout=wait_s) if index == 0 else self._queue.get_nowait()
            except queue.Empty:
                return
            if item is not None:
                self._desk.receive(*item, self._clock())

    def _guarded(self, what: str, act: Callable[[], None]) -> None:
        """Run a part of the loop; an error is logged and the loop goes on."""
        try:
            act()
        except Exception as error:
            now = self._clock()
            if now - self._complained.get(what, float("-inf")) >= TICK_S * 50:
                self._complained[what] = now
                known = isinstance(error, AggregatorError)
                log.error("%s: %s", what, error, exc_info=None if known else error)
            if isinstance(error, DiskFull):
                self._refusals.count("disk", error.reason, "aggregator", what, now)

    def _tick(self, now: float) -> None:
        if self._connected.is_set():
            self._connected.clear()
            self._rounds.republish(now)
        for device, message in self._ingest.due(now):
            self._post.send(device, message)
        self._rounds.tick(now, self._presence.live(now, self._live_s))

    def _look_at_fleet(self, now: float) -> None:
        active = [device.device for device in self.registry.active()]
        if active != self._active:
            for device in set(self._active or []) - set(active):
                self._rounds.drop_device(device)
                self._presence.forget(device)
            self._active = active
            self.store.log(now, "fleet", "", 0, devices=len(active))
            self._fleet_changed(active)
        self._refresh_timestamp(now)

    def _refresh_timestamp(self, now: float) -> None:
        """Devices refuse to install under a timestamp older than three days: sign one a day."""
        signed_at = self.store.value("timestamp-signed-at") or 0.0
        if self._repository is not None and now - signed_at >= TIMESTAMP_S:
            self._repository.refresh_timestamp(now)
            self.store.set_value("timestamp-signed-at", now)

    def _write(self, now: float) -> None:
        with self.store.transaction():
            self._presence.write()
            self._refusals.write()
            self.store.set_value(
                "service",
                {
                    "at": now,
                    "connected": self._transport.connected,
                    "live": len(self._presence.live(now, self._live_s)),
                    "live_s": self._live_s,
                    "overflow": self._overflow,
                    "unsent": self._post.dropped,
                    "bytes_received": self._ingest.bytes_received,
                },
            )


def _settings_digest(home: Path) -> str:
    """SHA-256 (hex) of the settings: that they changed shows between two starts in the audit log."""
    file = home / settings.FILE
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""


def _open_repository(directory: Path) -> Repository | None:
    try:
        return Repository(directory)
    except ReleaseNotFound:
        log.warning("no release repository in %s: rounds give checkpoints only", directory)
        return None
