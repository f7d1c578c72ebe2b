"""Uploads on disk while they arrive: one file each, its whole size reserved before the first chunk is granted.

A full disk is therefore met when an upload is announced (DiskFull), and what was granted can be finished.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aggregator.errors import DiskFull
from aggregator.releases.durable import flush_directory

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def disk_full_is_said() -> Iterator[None]:
    """Turn the operating system's ways of saying that the disk is full into DiskFull."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull("the disk is full", "free space; devices send again", reason="disk-full") from error
        raise


class SpoolFile:
    """The plaintext (masked, never opened) of one upload."""

    def __init__(self, directory: Path, upload: bytes, size: int) -> None:
        """Open or make the file and reserve `size` bytes. Raises DiskFull and leaves no file."""
        self.path = directory / f"{upload.hex()}.upload"
        self.size = size
        fresh = not self.path.exists()
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with disk_full_is_said():
                os.posix_fallocate(self._descriptor, 0, size)
        except BaseException:
            self.remove()
            raise
        if fresh:
            flush_directory(directory)

    def write(self, offset: int, data: bytes) -> None:
        """Raises DiskFull."""
        with disk_full_is_said():
            os.pwrite(self._descriptor, data, offset)

    def flush(self) -> None:
        """Return once everything written is on disk. Raises DiskFull."""
        with disk_full_is_said():
            os.fdatasync(self._descriptor)

    def read(self) -> bytes:
        return os.pread(self._descriptor, self.size, 0)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)
