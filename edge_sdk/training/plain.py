"""Training without privacy, until more of it does not help: what private training is measured against.

Nothing that this returns may leave a device. Adam (Kingma and Ba 2015, algorithm 1) over shuffled batches, or L-BFGS
over all rows at once. The loss is the mean over a batch plus half `weight_decay` times the squared weights of all
matrices, biases left out. Draws nothing: a generator is passed in. Refuses a loss that is not finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from edge_sdk.training.jobs import TrainingFailed
from edge_sdk.training.losses import Batches, loss_sum, mean_loss
from edge_sdk.training.module import GraphModule
from edge_sdk.training.private_steps import FlatWeights
from edge_sdk.training.sparse import SparseRows

Vector = npt.NDArray[np.float32]
_BETAS: Final = (0.9, 0.999)
_TINY: Final = 1e-8
_BATCH_ROWS: Final = 4096  # of one pass over all rows
_WIDE: Final = 4096  # columns from which a small batch gains by skipping zeros


@dataclass(frozen=True, slots=True)
class PlainPlan:
    """How to train. `epochs`: passes over the rows (lbfgs: iterations), at most so many where others are watched.

    `patience`: watched passes without a better loss after which training ends. `learning_rate`, `batch_size`: adam.
    """

    optimizer: Literal["adam", "lbfgs"] = "adam"
    learning_rate: float = 0.01
    epochs: int = 60
    batch_size: int = 128
    weight_decay: float = 0.0
    patience: int = 10


class Fitted(NamedTuple):
    """The best weights, float32 [d], after how many epochs, and the watched rows' loss then (NaN: none watched)."""

    weights: Vector
    epochs: int
    loss: float


def batches(features: Mapping[str, npt.NDArray[Any]], labels: npt.NDArray[Any]) -> Batches:
    """Arrays as the tensors that `fit` wants, not copied."""
    return Batches({name: torch.from_numpy(array) for name, array in features.items()}, torch.from_numpy(labels))


def fit(
    module: GraphModule, data: Batches, plan: PlainPlan, rng: np.random.Generator, watched: Batches | None = None
) -> Fitted:
    """Train the module from the weights that it has. With `watched` rows the pass that is best on them counts.

    Raises TrainingFailed "no-examples", "not-finite".
    """
    if watched is None or not len(watched):
        _run(module, data, plan, rng).passes(plan.epochs)
        return Fitted(_finite(module), plan.epochs, float("nan"))
    best = Fitted(module.update_vector(), 0, mean_loss(module, watched))
    for epoch in course(module, data, plan, rng):
        loss = mean_loss(module, watched)
        if loss < best.loss:
            best = Fitted(_finite(module), epoch, loss)
        elif epoch - best.epochs >= plan.patience:
            break
    module.load_vector(best.weights)
    return best


def course(module: GraphModule, data: Batches, plan: PlainPlan, rng: np.random.Generator) -> Iterator[int]:
    """Train the module pass by pass: how many it has behind it, 1 to the plan's epochs. Raises as `fit` does."""
    run = _run(module, data, plan, rng)
    for epoch in range(1, plan.epochs + 1):
        run.passes(1)
        yield epoch


def answers(module: GraphModule, data: Batches) -> Vector:
    """Outputs of all examples, float32 [n, outputs]."""
    with torch.no_grad():
        return np.concatenate([module(x).reshape(len(y), -1).numpy() for x, y in data.parts()])


def loss_of(module: GraphModule, outputs: Vector, labels: npt.NDArray[Any]) -> float:
    """The summed loss of such outputs. Raises TrainingFailed."""
    loss = loss_sum(module.loss_name, torch.from_numpy(outputs), torch.from_numpy(labels), module.quantiles)
    return loss.item()


def _run(module: GraphModule, data: Batches, plan: PlainPlan, rng: np.random.Generator) -> _Adam | _Newton:
    if not len(data):
        raise TrainingFailed("no-examples", "there are no examples to train on")
    torch.set_num_threads(1)
    return _Newton(module, data, plan) if plan.optimizer == "lbfgs" else _Adam(module, data, plan, rng)


def _finite(module: GraphModule) -> Vector:
    weights = module.update_vector()
    if not np.isfinite(weights).all():
        raise TrainingFailed("not-finite", "the trained weights are NaN or infinite: lower the learning rate")
    return weights


class _Descent:
    """The gradient of the loss with respect to all weights in one vector."""

    def __init__(self, module: GraphModule, data: Batches, plan: PlainPlan) -> None:
        self._module, self._data, self._plan = module, data, plan
        self._weights = FlatWeights(module)
        self._parameters = list(module.parameters())
        matrices = [torch.full((one.numel(),), float(one.dim() > 1)) for one in self._parameters]
        self._decay = torch.cat(matrices) * plan.weight_decay
        wide = any(value.shape[-1] >= _WIDE for value in data.features.values())
        self._sparse = SparseRows.of(module, data.features) if wide else None

    def _gradient(self, rows: npt.NDArray[np.int64]) -> tuple[float, torch.Tensor]:
        """(loss, gradient [d]) of the mean over `rows`."""
        vector = self._weights.vector
        loss, total = float((self._decay * vector).dot(vector)) / 2, self._decay * vector
        for start in range(0, len(rows), _BATCH_ROWS):
            part = rows[start : start + _BATCH_ROWS]
            loss += self._sparse_pass(part, len(rows), total) if self._sparse else self._pass(part, len(rows), total)
        return loss, total

    def _pass(self, rows: npt.NDArray[np.int64], count: int, total: torch.Tensor) -> float:
        """Add the gradient of the loss of `rows`, divided by `count`, to `total`; that loss."""
        features, labels = self._data.take(rows)
        module = self._module
        mean = loss_sum(module.loss_name, module(features), labels, module.quantiles) / count
        total += torch.cat([one.reshape(-1) for one in torch.autograd.grad(mean, self._parameters)])
        return mean.item()

    def _sparse_pass(self, rows: npt.NDArray[np.int64], count: int, total: torch.Tensor) -> float:
        """The same, the zeros skipped."""
        assert self._sparse is not None
        loss, delta = self._sparse.loss(self._module, rows, self._data.labels)
        self._sparse.add(rows, delta.div_(count), self._weights.views(total))
        return loss.item() / count


class _Adam(_Descent):
    def __init__(self, module: GraphModule, data: Batches, plan: PlainPlan, rng: np.random.Generator) -> None:
        super().__init__(module, data, plan)
        self._rng, self._steps = rng, 0
        self._first, self._second = torch.zeros_like(self._decay), torch.zeros_like(self._decay)

    def passes(self, count: int) -> None:
        """`count` passes over all rows in new orders."""
        for _ in range(count):
            order = self._rng.permutation(len(self._data))
            for start in range(0, len(order), self._plan.batch_size):
                self._step(order[start : start + self._plan.batch_size])

    def _step(self, rows: npt.NDArray[np.int64]) -> None:
        gradient, (one, two) = self._gradient(rows)[1], _BETAS
        self._steps += 1
        self._first.lerp_(gradient, 1 - one)
        self._second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
        root = (self._second / (1 - two**self._steps)).sqrt_().add_(_TINY)
        self._weights.vector.addcdiv_(self._first, root, value=-self._plan.learning_rate / (1 - one**self._steps))


class _Newton(_Descent):
    """L-BFGS with strong Wolfe line search, by torch.optim."""

    def __init__(self, module: GraphModule, data: Batches, plan: PlainPlan) -> None:
        super().__init__(module, data, plan)
        # Its own leaf, which shares the memory of all weights.
        self._leaf = torch.nn.Parameter(self._weights.vector)
        self._rows = np.arange(len(data))
        self._optimizer = torch.optim.LBFGS(
            [self._leaf], tolerance_grad=1e-6, tolerance_change=1e-10, history_size=20, line_search_fn="strong_wolfe"
        )

    def passes(self, count: int) -> None:
        """`count` iterations, each with as many evaluations as its line search takes."""
        self._optimizer.param_groups[0] |= {"max_iter": count, "max_eval": 3 * count}
        self._optimizer.step(self._closure)  # type: ignore[no-untyped-call] # torch has no annotation here

    def _closure(self) -> float:
        loss, gradient = self._gradient(self._rows)
        self._leaf.grad = gradient
        return loss
