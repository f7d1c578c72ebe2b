"""Pictures for docs/applications/demand.md: forecasts of one site's test days with their interval, and what came.

    python benchmarks/demand_plots.py [--set NAME] [--out docs/images]

The interval is the one that a device shows that lived the days before (`benchmarks/demand_intervals.py`, which counts
how many days it holds); broken lines are the model's own. The fleet is trained with shared noise, epsilon 8, the single
call centre by itself without privacy. The data lie in ../shared/data beside the repository, or in CHORALE_DATA.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib as mpl  # noqa: E402 # the path makes a clone work as it is
import numpy as np  # noqa: E402 # as above
from matplotlib import pyplot as plt  # noqa: E402 # as above

from benchmarks.applying.dataset import data_directory  # noqa: E402 # as above
from benchmarks.applying.demand import SETS  # noqa: E402 # as above
from benchmarks.demand_intervals import Floats, Forecasts, by_the_sdk, stages  # noqa: E402 # as above
from edge_sdk.artifact.features import decide, intervals  # noqa: E402 # as above

# The site of each picture: a kiosk, a station, the half hour from noon.
SHOWN: Final = {"demand_bikeshare": "70", "demand_cta_stations": "Clark_Lake", "demand_bank_calls": "12:00"}
MOST_DAYS: Final = 56


def picture(now: Forecasts, moved: Floats, file: Path) -> None:
    """The last days of one site. `moved` [B]: how far the device moves each interval."""
    schema, records = now.dataset.schema, now.rows.records
    median = np.array([ranked[0][1] for ranked in decide(schema, now.outputs, records)])
    own, shown = (np.array(intervals(schema, now.outputs, records, by)) for by in (None, np.nan_to_num(moved).tolist()))
    name = SHOWN[now.dataset.name]
    rows = np.flatnonzero(now.sites == name)[-MOST_DAYS:]
    days = np.array([records[row]["day"] for row in rows], "datetime64[D]")
    figure, axes = plt.subplots(figsize=(8, 3.2))
    axes.fill_between(days, *shown[rows].T, alpha=0.25, label="80 % interval, calibrated here", linewidth=0)
    axes.plot(days, own[rows], "--", color="C0", linewidth=0.8, label=["the model's own", None])
    axes.plot(days, median[rows], color="C0", label="forecast of the day before")
    axes.plot(days, np.array(now.rows.answers)[rows], "k.", markersize=4, label="what came")
    axes.set_ylim(bottom=0)
    axes.set_title(f"{now.dataset.name}, {name}", fontsize=10)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.34), ncols=4, fontsize=8, frameon=False)
    figure.autofmt_xdate()
    figure.tight_layout()
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--set", action="append", choices=SETS, help="again for more; all without it")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    chosen, folder = parser.parse_args(), data_directory()
    if folder is None:
        print("demand_plots: error: there is no data\ndemand_plots: hint: set CHORALE_DATA", file=sys.stderr)
        return 1
    mpl.use("Agg")
    for name in chosen.set or SETS:
        lived, now = stages(SETS[name](folder), "eps8_shared", validating=False)
        picture(now, by_the_sdk(lived, now), chosen.out / f"{name.replace('_', '-')}.png")
        print(f"{name}: drawn", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
