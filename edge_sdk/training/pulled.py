"""Weights of a linear part that fit some rows and are held near given ones, along a path of falling pulls.

Least sum over rows of loss(offset + Z W) + pull / 2 |W - start|^2, by L-BFGS in the rows' own scales; each pull
begins where the one before ended. The pull is a Gaussian prior around `start` (ridge regression where that is 0). Wide
rows are turned into their principal directions once, which changes neither the pull nor the result and makes n rows of
m > n columns n wide; of more than 1,024 directions the largest stay. Draws nothing.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch reader knows

Floats = npt.NDArray[np.float32]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

MOST_TURNED: Final = 2000  # rows or columns: the directions of more take longer than they save
MOST_DIRECTIONS: Final = 1024
_SPARSE: Final = 0.1  # share of entries that are not zero, below which products skip the zeros
_SMALLEST: Final = 1e-6  # of the largest direction's size
_STEPS: Final = 10
_SMOOTH: Final = 0.05  # width of the bend that stands for pinball loss's corner, in the label's scale


class Directions:
    """Rows [n, m] as Z [n, r], and weights of Z as weights of the rows."""

    def __init__(self, rows: Floats) -> None:
        self._rows = torch.from_numpy(rows)
        count, width = rows.shape
        self._back: Callable[[torch.Tensor], torch.Tensor] = lambda weights: weights
        self.turned: torch.Tensor = self._rows
        if min(count, width) > MOST_TURNED:
            if np.count_nonzero(rows) < _SPARSE * rows.size:
                with warnings.catch_warnings():  # torch calls these tensors a beta; products are all we ask of them
                    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
                    self.turned = self._rows.to_sparse_csr()
        else:
            # Rows that are not turned only take longer.
            with contextlib.suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined] # it is documented
                self._turn() if width <= count else self._turn_wide()
        kept = self.turned.numel() if self.turned.layout == torch.strided else int(np.count_nonzero(rows))
        self.products = float(kept)  # of one pass, for each output
        self.energy = (self._rows**2).sum(0) if self.turned.layout != torch.strided else (self.turned**2).sum(0)

    def _turn(self) -> None:
        vectors = _principal(self._rows.T @ self._rows)[1]
        self.turned, self._back = self._rows @ vectors, lambda weights: vectors @ weights

    def _turn_wide(self) -> None:
        sizes, vectors = _principal(self._rows @ self._rows.T)
        kept = sizes > _SMALLEST * sizes.max()
        kept[:-MOST_DIRECTIONS] = False
        roots, vectors = sizes[kept].sqrt(), vectors[:, kept]
        self.turned = vectors * roots
        self._back = lambda weights: self._rows.T @ ((vectors / roots) @ weights)

    def weights(self, turned: torch.Tensor) -> Floats:
        """[m, K] of the rows from [r, K] of their directions."""
        back: Floats = self._back(turned).numpy()
        return back


def _principal(products: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sizes and directions of a symmetric matrix, in doubles: many columns of zeros do not converge in singles."""
    sizes, vectors = torch.linalg.eigh(products.double())
    return sizes.float(), vectors.float()


def row_loss(name: str, quantiles: torch.Tensor | None, *, smooth: bool = False) -> Loss:
    """(logits [n, K], labels [n]) to each row's loss [n]. `smooth`: pinball loss with a bend for its corner."""
    if name == "cross_entropy":
        return lambda logits, labels: F.cross_entropy(logits, labels.long(), reduction="none")
    if name == "binary_cross_entropy":
        return lambda logits, labels: F.binary_cross_entropy_with_logits(logits[:, 0], labels.float(), reduction="none")
    if name == "mse":
        return lambda logits, labels: (logits[:, 0] - labels.float()) ** 2
    assert quantiles is not None

    def pinball(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        above = labels.float().view(-1, 1) - logits
        below = F.softplus(-above / _SMOOTH) * _SMOOTH if smooth else torch.relu(-above)
        return (quantiles * above + below).sum(1)

    return pinball


class Fit:
    """One set of rows to fit, and its weights [r, K] as the pull falls."""

    def __init__(
        self, directions: Directions, base: torch.Tensor, labels: torch.Tensor, loss: Loss, counted: torch.Tensor
    ) -> None:
        """`base`: logits [n, K] of the weights that pull. `counted` [n]: 1.0 for rows to fit, 0.0 for others."""
        self._z, self._base, self._labels, self._loss, self._counted = directions.turned, base, labels, loss, counted
        self._energy = directions.energy.clamp(min=1e-12)
        self._change = torch.zeros(self._z.shape[1], base.shape[1])

    def fall(self, pull: float) -> torch.Tensor:
        """The change of the weights [r, K] for a pull, less than the one before."""
        self._change = self._descend(self._change, pull)
        return self._change

    def logits(self) -> torch.Tensor:
        """[n, K] of all rows, counted or not, with the last change."""
        return self._base + self._z @ self._change

    def _descend(self, change: torch.Tensor, pull: float) -> torch.Tensor:
        scale = (0.2 * self._energy + pull).rsqrt().view(-1, 1)
        leaf = (change / scale).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [leaf], max_iter=_STEPS, max_eval=2 * _STEPS, tolerance_grad=1e-4, tolerance_change=1e-6,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> Any:
            leaf.grad = None
            weights = leaf * scale
            losses = self._loss(self._base + self._z @ weights, self._labels)
            total = (losses * self._counted).sum() + pull / 2 * (weights**2).sum()
            total.backward()  # type: ignore[no-untyped-call] # torch has no annotation here
            return total

        optimizer.step(closure)  # type: ignore[no-untyped-call] # as above
        return (leaf * scale).detach()
