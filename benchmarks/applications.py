"""The applications on real data: a fleet of natural clients against one centre, each client alone, and with privacy.

    python benchmarks/applications.py [--set NAME]... [--run NAME]... [--seeds 3] [--honest-share 1]
                                      [--validation] [--fold 0] [--quick] [--json]

One line (or, with --json, one object) a data set: mean over the seeds, and `spread`, the standard deviation. The split
into rows never changes; a seed changes first features, sampling and noise. `baseline` is the central figure that came
with the data, of another model; `central` is this model trained centrally without privacy. `central_dp_*` is DP-SGD by
a trusted centre at the same epsilon, steps and model; `shared_*` and `local_noise_*` are the fleet's two placements of
noise. Nobody is trusted less than that centre is: every client is taken to add its share of shared noise, and
--honest-share 0.8, the product's default, shows what it costs to rely on four fifths of them. `by_client` holds means
over clients. --validation trains without the validation part of the training rows and scores that: every setting was
chosen so. --fold 1 to 4 takes another fifth of the training rows for it, where rows have no order in time. --quick: one
seed, without the slow runs. Without --seeds a figure is the mean of three, or of what the set asks for.

The data lie in ../shared/data beside the repository, or in the folder that CHORALE_DATA names.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.applying.dataset import Dataset, data_directory, every_fifth  # noqa: E402 # the path makes a clone work as it is
from benchmarks.applying.running import RUNS, Bench  # noqa: E402 # as above

GROUPS: Final = ("churn", "demand", "recommendation", "satisfaction", "satisfaction_text", "service")
QUICK: Final = ("central", "fleet", "central_dp_eps8", "shared_eps8")


def sets() -> dict[str, Callable[[Path], Dataset]]:
    """Every data set by name."""
    found: dict[str, Callable[[Path], Dataset]] = {}
    for group in GROUPS:
        if (ROOT / "benchmarks" / "applying" / f"{group}.py").exists():
            found |= import_module(f"benchmarks.applying.{group}").SETS
    return found


def folded(dataset: Dataset, fold: int) -> Dataset:
    """The same rows with another fifth for validation."""
    rows = len(dataset.train)
    if not np.array_equal(dataset.validation, every_fifth(rows)):
        raise SystemExit(f"applications: error: the validation rows of {dataset.name} have their place: no other fold")
    return replace(dataset, validation=every_fifth(rows, fold))


def measure(bench: Bench, runs: list[str], seeds: int) -> dict[str, Any]:
    """The object of one data set; progress on stderr."""
    dataset = bench.dataset
    figures: dict[str, list[dict[str, float]]] = {run: [] for run in runs}
    for run in runs:
        for seed in range(seeds):
            began = time.perf_counter()
            found = bench.run(run, seed)
            if found is None:
                break
            figures[run].append(found)
            took = time.perf_counter() - began
            print(f"{dataset.name} {run} seed {seed}: {found['']:.4f} in {took:.1f} s", file=sys.stderr, flush=True)
    return {
        "set": dataset.name,
        "application": dataset.application,
        "metric": dataset.metric,
        "higher_is_better": dataset.higher_is_better,
        "unit": dataset.unit,
        "clients": len(bench.population),
        "seeds": seeds,
        "honest_share": bench.honest_share,
        "baseline": dataset.baseline,
        "baseline_words": dataset.baseline_words,
        **{run: mean(figures[run], "") for run in runs},
        "spread": {run: spread(figures[run]) for run in runs},
        "by_client": {run: mean(figures[run], "by_client") for run in runs},
    }


def mean(figures: list[dict[str, float]], key: str) -> float | None:
    return statistics.fmean(each[key] for each in figures) if figures else None


def spread(figures: list[dict[str, float]]) -> float | None:
    return statistics.stdev(each[""] for each in figures) if len(figures) > 1 else None


def table(results: list[dict[str, Any]], runs: list[str]) -> str:
    lines = ["set metric clients baseline " + " ".join(runs)]
    for result in results:
        shown = ["-" if result[run] is None else f"{result[run]:.4f}" for run in runs]
        lines.append(
            f"{result['set']} {result['metric']} {result['clients']} {result['baseline']:.4f} {' '.join(shown)}"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    made.add_argument("--set", action="append", dest="sets", metavar="NAME", help="only this set; may be repeated")
    made.add_argument("--run", action="append", dest="runs", choices=RUNS, help="only this run; may be repeated")
    made.add_argument("--seeds", type=int, help="runs a figure (default: the set's own, mostly 3)")
    made.add_argument(
        "--honest-share", type=float, default=1.0, help="clients that shared noise relies on (default: 1)"
    )
    made.add_argument("--validation", action="store_true", help="score the validation part of the training rows")
    made.add_argument("--fold", type=int, choices=range(5), default=0, help="which fifth of them (default: 0)")
    made.add_argument("--quick", action="store_true", help=f"one seed of {', '.join(QUICK)}")
    made.add_argument("--json", action="store_true", help="one JSON object a line")
    return made


def main() -> int:
    arguments = parser()
    given = arguments.parse_args()
    if given.fold and not given.validation:
        arguments.error("--fold chooses validation rows: give --validation too")
    folder, known = data_directory(), sets()
    if folder is None:
        print("applications: error: there is no data\napplications: hint: set CHORALE_DATA", file=sys.stderr)
        return 1
    if unknown := set(given.sets or ()) - set(known):
        print(f"applications: error: no set {sorted(unknown)}; known are {', '.join(known)}", file=sys.stderr)
        return 1
    runs = given.runs or list(QUICK if given.quick else RUNS)
    results = []
    for name in given.sets or known:
        dataset = known[name](folder)
        if given.fold:
            dataset = folded(dataset, given.fold)
        bench = Bench(dataset, validating=given.validation, honest_share=given.honest_share)
        results.append(measure(bench, runs, 1 if given.quick else given.seeds or dataset.seeds))
        if given.json:
            print(json.dumps(results[-1]), flush=True)
    if not given.json:
        print(table(results, runs))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
