"""`aggregator rehearse`: a data scientist's first hour, on one machine, with a file of their own. Needs no home.

Reads the file, prints what it assumed, runs the rehearsal and writes the report. Refuses what its parts refuse, each
with a remedy; owns the clock.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import numpy as np

from aggregator import tasks
from aggregator.errors import TaskRefused
from aggregator.rehearsal.inference import understand
from aggregator.rehearsal.settings import Asked, task_name
from aggregator.rehearsal.splits import split
from aggregator.rehearsal.tables import EXTRAS, DataRefused, read_table
from aggregator.rehearsal.understood import Understood, Wishes
from edge_sdk.artifact.schema import LabelKind
from edge_sdk.protocol.messages import Placement, Unit

EPSILON: Final = 8.0
MOST_ROUNDS: Final = 10_000
MOST_ROWS: Final = 100_000
MOST_SHOWN: Final = 80  # columns on a terminal
NEEDED: Final = ("torch", "onnx", "matplotlib")
UGLY: Final = (
    "PRIVACY IS OFF: the rehearsed task is insecure_without_noise. What devices send under it gives away their "
    "records, and devices refuse it by default."
)


def add_rehearse(commands: Any, add: Callable[..., argparse.ArgumentParser]) -> None:
    """The command and its options."""
    parser = add(
        commands, "rehearse", rehearse, "try federated learning on a file of your own, with a report", home=False
    )
    parser.add_argument("data", metavar="DATA", help="CSV, TSV or Parquet, .gz too; the first line names the columns")
    parser.add_argument("--label", required=True, metavar="COL", help="what is to be predicted")
    parser.add_argument("--by", default="", metavar="COL", help="whose device holds a row: one device for each value")
    parser.add_argument("--devices", type=int, metavar="N", help="regroup the values of --by (or deal all rows) into N")
    parser.add_argument("--subject", default="", metavar="COL", help="whose the row is: the customer")
    parser.add_argument("--task", metavar="FILE", help="settings of a task as JSON; they win over what is guessed")
    parser.add_argument(
        "--epsilon", default="", metavar="E", help=f"all rounds together; none: off (default: {EPSILON:g})"
    )
    parser.add_argument(
        "--unit", choices=get_args(Unit), help="of privacy (default: customer with --subject, else record)"
    )
    parser.add_argument("--placement", choices=get_args(Placement), help="of the noise (default: shared)")
    parser.add_argument("--rounds", type=int, help="(default: 100; device unit: 30)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-masks", dest="masks", action="store_false", help="same model, sooner")
    parser.add_argument("--kind", choices=get_args(LabelKind), help="of the label (default: guessed)")
    parser.add_argument("--positive", default="", metavar="VALUE", help="the value of the label that counts as yes")
    for role, text in (
        ("number", "take this column for numbers"),
        ("category", "take this column for words of a list"),
        ("text", "take this column for free text"),
        ("time", "take this column for dates"),
        ("drop", "do not learn from this column"),
    ):
        parser.add_argument(f"--{role}", action="append", default=[], metavar="COL", help=f"{text} (may be repeated)")
    parser.add_argument("--test-share", type=float, default=0.2, help="of the rows, held back (default: 0.2)")
    parser.add_argument(
        "--max-rows", type=int, default=MOST_ROWS, help=f"of more, so many at random (default: {MOST_ROWS})"
    )
    parser.add_argument(
        "--report", default="rehearsal", metavar="DIR", help="a folder for the report (default: rehearsal)"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON, progress to stderr")


def rehearse(chosen: argparse.Namespace) -> int:
    """Run it; the exit code. Raises DataRefused, TaskRefused and what training raises."""
    began = time.monotonic()
    _check(chosen)
    out = sys.stderr if chosen.json else sys.stdout

    def say(line: str) -> None:
        out.write(f"{line}\n")
        out.flush()

    asked = _asked(chosen, _task(chosen))
    found = _understood(chosen)
    for line in assumed(found, chosen):
        say(line)
    if asked.epsilon is None:
        say(UGLY)
    cut = split(found, devices=chosen.devices, test_share=chosen.test_share, seed=chosen.seed)
    from aggregator.rehearsal.rehearsing import rehearse as run
    from aggregator.rehearsal.report import write_report

    trial = run(found, cut, asked, masks=chosen.masks, seed=chosen.seed, say=say, clock=time.perf_counter)
    folder = Path(chosen.report)
    summary = write_report(folder, trial, found, cut, chosen.data, time.monotonic() - began)
    if chosen.json:
        sys.stdout.write(json.dumps(summary) + "\n")
    else:
        for line in summary["lines"]:
            say(line)
    return 0


def _check(chosen: argparse.Namespace) -> None:
    lacking = [name for name in NEEDED if find_spec(name) is None]
    if lacking:
        raise DataRefused(f"a rehearsal needs {', '.join(lacking)}, which is not installed", EXTRAS)
    if not chosen.by and not chosen.devices:
        raise DataRefused(
            "whose device holds a row?", "give --by COLUMN, or --devices 10 to deal the rows out at random"
        )
    if chosen.devices is not None and chosen.devices < 3:
        raise DataRefused(f"{chosen.devices} devices hide nobody", "give --devices 3 or more")
    if not 0.01 <= chosen.test_share <= 0.9:
        raise DataRefused(f"--test-share {chosen.test_share:g} leaves one side empty", "give 0.01 to 0.9")
    if chosen.max_rows < 10:
        raise DataRefused(f"{chosen.max_rows} rows are too few", "give --max-rows 10 or more")
    _check_rounds(chosen.rounds, "--rounds")


def _check_rounds(rounds: int | None, option: str) -> None:
    if rounds is not None and not 1 <= rounds <= MOST_ROUNDS:
        raise DataRefused(f"{rounds} rounds cannot be rehearsed", f"give {option} from 1 to {MOST_ROUNDS}")


def _understood(chosen: argparse.Namespace) -> Understood:
    table = read_table(Path(chosen.data), most_rows=chosen.max_rows, rng=np.random.default_rng(chosen.seed))
    wishes = Wishes(
        **{name: getattr(chosen, name) for name in ("label", "by", "subject", "positive", "kind")},
        **{name: getattr(chosen, name) for name in ("drop", "number", "category", "text", "time")},
    )
    return understand(table, wishes)


def _task(chosen: argparse.Namespace) -> dict[str, Any]:
    """Fields of --task, each of a name, type and range that a task knows. Raises TaskRefused."""
    if not chosen.task:
        return {}
    try:
        given = msgspec.json.decode(Path(chosen.task).read_bytes(), type=dict[str, Any])
        tasks.build_spec(**{"name": "rehearsed", **given})
    except TaskRefused as error:
        raise TaskRefused(f"{chosen.task}: {error}", error.hint, reason=error.reason) from error
    except (OSError, msgspec.DecodeError) as error:
        hint = 'give a JSON object of task settings, for example {"rounds": 20, "target_epsilon": 4.0}'
        raise TaskRefused(f"cannot read the task file {chosen.task}: {error}", hint) from error
    return given


def _asked(chosen: argparse.Namespace, given: dict[str, Any]) -> Asked:
    given = dict(given)
    unit: Unit = chosen.unit or given.get("unit") or ("customer" if chosen.subject else "record")
    if unit == "customer" and not chosen.subject:
        raise DataRefused(
            "the customer unit needs to know whose each row is", "give --subject COLUMN, or --unit record"
        )
    placement = chosen.placement or given.get("placement")
    rounds = given.get("rounds") if chosen.rounds is None else chosen.rounds
    _check_rounds(rounds, "rounds in --task" if chosen.rounds is None else "--rounds")
    epsilon = _epsilon(chosen.epsilon, given)
    taken = ("unit", "placement", "rounds", "target_epsilon", "insecure_without_noise")
    for name in (*taken, *(("noise_multiplier",) if chosen.epsilon else ())):
        given.pop(name, None)
    name = given.pop("name", None) or task_name(Path(chosen.data).name.split(".")[0])
    return Asked(name, unit, epsilon, placement, rounds, given)


def _epsilon(text: str, given: dict[str, Any]) -> float | None:
    if not text:
        if given.get("insecure_without_noise"):
            return None
        wanted = given.get("target_epsilon")
        return EPSILON if wanted is None else _budget(float(wanted), f"target_epsilon {wanted} in --task")
    if text.lower() in ("none", "off"):
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    return _budget(value, f"--epsilon {text}")


def _budget(value: float, said: str) -> float:
    if not 0 < value < 1e6:
        raise DataRefused(f"{said} is no budget", "give a number such as 8 or 3, or --epsilon none")
    return value


def assumed(found: Understood, chosen: argparse.Namespace) -> list[str]:
    """The table of what was taken for what, and the warnings."""
    rows = [("column", "taken as", "why", "to change it")]
    rows += [(one.column, one.taken_as, one.why, one.override) for one in found.assumptions[:MOST_SHOWN]]
    if len(found.assumptions) > MOST_SHOWN:
        rows.append((f"and {len(found.assumptions) - MOST_SHOWN} more", "", "see the report", ""))
    if not chosen.epsilon and not chosen.task:
        rows.append(("(privacy)", f"epsilon {EPSILON:g}", "the default", "--epsilon E"))
    if not chosen.unit and not chosen.task:
        unit = "customer" if chosen.subject else "record"
        rows.append(
            ("(privacy)", f"unit {unit}", "a --subject is given" if chosen.subject else "no --subject", "--unit")
        )
    widths = [min(44, max(_width(row[place]) for row in rows)) for place in range(3)]
    lines = ["  ".join([*(_padded(row[place], widths[place]) for place in range(3)), row[3]]).rstrip() for row in rows]
    lines.append(
        "scales and vocabularies are read from this file; on a fleet `aggregator analytics --scales` learns them"
    )
    return [*lines, *(f"warning: {one}" for one in found.warnings)]


def _width(text: str) -> int:
    return sum(2 if "\u2e80" <= letter <= "\uffef" else 1 for letter in text)


def _padded(text: str, width: int) -> str:
    while _width(text) > width:
        text = text[: max(1, min(len(text) - 2, width - 1))] + "…"
    return text + " " * (width - _width(text))
