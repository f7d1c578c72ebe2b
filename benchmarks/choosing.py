"""Which way of learning suits which fleet: server rules, local steps, FedProx, weights, late updates, placement.

    python benchmarks/choosing.py [--set NAME]... [--part NAME]... [--rounds N]... [--quick]
                                  [--json] [--plot FILE] [--from FILE]

Four fleets; every way at the same numbers of rounds, each at the best rate of a small grid, without privacy and at
epsilon 8. Trains without the validation part of the training rows and scores that; no test row is looked at. Seed 0
chooses the rate; where noise is drawn, the figure is the mean over seeds 0 and 1. Texts are hashed to fewer columns
than the recipes take, which saves time and costs every way the same. --json prints one object a line, which --from
reads again instead of training. --quick: the survey's server rules, five rounds; nothing, with a word on stderr, where
there is no data.

The data lie in ../shared/data beside the repository, or in the folder that CHORALE_DATA names.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.applying import churn, satisfaction, service  # noqa: E402 # the path makes a clone work as it is
from benchmarks.applying.comparing import Case, Comparison  # noqa: E402 # as above
from benchmarks.applying.dataset import Dataset, data_directory  # noqa: E402 # as above
from benchmarks.applying.running import Bench  # noqa: E402 # as above
from edge_sdk.artifact.recipes import service as intents  # noqa: E402 # as above
from edge_sdk.artifact.recipes.texts import Language  # noqa: E402 # as above

EPSILON: Final = 8.0
ROUNDS: Final = (20, 60)
QUICK: Final = (2, 5)
PARTS: Final = ("one step", "ten steps", "noise")
Row = dict[str, Any]


class Plan(NamedTuple):
    """A set's grids (see Case), its seeds, and the columns that its texts are hashed to."""

    plain: Sequence[float]
    adam: Sequence[float]
    local: Sequence[float]
    seeds: Sequence[int] = (0, 1)
    width: int = 0


PLANS: Final = {
    "satisfaction_sfo": Plan((1.0, 3.0), (0.02, 0.1), (0.03, 0.1, 0.3)),
    "churn_mlc": Plan((3.0, 10.0), (0.01, 0.03), (0.1, 0.3)),
    "intents_banking77": Plan((10.0, 30.0, 100.0), (0.1, 0.3, 1.0), (0.3, 1.0, 3.0), (0,), 512),
    "intents_crosswoz_zh": Plan((3.0, 10.0), (0.03, 0.1), (0.3, 1.0), (0,), 512),
}
SETS: Final = {**churn.SETS, **satisfaction.SETS, **service.SETS}


def case(dataset: Dataset, plan: Plan) -> Case:
    """The set, encoded, with the columns and grids of its plan."""
    if plan.width:
        language: Language = "zh" if dataset.name.endswith("zh") else "en"
        schema = intents.schema(dataset.schema.label.names, language=language, width=plan.width)
        dataset = replace(dataset, schema=schema, model=lambda seed: intents.model(schema, seed))
    return Case(Bench(dataset, validating=True), plan.plain, plan.adam, plan.local)


def compared(chosen: Case, parts: Sequence[str], rounds: Sequence[int], seeds: Sequence[int]) -> Iterator[Row]:
    """A row for every way, setting and number of rounds."""
    ways = Comparison(chosen, rounds, seeds)
    found = {
        "one step": (one for epsilon in (None, EPSILON) for one in ways.one_step(epsilon)),
        "ten steps": ways.drifting(),
        "noise": ways.noisy(EPSILON),
    }
    for part in parts:
        for one in found[part]:
            row = {key: getattr(one, key) for key in ("part", "way", "epsilon", "rounds", "rate", "value", "spread")}
            dataset = chosen.bench.dataset
            yield {"set": dataset.name, "metric": dataset.metric, **row, "tried": dict(one.tried)}


def table(rows: Sequence[Row]) -> str:
    """A markdown table for each part and setting: ways by set and rounds."""
    lines: list[str] = []
    for part, epsilon in dict.fromkeys((row["part"], row["epsilon"]) for row in rows):
        own = [row for row in rows if (row["part"], row["epsilon"]) == (part, epsilon)]
        columns = list(dict.fromkeys((row["set"], row["rounds"]) for row in own))
        lines += ["", f"{part}, {'without noise' if epsilon is None else f'epsilon {epsilon:g}'}", ""]
        lines += ["| | " + " | ".join(f"{name}, {rounds}" for name, rounds in columns) + " |"]
        lines += ["|---" * (len(columns) + 1) + "|"]
        for way in dict.fromkeys(row["way"] for row in own):
            cells = {(row["set"], row["rounds"]): row for row in own if row["way"] == way}
            lines.append(f"| {way} | " + " | ".join(_cell(cells.get(column)) for column in columns) + " |")
    return "\n".join(lines[1:])


def _cell(row: Row | None) -> str:
    return "-" if row is None else f"{row['value']:.3f} ({row['rate']:.2g})"


def picture(rows: Sequence[Row], file: Path) -> None:
    """One panel a set: every way after the fewest rounds, without noise and at epsilon 8."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = min(row["rounds"] for row in rows)
    names = list(dict.fromkeys(row["set"] for row in rows))
    ways = list(dict.fromkeys(_label(row) for row in rows))
    figure, panels = plt.subplots(1, len(names), figsize=(3 + 2.2 * len(names), 0.26 * len(ways) + 1.2), sharey=True)
    for panel, name in zip([panels] if len(names) == 1 else panels, names, strict=True):
        own = [row for row in rows if row["set"] == name and row["rounds"] == shown]
        for epsilon, mark, words in ((None, "o", "without noise"), (EPSILON, "x", f"epsilon {EPSILON:g}")):
            some = [row for row in own if row["epsilon"] == epsilon]
            panel.plot([row["value"] for row in some], [ways.index(_label(row)) for row in some], mark, label=words)
        panel.set_title(f"{name}\n{own[0]['metric']}, {shown} rounds", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
        panel.set_yticks(range(len(ways)), ways)
    panel.invert_yaxis()
    panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _label(row: Row) -> str:
    return f"{row['part']}: {row['way']}"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    made.add_argument("--set", action="append", dest="sets", choices=PLANS, help="only this set; may be repeated")
    made.add_argument("--part", action="append", dest="parts", choices=PARTS, help="only this part; may be repeated")
    made.add_argument("--rounds", type=int, action="append", metavar="N", help="not 20 and 60; ascending, repeated")
    made.add_argument("--quick", action="store_true", help="the survey's server rules, five rounds")
    made.add_argument("--json", action="store_true", help="one JSON object a line")
    made.add_argument("--plot", type=Path, metavar="FILE", help="draw all rows into this file")
    made.add_argument(
        "--from", type=Path, dest="kept", metavar="FILE", help="rows of an earlier --json; trains nothing"
    )
    return made


def rows_of(given: argparse.Namespace) -> Iterator[Row]:
    """From the file of an earlier run, else by training."""
    if given.kept:
        yield from map(json.loads, given.kept.read_text().splitlines())
        return
    folder = data_directory()
    if folder is None:
        print("choosing: error: there is no data\nchoosing: hint: set CHORALE_DATA", file=sys.stderr)
        raise SystemExit(0 if given.quick else 1)  # `make bench` goes on where the data are not
    names = given.sets or (["satisfaction_sfo"] if given.quick else list(PLANS))
    parts = given.parts or (PARTS[:1] if given.quick else PARTS)
    for name in names:
        made = case(SETS[name](folder), PLANS[name])
        yield from compared(made, parts, given.rounds or (QUICK if given.quick else ROUNDS), PLANS[name].seeds)


def main() -> int:
    given = parser().parse_args()
    rows = []
    for row in rows_of(given):
        rows.append(row)
        if given.json and not given.kept:
            print(json.dumps(row), flush=True)
    if not given.json:
        print(table(rows))
    if given.plot:
        picture(rows, given.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
