"""A model against held-out records, by onnxruntime. Reads files; draws and remembers nothing.

Metrics: auc (binary), accuracy (binary and classes), log_loss (binary and classes), mse (number).
Refuses, with ModelRefused, a model whose outputs are not finite, and records that do not fit its schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from aggregator.errors import ModelRefused, TaskRefused
from edge_sdk.artifact.errors import ArtifactError
from edge_sdk.artifact.features import features, labels
from edge_sdk.artifact.names import SCHEMA
from edge_sdk.artifact.schema import Schema
from edge_sdk.artifact.weights import metadata

LOWER_IS_BETTER: Final = {"log_loss", "mse"}
_FLOOR: Final = 1e-12

Floats = npt.NDArray[np.float64]


class Heldout(NamedTuple):
    """Held-out records as the graph's inputs, and their targets [B]."""

    kind: str
    inputs: dict[str, npt.NDArray[Any]]
    targets: npt.NDArray[Any]


def read_heldout(model: bytes, file: Path) -> Heldout:
    """Read labelled records, one JSON object a line, the label under its own name. Raises TaskRefused."""
    try:
        text = file.read_text()
    except OSError as error:
        what = f"cannot read the held-out records {file}: {error.strerror}"
        raise TaskRefused(what, "give a file that is there with --held-out", reason="heldout") from error
    except UnicodeDecodeError as error:
        raise _misfit(file, str(error)) from error
    try:
        schema = Schema.from_json(metadata(model)[SCHEMA])
        records = [json.loads(line) for line in text.splitlines() if line.strip()]
        answers = [record.pop(schema.label.name) for record in records]
        if not records:
            raise TaskRefused(f"{file} holds no record", "give labelled records, one JSON object a line")
        return Heldout(schema.label.kind, features(schema, records), labels(schema, answers))
    except (ArtifactError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise _misfit(file, f"no {error}" if isinstance(error, KeyError) else str(error)) from error


def _misfit(file: Path, what: str) -> TaskRefused:
    hint = "give one JSON object a line, with every field of the model's schema and the label"
    return TaskRefused(f"the held-out records in {file} do not fit: {what}", hint, reason="heldout")


def logits(model: bytes, inputs: Mapping[str, npt.NDArray[Any]]) -> Floats:
    """The graph's outputs as float64 [B, K]. Raises ModelRefused where they are not finite."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        outputs = np.asarray(session.run(None, dict(inputs))[0], np.float64)
    except Exception as error:  # onnxruntime raises classes of its own that share no public root
        raise ModelRefused(f"the model does not run: {error}", "publish the graph again", reason="run") from error
    if not np.isfinite(outputs).all():
        raise ModelRefused("the model answers with NaN or infinity", "lower the learning rate", reason="not-finite")
    return outputs.reshape(len(outputs), -1)


def evaluate(model: bytes, heldout: Heldout) -> dict[str, float]:
    """Every metric that fits the label's kind. Raises ModelRefused."""
    outputs = logits(model, heldout.inputs)
    if heldout.kind == "number":
        return {"mse": float(np.mean((outputs[:, 0] - heldout.targets) ** 2))}
    scores = _probabilities(outputs, heldout.kind)
    truth = heldout.targets.astype(np.int64)
    chosen = np.clip(scores[np.arange(len(truth)), truth], _FLOOR, 1.0)
    metrics = {
        "accuracy": float(np.mean(scores.argmax(axis=1) == truth)),
        "log_loss": float(-np.mean(np.log(chosen))),
    }
    if heldout.kind == "binary" and 0 < truth.sum() < len(truth):
        metrics["auc"] = auc(scores[:, 1], truth)
    return metrics


def _probabilities(outputs: Floats, kind: str) -> Floats:
    table = np.hstack([np.zeros_like(outputs), outputs]) if kind == "binary" else outputs
    powers = np.exp(table - table.max(axis=1, keepdims=True))
    scores: Floats = powers / powers.sum(axis=1, keepdims=True)
    return scores


def auc(scores: Floats, truth: npt.NDArray[np.int64]) -> float:
    """Probability that a positive scores above a negative, ties half: Mann and Whitney's U from mean ranks."""
    values, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    del values
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    positives = int(truth.sum())
    above = float(ranks[truth == 1].sum()) - positives * (positives + 1) / 2
    return above / (positives * (len(truth) - positives))


def gate(metrics: Mapping[str, float], last: float | None, metric: str, min_improvement: float) -> str:
    """Why this checkpoint may not be released, or "" where it may. `last`: the metric of the release before."""
    value = metrics.get(metric)
    if value is None or last is None:
        return ""
    gain = last - value if metric in LOWER_IS_BETTER else value - last
    return "" if gain >= min_improvement else f"{metric} {value:.4f} is not {min_improvement:+g} from {last:.4f}"
