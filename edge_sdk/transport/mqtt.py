"""MQTT over mutual TLS: the only place that knows paho. Refuses messages too large for the portable profile.

paho drives one connection and nothing more. Each connection gets a fresh paho client, because after a reconnect
paho sends everything it still holds at once, whatever its limits say (paho.mqtt.python#492). Here whatever was on
its way when a connection died is dropped and told; the layer above keeps its own copy and sends what is missing.

MQTT 5 is tried first, 3.1.1 when the broker does not answer it. Nothing of ours depends on the version.

Whether the broker's certificates are in date is judged here, by the verified time that the caller passes in, not by
TLS: a device whose clock stands in 1970 must still connect (SPEC 4.5). Host name, chain and fleet stay TLS's business.
"""

from __future__ import annotations

import contextlib
import logging
import random
import selectors
import socket
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_sdk.protocol.errors import LocalProtocolError
from edge_sdk.transport.interface import MAX_PAYLOAD_BYTES, WINDOW, Callbacks, QoS

log = logging.getLogger(__name__)

POLL_S: Final = 1.0
STOP_S: Final = 12.0
STEADY_S: Final = 10.0
GIVE_UP_VERSION: Final = 3  # failures after which the broker may have been replaced by one of the other version
HEARTBEATS_MAX: Final = 16
NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name
NOT_GREETED: Final = " before any answer: is the certificate expired, revoked or of another fleet?"
NAMES: Final = {MQTTProtocolVersion.MQTTv5: "mqtt 5", MQTTProtocolVersion.MQTTv311: "mqtt 3.1.1"}


class MqttSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach a broker and as whom. Files are PEM paths; times are seconds.

    `client_id` None gives the name with an unguessable ending, right for every broker that does not tie client ids
    to certificates itself; brokers that demand it (AWS IoT Core) get the certificate's name here.
    """

    host: str
    port: int
    name: str
    ca_file: Path
    certificate_file: Path
    key_file: Path
    subscriptions: tuple[str, ...] = ()
    client_id: str | None = None
    window: int = WINDOW
    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    keepalive_s: int = 30
    connect_timeout_s: float = 5.0
    ack_timeout_s: float = 30.0
    backoff_first_s: float = 1.0
    backoff_last_s: float = 120.0


class _Outgoing(NamedTuple):
    topic: str
    payload: bytes
    qos: QoS


class _Lost(Exception):
    """This connection is over. The message is the reason told to the caller."""


class _OtherVersion(_Lost):
    """The broker speaks, but not this version of MQTT: try the other at once."""


def tls_context(settings: MqttSettings, now: Callable[[], float] = time.time) -> ssl.SSLContext:
    """Mutual TLS, at least 1.2, host name checked, in date by `now()`. Raises OSError where a file does not load."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(settings.ca_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.certificate_file, settings.key_file)
    context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    context.sslsocket_class = _in_date(now)
    return context


def _in_date(now: Callable[[], float]) -> type[ssl.SSLSocket]:
    """A socket whose handshake fails where a certificate of the verified chain has expired."""

    class InDate(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            # Public from Python 3.13 on, as bytes to parse; here since 3.10, parsed.
            chain: Any = self._sslobj.get_verified_chain()  # type: ignore[attr-defined]
            check_dates([certificate.get_info() for certificate in chain], now())

    return InDate


def check_dates(chain: list[dict[str, Any]], now: float) -> None:
    """Refuse a chain (`SSLSocket.getpeercert` form, leaf first) that has expired. Raises ssl.SSLCertVerificationError.

    Nobody's CA signs for the future, so a verified certificate that is not valid yet says that the clock is behind:
    it is at least as late as that certificate.
    """
    now = max(now, *(ssl.cert_time_to_seconds(certificate["notBefore"]) for certificate in chain))
    for certificate in chain:
        if now >= ssl.cert_time_to_seconds(certificate["notAfter"]):
            name = ", ".join(value for part in certificate["subject"] for _, value in part)
            today = time.strftime("%b %d %H:%M:%S %Y GMT", time.gmtime(now))
            raise ssl.SSLCertVerificationError(
                f"the certificate of {name} expired on {certificate['notAfter']} and it is {today} here: "
                "renew it, or set this machine's clock right"
            )


def _tune(_client: paho.Client, _userdata: object, sock: object) -> None:
    """Send small messages at once (20 MiB: 1.2 s against 29 s), and notice a dead peer in 30 s where Linux allows."""
    if not isinstance(sock, socket.socket):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)


class MqttTransport:
    """A `Transport` over MQTT. One thread; `publish` may be called from any other."""

    def __init__(
        self,
        settings: MqttSettings,
        *,
        rng: random.Random,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        will: Callable[[], tuple[str, bytes]] | None = None,
    ) -> None:
        """`rng` draws the waits and the client id: a SystemRandom, except in tests.

        `now()` is the time, seconds since 1970, by which the broker's certificates must be in date.

        `will()` gives topic and payload that the broker publishes when this connection dies; asked at each connect.
        """
        self._settings = settings
        self._rng = rng
        self._monotonic = monotonic
        self._now = now
        self._will = will
        self._callbacks = Callbacks()
        self._lock = threading.Lock()
        self._queue: deque[_Outgoing] = deque()
        self._unacked: dict[int, tuple[str, float]] = {}
        self._heartbeats = 0
        self._window = settings.window
        self._starved = False
        self._connected = False
        self._counters: Counter[str] = Counter()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._version = MQTTProtocolVersion.MQTTv5
        self._proven = False
        self._failures = 0

    def start(self, callbacks: Callbacks) -> None:
        """Begin to connect and return at once. A transport starts once."""
        self._callbacks = callbacks
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Disconnect and join the thread. At most two connection timeouts where it is just connecting."""
        self._stopping.set()
        self._wake()
        if self._thread is threading.current_thread():
            return
        if self._thread is not None:
            self._thread.join(STOP_S)
        if self._thread is None or not self._thread.is_alive():
            self._wake_in.close()
            self._wake_out.close()

    def publish(self, topic: str, payload: bytes, qos: QoS = 1) -> bool:
        """True if taken into the window; False, keep it, where that is full or nobody is connected. Never blocks.

        Raises only LocalProtocolError, for a message too large for the profile: a bug that waiting cannot cure.
        """
        limit = self._settings.max_payload_bytes
        if len(payload) > limit:
            raise LocalProtocolError(
                f"a message of {len(payload)} bytes for {topic} exceeds {limit}: cut it into chunks", reason="too-large"
            )
        with self._lock:
            full = self._heartbeats >= HEARTBEATS_MAX if qos == 0 else self._taken() >= self._window
            if not self._connected or full:
                self._starved = self._starved or (qos == 1 and full)
                return False
            self._heartbeats += qos == 0
            self._queue.append(_Outgoing(topic, payload, qos))
        self._wake()
        return True

    @property
    def in_flight(self) -> int:
        with self._lock:
            return self._taken()

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def counters(self) -> dict[str, int]:
        """connections, lost, messages_in, messages_out, acknowledged, refused, dropped, callback_errors, errors."""
        return dict(self._counters)

    def _taken(self) -> int:
        return len(self._unacked) + len(self._queue) - self._heartbeats

    def _wake(self) -> None:
        # A full pipe means that the thread is being woken already; a closed one, that it has ended.
        with contextlib.suppress(OSError):
            self._wake_in.send(b"!")

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        """Run a callback of ours. An exception would end paho's thread without a word; here it is logged."""
        try:
            callback(*arguments)
        except Exception:
            self._counters["callback_errors"] += 1
            log.exception("a transport callback failed; the connection goes on")

    def _run(self) -> None:
        while not self._stopping.is_set():
            began = self._monotonic()
            try:
                _Connection(self).serve()
                self._down("stopped")
            except _OtherVersion:
                continue
            except _Lost as lost:
                self._down(str(lost))
            except (OSError, ValueError) as error:
                self._down(f"cannot connect to {self._settings.host}:{self._settings.port}: {error}")
            except Exception as error:
                self._counters["errors"] += 1
                log.exception("the transport failed; it connects again")
                self._down(f"internal error: {error!r}")
            self._pause(began)

    def _pause(self, began: float) -> None:
        """Wait a random time under a limit that doubles with each failure (full jitter)."""
        settings = self._settings
        # Only a connection that held for a while clears the count: one that is thrown out at once waits ever longer.
        self._failures = 0 if self._monotonic() - began > STEADY_S else self._failures
        limit = min(settings.backoff_last_s, settings.backoff_first_s * 2.0 ** min(self._failures, 20))
        self._failures += 1
        self._proven = self._proven and self._failures < GIVE_UP_VERSION
        self._stopping.wait(self._rng.uniform(0, limit))

    def _up(self, room: int) -> None:
        with self._lock:
            self._window = room
            self._connected = True
        self._counters["connections"] += 1
        self._proven = True
        self._call(self._callbacks.on_connection, True, NAMES[self._version])

    def _down(self, reason: str) -> None:
        with self._lock:
            self._connected = False
            self._counters["dropped"] += self._taken()
            self._queue.clear()
            self._unacked.clear()
            self._heartbeats = 0
            self._starved = False
        self._counters["lost"] += 1
        log.info("not connected: %s", reason)
        self._call(self._callbacks.on_connection, False, reason)


class _Connection:
    """One paho client from its CONNECT to its end, driven by the transport's thread alone."""

    def __init__(self, owner: MqttTransport) -> None:
        self._owner = owner
        self._settings = owner._settings
        self._room = self._settings.window
        self._ready = False
        self._greeted = False
        self._pending_subscription: int | None = None
        self._verdict: str | None = None
        self._ending: type[_Lost] = _Lost
        self._client = self._make_client()

    def _make_client(self) -> paho.Client:
        settings, owner = self._settings, self._owner
        identity = settings.client_id or f"{settings.name}-{owner._rng.getrandbits(64):016x}"
        v5 = owner._version == MQTTProtocolVersion.MQTTv5
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=identity,
            clean_session=None if v5 else True,
            protocol=owner._version,
            reconnect_on_failure=False,  # else paho answers a refused 3.1.1 by a silent 3.1
        )
        client.tls_set_context(tls_context(settings, owner._now))
        if owner._will is not None:
            client.will_set(*owner._will(), qos=1)
        client.connect_timeout = settings.connect_timeout_s
        client.suppress_exceptions = True
        client.on_socket_open = _tune
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect
        return client

    def serve(self) -> None:
        """Connect and move messages until it ends. Raises _Lost, OSError, or returns when asked to stop."""
        settings, owner, client = self._settings, self._owner, self._client
        v5 = owner._version == MQTTProtocolVersion.MQTTv5
        client.connect(settings.host, settings.port, settings.keepalive_s, clean_start=True if v5 else 3)
        try:
            with selectors.DefaultSelector() as selector:
                self._loop(selector)
        finally:
            if not self._greeted and not owner._proven:
                self._try_other_version()
            client.on_disconnect = None
            sock = client.socket()
            if sock is not None:
                sock.close()

    def _try_other_version(self) -> None:
        v5, v311 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
        self._owner._version = v311 if self._owner._version == v5 else v5

    def _loop(self, selector: selectors.BaseSelector) -> None:
        owner, client = self._owner, self._client
        sock = client.socket()
        if sock is None:
            raise _Lost(f"the connection closed at once{NOT_GREETED}")
        deadline = owner._monotonic() + self._settings.connect_timeout_s
        selector.register(owner._wake_out, selectors.EVENT_READ)
        selector.register(sock, selectors.EVENT_READ)
        while not owner._stopping.is_set():
            writes = selectors.EVENT_WRITE if client.want_write() else 0
            selector.modify(sock, selectors.EVENT_READ | writes)
            for key, events in selector.select(POLL_S):
                if key.fileobj is sock:
                    self._move(sock, events)
                else:
                    self._drain_wake()
            self._check(client.loop_misc())
            self._send_queued()
            self._watch(deadline)
        client.disconnect()
        client.loop_write()

    def _move(self, sock: paho.SocketLike, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._check(self._client.loop_write())
        if events & selectors.EVENT_READ:
            self._check(self._client.loop_read())
            # TLS may hold a whole record that the selector cannot see.
            while self._client.socket() is not None and isinstance(sock, ssl.SSLSocket) and sock.pending():
                self._check(self._client.loop_read())

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._owner._wake_out.recv(4096):
                pass

    def _check(self, code: MQTTErrorCode) -> None:
        if self._verdict is not None:
            raise self._ending(self._verdict)
        if code != paho.MQTT_ERR_SUCCESS or self._client.socket() is None:
            raise _Lost(f"connection lost: {paho.error_string(code)}")

    def _watch(self, deadline: float) -> None:
        """No answer to CONNECT or SUBSCRIBE, or none to a message for too long, is an end too."""
        owner, now = self._owner, self._owner._monotonic()
        if self._verdict is not None:
            raise self._ending(self._verdict)
        if not self._ready and now > deadline:
            raise _Lost("the broker does not answer")
        oldest = next(iter(owner._unacked.values()), None)
        if oldest is not None and now - oldest[1] > self._settings.ack_timeout_s:
            raise _Lost(f"no acknowledgement for {self._settings.ack_timeout_s:.0f} s")

    def _send_queued(self) -> None:
        owner = self._owner
        while self._ready:
            with owner._lock:
                if not owner._queue:
                    return
                message = owner._queue[0]
            # Without the lock: paho reports a heartbeat as published from inside this very call.
            info = self._client.publish(message.topic, message.payload, message.qos)
            with owner._lock:
                owner._queue.popleft()
                owner._heartbeats -= message.qos == 0
                if message.qos == 1:
                    owner._unacked[info.mid] = (message.topic, owner._monotonic())
            owner._counters["messages_out"] += 1
            self._check(info.rc)

    def _on_connect(
        self, client: paho.Client, _data: object, _flags: object, code: ReasonCode, properties: Properties | None
    ) -> None:
        if code.is_failure:
            if str(code) == "Unsupported protocol version" and self._owner._version == MQTTProtocolVersion.MQTTv5:
                self._owner._proven = False
                self._ending = _OtherVersion
                self._verdict = "the broker does not speak mqtt 5"
                return
            self._greeted = True
            self._verdict = f"the broker refused {NAMES[self._owner._version]}: {code}"
            return
        self._greeted = True
        self._room = min(self._room, getattr(properties, "ReceiveMaximum", self._room))
        if not self._settings.subscriptions:
            self._become_ready()
            return
        _code, self._pending_subscription = client.subscribe([(topic, 1) for topic in self._settings.subscriptions])

    def _become_ready(self) -> None:
        self._ready = True
        self._owner._up(self._room)

    def _on_subscribe(
        self, _client: paho.Client, _data: object, mid: int, codes: list[ReasonCode], _properties: object
    ) -> None:
        refused = [
            f"{topic} ({code})"
            for topic, code in zip(self._settings.subscriptions, codes, strict=False)
            if code.is_failure
        ]
        if refused or len(codes) != len(self._settings.subscriptions):
            self._owner._counters["refused"] += 1
            self._verdict = "the broker refused a subscription: " + ", ".join(refused)
        elif mid == self._pending_subscription:
            self._become_ready()

    def _on_publish(self, _client: paho.Client, _data: object, mid: int, code: ReasonCode, _properties: object) -> None:
        owner = self._owner
        with owner._lock:
            sent = owner._unacked.pop(mid, None)
            room = owner._starved and owner._taken() < owner._window
            owner._starved = owner._starved and not room
        if sent is None:
            return  # a heartbeat: nobody acknowledges QoS 0
        if code.is_failure:
            # paho calls a refused message published; only this code tells.
            owner._counters["refused"] += 1
            owner._call(owner._callbacks.on_refused, sent[0], str(code))
        else:
            owner._counters["acknowledged"] += 1
        if room:
            owner._call(owner._callbacks.on_capacity)

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        owner = self._owner
        owner._counters["messages_in"] += 1
        owner._call(owner._callbacks.on_message, message.topic, message.payload)

    def _on_disconnect(
        self, _client: paho.Client, _data: object, _flags: object, code: ReasonCode, _properties: object
    ) -> None:
        if self._verdict is None:
            hint = "" if self._greeted else NOT_GREETED
            self._verdict = f"connection lost ({code}){hint}"
