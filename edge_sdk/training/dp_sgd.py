"""Local training for one round: DP-SGD for the record and the customer unit, plain SGD for the device unit.

Sampling and noise are ours (secure_random, noise), because torch's generator keeps 32 bits of seed. Clipping is by
book-keeping, and by Opacus' hooks for a model with a layer that it does not know. The loss of a unit is the SUM over
its drawn examples; a step divides by the expected number of units. Refuses a loss, gradient or update that is not
finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_sdk.training.bookkeeping import booked, unsupported_layer
from edge_sdk.training.jobs import (
    Engine,
    Sampling,
    TrainingFailed,
    TrainingPlan,
    TrainResult,
    check_plan,
    check_subjects,
)
from edge_sdk.training.losses import Batches, check_apart, finite, loss_sum, mean_loss
from edge_sdk.training.module import GraphModule
from edge_sdk.training.private_steps import ClippedSums, FlatWeights, Gradients, private_steps
from edge_sdk.training.secure_random import SecretStream
from edge_sdk.training.units import Units

OnStep = Callable[[int, int], None]

__all__ = ["loss_sum", "train"]


def train(
    module: GraphModule,
    features: Mapping[str, npt.NDArray[Any]],
    labels: npt.NDArray[Any],
    *,
    plan: TrainingPlan,
    key: bytes,
    on_step: OnStep,
    subjects: npt.NDArray[np.int64] | None = None,
    engine: Engine | None = None,
    quick: bool = False,
) -> TrainResult:
    """Train by the plan and return the change of the weights (or, for shared placement, minus the gradient sum).

    `on_step(step, steps)` runs between batches and may raise to stop. `key`: 32 bytes of entropy for this job.
    `subjects` int64 [B], for the customer unit: equal numbers are one customer, a negative one is a unit of its own.
    `engine`: "bookkeeping" or "hooks" instead of what the model's layers allow. `quick`, for rehearsals: leaves out
    what only looks, so the result's loss is NaN and another call has checked the model. Raises TrainingFailed.
    """
    check_plan(plan)
    records = len(labels)
    if records == 0:
        raise TrainingFailed("no-examples", "there are no examples to train on: wait until some are recorded")
    check_subjects(plan, None if subjects is None else subjects.shape, records)
    torch.set_num_threads(1)
    data = Batches({name: torch.from_numpy(array) for name, array in features.items()}, torch.from_numpy(labels))
    loss = math.nan if quick else mean_loss(module, data)
    if plan.unit == "device":
        update, sampling = _device(module, data, plan, SecretStream(key), on_step), _whole(plan, records)
        return _checked(TrainResult(_weighted(update, plan), sampling, loss, records))
    if not quick:
        check_apart(module, data)
    units = Units(records, subjects if plan.unit == "customer" else None, plan.per_customer)
    chosen: Engine = engine or ("hooks" if unsupported_layer(module) else "bookkeeping")
    with _gradients(module, chosen) as gradients:
        update, sampling = _private(module, data, units, plan, gradients, SecretStream(key), on_step)
    return _checked(TrainResult(_weighted(update, plan), sampling, loss, records, chosen))


def _gradients(module: GraphModule, engine: Engine) -> AbstractContextManager[Gradients]:
    if engine != "hooks":
        return booked(module)
    from edge_sdk.training.hooks import hooked

    return hooked(module)


def _weighted(update: npt.NDArray[np.float32], plan: TrainingPlan) -> npt.NDArray[np.float32]:
    return update if plan.weight == 1 else update * np.float32(plan.weight)


def _checked(result: TrainResult) -> TrainResult:
    if not np.isfinite(result.update).all():
        raise TrainingFailed("not-finite", "the trained weights are NaN or infinite: lower the learning rate")
    return result


def _whole(plan: TrainingPlan, records: int) -> Sampling:
    rate = plan.sample_rate if plan.sample_rate is not None else min(1.0, plan.batch_size / records)
    return Sampling(rate, 0.0, plan.steps)


def _device(
    module: GraphModule, data: Batches, plan: TrainingPlan, stream: SecretStream, on_step: OnStep
) -> npt.NDArray[np.float32]:
    """Plain SGD over shuffled batches; the clip and the noise of the device unit come later, in protection."""
    before = module.update_vector()
    weights = FlatWeights(module)
    offered, pull = weights.vector.clone(), plan.learning_rate * plan.proximal
    parameters = list(module.parameters())
    order: npt.NDArray[np.int64] = np.empty(0, np.int64)
    size = min(plan.batch_size, len(data))
    for step in range(plan.steps):
        if len(order) < size:
            order = stream.permutation(len(data))
        rows, order = order[:size], order[size:]
        features, labels = data.take(rows)
        loss = loss_sum(module.loss_name, module(features), labels, module.quantiles) / size
        finite(loss)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        if pull:  # before the step, as the gradient is: both are of the weights as they stand
            weights.vector.lerp_(offered, pull)
        _move(parameters, gradients, plan.learning_rate)
        on_step(step + 1, plan.steps)
    return module.update_vector() - before


def _move(weights: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None], rate: float) -> None:
    """A step of SGD. Not torch.optim: it loads half of torch, 1.5 s on a small computer."""
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight.sub_(gradient, alpha=rate)


def _private(  # noqa: PLR0917 - what a run of training is made of, once
    module: GraphModule,
    data: Batches,
    units: Units,
    plan: TrainingPlan,
    gradients: Gradients,
    stream: SecretStream,
    on_step: OnStep,
) -> tuple[npt.NDArray[np.float32], Sampling]:
    """The update and its sampling. A given rate comes with a divisor that does not depend on the data."""
    rate, divisor = plan.sample_rate, float(plan.batch_size)
    if rate is None:
        rate = min(1.0, plan.batch_size / len(units))
        divisor = rate * len(units)
    sampling = Sampling(rate, plan.noise_multiplier, plan.steps)
    before = module.update_vector()
    weights = FlatWeights(module)
    sums = ClippedSums(gradients, data, weights, plan.max_grad_norm)
    if plan.placement == "shared":
        sums.add(units.draw(stream, rate))
        on_step(1, 1)
        return -module.flatten(sums.totals.__getitem__), sampling
    private_steps(
        sums, weights, units, stream, rate=rate, deviation=plan.noise_multiplier * plan.max_grad_norm,
        move=plan.learning_rate / divisor, pull=plan.learning_rate * plan.proximal, steps=plan.steps, on_step=on_step,
    )  # fmt: skip
    return module.update_vector() - before, sampling
