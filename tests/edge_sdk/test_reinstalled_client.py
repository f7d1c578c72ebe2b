"""A client with an empty disk whose fleet stated what it had spent: it tells that, and refuses what would overspend."""

from __future__ import annotations

from pathlib import Path

from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.identity.enrolment import Identity
from edge_sdk.privacy.accounting import ACCOUNTANT_VERSION, compose, epsilon, subsampled_gaussian
from edge_sdk.privacy.curves import pack
from edge_sdk.protocol.messages import Spent, SpentEntry
from edge_sdk.testing import FakeAggregator

SCHEMA = Schema((NumberField("minutes", 100.0, 50.0),), Label("churn", "binary", ("no", "yes")))
SPENT = compose([subsampled_gaussian(0.5, 1.0, 10)] * 3)
STATED = SpentEntry("churn", "record", 3, 7, ACCOUNTANT_VERSION, pack(SPENT))


class Reinstalled(FakeAggregator):
    """Its device was enrolled anew."""

    def identity(self) -> Identity:
        return super().identity()._replace(spent=(STATED,))


def test_a_wiped_client_refuses_the_round_that_it_would_have_refused(tmp_path: Path):
    budget = epsilon(SPENT, 1e-5) * 1.01
    with Reinstalled(tmp_path) as fake:
        fake.lock("churn", tabular_classifier(SCHEMA, [4], seed=1))
        with fake.client(max_epsilon=budget, fields=("churn.minutes",)) as fl:
            for i in range(200):
                fl.record("churn", {"minutes": float(i)}, "yes" if i % 2 else "no")
            assert fl.flush(5.0)
            assert fake.wait_for(lambda: any(isinstance(message, Spent) for message in fake.received))
            fake.offer_round("churn", number=8, unit="record")
            assert fake.wait_for(lambda: any(report.event == "offer-refused" for report in fake.reports()))
    (refusal,) = [report for report in fake.reports() if report.event == "offer-refused"]
    assert refusal.reason == "privacy", refusal.detail
    assert "is left" in refusal.detail
    assert {message.entries for message in fake.received if isinstance(message, Spent)} == {(STATED,)}
