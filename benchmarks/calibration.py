"""Are the probabilities of churn true? A private fleet at several clips: AUC, Brier score, calibration error, plot.

    python benchmarks/calibration.py [--set churn_telco] [--clips 0.5,1,2,4] [--setting eps8_shared] [--plot FILE.png]

Every clip takes the same first steps: the learning rate is that of the set's setting times its clip over this one.
Scores the validation part of the training rows, as everything that chooses. One seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from aggregator.evaluation import logits, measure  # noqa: E402 # the path makes a clone work as it is
from aggregator.rehearsal.fleet import VirtualFleet  # noqa: E402 # as above
from benchmarks.applying.churn import SETS  # noqa: E402 # as above
from benchmarks.applying.dataset import SETTINGS, data_directory  # noqa: E402 # as above
from benchmarks.applying.running import Bench  # noqa: E402 # as above

BINS = 10
METRICS = ("auc", "brier", "calibration_error")
Floats = npt.NDArray[np.float64]


def trained(bench: Bench, setting: str, clip: float) -> Floats:
    """The probability of churn of each validation row, by a fleet that clips so."""
    spec = bench.spec(setting)
    rate = spec.learning_rate * spec.max_grad_norm / clip
    changed = msgspec.structs.replace(spec, max_grad_norm=clip, learning_rate=rate)
    fleet = VirtualFleet(bench.population, bench.dataset.first_model(setting, 0), changed, fast=True)
    fleet.run()
    return logits(fleet.model, bench.heldout.inputs)


def reliability(p: Floats, truth: Floats) -> list[tuple[float, float]]:
    """(mean probability, share that left) of each tenth of the rows, from the least probable."""
    order = np.array_split(np.argsort(p, kind="stable"), BINS)
    return [(float(p[rows].mean()), float(truth[rows].mean())) for rows in order]


def draw(curves: dict[float, list[tuple[float, float]]], title: str, path: Path) -> None:
    """One line a clip, beside the diagonal on which probabilities are true."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="true")
    for clip, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=f"clip {clip:g}")
    axes.set(xlabel="predicted probability, mean of a tenth", ylabel="share that left", title=title)
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--set", default="churn_telco", choices=list(SETS))
    parser.add_argument("--setting", default="eps8_shared", choices=[name for name in SETTINGS if "local" not in name])
    parser.add_argument("--clips", default="0.5,1,2,4,8")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    folder = data_directory()
    if folder is None:
        print("calibration: error: there is no data\ncalibration: hint: set CHORALE_DATA", file=sys.stderr)
        return 1
    bench = Bench(SETS[given.set](folder), validating=True)
    curves: dict[float, Any] = {}
    for clip in map(float, given.clips.split(",")):
        outputs = trained(bench, given.setting, clip)
        found = measure(bench.heldout, outputs)
        print(
            json.dumps({"set": given.set, "clip": clip, **{name: round(found[name], 4) for name in METRICS}}),
            flush=True,
        )
        curves[clip] = reliability(1 / (1 + np.exp(-outputs[:, 0])), bench.heldout.targets)
    if given.plot:
        draw(curves, f"{given.set}, {given.setting}, validation rows", given.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
