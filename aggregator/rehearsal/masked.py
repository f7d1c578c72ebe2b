"""Sums of one round, with the whole of secure aggregation or without it.

Masked: a signed roster, a committee drawn from it, masks, sealed shares, answers, opening, canaries: the functions that
devices, members and aggregator run. Plain: the same integers without masks. Both give the same sums for one seed: the
floor of a mask's error, which stays in an opened sum, is drawn from the same key.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from aggregator.rehearsal.seeds import Seeds
from edge_sdk.protocol import roster
from edge_sdk.protocol.roster import RosterEntry
from edge_sdk.protocol.secagg import client, committee, member
from edge_sdk.protocol.secagg.client import Member, masked_length
from edge_sdk.protocol.secagg.committee import CommitteePlan
from edge_sdk.protocol.secagg.keystream import Keystream, binomial
from edge_sdk.protocol.secagg.member import SealedShare
from edge_sdk.protocol.secagg.residues import RunningSum
from edge_sdk.protocol.secagg.ring import Profile
from edge_sdk.protocol.secagg.server import Opening, share_proofs

Steps = npt.NDArray[np.int32]
Sum = npt.NDArray[np.int64]

# More members cost every device a sealed share each and add nothing to the model: as a fleet with so many stewards.
MOST_MEMBERS: Final = 16
_FLOOR_KEY: Final = 2  # `client.protect` draws keys for the secret, for its shares, then for the floor
_EPOCH_S: Final = 86_400


@dataclass(frozen=True)
class RoundPlan:
    """What binds a round's uploads: its number, H, coordinates, smallest sum, number of groups, each device's group."""

    number: int
    offer_hash: bytes
    length: int
    n_min: int
    group_count: int
    groups: dict[str, int]


def device_name(place: int) -> str:
    """The device's name in the protocol, whatever the data calls it."""
    return f"device-{place}"


class Sums(Protocol):
    """Uploads in, one integer sum for each group out."""

    def add(self, device: int, values: Steps, noise: Steps | None) -> None:
        """Take the upload of the device at that place."""

    def opened(self) -> list[tuple[Sum, int]]:
        """(sum int64 [d], devices in it) of every group of at least n_min devices."""


class PlainSums:
    """The integers added up as they are."""

    def __init__(self, seeds: Seeds, plan: RoundPlan) -> None:
        self._seeds, self._plan = seeds, plan
        self._sums = np.zeros((plan.group_count, plan.length), np.int64)
        self._counts = [0] * plan.group_count

    def add(self, device: int, values: Steps, noise: Steps | None) -> None:
        """See Sums."""
        group = self._plan.groups[device_name(device)]
        total = self._sums[group]
        total += values if noise is None else values.astype(np.int64) + noise
        floor = Keystream(self._seeds.key(f"mask-{_FLOOR_KEY}", self._plan.number, device))
        total += binomial(floor, self._plan.length)
        self._counts[group] += 1

    def opened(self) -> list[tuple[Sum, int]]:
        """See Sums."""
        both = zip(self._sums, self._counts, strict=True)
        return [(total, count) for total, count in both if count >= self._plan.n_min]


class VirtualRoster:
    """The keys of every device, a signed roster, and the committee that is drawn from it."""

    def __init__(self, seeds: Seeds, devices: int, members: int = MOST_MEMBERS) -> None:
        """Raises CommitteeRefused for fewer than five devices."""
        self.names = [device_name(place) for place in range(devices)]
        keys = [(seeds.key("sign", 0, place), seeds.key("epoch", 0, place)) for place in range(devices)]
        self.sign_keys = [Ed25519PrivateKey.from_private_bytes(sign) for sign, _ in keys]
        epoch_keys = [X25519PrivateKey.from_private_bytes(epoch) for _, epoch in keys]
        entries = roster.freeze(
            RosterEntry(name, sign.public_key().public_bytes_raw(), epoch.public_key().public_bytes_raw(), False)
            for name, sign, epoch in zip(self.names, self.sign_keys, epoch_keys, strict=True)
        )
        authority, beacon = Ed25519PrivateKey.from_private_bytes(seeds.key("authority")), seeds.key("beacon")
        signed = roster.sign(
            entries, authority, fleet="rehearsal", epoch=1, beacon=beacon, issued_at=0, expires_at=_EPOCH_S
        )
        self.public = {entry.device: entry.sign_key for entry in entries}
        self.plan = committee.plan(min(members, committee.members_for(devices)))
        chosen = committee.draw(roster.committee_seed(signed.statement), self.names, self.plan.m)
        by_name = {entry.device: entry.epoch_key for entry in entries}
        self.members = [Member(name, by_name[name]) for name in chosen]
        self.member_keys = [epoch_keys[self.names.index(name)] for name in chosen]


class MaskedSums:
    """One round under masks. Keeps the running sums and the shares of the members that will answer."""

    def __init__(self, seeds: Seeds, plan: RoundPlan, ring: Profile, fleet: VirtualRoster) -> None:
        self._seeds, self._plan, self._ring, self._fleet = seeds, plan, ring, fleet
        self._length = masked_length(plan.length)
        self._sums = [RunningSum(ring, self._length) for _ in range(plan.group_count)]
        self._shares: list[list[list[SealedShare]]] = [[[] for _ in self._sums] for _ in self._answering]

    @property
    def _answering(self) -> range:
        """As many members as are needed; the others stay silent."""
        return range(self._fleet.plan.answers)

    @property
    def _committee(self) -> CommitteePlan:
        return self._fleet.plan

    def add(self, device: int, values: Steps, noise: Steps | None) -> None:
        """See Sums: mask on the device's side, encode, then decode, verify and add on the aggregator's."""
        draws, name = itertools.count(), self._fleet.names[device]
        made = client.protect(
            profile=self._ring,
            plan=self._committee,
            offer_hash=self._plan.offer_hash,
            device=name,
            members=self._fleet.members,
            values=values,
            noise=noise,
            sign=self._fleet.sign_keys[device].sign,
            entropy=lambda _: self._seeds.key(f"mask-{next(draws)}", self._plan.number, device),
        )
        upload = client.MaskedUpload.decode(
            made.encode(), profile=self._ring, plan=self._committee, length=self._length
        )
        client.verify_upload(upload, self._plan.offer_hash, name, self._fleet.public[name])
        group = self._plan.groups[device_name(device)]
        self._sums[group].add(upload.residues)
        proofs = share_proofs(upload.sealed_shares)
        for index in self._answering:
            sealed = bytes(upload.sealed_shares[index])
            self._shares[index][group].append(SealedShare(name, upload.signature, sealed, proofs[index]))

    def opened(self) -> list[tuple[Sum, int]]:
        """See Sums. Raises OpeningRefused, WrongSum."""
        asked = [group for group, total in enumerate(self._sums) if total.count >= self._plan.n_min]
        names = [[share.device for share in self._shares[0][group]] for group in asked]
        digest = member.survivors_hash(self._plan.offer_hash, names)
        openings = [
            Opening(
                profile=self._ring, plan=self._committee, offer_hash=self._plan.offer_hash, survivors_hash=digest,
                device_count=self._sums[group].count, length=self._length, group=place,
            )
            for place, group in enumerate(asked)
        ]  # fmt: skip
        for index in self._answering:
            answer = self._answer(index, [self._shares[index][group] for group in asked])
            for opening in openings:
                opening.receive(index, answer)
        return [
            (opening.open(self._sums[group]), self._sums[group].count)
            for opening, group in zip(openings, asked, strict=True)
        ]

    def _answer(self, index: int, groups: Sequence[Sequence[SealedShare]]) -> member.Answer:
        return member.answer(
            profile=self._ring,
            plan=self._committee,
            offer_hash=self._plan.offer_hash,
            member=self._fleet.members[index].name,
            index=index,
            secret=self._fleet.member_keys[index],
            n_min=self._plan.n_min,
            roster=self._fleet.public,
            groups=groups,
            group_count=self._plan.group_count,
        )
