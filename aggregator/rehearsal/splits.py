"""Which device holds a row, and on which side of the test it falls. Pure: hashes of names, numbers and a seed.

A customer stays on one side. Refuses, with DataRefused, a split into fewer than three devices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from aggregator.rehearsal.tables import DataRefused
from aggregator.rehearsal.understood import Understood

FEWEST: Final = 3
MOST: Final = 65_000
Whole = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Split:
    """`order` int64 [N]: row numbers, device by device. `owners`, `test` [N] and `subjects` are in that order."""

    names: tuple[str, ...]
    order: Whole
    owners: Whole
    test: Mask
    subjects: Whole | None


def split(found: Understood, *, devices: int | None, test_share: float, seed: int) -> Split:
    """Rows to devices and sides. `devices`: regroup the column's values into so many. Raises DataRefused."""
    owners = _owners(found, devices, seed)
    names = tuple(sorted(set(owners), key=_natural))
    if len(names) < FEWEST:
        raise DataRefused(
            f"the rows fall to {len(names)} device{'s'[: len(names) != 1]}; a sum needs at least {FEWEST}",
            "give --by a column of more values, or leave --by out and give --devices 10",
        )
    if len(names) > MOST:
        raise DataRefused(f"{len(names)} devices are too many for one task", f"regroup them: --devices {MOST // 10}")
    places = {name: place for place, name in enumerate(names)}
    numbers = np.array([places[owner] for owner in owners], np.int64)
    order = np.argsort(numbers, kind="stable").astype(np.int64)
    subjects = None if found.subjects is None else _numbered(found.subjects)
    chance = _chances(found, seed)
    test = (chance < test_share)[order] if subjects is not None else _ranked(numbers, chance, test_share)[order]
    if test.all() or not test.any():
        raise DataRefused("there are too few rows to hold some back for the test", "give more rows")
    return Split(names, order, numbers[order], test, None if subjects is None else subjects[order])


def _owners(found: Understood, devices: int | None, seed: int) -> list[str]:
    """Whole values of the column to one device, where it has enough of them; else each value is cut."""
    if devices is None:
        return found.owners
    values = sorted(set(found.owners), key=lambda value: _fraction(seed, "regroup", value))
    if len(values) >= devices:
        group = {value: f"device {place % devices + 1:0{len(str(devices))}}" for place, value in enumerate(values)}
        return [group[owner] for owner in found.owners]
    parts = -(-devices // len(values))
    keys = found.subjects or [str(row) for row in range(found.rows)]
    return [
        f"{owner or 'device'} {int(_fraction(seed, 'cut', key) * parts) + 1:0{len(str(parts))}}"
        for owner, key in zip(found.owners, keys, strict=True)
    ]


def _chances(found: Understood, seed: int) -> npt.NDArray[np.float64]:
    keys = found.subjects or [str(row) for row in range(found.rows)]
    return np.array([_fraction(seed, "test", key or f"row {row}") for row, key in enumerate(keys)])


def _ranked(owners: Whole, chance: npt.NDArray[np.float64], share: float) -> Mask:
    """Of each device the rows of the lowest chances: its share of rows, the remainder by its lowest chance."""
    test = np.zeros(len(owners), np.bool_)
    order = np.lexsort((chance, owners))
    bounds = np.searchsorted(owners[order], np.arange(owners.max() + 2))
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        own = order[first:last]
        whole, rest = divmod(share * len(own), 1.0)
        lucky = len(own) > 0 and (chance[own[-1]] * 7919) % 1.0 < rest
        test[own[: int(whole) + lucky]] = True
    return test


def _numbered(names: Sequence[str]) -> Whole:
    """int64 [N]: the same number for the same customer, -1 for nobody."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(name, len(known)) if name else -1 for name in names], np.int64)


def _fraction(seed: int, purpose: str, key: str) -> float:
    digest = hashlib.blake2b(f"{seed}/{purpose}/{key}".encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def _natural(name: str) -> tuple[int, float, str]:
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name
