"""Members change their epoch keys while rounds are open: every sum still opens, and no key outlives its rounds."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from simulated_aggregator import TASK
from simulated_wire import AGGREGATOR, Packet
from simulated_world import World

from aggregator.offering import REKEY_S, epoch_of
from aggregator.tasks import TaskSpec
from edge_sdk.protocol import codec
from edge_sdk.protocol.errors import WrongSeal
from edge_sdk.protocol.messages import EpochKey, OpeningNotice, OpeningRequest, State
from edge_sdk.protocol.sealing import open_share
from edge_sdk.protocol.secagg.client import share_info

SPEC = TaskSpec(name=TASK, rounds=1, n_min=4, n_max=8, window_s=40, opening_s=20_000, noise_multiplier=2.0)
LATE = ("d0", "d1")  # with these silent, four of six answer and five are needed
AGES = {"d0": 1000.0, "d1": 1000.0, "d2": 1000.0, "d3": REKEY_S + 90.0}


@pytest.fixture
def made() -> Iterator[World]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        world = World(Path(folder), 6, SPEC, lambda name: AGES.get(name, 1e9))
        try:
            yield world
        finally:
            world.close()


class Network:
    """Delivers everything in order, but keeps back what speaks of an opening of TASK to the late members."""

    def __init__(self, made: World) -> None:
        self.made, self.kept = made, []
        self.late: tuple[str, ...] = LATE

    def _held_back(self, packet: Packet) -> bool:
        if packet.receiver not in self.late or packet.topic.rsplit("/", 1)[1] not in ("opening", "state"):
            return False
        body = packet.payload[68:]
        notices = (
            (codec.unpack(body, OpeningNotice),)
            if packet.topic.endswith("opening")
            else codec.unpack(body, State).openings
        )
        return any(notice.task == TASK for notice in notices)

    def run(self, until: Callable[[], bool], patience: int = 200) -> None:
        for _ in range(patience):
            if until():
                return
            self.made.advance(1)
            while (packet := self.made.wire.take(0)) is not None:
                if self._held_back(packet):
                    self.kept.append(packet)
                else:
                    self.made._hand_over(packet)
        raise AssertionError(f"nothing came of it: {self.made.aggregator.phases()}")

    def seconds(self, count: int) -> None:
        end = self.made.time + count
        self.run(lambda: self.made.time >= end)

    def hour(self) -> None:
        """An hour passes while nothing else happens, and everybody is heard of again."""
        self.made.advance(REKEY_S)
        self.seconds(5)


def folder_of(made: World, name: str) -> Path:
    return made.devices[name]._folder


def keys_on_disk(made: World, name: str) -> list[X25519PrivateKey]:
    """What a thief of the disk finds, in whatever file."""
    pattern = re.compile(rb"-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----\n", re.S)
    blocks = [
        b for path in folder_of(made, name).rglob("*") if path.is_file() for b in pattern.findall(path.read_bytes())
    ]
    keys = [load_pem_private_key(block, None) for block in blocks]
    return [key for key in keys if isinstance(key, X25519PrivateKey)]


def captured(made: World, member: str) -> tuple[list[tuple[bytes, bytes]], OpeningRequest]:
    """The sealed shares of the open round of TASK on their way to a member, each with its HPKE info."""
    blob = made.aggregator.rounds.messages.opening_blob(member, TASK, 1)
    assert blob is not None
    request = codec.unpack(blob, OpeningRequest)
    index = made.names.index(member)  # six devices: all are members, by name
    entries = request.groups[0]
    return [(e.sealed, share_info(request.offer_hash, e.device, member, index)) for e in entries], request


def opened(keys: list[X25519PrivateKey], shares: list[tuple[bytes, bytes]]) -> int:
    """How many of the shares one of the keys opens."""
    count = 0
    for sealed, info in shares:
        for key in keys:
            try:
                open_share(sealed, key, info)
            except WrongSeal:
                continue
            count += 1
            break
    return count


def named(made: World, epoch: int) -> dict[str, bytes]:
    signed = made.aggregator.registry.signed_roster(epoch)
    assert signed is not None
    return {entry.device: entry.epoch_key for entry in signed.entries}


def newest(made: World) -> int:
    signed = made.aggregator.registry.signed_roster()
    assert signed is not None
    return epoch_of(signed)


def sums(made: World, task: str) -> list[int]:
    (result,) = made.aggregator.sums.of_task[task][1]
    assert result[:6].tolist() == [int(name in made.aggregator.included(1, task)) for name in made.names]
    assert not result[6:].any()
    return result[:6].tolist()


@pytest.mark.parametrize("crashing", [False, True])
def test_members_change_keys_in_mid_round_and_late_openings_still_open_with_the_older_ones(made, crashing):
    network = Network(made)

    def crash_all() -> None:
        if crashing:
            for device in made.devices.values():
                device.crash()

    network.run(lambda: made.aggregator.phases().get(1) == "opening")
    network.seconds(10)
    assert made.aggregator.phases()[1] == "opening", "two members were not reached"
    shares = {name: captured(made, name)[0] for name in ("d0", "d2")}
    first = {name: device.epoch_keys.current for name, device in made.devices.items()}

    # The keys of three members are due; they are told, and the crash comes before any roster.
    network.hour()
    crash_all()
    network.seconds(3)
    coming = {name: made.devices[name].epoch_keys.next for name in ("d0", "d1", "d2")}
    assert None not in coming.values()
    assert newest(made) == 1

    # The next task's round brings the roster that names them, while the first task's round is still to be opened.
    made.aggregator.add_task("intent")
    network.run(lambda: made.aggregator.phases("intent").get(1) == "collecting")
    crash_all()
    network.seconds(8)
    assert newest(made) == 2
    assert {name: named(made, 2)[name] for name in coming} == coming
    held = {name: made.devices[name].epoch_keys for name in made.names}
    assert [held[name].older for name in ("d0", "d1", "d2")] == [first["d0"], first["d1"], None], "d2 answered"
    assert opened(keys_on_disk(made, "d2"), shares["d2"]) == 0
    assert opened(keys_on_disk(made, "d0"), shares["d0"]) == 6, "it must still answer"
    assert [held[name].current for name in coming] == list(coming.values())

    # d3's key comes of age in the middle of that round; no roster may follow before the round is in.
    made.time += 60
    network.run(lambda: made.aggregator.phases("intent")[1] == "released", 300)
    assert sum(sums(made, "intent")) >= SPEC.n_min, "opened with the new keys of d0, d1 and d2"
    network.seconds(90)
    waiting = made.devices["d3"].epoch_keys.next
    assert waiting is not None
    assert newest(made) == 2
    crash_all()

    # The late openings arrive after the change: the older keys open them and are gone then.
    network.late = ()
    for packet in network.kept:
        made._hand_over(packet)
    network.run(lambda: made.aggregator.phases()[1] == "released")
    assert sum(sums(made, TASK)) >= SPEC.n_min
    network.seconds(10)
    assert [made.devices[name].epoch_keys.older for name in made.names] == [None] * 6
    assert opened(keys_on_disk(made, "d0"), shares["d0"]) == 0, "the same disk opened all six before"

    # An hour on, the next round's roster names d3's key, and the keys of the others that came of age since.
    network.hour()
    crash_all()
    made.aggregator.add_task("fraud")
    network.run(lambda: made.aggregator.phases("fraud").get(1) == "released", 300)
    assert newest(made) == 3
    assert named(made, 3)["d3"] == waiting
    assert sum(sums(made, "fraud")) >= SPEC.n_min
    assert all(len(keys_on_disk(made, name)) <= 3 for name in made.names)
    assert not any(made.devices[name].refusals().get("wrong-seal") for name in made.names)


def test_an_opening_that_comes_after_its_key_was_deleted_is_refused_and_tells_why(made):
    network = Network(made)
    network.run(lambda: made.aggregator.phases().get(1) == "opening")
    network.seconds(5)
    network.hour()
    made.aggregator.add_task("intent")
    network.run(lambda: made.aggregator.phases("intent").get(1) == "released", 300)
    assert made.devices["d0"].epoch_keys.older is not None
    made.devices["d0"].epoch_keys.delete_older()
    for packet in network.kept:
        made._hand_over(packet)
    network.late = ()
    network.seconds(5)
    assert made.devices["d0"].refusals()["wrong-seal"] >= 1
    assert not made.devices["d1"].refusals().get("wrong-seal")
    network.run(lambda: made.aggregator.phases()[1] == "released")
    assert sum(sums(made, TASK)) >= SPEC.n_min, "one silent member of six is allowed for"


def test_one_key_is_told_again_and_again_but_never_two_at_a_time(made):
    network = Network(made)
    network.run(lambda: made.aggregator.phases().get(1) == "opening")
    for _ in range(4):
        network.hour()
        made.devices["d2"].crash()
        network.seconds(3)
    told = [
        codec.unpack(packet.payload[68:], EpochKey)
        for packet in made.wire.history
        if packet.receiver == AGGREGATOR and packet.sender == "d2" and packet.topic.endswith("/key")
    ]
    assert len(told) > 4
    assert set(told) == {EpochKey(2, made.devices["d2"].epoch_keys.next)}
    assert made.aggregator.refused().get("repeat", 0) == 0, "the same key again is no second change"
