"""Local training for one round: DP-SGD for the record unit, plain SGD for the device unit.

Opacus gives per-record gradients, clipping and the optimizer; sampling and noise are ours (secure_random),
because torch's generator keeps 32 bits of seed. Refuses a loss, gradient or update that is not finite.
An empty Poisson batch is a step of noise only, never skipped: skipping would show that it was empty.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch reader knows
from torch import nn

from edge_sdk.training.jobs import Sampling, TrainingFailed, TrainingPlan, TrainResult, check_plan
from edge_sdk.training.module import Elementwise, GraphModule
from edge_sdk.training.secure_random import SecretStream

Features = Mapping[str, torch.Tensor]
OnStep = Callable[[int, int], None]

# Per-record gradients of one pass: at most this many numbers (64 MiB) are held at once.
_GRADIENT_NUMBERS: Final = 1 << 24


def train(
    module: GraphModule,
    features: Mapping[str, npt.NDArray[Any]],
    labels: npt.NDArray[Any],
    *,
    plan: TrainingPlan,
    key: bytes,
    on_step: OnStep,
) -> TrainResult:
    """Train by the plan and return the change of the weights (or, for shared placement, minus the gradient sum).

    `on_step(step, steps)` runs between batches and may raise to stop. `key`: 32 bytes of entropy for this
    job. Raises TrainingFailed.
    """
    check_plan(plan)
    records = len(labels)
    if records == 0:
        raise TrainingFailed("no-examples", "there are no examples to train on: wait until some are recorded")
    torch.set_num_threads(1)
    data = Batches({name: torch.from_numpy(array) for name, array in features.items()}, torch.from_numpy(labels))
    before, loss = module.update_vector(), _mean_loss(module, data)
    rate, _ = _sampling(plan, records)
    run = _train_records if plan.unit == "record" else _train_device
    gradient_sum = run(module, data, plan, SecretStream(key), on_step)
    update = -gradient_sum if gradient_sum is not None else module.update_vector() - before
    if not np.isfinite(update).all():
        raise TrainingFailed("not-finite", "the trained weights are NaN or infinite: lower the learning rate")
    noise = plan.noise_multiplier if plan.unit == "record" else 0.0
    return TrainResult(update, Sampling(rate, noise, plan.steps), loss, records)


def _sampling(plan: TrainingPlan, records: int) -> tuple[float, float]:
    """The Poisson rate of a step and what its sum is divided by."""
    if plan.sample_rate is not None:
        return plan.sample_rate, plan.batch_size
    rate = min(1.0, plan.batch_size / records)
    return rate, rate * records


class Batches:
    """All examples, and chosen rows of them."""

    def __init__(self, features: Features, labels: torch.Tensor) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: npt.NDArray[np.int64]) -> tuple[Features, torch.Tensor]:
        """The features and labels at `rows`."""
        index = torch.from_numpy(rows)
        return {name: value[index] for name, value in self.features.items()}, self.labels[index]


def loss_sum(name: str, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The summed loss of logits [B, 1 or K] against labels [B]."""
    if name == "cross_entropy":
        return F.cross_entropy(logits, labels.long(), reduction="sum")
    if logits.numel() != labels.numel():
        raise TrainingFailed("wrong-shape", f"{list(logits.shape)} logits do not fit {list(labels.shape)} labels")
    flat = logits.reshape(-1)
    if name == "binary_cross_entropy":
        return F.binary_cross_entropy_with_logits(flat, labels.float(), reduction="sum")
    return F.mse_loss(flat, labels.float(), reduction="sum")


def _mean_loss(module: GraphModule, data: Batches) -> float:
    with torch.no_grad():
        total = sum(
            float(loss_sum(module.loss_name, module(features), labels))
            for features, labels in (data.take(rows) for rows in _chunks(np.arange(len(data)), 1024))
        )
    return _finite(total) / len(data)


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise TrainingFailed("not-finite", "the loss is NaN or infinite: check the examples or lower the learning rate")
    return value


def _chunks(rows: npt.NDArray[np.int64], size: int) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _train_device(
    module: GraphModule, data: Batches, plan: TrainingPlan, stream: SecretStream, on_step: OnStep
) -> None:
    """Plain SGD over shuffled batches; the clip and the noise of the device unit come later, in protection."""
    optimizer = torch.optim.SGD(module.parameters(), lr=plan.learning_rate)
    order: npt.NDArray[np.int64] = np.empty(0, np.int64)
    size = min(plan.batch_size, len(data))
    for step in range(plan.steps):
        if len(order) < size:
            order = stream.permutation(len(data))
        rows, order = order[:size], order[size:]
        features, labels = data.take(rows)
        optimizer.zero_grad()
        loss = loss_sum(module.loss_name, module(features), labels) / size
        _finite(loss.item())
        loss.backward()  # type: ignore[no-untyped-call] # torch has no annotation here
        optimizer.step()
        on_step(step + 1, plan.steps)


def _train_records(
    module: GraphModule, data: Batches, plan: TrainingPlan, stream: SecretStream, on_step: OnStep
) -> npt.NDArray[np.float32] | None:
    """DP-SGD (Abadi et al. 2016); returns the clipped sum for shared placement, else None."""
    rate, divisor = _sampling(plan, len(data))
    with _recording(module) as recorded:
        optimizer = _optimizer(recorded, plan, divisor, stream)
        for step in range(plan.steps):
            rows = stream.poisson_sample(len(data), rate)
            _accumulate(recorded, optimizer, data, rows)
            if plan.placement == "shared":
                optimizer.clip_and_accumulate()
                on_step(step + 1, plan.steps)
                return module.flatten(_summed)
            optimizer.step()
            optimizer.zero_grad()
            on_step(step + 1, plan.steps)
    return None


@contextmanager
def _recording(module: GraphModule) -> Iterator[Any]:
    """`module` wrapped so that backward leaves per-record gradients in `grad_sample`."""
    from opacus.grad_sample import GradSampleModule, register_grad_sampler

    register_grad_sampler(Elementwise)(_elementwise_gradients)
    with warnings.catch_warnings():
        # Opacus hooks layers whose inputs need no gradient on purpose; torch warns at every step.
        warnings.simplefilter("ignore")
        recorded = GradSampleModule(module, batch_first=True, loss_reduction="sum")
        try:
            yield recorded
        finally:
            recorded.to_standard_module()


def _elementwise_gradients(
    layer: Elementwise, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    """Per-record gradient [B, *weight] of x + w or x * w."""
    gradient = backprops if layer.adds else backprops * activations[0]
    weight = layer.weight
    if weight.dim() >= gradient.dim() and weight.shape[-gradient.dim()] != 1:
        raise TrainingFailed("wrong-shape", "a weight that spans the batch cannot be trained by record")
    shape = (1,) * (gradient.dim() - weight.dim()) + tuple(weight.shape)
    summed = [axis for axis in range(1, gradient.dim()) if shape[axis] == 1]
    reduced = gradient.sum(summed, keepdim=True) if summed else gradient
    return {weight: reduced.reshape(len(gradient), *weight.shape)}


def _accumulate(recorded: Any, optimizer: Any, data: Batches, rows: npt.NDArray[np.int64]) -> None:
    """Leave the last chunk's per-record gradients in place, and the earlier chunks' clipped sums beside them."""
    parameters = list(recorded.parameters())
    if len(rows) == 0:
        for parameter in parameters:
            parameter.grad_sample = torch.zeros((0, *parameter.shape))
        return
    numbers = sum(parameter.numel() for parameter in parameters)
    chunks = list(_chunks(rows, max(1, _GRADIENT_NUMBERS // numbers)))
    for index, chunk in enumerate(chunks):
        _backward(recorded, data, chunk)
        _check_gradients(parameters)
        if index < len(chunks) - 1:
            optimizer.signal_skip_step(do_skip=True)
            optimizer.step()
            optimizer.zero_grad()


def _summed(parameter: Any) -> torch.Tensor:
    summed: torch.Tensor = parameter.summed_grad
    return summed


def _backward(recorded: Any, data: Batches, rows: npt.NDArray[np.int64]) -> None:
    features, labels = data.take(rows)
    name = recorded._module.loss_name
    loss = loss_sum(name, recorded(features), labels)
    _finite(loss.item())
    loss.backward()  # type: ignore[no-untyped-call] # torch has no annotation here


def _check_gradients(parameters: list[Any]) -> None:
    for parameter in parameters:
        if parameter.grad_sample is None:
            raise TrainingFailed("model-run", "a weight of the model has no influence on its output: publish it again")
        if not torch.isfinite(parameter.grad_sample).all():
            raise TrainingFailed("not-finite", "a gradient is NaN or infinite: check the examples")


def _optimizer(recorded: Any, plan: TrainingPlan, expected_batch: float, stream: SecretStream) -> Any:
    """Opacus' DPOptimizer with noise from our stream and the sum divided by the *expected* batch size."""
    from opacus.optimizers import DPOptimizer

    class SecretNoiseOptimizer(DPOptimizer):  # type: ignore[misc] # opacus has no annotations
        def add_noise(self) -> None:
            deviation = self.noise_multiplier * self.max_grad_norm
            for parameter in self.params:
                noise = torch.from_numpy(stream.normal(parameter.numel())).view_as(parameter)
                parameter.grad = parameter.summed_grad.view_as(parameter) + deviation * noise

    return SecretNoiseOptimizer(
        torch.optim.SGD(recorded.parameters(), lr=plan.learning_rate),
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=plan.max_grad_norm,
        expected_batch_size=expected_batch,
    )
