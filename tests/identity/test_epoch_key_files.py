"""Three epoch keys at most, and a crash between any two writes leaves a member that can go on."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_sdk.identity.epoch_keys import NEXT_KEY, OLDER_KEY, EpochKeys
from edge_sdk.identity.keys import EPOCH_KEY, DeviceKeys, IdentityError


class PowerCut(BaseException):
    """The machine dies here."""


class Machine:
    """A device's identity folder, and memory that a power cut empties."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "identity"
        DeviceKeys.generate().save(self.folder)
        self.start()

    def start(self) -> None:
        self.holder = DeviceKeys.load(self.folder)
        self.keys = EpochKeys(self.folder, self.holder)

    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} - {"tls.key", "sign.key"}

    def change(self) -> bytes:
        """To the end of `promote`; the public key that was current before."""
        before = self.keys.current
        self.keys.make_next(os.urandom)
        self.keys.promote()
        return before


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def cut_at(monkeypatch: pytest.MonkeyPatch, call: int, action: Callable[[], object]) -> bool:
    """Do it with a power cut in place of the n-th rename, link or removal of a file; False where it was over before."""
    count = 0

    def dying(honest: Callable[..., object]) -> Callable[..., object]:
        def act(*arguments: object, **given: object) -> object:
            nonlocal count
            count += 1
            if count == call:
                raise PowerCut
            return honest(*arguments, **given)

        return act

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying(Path.replace))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        try:
            action()
        except PowerCut:
            return True
    return False


def test_the_enrolled_key_is_the_current_one_and_the_only_one(machine):
    assert machine.keys.publics == (machine.holder.epoch_public,)
    assert (machine.keys.next, machine.keys.older) == (None, None)


def test_the_next_key_is_fresh_and_on_the_disk_for_its_owner_only_before_it_is_told(machine):
    told = machine.keys.make_next(os.urandom)
    assert told != machine.keys.current
    assert stat.S_IMODE((machine.folder / NEXT_KEY).stat().st_mode) == 0o600
    machine.start()
    assert machine.keys.next == told
    assert machine.keys.find(told) is not None


def test_after_a_roster_names_it_three_keys_become_two_and_then_one(machine):
    before = machine.keys.current
    told = machine.keys.make_next(os.urandom)
    machine.keys.promote()
    assert (machine.keys.older, machine.keys.current, machine.keys.next) == (before, told, None)
    assert machine.holder.epoch_public == told, "no copy of the older key stays in the holder"
    machine.start()
    assert (machine.keys.older, machine.keys.current) == (before, told)
    machine.keys.delete_older()
    assert machine.keys.find(before) is None
    machine.start()
    assert machine.keys.publics == (told,)
    assert machine.files() == {EPOCH_KEY}


def test_there_is_one_next_key_at_a_time_and_none_while_an_older_one_is_needed(machine):
    machine.keys.make_next(os.urandom)
    with pytest.raises(IdentityError, match="changing already"):
        machine.keys.make_next(os.urandom)
    machine.keys.promote()
    with pytest.raises(IdentityError, match="changing already"):
        machine.keys.make_next(os.urandom)
    with pytest.raises(IdentityError, match="make one first"):
        machine.keys.promote()


@pytest.mark.parametrize("call", range(1, 12))
def test_a_power_cut_at_any_write_of_a_whole_change_loses_no_key_that_a_roster_may_name(machine, monkeypatch, call):
    first = machine.keys.current
    told: list[bytes] = []

    def change() -> None:
        told.append(machine.keys.make_next(os.urandom))
        machine.keys.promote()
        machine.keys.delete_older()

    died = cut_at(monkeypatch, call, change)
    machine.start()
    keys = machine.keys
    if not told:  # nothing left the device
        assert (keys.current, keys.next, keys.older) == (first, None, None)
    elif keys.next is not None:  # before the promotion, or in the middle of it
        assert (keys.current, keys.next, keys.older) == (first, told[0], None)
        keys.promote()
    assert not told or keys.current == told[0]
    if told and died:
        assert keys.find(first) is not None, "the older key is there until it was deleted"
        keys.delete_older()
    assert machine.files() == {EPOCH_KEY}, "no half-written key stays"


def test_every_write_of_a_change_was_cut_once(machine, monkeypatch):
    def change() -> None:
        machine.change()
        machine.keys.delete_older()

    deaths = 0
    while cut_at(monkeypatch, deaths + 1, change):
        deaths += 1
        machine.start()
        if machine.keys.next is not None:
            machine.keys.promote()
        machine.keys.delete_older()
    assert 3 < deaths < 11


def test_an_unfinished_file_of_a_crash_is_removed_and_others_are_left(machine):
    (machine.folder / ".epoch-next.key.77.part").write_bytes(b"half a key")
    (machine.folder / "note.txt").write_text("mine")
    machine.start()
    assert machine.files() == {EPOCH_KEY, "note.txt"}


def test_a_key_file_that_others_can_read_is_refused(machine):
    machine.change()
    (machine.folder / OLDER_KEY).chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        machine.start()


def test_keys_hide_when_printed(machine):
    assert repr(machine.keys) == "EpochKeys(1 keys)"
