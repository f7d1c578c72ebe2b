"""An upload whose sealed file is lost ends as refused and counted; what comes after it goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_sdk.device_db import counters, open_device_db
from edge_sdk.outbox import Outbox, SealedUpload, seal_upload
from edge_sdk.protocol import chunks, codec
from edge_sdk.protocol.messages import Grant, Message
from edge_sdk.protocol.sealing import ROUND_SECRET_BYTES, RoundKey
from edge_sdk.testing import FakeAggregator

CLOSES = 2_000_000_000
CHUNKS = 3


def upload(round_number: int) -> SealedUpload:
    key = RoundKey(bytes(range(ROUND_SECRET_BYTES)))
    return seal_upload(
        bytes((CHUNKS - 1) * chunks.CHUNK_BYTES + 7), task="churn", round_number=round_number, closes_at=CLOSES,
        offer_hash=bytes(32), device="kiosk-1", round_key=key.public_bytes(), consent=0,
        entropy=os.urandom,
    )  # fmt: skip


def encode(message: Message) -> bytes:
    return codec.encode(message, fleet="f0", sender="kiosk-1", recipient="aggregator", sign=lambda _: bytes(64))


def missing(path: Path) -> None:
    path.unlink()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [missing, cut_short, a_directory])
def test_an_upload_whose_file_is_lost_ends_as_refused_and_the_next_is_sent(tmp_path, damage: Callable[[Path], None]):
    db, folder, wire = open_device_db(tmp_path / "device.db"), tmp_path / "outbox", []
    outbox = Outbox(db, folder, encode, silence_s=5.0)
    outbox.on_connection(True, 0.0)
    first, second = upload(1), upload(2)
    for one in (first, second):
        Outbox.commit(db, folder, one, lambda: None)

    def pump(tick: float) -> None:
        wire.clear()
        outbox.pump(lambda kind, frame: wire.append(kind) is None, CLOSES - 100, tick)

    pump(1.0)
    damage(folder / f"{first.hello.upload.hex()}.sealed")
    outbox.receive(Grant(first.hello.upload, 8, chunks.Bitmap(CHUNKS, {}).encode()), 1.0)
    pump(2.0)
    pump(3.0)
    assert wire == ["hello"]
    outbox.receive(Grant(second.hello.upload, 8, chunks.Bitmap(CHUNKS, {}).encode()), 3.0)
    pump(4.0)
    assert wire == ["data"] * CHUNKS
    rows = db.execute("SELECT round, state, reason FROM outbox ORDER BY round").fetchall()
    assert rows == [(1, "refused", "outbox-file"), (2, "announced", "")]
    assert counters(db, "refusal") == {"outbox-file": 1}
    assert counters(db, "upload") == {"refused": 1}
    db.close()


def test_a_file_that_cannot_be_opened_for_now_waits(tmp_path):
    db, folder, wire = open_device_db(tmp_path / "device.db"), tmp_path / "outbox", []
    outbox = Outbox(db, folder, encode, silence_s=5.0)
    outbox.on_connection(True, 0.0)
    one = upload(1)
    Outbox.commit(db, folder, one, lambda: None)
    path = folder / f"{one.hello.upload.hex()}.sealed"
    whole = path.read_bytes()
    for kind in (["hello"], []):
        wire.clear()
        outbox.pump(lambda kind, frame: wire.append(kind) is None, CLOSES - 100, 1.0)
        assert wire == kind
        path.unlink(missing_ok=True)
        path.symlink_to(path)  # opening it fails, and it is neither gone nor short
        if kind:
            outbox.receive(Grant(one.hello.upload, 8, chunks.Bitmap(CHUNKS, {}).encode()), 1.0)
    path.unlink()
    path.write_bytes(whole)
    outbox.pump(lambda kind, frame: wire.append(kind) is None, CLOSES - 100, 2.0)
    assert wire == ["data"] * CHUNKS
    db.close()


@pytest.mark.filterwarnings("ignore")
def test_a_part_of_the_turn_that_always_fails_does_not_stop_the_parts_after_it(tmp_path):
    with FakeAggregator(tmp_path) as fake:
        told: list[BaseException] = []
        with fake.client(on_error=told.append) as fl:
            assert fake.wait_for(lambda: fl.status()["connected"])
            engine = fl._engine
            assert engine is not None
            seen: list[str] = []

            def fail(*_: object) -> None:
                raise RuntimeError("this part is broken")

            engine._take_records = fail  # type: ignore[method-assign]
            engine.talk().turn = fail  # type: ignore[method-assign]
            engine._schedule = lambda *_: seen.append("schedule")  # type: ignore[method-assign]
            engine.ask(lambda: seen.append("ask"))
            assert fake.wait_for(lambda: {"ask", "schedule"} <= set(seen))
        assert any("broken" in str(error) for error in told)
        assert engine.live.phase == "closed"
