"""What a device's status says it has spent: by the terms of the charges, with what was carried in."""

from __future__ import annotations

import pytest
from test_ledger import SPEND, terms

from edge_sdk.config import Config
from edge_sdk.device_db import open_device_db, transaction
from edge_sdk.device_status import read_status
from edge_sdk.privacy.accounting import ACCOUNTANT_VERSION, compose, epsilon
from edge_sdk.privacy.curves import pack
from edge_sdk.privacy.ledger import Ledger, Under
from edge_sdk.protocol.messages import SpentEntry

FORTY = compose([SPEND] * 40)


@pytest.fixture
def home(tmp_path):
    """A device that was enrolled anew, with forty rounds of its earlier life."""
    database = open_device_db(tmp_path / "device.db")
    with transaction(database):
        Ledger(database).carry([SpentEntry("churn", "record", 40, 40, ACCOUNTANT_VERSION, pack(FORTY))])
    yield tmp_path, database
    database.close()


def status(home):
    return read_status(Config(home=home[0], max_delta=1e-4), 0.0)["privacy"]["churn"]["record"]


def test_the_rounds_of_an_earlier_installation_are_counted(home):
    told = status(home)
    assert (told["rounds"], told["rounds_carried"]) == (40, 40)
    assert "in 40 rounds" in told["sentence"]
    assert told["epsilon"] == epsilon(FORTY, 1e-4)


def test_a_figure_is_stated_by_the_terms_it_was_charged_under(home):
    with transaction(home[1]):
        Ledger(home[1]).charge(
            "churn", "record", 41, SPEND, Under(terms(placement="shared", honest=30, delta=1e-6), 40)
        )
    told = status(home)
    assert (told["rounds"], told["rounds_carried"], told["placement"], told["delta"]) == (41, 40, "shared", 1e-6)
    assert "at least 30 of the 40" in told["against"]
    assert told["epsilon"] == epsilon(compose([FORTY, SPEND]), 1e-6)
