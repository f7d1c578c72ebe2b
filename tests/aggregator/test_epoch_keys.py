"""A device's next epoch key: taken once a roster, never an unusable one, and no way to ask for committees."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from small_fleet import SmallFleet, public
from test_service_rounds import ended, offer_of, raised, start

from aggregator.errors import TaskRefused
from aggregator.offering import PATIENCE_S, REKEY_S, epoch_of
from edge_sdk.protocol import codec
from edge_sdk.protocol.messages import EpochKey
from edge_sdk.protocol.roster import Statement

ONE_S = bytes([1]) + bytes(31)  # of low order, as is zero


@pytest.fixture
def fleet(tmp_path):
    return SmallFleet(tmp_path / "home")


def fresh() -> bytes:
    return public(X25519PrivateKey.generate())


def issued(fleet, later: float = 0.0):
    """The roster that the next round would be offered under."""
    return issued_now(fleet, fleet.now + later, may_issue=True)


def issued_now(fleet, now: float, *, may_issue: bool):
    return fleet.service._rounds._offering.roster(now, now + 100, may_issue=may_issue)


def stated(fleet, epoch: int) -> int:
    """When the roster of an epoch was signed."""
    return codec.unpack(fleet.service.registry.signed_roster(epoch).statement, Statement).issued_at


@pytest.mark.parametrize("key", [bytes(32), ONE_S])
def test_a_device_that_names_an_unusable_key_is_refused_and_the_fleet_goes_on_learning(fleet, key):
    start(fleet, rounds=2)
    fleet.run(lambda: fleet.phase() == "collecting")
    fleet.devices[0].say(EpochKey(2, key))
    fleet.run(ended(fleet, 2))
    assert fleet.refused("key", "key") == 1
    assert fleet.devices[0].refusals[-1].reason == "key"
    assert [fleet.phase(1), fleet.phase(2)] == ["released", "released"]
    assert raised(fleet, 2) == [1] * 6


def test_one_device_cannot_ask_for_another_committee(fleet):
    start(fleet, rounds=2)
    fleet.run(lambda: fleet.phase() == "collecting")
    for _ in range(5):
        fleet.devices[0].say(EpochKey(2, fresh()))
    fleet.run(ended(fleet, 2))
    assert fleet.refused("key", "repeat") == 4
    assert [offer_of(fleet, number).secagg.epoch for number in (1, 2)] == [1, 1]
    assert raised(fleet, 2) == [1] * 6


def test_changed_keys_are_stated_after_an_hour_and_all_at_once(fleet):
    first, keys = issued(fleet), [fresh(), fresh()]
    for device, key in zip(fleet.devices, keys, strict=False):
        fleet.service.registry.set_epoch_key(device.name, key)
    assert issued(fleet, REKEY_S - 1) == first
    second = issued(fleet, REKEY_S)
    assert epoch_of(second) == 2
    assert [entry.epoch_key for entry in second.entries[:2]] == keys
    assert issued(fleet, REKEY_S + 1) == second


def test_a_device_that_leaves_brings_a_new_roster_at_once_with_the_changed_keys(fleet):
    first, key = issued(fleet), fresh()
    fleet.service.registry.set_epoch_key("device-0", key)
    fleet.service.registry.revoke("device-5", now=fleet.now)
    second = issued(fleet)
    assert (len(first.entries), len(second.entries)) == (6, 5)
    assert second.entries[0].epoch_key == key


def test_no_roster_is_issued_while_a_round_takes_uploads_and_no_round_begins_while_one_is_due(fleet):
    first, offering = issued(fleet), fleet.service._rounds._offering
    assert offering.roster(fleet.now, fleet.now + 100, may_issue=False) == first
    fleet.service.registry.revoke("device-5", now=fleet.now)
    fleet.service.registry.set_epoch_key("device-0", fresh())
    later = fleet.now + 2 * REKEY_S
    with pytest.raises(TaskRefused) as refused:
        offering.roster(later, later + 100, may_issue=False)
    assert refused.value.reason == "roster-due"
    assert fleet.service.registry.signed_roster() == first
    assert epoch_of(offering.roster(later, later + 100, may_issue=True)) == 2


def test_changed_keys_alone_keep_no_other_task_waiting_for_a_day(fleet):
    first, offering = issued(fleet), fleet.service._rounds._offering
    fleet.service.registry.set_epoch_key("device-0", fresh())
    begin = fleet.now + 2 * 86_400
    for hours in (0, 1, 23):
        assert issued_now(fleet, begin + 3600 * hours, may_issue=False) == first
    with pytest.raises(TaskRefused, match="changed their keys 86400 s ago") as refused:
        issued_now(fleet, begin + PATIENCE_S, may_issue=False)
    assert refused.value.reason == "roster-due"
    second = issued_now(fleet, begin + PATIENCE_S, may_issue=True)
    assert epoch_of(second) == 2
    fleet.service.registry.set_epoch_key("device-1", fresh())
    assert issued_now(fleet, begin + PATIENCE_S + 2 * REKEY_S, may_issue=False) == second, "it counts anew"
    fleet.service.registry.revoke("device-5", now=fleet.now)
    with pytest.raises(TaskRefused, match="came or went"):
        offering.roster(begin, begin + 100, may_issue=False)


def test_a_roster_is_renewed_when_two_thirds_of_its_life_are_over(fleet):
    first = issued(fleet)
    assert issued(fleet, 4.6 * 86_400) == first
    assert epoch_of(issued(fleet, 4.7 * 86_400)) == 2


def test_a_key_that_is_told_again_is_taken_in_silence(fleet):
    first, key = issued(fleet), fresh()
    for _ in range(3):
        fleet.devices[0].say(EpochKey(2, key))
        fleet.turn()
    assert fleet.service.registry.require_active("device-0").epoch_key == key
    assert epoch_of(issued(fleet, REKEY_S)) == 2
    fleet.devices[0].say(EpochKey(2, key))
    fleet.turn()
    assert fleet.refused("key", "repeat") == 0, "even after the roster that names it"
    assert first.entries[0].epoch_key != key


def test_however_many_devices_change_their_keys_there_is_one_roster_an_hour_and_none_while_a_round_takes_uploads(fleet):
    start(fleet, rounds=2)
    fleet.run(lambda: fleet.phase() == "collecting")
    begin = fleet.now
    for step in range(0, 5 * REKEY_S, 60):
        newest = epoch_of(fleet.service.registry.signed_roster())
        device = fleet.devices[step // 60 % len(fleet.devices)]
        device.say(EpochKey(newest + 1, fresh()))
        fleet.turn(0.0)
        with contextlib.suppress(TaskRefused):
            issued_now(fleet, begin + step, may_issue=False)
        assert epoch_of(fleet.service.registry.signed_roster()) == newest, "a round takes uploads"
        issued_now(fleet, begin + step, may_issue=True)
    times = [stated(fleet, epoch) for epoch in range(1, 1 + epoch_of(fleet.service.registry.signed_roster()))]
    assert 4 <= len(times) <= 6
    assert all(later - earlier >= REKEY_S for earlier, later in pairwise(times))
