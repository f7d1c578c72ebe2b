"""The vectors, good and bad: the code gives what they say, and the generator gives the vectors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from secagg_oracle import oracle

from edge_sdk.protocol import errors
from edge_sdk.protocol.sealing import seal_share
from edge_sdk.protocol.secagg.client import MaskedUpload, verify_upload
from edge_sdk.protocol.secagg.committee import CommitteePlan, check_headroom, draw, plan
from edge_sdk.protocol.secagg.keystream import Keystream, binomial
from edge_sdk.protocol.secagg.member import SealedShare, answer
from edge_sdk.protocol.secagg.residues import RunningSum, decode_residues, encode_residues
from edge_sdk.protocol.secagg.ring import CLIENT_BOUND, PublicTimes, profile, public_blocks, public_seed
from edge_sdk.protocol.secagg.shamir import recover, share

FOLDER = Path(oracle.__file__).parent / "secagg"
Case = dict[str, Any]


def load(name: str) -> list[Case]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def cases(name: str) -> Any:
    listed = [case for case in load(name) if case["expect"] != "table"]
    return pytest.mark.parametrize("case", listed, ids=[case["name"] for case in listed])


def check(case: Case, action: Any) -> Any:
    """Run it: the result where the vector is good, else exactly the failure that the vector names."""
    if case["expect"] == "accept":
        return action()
    with pytest.raises(errors.ProtocolError) as failure:
        action()
    assert type(failure.value).__name__ == case["expect"]
    assert failure.value.reason == case["reason"]
    return None


def plan_in(case: Case) -> CommitteePlan:
    return CommitteePlan(**case["plan"])


def test_the_generator_reproduces_the_vectors_byte_for_byte():
    assert {path.name: path.read_text() for path in FOLDER.glob("*.json")} == oracle.all_vectors()


@cases("ring")
def test_ring(case):
    ring, offer = profile(case["profile"]), bytes.fromhex(case["offer_hash"])
    seed = public_seed(offer)
    secret = binomial(Keystream(bytes.fromhex(case["secret_key"])), ring.degree)
    product = PublicTimes(ring, seed, secret, CLIENT_BOUND).blocks(case["block"], 1)[0]
    assert seed.hex() == case["public_seed"]
    assert public_blocks(seed, ring, case["block"], 1)[0, :8].tolist() == case["public_first_8"]
    assert secret[:8].tolist() == case["secret_first_8"]
    assert [int(v) % ring.modulus for v in product[:8]] == case["product_first_8"]
    assert hashlib.sha256(encode_residues(ring, product)).hexdigest() == case["product_wire_sha256"]


@cases("wire")
def test_wire(case):
    ring, wire = profile(case["profile"]), bytes.fromhex(case["wire"])
    if case["expect"] == "accept":
        assert encode_residues(ring, np.array(case["residues"], np.uint32)) == wire
        assert decode_residues(ring, wire).tolist() == case["residues"]
    else:
        check(case, lambda: RunningSum(ring, case["length"]).add(wire))


@cases("committee")
def test_committee(case):
    if "seed" in case:
        names = [f"device-{i:04}" for i in range(case["eligible"])]
        assert draw(bytes.fromhex(case["seed"]), names, case["members"]) == case["drawn"]
    else:
        found = check(case, lambda: plan_in(case))
        assert found is None or found == plan(found.m)


@cases("headroom")
def test_headroom(case):
    ring = profile(case["profile"])
    check(case, lambda: check_headroom(ring, case["devices"], case["bound"], case["sigma_dp"]))


@cases("shamir")
def test_shamir(case):
    if "shares" in case:
        stream = Keystream(bytes.fromhex(case["key"]))
        assert share(np.array(case["secret"]), plan_in(case), stream).tolist() == case["shares"]
        return
    answers = {int(i): np.array(row, np.uint16) for i, row in case["answers"].items()}
    recovered = check(case, lambda: recover(plan_in(case), answers))
    if recovered is not None:
        assert recovered.secrets.tolist() == case["secret"]
        assert recovered.wrong == case["wrong"]


def edited(wire: bytes, edit: Case) -> bytes:
    if "flip" in edit:
        at = edit["flip"]
        return wire[:at] + bytes([wire[at] ^ 1]) + wire[at + 1 :]
    return wire[: len(wire) - edit.get("cut", 0)] + bytes.fromhex(edit.get("append", ""))


@cases("upload")
def test_upload(case):
    good = load("upload")[0]
    ring, committee, offer = profile(good["profile"]), plan_in(good), bytes.fromhex(good["offer_hash"])
    wire = edited(bytes.fromhex(good["upload"]), case.get("edit", {}))

    def receive() -> MaskedUpload:
        upload = MaskedUpload.decode(wire, profile=ring, plan=committee, length=good["length"])
        verify_upload(upload, offer, good["device"], bytes.fromhex(good["sign_key"]))
        return upload

    upload = check(case, receive)
    if upload is not None:
        assert upload.shares_root.hex() == good["shares_root"]
        assert hashlib.sha256(upload.residues).hexdigest() == good["residues_sha256"]
        assert upload.encode() == wire


def test_a_device_with_the_vector_s_randomness_masks_to_the_vector_s_residues():
    from edge_sdk.protocol.secagg.client import Member, protect

    good = load("upload")[0]
    entropy = iter(bytes.fromhex(key) for key in good["entropy"])
    values = np.zeros(100, np.int32)
    values[good["one_hot"]] = 1
    key = X25519PrivateKey.from_private_bytes(bytes([1] * 32)).public_key().public_bytes_raw()
    upload = protect(
        profile=profile(good["profile"]),
        plan=plan_in(good),
        offer_hash=bytes.fromhex(good["offer_hash"]),
        device=good["device"],
        members=[Member(f"m{i}", key) for i in range(5)],
        values=values,
        noise=None,
        sign=Ed25519PrivateKey.generate().sign,
        entropy=lambda size: next(entropy),
    )
    assert hashlib.sha256(upload.residues).hexdigest() == good["residues_sha256"]


def sealed_share(table: Case, name: str) -> SealedShare:
    entry = table[name]
    path = [bytes.fromhex(step) for step in entry["proof"]]
    return SealedShare(entry["device"], bytes.fromhex(entry["signature"]), bytes.fromhex(entry["sealed"]), path)


@cases("opening")
def test_opening(case):
    table = load("opening")[0]["shares"]
    groups = [[sealed_share(table, name) for name in group] for group in case["groups"]]
    found = check(
        case,
        lambda: answer(
            profile=profile(case["profile"]),
            plan=plan_in(case),
            offer_hash=bytes.fromhex(case["offer_hash"]),
            member=case["member"],
            index=case["index"],
            secret=X25519PrivateKey.from_private_bytes(bytes.fromhex(case["epoch_secret"])),
            n_min=case["n_min"],
            roster={device: bytes.fromhex(key) for device, key in case["roster"].items()},
            groups=groups,
            group_count=case["group_count"],
        ),
    )
    if found is not None:
        assert found.survivors_hash.hex() == case["survivors_hash"]
        assert [hashlib.sha256(s.tobytes()).hexdigest() for s in found.sums] == case["sums_sha256"]


def test_our_sealing_opens_only_as_the_standard_says():
    """The vectors' shares were sealed by RFC 9180 step by step; sizes agree with ours."""
    key = X25519PrivateKey.from_private_bytes(bytes([7] * 32))
    ours = seal_share(b"x" * 10, key.public_key().public_bytes_raw(), b"info")
    theirs = oracle.hpke_seal(key, key.public_key().public_bytes_raw(), b"info", b"x" * 10)
    assert len(ours) == len(theirs)
