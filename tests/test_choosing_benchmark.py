"""The comparison behind docs/applications/choosing.md, on rows made here."""

import argparse
import json
import math

import numpy as np
import pytest

from aggregator import tasks
from benchmarks import choosing
from benchmarks.applying.comparing import Case, Comparison, LateFleet, Way
from benchmarks.applying.dataset import Dataset, Rows, every_fifth
from benchmarks.applying.running import Bench
from edge_sdk.artifact.recipes import churn
from edge_sdk.artifact.schema import NumberField
from edge_sdk.artifact.weights import read_vector

SCHEMA = churn.schema([NumberField("calls"), NumberField("tenure")], {"plan": ["a"]})
FLEET = {
    "unit": "record", "rounds": 5, "sample_rate": 1.0, "n_min": 4, "units_per_device": 40, "max_grad_norm": 4.0,
    "profile": "P32",
}  # fmt: skip
SHARED = {**FLEET, "placement": "shared"}
LOCAL = {**FLEET, "placement": "local", "steps": 1, "accept_little_signal": True}
SETTINGS = {
    "no_privacy": {**SHARED, "insecure_without_noise": True},
    "eps8_shared": {**SHARED, "target_epsilon": 8.0},
    "eps8_local": {**LOCAL, "target_epsilon": 8.0},
}


def made_rows(count, seed):
    rng = np.random.default_rng(seed)
    records = [{"calls": float(rng.normal()), "tenure": float(rng.normal()), "plan": "a"} for _ in range(count)]
    answers = ["yes" if record["calls"] - record["tenure"] + rng.normal() > 0 else "no" for record in records]
    return Rows(records, answers, [f"shop-{place % 4}" for place in range(count)])


@pytest.fixture(scope="module")
def case():
    train = made_rows(160, 1)
    dataset = Dataset(
        name="made",
        application="churn",
        metric="auc",
        higher_is_better=True,
        schema=SCHEMA,
        model=lambda seed: churn.model(SCHEMA, seed),
        train=train,
        validation=every_fifth(len(train)),
        test=made_rows(8, 2),
        baseline=0.8,
        baseline_words="made",
        unit="record",
        settings=SETTINGS,
    )
    return Case(Bench(dataset, validating=True), plain=(1.0,), adam=(0.05, 0.1), local=(0.3,))


def test_every_part_compares_its_ways_at_the_same_rounds(case):
    rows = list(choosing.compared(case, choosing.PARTS, (1, 2), (0,)))
    ways = {(row["part"], row["epsilon"], row["way"]): row["value"] for row in rows if row["rounds"] == 1}
    assert len(ways) == len([row for row in rows if row["rounds"] == 1])
    assert {"fedavg", "momentum", "momentum, rate to zero", "adam", "adam, rate to zero", "yogi"} == {
        way for part, epsilon, way in ways if part == "one step" and epsilon is None
    }
    assert {way for part, _, way in ways if part == "noise"} == {
        "local noise, 1 step", "local noise, 10 steps", "device unit, 10 steps",
    }  # fmt: skip
    assert min(value for (part, epsilon, _), value in ways.items() if epsilon is None) > 0.7
    assert "| FedProx, mu 0.1 |" in choosing.table(rows)


def test_the_rate_that_is_reported_is_the_best_of_those_tried(case):
    found = next(iter(Comparison(case, (2,), (0,)).drifting()))
    assert found.value == max(found.tried.values()) == found.tried[f"{found.rate:g}"]


def test_half_of_a_late_fleet_trains_on_what_was_current_so_many_rounds_ago(case):
    fields = {**Comparison(case, (2,))._device(0.3), "rounds": 4, "name": "late"}
    model = case.bench.dataset.model(0)
    fleet = LateFleet(Way("late", fields, behind=1), case, tasks.build_spec(**fields), model, 0)
    old, new = read_vector(model), read_vector(model) + np.float32(1)
    late, prompt = bytes(32), b"\1" + bytes(31)
    first = fleet._training.update(0, old, late)
    assert np.array_equal(first, fleet._training.update(0, old, late))
    assert np.allclose(fleet._training.update(0, new, late), first / math.sqrt(2), atol=1e-6)
    assert not np.allclose(fleet._training.update(0, new, prompt), first / math.sqrt(2), atol=1e-3)


def test_kept_rows_are_read_again_and_drawn(case, tmp_path):
    rows = [
        {"set": "a", "metric": "auc", "part": "one step", "way": "fedavg", "epsilon": epsilon, "rounds": 20,
         "rate": 0.3, "value": 0.91, "spread": None, "tried": {}}
        for epsilon in (None, 8.0)
    ]  # fmt: skip
    kept = tmp_path / "rows.jsonl"
    kept.write_text("\n".join(map(json.dumps, rows)))
    assert list(choosing.rows_of(argparse.Namespace(kept=kept))) == rows
    assert "| fedavg | 0.910 (0.3) |" in choosing.table(rows)
    choosing.picture(rows, tmp_path / "choosing.png")
    assert (tmp_path / "choosing.png").stat().st_size > 1000
