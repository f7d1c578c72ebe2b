"""From the opened sum to the next checkpoint. numpy only; writes the ONNX bytes without torch or onnx. Pure.

Federated averaging (McMahan et al. 2017, algorithm 1) with equal weights: an example count would betray a record. The
mean may pass through a server optimizer (aggregator.optimizers). Refuses a result that is not finite.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from aggregator import optimizers
from aggregator.errors import ModelRefused
from aggregator.optimizers import Optimizer
from aggregator.robust import Total
from edge_sdk.artifact.errors import ArtifactError
from edge_sdk.artifact.weights import read_vector, write_vector

ROUND: str = "fl.round"
LINEAGE: str = "fl.lineage"
PRIVACY: str = "fl.privacy"
TASK: str = "fl.task"


class Moved(NamedTuple):
    """The next checkpoint and the server optimizer's state beside it, empty where the rule needs none."""

    model: bytes
    state: bytes


def average(
    model: bytes,
    total: Total,
    *,
    step: float,
    devices: int,
    server_learning_rate: float,
    metadata: Mapping[str, str],
) -> bytes:
    """The model moved by the mean update: weights + rate * step * total / devices. Raises ModelRefused.

    `total`: [d], in quantisation steps: the opened sum (int64), or a robust average (float64) with `devices` 1.
    The same input gives the same bytes.
    """
    plain = Optimizer("fedavg", server_learning_rate)
    moved = advance(model, total, step=step, devices=devices, scale=1.0, optimizer=plain, state=b"", metadata=metadata)
    return moved.model


def advance(
    model: bytes,
    total: Total | None,
    *,
    step: float,
    devices: int,
    scale: float,
    optimizer: Optimizer,
    state: bytes,
    metadata: Mapping[str, str],
) -> Moved:
    """The model moved by the server optimizer along scale * step * total / devices, and its next state.

    `total`, `devices`: as `average`; None leaves the weights and the state as they are. `scale`:
    `task_terms.update_scale`. `state`: what the last call returned, empty before the first. The same input gives the
    same bytes. Raises ModelRefused.
    """
    weights = read_vector(model).astype(np.float64)
    if total is not None and (total.shape != weights.shape or devices < 1):
        what = f"a sum of {total.size} values over {devices} devices does not fit {weights.size} weights"
        raise ModelRefused(what, "report this: the round should have been refused", reason="wrong-length")
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below, by name
        known = optimizers.read(optimizer, state, weights.size)
        if total is not None:
            change = (scale * (step / devices) * total).astype(np.float64)
            known, moves = optimizers.step(optimizer, known, change)
            weights += moves
        moved = weights.astype(np.float32)
    try:
        words = {**metadata, LINEAGE: hashlib.sha256(model).hexdigest()}
        return Moved(write_vector(model, moved, words), optimizers.written(optimizer, known))
    except ArtifactError as error:
        raise ModelRefused(f"the averaged model is refused: {error}", "lower the rate", reason=error.reason) from error
