"""`aggregator serve`: broker, enrolment listener and rounds in one process, until SIGTERM or Ctrl-C.

Starts them in that order and stops them in reverse, whatever fails. The broker's list of devices follows the registry:
at once for a device that enrols, within a second for one that is revoked from another process. Refuses a home that
another process serves.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Literal, cast

from aggregator import status
from aggregator.broker import Broker
from aggregator.config import Config
from aggregator.errors import HomeRefused
from aggregator.fleet.authority import AGGREGATOR, Authority, open_authority
from aggregator.fleet.bootstrap import BootstrapListener
from aggregator.fleet.registry import Registry
from aggregator.home import Home
from aggregator.releases.repository import Repository
from aggregator.store.schema import open_database
from edge_sdk.protocol.enrolment import EnrolmentAnswer, EnrolmentRequest, TrustBundle
from edge_sdk.transport.mqtt import MqttSettings, MqttTransport

log = logging.getLogger(__name__)
WATCH_S: Final = 0.5
CRL_EVERY_S: Final = 86_400.0
LIVE_S: Final = 0.5
LOCK: Final = "serve.lock"
WINDOW: Final = 64  # one connection serves every device: blocks to many must not queue behind eight
RECONNECT_S: Final = 5.0  # our own broker, just restarted: no crowd to be polite to
Kind = Literal["auto", "mosquitto", "nats"]


def trust_bundle(home: Path, config: Config, authority: Authority) -> TrustBundle:
    """What a device is given at enrolment: whom to trust, and where the broker is."""
    return TrustBundle(
        fleet=config.fleet,
        aggregator_key=authority.sign_key.public_key().public_bytes_raw(),
        authority_key=authority.roster_key.public_key().public_bytes_raw(),
        ca_pem=authority.ca_pem,
        broker_host=config.host,
        broker_port=config.port,
        tuf_root=Repository(Home(home).releases).trusted_root().decode(),
    )


class FleetDoor:
    """Enrolment, and the broker's list of devices kept equal to the registry. Its own connection; any thread."""

    def __init__(self, home: Path, config: Config, authority: Authority, broker: Broker) -> None:
        self._registry = Registry(open_database(Home(home).database), config.fleet)
        self._authority = authority
        self._broker = broker
        self._bundle = trust_bundle(home, config, authority)
        self._lock = threading.Lock()
        self._listed: tuple[str, ...] = ()
        self._crl_at = 0.0

    def enrol(self, request: EnrolmentRequest) -> EnrolmentAnswer:
        """Admit a device, and let it into the broker before it hears that it is admitted. Raises EnrolmentRefused."""
        now = time.time()
        with self._lock:
            answer = self._registry.redeem(
                request,
                issue=lambda csr: self._authority.issue(csr, now=now),
                bundle=self._bundle,
                sign=self._authority.roster_key.sign,
                now=now,
            )
            self._put_in_force(now)
        return answer

    def follow(self, now: float) -> None:
        """Notice devices that were revoked elsewhere, and sign the revocation list anew once a day."""
        with self._lock:
            self._put_in_force(now)

    def start(self, now: float) -> None:
        """Start the broker with the devices of this moment."""
        self._sign(now)
        self._listed = self._active()
        self._broker.start(self._listed)

    def _active(self) -> tuple[str, ...]:
        return tuple(device.device for device in self._registry.active())

    def _put_in_force(self, now: float) -> None:
        active = self._active()
        if active == self._listed and now - self._crl_at < CRL_EVERY_S:
            return
        self._sign(now)
        self._listed = active
        self._broker.reload(active)

    def _sign(self, now: float) -> None:
        self._authority.renew_services(now=now)
        self._authority.write_crl(self._registry.revoked_serials(now), now=now)
        self._crl_at = now


def serve(home: Path, config: Config, *, live: bool) -> int:
    """Run until told to stop; the exit code. `live`: a table that is drawn anew, else a line for every change."""
    stop = threading.Event()
    with ExitStack() as stack:
        stack.enter_context(only_one(home))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        _log_to(home / "aggregator.log")
        _open_doors(stack, home, config, stop)
        ended = stack.enter_context(_rounds(home, config, stop))
        sys.stdout.write(f"aggregator: fleet {config.fleet}, broker on {config.host}:{config.port}\n")
        sys.stdout.write(f"aggregator: devices enrol on {config.host}:{config.enrol_port}; stop with Ctrl-C\n")
        sys.stdout.flush()
        _watch(home, config, stop, live=live)
    if ended:
        raise ended[0]
    return 0


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Keep every other `serve` off this home: it would take our broker for one left behind. Raises HomeRefused."""
    descriptor = os.open(home / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        what = f"another aggregator serves this home (pid {pid})"
        raise HomeRefused(what, "stop that one first, or name another home with --home", reason="served") from None
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)  # the lock goes with it; the file stays, so that nobody locks an unlinked one


def _log_to(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    handler = logging.StreamHandler(os.fdopen(descriptor, "a", encoding="utf-8"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _open_doors(stack: ExitStack, home: Path, config: Config, stop: threading.Event) -> None:
    now, credentials = time.time(), Home(home).authority
    authority = open_authority(credentials, now=now)
    kind = cast(Kind, config.broker)  # Config refuses every other word
    broker = Broker(home / "broker", credentials, fleet=config.fleet, kind=kind, host=config.bind, port=config.port)
    door = FleetDoor(home, config, authority, broker)
    door.start(now)
    stack.callback(broker.stop)
    listener = BootstrapListener(door.enrol, credentials=credentials, host=config.bind, port=config.enrol_port)
    listener.start()
    stack.callback(listener.stop)
    follower = threading.Thread(target=_follow, args=(door, stop), name="fleet-watch", daemon=True)
    follower.start()
    stack.callback(follower.join, 5.0)
    stack.callback(stop.set)


def _follow(door: FleetDoor, stop: threading.Event) -> None:
    while not stop.wait(WATCH_S):
        try:
            door.follow(time.time())
        except Exception:
            log.exception("the broker's list of devices could not be brought up to date; trying again")


def _transport(home: Path, config: Config, subscriptions: tuple[str, ...]) -> MqttTransport:
    """The aggregator's own connection. It stays on this machine: the broker is its child."""
    credentials = Home(home).authority
    everywhere = config.bind in ("0.0.0.0", "::")  # noqa: S104 - compares, binds nothing
    settings = MqttSettings(
        host="127.0.0.1" if everywhere else config.bind,
        port=config.port,
        name=AGGREGATOR,
        ca_file=credentials / "ca.pem",
        certificate_file=credentials / f"{AGGREGATOR}.crt",
        key_file=credentials / f"{AGGREGATOR}.key",
        subscriptions=subscriptions,
        window=WINDOW,
        backoff_last_s=RECONNECT_S,
    )
    return MqttTransport(settings, rng=random.SystemRandom())


@contextmanager
def _rounds(home: Path, config: Config, stop: threading.Event) -> Iterator[list[BaseException]]:
    """The service on a thread of its own; what ended it early, if anything did."""
    from aggregator.service import Service

    ended: list[BaseException] = []

    def work() -> None:
        try:
            service = Service(home, config, time.time, os.urandom, lambda topics: _transport(home, config, topics))
            service.run(stop)
        except BaseException as error:
            log.exception("the service ended")
            ended.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=work, name="service")
    thread.start()
    try:
        yield ended
    finally:
        stop.set()
        thread.join()


def _watch(home: Path, config: Config, stop: threading.Event, *, live: bool) -> None:
    with status.opened(home, config) as (store, registry):
        if live:
            from aggregator.live_table import LiveTable

            with LiveTable() as table:
                while not stop.wait(LIVE_S):
                    table.show(status.gather(home, store, registry, time.time()))
            return
        said: list[str] = []
        while not stop.wait(LIVE_S):
            lines = _changes(status.gather(home, store, registry, time.time()))
            sys.stdout.writelines(f"{line}\n" for line in lines if line not in said)
            sys.stdout.flush()
            said = lines


def _changes(gathered: status.Status) -> list[str]:
    """One line for each task: what would be worth a new line in a log."""
    text = []
    for task in gathered["tasks"]:
        rounds = task["rounds"]
        metric = (
            "" if not rounds or rounds[-1]["metric"] is None else f", {task['metric_name']} {rounds[-1]['metric']:.4f}"
        )
        number = rounds[-1]["round"] if rounds else 0
        entered = f", {rounds[-1]['devices_in']} devices in" if rounds else ""
        text.append(f"{task['name']} round {number}: {task['phase']}{entered}{metric}")
    return text
