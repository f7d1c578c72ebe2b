"""Uploads on disk while they arrive: one file each, its whole size reserved before the first chunk is granted.

A full disk is therefore met when an upload is announced (DiskFull), and what was granted can be finished. No file
stays open between two calls, so the number of uploads is not bound by the limit of open files; where that limit is
reached all the same, the call is refused like one that meets a full disk, and nothing is lost.
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
_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE}


@contextmanager
def disk_full_is_said() -> Iterator[None]:
    """Turn the operating system's ways of saying that nothing more can be stored into DiskFull.

    Reasons: "disk-full", and "open-files" where no further file can be opened.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull("the disk is full", "free space; devices send again", reason="disk-full") from error
        if error.errno in _NO_DESCRIPTOR:
            hint = "raise the limit of open files (ulimit -n); devices send again"
            raise DiskFull("no further file can be opened", hint, reason="open-files") from error
        raise


class SpoolFile:
    """The plaintext (masked, never opened) of one upload."""

    def __init__(self, directory: Path, upload: bytes, size: int) -> None:
        """Make the file, or find it, and reserve `size` bytes. Raises DiskFull: no new file is left, an old one is."""
        self.path = directory / f"{upload.hex()}.upload"
        self.size = size
        fresh = not self.path.exists()
        try:
            with self._opened(os.O_RDWR | os.O_CREAT) as descriptor:
                os.posix_fallocate(descriptor, 0, size)
            if fresh:
                with disk_full_is_said():
                    flush_directory(directory)
        except BaseException:
            if fresh:  # one that was there holds what was acknowledged
                self.remove()
            raise

    @contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        with disk_full_is_said():
            descriptor = os.open(self.path, flags, 0o600)
            try:
                yield descriptor
            finally:
                os.close(descriptor)

    def write(self, offset: int, data: bytes) -> None:
        """Raises DiskFull."""
        with self._opened(os.O_WRONLY) as descriptor:
            os.pwrite(descriptor, data, offset)

    def flush(self) -> None:
        """Return once everything written is on disk, through whichever descriptor it went. Raises DiskFull."""
        with self._opened(os.O_WRONLY) as descriptor:
            os.fdatasync(descriptor)

    def read(self) -> bytes:
        """The whole plaintext. Raises DiskFull where the file cannot be opened for now."""
        with self._opened(os.O_RDONLY) as descriptor:
            return os.pread(descriptor, self.size, 0)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
