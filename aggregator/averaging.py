"""From the opened sum to the next checkpoint. numpy only; writes the ONNX bytes without torch or onnx. Pure.

Federated averaging (McMahan et al. 2017, algorithm 1) with equal weights: an example count would betray a record.
Refuses a result that is not finite.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from aggregator.errors import ModelRefused
from aggregator.robust import Total
from edge_sdk.artifact.errors import ArtifactError
from edge_sdk.artifact.weights import read_vector, write_vector

ROUND: str = "fl.round"
LINEAGE: str = "fl.lineage"
PRIVACY: str = "fl.privacy"
TASK: str = "fl.task"


def average(
    model: bytes,
    total: Total,
    *,
    step: float,
    devices: int,
    server_learning_rate: float,
    metadata: Mapping[str, str],
) -> bytes:
    """The model moved by the mean update: weights + rate * step * total / devices.

    `server_learning_rate`: the task's, times `charges.update_scale` of the terms: where devices upload minus the sum of
    clipped gradients the mean becomes a step of central DP-SGD. `total`: [d], in quantisation steps: the opened sum
    (int64), or a robust average (float64) with `devices` 1. The same input gives the same bytes. Raises ModelRefused.
    """
    weights = read_vector(model).astype(np.float64)
    if total.shape != weights.shape or devices < 1:
        what = f"a sum of {total.size} values over {devices} devices does not fit {weights.size} weights"
        raise ModelRefused(what, "report this: the round should have been refused", reason="wrong-length")
    with np.errstate(over="ignore"):  # infinity is refused below, by name
        moved = (weights + server_learning_rate * (step / devices) * total).astype(np.float32)
    try:
        return write_vector(model, moved, {**metadata, LINEAGE: hashlib.sha256(model).hexdigest()})
    except ArtifactError as error:
        raise ModelRefused(f"the averaged model is refused: {error}", "lower the rate", reason=error.reason) from error
