"""Sealing: what was sealed opens for its receiver and context and for nobody else, and secrets do not print."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.protocol import sealing
from edge_sdk.protocol.errors import MalformedMessage, WrongSeal
from edge_sdk.protocol.sealing import ChunkSealer, RoundKey, open_share, seal_share, seal_to_round

ROUND = RoundKey(bytes(range(sealing.ROUND_SECRET_BYTES)))
MEMBER = X25519PrivateKey.from_private_bytes(bytes([9] * 32))
PUBLIC = MEMBER.public_key().public_bytes_raw()
FEW = settings(max_examples=40, derandomize=True, deadline=None, database=None)


@given(st.binary(max_size=200), st.binary(max_size=60))
@FEW
def test_what_is_sealed_opens(plaintext, info):
    share = seal_share(plaintext, PUBLIC, info)
    assert len(share) == len(plaintext) + sealing.SHARE_SEAL_OVERHEAD
    assert open_share(share, MEMBER, info) == plaintext
    assert ROUND.open(seal_to_round(plaintext, ROUND.public_bytes(), info), info) == plaintext


@given(st.data())
@FEW
def test_a_changed_seal_does_not_open(data):
    for sealed, opened, reason in (
        (seal_share(b"secret", PUBLIC, b"info"), lambda s: open_share(s, MEMBER, b"info"), "share-seal"),
        (seal_to_round(b"secret", ROUND.public_bytes(), b"info"), lambda s: ROUND.open(s, b"info"), "round-seal"),
    ):
        at, bit = data.draw(st.integers(0, len(sealed) - 1)), data.draw(st.integers(0, 7))
        if reason == "share-seal" and (at, bit) == (31, 7):
            continue  # X25519 ignores the top bit of a public key, RFC 7748 section 5; HPKE binds it all the same
        changed = sealed[:at] + bytes([sealed[at] ^ 1 << bit]) + sealed[at + 1 :]
        with pytest.raises(WrongSeal) as refusal:
            opened(changed)
        assert refusal.value.reason == reason


def test_even_the_bit_that_the_curve_ignores_is_bound():
    sealed = bytearray(seal_share(b"secret", PUBLIC, b"info"))
    sealed[31] ^= 0x80
    with pytest.raises(WrongSeal):
        open_share(bytes(sealed), MEMBER, b"info")


@given(st.binary(max_size=1300))
@FEW
def test_arbitrary_bytes_do_not_open(data):
    with pytest.raises(WrongSeal):
        open_share(data, MEMBER, b"")
    with pytest.raises(WrongSeal):
        ROUND.open(data, b"")
    with pytest.raises(WrongSeal):
        ChunkSealer(bytes(32), b"").open(0, True, data)


def test_another_context_or_key_does_not_open():
    sealed = seal_to_round(b"secret", ROUND.public_bytes(), b"info")
    with pytest.raises(WrongSeal):
        ROUND.open(sealed, b"inf")
    with pytest.raises(WrongSeal):
        RoundKey(bytes(sealing.ROUND_SECRET_BYTES)).open(sealed, b"info")


@pytest.mark.parametrize(
    "key", [b"", bytes(1215), bytes(1217), b"\xff" * 1216], ids=["empty", "short", "long", "no key"]
)
def test_a_round_key_that_is_none_is_refused(key):
    with pytest.raises(MalformedMessage) as refusal:
        seal_to_round(b"secret", key, b"info")
    assert refusal.value.reason == "round-key"


def test_a_round_key_is_the_same_after_a_restart():
    again = RoundKey(ROUND.secret_bytes())
    assert again.public_bytes() == ROUND.public_bytes()
    assert len(again.public_bytes()) == sealing.ROUND_PUBLIC_BYTES
    assert again.open(seal_to_round(b"secret", ROUND.public_bytes(), b"info"), b"info") == b"secret"
    with pytest.raises(ValueError, match="96 bytes"):
        RoundKey(bytes(95))


def test_secrets_do_not_print():
    for secret in (ROUND, ChunkSealer(bytes(32), b"context")):
        assert repr(secret).endswith("(...)")


def test_no_two_seals_of_one_plaintext_are_alike():
    assert seal_share(b"x", PUBLIC, b"") != seal_share(b"x", PUBLIC, b"")
    assert seal_to_round(b"x", ROUND.public_bytes(), b"") != seal_to_round(b"x", ROUND.public_bytes(), b"")
