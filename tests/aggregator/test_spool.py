"""Spool files: reserved at once, open only during a call, and nothing is lost where no file can be opened."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aggregator.errors import DiskFull
from aggregator.spool import SpoolFile

HERE = Path(__file__).parent
ID = bytes(range(16))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_uploads_than_descriptors_arrive_survive_a_restart_and_are_summed(tmp_path):
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    child = subprocess.run(
        [sys.executable, str(HERE / "few_descriptors.py"), str(tmp_path / "home")],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    assert json.loads(child.stdout) == {"arriving": 20, "raised": [1] * 20, "internal": 0}


def test_no_file_stays_open_between_two_calls(tmp_path):
    before = descriptors()
    files = [SpoolFile(tmp_path, bytes([index]) * 16, 1000) for index in range(50)]
    for file in files:
        file.write(10, b"x")
        file.flush()
    assert descriptors() == before
    assert all(file.read() == bytes(10) + b"x" + bytes(989) for file in files)


def test_without_a_descriptor_an_announcement_is_refused_and_leaves_no_file(tmp_path):
    with no_descriptor_left(), pytest.raises(DiskFull) as refused:
        SpoolFile(tmp_path, ID, 1000)
    assert refused.value.reason == "open-files"
    assert list(tmp_path.iterdir()) == []
    assert SpoolFile(tmp_path, ID, 1000).read() == bytes(1000)


@pytest.mark.parametrize("call", [lambda f: f.write(0, b"new"), SpoolFile.flush, SpoolFile.read])
def test_without_a_descriptor_every_call_is_refused_and_the_bytes_stay(tmp_path, call):
    file = SpoolFile(tmp_path, ID, 6)
    file.write(0, b"kept12")
    with no_descriptor_left(), pytest.raises(DiskFull) as refused:
        call(file)
    assert refused.value.reason == "open-files"
    assert file.read() == b"kept12"


def test_taking_up_a_file_that_cannot_be_opened_now_does_not_remove_it(tmp_path):
    SpoolFile(tmp_path, ID, 6).write(0, b"kept12")
    with no_descriptor_left(), pytest.raises(DiskFull):
        SpoolFile(tmp_path, ID, 6)
    assert SpoolFile(tmp_path, ID, 6).read() == b"kept12"


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENFILE, "open-files"), (errno.ENOSPC, "disk-full"), (errno.EIO, None)]
)
def test_what_the_operating_system_says_is_named_by_its_reason(number, reason):
    from aggregator.spool import disk_full_is_said

    with pytest.raises(OSError if reason is None else DiskFull) as told, disk_full_is_said():
        raise OSError(number, "as the kernel says it")
    assert getattr(told.value, "reason", None) == reason
