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

from aggregator.metrics import auc
from aggregator.rehearsal.population import Population
from aggregator.rehearsal.seeds import Seeds
from edge_sdk.artifact.weights import read_vector, write_vector
from edge_sdk.training.module import GraphModule
from edge_sdk.training.plain import PlainPlan, answers, batches, course, fit, loss_of

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
    outputs = {stop: list[Outputs]() for stop in stops}
    truths = list[npt.NDArray[Any]]()
    for place in _able(population):
        own, rng = population.device(place), Seeds(seed).generator("alone-choosing", place)
        count = int(watched * len(own.labels))
        if count < FEWEST_WATCHED:
            continue
        order = rng.permutation(len(own.labels))
        other, first = (
            batches({"features": own.features[rows]}, own.labels[rows]) for rows in (order[:count], order[count:])
        )
        truths.append(own.labels[order[:count]])
        module.load_vector(start)
        for done in course(module, first, plan, rng):
            if done in outputs:
                outputs[done].append(answers(module, other))
    if not truths:
        return plan.epochs
    truth = np.concatenate(truths)
    return max(stops, key=lambda stop: _worth(module, np.concatenate(outputs[stop]), truth))


def _stops(epochs: int) -> list[int]:
    """1, 2, 3, 5, 7, ... and `epochs`."""
    stops, at = {epochs}, 1.0
    while at < epochs:
        stops.add(round(at))
        at = max(at + 1, at * GROWTH)
    return sorted(stops)


def _worth(module: GraphModule, outputs: Outputs, truth: npt.NDArray[Any]) -> float:
    """Of outputs [n, K]; more is better; -inf for what is not finite."""
    if not np.isfinite(outputs).all():
        return -np.inf
    if module.loss_name == "cross_entropy":
        return float(np.mean(outputs.argmax(axis=1) == truth))
    named = truth.astype(np.int64)
    if module.loss_name == "binary_cross_entropy" and 0 < named.sum() < len(named):
        return auc(outputs[:, 0].astype(np.float64), named)
    return -loss_of(module, outputs, truth)
