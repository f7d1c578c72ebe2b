"""The aggregator's half of an opening: collect answers, recover the sum of the secrets, unmask the sum. SPEC 7.5.

Does no I/O, reads no clock, draws no randomness. Refuses a sum whose canaries are not small, and answers that
contradict each other beyond what the spare ones can settle.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from edge_sdk.protocol.errors import LocalProtocolError, MalformedMessage, UnexpectedMessage, WrongSum
from edge_sdk.protocol.secagg.client import CANARIES
from edge_sdk.protocol.secagg.committee import FLOOR_SIGMA, TAIL, CommitteePlan
from edge_sdk.protocol.secagg.member import Answer
from edge_sdk.protocol.secagg.residues import RunningSum
from edge_sdk.protocol.secagg.ring import Profile, PublicTimes, public_seed
from edge_sdk.protocol.secagg.shamir import PRIME, Share, recover

# Below about ten devices the binomial floor is not yet normal; this keeps the bound honest there.
_CANARY_SLACK: Final = 16


class Opening:
    """The opening of one group of one round. Order of answers does not matter; duplicates change nothing."""

    def __init__(
        self,
        *,
        profile: Profile,
        plan: CommitteePlan,
        offer_hash: bytes,
        survivors_hash: bytes,
        device_count: int,
        length: int,
        group: int = 0,
    ) -> None:
        """`device_count`: devices in it; `length`: residues, canaries included; `group`: its place in the answers."""
        if length <= CANARIES or device_count < 1:
            raise LocalProtocolError("an opening needs values and devices", reason="opening-shape")
        self._profile, self._plan, self._offer_hash = profile, plan, offer_hash
        self._survivors_hash, self._device_count, self._length = survivors_hash, device_count, length
        self._group = group
        self._answers: dict[int, Share] = {}
        self.refused: Counter[str] = Counter()
        self.wrong_members: list[int] = []

    def __repr__(self) -> str:
        return f"Opening({len(self._answers)} of {self._plan.answers} answers)"

    @property
    def answered(self) -> list[int]:
        """Members (from 0) whose answers are in."""
        return sorted(self._answers)

    @property
    def ready(self) -> bool:
        """Enough answers for the survivors of this round are in."""
        return len(self._answers) >= self._plan.answers

    def receive(self, member_index: int, answer: Answer) -> None:
        """Take the answer of a member (from 0) whose signature the caller checked.

        An identical repeat is ignored. Raises MalformedMessage or UnexpectedMessage, counted in `refused` by reason:
        "unknown-member", "other-survivors", "wrong-share", "answered-twice".
        """
        try:
            share = self._checked(member_index, answer)
        except (MalformedMessage, UnexpectedMessage) as error:
            self.refused[error.reason] += 1
            raise
        self._answers.setdefault(member_index, share)

    def _checked(self, member_index: int, answer: Answer) -> Share:
        if not 0 <= member_index < self._plan.m:
            raise MalformedMessage(f"there is no member {member_index}", reason="unknown-member")
        if answer.survivors_hash != self._survivors_hash:
            raise UnexpectedMessage("the answer is for another list of devices", reason="other-survivors")
        if not self._group < len(answer.sums):
            raise MalformedMessage("the answer has no sum for this group", reason="wrong-share")
        share = np.asarray(answer.sums[self._group])
        if share.dtype != np.uint16 or share.shape != (self._profile.degree // self._plan.packing,):
            raise MalformedMessage("the answer's sum has the wrong length", reason="wrong-share")
        if int(share.max()) >= PRIME:
            raise MalformedMessage("the answer's sum leaves the field", reason="wrong-share")
        known = self._answers.get(member_index)
        if known is not None and not np.array_equal(known, share):
            raise UnexpectedMessage(f"member {member_index} answered twice, differently", reason="answered-twice")
        return share

    def open(self, running_sum: RunningSum) -> npt.NDArray[np.int64]:
        """Sum of the devices' values and noise as int64[length - CANARIES], in steps.

        Fills `wrong_members` with those whose answers were found wrong. Raises WrongSum: "too-few-answers",
        "wrong-share", "canaries"; LocalProtocolError when the running sum is not of this group's devices.
        """
        if (running_sum.profile, running_sum.length) != (self._profile, self._length):
            raise LocalProtocolError("the running sum is of another profile or length", reason="sum-mismatch")
        if running_sum.count != self._device_count:
            raise LocalProtocolError(
                f"the running sum holds {running_sum.count} uploads, the opened list {self._device_count} devices",
                reason="sum-mismatch",
            )
        recovered = recover(self._plan, self._answers)
        self.wrong_members = recovered.wrong
        opened = self._unmask(running_sum, recovered.secrets)
        self._check_canaries(opened[-CANARIES:])
        return opened[:-CANARIES]

    def _unmask(self, running_sum: RunningSum, secret: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """residues - A * secret, centred in [-q/2, q/2)."""
        ring = self._profile
        # The sum of secrets is the aggregator's to know, so the product may use its true size: often one limb, not two.
        bound = max(1, int(np.abs(secret).max()))
        product = PublicTimes(ring, public_seed(self._offer_hash), secret, bound)
        opened = np.empty(self._length, np.int64)
        residues = running_sum.residues()
        slab, shift = product.group * ring.degree, np.uint32(32 - ring.modulus_bits)
        for start in range(0, self._length, slab):
            count = min(slab, self._length - start)
            mask = product.blocks(start // ring.degree, -(-count // ring.degree)).reshape(-1)[:count]
            difference = (residues[start : start + count] - mask) << shift
            opened[start : start + count] = difference.view(np.int32) >> shift.astype(np.int32)
        return opened

    def _check_canaries(self, canaries: npt.NDArray[np.int64]) -> None:
        limit = TAIL * FLOOR_SIGMA * math.sqrt(self._device_count) + _CANARY_SLACK
        if int(np.abs(canaries).max()) > limit:
            raise WrongSum(
                "the canaries are not small: an upload or the recovered mask is wrong; drop this sum",
                reason="canaries",
            )


def share_proofs(sealed: Sequence[bytes | memoryview]) -> list[list[bytes]]:
    """The inclusion proofs of all shares of one upload, as `merkle.proof` gives them, from a single tree."""
    level = [hashlib.sha256(b"\x00" + share).digest() for share in sealed]
    proofs: list[list[bytes]] = [[] for _ in sealed]
    span = 1
    while len(level) > 1:
        for index, path in enumerate(proofs):
            beside = (index // span) ^ 1
            if beside < len(level):
                path.append(level[beside])
        paired = [
            hashlib.sha256(b"\x01" + left + right).digest()
            for left, right in zip(level[::2], level[1::2], strict=False)
        ]
        level, span = paired + level[2 * len(paired) :], 2 * span
    return proofs
