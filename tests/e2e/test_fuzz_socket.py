"""Rubbish on every topic of a live broker, from an enrolled device and from whoever took the aggregator's place.

Every piece is counted by the reason it was refused for; nobody crashes; the round ends with the right sum.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "aggregator"), str(ROOT / "tests" / "e2e")]

import test_aggregator_kill as kill  # noqa: E402 # after the path above
from small_fleet import FLEET, indicator, make_task  # noqa: E402 # as above

from aggregator.broker import find_program  # noqa: E402 # as above
from aggregator.fleet.authority import AGGREGATOR  # noqa: E402 # as above
from aggregator.fleet.registry import Device  # noqa: E402 # as above
from aggregator.releases.repository import Repository  # noqa: E402 # as above
from edge_sdk.client import EdgeClient  # noqa: E402 # as above
from edge_sdk.config import load  # noqa: E402 # as above
from edge_sdk.identity.keys import DeviceKeys, private_directory, write_private  # noqa: E402 # as above
from edge_sdk.identity.trust import save_bundle  # noqa: E402 # as above
from edge_sdk.protocol import chunks, codec, topics  # noqa: E402 # as above
from edge_sdk.protocol.messages import (  # noqa: E402 # as above
    ALL,
    DOWN,
    UP,
    Ack,
    Block,
    Done,
    Echo,
    EpochKey,
    Get,
    Grant,
    Heartbeat,
    Hello,
    Message,
    ModelHint,
    Offer,
    OpeningNotice,
    Receipt,
    Refusal,
    Report,
    Share,
    State,
)
from edge_sdk.protocol.sealing import seal_to_round  # noqa: E402 # as above
from edge_sdk.transport.interface import Callbacks  # noqa: E402 # as above
from edge_sdk.transport.mqtt import MqttSettings, MqttTransport  # noqa: E402 # as above

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
MALLORY = Ed25519PrivateKey.from_private_bytes(bytes([66] * 32))
TOO_LARGE = codec.MAX_FRAME_BYTES + 1
PATIENT = "patient-device"
Expected = set[tuple[str, str]]


@pytest.fixture(params=["mosquitto", "nats"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[kill.World]:
    if find_program(request.param) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{request.param} is not installed, and CI tests every broker")
        pytest.skip(f"{request.param} is not installed")
    made = kill.World(tmp_path, request.param)
    try:
        yield made
    finally:
        made.close()


class Mouth:
    """A transport that says anything: no limit of ours holds it back."""

    def __init__(self, world: kill.World, name: str, certificate: Path, key: Path) -> None:
        self.transport = MqttTransport(
            MqttSettings(
                host="127.0.0.1", port=world.broker.port, name=name, ca_file=world.home.authority / "ca.pem",
                certificate_file=certificate, key_file=key, subscriptions=(), max_payload_bytes=TOO_LARGE,
                backoff_first_s=0.1, backoff_last_s=0.5,
            ),
            rng=random.Random(5),
        )  # fmt: skip
        self.transport.start(Callbacks())
        kill.eventually(lambda: self.transport.connected, what=f"{name} is connected")

    def say(self, topic: str, payload: bytes) -> None:
        kill.eventually(lambda: self.transport.publish(topic, payload, 1), what="the window has room")


def signed(message: Message, sender: str, recipient: str, key: Ed25519PrivateKey) -> bytes:
    return codec.encode(message, fleet=FLEET, sender=sender, recipient=recipient, sign=key.sign)


def resigned(kind: int, body: bytes, sender: str, recipient: str, key: Ed25519PrivateKey) -> bytes:
    """A true signature over a body that is no message."""
    head = b"Ch\x01" + bytes([kind])
    return head + key.sign(codec.prefixed("chorale/message/1", FLEET, sender, recipient) + head + body) + body


def spoilt(
    frame: bytes, sender: str, recipient: str, key: Ed25519PrivateKey, rng: random.Random
) -> list[tuple[bytes, str]]:
    """What any frame can become on its way, or by its sender's will, and the reason it is refused for."""
    kind, body = frame[3], frame[68:]
    return [
        (b"C", "size"),
        (frame + bytes(TOO_LARGE - len(frame)), "size"),
        (b"\x00" + rng.randbytes(300), "magic"),
        (b"Ch\x02" + frame[3:], "version"),
        (b"Ch\x01\xee" + frame[4:], "kind"),
        (frame[:40], "truncated"),
        (frame[:-1], "signature"),
        (frame[:4] + rng.randbytes(64) + body, "signature"),
        (resigned(kind, body, sender, recipient, MALLORY), "signature"),
        (resigned(kind, body, sender, "elsewhere", key), "signature"),
        (resigned(kind, body + b"\x00", sender, recipient, key), "body"),
        (resigned(kind, rng.randbytes(40), sender, recipient, key), "body"),
        (resigned(kind, b"\xde\x00\x00", sender, recipient, key), "body"),
    ]


def some_of_each(offer: Offer, digest: bytes) -> list[Message]:
    """One well-formed message of every kind that a device sends, all of them about nothing that is so."""
    sealed = seal_to_round(bytes(32), offer.round_key, b"another context")
    return [
        Hello(bytes(16), offer.task, offer.round + 5, digest, 1000, 0, sealed),
        Done(bytes(16)),
        Get(bytes(8), "checkpoint/none", 0, 10),
        Heartbeat(bytes(8), 10**6, "idle", {}),
        Share(offer.task, offer.round, bytes(1200)),
        Report(10**6, offer.task, offer.round, "offer-refused", "rogue", "I take no part"),
        EpochKey(1, bytes(32)),
    ]


def well_formed(offer: Offer, digest: bytes, size: int, name: str) -> list[tuple[Message, str]]:
    """Messages whose signature holds and which are refused for what they say."""
    upload = os.urandom(16)
    key = seal_to_round(bytes(32), offer.round_key, chunks.hello_info(digest, name, upload))
    short = seal_to_round(bytes(31), offer.round_key, chunks.hello_info(digest, name, upload))
    return [
        (Hello(upload, offer.task, offer.round + 5, digest, size, 0, key), "closed"),
        (Hello(upload, offer.task, offer.round, bytes(32), size, 0, key), "closed"),
        (Hello(upload, offer.task, offer.round, digest, size + 1, 0, key), "size"),
        (Hello(os.urandom(16), offer.task, offer.round, digest, size, 0, key), "round-seal"),
        (Hello(upload, offer.task, offer.round, digest, size, 0, short), "round-seal"),
        (Done(upload), "unknown-upload"),
        (Share(offer.task, offer.round, bytes(1200)), "not-opening"),
        (EpochKey(1, bytes(32)), "repeat"),
        (EpochKey(2, bytes(32)), "key"),
        (Heartbeat(bytes(8), 10**6, "idle", {}), "repeat"),
        (Report(10**6, offer.task, offer.round, "offer-refused", "again", ""), "repeat"),
    ]


def test_rubbish_from_an_enrolled_device_is_counted_and_the_round_ends_with_the_right_sum(world: kill.World) -> None:
    rogue, late, rng = world.devices[0], world.devices[5], random.Random(3)
    rogue.takes_part = rogue.answers_openings = late.takes_part = False
    world.serve("none")
    kill.eventually(lambda: len(world.store.presence()) == kill.COUNT, what="the devices are heard")
    before = make_task(world.home, now=time.time(), rounds=1, hidden=kill.HIDDEN, window_s=600)
    kill.eventually(lambda: len(world.receipts()) == 4, what="the honest devices are in, but for the late one")
    with world.lock:
        offer, digest = rogue.offers["churn", 1]
        size = world.devices[1].uploads["churn", 1].hello.size
    world.transports[0].stop()
    folder = world.home.path.parent / rogue.name
    mouth = Mouth(world, rogue.name, folder / "device.crt", folder / "tls.key")
    expected = rubbish_of_a_device(mouth, rogue, Terms(offer, digest, size), rng)
    counted = lambda: expected <= set(world.store.refusals())  # noqa: E731 # read often below
    kill.eventually(counted, what=str(expected - set(world.store.refusals())))

    assert world.store.rounds("churn")[0].phase == "collecting", "nothing of it moved the round"
    with world.lock:
        late.takes_part = True
        late.on_blob(f"roster/{offer.secagg.epoch}")
    kill.eventually(world.finished, what=f"the round ends: {world.log.read_text()[-3000:]}")
    check_the_round(world, before)
    mouth.transport.stop()


class Terms(NamedTuple):
    """What the rogue knows of the round: the offer, its hash, and the size of every upload."""

    offer: Offer
    digest: bytes
    size: int


def rubbish_of_a_device(mouth: Mouth, rogue: kill.OneHotDevice, terms: Terms, rng: random.Random) -> Expected:
    """Say it all; gives the counters (kind, reason) that it must leave."""
    offer, digest, size = terms
    expected: Expected = set()
    said: list[tuple[str, bytes]] = []

    def say(kind: str, payload: bytes, reason: str = "") -> None:
        said.append((topics.up(FLEET, rogue.name, kind), payload))
        mouth.say(*said[-1])
        if reason:
            expected.add((kind, reason))

    for message in some_of_each(offer, digest):
        frame = signed(message, rogue.name, "aggregator", rogue.sign_key)
        for payload, reason in spoilt(frame, rogue.name, "aggregator", rogue.sign_key, rng):
            say(message.topic, payload, reason)
        say("ask" if message.topic != "ask" else "hb", frame, "kind")
        say(message.topic, frame)
    say("nonsense", signed(Done(bytes(16)), rogue.name, "aggregator", rogue.sign_key))
    expected.add(("topic", "kind"))
    for message, reason in well_formed(offer, digest, size, rogue.name):
        say(message.topic, signed(message, rogue.name, "aggregator", rogue.sign_key), reason)
    upload = os.urandom(16)
    key = seal_to_round(bytes(32), offer.round_key, chunks.hello_info(digest, rogue.name, upload))
    hello = Hello(upload, offer.task, offer.round, digest, size, 0, key)
    say("hello", signed(hello, rogue.name, "aggregator", rogue.sign_key))
    rubbish = rng.randbytes(chunks.SEALED_CHUNK_BYTES)
    for chunk, reason in (
        (codec.Chunk(bytes(16), 0, rubbish), "unknown-upload"),
        (codec.Chunk(upload, 0, rubbish), "chunk-seal"),
        (codec.Chunk(upload, 0, rubbish[:100]), "chunk-seal"),
        (codec.Chunk(upload, 2**32 - 1, rubbish), "chunk-index"),
    ):
        say("data", codec.encode_chunk(chunk), reason)
    for payload, reason in ((b"Ch\x01\x02" + bytes(10), "truncated"), (b"Ch\x01\x02" + bytes(TOO_LARGE - 4), "size")):
        say("data", payload, reason)
    for topic, payload in rng.sample(said, 100):
        mouth.say(topic, payload)
    # Its last hello was granted, so that the round would wait for it until the window closes.
    last = Report(10**6 + 1, offer.task, offer.round, "offer-refused", "rogue", "I take no part")
    say("report", signed(last, rogue.name, "aggregator", rogue.sign_key))
    return expected


def check_the_round(world: kill.World, before: str) -> None:
    """The sum is that of the five honest devices; no error of ours was met; the process lives."""
    assert world.process is not None
    assert world.process.poll() is None
    assert "internal" not in {reason for _, reason in world.store.refusals()}
    (row,) = world.store.rounds("churn")
    assert row.phase == "released", row.reason
    included = {upload.device for upload in world.store.uploads("churn", 1, "accepted", "summed")}
    assert included == set(world.names[1:])
    after, _ = world.store.checkpoint("churn", 1)
    step = codec.unpack(row.frame[68:], Offer).privacy.step
    raised = indicator(world.home, before, after, len(included), step)
    assert raised[: kill.COUNT] == [0, 1, 1, 1, 1, 1]
    assert not any(raised[kill.COUNT :])


# -- the other direction -------------------------------------------------------------------------------------------


def real_device(world: kill.World, home: Path, faults: list[BaseException]) -> EdgeClient:
    """The SDK's own client, enrolled on the running broker; errors of ours go to `faults`."""
    keys, folder = DeviceKeys.generate(), private_directory(home / "identity")
    keys.save(folder)
    issued = world.authority.issue(keys.request(FLEET, PATIENT), now=time.time())
    root = Repository(world.home.releases).trusted_root().decode()
    bundle = world.authority.bundle(broker_host="localhost", broker_port=world.broker.port, tuf_root=root)
    save_bundle(folder, bundle)
    write_private(folder / "device.crt", issued.chain_pem.encode())
    row = Device(PATIENT, keys.sign_public, keys.epoch_public, "1", 2**33, "active", "kiosk", False, 1, None)
    columns, places = ", ".join(Device._fields), ",".join("?" * len(row))
    world.connection.execute(f"INSERT INTO devices ({columns}) VALUES ({places})", row)
    world.broker.reload([*world.names, PATIENT])
    return EdgeClient(load({}, home=home, silence_s=2.0, heartbeat_s=5.0), on_error=faults.append)


def of_each_kind_down(offer: Offer) -> list[tuple[Message, str]]:
    """One message of every kind to a device, well signed and about nothing it asked; the reason, where there is one."""
    notice = OpeningNotice("churn", 3, 100, bytes(32))
    return [
        (Grant(bytes(16), 8, b""), "unknown-upload"),
        (Ack(bytes(16), b""), "unknown-upload"),
        (Receipt(bytes(16), True, ""), "unknown-upload"),
        (Block(bytes(8), "roster/1", 0, 10, True, bytes(10)), "unasked-block"),
        (State(bytes(8), 2**40, 1, (rubbish_frame(),), (notice,), None, 60), "nonce"),
        (Echo(bytes(8), 2**40), "nonce"),
        (Refusal("hello", "closed", "", bytes(16)), "unknown-upload"),
        (notice, ""),
        (offer, ""),
        (ModelHint("churn"), ""),
    ]


def rubbish_frame() -> bytes:
    return b"Ch\x01\x40" + bytes(200)


def test_rubbish_in_the_aggregator_s_name_is_counted_and_the_device_lives(world: kill.World, tmp_path: Path) -> None:
    faults: list[BaseException] = []
    client, rng = real_device(world, tmp_path / PATIENT, faults), random.Random(4)
    try:
        world.serve("none")
        kill.eventually(lambda: PATIENT in world.store.presence(), what="the device is heard")
        world.kill()
        seen_at = world.store.presence()[PATIENT][0]
        home = world.home.authority
        mouth = Mouth(world, AGGREGATOR, home / f"{AGGREGATOR}.crt", home / f"{AGGREGATOR}.key")
        expected = rubbish_of_an_aggregator(mouth, world, rng)
        reasons = lambda: set(client.status()["refusals"])  # noqa: E731 # read often below
        kill.eventually(lambda: expected <= reasons(), what="every reason is counted")
        mouth.transport.stop()
        assert client.status()["connected"]
        assert faults == []
        assert client.predict("churn", {}).available is False
        world.serve("none")
        kill.eventually(lambda: world.store.presence()[PATIENT][0] > seen_at, what="the device is heard again")
    finally:
        client.close()


def rubbish_of_an_aggregator(mouth: Mouth, world: kill.World, rng: random.Random) -> set[str]:
    """Say it all to one device and to everybody; gives the reasons that the device must count."""
    key, expected = world.authority.sign_key, set()
    offer = an_offer()
    for message, reason in of_each_kind_down(offer):
        everybody = message.kind in ALL
        recipient = codec.EVERYBODY if everybody else PATIENT
        topic = topics.to_all(FLEET, message.topic) if everybody else topics.down(FLEET, PATIENT, message.topic)
        frame = signed(message, codec.AGGREGATOR, recipient, key)
        for payload, why in spoilt(frame, codec.AGGREGATOR, recipient, key, rng):
            mouth.say(topic, payload)
            expected.add(why)
        mouth.say(topic, frame)
        mouth.say(topic, frame)
        expected |= {reason} - {""}
        elsewhere = topics.down(FLEET, PATIENT, "grant" if message.topic != "grant" else "ack")
        mouth.say(elsewhere, frame)
    assert {message.kind for message, _ in of_each_kind_down(offer)} == {*DOWN, *ALL}
    assert UP.keys().isdisjoint(DOWN)
    return expected


def an_offer() -> Offer:
    from edge_sdk.protocol.messages import PrivacyTerms, SecAggTerms

    privacy = PrivacyTerms(
        unit="record", placement="local", noise_multiplier=1.0, max_grad_norm=1.0, per_customer=8, sample_rate=0.1,
        steps=1, learning_rate=0.1,
        delta=1e-5, honest=1, clip=1.0, step=0.001, insecure_without_noise=False, expected_batch=50,
        proximal=0.0, weight_bound=0,
    )  # fmt: skip
    secagg = SecAggTerms("P24", 3, 9, 1, bytes(32), False, tuple(f"d{i}" for i in range(5)), 1)
    now = int(time.time())
    return Offer(
        FLEET, "churn", 9, now, now + 60, (bytes(32),), 1000, bytes(32), 10, secagg, privacy, 0, bytes(1216), None
    )  # fmt: skip
