"""Files that a device keeps of a task for itself, one a task, readable by their owner alone. Reads no clock.

What is in them was learned from customers and is neither clipped nor masked, so that a deletion reaches the disk, and
takes with it what a process left that died while it wrote.
"""

from __future__ import annotations

import os
from pathlib import Path

from edge_sdk.identity.keys import sync_directory, write_private


class KeptFiles:
    """The files `<task><suffix>` of one folder, made with the first. Any thread, one at a time for each task."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self._folder, self._suffix = folder, suffix

    def write(self, task: str, data: bytes) -> None:
        """Replace a task's file as a whole. Raises OSError where the disk is full."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_private(self._file(task), data)

    def read(self, task: str) -> bytes:
        """A task's file. Raises FileNotFoundError, OSError."""
        return self._file(task).read_bytes()

    def tasks(self) -> list[str]:
        """Every task of which something lies here, half-written files included."""
        whole = {path.name.removesuffix(self._suffix) for path in self._folder.glob(f"*{self._suffix}")}
        half = {path.name[1:].partition(f"{self._suffix}.")[0] for path in self._folder.glob(".*.part")}
        return sorted(whole | half)

    def forget(self, task: str) -> None:
        """Delete what is kept for a task, and see the deletion through to the disk."""
        file = self._file(task)
        for found in [file, *self._folder.glob(f".{file.name}.*.part")]:  # the latter where a process died writing it
            if found.exists():
                found.unlink(missing_ok=True)
                sync_directory(self._folder)

    def forget_half_written(self) -> None:
        """Delete what processes left that died while they wrote; this process may be writing just now."""
        ours = f".{os.getpid()}.part"
        for half in [path for path in self._folder.glob(".*.part") if not path.name.endswith(ours)]:
            half.unlink(missing_ok=True)
            sync_directory(self._folder)

    def forget_all(self) -> None:
        """Delete what is kept for any task."""
        for task in self.tasks():
            self.forget(task)

    def _file(self, task: str) -> Path:
        return self._folder / f"{task}{self._suffix}"
