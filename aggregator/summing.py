"""The running sums of one round, one a group, exactly once through any crash (SPEC 6.6). Reads no clock.

No masked vector is kept, only sums. A snapshot is written beside the old one; then one transaction names it and marks
the uploads in it; only then do their files go. A restart adds to the named snapshots exactly the accepted uploads that
are not marked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aggregator.errors import HomeRefused
from aggregator.home import Home
from aggregator.releases.durable import write_durably
from aggregator.round_terms import RoundTerms
from aggregator.spool import SpoolFile, disk_full_is_said
from aggregator.store.rows import SumRow
from aggregator.store.store import Store
from edge_sdk.protocol.secagg.client import MaskedUpload
from edge_sdk.protocol.secagg.residues import RunningSum

SNAPSHOT_UPLOADS: Final = 16
SNAPSHOT_S: Final = 2.0


class DurableSum:
    """The running sum of one group, and the uploads that its last snapshot does not hold yet."""

    def __init__(self, store: Store, home: Home, terms: RoundTerms, row: SumRow) -> None:
        """Take up the group's last snapshot. Raises HomeRefused where a file that the tables name is missing."""
        self._store, self._home, self._terms = store, home, terms
        self._group, self._snapshot = row.group, row.snapshot
        self.total = RunningSum(terms.profile, terms.length)
        if row.snapshot:
            data = _read(home, row.snapshot)
            self.total = RunningSum.restore(terms.profile, terms.length, data, row.summed)
        self._pending: list[SpoolFile] = []
        self._since = 0.0

    @property
    def pending(self) -> int:
        """Uploads added and not yet in a snapshot."""
        return len(self._pending)

    def take_up(self, upload: SpoolFile, now: float) -> None:
        """Add an upload that an earlier run accepted, from its file. Raises DiskFull."""
        data = upload.read()
        decoded = MaskedUpload.decode(
            data, profile=self._terms.profile, plan=self._terms.plan, length=self._terms.length
        )
        self.add(upload, decoded.residues, now)

    def add(self, upload: SpoolFile, residues: bytes | bytearray | memoryview, now: float) -> None:
        """Add an upload that is accepted in the tables; residues: SPEC 6.1.1. Its file goes with the next snapshot."""
        self.total.add(residues)
        self._since = self._since if self._pending else now
        self._pending.append(upload)

    def due(self, now: float) -> bool:
        """Is it time for a snapshot?"""
        return bool(self._pending) and (len(self._pending) >= SNAPSHOT_UPLOADS or now - self._since >= SNAPSHOT_S)

    def snapshot(self) -> None:
        """Make the sum durable and let the uploads in it go. Raises DiskFull: everything stays as it was."""
        if not self._pending:
            return
        task, number = self._terms.name
        name = f"{task}-{number}-{self._group}-{self.total.count}.sum"
        with disk_full_is_said():
            write_durably(self._home.sums / name, self.total.snapshot(), mode=0o600)
        with self._store.transaction():
            self._store.set_sum(task, number, SumRow(self._group, name, self.total.count))
            for upload in self._pending:
                self._store.set_upload(bytes.fromhex(upload.path.stem), state="summed")
        if self._snapshot:
            (self._home.sums / self._snapshot).unlink(missing_ok=True)
        for upload in self._pending:
            upload.remove()
        self._snapshot, self._pending = name, []

    @property
    def file(self) -> Path | None:
        """The snapshot that the tables name."""
        return self._home.sums / self._snapshot if self._snapshot else None

    def forget(self) -> None:
        """The round is over: the sum goes too."""
        for upload in self._pending:
            upload.remove()
        self._pending = []
        if self._snapshot:
            (self._home.sums / self._snapshot).unlink(missing_ok=True)


class GroupSums:
    """The sums of every group of a round. A group's sum is made when its first upload comes."""

    def __init__(self, store: Store, home: Home, terms: RoundTerms) -> None:
        """Take up the last snapshot of each group. Raises HomeRefused where one is missing."""
        self._store, self._home, self._terms = store, home, terms
        self._sums = {row.group: DurableSum(store, home, terms, row) for row in store.sums(*terms.name)}

    def __getitem__(self, group: int) -> DurableSum:
        if group not in self._sums:
            self._sums[group] = DurableSum(self._store, self._home, self._terms, SumRow(group, "", 0))
        return self._sums[group]

    def __iter__(self) -> Iterator[DurableSum]:
        return iter(self._sums.values())

    @property
    def sizes(self) -> dict[int, int]:
        """Uploads in each group's sum."""
        return {group: each.total.count for group, each in self._sums.items()}


def _read(home: Home, name: str) -> bytes:
    try:
        return (home.sums / name).read_bytes()
    except FileNotFoundError as error:
        raise HomeRefused(
            f"the running sum {name} is gone from {home.sums}", "restore the home directory as one whole", reason="sum"
        ) from error
