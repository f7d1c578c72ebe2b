"""A committee member's one answer of a round. SPEC 7.5. Does no I/O, reads no clock, draws no randomness.

Refuses, each with its own reason, any list of devices from which one device could be learnt.

*Contract of the caller.* A member answers once per (task, round): the caller stores (task, round, survivors hash,
answer) durably before the answer leaves the device, sends the stored answer again on the same request, and refuses
any other. Two answers for two lists could unmask the device in which they differ; this module keeps no state and
cannot know.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_sdk.protocol import merkle
from edge_sdk.protocol.errors import OpeningRefused, WrongSeal, WrongSignature
from edge_sdk.protocol.sealing import open_share
from edge_sdk.protocol.secagg.client import prefixed, share_info, upload_statement, verify_statement
from edge_sdk.protocol.secagg.committee import CommitteePlan
from edge_sdk.protocol.secagg.groups import check_groups, groups_of
from edge_sdk.protocol.secagg.ring import Profile
from edge_sdk.protocol.secagg.shamir import PRIME, Share


@dataclass(frozen=True)
class SealedShare:
    """One device's share for this member, with what proves that the device made it."""

    device: str
    signature: bytes
    sealed: bytes
    proof: Sequence[bytes]


@dataclass(frozen=True)
class Answer:
    """Per group the sum of shares modulo p, uint16[N/rho], for the list whose hash it names. Hides the sums.

    uint16[0] for a group in which a device's share cannot be read: that device spoils no other group.
    """

    survivors_hash: bytes
    sums: Sequence[Share]

    def __repr__(self) -> str:
        return f"Answer({self.survivors_hash.hex()[:12]}, ...)"


class _UnreadShare(Exception):  # never leaves this module
    """A share that its device signed and this member cannot read: the device's fault, and its group's loss."""

    def __init__(self, refusal: OpeningRefused) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


@dataclass(frozen=True)
class _Request:
    """What every share of a request is checked against."""

    profile: Profile
    plan: CommitteePlan
    offer_hash: bytes
    member: str
    index: int
    secret: X25519PrivateKey
    roster: Mapping[str, bytes]


def survivors_hash(offer_hash: bytes, groups: Sequence[Sequence[str]]) -> bytes:
    """SHA-256 over the groups in order, each as its count and its device names sorted."""
    digest = hashlib.sha256(b"chorale/survivors/1" + offer_hash + struct.pack("<I", len(groups)))
    for group in groups:
        digest.update(struct.pack("<I", len(group)))
        for device in sorted(group):
            digest.update(prefixed(device))
    return digest.digest()


def answer(
    *,
    profile: Profile,
    plan: CommitteePlan,
    offer_hash: bytes,
    member: str,
    index: int,
    secret: X25519PrivateKey,
    n_min: int,
    roster: Mapping[str, bytes],
    groups: Sequence[Sequence[SealedShare]],
    group_count: int,
) -> Answer:
    """Check disjoint groups of shares sealed to `member` (at `index`, from 0) and add up each group.

    `roster`: device name -> Ed25519 key (32 bytes), the whole roster of the offer; `group_count`: the offer's `groups`.
    Raises OpeningRefused with reason "empty", "below-minimum", "repeated-device", "unknown-device", "wrong-group",
    "wrong-proof", "wrong-signature"; and "wrong-seal" or "wrong-share" where every group holds a share that cannot be
    read.
    """
    names = [[share.device for share in group] for group in groups]
    _check_groups(names, n_min, roster)
    check_groups(names, groups_of(offer_hash, roster, group_count))
    request = _Request(profile, plan, offer_hash, member, index, secret, roster)
    sums, unread = [], None
    for group in groups:
        try:
            sums.append(_sum(request, group))
        except _UnreadShare as error:
            sums.append(np.empty(0, np.uint16))
            unread = error.refusal
    if unread is not None and not any(map(len, sums)):
        raise unread
    return Answer(survivors_hash(offer_hash, names), sums)


def _check_groups(groups: Sequence[Sequence[str]], n_min: int, roster: Mapping[str, bytes]) -> None:
    if not groups:
        raise OpeningRefused("the request lists no group", reason="empty")
    if any(not group for group in groups):
        raise OpeningRefused("the request lists an empty group", reason="empty")
    # One device alone is never a sum, whatever the offer says.
    if min(map(len, groups)) < max(2, n_min):
        raise OpeningRefused(f"a group is below the minimum of {max(2, n_min)} devices", reason="below-minimum")
    devices = [device for group in groups for device in group]
    if len(set(devices)) != len(devices):
        raise OpeningRefused("a device is listed twice", reason="repeated-device")
    if unknown := sorted(set(devices) - set(roster)):
        raise OpeningRefused(f"device {unknown[0]} is not on the roster", reason="unknown-device")


def _sum(request: _Request, group: Sequence[SealedShare]) -> Share:
    total = np.zeros(request.profile.degree // request.plan.packing, np.uint64)
    for share in group:
        total += _open(request, share)
    summed: Share = (total % PRIME).astype(np.uint16)
    return summed


def _open(request: _Request, share: SealedShare) -> npt.NDArray[np.uint16]:
    root = merkle.root_from_proof(share.sealed, request.index, request.plan.m, share.proof)
    if root is None:
        raise OpeningRefused(f"the proof for {share.device}'s share has the wrong length", reason="wrong-proof")
    info = share_info(request.offer_hash, share.device, request.member, request.index)
    try:
        statement = upload_statement(request.offer_hash, share.device, root)
        verify_statement(request.roster[share.device], share.signature, statement)
        opened = open_share(share.sealed, request.secret, info)
    except WrongSignature as error:
        raise OpeningRefused(
            f"{share.device} did not sign this share for this round", reason="wrong-signature"
        ) from error
    except WrongSeal as error:
        what = f"{share.device}'s share does not open for this round"
        raise _UnreadShare(OpeningRefused(what, reason="wrong-seal")) from error
    return _elements(request, share.device, opened)


def _elements(request: _Request, device: str, opened: bytes) -> npt.NDArray[np.uint16]:
    if len(opened) != 2 * (request.profile.degree // request.plan.packing):
        raise _UnreadShare(OpeningRefused(f"{device}'s share has the wrong length", reason="wrong-share"))
    elements = np.frombuffer(opened, "<u2")
    if int(elements.max()) >= PRIME:
        raise _UnreadShare(OpeningRefused(f"{device}'s share leaves the field", reason="wrong-share"))
    return elements
