"""Whole rounds through the service over a memory broker, with exact inputs."""

from __future__ import annotations

import pytest
from small_fleet import SmallFleet, indicator, make_task

from edge_sdk.protocol.codec import unpack
from edge_sdk.protocol.messages import Offer


@pytest.fixture
def fleet(tmp_path):
    return SmallFleet(tmp_path / "home")


def finished(fleet, number=1):
    return lambda: (
        fleet.phase(number) in ("released", "aborted") and fleet.service.store.round("churn", number).secret is None
    )


def step_of(fleet, number=1) -> float:
    return unpack(fleet.service.store.round("churn", number).frame[68:], Offer).privacy.step


def test_a_round_gives_the_sum_of_exactly_the_devices_that_were_in(fleet):
    before = make_task(fleet.home)
    fleet.hello_all()
    fleet.run(finished(fleet))
    assert fleet.phase() == "released"
    after, metrics = fleet.service.store.checkpoint("churn", 1)
    assert indicator(fleet.home, before, after, 6, step_of(fleet)) == [1] * 6 + [0] * 7
    assert set(metrics) == {"auc", "accuracy", "log_loss"}
    assert fleet.service.store.last_release("churn")[:2] == (2, 1)
