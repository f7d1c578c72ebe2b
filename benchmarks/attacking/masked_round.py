"""One round of secure aggregation by the protocol's own functions: uploads, answers, opening. Keys are fresh."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from unittest import mock

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_sdk.protocol.sealing import open_share
from edge_sdk.protocol.secagg import client, committee
from edge_sdk.protocol.secagg import member as member_rules
from edge_sdk.protocol.secagg.client import share_info
from edge_sdk.protocol.secagg.member import Answer, SealedShare, answer, survivors_hash
from edge_sdk.protocol.secagg.residues import RunningSum, decode_residues
from edge_sdk.protocol.secagg.ring import CLIENT_BOUND, SERVER_BOUND, PublicTimes, profile, public_seed
from edge_sdk.protocol.secagg.server import Opening, share_proofs

RING = profile("P24")
Steps = npt.NDArray[np.int64]
Share = npt.NDArray[np.uint16]


class MaskedRound:
    """A committee of `members` devices and any number of other ones, by number from 0; the first sit on it."""

    def __init__(self, members: int, devices: int, values: int, n_min: int = 3, group_count: int = 1) -> None:
        self.settled = True  # False removes a defence: members take any groups
        self.plan, self.n_min, self.values = committee.plan(members), n_min, values
        self.group_count = group_count
        self.names = [f"d{i:04}" for i in range(devices)]
        self.offer_hash = hashlib.sha256(os.urandom(32)).digest()
        self._sign = {name: Ed25519PrivateKey.generate() for name in self.names}
        self._roster = {name: key.public_key().public_bytes_raw() for name, key in self._sign.items()}
        self._epoch = [X25519PrivateKey.generate() for _ in range(members)]
        self.uploads: dict[int, client.MaskedUpload] = {}
        self._proofs: dict[int, list[list[bytes]]] = {}

    def upload(self, device: int, values: npt.NDArray[np.int32], noise: npt.NDArray[np.int32] | None = None) -> None:
        """Protect as a device does."""
        keys = [key.public_key().public_bytes_raw() for key in self._epoch]
        self.uploads[device] = client.protect(
            profile=RING,
            plan=self.plan,
            offer_hash=self.offer_hash,
            device=self.names[device],
            members=[client.Member(*pair) for pair in zip(self.names, keys, strict=False)],
            values=values,
            noise=noise,
            sign=self._sign[self.names[device]].sign,
            entropy=os.urandom,
        )
        self._proofs[device] = share_proofs(self.uploads[device].sealed_shares)

    def answer(self, member: int, *groups: Sequence[int]) -> Answer:
        """What an honest member answers for these groups, having checked them (SPEC 7.5). Raises OpeningRefused."""
        shares = [
            [
                SealedShare(
                    self.names[device],
                    self.uploads[device].signature,
                    bytes(self.uploads[device].sealed_shares[member]),
                    self._proofs[device][member],
                )
                for device in group
            ]
            for group in groups
        ]
        taken = contextlib.nullcontext() if self.settled else mock.patch.object(member_rules, "check_groups")
        with taken:
            return self._answered(member, shares)

    def _answered(self, member: int, shares: list[list[SealedShare]]) -> Answer:
        return answer(
            profile=RING, plan=self.plan, offer_hash=self.offer_hash, member=self.names[member], index=member,
            secret=self._epoch[member], n_min=self.n_min, roster=self._roster, groups=shares,
            group_count=self.group_count,
        )  # fmt: skip

    def share_of(self, member: int, device: int) -> Share:
        """One device's share, opened by a member that gives its key to the attacker."""
        info = share_info(self.offer_hash, self.names[device], self.names[member], member)
        sealed = bytes(self.uploads[device].sealed_shares[member])
        return np.frombuffer(open_share(sealed, self._epoch[member], info), "<u2").astype(np.uint16)

    def opened(self, group: Sequence[int]) -> Steps:
        """The honest opening of a list: sum of values and noise, int64 [values]."""
        total = RunningSum(RING, client.masked_length(self.values))
        for device in group:
            total.add(self.uploads[device].residues)
        opening = Opening(
            profile=RING, plan=self.plan, offer_hash=self.offer_hash, device_count=len(group), length=total.length,
            survivors_hash=survivors_hash(self.offer_hash, [[self.names[device] for device in group]]),
        )  # fmt: skip
        for member in range(self.plan.answers):
            opening.receive(member, self.answer(member, group))
        return opening.open(total)

    def seen(self, device: int) -> Steps:
        """What an upload looks like without its mask's key: residues, centred modulo q, int64 [values]."""
        return _centred(decode_residues(RING, bytes(self.uploads[device].residues))[: self.values].astype(np.int64))

    def unmasked(self, device: int, secret: npt.NDArray[np.int64]) -> Steps:
        """One upload less the mask that `secret`, int64 [N], gives: values, noise and error floor if it is right."""
        bound = CLIENT_BOUND if np.abs(secret).max() <= CLIENT_BOUND else SERVER_BOUND
        if np.abs(secret).max() > bound:
            return np.zeros(self.values, np.int64)
        product = PublicTimes(RING, public_seed(self.offer_hash), secret.astype(np.int32), bound)
        mask = product.blocks(0, -(-self.values // RING.degree)).reshape(-1)[: self.values].astype(np.int64)
        return _centred(self.seen(device) - mask)


def _centred(values: Steps) -> Steps:
    half = RING.modulus // 2
    centred: Steps = (values + half) % RING.modulus - half
    return centred
