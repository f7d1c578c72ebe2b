"""A model against held-out records, by onnxruntime. Reads files; draws and remembers nothing.

Metrics: auc (binary); accuracy, log_loss, brier, calibration_error, macro_f1 (binary and classes); hit_rate_10 and
ndcg_10 (more than 10 classes); mse (number, standardised); rmse, mae, wape and coverage (number, in its own units).
Refuses, with ModelRefused, a model whose outputs are not finite, and records that do not fit its schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from aggregator.errors import ModelRefused, TaskRefused
from aggregator.metrics import TOP, auc, coverage, of_classes, of_numbers
from edge_sdk.artifact.decide import in_units, interval_ends, levels, probabilities, seen
from edge_sdk.artifact.errors import ArtifactError
from edge_sdk.artifact.features import features, labels
from edge_sdk.artifact.names import SCHEMA
from edge_sdk.artifact.schema import Label, Schema
from edge_sdk.artifact.weights import metadata

__all__ = [
    "LOWER_IS_BETTER", "Heldout", "auc", "evaluate", "gate", "heldout", "logits", "measure", "metrics_of",
    "read_heldout", "usual_metric",
]  # fmt: skip

LOWER_IS_BETTER: Final = {"log_loss", "mse", "brier", "calibration_error", "rmse", "mae", "wape"}

Floats = npt.NDArray[np.float64]

_OF_CLASSES: Final = ("accuracy", "log_loss", "brier", "calibration_error", "macro_f1")
_OF_RANKS: Final = ("hit_rate_10", "ndcg_10")
_OF_NUMBERS: Final = ("rmse", "mae", "wape", "mse")


class Heldout(NamedTuple):
    """Held-out records as the graph's inputs, and their targets [B].

    `label`, and of a number its `values` float64 [B] in its own units: without them only what needs neither is
    measured. `level` [B, 2] and `seen` bool [B, K] as of `edge_sdk.artifact.decide`.
    """

    kind: str
    inputs: dict[str, npt.NDArray[Any]]
    targets: npt.NDArray[Any]
    label: Label | None = None
    values: Floats | None = None
    level: Floats | None = None
    seen: npt.NDArray[np.bool_] | None = None


def heldout(schema: Schema, records: Sequence[Mapping[str, Any]], answers: Sequence[Any]) -> Heldout:
    """Labelled records, ready for any number of models of this schema. Raises RecordError."""
    targets = labels(schema, answers, records)
    values = np.array(answers, np.float64) if schema.label.kind == "number" else None
    inputs, level, hidden = features(schema, records), levels(schema, records), seen(schema, records)
    return Heldout(schema.label.kind, inputs, targets, schema.label, values, level, hidden)


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
        return heldout(schema, records, answers)
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
    """Every metric that fits the label. Raises ModelRefused."""
    return measure(heldout, logits(model, heldout.inputs))


def measure(heldout: Heldout, outputs: Floats) -> dict[str, float]:
    """The same from the model's outputs float64 [B, outputs]."""
    label = heldout.label
    if heldout.kind == "number":
        return _measure_numbers(label or Label("", "number"), heldout, outputs)
    label = label or Label("", "binary" if heldout.kind == "binary" else "classes", ("",) * outputs.shape[1])
    p, truth = probabilities(label, outputs), heldout.targets.astype(np.int64)
    ranked = p if heldout.seen is None else probabilities(label, outputs, heldout.seen)
    metrics = of_classes(p, ranked, truth)
    if heldout.kind == "binary" and 0 < truth.sum() < len(truth):
        metrics["auc"] = auc(p[:, 1], truth)
    return metrics


def _measure_numbers(label: Label, heldout: Heldout, outputs: Floats) -> dict[str, float]:
    metrics = {"mse": float(np.mean((outputs[:, label.median] - heldout.targets) ** 2))}
    if heldout.values is None:
        return metrics
    values = in_units(label, outputs, heldout.level)
    metrics |= of_numbers(values[:, label.median], heldout.values)
    if len(label.quantiles) > 1:
        metrics["coverage"] = coverage(*interval_ends(label, values), heldout.values)
    return metrics


def usual_metric(label: Label) -> str:
    """The metric of a task that names none.

    Of a label learned as a logarithm, rmse would be the error of the few largest alone; an interval is one of a
    forecast, whose error is told as a share of what came.
    """
    if label.kind != "number":
        return "auc" if label.kind == "binary" else "accuracy"
    return "wape" if len(label.quantiles) > 1 else "mae" if label.log else "rmse"


def metrics_of(label: Label) -> tuple[str, ...]:
    """Every metric that held-out records with this label may give, the usual one first."""
    if label.kind == "number":
        names = (*_OF_NUMBERS, *(("coverage",) if len(label.quantiles) > 1 else ()))
    else:
        names = (*_OF_CLASSES, *(_OF_RANKS if label.outputs > TOP else ()))
    return tuple(dict.fromkeys((usual_metric(label), *names)))


def gate(metrics: Mapping[str, float], last: float | None, metric: str, min_improvement: float) -> str:
    """Why this checkpoint may not be released, or "" where it may. `last`: the metric of the release before."""
    value = metrics.get(metric)
    if value is None or last is None:
        return ""
    gain = last - value if metric in LOWER_IS_BETTER else value - last
    return "" if gain >= min_improvement else f"{metric} {value:.4f} is not {min_improvement:+g} from {last:.4f}"
