"""The roster: who is a device, stated and signed by the authority (SPEC 7.3). Pure: time and beacon are arguments.

Refuses a statement that the authority did not sign, that is stale or older than one already seen, any list of
entries other than the very one that was signed, and an epoch key to which nothing can be sealed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from msgspec import Meta, Struct

from edge_sdk.protocol import codec, merkle
from edge_sdk.protocol.errors import LocalProtocolError, MalformedMessage, OfferRefused
from edge_sdk.protocol.messages import Digest, Name, Round, Second

BEACON_BYTES: Final = 32
_SIGNED: Final = "chorale/roster/1"
_TRIAL: Final = X25519PrivateKey.from_private_bytes(bytes(range(32)))  # protects nothing: whether X25519 gives a secret


class RosterEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """One device: Ed25519 signing key and X25519 epoch key (32 bytes each); a steward is an always-on host."""

    device: Name
    sign_key: Digest
    epoch_key: Digest
    steward: bool


class Roster(Struct, frozen=True):
    """A verified roster. Entries are sorted by device; `statement_hash` names it in offers."""

    epoch: int
    entries: tuple[RosterEntry, ...]
    beacon: bytes
    statement_hash: bytes
    seed: bytes
    issued_at: int
    expires_at: int


class Statement(Struct, frozen=True, forbid_unknown_fields=True):
    """What the authority signs. The beacon is drawn after the entries are frozen, so nobody picks the committee."""

    fleet: Name
    epoch: Round
    size: Annotated[int, Meta(ge=1, le=2**32)]
    root: Digest
    beacon: Digest
    issued_at: Second
    expires_at: Second


class SignedRoster(Struct, frozen=True, forbid_unknown_fields=True):
    """The blob `roster/<epoch>`: the statement's bytes as signed, the signature, the entries."""

    statement: bytes
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
    entries: tuple[RosterEntry, ...]

    def to_blob(self) -> bytes:
        """Canonical MessagePack."""
        return codec.pack(self)


def from_blob(blob: bytes) -> SignedRoster:
    """Parse, not verify: `verify` comes next. Raises MalformedMessage."""
    return codec.unpack(blob, SignedRoster)


def leaf(entry: RosterEntry) -> bytes:
    """The entry's bytes in the Merkle tree."""
    return codec.prefixed(entry.device, entry.sign_key, entry.epoch_key, b"\x01" if entry.steward else b"\x00")


def check_epoch_key(key: bytes) -> None:
    """Refuse what X25519 refuses: other than 32 bytes, or a point of low order (RFC 7748, 6.1).

    One such key in a committee would keep every device from sealing its shares. Raises MalformedMessage "key".
    """
    try:
        _TRIAL.exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError as error:
        raise MalformedMessage("nothing can be sealed to this epoch key: make another", reason="key") from error


def freeze(entries: Iterable[RosterEntry]) -> tuple[RosterEntry, ...]:
    """Entries in the order of the roster.

    Raises LocalProtocolError: "empty-roster", "duplicate", or "key" for an unusable epoch key.
    """
    frozen = tuple(sorted(entries, key=lambda entry: entry.device))
    if not frozen:
        raise LocalProtocolError("a roster needs at least one device: enrol one", reason="empty-roster")
    if len({entry.device for entry in frozen}) != len(frozen):
        raise LocalProtocolError("a device stands twice in the roster", reason="duplicate")
    for entry in frozen:
        try:
            check_epoch_key(entry.epoch_key)
        except MalformedMessage as error:
            raise LocalProtocolError(f"{entry.device}: {error}", reason=error.reason) from error
    return frozen


def sign(
    frozen: tuple[RosterEntry, ...],
    key: Ed25519PrivateKey,
    *,
    fleet: str,
    epoch: int,
    beacon: bytes,
    issued_at: int,
    expires_at: int,
) -> SignedRoster:
    """State and sign. `frozen` comes from `freeze`, and `beacon`, 32 fresh random bytes, is drawn after it."""
    if len(beacon) != BEACON_BYTES or epoch < 1 or not issued_at < expires_at:
        raise LocalProtocolError("a roster needs a 32-byte beacon, an epoch from 1 and a lifetime", reason="roster")
    root = merkle.root([leaf(entry) for entry in frozen])
    statement = codec.pack(
        Statement(
            fleet=fleet,
            epoch=epoch,
            size=len(frozen),
            root=root,
            beacon=beacon,
            issued_at=issued_at,
            expires_at=expires_at,
        )
    )
    return SignedRoster(statement, key.sign(codec.prefixed(_SIGNED, statement)), frozen)


def committee_seed(statement: bytes) -> bytes:
    """The seed of the committee's draw: SHA-256("committee" || statement)."""
    return hashlib.sha256(b"committee" + statement).digest()


def verify(
    statement: bytes,
    signature: bytes,
    authority_key: bytes,
    *,
    fleet: str,
    entries: Iterable[RosterEntry],
    now: int,
    min_epoch: int,
) -> Roster:
    """The roster that these bytes state. `min_epoch`: the highest epoch seen, which is still accepted.

    Raises WrongSignature, MalformedMessage ("body", "not-canonical", "entries", "key") or OfferRefused ("roster").
    """
    codec.verify(authority_key, signature, codec.prefixed(_SIGNED, statement))
    stated = codec.unpack(statement, Statement)
    if stated.fleet != fleet:
        raise OfferRefused(f"the roster is of fleet {stated.fleet}, not {fleet}", reason="roster")
    if stated.epoch < min_epoch:
        raise OfferRefused(f"the roster is of epoch {stated.epoch}, older than {min_epoch} seen", reason="roster")
    if now >= stated.expires_at:
        raise OfferRefused(f"the roster of epoch {stated.epoch} has expired", reason="roster")
    listed = tuple(entries)
    names = [entry.device for entry in listed]
    if len(listed) != stated.size or names != sorted(set(names)):
        raise MalformedMessage("the roster's entries are not sorted, repeat or are not all there", reason="entries")
    if merkle.root([leaf(entry) for entry in listed]) != stated.root:
        raise MalformedMessage("the roster's entries are not the ones that were signed", reason="entries")
    for entry in listed:
        check_epoch_key(entry.epoch_key)
    return Roster(
        epoch=stated.epoch,
        entries=listed,
        beacon=stated.beacon,
        statement_hash=hashlib.sha256(statement).digest(),
        seed=committee_seed(statement),
        issued_at=stated.issued_at,
        expires_at=stated.expires_at,
    )
