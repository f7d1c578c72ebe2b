"""A simulation: a list of operations on devices, an aggregator and the packets between them. Time moves when told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from simulated_aggregator import AGGREGATOR_KEY, AUTHORITY_KEY, TASK, SimulatedAggregator, SimulatedCrash
from simulated_device import SimulatedDevice
from simulated_wire import AGGREGATOR, FLEET, Packet, Wire

from aggregator.tasks import TaskSpec
from edge_sdk.protocol import codec, topics
from edge_sdk.protocol.messages import Message, Offer, OpeningNotice

START = 1_800_000_000.0


@dataclass(frozen=True)
class Operation:
    """What happens next: `what` names a method of World, the numbers say to whom or how much."""

    what: str
    a: int = 0
    b: int = 0


class World:
    """The fleet, the aggregator and the network between them."""

    def __init__(
        self, folder: Path, size: int, spec: TaskSpec, epoch_key_s: Callable[[str], float] = lambda name: 86_400.0
    ) -> None:
        self.time = START
        self.names = [f"d{place}" for place in range(size)]
        self.wire = Wire(self.names)
        self.aggregator = SimulatedAggregator(self.wire, folder / AGGREGATOR, spec, self.names, lambda: self.time)
        keys = {
            "aggregator_key": AGGREGATOR_KEY.public_key().public_bytes_raw(),
            "authority_key": AUTHORITY_KEY.public_key().public_bytes_raw(),
        }
        self.devices = {
            name: SimulatedDevice(self.wire, folder / name, name, place, epoch_key_s=epoch_key_s(name), **keys)
            for place, name in enumerate(self.names)
        }

    def close(self) -> None:
        for device in self.devices.values():
            device.database.close()
        self.aggregator.store.connection.close()

    # -- operations

    def do(self, operation: Operation) -> None:
        getattr(self, operation.what)(operation.a, operation.b)

    def deliver(self, count: int, index: int) -> None:
        """So many packets, each the one at `index`: 0 keeps the order."""
        for _ in range(count):
            packet = self.wire.take(index)
            if packet is not None:
                self._hand_over(packet)

    def drop_some(self, index: int, count: int) -> None:
        for _ in range(1 + count % 8):
            self.wire.take(index)

    def duplicate(self, index: int, again: int) -> None:
        """Deliver a packet that stays on the wire."""
        if self.wire.waiting:
            packet = self.wire.waiting[index % len(self.wire.waiting)]
            self._hand_over(packet)
            if again % 2:
                self._hand_over(packet)

    def corrupt(self, index: int, bit: int) -> None:
        if (packet := self.wire.take(index)) is not None:
            self._hand_over(packet.flipped(bit))

    def replay(self, index: int, receiver: int) -> None:
        """Something sent long ago comes again, and comes to somebody else."""
        if not self.wire.history:
            return
        packet = self.wire.history[index % len(self.wire.history)]
        self._hand_over(packet)
        address, other = topics.parse(packet.topic), self.names[receiver % len(self.names)]
        if address.direction == "up":
            self._hand_over(Packet(packet.sender, AGGREGATOR, topics.up(FLEET, other, address.kind), packet.payload))
        elif address.direction == "down":
            self._hand_over(Packet(packet.sender, other, topics.down(FLEET, other, address.kind), packet.payload))

    def lie(self, device: int, what: int) -> None:
        """Something that the aggregator signs and must not: a second offer for a round, a request out of the air."""
        name = self.names[device % len(self.names)]
        offers = self.aggregator.rounds.messages.offers()
        if what % 2 and offers:
            offer = codec.unpack(offers[0][68:], Offer)
            self._tell(name, msgspec.structs.replace(offer, models=(bytes([7] * 32),)), everybody=True)
        else:
            number = max(self.aggregator.phases(), default=1)
            self._tell(name, OpeningNotice(TASK, number, 100, bytes([what % 256] * 32)), everybody=False)

    def _tell(self, name: str, message: Message, everybody: bool) -> None:
        recipient = codec.EVERYBODY if everybody else name
        frame = self.aggregator.post.frame(message, recipient)
        topic = topics.to_all(FLEET, message.topic) if everybody else topics.down(FLEET, name, message.topic)
        self._hand_over(Packet(AGGREGATOR, name, topic, frame))

    def advance(self, seconds: int, _: int = 0) -> None:
        """Time passes, and everybody takes a turn."""
        self.time += seconds
        for device in self.devices.values():
            device.turn(self.time, float(seconds))
        self._aggregator(self.aggregator.tick)

    def crash_device(self, device: int, muted: int) -> None:
        """A device dies and comes back; if muted, right after taking a packet whose answer nobody hears."""
        name = self.names[device % len(self.names)]
        if muted % 2:
            self._muted(name)
        self.devices[name].crash()

    def crash_aggregator(self, muted: int, _: int = 0) -> None:
        if muted % 2:
            self._muted(AGGREGATOR)
        self.aggregator.crash()

    def crash_in_phase(self, phase: int, _: int = 0) -> None:
        """The aggregator will die the moment this phase is durable."""
        names = ("offered", "collecting", "closed", "opening", "averaging", "averaged", "published", "released")
        self.aggregator.crash_at = names[phase % len(names)]

    # -- the machinery

    def _muted(self, name: str) -> None:
        mine = [packet for packet in self.wire.waiting if packet.receiver == name]
        if mine:
            self.wire.waiting.remove(mine[0])
            self.wire.muted = True
            self._hand_over(mine[0])
            if name != AGGREGATOR:
                self.devices[name].turn(self.time, 0.0)
            self.wire.muted = False

    def _hand_over(self, packet: Packet) -> None:
        if packet.receiver == AGGREGATOR:
            self._aggregator(lambda: self.aggregator.receive(packet))
        else:
            self.devices[packet.receiver].receive(packet, self.time)

    def _aggregator(self, action: Callable[[], None]) -> None:
        try:
            action()
        except SimulatedCrash:
            self.aggregator.crash()

    def settle(self, rounds: int, patience: int = 400) -> None:
        """The network behaves from now on; go on until so many rounds are over."""
        for _ in range(patience):
            if sum(phase in ("released", "aborted") for phase in self.aggregator.phases().values()) >= rounds:
                return
            self.advance(1)
            self.deliver(len(self.wire.waiting), 0)
