"""A rehearsal as data: what `summary.json` and --json say. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from aggregator.evaluation import LOWER_IS_BETTER
from aggregator.rehearsal.advice import roaming
from aggregator.rehearsal.scores import Scores
from aggregator.rehearsal.trial import Trial
from aggregator.rehearsal.understood import Understood
from edge_sdk.artifact.weights import read_vector


def summary(trial: Trial, found: Understood) -> dict[str, Any]:
    """For `summary.json` and --json."""
    promised = trial.statement
    return {
        "metric": trial.metric,
        "lower_is_better": trial.metric in LOWER_IS_BETTER,
        "rows": {"train": int(trial.train.sum()), "test": int(trial.test.sum())},
        "devices": len(trial.names),
        "model": trial.choice.candidate.name,
        "weights": int(read_vector(trial.model).size),
        "scores": {run: _shown(trial, scores) for run, scores in trial.scores.items()},
        "privacy": None if promised is None else promised.to_dict(),
        "refused": None if trial.refused is None else {"error": str(trial.refused), "hint": trial.refused.hint},
        "rounds": [figures.as_dict() for figures in trial.figures],
        "curve": trial.curve,
        "masks": trial.masked,
        "customers_on_several_devices": roaming(trial),
        "devices_per_second": _rate(trial),
        "plain_pass_seconds": trial.plain_seconds,
        "assumptions": [asdict(one) for one in found.assumptions],
        "warnings": found.warnings,
        "advice": trial.advice,
        "tried": [
            dict(zip(("model", "optimizer", "rate", "validation"), one, strict=True)) for one in trial.choice.tried
        ],
        "by_device": _by_device(trial),
    }


def _shown(trial: Trial, scores: Scores) -> dict[str, Any]:
    values = scores.spread(trial.metric)
    spread = np.quantile(values, [0, 0.25, 0.5, 0.75, 1.0]).tolist() if values else []
    return {**scores.overall, "device_mean": scores.mean(trial.metric), "device_quartiles": spread}


def _rate(trial: Trial) -> float | None:
    seconds = sum(figures.seconds for figures in trial.figures)
    return sum(figures.devices for figures in trial.figures) / seconds if seconds > 0 else None


def _by_device(trial: Trial) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    runs: Mapping[str, Scores] = trial.scores
    for place, name in enumerate(trial.names):
        entry: dict[str, Any] = {"device": name, "train": int(trial.train[place]), "test": int(trial.test[place])}
        for run in ("fleet", "fleet_no_privacy", "alone", "central", "personalised"):
            if run in runs:
                entry[run] = runs[run].by_device.get(name, {}).get(trial.metric)
        rows.append(entry)
    return rows
