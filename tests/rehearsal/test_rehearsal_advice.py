"""What a rehearsal says of its own limits: a part of the fleet a round, and people on several devices."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from aggregator.rehearsal.advice import advise
from aggregator.rehearsal.population import Roaming
from aggregator.tasks import build_spec, settle
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import linear_classifier
from edge_sdk.artifact.weights import read_vector
from edge_sdk.privacy import charges

SCHEMA = Schema((NumberField("x"),), Label("y", "binary", ("no", "yes")))
MODEL = linear_classifier(SCHEMA)


def trial(devices=40, roaming=None, **given):
    fields = {"unit": "customer", "placement": "shared", "target_epsilon": 8.0, "n_min": 20, "n_max": 1000}
    spec = build_spec(name="t", profile="P32", accept_little_signal=True, **(fields | given))
    terms = settle(spec, read_vector(MODEL).size)
    rows = np.ones(devices, np.int64)
    return SimpleNamespace(spec=spec, terms=terms, model=MODEL, schema=SCHEMA, refused=None, train=rows,
                           names=("d",) * devices, roaming=roaming)  # fmt: skip


def test_a_round_of_a_part_of_the_fleet_is_named():
    assert any("1,000 of 10,000 devices a round" in one for one in advise(trial(10_000)))
    assert not any("devices a round" in one for one in advise(trial(1000)))


@pytest.mark.parametrize(("placement", "why"), [("shared", "one sum"), ("local", "add up")])
def test_people_on_several_devices_are_told_their_own_epsilon(placement, why):
    made = trial(roaming=Roaming(200, 50, 4), placement=placement)
    (said,) = [one for one in advise(made) if "customers" in one]
    length, rounds = read_vector(MODEL).size, made.spec.rounds
    two, four = (charges.epsilon_on_devices(made.terms, length, rounds, devices) for devices in (2, 4))
    for part in ("50 of 200", "25.0%", "at most on 4", f"epsilon {two:.3g} on two devices, {four:.3g} on 4", why):
        assert part in said
    assert not any("customers" in one for one in advise(trial(roaming=Roaming(200, 0, 1))))
