"""Pictures for docs/applications/demand.md: forecasts of one site's test days with their interval, and what came.

    python benchmarks/demand_plots.py [--out docs/images]

Trains each set's fleet once (seed 0, shared noise, epsilon 8; the single call centre by itself, without privacy) and
prints the share of test days inside the interval of 80 %: over all sites, least and most by site. The data lie in
../shared/data beside the repository, or in the folder that CHORALE_DATA names.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib as mpl  # noqa: E402 # the path makes a clone work as it is
import numpy as np  # noqa: E402 # as above
from matplotlib import pyplot as plt  # noqa: E402 # as above

from aggregator import tasks  # noqa: E402 # as above
from aggregator.evaluation import heldout, logits  # noqa: E402 # as above
from aggregator.rehearsal.fleet import VirtualFleet  # noqa: E402 # as above
from aggregator.rehearsal.references import central  # noqa: E402 # as above
from benchmarks.applying.dataset import Dataset, data_directory  # noqa: E402 # as above
from benchmarks.applying.demand import SETS  # noqa: E402 # as above
from benchmarks.applying.running import population  # noqa: E402 # as above
from edge_sdk.artifact.features import decide, intervals  # noqa: E402 # as above

# The site of each picture: a kiosk, a station, the half hour from noon.
SHOWN: Final = {"demand_bikeshare": "70", "demand_cta_stations": "Clark_Lake", "demand_bank_calls": "12:00"}
MOST_DAYS: Final = 56


def trained(dataset: Dataset) -> bytes:
    people = population(dataset, dataset.train)
    if not dataset.settings:
        return central(dataset.model(0), people.features, people.labels, plan=dataset.plan)
    spec = tasks.build_spec(**dataset.settings["eps8_shared"])
    fleet = VirtualFleet(people, dataset.first_model("eps8_shared", 0), spec, fast=True)
    fleet.run()
    return fleet.model


def forecasts(dataset: Dataset, model: bytes) -> tuple[Any, Any, Any]:
    """Median, low and high [B] of the test rows."""
    records = dataset.test.records
    outputs = logits(model, heldout(dataset.schema, records, dataset.test.answers).inputs)
    bounds = np.array(intervals(dataset.schema, outputs, records))
    return np.array([ranked[0][1] for ranked in decide(dataset.schema, outputs, records)]), bounds[:, 0], bounds[:, 1]


def coverage(dataset: Dataset, low: Any, high: Any) -> str:
    actual, clients = np.array(dataset.test.answers), np.array(dataset.test.clients)
    inside = (low <= actual) & (actual <= high)
    each = [inside[clients == client].mean() for client in set(dataset.test.clients)]
    return f"{dataset.name}: {inside.mean():.3f} of the test rows inside, by site {min(each):.3f} to {max(each):.3f}"


def picture(dataset: Dataset, median: Any, low: Any, high: Any, file: Path) -> None:
    records, name = dataset.test.records, SHOWN[dataset.name]
    rows = [row for row, record in enumerate(records) if record["site"] == name][-MOST_DAYS:]
    days = np.array([records[row]["day"] for row in rows], "datetime64[D]")
    figure, axes = plt.subplots(figsize=(8, 3.2))
    axes.fill_between(days, low[rows], high[rows], alpha=0.25, label="80 % interval", linewidth=0)
    axes.plot(days, median[rows], label="forecast of the day before")
    axes.plot(days, np.array(dataset.test.answers)[rows], "k.", markersize=4, label="what came")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{dataset.name}, {name}", fontsize=10)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=3, fontsize=8, frameon=False)
    figure.autofmt_xdate()
    figure.tight_layout()
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    out, folder = parser.parse_args().out, data_directory()
    if folder is None:
        print("demand_plots: error: there is no data\ndemand_plots: hint: set CHORALE_DATA", file=sys.stderr)
        return 1
    mpl.use("Agg")
    for name, load in SETS.items():
        dataset = load(folder)
        median, low, high = forecasts(dataset, trained(dataset))
        print(coverage(dataset, low, high), flush=True)
        picture(dataset, median, low, high, out / f"{name.replace('_', '-')}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
