"""Buffered rounds through the service: they close at K uploads, list earlier models, and give way to rosters."""

from __future__ import annotations

from itertools import pairwise

import pytest
from small_fleet import SmallFleet, public

from aggregator.fleet.authority import open_authority
from aggregator.offering import BUFFERED_S
from edge_sdk.device_round import LONGEST_ROUND_S
from edge_sdk.protocol.codec import unpack
from edge_sdk.protocol.messages import Offer


@pytest.fixture
def fleet(tmp_path):
    return SmallFleet(tmp_path / "home")


def offer_of(fleet, number) -> Offer:
    return unpack(fleet.service.store.round("churn", number).frame[68:], Offer)


def uploads(fleet, number) -> set[str]:
    return {upload.device for upload in fleet.service.store.uploads("churn", number, "accepted", "summed")}


def start(fleet, **fields):
    fleet.task(**{"buffer": 4, "accept_models": 3, "rounds": 4, **fields})
    fleet.hello_all()


def test_rounds_close_at_k_uploads_and_list_their_last_models_newest_first(fleet):
    start(fleet)
    for late in fleet.devices[4:]:
        late.takes_part = False
    fleet.run(lambda: fleet.service.store.task("churn").status == "done")
    assert [row.phase for row in fleet.rounds()] == ["released"] * 4
    assert [len(uploads(fleet, n)) for n in (1, 2, 3, 4)] == [4] * 4
    models = [offer_of(fleet, n).models for n in (1, 2, 3, 4)]
    assert [len(each) for each in models] == [1, 2, 3, 3]
    assert all(later[1:] == earlier[:2] for earlier, later in pairwise(models))
    assert offer_of(fleet, 1).closes_at - offer_of(fleet, 1).issued_at == BUFFERED_S < LONGEST_ROUND_S


def test_below_k_it_waits_for_days_and_a_late_device_is_still_taken(fleet):
    start(fleet, rounds=1, window_s=60)
    for late in fleet.devices[3:]:
        late.takes_part = False
    fleet.run(lambda: len(uploads(fleet, 1)) == 3)
    fleet.now += 2 * 86_400
    for device in fleet.devices:
        device.beat()
    for _ in range(20):
        fleet.turn()
    assert fleet.phase() == "collecting"
    fleet.devices[4].takes_part = True
    fleet.hello_all()
    fleet.run(lambda: fleet.phase() == "released")
    assert len(uploads(fleet, 1)) == 4


def test_it_gives_way_to_devices_that_wait_for_a_roster(fleet):
    start(fleet, rounds=2, window_s=60)
    for late in fleet.devices[3:]:
        late.takes_part = False
    fleet.run(lambda: len(uploads(fleet, 1)) == 3)
    key = public(open_authority(fleet.home.authority, now=fleet.now).sign_key)
    fleet.devices.append(fleet.add("device-new", 6, key))
    fleet.hello_all()
    for _ in range(20):
        fleet.turn()
    assert fleet.phase() == "collecting", "its window comes first"
    fleet.now += 60
    fleet.run(lambda: fleet.phase(2) != "none")
    assert fleet.rounds()[0].phase == "released" or fleet.rounds()[-1].phase == "released"
    assert offer_of(fleet, 2).secagg.epoch == offer_of(fleet, 1).secagg.epoch + 1


def test_a_restart_goes_on_with_it(fleet):
    start(fleet, rounds=1)
    for late in fleet.devices[3:]:
        late.takes_part = False
    fleet.run(lambda: len(uploads(fleet, 1)) == 3)
    fleet.restart()
    fleet.devices[3].takes_part = True
    fleet.run(lambda: fleet.phase() == "released")
    assert len(uploads(fleet, 1)) == 4
