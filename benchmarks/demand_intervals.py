"""How many days lie inside the interval of 80 %: the model's own, and as a device calibrates it.

    python benchmarks/demand_intervals.py [--set NAME] [--setting eps8_shared] [--validating] [--cold] [--json]

Each site lives its days in order: a forecast in the evening, the label the next. A device has a past: it lived the days
of the validation part under a model trained without them, then a release of all training days came, and the test days.
With `--validating` all of this is one part earlier, no test row is looked at, and the rules are shown that the SDK's
own was chosen from. `--cold` leaves out the past. Seed 0; the single call centre is trained by itself without privacy.
docs/applications/demand.md has what it printed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 # the path makes a clone work as it is
import numpy.typing as npt  # noqa: E402 # as above

from aggregator import tasks  # noqa: E402 # as above
from aggregator.evaluation import heldout, logits  # noqa: E402 # as above
from aggregator.rehearsal.fleet import VirtualFleet  # noqa: E402 # as above
from aggregator.rehearsal.references import central  # noqa: E402 # as above
from benchmarks.applying.dataset import Dataset, Rows, data_directory  # noqa: E402 # as above
from benchmarks.applying.demand import SETS  # noqa: E402 # as above
from benchmarks.applying.running import population  # noqa: E402 # as above
from edge_sdk.artifact.features import intervals, scores  # noqa: E402 # as above
from edge_sdk.interval_scores import FEWEST, IntervalScores, threshold  # noqa: E402 # as above
from edge_sdk.windows import Windows  # noqa: E402 # as above

MISS: Final = 0.2
LONGEST: Final = 100  # scores a site that any rule looks at
Floats = npt.NDArray[np.float64]
Rule = Callable[[list[float]], float]  # the scores of a site so far, oldest first, to how far its interval is moved


@dataclass(frozen=True)
class Forecasts:
    """Rows in the order of their days. `outputs`: logits [B, 3]; `score` [B]: how far the label lay outside of them."""

    dataset: Dataset
    rows: Rows
    outputs: Floats
    score: Floats

    @property
    def sites(self) -> npt.NDArray[np.str_]:
        """Whose interval each is: a kiosk's, a station's, a half hour's."""
        return np.array([record["site"] for record in self.rows.records])


def trained(dataset: Dataset, rows: Rows, setting: str) -> bytes:
    """The fleet's model of these rows; a single client's own, without privacy."""
    people = population(dataset, rows)
    if not dataset.settings:
        return central(dataset.model(0), people.features, people.labels, plan=dataset.plan)
    spec = tasks.build_spec(**dataset.settings[setting])
    fleet = VirtualFleet(people, dataset.first_model(setting, 0), spec, fast=spec.placement == "shared")
    fleet.run()
    return fleet.model


def forecasts(dataset: Dataset, model: bytes, rows: Rows) -> Forecasts:
    """What a model says of rows, and how far off it is."""
    ordered = rows.take(np.argsort([np.datetime64(record["day"]) for record in rows.records], kind="stable"))
    outputs = logits(model, heldout(dataset.schema, ordered.records, ordered.answers).inputs)
    outputs = np.asarray(outputs, np.float64).reshape(len(ordered), -1)
    found = scores(dataset.schema, outputs, ordered.answers, ordered.records)
    return Forecasts(dataset, ordered, outputs, found)


def stages(dataset: Dataset, setting: str, *, validating: bool) -> tuple[Forecasts, Forecasts]:
    """The days that a device lived before, and the days that count."""
    days = np.array([record["day"] for record in dataset.train.records], "datetime64[D]")
    parts = [~dataset.validation, np.ones(len(days), bool)]
    if validating:
        known, counted = np.unique(days[~dataset.validation]), np.unique(days[dataset.validation])
        parts = [days < known[-len(counted)], parts[0]]
    lived = dataset.train.take(~parts[0] & parts[1])
    counts = dataset.train.take(dataset.validation) if validating else dataset.test
    models = [trained(dataset, dataset.train.take(part), setting) for part in parts]
    return forecasts(dataset, models[0], lived), forecasts(dataset, models[1], counts)


# -- living ----------------------------------------------------------------------------------------------------------


def by_the_sdk(past: Forecasts | None, now: Forecasts) -> Floats:
    """How far the SDK moves each interval [B]; NaN where too little is known. One device a client."""
    devices: dict[str, IntervalScores] = {}
    moved = np.full(len(now.rows), np.nan)
    for part in (now,) if past is None else (past, now):
        for day, places in _days(part):
            for place in places if part is now else ():
                kept = devices.setdefault(part.rows.clients[place], IntervalScores(Windows()))
                by = kept.widening("demand", part.dataset.schema, part.rows.records[place])
                moved[place] = np.nan if by is None else by
            for place in places:
                kept = devices.setdefault(part.rows.clients[place], IntervalScores(Windows()))
                record, score = part.rows.records[place], float(part.score[place])
                kept.add("demand", part.dataset.schema, record, None, score, now=0, at=day)
    return moved


def by_rule(rule: Rule, past: Forecasts | None, now: Forecasts) -> Floats:
    """The same by another rule, each site by itself."""
    moved, sites = np.full(len(now.rows), np.nan), now.sites
    for site in np.unique(sites):
        known = [] if past is None else past.score[past.sites == site].tolist()
        for place in np.flatnonzero(sites == site):
            if len(known) >= FEWEST:
                moved[place] = rule(known)
            known.append(float(now.score[place]))
    return moved


def _days(part: Forecasts) -> Iterator[tuple[int, list[int]]]:
    """Days since 1970 and the rows of each: no label of a day is known when that day is forecast."""
    days = np.array([record["day"] for record in part.rows.records], "datetime64[D]").astype(int)
    for day in np.unique(days):
        yield int(day), np.flatnonzero(days == day).tolist()


def split(last: int, known: list[float], level: float = 1 - MISS) -> float:
    """Split conformal prediction over the last scores: their quantile, of a finite sample."""
    return threshold(known[-last:], level)


def fading(decay: float, known: list[float]) -> float:
    """The same with weights that fade with age (Barber, Candès, Ramdas and Tibshirani 2023)."""
    newest = np.array(known[-LONGEST:])
    weights, order = decay ** np.arange(len(newest))[::-1], np.argsort(newest, kind="stable")
    summed = np.cumsum(weights[order])
    place = int(np.searchsorted(summed, (1 - MISS) * (summed[-1] + 1.0)))
    return float(newest[order][min(place, len(newest) - 1)])


def adaptive(gamma: float, last: int, known: list[float]) -> float:
    """Adaptive conformal inference (Gibbs and Candès 2021): the level of that quantile follows the misses."""
    level, known = 1 - MISS, known[-LONGEST:]
    for place in range(FEWEST, len(known)):
        level += gamma * ((known[place] > split(last, known[:place], level)) - MISS)
    return split(last, known, level)


def tracking(first: float, least: float, known: list[float]) -> float:
    """Quantile tracking (Angelopoulos, Barber and Bates 2024) from the quantile of the first scores.

    Steps of first / sqrt(t), at least `least`, in deviations of the last scores.
    """
    newest = known[-LONGEST:]
    unit, at = float(np.std(newest)), split(FEWEST, newest[:FEWEST])
    for count, score in enumerate(newest[FEWEST:], start=1):
        at += unit * max(least, first / math.sqrt(count)) * ((score > at) - MISS)
    return at


RULES: Final[dict[str, Rule]] = {
    "split conformal, last 40": partial(split, 40),
    "split conformal, last 60": partial(split, 60),
    "split conformal, last 80": partial(split, 80),
    "split conformal, last 100": partial(split, 100),
    "fading by 0.95 a day": partial(fading, 0.95),
    "fading by 0.97 a day": partial(fading, 0.97),
    "fading by 0.99 a day": partial(fading, 0.99),
    "adaptive, 0.015, last 60": partial(adaptive, 0.015, 60),
    "adaptive, 0.015, last 100": partial(adaptive, 0.015, 100),
    "adaptive, 0.05, last 100": partial(adaptive, 0.05, 100),
    "tracking, step 0.3": partial(tracking, 0.3, 0.3),
    "tracking, 0.5 falling to 0.2": partial(tracking, 0.5, 0.2),
    "tracking, 0.8 falling to 0.1": partial(tracking, 0.8, 0.1),
}


# -- figures ---------------------------------------------------------------------------------------------------------


def figures(now: Forecasts, moved: Floats) -> dict[str, float]:
    """Share of days inside, over all and by site; mean width and interval score in log units, that is about shares.

    The interval score (Gneiting and Raftery 2007) is the width and 2 / 0.2 times how far a day lay outside: a wide
    interval pays, and so does one that misses. Lower is better.
    """
    sites, by = now.sites, np.nan_to_num(moved).tolist()
    low, high = np.log1p(np.array(intervals(now.dataset.schema, now.outputs, now.rows.records, by))).T
    actual = np.log1p(np.array(now.rows.answers, float))
    outside = np.maximum(np.maximum(low - actual, actual - high), 0.0)
    inside, width = outside == 0, high - low
    each = np.array([inside[sites == site].mean() for site in np.unique(sites)])
    return {
        "inside": float(inside.mean()),
        "least": float(each.min()),
        "most": float(each.max()),
        "deviation": float(each.std()),
        "width": float(width.mean()),
        "interval_score": float((width + 2 / MISS * outside).mean()),
        "calibrated": float(np.isfinite(moved).mean()),
    }


def measured(dataset: Dataset, setting: str, *, validating: bool, cold: bool) -> Iterator[tuple[str, dict[str, float]]]:
    """Name of a rule and its figures, the model's own interval first."""
    lived, now = stages(dataset, setting, validating=validating)
    past = None if cold else lived
    yield "the model's own", figures(now, np.full(len(now.rows), np.nan))
    yield "as the SDK calibrates it", figures(now, by_the_sdk(past, now))
    for name, rule in RULES.items() if validating else ():
        yield name, figures(now, by_rule(rule, past, now))


def _line(name: str, found: dict[str, float]) -> str:
    return (
        f"  {name:32} {found['inside']:.3f} inside, by site {found['least']:.2f} to {found['most']:.2f}"
        f" (deviation {found['deviation']:.3f}), width {found['width']:.3f}, interval score"
        f" {found['interval_score']:.3f}, {found['calibrated']:.0%} of the days calibrated"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--set", action="append", choices=SETS, help="again for more; all without it")
    parser.add_argument("--setting", default="eps8_shared", choices=["no_privacy", "eps8_shared", "eps3_shared"])
    parser.add_argument("--validating", action="store_true")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--json", action="store_true")
    chosen, folder = parser.parse_args(), data_directory()
    if folder is None:
        print("demand_intervals: error: there is no data\ndemand_intervals: hint: set CHORALE_DATA", file=sys.stderr)
        return 1
    told: dict[str, Any] = {}
    for name in chosen.set or SETS:
        dataset = SETS[name](folder)
        print(name, file=sys.stderr if chosen.json else sys.stdout, flush=True)
        for rule, found in measured(dataset, chosen.setting, validating=chosen.validating, cold=chosen.cold):
            told.setdefault(name, {})[rule] = found
            if not chosen.json:
                print(_line(rule, found), flush=True)
    if chosen.json:
        print(json.dumps(told, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
