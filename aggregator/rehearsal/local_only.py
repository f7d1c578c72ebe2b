"""Each device by itself, without privacy: what a fleet has to be better than, made as good as its rows allow.

How many passes serve is one choice for all devices: on rows that each holds back, taken together, as one device has too
few to choose by. They are judged as answers are (AUC, accuracy), not by log loss, which a few rows learnt by heart make
worse while the answers get better. Then every device trains anew on all its rows. Reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from aggregator.metrics import auc
from aggregator.rehearsal.population import Population
from aggregator.rehearsal.seeds import Seeds
from edge_sdk.artifact.weights import read_vector, write_vector
from edge_sdk.training.losses import Batches, loss_sum
from edge_sdk.training.module import GraphModule
from edge_sdk.training.plain import PlainPlan, batches, course, fit

FEWEST_WATCHED: Final = 5  # rows of a device: fewer are all learnt from
GROWTH: Final = 1.4  # of the numbers of passes that are compared

Outputs = npt.NDArray[np.float32]


def alone(
    model: bytes, population: Population, *, plan: PlainPlan | None = None, watched: float = 0.2, seed: int = 0
) -> Iterator[tuple[int, bytes]]:
    """Each device's place and its model's ONNX bytes. A device without rows is left out.

    `watched`: the share of its rows that a device holds back for the choice of the number of passes, at most
    `plan.epochs`; 0 for none: all of them. Raises TrainingFailed.
    """
    plan, module, start = plan or PlainPlan(), GraphModule(model), read_vector(model)
    plan = replace(plan, epochs=_passes(module, start, population, plan, watched, seed))
    for place in _able(population):
        own, rng = population.device(place), Seeds(seed).generator("alone", place)
        module.load_vector(start)
        fitted = fit(module, batches({"features": own.features}, own.labels), plan, rng)
        yield place, write_vector(model, fitted.weights, {})


def _able(population: Population) -> list[int]:
    return [int(place) for place in np.flatnonzero(np.diff(population.bounds))]


def _passes(  # noqa: PLR0917 - what a choice is made by, once
    module: GraphModule, start: Outputs, population: Population, plan: PlainPlan, watched: float, seed: int
) -> int:
    """After how many passes the held back rows of all devices are answered best; all, where nobody has any."""
    stops = _stops(plan.epochs)
    outputs = {stop: list[torch.Tensor]() for stop in stops}
    truths = list[torch.Tensor]()
    for place in _able(population):
        own, rng = population.device(place), Seeds(seed).generator("alone-choosing", place)
        count = int(watched * len(own.labels))
        if count < FEWEST_WATCHED:
            continue
        order = rng.permutation(len(own.labels))
        other, first = (
            batches({"features": own.features[rows]}, own.labels[rows]) for rows in (order[:count], order[count:])
        )
        truths.append(other.labels)
        module.load_vector(start)
        for done in course(module, first, plan, rng):
            if done in outputs:
                outputs[done].append(_answers(module, other))
    if not truths:
        return plan.epochs
    truth = torch.cat(truths)
    return max(stops, key=lambda stop: _worth(module, torch.cat(outputs[stop]), truth))


def _stops(epochs: int) -> list[int]:
    """1, 2, 3, 5, 7, ... and `epochs`."""
    stops, at = {epochs}, 1.0
    while at < epochs:
        stops.add(round(at))
        at = max(at + 1, at * GROWTH)
    return sorted(stops)


def _answers(module: GraphModule, data: Batches) -> torch.Tensor:
    """Logits [n, outputs]."""
    with torch.no_grad():
        return torch.cat([module(x).reshape(len(y), -1) for x, y in data.parts()])


def _worth(module: GraphModule, outputs: torch.Tensor, truth: torch.Tensor) -> float:
    """More is better; -inf for what is not finite."""
    if not bool(torch.isfinite(outputs).all()):
        return -np.inf
    if module.loss_name == "cross_entropy":
        return float((outputs.argmax(1) == truth).float().mean())
    named: npt.NDArray[Any] = truth.numpy().astype(np.int64)
    if module.loss_name == "binary_cross_entropy" and 0 < named.sum() < len(named):
        return auc(outputs[:, 0].double().numpy(), named)
    return -float(loss_sum(module.loss_name, outputs, truth, module.quantiles))
