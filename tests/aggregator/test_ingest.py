"""Uploads: what is acknowledged is on disk, what is refused changes nothing, what is summed is summed once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_fleet import SmallFleet
from test_service_rounds import ended, raised, start

from edge_sdk.protocol.chunks import CHUNK_BYTES, Bitmap
from edge_sdk.protocol.codec import Chunk
from edge_sdk.protocol.errors import RemoteProtocolError

HIDDEN = (3000,)  # three chunks an upload


@pytest.fixture
def sending(tmp_path):
    """A round in which device-0 has announced its upload and sent nothing yet."""
    fleet = SmallFleet(tmp_path / "home", hidden=HIDDEN)
    for device in fleet.devices[1:]:
        device.takes_part = False
    first = fleet.devices[0]
    first.progress = lambda *args, **kwargs: None
    start(fleet, window_s=3600)
    fleet.run(lambda: bool(fleet.service._ingest._arriving))
    return fleet, first.uploads["churn", 1]


def chunk_of(upload, index: int, sealed: bytes | None = None) -> Chunk:
    return Chunk(upload.hello.upload, index, sealed if sealed is not None else upload.chunks[index])


@pytest.mark.parametrize(
    ("device", "make", "reason"),
    [
        ("device-0", lambda u: chunk_of(u, 9, b"x" * 40), "chunk-index"),
        ("device-0", lambda u: chunk_of(u, 2**32 - 1, b"x" * 40), "chunk-index"),
        ("device-0", lambda u: chunk_of(u, 0, u.chunks[1]), "chunk-seal"),
        ("device-0", lambda u: chunk_of(u, 0, u.chunks[0][:-1]), "chunk-seal"),
        ("device-0", lambda u: chunk_of(u, 2, bytes(len(u.chunks[2]))), "chunk-seal"),
        ("device-0", lambda u: Chunk(bytes(16), 0, u.chunks[0]), "unknown-upload"),
        ("device-1", lambda u: chunk_of(u, 0), "unknown-upload"),
    ],
)
def test_a_chunk_that_is_not_of_this_upload_is_refused_and_changes_nothing(sending, device, make, reason):
    fleet, upload = sending
    ingest = fleet.service._ingest
    with pytest.raises(RemoteProtocolError) as refused:
        ingest.chunk(device, make(upload), fleet.now)
    assert refused.value.reason == reason
    assert len(ingest._arriving[upload.hello.upload].held) == 0


def test_chunks_in_any_order_and_twice_are_acknowledged_within_half_a_second(sending):
    fleet, upload = sending
    ingest = fleet.service._ingest
    for index in (2, 2, 0):
        assert ingest.chunk("device-0", chunk_of(upload, index), fleet.now) is None
    assert ingest.due(fleet.now + 0.4) == []
    ((device, ack),) = ingest.due(fleet.now + 0.5)
    assert device == "device-0"
    assert list(Bitmap.decode(ack.received, 3).missing()) == [1]
    last = ingest.chunk("device-0", chunk_of(upload, 1), fleet.now)
    assert Bitmap.decode(last.received, 3).complete


def test_only_what_was_acknowledged_is_promised_after_a_restart(sending):
    fleet, upload = sending
    fleet.service._ingest.chunk("device-0", chunk_of(upload, 1), fleet.now)
    fleet.service._ingest.due(fleet.now + 1)
    fleet.service._ingest.chunk("device-0", chunk_of(upload, 0), fleet.now + 1)  # written, not yet acknowledged
    fleet.restart()
    grant = fleet.service._ingest.hello("device-0", upload.hello, fleet.now)
    assert list(Bitmap.decode(grant.received, 3).missing()) == [0, 2]


@pytest.mark.parametrize("when", ["the last chunk", "half a second", "a second hello"])
def test_what_is_acknowledged_was_on_disk_before_it_was_said(sending, when, monkeypatch):
    """Every fdatasync notes what the file holds then: a crash of the machine leaves that and no more."""
    fleet, upload = sending
    ingest, on_disk = fleet.service._ingest, {}
    file = ingest._arriving[upload.hello.upload].file.path

    def flushed(descriptor: int) -> None:
        on_disk[os.fstat(descriptor).st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    monkeypatch.setattr(os, "fdatasync", flushed)
    indexes = (0, 1, 2) if when == "the last chunk" else (0, 2)
    ack = [ingest.chunk("device-0", chunk_of(upload, index), fleet.now) for index in indexes][-1]
    if when == "half a second":
        ((_, ack),) = ingest.due(fleet.now + 0.5)
    elif when == "a second hello":
        ack = ingest.hello("device-0", upload.hello, fleet.now)
    assert set(indexes) == set(range(3)) - set(Bitmap.decode(ack.received, 3).missing())
    held = file.read_bytes()
    assert any(held[2 * CHUNK_BYTES :]), "the upload is no row of zeros"
    assert on_disk[file.stat().st_ino] == held


def test_a_new_announcement_takes_the_place_of_an_unfinished_upload(sending):
    fleet, old = sending
    device = fleet.devices[0]
    del device.uploads["churn", 1]
    device.upload(old.offer, old.digest)
    fleet.turn()
    assert list(fleet.service._ingest._arriving) == [device.uploads["churn", 1].hello.upload]
    assert len(list(fleet.home.spool.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size": 5}, "size"),
        ({"offer_hash": bytes(32)}, "closed"),
        ({"round": 7}, "closed"),
        ({"task": "other"}, "closed"),
        ({"upload": b"x" * 16}, "round-seal"),
        ({"upload": b"x" * 16, "sealed_key": bytes(1200)}, "round-seal"),
        ({}, "upload-id"),
    ],
)
def test_a_hello_that_does_not_fit_the_round_is_refused_by_its_reason(sending, change, reason):
    import msgspec

    fleet, upload = sending
    hello = msgspec.structs.replace(upload.hello, **change)
    with pytest.raises(RemoteProtocolError) as refused:
        fleet.service._rounds.messages.hello("device-1", hello, fleet.now)
    assert refused.value.reason == reason


def test_more_uploads_than_a_snapshot_takes_are_summed_once_through_restarts(tmp_path):
    fleet = SmallFleet(tmp_path / "home", count=24)
    fleet.devices[23].takes_part = False
    start(fleet, n_max=24, window_s=3600, rounds=1)
    accepted = lambda: fleet.service.store.uploads("churn", 1, "accepted", "summed")  # noqa: E731 # read at each call
    for _ in range(3):
        before = len(accepted())
        fleet.run(lambda known=before: len(accepted()) >= min(23, known + 7))
        (fleet.home.sums / "half-written.sum.tmp").write_bytes(b"what a crash leaves")
        (fleet.home.spool / f"{bytes(16).hex()}.upload").write_bytes(b"what a crash leaves")
        fleet.restart()
    fleet.run(lambda: len(accepted()) == 23)
    fleet.run(lambda: not fleet.service.store.uploads("churn", 1, "accepted"))
    assert len(fleet.service.store.uploads("churn", 1, "summed")) == 23
    assert not list(fleet.home.spool.iterdir())
    assert len(list(fleet.home.sums.iterdir())) == 1
    fleet.devices[23].beat("gone")
    fleet.devices.pop()
    fleet.run(ended(fleet))
    assert raised(fleet)[:13] == [2 if i + 13 < 23 else 1 for i in range(13)]
