"""Files that hold secrets: written whole or not at all, readable by their owner alone. Refuses looser modes."""

from __future__ import annotations

from pathlib import Path

from aggregator.errors import AggregatorError
from aggregator.releases.durable import write_durably


class LooseFile(AggregatorError):
    """A secret lies where others can read it."""


def private_directory(path: Path) -> Path:
    """Make `path` with mode 0700, or tighten it."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def write_private(path: Path, data: bytes) -> None:
    """Write a file of mode 0600: the old bytes or the new ones, whatever happens. Raises OSError."""
    write_durably(path, data, mode=0o600)


def read_private(path: Path) -> bytes:
    """Read a secret. Raises LooseFile where group or others may read it, FileNotFoundError where it is missing."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise LooseFile(
            f"{path} has mode {mode:04o}, so others can read it", f"run `chmod 600 {path}`", reason="loose-file"
        )
    return path.read_bytes()
