"""A client under test takes part in rounds of every unit and placement, with real training, and the sum is opened."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.privacy.charges import sigma_steps
from edge_sdk.testing import FakeAggregator
from edge_sdk.testing_rounds import fake_terms

SCHEMA = Schema((NumberField("minutes", 100.0, 50.0), NumberField("calls")), Label("churn", "binary", ("no", "yes")))
MODEL = tabular_classifier(SCHEMA, [40], seed=1)
EVERY = [(unit, placement) for unit in ("record", "customer", "device") for placement in ("local", "shared")]


NOISE = 20.0  # so much that what was learnt cannot be seen beside it


@pytest.mark.slow
def test_rounds_of_every_unit_and_placement_are_trained_charged_and_opened(tmp_path: Path):
    with FakeAggregator(tmp_path) as fake:
        fake.lock("churn", MODEL)
        with fake.client(max_epsilon=1e6, fields=("churn.minutes", "churn.calls")) as fl:
            for i in range(120):
                record = {"minutes": 100.0 + 50 * math.sin(i), "calls": math.cos(i)}
                fl.record("churn", record, "yes" if math.sin(i) > 0 else "no", subject=f"customer-{i % 30}")
            assert fl.flush(5.0)
            for number, (unit, placement) in enumerate(EVERY, start=1):
                offered = fake.offer_round(
                    "churn", number=number, unit=unit, placement=placement, noise_multiplier=NOISE
                )
                arrived = fake.wait_for(lambda offered=offered: fake.opened(offered) is not None, timeout_s=60)
                assert arrived, (unit, placement, fl.status(), fake.reports())
                opened = fake.opened(offered)
                sigma = sigma_steps(fake_terms(unit, placement, NOISE))
                if sigma == 0:  # the noise was added in training, and the clip of the update bounds what is left
                    assert 50 < np.linalg.norm(opened) < 250 + 3 * np.sqrt(80 * len(opened))
                else:
                    assert abs(opened.std() / sigma - 1) < 0.3, (unit, placement)
            assert fake.opened(bytes(32)) is None


def test_a_round_of_a_task_that_was_not_locked_is_no_round(tmp_path: Path):
    with FakeAggregator(tmp_path) as fake, pytest.raises(LookupError, match="call lock"):
        fake.offer_round("churn")
