"""A small fleet with real keys, from fixed seeds, for the tests of secure aggregation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_sdk.protocol.secagg import client, committee
from edge_sdk.protocol.secagg.groups import groups_of
from edge_sdk.protocol.secagg.member import Answer, SealedShare, answer, survivors_hash
from edge_sdk.protocol.secagg.residues import RunningSum
from edge_sdk.protocol.secagg.ring import Profile, profile
from edge_sdk.protocol.secagg.server import Opening, share_proofs


def seeded_entropy(*words: object) -> Callable[[int], bytes]:
    """Fixed bytes that never repeat within one source."""
    calls = iter(range(1 << 30))
    seed = " ".join(map(str, words)).encode()
    return lambda size: hashlib.shake_256(seed + next(calls).to_bytes(4, "big")).digest(size)


@dataclass
class Fleet:
    """`size` devices, one round's offer hash, and whatever was uploaded so far."""

    size: int
    profile_name: str = "P24"
    values: int = 300
    n_min: int = 3
    group_count: int = 1
    offer_hash: bytes = hashlib.sha256(b"offer").digest()
    uploads: dict[str, client.MaskedUpload] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.devices = [f"device-{i:03}" for i in range(self.size)]
        self.sign_keys = {d: Ed25519PrivateKey.from_private_bytes(seeded_entropy("sign", d)(32)) for d in self.devices}
        self.epoch_keys = {d: X25519PrivateKey.from_private_bytes(seeded_entropy("epoch", d)(32)) for d in self.devices}
        self.roster = {d: key.public_key().public_bytes_raw() for d, key in self.sign_keys.items()}
        self.committee = committee.draw(bytes(32), self.devices, committee.members_for(self.size))
        self.plan = committee.plan(len(self.committee))
        self.length = client.masked_length(self.values)
        self.total = RunningSum(self.profile, self.length)

    @property
    def profile(self) -> Profile:
        return profile(self.profile_name)

    def members(self) -> list[client.Member]:
        return [client.Member(m, self.epoch_keys[m].public_key().public_bytes_raw()) for m in self.committee]

    def protect(self, device: str, values: np.ndarray, noise: np.ndarray | None = None) -> client.MaskedUpload:
        return client.protect(
            profile=self.profile,
            plan=self.plan,
            offer_hash=self.offer_hash,
            device=device,
            members=self.members(),
            values=values,
            noise=noise,
            sign=self.sign_keys[device].sign,
            entropy=seeded_entropy("mask", device, self.offer_hash),
        )

    def upload(self, device: str, values: np.ndarray, noise: np.ndarray | None = None) -> None:
        """Protect, travel as bytes, verify, add."""
        wire = self.protect(device, values, noise).encode()
        received = client.MaskedUpload.decode(wire, profile=self.profile, plan=self.plan, length=self.length)
        client.verify_upload(received, self.offer_hash, device, self.roster[device])
        self.uploads[device] = received
        self.total.add(received.residues)

    def sealed_for(self, index: int, devices: Sequence[str]) -> list[SealedShare]:
        return [
            SealedShare(d, u.signature, bytes(u.sealed_shares[index]), share_proofs(u.sealed_shares)[index])
            for d, u in ((d, self.uploads[d]) for d in devices)
        ]

    def answer(self, index: int, groups: Sequence[Sequence[str]]) -> Answer:
        member = self.committee[index]
        return answer(
            profile=self.profile,
            plan=self.plan,
            offer_hash=self.offer_hash,
            member=member,
            index=index,
            secret=self.epoch_keys[member],
            n_min=self.n_min,
            roster=self.roster,
            groups=[self.sealed_for(index, group) for group in groups],
            group_count=self.group_count,
        )

    def settled(self) -> list[list[str]]:
        """The devices of each group, as the offer settles them (SPEC 7.5.1)."""
        places = groups_of(self.offer_hash, self.devices, self.group_count)
        return [[device for device in self.devices if places[device] == group] for group in range(self.group_count)]

    def opening(self, groups: Sequence[Sequence[str]], group: int = 0) -> Opening:
        return Opening(
            profile=self.profile,
            plan=self.plan,
            offer_hash=self.offer_hash,
            survivors_hash=survivors_hash(self.offer_hash, groups),
            device_count=len(groups[group]),
            length=self.length,
            group=group,
        )
