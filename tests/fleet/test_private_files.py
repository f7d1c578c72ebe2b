"""Secrets on the aggregator's disk: whole, and readable by their owner alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aggregator.fleet.files import LooseFile, read_private, write_private


def test_a_secret_replaces_the_one_before_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"old")
    write_private(tmp_path / "key", b"new")
    assert read_private(tmp_path / "key") == b"new"
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_what_a_crash_left_open_to_others_does_not_receive_the_secret(tmp_path: Path) -> None:
    left = tmp_path / "key.tmp"
    left.write_bytes(b"half")
    left.chmod(0o666)
    reader = os.open(left, os.O_RDONLY)
    write_private(tmp_path / "key", b"secret")
    assert os.pread(reader, 10, 0) == b"half"
    os.close(reader)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_where_the_write_fails_the_old_secret_stays_and_nothing_lies_about(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"old")
    with pytest.raises(TypeError):
        write_private(tmp_path / "key", "no bytes")  # type: ignore[arg-type]
    assert read_private(tmp_path / "key") == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_a_secret_that_others_may_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"secret")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(LooseFile, match="0640") as told:
        read_private(tmp_path / "key")
    assert "chmod 600" in told.value.hint
