"""What committee members are asked: the canonical bytes, with proofs that hold, for every member."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from aggregator.opening_requests import SIGNATURE_BYTES, requests_for
from aggregator.store.rows import UploadRow
from edge_sdk.protocol import codec, merkle
from edge_sdk.protocol.messages import OpeningRequest, SealedShareEntry


def a_round(devices: int, members: int, share_bytes: int = 100):
    rng = np.random.default_rng(devices)
    terms = SimpleNamespace(
        name=("churn", 3), offer_hash=bytes(32), plan=SimpleNamespace(m=members), share_bytes=share_bytes
    )
    uploads = []
    for index in range(devices):
        shares = rng.bytes(SIGNATURE_BYTES + members * share_bytes)
        uploads.append(UploadRow(bytes(16), "churn", 3, f"device-{index:05}", 1, "summed", None, b"", shares, 0.0))
    return terms, uploads


def plainly(terms, uploads, member: int, groups) -> bytes:
    """The request of one member (from 0), built and packed as one value."""
    entries = {}
    for upload in uploads:
        sealed = [
            upload.shares[SIGNATURE_BYTES + i * terms.share_bytes :][: terms.share_bytes] for i in range(terms.plan.m)
        ]
        path = tuple(merkle.proof(sealed, member))
        entries[upload.device] = SealedShareEntry(upload.device, upload.shares[:SIGNATURE_BYTES], sealed[member], path)
    parts = tuple(tuple(entries[device] for device in group) for group in groups)
    return codec.pack(OpeningRequest("churn", 3, bytes(32), parts))


@pytest.mark.parametrize(("devices", "members"), [(3, 5), (15, 6), (16, 7), (40, 32), (300, 5)])
def test_every_request_is_the_canonical_encoding(devices, members):
    terms, uploads = a_round(devices, members)
    names = [upload.device for upload in uploads]
    for count in {1, 2, min(20, devices)}:  # from sixteen on an array's header is longer
        groups = [tuple(names[start::count]) for start in range(count)]
        found = requests_for(terms, uploads, groups)
        assert len(found) == members
        for member in {0, members // 2, members - 1}:
            assert found[member] == plainly(terms, uploads, member, groups)
            request = codec.unpack(found[member], OpeningRequest)
            assert [tuple(entry.device for entry in group) for group in request.groups] == groups


@pytest.mark.slow
def test_a_request_of_more_than_65535_devices_would_still_parse():
    terms, uploads = a_round(1, 5)
    many = uploads * 65_536
    (found, *_) = requests_for(terms, many, [(uploads[0].device,)])
    assert len(codec.unpack(found, OpeningRequest).groups[0]) == 65_536
