"""A broker in memory with the real one's topic rules, for tests and the simulator. No thread, no socket, no clock.

Nothing moves until `MemoryBroker.step` or `run` is called, so a test decides what arrives, when and whether. As on
the real broker a message from a device into another's subtree is refused, and nobody hears what is not for him.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from edge_sdk.protocol import topics
from edge_sdk.protocol.errors import LocalProtocolError, MalformedMessage
from edge_sdk.transport.interface import MAX_PAYLOAD_BYTES, WINDOW, Callbacks, QoS


class Envelope(NamedTuple):
    """A message on its way through the broker."""

    sender: str
    topic: str
    payload: bytes
    qos: QoS


def matches(pattern: str, topic: str) -> bool:
    """Whether a subscription without `#` covers a topic."""
    levels, parts = pattern.split("/"), topic.split("/")
    return len(levels) == len(parts) and all(level in ("+", part) for level, part in zip(levels, parts, strict=True))


def may_publish(name: str, fleet: str, topic: str) -> bool:
    """The rule that the real brokers get as an access list: a device below its own `up`, an aggregator the rest."""
    try:
        address = topics.parse(topic)
    except MalformedMessage:
        return False
    if address.fleet != fleet:
        return False
    return address.device == name if address.direction == "up" else is_aggregator(name)


def is_aggregator(name: str) -> bool:
    return name.startswith("aggregator")


class MemoryBroker:
    """Carries messages between its transports in the order of publishing, one at each `step`."""

    def __init__(self, fleet: str) -> None:
        self.fleet = fleet
        self.revoked: set[str] = set()
        self.tamper: Callable[[Envelope], list[Envelope]] = lambda envelope: [envelope]
        """Called with each message; what it returns is delivered instead: drop, repeat, change, forge."""
        self._online = True
        self._transports: dict[str, MemoryTransport] = {}
        self._pending: deque[Envelope] = deque()

    def transport(self, name: str, subscriptions: tuple[str, ...] = ()) -> MemoryTransport:
        """A transport for the bearer of certificate `name`; a second one takes the first one's place."""
        earlier = self._transports.get(name)
        if earlier is not None:
            earlier.disconnect("another connection took over")
        transport = MemoryTransport(self, name, subscriptions)
        self._transports[name] = transport
        return transport

    def step(self) -> bool:
        """Deliver the oldest message. False when there is none."""
        if not self._pending:
            return False
        envelope = self._pending.popleft()
        sender = self._transports.get(envelope.sender)
        allowed = may_publish(envelope.sender, self.fleet, envelope.topic)
        if sender is not None and envelope.qos == 1:
            sender.acknowledge(envelope.topic, refused=not allowed)
        for passed in self.tamper(envelope) if allowed else ():
            for transport in list(self._transports.values()):
                transport.receive(passed.topic, passed.payload)
        return True

    def run(self, limit: int = 100_000) -> int:
        """Deliver until nothing is left, at most `limit` messages; how many it were."""
        count = 0
        while count < limit and self.step():
            count += 1
        return count

    def crash(self) -> None:
        """Lose every message on its way and every connection."""
        self._online = False
        self._pending.clear()
        for transport in self._transports.values():
            transport.disconnect("the broker is gone")

    def restart(self) -> None:
        """Come back: every started transport connects again."""
        self._online = True
        for transport in self._transports.values():
            transport.connect()

    def accepts(self, name: str) -> bool:
        return self._online and name not in self.revoked

    def take(self, envelope: Envelope) -> None:
        self._pending.append(envelope)


class MemoryTransport:
    """A `Transport` of a `MemoryBroker`. Callbacks run inside the broker's `step`."""

    def __init__(self, broker: MemoryBroker, name: str, subscriptions: tuple[str, ...]) -> None:
        self.name = name
        self._broker = broker
        self._subscriptions = subscriptions
        self._callbacks = Callbacks()
        self._started = False
        self._connected = False
        self._starved = False
        self._in_flight = 0
        self._counters: Counter[str] = Counter()

    def start(self, callbacks: Callbacks) -> None:
        self._callbacks = callbacks
        self._started = True
        self.connect()

    def stop(self) -> None:
        self._started = False
        self.disconnect("stopped")

    def publish(self, topic: str, payload: bytes, qos: QoS = 1) -> bool:
        """As `Transport.publish`. Raises LocalProtocolError for a message too large."""
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise LocalProtocolError(f"a message of {len(payload)} bytes: cut it into chunks", reason="too-large")
        full = qos == 1 and self._in_flight >= WINDOW
        self._starved = self._starved or full
        if full or not self._connected:
            return False
        self._in_flight += qos
        self._counters["messages_out"] += 1
        self._broker.take(Envelope(self.name, topic, payload, qos))
        return True

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def counters(self) -> dict[str, int]:
        return dict(self._counters)

    def connect(self) -> None:
        """Called by the broker when it is back."""
        if self._started and not self._connected and self._broker.accepts(self.name):
            self._connected = True
            self._counters["connections"] += 1
            self._call(self._callbacks.on_connection, True, "memory")

    def disconnect(self, reason: str) -> None:
        """Called by the broker when it goes or throws the device out."""
        if self._connected:
            self._connected, self._in_flight, self._starved = False, 0, False
            self._counters["lost"] += 1
            self._call(self._callbacks.on_connection, False, reason)

    def acknowledge(self, topic: str, *, refused: bool) -> None:
        """Called by the broker: one message less in flight."""
        if not self._connected or not self._in_flight:
            return
        self._in_flight -= 1
        self._counters["refused" if refused else "acknowledged"] += 1
        if refused:
            self._call(self._callbacks.on_refused, topic, "not authorized")
        if self._starved:
            self._starved = False
            self._call(self._callbacks.on_capacity)

    def receive(self, topic: str, payload: bytes) -> None:
        """Called by the broker with every message; keeps those it may hear and subscribed to."""
        address = topics.parse(topic)
        foreign = not is_aggregator(self.name) and address.device not in (None, self.name)
        if self._connected and not foreign and any(matches(pattern, topic) for pattern in self._subscriptions):
            self._counters["messages_in"] += 1
            self._call(self._callbacks.on_message, topic, payload)

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:
            # As in the real transport: a broken callback ends nothing.
            self._counters["callback_errors"] += 1
