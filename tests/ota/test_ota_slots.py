"""The slots' journal: a working model after a crash at any instant."""

from __future__ import annotations

import hashlib
import re
import resource
from pathlib import Path

import pytest
from ota_fleet import KILLED, exit_code_of

from edge_sdk.ota.errors import DiskFull, WrongPhase
from edge_sdk.ota.slots import TRANSITIONS, Phase, Slots

OLD, NEW, NEXT = b"old model", b"new model", b"next model"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def stage(slots: Slots, data: bytes, version: int) -> None:
    slots.incoming().write_bytes(data)
    slots.stage(version, sha(data))


def install(slots: Slots, data: bytes, version: int) -> None:
    stage(slots, data, version)
    slots.begin_trial()
    slots.commit()


def served(slots: Slots) -> bytes:
    model = slots.serving()
    assert model is not None
    assert sha(model.path.read_bytes()) == model.sha256
    return model.path.read_bytes()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    slots = Slots(tmp_path / "slots")
    install(slots, OLD, 1)
    slots.close()
    return tmp_path / "slots"


def test_the_table_is_what_the_code_allows(tmp_path: Path) -> None:
    allowed = set()
    steps = {"stage": Phase.STAGED, "begin_trial": Phase.TRIAL, "commit": Phase.IDLE, "roll_back": Phase.IDLE}
    for start in Phase:
        for step, end in steps.items():
            slots = Slots(tmp_path / f"{start}-{step}")
            if start is not Phase.IDLE:
                stage(slots, NEW, 1)
            if start is Phase.TRIAL:
                slots.begin_trial()
            slots.incoming().write_bytes(NEXT)
            arguments = {"stage": (2, sha(NEXT)), "roll_back": ("bad",)}.get(step, ())
            try:
                getattr(slots, step)(*arguments)
            except WrongPhase:
                continue
            assert slots.phase is end
            allowed.add((start, end))
    assert allowed == TRANSITIONS


def test_a_committed_model_survives_a_restart_and_the_old_one_is_kept(directory: Path) -> None:
    slots = Slots(directory)
    install(slots, NEW, 2)
    slots.close()
    slots = Slots(directory)
    assert served(slots) == NEW
    slots.revert("complaints")
    assert served(Slots(directory)) == OLD
    assert slots.quarantine == {sha(NEW): "complaints"}


def test_a_rolled_back_model_is_quarantined_and_the_active_one_serves(directory: Path) -> None:
    slots = Slots(directory)
    stage(slots, NEW, 2)
    slots.begin_trial()
    assert served(slots) == NEW
    slots.roll_back("worse")
    assert served(Slots(directory)) == OLD
    assert Slots(directory).quarantine == {sha(NEW): "worse"}


def test_two_crashes_on_trial_roll_back_at_the_next_start(directory: Path) -> None:
    slots = Slots(directory)
    stage(slots, NEW, 2)
    slots.begin_trial()  # the process dies here
    slots = Slots(directory)
    assert served(slots) == NEW, "one crash may be anything"
    slots = Slots(directory)  # and dies again
    assert served(slots) == OLD
    assert slots.outcome == "crashed"
    assert slots.quarantine == {sha(NEW): "crashed"}


def test_clean_restarts_on_trial_are_not_crashes(directory: Path) -> None:
    slots = Slots(directory)
    stage(slots, NEW, 2)
    slots.begin_trial()
    for _ in range(5):
        slots.close()
        slots = Slots(directory)
    assert slots.phase is Phase.TRIAL
    assert served(slots) == NEW


@pytest.mark.parametrize("end", ["commit", "roll_back"])
def test_kill_9_before_any_file_event_leaves_a_working_model(directory: Path, end: str) -> None:
    def update() -> None:
        slots = Slots(directory)
        if slots.phase is Phase.IDLE:
            stage(slots, NEW, 2)
        if slots.phase is Phase.STAGED:
            slots.begin_trial()
        slots.commit() if end == "commit" else slots.roll_back("worse")
        slots.close()

    kills = 0
    while exit_code_of(update, kill_at=kills) == KILLED:
        slots = Slots(directory)
        assert served(slots) in (OLD, NEW)
        if slots.phase is not Phase.IDLE:
            slots.roll_back("test")
        assert served(slots) in (OLD, NEW)
        for file in directory.iterdir():
            file.unlink()
        install(Slots(directory), OLD, 1)
        kills += 1
    assert kills > 15
    assert served(Slots(directory)) == (NEW if end == "commit" else OLD)


@pytest.mark.parametrize("damage", [b"", b"half a mod"])
def test_a_damaged_active_file_falls_back_to_the_one_before_then_to_the_bundled(directory: Path, damage: bytes) -> None:
    bundled = directory.parent / "bundled.onnx"
    bundled.write_bytes(b"bundled model")
    install(Slots(directory), NEW, 2)
    for expected in (OLD, b"bundled model"):
        model = Slots(directory, bundled).active()
        assert model is not None
        model.path.write_bytes(damage)
        slots = Slots(directory, bundled)
        assert slots.outcome == "damaged"
        assert served(slots) == expected


def test_the_journal_is_replaced_and_never_overwritten(directory: Path) -> None:
    slots = Slots(directory)
    with (directory / "journal.json").open("rb") as opened:
        before = (directory / "journal.json").read_bytes()
        slots.refuse(sha(NEXT), "graph-changed")
        assert opened.read() == before, "a reader, or a crash, sees the old journal whole"
    assert (directory / "journal.json").read_bytes() != before


def test_an_unreadable_journal_falls_back_to_the_bundled_model_and_says_so(directory: Path) -> None:
    bundled = directory.parent / "bundled.onnx"
    bundled.write_bytes(b"bundled model")
    (directory / "journal.json").write_bytes(b'{"phase": "trial"')
    slots = Slots(directory, bundled)
    assert slots.outcome == "journal-unreadable"
    assert served(slots) == b"bundled model"
    install(slots, NEW, 2)
    assert served(Slots(directory, bundled)) == NEW


def test_a_newer_bundled_model_wins_over_an_older_download(directory: Path) -> None:
    bundled = directory.parent / "bundled.onnx"
    bundled.write_bytes(b"bundled model")
    assert served(Slots(directory, bundled, bundled_version=5)) == b"bundled model"
    assert served(Slots(directory, bundled, bundled_version=0)) == OLD


def test_the_quarantine_does_not_grow_for_ever(directory: Path) -> None:
    slots = Slots(directory)
    for number in range(200):
        slots.refuse(f"{number:064x}", "graph-changed")
    kept = Slots(directory).quarantine
    assert len(kept) == 64
    assert f"{199:064x}" in kept


def test_errors_name_the_phase(directory: Path) -> None:
    with pytest.raises(WrongPhase, match=re.escape("phase idle")):
        Slots(directory).commit()


def test_a_disk_too_full_for_the_journal_keeps_the_active_model(directory: Path) -> None:
    def attempt() -> None:
        slots = Slots(directory)
        slots.incoming().write_bytes(NEW)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
        with pytest.raises(DiskFull):
            slots.stage(2, sha(NEW))
        assert not slots.incoming().exists()
        assert served(slots) == OLD

    assert exit_code_of(attempt) == 0
    assert served(Slots(directory)) == OLD
    assert not list(directory.glob("*.tmp"))
