"""Writes a file so that a crash leaves the old bytes or the new ones. Names a full disk and leaves nothing behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DiskFull

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_durably(path: Path, data: bytes) -> None:
    """Write beside, flush, rename over, flush the directory. Raises DiskFull, other OSErrors as they are."""
    temporary = path.with_name(path.name + ".tmp")
    with removed_on_failure(temporary):
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        move_durably(temporary, path)


def move_durably(source: Path, destination: Path) -> None:
    """Rename a file that is already flushed, within one file system."""
    source.replace(destination)
    flush(destination.parent)


def flush(path: Path) -> None:
    """Push a file's bytes, or a directory's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def removed_on_failure(temporary: Path) -> Iterator[None]:
    """Remove `temporary` if the block fails, and name a full disk."""
    try:
        yield
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise named(error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def named(error: OSError) -> Exception:
    """DiskFull for an error that says so, else the error itself."""
    if error.errno not in _NO_ROOM:
        return error
    return DiskFull("no room for the new model: free some space; the active model stays", reason="disk-full")
