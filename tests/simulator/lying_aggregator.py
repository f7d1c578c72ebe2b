"""An aggregator that holds every key an aggregator holds, colludes with devices, and wants one device's update.

It speaks to real devices in encoded frames and believes nothing it should not know: what it opens, it opens from
what it was sent. It runs no round of its own making honestly: no phases, no minimum, no committee but what it says.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from simulated_aggregator import AGGREGATOR_KEY, AUTHORITY_KEY, STEPS_IN_CLIP, TASK, make_offer
from simulated_device import DeviceKeysOf, SimulatedDevice
from simulated_wire import AGGREGATOR, FLEET, Packet, Wire, seeded_entropy

from aggregator.tasks import TaskSpec
from edge_sdk.protocol import chunks, codec, roster, topics
from edge_sdk.protocol.errors import WrongSum
from edge_sdk.protocol.messages import (
    UP,
    Ack,
    Block,
    Done,
    Echo,
    Get,
    Grant,
    Heartbeat,
    Hello,
    Message,
    Offer,
    OpeningNotice,
    OpeningRequest,
    Receipt,
    SealedShareEntry,
    Share,
    ShareBody,
)
from edge_sdk.protocol.roster import RosterEntry, SignedRoster
from edge_sdk.protocol.sealing import ROUND_SECRET_BYTES, ChunkSealer, RoundKey, open_share
from edge_sdk.protocol.secagg import client, committee, member
from edge_sdk.protocol.secagg.client import MaskedUpload
from edge_sdk.protocol.secagg.member import Answer
from edge_sdk.protocol.secagg.residues import RunningSum
from edge_sdk.protocol.secagg.ring import profile
from edge_sdk.protocol.secagg.server import Opening, share_proofs
from edge_sdk.protocol.secagg.shamir import PRIME

NOW = 1_800_000_000.0
VALUES = 40
RING = profile("P24")
SPEC = TaskSpec(name=TASK, n_min=5, n_max=12, window_s=600, noise_multiplier=2.0)

Shares = dict[int, np.ndarray]  # member's place, from 0 -> uint16 [N/rho]
Make = Callable[[str, int], SealedShareEntry]  # device, member's place -> what that member is shown


def minus(left: Mapping[int, np.ndarray], right: Mapping[int, np.ndarray]) -> Shares:
    """The shares of the difference of two sums, where both are known."""
    return {i: ((left[i].astype(np.int64) - right[i]) % PRIME).astype(np.uint16) for i in left.keys() & right.keys()}


class Liar:
    """Devices d0 … and the aggregator they trust with nothing; `colluders` give it their secrets."""

    def __init__(
        self, folder: Path, size: int, colluders: Iterable[str] = (), *, authority_key: bytes = b"", n_min: int = 5
    ) -> None:
        self.names = [f"d{i}" for i in range(size)]
        self.colluders, self.n_min = set(colluders), n_min
        self.wire = Wire(self.names)
        self.key = RoundKey(seeded_entropy("liar")(ROUND_SECRET_BYTES))
        trusted = authority_key or AUTHORITY_KEY.public_key().public_bytes_raw()
        mine = AGGREGATOR_KEY.public_key().public_bytes_raw()
        self.devices = {
            name: SimulatedDevice(
                self.wire, folder / name, name, i, aggregator_key=mine, authority_key=trusted, min_cohort=n_min
            )
            for i, name in enumerate(self.names)
        }
        self.uploads: dict[tuple[str, bytes], MaskedUpload] = {}
        self._arriving: dict[bytes, tuple[Hello, ChunkSealer, dict[int, bytes]]] = {}
        self._blobs: dict[tuple[str, str], bytes] = {}
        self._committees: dict[bytes, tuple[str, ...]] = {}
        self._rounds: dict[int, list[bytes]] = defaultdict(list)
        self._answers: list[tuple[str, ShareBody]] = []

    def close(self) -> None:
        for device in self.devices.values():
            device.database.close()

    # -- what it publishes

    def state_roster(
        self, entries: Sequence[RosterEntry] = (), epoch: int = 1, *, signed_by_me: bool = False
    ) -> SignedRoster:
        """A roster, of the whole fleet unless told, by the authority unless forged."""
        frozen = roster.freeze(entries or [device.keys.entry() for device in self.devices.values()])
        key = AGGREGATOR_KEY if signed_by_me else AUTHORITY_KEY
        return roster.sign(
            frozen, key, fleet=FLEET, epoch=epoch, beacon=bytes(32), issued_at=int(NOW), expires_at=int(NOW) + 10**6
        )

    def offer(self, stated: SignedRoster, number: int = 1, members: Sequence[str] = (), **changes: object) -> Offer:
        """An offer on a roster; `members`: a committee of its own choosing."""
        offer = make_offer(
            number, NOW, stated, self.key.public_bytes(), SPEC, **{"length": VALUES, **changes}
        )  # fmt: skip
        terms = {"n_min": self.n_min} | ({"committee": tuple(members)} if members else {})
        return codec.unpack(_replaced(offer, terms), Offer)

    def publish(self, offer: Offer, stated: SignedRoster, to: Iterable[str] = ()) -> bytes:
        """Send the offer to devices (all unless told) and take what they upload. Gives H."""
        frame = self._frame(offer, codec.EVERYBODY)
        digest = codec.offer_hash(frame)
        self._committees[digest] = offer.secagg.committee
        self._rounds[offer.round].append(digest)
        receivers = list(to) or self.names
        for name in receivers:
            self._blobs[name, f"roster/{offer.secagg.epoch}"] = stated.to_blob()
            self._tell(name, topics.to_all(FLEET, "offer"), frame)
        self.run()
        return digest

    # -- what it takes

    def run(self) -> None:
        """Let everybody speak until nobody has anything to say."""
        for _ in range(12):
            for device in self.devices.values():
                device.turn(NOW, 1.0)
            while (packet := self.wire.take(0)) is not None:
                if packet.receiver == AGGREGATOR:
                    self._take(packet)
                else:
                    self.devices[packet.receiver].receive(packet, NOW)

    def _take(self, packet: Packet) -> None:
        address = topics.parse(packet.topic)
        device = str(address.device)
        if address.kind == "data":
            self._say(device, self._chunk(device, codec.decode_chunk(packet.payload)))
            return
        message = codec.unpack(packet.payload[68:], UP[packet.payload[3]])
        match message:
            case Hello():
                self._hello(device, message)
                self._say(device, Grant(message.upload, 8, chunks.Bitmap(chunks.chunk_count(message.size)).encode()))
            case Done():
                self._done(device, message)
                self._say(device, Receipt(message.upload, True, ""))
            case Get():
                self._say(device, self._block(device, message))
            case Share():
                plain = self.key.open(message.sealed, chunks.share_info(self._hash_of(message), device))
                self._answers.append((device, codec.unpack(plain, ShareBody)))
            case Heartbeat():
                self._say(device, Echo(message.nonce, int(NOW)))

    def _hash_of(self, share: Share) -> bytes:
        return self._asked_about[share.round]

    def _hello(self, device: str, hello: Hello) -> None:
        key = self.key.open(hello.sealed_key, chunks.hello_info(hello.offer_hash, device, hello.upload))
        context = chunks.chunk_context(hello.offer_hash, device, hello.upload, hello.size)
        self._arriving[hello.upload] = (hello, ChunkSealer(key, context), {})

    def _chunk(self, device: str, chunk: codec.Chunk) -> Ack:
        hello, sealer, held = self._arriving[chunk.upload]
        count = chunks.chunk_count(hello.size)
        held[chunk.index] = sealer.open(chunk.index, chunk.index == count - 1, chunk.sealed)
        return Ack(chunk.upload, chunks.Bitmap(count, held).encode())

    def _done(self, device: str, done: Done) -> None:
        hello, _, held = self._arriving[done.upload]
        data = b"".join(held[i] for i in sorted(held))
        plan = self.plan(hello.offer_hash)
        length = client.masked_length(VALUES)
        self.uploads[device, hello.offer_hash] = MaskedUpload.decode(data, profile=RING, plan=plan, length=length)

    def _block(self, device: str, get: Get) -> Block:
        blob = self._blobs.get((device, get.path))
        if blob is None:
            return Block(get.request, get.path, get.offset, 0, False, b"")
        return Block(get.request, get.path, get.offset, len(blob), True, blob[get.offset : get.offset + get.length])

    # -- what it asks of the committee

    def plan(self, digest: bytes) -> committee.CommitteePlan:
        return committee.plan(len(self._committees[digest]))

    def members(self, digest: bytes, *, honest: bool = True) -> list[int]:
        """Places of the members that are honest, or of those that are not."""
        listed = enumerate(self._committees[digest])
        return [i for i, name in listed if (name in self.devices and name not in self.colluders) == honest]

    def genuine(self, digest: bytes) -> Make:
        """Shares as they were uploaded under H."""

        def make(device: str, index: int) -> SealedShareEntry:
            upload = self.uploads[device, digest]
            proof = tuple(share_proofs(upload.sealed_shares)[index])
            return SealedShareEntry(device, upload.signature, bytes(upload.sealed_shares[index]), proof)

        return make

    def ask(
        self, digest: bytes, groups: Sequence[Sequence[str]], *, make: Make | None = None,
        members: Sequence[int] | None = None, number: int = 1,
    ) -> list[Shares]:  # fmt: skip
        """Ask honest members (all, or those at `members`) for the groups; per group the answers that came."""
        make = make or self.genuine(digest)
        self._asked_about = {number: digest}
        before = len(self._answers)
        for index in self.members(digest) if members is None else members:
            name = self._committees[digest][index]
            entries = tuple(tuple(make(device, index) for device in group) for group in groups)
            blob = codec.pack(OpeningRequest(TASK, number, digest, entries))
            self._blobs[name, f"opening/{TASK}/{number}"] = blob
            notice = OpeningNotice(TASK, number, len(blob), hashlib.sha256(blob).digest())
            self._tell(name, topics.down(FLEET, name, notice.topic), self._frame(notice, name))
        self.run()
        return self._sorted(self._answers[before:], digest, groups)

    def _sorted(
        self, answers: list[tuple[str, ShareBody]], digest: bytes, groups: Sequence[Sequence[str]]
    ) -> list[Shares]:
        wanted = member.survivors_hash(digest, groups)
        sums: list[Shares] = [{} for _ in groups]
        for _, body in answers:
            if body.survivors_hash == wanted:
                for group, data in enumerate(body.sums):
                    sums[group][body.member - 1] = np.frombuffer(data, "<u2").astype(np.uint16)
        return sums

    def collude(self, digest: bytes, group: Sequence[str], *, make: Make | None = None) -> Shares:
        """What members that are the liar's own open, of any list and without a question."""
        make, members = make or self.genuine(digest), self._committees[digest]
        sums: Shares = {}
        for index in self.members(digest, honest=False):
            secret, total = DeviceKeysOf(members[index]).epoch, np.zeros(1, np.int64)
            for device in group:
                info = client.share_info(digest, device, members[index], index)
                total = total + np.frombuffer(open_share(make(device, index).sealed, secret, info), "<u2")
            sums[index] = (total % PRIME).astype(np.uint16)
        return sums

    # -- what it makes of it

    def unmask(self, digest: bytes, shares: Mapping[int, np.ndarray], uploads: Sequence[str]) -> np.ndarray | None:
        """Take the mask of which these are shares off the sum of these devices' residues; None where it cannot."""
        length = client.masked_length(VALUES)
        total = RunningSum(RING, length)
        for device in uploads:
            total.add(self.uploads[device, digest].residues)
        opening = Opening(
            profile=RING, plan=self.plan(digest), offer_hash=digest, survivors_hash=bytes(32),
            device_count=len(uploads), length=length,
        )  # fmt: skip
        for index, row in shares.items():
            opening.receive(index, Answer(bytes(32), [row]))
        try:
            return np.rint(opening.open(total) / STEPS_IN_CLIP).astype(int)
        except WrongSum:
            return None

    def one_hot(self, *devices: str) -> list[int]:
        return [int(f"d{i}" in devices) for i in range(VALUES)]

    def refusals(self, names: Iterable[str] = ()) -> set[str]:
        """Reasons for which devices refused offers and openings."""
        chosen = [self.devices[name] for name in names] or list(self.devices.values())
        return {reason for device in chosen for reason in [*device.refusals(), *device.refused]}

    # -- the machinery

    def _frame(self, message: Message, recipient: str) -> bytes:
        return codec.encode(
            message, fleet=FLEET, sender=AGGREGATOR, recipient=recipient, sign=AGGREGATOR_KEY.sign
        )  # fmt: skip

    def _say(self, device: str, message: Message) -> None:
        self._tell(device, topics.down(FLEET, device, message.topic), self._frame(message, device))

    def _tell(self, device: str, topic: str, frame: bytes) -> None:
        self.wire.waiting.append(Packet(AGGREGATOR, device, topic, frame))


def _replaced(offer: Offer, terms: Mapping[str, object]) -> bytes:
    import msgspec

    return codec.pack(msgspec.structs.replace(offer, secagg=msgspec.structs.replace(offer.secagg, **terms)))
