"""The outbox against an aggregator that loses, repeats and restarts: exactly once, and only what is missing."""

from __future__ import annotations

import os
import resource
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.device_db import open_device_db
from edge_sdk.device_round import UploadState
from edge_sdk.outbox import Outbox, SealedUpload, seal_upload
from edge_sdk.protocol import chunks, codec
from edge_sdk.protocol.errors import LocalProtocolError, MalformedMessage, UnexpectedMessage
from edge_sdk.protocol.messages import Ack, Done, Grant, Hello, Message, Receipt, Refusal
from edge_sdk.protocol.sealing import ROUND_SECRET_BYTES, ChunkSealer, RoundKey

ROUND_KEY = RoundKey(bytes(range(ROUND_SECRET_BYTES)))
H = bytes(32)
PLAIN = os.urandom(20 * chunks.CHUNK_BYTES + 5)
CLOSES = 2_000_000_000


def sealed(round_number: int = 3, plaintext: bytes = PLAIN) -> SealedUpload:
    return seal_upload(
        plaintext, task="churn", round_number=round_number, closes_at=CLOSES, offer_hash=H, device="kiosk-1",
        round_key=ROUND_KEY.public_bytes(), consent=0, entropy=os.urandom,
    )  # fmt: skip


def plain_encode(message: Message) -> bytes:
    return codec.encode(message, fleet="f0", sender="kiosk-1", recipient="aggregator", sign=lambda _: bytes(64))


class Receiver:
    """The aggregator's half, durable chunks and all, on the honest side of the wire."""

    def __init__(self) -> None:
        self.hello: Hello | None = None
        self.plain: dict[int, bytes] = {}
        self.received: list[int] = []
        self.receipts = 0

    def take(self, kind: str, frame: bytes) -> list[Message]:
        if kind == "data":
            return self._chunk(codec.decode_chunk(frame))
        body = frame[68:]
        if kind == "hello":
            self.hello = codec.unpack(body, Hello)
            key = ROUND_KEY.open(self.hello.sealed_key, chunks.hello_info(H, "kiosk-1", self.hello.upload))
            self.sealer = ChunkSealer(key, chunks.chunk_context(H, "kiosk-1", self.hello.upload, self.hello.size))
            return [Grant(self.hello.upload, 8, self.bitmap())]
        done = codec.unpack(body, Done)
        if len(self.plain) == chunks.chunk_count(len(PLAIN)):
            self.receipts += 1
            return [Receipt(done.upload, True, "")]
        return []

    def _chunk(self, chunk: codec.Chunk) -> list[Message]:
        total = chunks.chunk_count(len(PLAIN))
        self.plain[chunk.index] = self.sealer.open(chunk.index, chunk.index == total - 1, chunk.sealed)
        self.received.append(chunk.index)
        return [Ack(chunk.upload, self.bitmap())]

    def bitmap(self) -> bytes:
        return chunks.Bitmap(chunks.chunk_count(len(PLAIN)), self.plain).encode()


class Device:
    """An outbox on a disk, with a clock that the test moves."""

    def __init__(self, home: Path) -> None:
        self.home, self.tick, self.wire = home, 0.0, []
        self.start()

    def start(self) -> None:
        self.db = open_device_db(self.home / "device.db")
        self.outbox = Outbox(self.db, self.home / "outbox", plain_encode, silence_s=5.0)
        self.outbox.on_connection(True, self.tick)

    def restart(self) -> None:
        self.db.close()
        self.start()

    def pump(self, now: int = CLOSES - 100) -> list[tuple[str, bytes]]:
        self.wire = []
        self.outbox.pump(lambda kind, frame: self.wire.append((kind, frame)) is None, now, self.tick)
        return self.wire

    def state(self) -> tuple[str, int, int]:
        return self.db.execute("SELECT state, sent, resent FROM outbox").fetchone()


@pytest.fixture
def device(tmp_path: Path) -> Device:
    made = Device(tmp_path)
    Outbox.commit(made.db, tmp_path / "outbox", sealed(), lambda: None)
    return made


def exchange(device: Device, receiver: Receiver, lost: set[int] = frozenset(), steps: int = 200) -> None:
    """Carry messages both ways; the n-th message from the device is lost when n is in `lost`."""
    number = 0
    for _ in range(steps):
        device.tick += 1.0
        for kind, frame in device.pump():
            number += 1
            if number in lost:
                continue
            for answer in receiver.take(kind, frame):
                device.outbox.receive(answer, device.tick)
        if device.outbox.pending() == 0:
            return


def test_an_upload_arrives_whole_and_its_file_goes(device, tmp_path):
    receiver = Receiver()
    exchange(device, receiver)
    assert b"".join(receiver.plain[i] for i in sorted(receiver.plain)) == PLAIN
    assert device.state() == (UploadState.ACCEPTED.value, 21, 0)
    assert receiver.receipts == 1
    assert list((tmp_path / "outbox").iterdir()) == []


@settings(max_examples=25, deadline=None)
@given(lost=st.sets(st.integers(1, 60), max_size=25))
def test_whatever_is_lost_only_missing_chunks_are_sent_again(lost, tmp_path_factory):
    home = tmp_path_factory.mktemp("device")
    device, receiver = Device(home), Receiver()
    Outbox.commit(device.db, home / "outbox", sealed(), lambda: None)
    exchange(device, receiver, lost, steps=3000)
    assert device.state()[0] == UploadState.ACCEPTED.value
    assert sorted(receiver.received) == list(range(21)), "a chunk that had arrived was sent again"
    device.db.close()


def test_a_device_that_restarts_in_the_middle_sends_the_rest_only(device):
    receiver = Receiver()
    for _ in range(3):
        for kind, frame in device.pump():
            for answer in receiver.take(kind, frame):
                device.outbox.receive(answer, device.tick)
    assert 0 < len(receiver.plain) < 21
    device.restart()
    exchange(device, receiver)
    assert device.state()[0] == UploadState.ACCEPTED.value
    assert sorted(receiver.received) == list(range(21))


def test_at_most_eight_chunks_are_unacknowledged(device):
    hello = codec.unpack(device.pump()[0][1][68:], Hello)
    device.outbox.receive(Grant(hello.upload, 64, bytes(3)), device.tick)
    assert len(device.pump()) == 8
    assert device.pump() == []


def test_silence_means_hello_again_with_growing_patience(device):
    device.pump()
    hellos = []
    for second in range(1, 120):
        device.tick = float(second)
        hellos += [second for kind, _ in device.pump() if kind == "hello"]
    assert hellos == [5, 15, 35, 65, 95]


def test_an_upload_whose_round_closed_is_given_up(device):
    assert device.pump(now=CLOSES) == []
    assert device.state()[0] == UploadState.EXPIRED.value


def test_a_refusal_is_final_but_a_lost_announcement_is_not(device):
    hello = codec.unpack(device.pump()[0][1][68:], Hello)
    device.outbox.receive(Refusal("data", "unknown-upload", "", hello.upload), device.tick)
    assert device.state()[0] == UploadState.ANNOUNCED.value
    device.outbox.receive(Refusal("hello", "not-in-roster", "", hello.upload), device.tick)
    assert device.state()[0] == UploadState.REFUSED.value


def test_answers_about_other_uploads_and_bad_bitmaps_change_nothing(device):
    hello = codec.unpack(device.pump()[0][1][68:], Hello)
    with pytest.raises(UnexpectedMessage):
        device.outbox.receive(Receipt(bytes(16), True, ""), device.tick)
    with pytest.raises(MalformedMessage):
        device.outbox.receive(Ack(hello.upload, b"\xff" * 9), device.tick)
    assert device.outbox.pending() == 1


def test_a_charge_that_is_refused_releases_nothing(tmp_path):
    device = Device(tmp_path)

    def refuse() -> None:
        raise RuntimeError("budget")

    with pytest.raises(RuntimeError):
        Outbox.commit(device.db, tmp_path / "outbox", sealed(), refuse)
    assert device.outbox.pending() == 0
    assert list((tmp_path / "outbox").iterdir()) == []
    assert device.db.execute("SELECT * FROM uploaded").fetchall() == []


def test_a_round_is_uploaded_for_once(device, tmp_path):
    with pytest.raises(LocalProtocolError):
        Outbox.commit(device.db, tmp_path / "outbox", sealed(), lambda: None)
    assert len(list((tmp_path / "outbox").iterdir())) == 1


def test_a_crash_between_file_and_row_leaves_nothing_behind(device, tmp_path):
    stray = tmp_path / "outbox" / ("00" * 16 + ".sealed")
    stray.write_bytes(b"sealed, never paid for")
    device.restart()
    assert not stray.exists()
    assert device.outbox.pending() == 1


def test_files_of_the_outbox_are_for_the_owner_alone(device, tmp_path):
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "outbox").iterdir()} == {0o600}
    assert (tmp_path / "device.db").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_loses_nothing_and_charges_nothing(tmp_path):
    device = Device(tmp_path)
    charged: list[int] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(OSError):
            Outbox.commit(device.db, tmp_path / "outbox", sealed(), lambda: charged.append(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "outbox").iterdir()) == []
    assert device.outbox.pending() == 0
    assert charged == []


def test_a_database_of_a_newer_version_is_not_touched(tmp_path):
    open_device_db(tmp_path / "device.db").close()
    with sqlite3.connect(tmp_path / "device.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(Exception, match="newer SDK"):
        open_device_db(tmp_path / "device.db")


def test_a_withdrawal_ends_what_is_on_its_way_and_no_later_answer_revives_it(device, tmp_path):
    receiver = Receiver()
    exchange(device, receiver, steps=2)
    assert 0 < len(receiver.plain) < chunks.chunk_count(len(PLAIN))
    upload = receiver.hello.upload
    assert device.outbox.withdraw("another") == {}
    assert device.outbox.withdraw("churn") == {"churn": [upload]}
    assert device.state()[0] == "withdrawn"
    assert list((tmp_path / "outbox").iterdir()) == []
    with pytest.raises(UnexpectedMessage):
        device.outbox.receive(Grant(upload, 8, receiver.bitmap()), device.tick)
    for _ in range(3):
        device.tick += 60.0
        device.outbox.on_connection(True, device.tick)
        assert device.pump() == []
        device.restart()
    assert device.outbox.withdrawn(CLOSES - 100) == {"churn": [upload]}
    assert device.outbox.withdrawn(CLOSES) == {}
    with pytest.raises(LocalProtocolError):
        Outbox.commit(device.db, tmp_path / "outbox", sealed(), lambda: None)


def test_a_withdrawal_that_cannot_be_written_stops_all_sending_until_it_can(device):
    device.db.execute("CREATE TEMP TRIGGER full BEFORE UPDATE ON outbox BEGIN SELECT RAISE(ABORT, 'full'); END")
    with pytest.raises(sqlite3.Error):
        device.outbox.withdraw("churn")
    assert device.pump() == []
    device.db.execute("DROP TRIGGER full")
    assert list(device.outbox.withdraw("churn")) == ["churn"]
    assert device.state()[0] == "withdrawn"
