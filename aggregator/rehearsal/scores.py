"""Metrics of a model over all held-out rows and over each device's own. Reads nothing.

A device whose rows do not give a metric (an AUC needs both classes) has none. Refuses models whose outputs are not
finite, and owners that do not fit the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aggregator.evaluation import Heldout, logits, measure

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scores:
    """`overall`: each metric over all rows together. `by_device`: of each device that has held-out rows."""

    overall: dict[str, float]
    by_device: dict[str, dict[str, float]]

    def spread(self, metric: str) -> list[float]:
        """The metric of every device that has it, ascending."""
        return sorted(found[metric] for found in self.by_device.values() if metric in found)

    def mean(self, metric: str) -> float | None:
        """Over the devices that have the metric, each counting alike; None where none has."""
        values = self.spread(metric)
        return float(np.mean(values)) if values else None


def score(model: bytes, rows: Heldout, owners: Whole, names: Sequence[str]) -> Scores:
    """One model for everybody. `owners` int64 [B]: the place in `names` of each row's device. Raises ModelRefused."""
    return score_outputs(logits(model, rows.inputs), rows, owners, names)


def score_own(models: Iterable[tuple[int, bytes]], rows: Heldout, owners: Whole, names: Sequence[str]) -> Scores:
    """Every device by its own model, (place, ONNX bytes); rows of a device without one are left out."""
    found: list[tuple[Whole, Floats]] = []
    for place, model in models:
        own = np.flatnonzero(owners == place)
        if len(own):
            found.append((own, logits(model, part(rows, own).inputs)))
    if not found:
        return Scores({}, {})
    places = np.concatenate([own for own, _ in found])
    return score_outputs(np.concatenate([values for _, values in found]), part(rows, places), owners[places], names)


def score_outputs(outputs: Floats, rows: Heldout, owners: Whole, names: Sequence[str]) -> Scores:
    """From a model's outputs float64 [B, outputs]."""
    if len(owners) != len(rows.targets) or len(outputs) != len(owners):
        raise ValueError(f"{len(owners)} owners and {len(outputs)} outputs do not fit {len(rows.targets)} rows")
    by_device = {}
    for place in np.unique(owners):
        own = np.flatnonzero(owners == place)
        by_device[names[place]] = measure(part(rows, own), outputs[own])
    return Scores(measure(rows, outputs), by_device)


def part(rows: Heldout, places: npt.NDArray[Any]) -> Heldout:
    """The rows at `places`, int64 or bool [B]."""

    def of(values: Any) -> Any:
        return None if values is None else values[places]

    return rows._replace(
        inputs={name: array[places] for name, array in rows.inputs.items()},
        targets=rows.targets[places],
        values=of(rows.values),
        level=of(rows.level),
        seen=of(rows.seen),
    )
