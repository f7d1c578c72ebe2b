"""Rows that are mostly zeros, for a model whose one layer reads them as they are: logits = (c x) W + b.

Hashed texts fill a hundredth of their columns. Products skip the zeros, and norms of units' gradients need no more than
the rows' own products, which no step changes. The same sums as book-keeping's but for rounding. Refuses nothing: `of`
gives None for another model, and for rows that are too full or too many to a unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch reader knows
from torch import nn

from edge_sdk.training.bookkeeping import Owners, Part, Totals
from edge_sdk.training.losses import Batches, Features, finite, loss_sum
from edge_sdk.training.module import GraphModule
from edge_sdk.training.units import Drawn, Rows, Units, ranges

Tensor = torch.Tensor

_FULLEST: Final = 0.1  # share of numbers that are not zero, from which the dense way is taken
_FEW: Final = 0.125  # share of all numbers below which a product goes through them one by one
_MOST_PRODUCTS: Final = 1 << 24  # of rows with rows of their unit, held (128 MiB)
_PAIRS: Final = 1 << 16  # of one pass over pairs of rows


class SparseRows:
    """c x of all rows by row and by column."""

    def __init__(self, layer: nn.Linear, rows: npt.NDArray[np.float32], scale: float) -> None:
        """`rows` [N, F] as they are given, not scaled."""
        self.layer, self.scale, (self._count, self._width) = layer, scale, rows.shape
        flat = np.flatnonzero(rows)
        self._of, self._columns = np.divmod(flat, self._width)
        self._values = rows.reshape(-1)[flat] * np.float32(scale)
        self._bounds = np.searchsorted(self._of, np.arange(self._count + 1))
        self.squares = np.bincount(self._of, self._values.astype(np.float64) ** 2, self._count)  # |c x|^2
        order = np.argsort(self._columns, kind="stable")
        starts = np.searchsorted(self._columns[order], np.arange(self._width))
        self._turned = [torch.from_numpy(each) for each in (self._of[order], starts, self._values[order])]

    @classmethod
    def of(cls, module: GraphModule, features: Features) -> SparseRows | None:
        """None where the model has other parts, or the rows too few zeros."""
        found = module.scaled_layer()
        if found is None or set(features) != {found[0]}:
            return None
        name, scale, layer = found
        rows = features[name].numpy()
        if rows.shape[1:] != (layer.in_features,) or np.count_nonzero(rows) >= _FULLEST * rows.size:
            return None
        return cls(layer, np.ascontiguousarray(rows), scale)

    def logits(self, rows: Rows) -> Tensor:
        """[B, K] of the rows at `rows`, out of autograd."""
        places, sizes = self._places(rows)
        starts = np.cumsum(sizes) - sizes
        columns, values = torch.from_numpy(self._columns[places]), torch.from_numpy(self._values[places])
        made = _bags(self.layer.weight.detach().t().contiguous(), columns, torch.from_numpy(starts), values)
        return made if self.layer.bias is None else made.add_(self.layer.bias.detach())

    def loss(self, module: GraphModule, rows: Rows, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The summed loss of `rows` of all `labels` [N], and its gradient by their logits [B, K]."""
        logits = self.logits(rows).requires_grad_()
        loss = loss_sum(module.loss_name, logits, labels[torch.from_numpy(rows)], module.quantiles)
        (delta,) = torch.autograd.grad(loss, [logits])
        return loss.detach(), delta

    def add(self, rows: Rows, delta: Tensor, totals: Totals) -> None:
        """Add the weights' gradients, of `rows` and their delta [B, K], to where each weight's sum belongs."""
        weight = totals[self.layer.weight]
        places, sizes = self._places(rows)
        if len(places) < _FEW * len(self._values):
            spread = delta[torch.from_numpy(np.repeat(np.arange(len(rows)), sizes))]
            values = torch.from_numpy(self._values[places])[:, None]
            turned = delta.new_zeros(self._width, delta.shape[1])  # rows side by side add up far faster
            weight.add_(turned.index_add_(0, torch.from_numpy(self._columns[places]), spread.mul_(values)).t())
        else:
            whole = delta.new_zeros(self._count, delta.shape[1]).index_add_(0, torch.from_numpy(rows), delta)
            weight.add_(_bags(whole, *self._turned).t())
        if self.layer.bias is not None:
            totals[self.layer.bias].add_(delta.sum(0))

    def filled(self, rows: Rows) -> int:
        """Numbers of `rows` that are not zero."""
        return int((self._bounds[rows + 1] - self._bounds[rows]).sum())

    def _places(self, rows: Rows) -> tuple[Rows, Rows]:
        """Where the rows' numbers are, one row after the other, and how many each row has."""
        starts = self._bounds[rows]
        sizes = self._bounds[rows + 1] - starts
        return ranges(starts, sizes), sizes


def _bags(table: Tensor, places: Tensor, starts: Tensor, values: Tensor) -> Tensor:
    """Sums of rows of `table`, times `values`; sum k begins at starts[k]."""
    if not len(places):
        return table.new_zeros(len(starts), table.shape[1])
    return F.embedding_bag(places, table, starts, mode="sum", per_sample_weights=values)


class Products:
    """c^2 x_i . x_j for all i and j of one unit."""

    def __init__(self, rows: npt.NDArray[np.float32], scale: float, units: Drawn) -> None:
        sizes = units.sizes
        ends = np.cumsum(sizes**2)
        self._size, self._place, self._start = np.empty((3, len(rows)), np.int64)
        self._size[units.rows] = np.repeat(sizes, sizes)
        self._place[units.rows] = ranges(np.zeros_like(sizes), sizes)
        self._start[units.rows] = np.repeat(ends - sizes**2, sizes)
        self._values = np.empty(int(ends[-1]))
        for unit in range(len(units)):
            own = rows[units.rows[units.bounds[unit] : units.bounds[unit + 1]]].astype(np.float64) * scale
            own = own[:, own.any(axis=0)]
            self._values[ends[unit] - len(own) ** 2 : ends[unit]] = (own @ own.T).reshape(-1)

    def at(self, left: Rows, right: Rows) -> npt.NDArray[np.float64]:
        """Of the rows `left` with those of `right`, [P]; of one unit each."""
        taken: npt.NDArray[np.float64] = self._values[
            self._start[left] + self._place[left] * self._size[left] + self._place[right]
        ]
        return taken


@dataclass
class _Part:
    """delta (c x)^T of `rows`, the gradient of the weight, and delta, that of the bias."""

    sparse: SparseRows
    products: Products | None
    rows: Rows
    delta: Tensor
    totals: Totals

    @property
    def held(self) -> int:
        """See Part."""
        return self.sparse.filled(self.rows) + self.delta.numel()

    def squares(self, owners: Owners) -> Tensor:
        """Sums over a unit's pairs of rows of (c^2 x_i . x_j + 1)(delta_i . delta_j), float32 [U]; 1 for the bias."""
        one, delta = float(self.sparse.layer.bias is not None), self.delta.double()
        if owners.single or self.products is None:
            return torch.from_numpy(self.sparse.squares[self.rows] + one).mul_(delta.square().sum(1)).float()
        each, starts = (np.repeat(value, owners.sizes) for value in (owners.sizes, np.cumsum(owners.sizes)))
        left, right = np.repeat(np.arange(owners.examples), each), ranges(starts - each, each)
        found = delta.new_zeros(owners.count)
        for start in range(0, len(left), _PAIRS):
            a, b = left[start : start + _PAIRS], right[start : start + _PAIRS]
            dots = torch.from_numpy(self.products.at(self.rows[a], self.rows[b]) + one)
            i, j = torch.from_numpy(a), torch.from_numpy(b)
            found.index_add_(0, owners.of[i], (delta[i] * delta[j]).sum(1).mul_(dots))
        # What cancels may end below zero by its rounding.
        return found.clamp_(min=0.0).float()

    def add(self, factors: Tensor, owners: Owners) -> None:
        """See Part."""
        self.sparse.add(self.rows, self.delta * owners.spread(factors)[:, None], self.totals)


class SparseGradients:
    """Parts of gradients of chosen examples, as BookedGradients gives them."""

    def __init__(self, module: GraphModule, sparse: SparseRows, products: Products | None) -> None:
        self._module, self._sparse, self._products = module, sparse, products

    @classmethod
    def of(cls, module: GraphModule, data: Batches, units: Units) -> SparseGradients | None:
        """None where SparseRows does not know the model or the rows, or units are large."""
        sparse, whole = SparseRows.of(module, data.features), units.whole()
        if sparse is None or int((whole.sizes**2).sum()) > _MOST_PRODUCTS:
            return None
        if len(whole) == len(data):
            return cls(module, sparse, None)
        (rows,) = data.features.values()
        return cls(module, sparse, Products(rows.numpy(), sparse.scale, whole))

    def parts(self, data: Batches, rows: Rows, totals: Totals) -> list[Part]:
        """One pass over `rows`; `totals` is where each weight's sum belongs."""
        loss, delta = self._sparse.loss(self._module, rows, data.labels)
        finite(loss)
        return [_Part(self._sparse, self._products, rows, delta, totals)]
