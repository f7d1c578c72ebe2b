"""Who is one unit of privacy, and which units a step takes. Imports no torch.

Record unit: every example. Customer unit: all examples of one subject, sampled together, at most `per_customer` of them
in one step, chosen by the secret stream. Refuses subjects that do not fit the examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_sdk.training.jobs import TrainingFailed
from edge_sdk.training.secure_random import SecretStream

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Drawn:
    """Some units' examples. rows int64 [B]; the rows of unit k are rows[bounds[k] : bounds[k + 1]]; bounds [U + 1]."""

    rows: Rows
    bounds: Rows

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def sizes(self) -> Rows:
        """Examples of each unit, int64 [U]."""
        return np.diff(self.bounds)

    def split(self, most: int) -> tuple[Drawn, Drawn]:
        """The first units, of at most `most` examples in all but at least one unit, and the others."""
        unit = max(int(np.searchsorted(self.bounds, most, side="right")) - 1, 1)
        row = self.bounds[unit]
        first = Drawn(self.rows[:row], self.bounds[: unit + 1])
        return first, Drawn(self.rows[row:], self.bounds[unit:] - row)


class Units:
    """The units of one data set."""

    def __init__(self, records: int, subjects: Rows | None, per_customer: int) -> None:
        """`subjects` int64 [records], None for the record unit; a negative number is a unit of its own."""
        self._most = per_customer
        if subjects is None:
            self._order, self._bounds = np.arange(records), np.arange(records + 1)
            self._single = True
            return
        if subjects.shape != (records,) or subjects.dtype != np.int64:
            raise TrainingFailed("wrong-shape", f"subjects are int64 [{records}], one for each example")
        self._order = np.argsort(subjects, kind="stable")
        ordered = subjects[self._order]
        new = np.ones(records, bool)
        new[1:] = (ordered[1:] != ordered[:-1]) | (ordered[1:] < 0)
        self._bounds = np.append(np.flatnonzero(new), records)
        self._single = bool(new.all())

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def whole(self) -> Drawn:
        """All units with all their examples."""
        return Drawn(self._order, self._bounds)

    def draw(self, stream: SecretStream, rate: float) -> Drawn:
        """Each unit with probability `rate`, independently; of each, at most `per_customer` examples at random."""
        chosen = stream.poisson_sample(len(self), rate)
        if self._single:
            return Drawn(self._order[chosen], np.arange(len(chosen) + 1))
        starts, sizes = self._bounds[chosen], self._bounds[chosen + 1] - self._bounds[chosen]
        if len(chosen) and sizes.max() > self._most:
            return self._some(starts, sizes, stream)
        return Drawn(self._order[ranges(starts, sizes)], _bounds(sizes))

    def _some(self, starts: Rows, sizes: Rows, stream: SecretStream) -> Drawn:
        places, owner = ranges(starts, sizes), np.repeat(np.arange(len(sizes)), sizes)
        # Random order within each unit; its first places are kept.
        places = places[np.lexsort((stream.words(len(places)), owner))]
        rank = np.arange(len(places)) - np.repeat(_bounds(sizes)[:-1], sizes)
        kept = np.minimum(sizes, self._most)
        return Drawn(self._order[places[rank < self._most]], _bounds(kept))


def _bounds(sizes: Rows) -> Rows:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def ranges(starts: Rows, sizes: Rows) -> Rows:
    """start, start + 1, ... of each range, one after the other."""
    offsets = _bounds(sizes)
    return np.repeat(starts - offsets[:-1], sizes) + np.arange(offsets[-1])
