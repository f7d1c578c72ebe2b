"""The rows of all virtual devices in one array each, a device a range of rows. Refuses arrays that do not fit together.

Nothing is kept for a device but where its rows begin: ten thousand of them cost what their rows cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_sdk.protocol.messages import PrivacyTerms

Floats = npt.NDArray[np.float32]
Whole = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class VirtualDevice:
    """A device's rows: features float32 [n, F], labels [n], subjects int64 [n] or None (whose each row is)."""

    name: str
    features: Floats
    labels: npt.NDArray[Any]
    subjects: Whole | None = None


class Roaming(NamedTuple):
    """How many people there are, how many of them have rows on several devices, and the most devices of one."""

    people: int
    several: int
    most: int


@dataclass(frozen=True, slots=True)
class Population:
    """Device k has the rows bounds[k] : bounds[k + 1] of features [N, F], labels [N] and subjects int64 [N] or None.

    Equal subjects on two devices are two subjects: no device knows of the other.
    """

    names: Sequence[str]
    bounds: Whole
    features: Floats
    labels: npt.NDArray[Any]
    subjects: Whole | None = None

    def __post_init__(self) -> None:
        """Raises ValueError."""
        rows = len(self.labels)
        if len(self.bounds) != len(self.names) + 1 or self.bounds[0] != 0 or self.bounds[-1] != rows:
            raise ValueError("bounds lead from 0 to the number of rows, one range for each device")
        if (np.diff(self.bounds) < 0).any():
            raise ValueError("bounds never fall")
        if len(self.features) != rows or (self.subjects is not None and len(self.subjects) != rows):
            raise ValueError(f"features and subjects have one row for each of {rows} labels")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, devices: Sequence[VirtualDevice]) -> Population:
        """All devices' rows, copied one after the other. Subjects are kept only where every device has them."""
        bounds = np.cumsum([0, *(len(device.labels) for device in devices)]).astype(np.int64)
        subjects = [device.subjects for device in devices if device.subjects is not None]
        return cls(
            [device.name for device in devices],
            bounds,
            np.concatenate([device.features for device in devices], dtype=np.float32),
            np.concatenate([device.labels for device in devices]),
            np.concatenate(subjects, dtype=np.int64) if len(subjects) == len(devices) else None,
        )

    def device(self, place: int) -> VirtualDevice:
        """The device at `place`: views, no copies."""
        rows = slice(int(self.bounds[place]), int(self.bounds[place + 1]))
        subjects = None if self.subjects is None else self.subjects[rows]
        return VirtualDevice(self.names[place], self.features[rows], self.labels[rows], subjects)

    def owners(self) -> Whole:
        """int64 [N]: the place of the device that has each row."""
        return np.repeat(np.arange(len(self)), np.diff(self.bounds))

    def unit_subjects(self) -> Whole | None:
        """int64 [N]: subjects told apart by device; a negative one stays a unit of its own. None without subjects."""
        if self.subjects is None:
            return None
        known = self.subjects >= 0
        pairs = np.stack([self.owners()[known], self.subjects[known]], axis=1)
        apart = np.full(len(self.subjects), -1, np.int64)
        apart[known] = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
        return apart

    def roaming(self) -> Roaming | None:
        """Who is on several devices, where equal subjects are one person. None without subjects."""
        if self.subjects is None:
            return None
        known = self.subjects >= 0
        pairs = np.unique(np.stack([self.subjects[known], self.owners()[known]], axis=1), axis=0)
        devices = np.unique(pairs[:, 0], return_counts=True)[1]
        return Roaming(len(devices), int((devices > 1).sum()), int(devices.max(initial=0)))

    def units(self, *, customers: bool) -> Whole:
        """int64 [devices]: how many records, or customers, each device has."""
        if not customers or self.subjects is None:
            return np.diff(self.bounds)
        apart = self.unit_subjects()
        assert apart is not None
        owners = self.owners()
        _, first = np.unique(apart[apart >= 0], return_index=True)
        return np.bincount(owners[apart >= 0][first], minlength=len(self)) + np.bincount(
            owners[apart < 0], minlength=len(self)
        )

    def able(self, terms: PrivacyTerms, min_examples: int = 1) -> Whole:
        """Places of the devices that take part: so many units at least, and enough for one to be drawn a step."""
        units = self.units(customers=terms.unit == "customer")
        return np.flatnonzero((units >= max(1, min_examples)) & (units * terms.sample_rate >= 1))
