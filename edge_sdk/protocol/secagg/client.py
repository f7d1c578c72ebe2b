"""A device's only message of a round: masked residues, sealed shares, one signature. SPEC 6.1, 7.4.

Does no I/O and reads no clock; entropy and the signing key come in as functions. Refuses vectors that do not fit the
profile's arithmetic, and uploads of any other length or plan than the offer's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_sdk.protocol import merkle
from edge_sdk.protocol.errors import LocalProtocolError, MalformedMessage, WrongSignature
from edge_sdk.protocol.sealing import SHARE_SEAL_OVERHEAD, seal_share
from edge_sdk.protocol.secagg.committee import CommitteePlan
from edge_sdk.protocol.secagg.keystream import Keystream, binomial
from edge_sdk.protocol.secagg.residues import residue_bytes, write_residues
from edge_sdk.protocol.secagg.ring import CLIENT_BOUND, Profile, PublicTimes, public_seed
from edge_sdk.protocol.secagg.shamir import share

CANARIES: Final = 64
SIGNATURE_BYTES: Final = 64
_MAGIC: Final = b"CHU1"
# Magic, profile's modulus bits, members, bytes of a sealed share, residues: 16 bytes, so that the residues are aligned.
_HEADER: Final = struct.Struct("<4sHHII")


@dataclass(frozen=True)
class Member:
    """A committee member as the roster states it: name and X25519 epoch key (32 bytes)."""

    name: str
    key: bytes


@dataclass(frozen=True)
class MaskedUpload:
    """An upload before chunking. `sealed_shares` and `residues` of a decoded one are views of the received bytes."""

    profile: Profile
    signature: bytes
    shares_root: bytes
    sealed_shares: Sequence[bytes | memoryview]
    residues: bytes | bytearray | memoryview

    def __repr__(self) -> str:
        return f"MaskedUpload({self.profile.name}, {len(self.sealed_shares)} shares, ...)"

    def encode(self) -> bytes:
        """Header, signature, shares in the committee's order, residues."""
        length = len(self.residues) // self.profile.coefficient_bytes
        share_bytes = len(self.sealed_shares[0])
        header = _HEADER.pack(_MAGIC, self.profile.modulus_bits, len(self.sealed_shares), share_bytes, length)
        return b"".join([header, self.signature, *self.sealed_shares, self.residues])

    @classmethod
    def decode(
        cls, data: bytes | bytearray | memoryview, *, profile: Profile, plan: CommitteePlan, length: int
    ) -> MaskedUpload:
        """Read what `encode` wrote; `length` = residues of the offer's task, canaries included. Copies no residue.

        Raises MalformedMessage when anything differs from the offer. Checks no signature: see `verify_upload`.
        """
        view = memoryview(data).toreadonly()
        share_bytes = sealed_share_bytes(profile, plan)
        if len(view) != upload_bytes(profile, plan, length):
            raise MalformedMessage("the upload has the wrong length", reason="upload-length")
        expected = (_MAGIC, profile.modulus_bits, plan.m, share_bytes, length)
        if _HEADER.unpack_from(view) != expected:
            raise MalformedMessage("the upload's header is not the offer's", reason="upload-header")
        shares_at = _HEADER.size + SIGNATURE_BYTES
        residues_at = shares_at + plan.m * share_bytes
        shares = [view[at : at + share_bytes] for at in range(shares_at, residues_at, share_bytes)]
        signature = bytes(view[_HEADER.size : shares_at])
        return cls(profile, signature, _shares_root(shares), shares, view[residues_at:])


def _shares_root(shares: Sequence[bytes | memoryview]) -> bytes:
    return merkle.root([bytes(share) for share in shares])


def masked_length(values: int) -> int:
    """Residues of a vector of `values` values: the canaries follow them."""
    return values + CANARIES


def sealed_share_bytes(profile: Profile, plan: CommitteePlan) -> int:
    """Bytes of one sealed share."""
    return 2 * (profile.degree // plan.packing) + SHARE_SEAL_OVERHEAD


def upload_bytes(profile: Profile, plan: CommitteePlan, length: int) -> int:
    """Bytes of an encoded upload of `length` residues."""
    shares = plan.m * sealed_share_bytes(profile, plan)
    return _HEADER.size + SIGNATURE_BYTES + shares + residue_bytes(profile, length)


def prefixed(name: str) -> bytes:
    """UTF-8 behind its length as uint16, so that names laid end to end cannot be read in two ways."""
    encoded = name.encode()
    return struct.pack("<H", len(encoded)) + encoded


def share_info(offer_hash: bytes, device: str, member: str, index: int) -> bytes:
    """What a sealed share is bound to. `index` counts members from 0."""
    return b"chorale/share/1" + offer_hash + prefixed(device) + prefixed(member) + struct.pack("<H", index)


def upload_statement(offer_hash: bytes, device: str, shares_root: bytes) -> bytes:
    """What the device signs: a member can then check its share, and nobody can swap in shares of their own making.

    The residues are bound by the sealing of the chunks; hashing them would cost ten plain sums.
    """
    return b"chorale/upload/1" + offer_hash + prefixed(device) + shares_root


def verify_statement(key: bytes, signature: bytes, statement: bytes) -> None:
    """Check an Ed25519 signature under a 32-byte key. Raises WrongSignature."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, statement)
    except (InvalidSignature, ValueError) as error:
        raise WrongSignature(
            "the device's signature over its shares does not hold", reason="upload-signature"
        ) from error


def verify_upload(upload: MaskedUpload, offer_hash: bytes, device: str, key: bytes) -> None:
    """Check the device's signature (32-byte Ed25519 key) on a decoded upload. Raises WrongSignature."""
    verify_statement(key, upload.signature, upload_statement(offer_hash, device, upload.shares_root))


def _seal(row: bytes, member: Member, info: bytes) -> bytes:
    try:
        return seal_share(row, member.key, info)
    except ValueError as error:
        raise MalformedMessage(
            f"the roster's key of member {member.name} is no X25519 key; revoke that device", reason="member-key"
        ) from error


def protect(
    *,
    profile: Profile,
    plan: CommitteePlan,
    offer_hash: bytes,
    device: str,
    members: Sequence[Member],
    values: npt.NDArray[np.int32],
    noise: npt.NDArray[np.int32] | None,
    sign: Callable[[bytes], bytes],
    entropy: Callable[[int], bytes],
) -> MaskedUpload:
    """Mask a vector and seal the shares of its mask to the committee.

    `values`, `noise`: int32[d] in steps; noise is the device's privacy noise, on top of the floor that every residue
    carries. `members` in committee order, plan.m of them. `entropy(n)` = n bytes of operating-system randomness.
    Raises LocalProtocolError for wrong shapes, MalformedMessage for a member's key that is none.

    The caller checked the sizing (`committee.check_headroom`) and protects once per round: two uploads of one device
    under one offer hash must never exist.
    """
    if values.ndim != 1 or (noise is not None and noise.shape != values.shape):
        raise LocalProtocolError("values and noise are vectors of one length", reason="vector-shape")
    if len(members) != plan.m:
        raise LocalProtocolError(f"the plan wants {plan.m} members, not {len(members)}", reason="members")
    secret = binomial(Keystream(entropy(32)), profile.degree)
    shares = share(secret, plan, Keystream(entropy(32)))
    sealed = [
        _seal(row.tobytes(), member, share_info(offer_hash, device, member.name, index))
        for index, (member, row) in enumerate(zip(members, shares, strict=True))
    ]
    root = merkle.root(sealed)
    signature = sign(upload_statement(offer_hash, device, root))
    product = PublicTimes(profile, public_seed(offer_hash), secret, CLIENT_BOUND)
    residues = _mask(profile, product, values, noise, Keystream(entropy(32)))
    return MaskedUpload(profile, signature, root, sealed, residues)


def _mask(
    profile: Profile,
    product: PublicTimes,
    values: npt.NDArray[np.int32],
    noise: npt.NDArray[np.int32] | None,
    floor: Keystream,
) -> bytes:
    """Wire form of product + floor + noise + values, the canaries zero before masking."""
    length = masked_length(len(values))
    out = bytearray(residue_bytes(profile, length))
    slab = product.group * profile.degree
    for start in range(0, length, slab):
        count = min(slab, length - start)
        masked = product.blocks(start // profile.degree, -(-count // profile.degree)).reshape(-1)[:count]
        masked = masked + binomial(floor, count).astype(np.uint32)
        inputs = values[start : start + count]
        masked[: len(inputs)] += inputs.view(np.uint32)
        if noise is not None:
            masked[: len(inputs)] += noise[start : start + count].view(np.uint32)
        write_residues(profile, masked, out, length, start)
    return bytes(out)
