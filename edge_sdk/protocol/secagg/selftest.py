"""Known-answer test at start: does this machine's float arithmetic give the products the protocol stands on? SPEC 10.

Refuses to go on when it does not. The expected digests come from Python integers (tests/vectors/generate_secagg.py).
Takes a few milliseconds; pure.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np

from edge_sdk.protocol.errors import SelfTestFailed
from edge_sdk.protocol.secagg.committee import plan
from edge_sdk.protocol.secagg.keystream import Keystream, binomial
from edge_sdk.protocol.secagg.residues import encode_residues
from edge_sdk.protocol.secagg.ring import CLIENT_BOUND, SERVER_BOUND, Profile, PublicTimes, profile
from edge_sdk.protocol.secagg.shamir import recover, share

SEED: Final = bytes(range(32))
# SHA-256 of the wire form of block 1 times a secret, for a device's secret and for the largest sum of secrets.
EXPECTED: Final = {
    "P16": (
        "ac4d1518371e53a45e89a4e7cb37017a6cd0b7b246ef4e6dcdf182a6498331bd",
        "e3f837c48808064df068b5e6fedbd5397a921fa43bb05e9a26f2b96a86c41b51",
    ),
    "P24": (
        "891700cd6830a2b1cf47bc67253972d82302518a39614e5cda151d64e1f5e838",
        "9f06fbfeeefa3ca11bc9c98949aea17e06a056f67c4663003cd2923028205169",
    ),
    "P32": (
        "ddf49a52b422041b1b43c63bf6550031078595fad935edf7ddf18fe55cf2bac0",
        "4c53afc0fb8dc76c7a8f2bb054ed89af6bae3b2eb4bb564b2d36a89c1a2eb357",
    ),
}


def small_secret(ring: Profile) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """The device's secret of the test: the binomial draws of the keystream of SEED."""
    return binomial(Keystream(SEED), ring.degree).astype(np.int32)


def large_secret(ring: Profile) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """The extreme sum of the test: SERVER_BOUND with the signs of the small secret."""
    return np.where(small_secret(ring) < 0, -SERVER_BOUND, SERVER_BOUND).astype(np.int32)


def known_answer_test() -> None:
    """Check ring products of all profiles and one sharing. Raises SelfTestFailed."""
    for name, (small, large) in EXPECTED.items():
        ring = profile(name)
        for secret, bound, digest in (
            (small_secret(ring), CLIENT_BOUND, small),
            (large_secret(ring), SERVER_BOUND, large),
        ):
            block = PublicTimes(ring, SEED, secret, bound).blocks(1, 1)[0]
            if hashlib.sha256(encode_residues(ring, block)).hexdigest() != digest:
                raise SelfTestFailed(
                    f"the {name} product is not exact on this machine; do not take part from it", reason="ring-product"
                )
    _check_sharing()


def _check_sharing() -> None:
    secret, committee = small_secret(profile("P24")), plan(10)
    shares = share(secret, committee, Keystream(SEED, 1 << 20))
    recovered = recover(committee, {index: shares[index] for index in range(1, 10)})
    if not np.array_equal(recovered.secrets, secret):
        raise SelfTestFailed("sharing is not exact on this machine; do not take part from it", reason="sharing")
