"""Public-key sealing and chunk sealing. Primitives come from `cryptography`; no I/O, no clock.

Two HPKE suites (RFC 9180, base mode, one shot), SPEC 5:
* X25519 for the shares of a mask, where 64 of them travel in one upload and size counts;
* MLKEM768-X25519 (X-Wing) for everything sealed to the aggregator's round key.

Chunk sealing follows STREAM (Hoang, Reyhanitabar, Rogaway, Vizar 2015): one random content key per
upload, AES-256-GCM per chunk, the nonce is the chunk index and a last-chunk flag, so a chunk that is
moved, cut off or taken from another upload does not open.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from edge_sdk.protocol.errors import MalformedMessage, WrongSeal

TAG_BYTES: Final = 16
CONTENT_KEY_BYTES: Final = 32
SHARE_SEAL_OVERHEAD: Final = 32 + TAG_BYTES
ROUND_SECRET_BYTES: Final = 64 + 32
ROUND_PUBLIC_BYTES: Final = 1184 + 32

_SHARE_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_ROUND_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def seal_share(plaintext: bytes, member_key: bytes, info: bytes) -> bytes:
    """Seal to a member's X25519 epoch key (32 bytes). Adds SHARE_SEAL_OVERHEAD bytes."""
    return _SHARE_SUITE.encrypt(plaintext, x25519.X25519PublicKey.from_public_bytes(member_key), info)


def check_member_key(member_key: bytes) -> None:
    """Refuse a key that nothing seals to: X25519 points of low order. Raises MalformedMessage ("member-key")."""
    try:
        seal_share(b"", member_key, b"")
    except ValueError as error:
        raise MalformedMessage("an epoch key is not one that can be sealed to", reason="member-key") from error


def check_round_key(public: bytes) -> None:
    """Refuse a round key that nothing can be sealed to. Raises MalformedMessage ("round-key")."""
    seal_to_round(b"", public, b"")


def open_share(sealed: bytes, secret: x25519.X25519PrivateKey, info: bytes) -> bytes:
    """Open what `seal_share` made. Raises WrongSeal."""
    try:
        return _SHARE_SUITE.decrypt(sealed, secret, info)
    except (InvalidTag, ValueError) as error:
        raise WrongSeal("the share does not open under this key and round", reason="share-seal") from error


class RoundKey:
    """The aggregator's secret key of one round (X-Wing). Hides itself when printed."""

    def __init__(self, secret: bytes) -> None:
        """`secret` is ROUND_SECRET_BYTES of fresh operating-system randomness."""
        if len(secret) != ROUND_SECRET_BYTES:
            raise ValueError(f"a round secret has {ROUND_SECRET_BYTES} bytes, not {len(secret)}")
        self._secret = secret
        kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(secret[:64])
        curve = x25519.X25519PrivateKey.from_private_bytes(secret[64:])
        self._key = MLKEM768X25519PrivateKey(kem, curve)
        self._public = kem.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return "RoundKey(...)"

    def secret_bytes(self) -> bytes:
        return self._secret

    def public_bytes(self) -> bytes:
        """ML-KEM-768 encapsulation key (1184 bytes), then the X25519 key (32 bytes)."""
        return self._public

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """Open what `seal_to_round` made. Raises WrongSeal."""
        try:
            return _ROUND_SUITE.decrypt(sealed, self._key, info)
        except (InvalidTag, ValueError) as error:
            raise WrongSeal("the message does not open under this round's key", reason="round-seal") from error


def seal_to_round(plaintext: bytes, public: bytes, info: bytes) -> bytes:
    """Seal to a round key's public bytes. Raises MalformedMessage ("round-key") for what is no key."""
    if len(public) != ROUND_PUBLIC_BYTES:
        raise MalformedMessage("the round key has the wrong length", reason="round-key")
    try:
        key = MLKEM768X25519PublicKey(
            mlkem.MLKEM768PublicKey.from_public_bytes(public[:1184]),
            x25519.X25519PublicKey.from_public_bytes(public[1184:]),
        )
        return _ROUND_SUITE.encrypt(plaintext, key, info)
    except ValueError as error:
        raise MalformedMessage("the round key is not one that can be sealed to", reason="round-key") from error


class ChunkSealer:
    """Seals and opens the chunks of one upload under its content key (32 bytes)."""

    def __init__(self, content_key: bytes, context: bytes) -> None:
        """`context` is bound to every chunk as associated data (SPEC 6.3)."""
        self._aead = AESGCM(content_key)
        self._context = context

    def __repr__(self) -> str:
        return "ChunkSealer(...)"

    @staticmethod
    def _nonce(index: int, last: bool) -> bytes:
        # The nonce is fixed by the index because a content key serves one upload only, ever.
        return bytes(7) + index.to_bytes(4, "big") + (b"\x01" if last else b"\x00")

    def seal(self, index: int, last: bool, plaintext: bytes | memoryview) -> bytes:
        return self._aead.encrypt(self._nonce(index, last), bytes(plaintext), self._context)

    def open(self, index: int, last: bool, sealed: bytes | memoryview) -> bytes:
        """Raises WrongSeal."""
        try:
            return self._aead.decrypt(self._nonce(index, last), bytes(sealed), self._context)
        except (InvalidTag, ValueError) as error:
            raise WrongSeal(f"chunk {index} does not open under this upload's key", reason="chunk-seal") from error
