"""DP-SGD (Abadi et al. 2016) for the record and the customer unit: sample units, clip their gradients, add noise, step.

All weights lie in one flat vector, and so does the step: noise is drawn into it, each layer adds its clipped sum, one
addition moves the weights. Opacus is not in this path; the tests hold every sum and norm against its hooks.
An empty sample is a step of noise only, never skipped: skipping would show that it was empty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
import torch
from torch import nn

from edge_sdk.training.bookkeeping import Owners, Part, Totals, clip_factors
from edge_sdk.training.losses import Batches, Rows
from edge_sdk.training.noise import Gaussian
from edge_sdk.training.secure_random import SecretStream
from edge_sdk.training.units import Drawn, Units

# Numbers that one pass may hold for its gradients (64 MiB), and the examples of the first pass, which measures them.
# Where every unit is one example, 4 MiB: what is larger the C library maps anew in every pass, which took two thirds of
# the CPU time of 24,576 columns. Units of several examples are rather kept in one pass.
_HELD_NUMBERS: Final = 1 << 24
_HELD_OF_SINGLES: Final = 1 << 20
_FIRST_EXAMPLES: Final = 8


class Gradients(Protocol):
    """Where parts of gradients come from: book-keeping or Opacus' hooks."""

    def parts(self, data: Batches, rows: Rows, totals: Totals) -> list[Part]:
        """One pass over `rows`."""


class FlatWeights:
    """A module's weights as views of one vector."""

    def __init__(self, module: nn.Module) -> None:
        """Moves the weights; their values and the module stay as they are."""
        self._parameters = list(module.parameters())
        self.vector = torch.cat([parameter.detach().reshape(-1) for parameter in self._parameters])
        for parameter, view in self.views(self.vector).items():
            parameter.data = view

    def views(self, flat: torch.Tensor) -> dict[torch.Tensor, torch.Tensor]:
        """Each weight's part of a vector in the same order, in the weight's shape."""
        parts = torch.split(flat, [parameter.numel() for parameter in self._parameters])
        return {parameter: part.view_as(parameter) for parameter, part in zip(self._parameters, parts, strict=True)}


class ClippedSums:
    """Adds up clipped gradients of drawn units into one vector, in passes of bounded memory."""

    def __init__(self, gradients: Gradients, data: Batches, weights: FlatWeights, clip: float) -> None:
        """`clip`: L2 bound of one unit's gradient of its summed loss."""
        self.total = torch.zeros_like(weights.vector)
        self._gradients, self._data, self._weights, self._clip = gradients, data, weights, clip
        self.totals: Totals = weights.views(self.total)
        self._most, self._held = _FIRST_EXAMPLES, _HELD_NUMBERS

    def add(self, drawn: Drawn) -> None:
        """Add the units' clipped gradients to `total`. Raises TrainingFailed for a value that is not finite."""
        rest = drawn
        self._held = min(_HELD_NUMBERS, _HELD_OF_SINGLES) if len(drawn) == len(drawn.rows) else _HELD_NUMBERS
        while len(rest):
            now, rest = rest.split(self._most)
            if len(now.rows) > self._most:
                self._add_large(now)
            else:
                self._add_pass(now)

    def _add_pass(self, drawn: Drawn) -> None:
        owners = Owners(drawn.sizes)
        parts = self._passed(drawn.rows, self.totals)
        squares = torch.stack([part.squares(owners) for part in parts]).sum(0)
        factors = clip_factors(squares, self._clip)
        for part in parts:
            part.add(factors, owners)

    def _add_large(self, drawn: Drawn) -> None:
        """One unit of more examples than a pass may hold: its gradient is summed first, then clipped."""
        whole = torch.zeros_like(self.total)
        totals = self._weights.views(whole)
        for start in range(0, len(drawn.rows), self._most):
            rows = drawn.rows[start : start + self._most]
            owners = Owners(np.ones(len(rows), np.int64))
            for part in self._passed(rows, totals):
                part.squares(owners)
                part.add(torch.ones(len(rows)), owners)
        factor = clip_factors(torch.linalg.vector_norm(whole, dtype=torch.float64).square()[None].float(), self._clip)
        self.total.add_(whole.mul_(factor))

    def _passed(self, rows: Rows, totals: Totals) -> list[Part]:
        parts = self._gradients.parts(self._data, rows, totals)
        held = sum(part.held for part in parts)
        self._most = max(1, self._held // (held // len(rows) + 1))
        return parts


def private_steps(
    sums: ClippedSums,
    weights: FlatWeights,
    units: Units,
    stream: SecretStream,
    *,
    rate: float,
    deviation: float,
    move: float,
    pull: float,
    steps: int,
    on_step: Callable[[int, int], None],
) -> None:
    """`steps` steps of local placement: weights -= move (clipped sum + noise of standard deviation `deviation`).

    Each step also takes away `pull` times the distance to the first weights.
    """
    noise, flat = Gaussian(stream), sums.total.numpy()
    offered = weights.vector.clone() if pull else None
    for step in range(steps):
        drawn = units.draw(stream, rate)
        if deviation > 0:
            noise.fill(flat, deviation)
        else:
            sums.total.zero_()
        sums.add(drawn)
        if offered is not None:
            weights.vector.lerp_(offered, pull)
        weights.vector.add_(sums.total, alpha=-move)
        on_step(step + 1, steps)
