"""Clipped sums of per-unit gradients without per-unit gradients: book-keeping (Bu et al. 2022, arXiv 2210.00038).

One forward and one backward pass to the layers' *outputs*; the norm of each unit's gradient follows from a layer's
inputs and output gradients by a formula, and the clipped sum is one product a layer. A unit is one example or several.
No unit adds more than the clip, whatever its records hold: where its terms nearly cancel, so that rounding could add
more than the formula counted, its gradient is formed, measured as it is, and added like that.
Refuses a layer whose output does not keep the batch on its first axis. `unsupported_layer` names what has no formula
here; the Opacus hooks (hooks.py) train that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch reader knows
from torch import nn

from edge_sdk.training.jobs import TrainingFailed
from edge_sdk.training.losses import Batches, Rows, finite, loss_sum
from edge_sdk.training.module import Elementwise, GraphModule

Tensor = torch.Tensor

# Rows of one Gram product: units are taken together up to so many, as one large product beats many small ones.
_GRAM_ROWS: Final = 32

# A unit whose gradient is so many times shorter than its terms together is formed before it is measured. A float32 sum
# of R rows errs by at most R 2^-24 of its terms: 6e-5 of the clip at 64 rows.
_CANCELS: Final = 16.0

# float32 squares below are lost; counted for every number, so that a vanishing factor never hides a huge one.
_TINY: Final = 2.0**-126

# Longest row whose squares are added in one go in float32: beyond, errors of equal sign reach 1e-3.
_STRAIGHT: Final = 1024


class Owners:
    """Which unit each example belongs to. Examples of one unit lie side by side."""

    def __init__(self, sizes: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """`sizes` int64 [U]: examples of each unit."""
        self.count, self.examples = len(sizes), int(sizes.sum())
        self.single = self.count == self.examples
        self.sizes = sizes
        self._filling: Tensor | None = None
        self.of = torch.from_numpy(np.repeat(np.arange(self.count), sizes))

    def summed(self, values: Tensor) -> Tensor:
        """[B, ...] added up by unit: [U, ...]."""
        if self.single:
            return values
        return values.new_zeros(self.count, *values.shape[1:]).index_add_(0, self.of, values)

    def spread(self, values: Tensor) -> Tensor:
        """[U] repeated for every example: [B]."""
        return values if self.single else values[self.of]

    def filled(self, values: Tensor) -> Tensor:
        """[B, ...] as [U, examples of the largest unit, ...], zeros behind a unit's own."""
        longest = int(self.sizes.max())
        if self._filling is None:
            place = np.arange(self.examples) - np.repeat(np.cumsum(self.sizes) - self.sizes, self.sizes)
            self._filling = self.of * longest + torch.from_numpy(place)
        flat = values.new_zeros(self.count * longest, *values.shape[1:])
        return flat.index_copy_(0, self._filling, values).view(self.count, longest, *values.shape[1:])

    def blocks(self, rows_each: int) -> Iterator[tuple[int, int]]:
        """Ranges of examples that hold whole units, of about _GRAM_ROWS rows where an example has `rows_each`."""
        ends, start = np.cumsum(self.sizes), 0
        while start < self.examples:
            most = start + max(1, _GRAM_ROWS // rows_each)
            end = int(ends[max(int(np.searchsorted(ends, most, side="right")) - 1, 0)])
            if end <= start:
                end = int(ends[np.searchsorted(ends, start, side="right")])
            yield start, end
            start = end


class Part(Protocol):
    """The gradients of some weights, by unit."""

    @property
    def held(self) -> int:
        """Numbers that are held until `add`."""

    def squares(self, owners: Owners) -> Tensor:
        """Squared L2 norm of each unit's gradient, [U]."""

    def add(self, factors: Tensor, owners: Owners) -> None:
        """Add the sum of the units' gradients, times `factors` [U], to where this part belongs."""


@dataclass
class Direct:
    """Gradients small enough to be held one by one: `each` [B, n] for the weights at `total` [n]."""

    each: Tensor
    total: Tensor

    @property
    def held(self) -> int:
        """See Part."""
        return self.each.numel()

    def squares(self, owners: Owners) -> Tensor:
        """See Part."""
        self.each = owners.summed(self.each)
        return _lengths(self.each).square_()

    def add(self, factors: Tensor, owners: Owners) -> None:  # noqa: ARG002 - the interface of Part
        """See Part."""
        self.total.addmv_(self.each.t(), factors)


@dataclass
class Outer:
    """A linear layer on one row an example: x [B, p], delta [B, q]; the gradient is delta x^T, at `total` [q, p].

    `bias` [q] is where delta itself belongs, if anywhere: as if x had one more column of ones.
    """

    x: Tensor
    delta: Tensor
    total: Tensor
    bias: Tensor | None

    @property
    def held(self) -> int:
        """See Part."""
        return self.x.numel() + self.delta.numel()

    def squares(self, owners: Owners) -> Tensor:
        """|x|^2 |delta|^2 for one example (Goodfellow 2015); sums of (x_i . x_j)(delta_i . delta_j) for several."""
        self._formed: Formed | None = None
        if not owners.single:
            self._formed = Formed(self.x[:, None], self.delta[:, None], owners, self.total, self.bias)
            return self._formed.squares()
        inputs = _lengths(self.x).square_().add_((self.bias is not None) + _TINY * self.x.shape[1])
        return _lengths(self.delta).square_().add_(_TINY * self.delta.shape[1]).mul_(inputs)

    def add(self, factors: Tensor, owners: Owners) -> None:
        """See Part."""
        factors = factors if self._formed is None else self._formed.add(factors)
        scaled = self.delta * owners.spread(factors)[:, None]
        self.total.addmm_(scaled.t(), self.x)
        if self.bias is not None:
            self.bias.add_(scaled.sum(0))


@dataclass
class OuterRows:
    """A linear layer on P rows an example: x [B, P, p], delta [B, P, q], at `total` [q, p]."""

    x: Tensor
    delta: Tensor
    total: Tensor

    @property
    def held(self) -> int:
        """See Part."""
        return self.x.numel() + self.delta.numel()

    def squares(self, owners: Owners) -> Tensor:
        """See Part."""
        self._formed = Formed(self.x, self.delta, owners, self.total, None)
        return self._formed.squares()

    def add(self, factors: Tensor, owners: Owners) -> None:
        """See Part."""
        factors = self._formed.add(factors)
        scaled = self.delta * owners.spread(factors)[:, None, None]
        self.total.addmm_(scaled.flatten(0, 1).t(), self.x.flatten(0, 1))


class Formed:
    """Norms of units of several rows by pairs of rows; of those whose rows nearly cancel, the gradient itself.

    x [B, P, p], delta [B, P, q]; `total` [q, p] and `bias` [q] as in Outer.
    """

    def __init__(self, x: Tensor, delta: Tensor, owners: Owners, total: Tensor, bias: Tensor | None) -> None:
        self._x, self._delta, self._owners, self._total, self._bias = x, delta, owners, total, bias
        self._units: list[int] = []

    def squares(self) -> Tensor:
        """See Part."""
        squares, terms = _gram(self._x, self._delta, self._owners, 0.0 if self._bias is None else 1.0)
        # "Not above" takes what is not a number along: it is refused where it is measured.
        self._units = torch.nonzero(~(squares * _CANCELS**2 >= terms.square())).view(-1).tolist()
        self._ends = np.cumsum(self._owners.sizes) if self._units else np.empty(0, np.int64)
        for unit in self._units:
            squares[unit] = sum(value.double().square().sum() for value in self._gradient(unit))
        return squares.float()

    def add(self, factors: Tensor) -> Tensor:
        """Add the formed gradients, times their factors; the factors that remain for the others, [U]."""
        if not self._units:
            return factors
        for unit in self._units:
            for total, value in zip((self._total, self._bias), self._gradient(unit), strict=False):
                assert total is not None
                total.add_(value * factors[unit])
        return factors.index_fill(0, torch.tensor(self._units), 0.0)

    def _gradient(self, unit: int) -> list[Tensor]:
        """Added up in float64, then float32; formed twice rather than held, as every unit of a pass may need it."""
        end = int(self._ends[unit])
        rows = slice(end - int(self._owners.sizes[unit]), end)
        x, delta = (value[rows].flatten(0, 1).double() for value in (self._x, self._delta))
        formed = [(delta.t() @ x).float()]
        return formed if self._bias is None else [*formed, delta.sum(0).float()]


def _lengths(rows: Tensor) -> Tensor:
    """L2 norm of each row; of long rows by pieces, as one float32 sum of many squares drifts."""
    whole = rows.shape[1] // _STRAIGHT * _STRAIGHT
    if rows.shape[1] > _STRAIGHT:
        pieces = torch.linalg.vector_norm(rows[:, :whole].reshape(len(rows), -1, _STRAIGHT), dim=2)
        rest = torch.linalg.vector_norm(rows[:, whole:], dim=1, keepdim=True)
        rows = torch.cat([pieces, rest], dim=1)
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return lengths


def _gram(x: Tensor, delta: Tensor, owners: Owners, one: float) -> tuple[Tensor, Tensor]:
    """sum over a unit's pairs of rows of (x_i . x_j + one)(delta_i . delta_j), and its rows' norms added up.

    Both float64 [U]. The first is the squared norm, wrong by about 2^-53 of the other's square.
    """
    rows, longest = x.shape[1], int(owners.sizes.max())
    if owners.count * longest**2 <= owners.examples * max(_GRAM_ROWS // rows, 1):
        return _gram_side_by_side(x, delta, owners, one)
    squares, terms = x.new_zeros(2, owners.count, dtype=torch.float64)
    for start, end in owners.blocks(rows):
        left, right = (value[start:end].flatten(0, 1).double() for value in (x, delta))
        owner = owners.of[start:end].repeat_interleave(rows)
        pairs = (left @ left.t()).add_(one).mul_(right @ right.t())
        terms.index_add_(0, owner, pairs.diagonal().sqrt())
        squares.index_add_(0, owner, pairs.mul_(owner[:, None] == owner[None, :]).sum(1))
    return squares, terms


def _gram_side_by_side(x: Tensor, delta: Tensor, owners: Owners, one: float) -> tuple[Tensor, Tensor]:
    """The same for units of similar size: each filled up with rows of zeros to the largest."""
    left, right = (owners.filled(value).flatten(1, 2).double() for value in (x, delta))
    pairs = torch.bmm(left, left.transpose(1, 2)).add_(one).mul_(torch.bmm(right, right.transpose(1, 2)))
    return pairs.sum((1, 2)), pairs.diagonal(dim1=1, dim2=2).sqrt().sum(1)


@dataclass
class Lookup:
    """An embedding: ids [B, P], delta [B, P, n], at `total` [V, n]. Equal ids of one unit add up."""

    ids: Tensor
    delta: Tensor
    total: Tensor

    @property
    def held(self) -> int:
        """See Part."""
        return self.ids.numel() + self.delta.numel()

    def squares(self, owners: Owners) -> Tensor:
        """One gradient row for each (unit, id); the rows of a unit are orthogonal."""
        rows = len(self.total)
        keys = (owners.of[:, None] * rows + self.ids).view(-1)
        self._keys, place = torch.unique(keys, return_inverse=True)
        self._summed = self.delta.new_zeros(len(self._keys), self.delta.shape[-1])
        self._summed.index_add_(0, place, self.delta.flatten(0, 1))
        self._owner = self._keys.div(rows, rounding_mode="floor")
        lengths = _lengths(self._summed).square_()
        return self.delta.new_zeros(owners.count).index_add_(0, self._owner, lengths)

    def add(self, factors: Tensor, owners: Owners) -> None:  # noqa: ARG002 - the interface of Part
        """See Part."""
        self.total.index_add_(0, self._keys.remainder(len(self.total)), self._summed * factors[self._owner][:, None])


@dataclass
class Trace:
    """What one layer saw: its input, its output and, after the backward pass, the gradient at its output."""

    layer: nn.Module
    x: Tensor
    output: Tensor
    delta: Tensor


# torch declares some layers' weights as Tensor: the keys are parameters all the same.
Totals = Mapping[Tensor, Tensor]
Formula = Callable[[Any, Trace, Totals], list[Part]]


def _linear(layer: nn.Linear, trace: Trace, totals: Totals) -> list[Part]:
    x, delta, weight, bias = trace.x, trace.delta, layer.weight, layer.bias
    if x.dim() == 2:
        return [Outer(x, delta, totals[weight], None if bias is None else totals[bias])]
    x, delta = x.flatten(1, -2), delta.flatten(1, -2)
    parts = [_rows(x, delta, totals[weight])]
    if bias is not None:
        parts.append(Direct(delta.sum(1), totals[bias]))
    return parts


def _rows(x: Tensor, delta: Tensor, total: Tensor) -> Part:
    """Whichever costs fewer products: pairs of rows, or each example's own gradient."""
    rows, p, q = x.shape[1], x.shape[2], delta.shape[2]
    # Several examples of a unit meet in pairs too: a Gram block has about _GRAM_ROWS rows.
    if max(rows, _GRAM_ROWS) * (p + q) < p * q:
        return OuterRows(x, delta, total)
    return Direct(torch.bmm(delta.transpose(1, 2), x).flatten(1), total.view(-1))


def _convolution(layer: nn.Conv1d | nn.Conv2d, trace: Trace, totals: Totals) -> list[Part]:
    """Windows unfolded to rows, then as a linear layer, group by group."""
    windows, delta = _windows(layer, trace.x), trace.delta.flatten(2)
    examples, groups, rows = len(delta), layer.groups, delta.shape[2]
    left = delta.reshape(examples * groups, -1, rows)
    each = torch.bmm(left, windows.reshape(examples * groups, -1, rows).transpose(1, 2))
    parts: list[Part] = [Direct(each.view(examples, -1), totals[layer.weight].view(-1))]
    if layer.bias is not None:
        parts.append(Direct(delta.sum(2), totals[layer.bias]))
    return parts


def _windows(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """[B, channels * kernel, P]: what each output position sees. The module pads outside the layer."""
    if isinstance(layer, nn.Conv2d):
        return F.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride)
    (kernel,), (stride,), (dilation,) = layer.kernel_size, layer.stride, layer.dilation
    wide = x.unfold(2, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    return wide.transpose(2, 3).reshape(len(x), -1, wide.shape[2])


def _embedding(layer: nn.Embedding, trace: Trace, totals: Totals) -> list[Part]:
    examples = len(trace.x)
    return [Lookup(trace.x.reshape(examples, -1), trace.delta.flatten(1, -2), totals[layer.weight])]


def _affine(gradient: Tensor, channels: int) -> Tensor:
    """[B, C]: the sum over every axis but the batch's and the channels'."""
    others = [axis for axis in range(1, gradient.dim()) if axis != channels % gradient.dim()]
    return gradient.sum(others) if others else gradient


def _norm(layer: nn.LayerNorm | nn.GroupNorm, trace: Trace, totals: Totals) -> list[Part]:
    if isinstance(layer, nn.LayerNorm):
        channels, plain = -1, F.layer_norm(trace.x, layer.normalized_shape, None, None, layer.eps)
    else:
        channels, plain = 1, F.group_norm(trace.x, layer.num_groups, None, None, layer.eps)
    parts: list[Part] = [Direct(_affine(trace.delta * plain, channels), totals[layer.weight])]
    if layer.bias is not None:
        parts.append(Direct(_affine(trace.delta, channels), totals[layer.bias]))
    return parts


def _elementwise(layer: Elementwise, trace: Trace, totals: Totals) -> list[Part]:
    gradient = trace.delta if layer.adds else trace.delta * trace.x
    return [Direct(layer.by_example(gradient).flatten(1), totals[layer.weight].view(-1))]


FORMULAS: Final[Mapping[type[nn.Module], Formula]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _norm,
    nn.GroupNorm: _norm,
    Elementwise: _elementwise,
}


def unsupported_layer(module: GraphModule) -> str | None:
    """The first kind of layer that has no formula here, or that shares its weights; None where all have one."""
    seen: set[nn.Parameter] = set()
    for layer in module.sites:
        if type(layer) not in FORMULAS:
            return type(layer).__name__
        own = set(layer.parameters())
        if own & seen:
            return f"{type(layer).__name__} with shared weights"
        seen |= own
    return None


class Book:
    """The layers' inputs and outputs of the pass that runs."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []

    def note(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook. An output that nothing before it trains is where the backward pass ends."""
        if not output.requires_grad:
            output.requires_grad_()
        self.traces.append(Trace(layer, inputs[0].detach(), output, output))

    def take(self, loss: Tensor) -> list[Trace]:
        """One backward pass to the outputs. Empties the book. Raises TrainingFailed."""
        traces, self.traces = self.traces, []
        deltas = torch.autograd.grad(loss, [trace.output for trace in traces], allow_unused=True)
        for trace, delta in zip(traces, deltas, strict=True):
            if delta is None:
                raise TrainingFailed("model-run", "a weight has no influence on the model's output: publish it again")
            trace.delta = delta
        return traces


class BookedGradients:
    """Parts of gradients of chosen examples."""

    def __init__(self, module: GraphModule, book: Book) -> None:
        self._module, self._book = module, book

    def parts(self, data: Batches, rows: Rows, totals: Totals) -> list[Part]:
        """One forward and one backward pass over `rows`; `totals` is where each weight's sum belongs."""
        features, labels = data.take(rows)
        loss = loss_sum(self._module.loss_name, self._module(features), labels, self._module.quantiles)
        finite(loss)
        parts: list[Part] = []
        for trace in self._book.take(loss):
            if not len(trace.x) == len(trace.delta) == len(rows):
                raise TrainingFailed("wrong-shape", "a layer does not keep the examples on its first axis")
            parts += FORMULAS[type(trace.layer)](trace.layer, trace, totals)
        return parts


@contextmanager
def booked(module: GraphModule) -> Iterator[BookedGradients]:
    """`module` with its weights out of autograd and its layers' inputs and outputs kept by a book."""
    book = Book()
    hooks = [layer.register_forward_hook(book.note) for layer in module.sites]
    module.requires_grad_(False)
    try:
        yield BookedGradients(module, book)
    finally:
        module.requires_grad_(True)
        for hook in hooks:
            hook.remove()


def clip_factors(squares: Tensor, clip: float) -> Tensor:
    """[U]: what each unit's gradient is multiplied with, min(1, clip / norm). Raises TrainingFailed for NaN."""
    if not torch.isfinite(squares).all():
        raise TrainingFailed("not-finite", "a gradient is NaN or infinite: check the examples")
    return squares.rsqrt().mul_(clip).clamp_(max=1.0)
