"""A client under test takes part in rounds of every unit and placement, with real training, and the sum is opened."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.client import EdgeClient
from edge_sdk.privacy.charges import sigma_steps
from edge_sdk.protocol.messages import Statistic
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


MINUTES = Statistic("moments", "minutes", 0.0, 200.0, 0, ())
LABELS = Statistic("words", "", 0.0, 0.0, 0, ("no", "yes"))
MODEL_ASKED = Statistic("model", "", 0.0, 4.0, 0, ())
FIELDS = ("churn.minutes", "churn.calls")
RECORDS = [({"minutes": 10.0 * (i % 20), "calls": 1.0}, "yes" if i % 3 else "no") for i in range(60)]


def record_all(fl: EdgeClient) -> None:
    for i, (fields, label) in enumerate(RECORDS):
        fl.record("churn", fields, label, subject=f"customer-{i}")
    assert fl.flush(5.0)


@pytest.mark.parametrize(("unit", "placement"), EVERY)
def test_a_query_is_answered_with_the_sums_of_the_devices_own_examples(tmp_path: Path, unit, placement):
    with FakeAggregator(tmp_path) as fake:
        fake.lock("churn", MODEL)
        with fake.client(fields=FIELDS, insecure_without_noise=True) as fl:
            record_all(fl)
            asked = fake.offer_query(
                "churn", MINUTES, LABELS, MODEL_ASKED, unit=unit, placement=placement, noise_multiplier=0.0
            )
            assert fake.wait_for(lambda: fake.sums(asked) is not None, timeout_s=30), (fl.status(), fake.reports())
    units = 1.0 if unit == "device" else float(len(RECORDS))
    x = np.array([fields["minutes"] for fields, _ in RECORDS]) / 100.0 - 1.0
    yes = np.mean([label == "yes" for _, label in RECORDS])
    minutes, labels, model = fake.sums(asked)
    close = {"rtol": 0, "atol": 0.02 if unit == "device" else 1.0}
    np.testing.assert_allclose(minutes, units * np.array([1.0, x.mean(), (x * x).mean()]), **close)
    np.testing.assert_allclose(labels, units * np.array([1 - yes, yes, 0.0]), **close)
    np.testing.assert_allclose(model[0], units, **close)
    assert len(fake.uploads) == 1


def test_a_query_is_charged_with_its_noise_and_switched_off_by_the_owner(tmp_path: Path):
    with FakeAggregator(tmp_path) as fake:
        fake.lock("churn", MODEL)
        with fake.client(fields=FIELDS, max_epsilon=50.0) as fl:
            record_all(fl)
            asked = fake.offer_query("churn", LABELS, noise_multiplier=3.0)
            assert fake.wait_for(lambda: fake.sums(asked) is not None, timeout_s=30), (fl.status(), fake.reports())
            assert 0 < fl.status()["privacy"]["churn"]["record"]["epsilon"] < 50.0
        with fake.client(fields=FIELDS, max_epsilon=50.0, analytics=False) as fl:
            refused = fake.offer_query("churn", LABELS, number=2, noise_multiplier=3.0)
            assert fake.wait_for(lambda: any(report.reason == "query" for report in fake.reports()))
            assert fake.sums(refused) is None


def test_a_query_of_a_task_that_was_not_locked_is_no_query(tmp_path: Path):
    with FakeAggregator(tmp_path) as fake, pytest.raises(LookupError, match="call lock"):
        fake.offer_query("churn", LABELS)
