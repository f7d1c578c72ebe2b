"""Clipped gradient sums of many devices' units in one pass: what their uploads of one shared round add up to.

For rehearsals, where all rows lie in one process; a device has its own rows only and runs dp_sgd. The sum is the one
that the devices' own sums add up to but for float32 rounding. A linear model of rows that are mostly zeros skips the
zeros (sparse.py). Refuses nothing that dp_sgd would take.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_sdk.training.bookkeeping import booked, unsupported_layer
from edge_sdk.training.jobs import TrainingFailed
from edge_sdk.training.losses import Batches
from edge_sdk.training.module import GraphModule
from edge_sdk.training.private_steps import ClippedSums, FlatWeights, Gradients
from edge_sdk.training.secure_random import SecretStream
from edge_sdk.training.sparse import SparseGradients
from edge_sdk.training.units import Drawn, Units

Vector = npt.NDArray[np.float32]
Whole = npt.NDArray[np.int64]


class PooledSums:
    """All devices' rows. Each call draws units anew and sums their clipped gradients at the weights given."""

    def __init__(
        self,
        module: GraphModule,
        features: dict[str, npt.NDArray[Any]],
        labels: npt.NDArray[Any],
        *,
        owners: Whole,
        subjects: Whole | None,
        per_customer: int,
        max_grad_norm: float,
    ) -> None:
        """`owners` int64 [N]: each row's device. `subjects` int64 [N]: for the customer unit, told apart by device.

        Raises TrainingFailed for a model with a layer that book-keeping does not know.
        """
        if (unknown := unsupported_layer(module)) is not None:
            raise TrainingFailed("model-run", f"{unknown} has no clipping formula: rehearse it device by device")
        torch.set_num_threads(1)
        self._module, self._owners, self._clip = module, owners, max_grad_norm
        tensors = {name: torch.from_numpy(array) for name, array in features.items()}
        self._data = Batches(tensors, torch.from_numpy(labels))
        self._units = Units(len(labels), subjects, per_customer)
        self._sparse = SparseGradients.of(module, self._data, self._units)

    def sum(
        self, weights: Vector, rate: float, stream: SecretStream, here: npt.NDArray[np.bool_], cap: float
    ) -> Vector:
        """Minus the sum, float32 [d], over the devices for which `here` [devices] is true.

        Each unit is drawn with probability `rate`. A device's own sum is scaled down to L2 norm `cap`, as quantisation
        does; only a device of which more than cap / max_grad_norm units were drawn can need that.
        """
        self._module.load_vector(weights)
        drawn = self._units.draw(stream, rate)
        owners = self._owners[drawn.rows[drawn.bounds[:-1]]]
        counts = np.bincount(owners, minlength=len(here))
        crowded = here & (counts * self._clip > cap)
        with booked(self._module) if self._sparse is None else nullcontext(self._sparse) as gradients:
            total = self._clipped(gradients, _chosen(drawn, (here & ~crowded)[owners]))
            for device in np.flatnonzero(crowded):
                own = self._clipped(gradients, _chosen(drawn, owners == device))
                total += own * min(1.0, cap / float(np.linalg.norm(own.astype(np.float64))))
        return -total

    def _clipped(self, gradients: Gradients, drawn: Drawn) -> Vector:
        sums = ClippedSums(gradients, self._data, FlatWeights(self._module), self._clip)
        sums.add(drawn)
        return self._module.flatten(sums.totals.__getitem__)


def _chosen(drawn: Drawn, units: npt.NDArray[np.bool_]) -> Drawn:
    """The drawn units for which `units` [U] is true."""
    if units.all():
        return drawn
    sizes = drawn.sizes
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes[units])])
    return Drawn(drawn.rows[np.repeat(units, sizes)], bounds)
