"""Where everything of one aggregator lies. Makes directories; refuses nothing and reads no file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Home:
    """The directory of one fleet's aggregator."""

    path: Path

    @property
    def database(self) -> Path:
        return self.path / "aggregator.db"

    @property
    def authority(self) -> Path:
        return self.path / "authority"

    @property
    def releases(self) -> Path:
        return self.path / "releases"

    @property
    def spool(self) -> Path:
        """Uploads on their way into a sum."""
        return self.path / "spool"

    @property
    def sums(self) -> Path:
        """Snapshots of running sums."""
        return self.path / "sums"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def heldout(self) -> Path:
        return self.path / "heldout"

    def checkpoint_file(self, sha256: str) -> Path:
        return self.checkpoints / f"{sha256}.onnx"

    def heldout_file(self, task: str) -> Path:
        """Labelled records of a task, one JSON object a line, that no device trains on."""
        return self.heldout / f"{task}.jsonl"

    def prepare(self) -> None:
        """Make what is missing, readable by the owner alone."""
        for directory in (self.path, self.spool, self.sums, self.checkpoints, self.heldout):
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o700)
