"""Whole rounds of several groups, with exact inputs: what is opened, what is left out, what a crash changes."""

from __future__ import annotations

import os

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from onehot_device import ONE, OneHotDevice
from small_fleet import START, SmallFleet, make_task
from test_service_rounds import Crash, ended, offer_of, raised, start

from aggregator import offering, status
from aggregator.errors import TaskRefused
from edge_sdk.artifact.weights import read_vector
from edge_sdk.protocol import codec
from edge_sdk.protocol.messages import OpeningRequest
from edge_sdk.protocol.secagg import groups

GROUPS = {"n_min": 3, "groups": 3, "rounds": 1}


@pytest.fixture
def fleet(tmp_path):
    return SmallFleet(tmp_path / "home", count=9)


def stats(fleet, number=1):
    return fleet.service.store.round("churn", number).stats


def moved(fleet, number=1) -> np.ndarray:
    """How far the round moved each weight, in steps."""
    offer, (after, _) = offer_of(fleet, number), fleet.service.store.checkpoint("churn", number)
    files = [fleet.home.checkpoint_file(sha).read_bytes() for sha in (offer.models[0].hex(), after)]
    old, new = (read_vector(file).astype(np.float64) for file in files)
    return (new - old) / offer.privacy.step


def groups_of(fleet) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for device, group in fleet.service.store.members("churn", 1).items():
        found.setdefault(group, set()).add(device)
    return found


def spoil(device) -> None:
    """The device adds something else than it shared the mask of: the upload is well formed and signed."""
    send = device.send

    def spoiled(offer, digest, plain):
        send(offer, digest, plain[:-40] + os.urandom(40))

    device.send = spoiled


def test_three_groups_give_the_same_mean_as_one(fleet):
    start(fleet, **GROUPS)
    fleet.run(ended(fleet))
    assert fleet.phase() == "released"
    assert raised(fleet) == [1] * 9
    assert stats(fleet)["groups"] == [{"devices": 3, "reason": ""}] * 3
    assert {len(group) for group in groups_of(fleet).values()} == {3}
    for device in fleet.devices:
        request = codec.unpack(device.done_blobs["opening/churn/1"], OpeningRequest)
        wanted = [devices for _, devices in sorted(groups_of(fleet).items())]
        assert [{entry.device for entry in group} for group in request.groups] == wanted
    assert not list(fleet.home.sums.iterdir())
    assert fleet.service.store.sums("churn", 1) == []


def test_a_group_that_does_not_fill_is_left_out_and_its_devices_are_in_no_sum(fleet):
    fleet.devices[8].takes_part = False
    start(fleet, window_s=30, **GROUPS)
    fleet.run(ended(fleet))
    left_out = next(devices for devices in groups_of(fleet).values() if len(devices) == 2)
    assert raised(fleet) == [int(d.name not in {*left_out, fleet.devices[8].name}) for d in fleet.devices]
    assert [group["devices"] for group in stats(fleet)["groups"]] == [3, 3]


def test_a_robust_round_waits_for_three_groups_and_aborts_with_fewer(fleet):
    for device in fleet.devices[7:]:
        device.takes_part = False
    start(fleet, window_s=20, robust="median", **GROUPS)
    fleet.run(ended(fleet))
    assert (fleet.phase(), fleet.rounds()[0].reason) == ("aborted", "n-min")


def test_round_keys_are_drawn_until_the_live_devices_fill_the_groups(tmp_path):
    """Of 12 devices 10 are live: that a draw leaves three in each group is far from sure."""
    fleet = SmallFleet(tmp_path / "home", count=12)
    make_task(fleet.home, robust="median", window_s=30, **GROUPS)
    office = fleet.service._rounds._offering
    live = frozenset(device.name for device in fleet.devices[:10])
    for number in range(1, 6):
        offer, _, roster = office.offer(fleet.service.store.task("churn"), number, START, live, may_issue=True)
        digest = codec.offer_hash(bytes(68) + codec.pack(offer))
        placed = groups.groups_of(digest, [entry.device for entry in roster.entries], 3)
        assert all(sum(placed[name] == group for name in live) >= 3 for group in range(3))


def test_where_no_draw_fills_three_groups_the_operator_is_told_and_nothing_is_offered(fleet, monkeypatch):
    monkeypatch.setattr(offering, "DRAWS", 0)
    make_task(fleet.home, robust="median", **GROUPS)
    live = frozenset(device.name for device in fleet.devices)
    with pytest.raises(TaskRefused, match="9 live of 9 devices do not fill 3 groups of 3"):
        fleet.service._rounds._offering.offer(fleet.service.store.task("churn"), 1, START, live, may_issue=True)


def test_a_robust_round_that_live_devices_cannot_fill_is_not_offered_and_charges_nobody(fleet):
    make_task(fleet.home, robust="median", **GROUPS)
    live = frozenset(device.name for device in fleet.devices[:8])
    with pytest.raises(TaskRefused, match="8 of at least 9 devices are live"):
        fleet.service._rounds._offering.offer(fleet.service.store.task("churn"), 1, START, live, may_issue=True)


@pytest.mark.parametrize("phase", ["closed", "averaging"])
def test_a_crash_at_any_phase_changes_nothing_about_the_groups(fleet, phase):
    crashed: list[str] = []

    def hook(reached: str) -> None:
        if reached == phase and not crashed:
            crashed.append(phase)
            raise Crash

    fleet.hook = hook
    start(fleet, **GROUPS)
    with pytest.raises(Crash):
        fleet.run(ended(fleet))
    before = groups_of(fleet)
    fleet.restart()
    fleet.run(ended(fleet))
    assert raised(fleet) == [1] * 9
    assert all(groups_of(fleet)[group] >= devices for group, devices in before.items())
    assert stats(fleet)["groups"] == [{"devices": 3, "reason": ""}] * 3


def test_restarts_between_snapshots_of_several_groups_count_every_upload_once(fleet):
    fleet.devices[8].takes_part = False
    start(fleet, window_s=3600, **GROUPS)
    accepted = lambda: fleet.service.store.uploads("churn", 1, "accepted", "summed")  # noqa: E731 # read at each call
    for count in (3, 5, 8):
        fleet.run(lambda known=count: len(accepted()) >= known)
        if count == 5:
            for each in fleet.service._ingest._rounds["churn", 1].sums:
                each.snapshot()
        (fleet.home.sums / "churn-1-0-99.sum").write_bytes(b"what a crash leaves")
        fleet.restart()
    fleet.devices[8].takes_part = True
    fleet.devices[8].ask()
    fleet.run(ended(fleet))
    assert raised(fleet) == [1] * 9


def test_a_spoiled_upload_costs_its_own_group_and_no_other(fleet):
    spoil(fleet.devices[4])
    start(fleet, **GROUPS)
    fleet.run(ended(fleet))
    assert fleet.phase() == "released"
    lost = next(group for group in groups_of(fleet).values() if "device-4" in group)
    held = [int(device.name not in lost) for device in fleet.devices]
    assert np.round(moved(fleet)[:9] * 6 / ONE).astype(int).tolist() == held
    assert sorted(group["reason"] for group in stats(fleet)["groups"]) == ["", "", "canaries"]
    assert (stats(fleet)["devices"], stats(fleet)["devices_averaged"]) == (9, 6)
    (said,) = [event[-1] for event in fleet.service.store.events() if event[2] == "group-left-out"]
    assert set(said["devices"]) == lost
    assert fleet.refused("group", "canaries") == 1
    (shown,) = status.gather(fleet.home.path, fleet.service.store, fleet.service.registry, fleet.now)["tasks"]
    assert shown["rounds"][0]["groups"] == stats(fleet)["groups"]
    assert "  round 1 left out 1 of 3 groups: canaries" in status.task_lines(shown)


def test_spoiled_uploads_in_every_group_abort_the_round(fleet):
    for device in fleet.devices:
        spoil(device)
    start(fleet, **GROUPS)
    fleet.run(ended(fleet))
    assert (fleet.phase(), fleet.rounds()[0].reason) == ("aborted", "canaries")
    assert fleet.service.store.checkpoint("churn", 1) is None


def test_where_too_few_groups_are_left_for_a_median_the_model_stays_and_the_round_counts(fleet):
    """Two members are silent as well: that it is no wrong answer cannot be told before the opening ends."""
    spoil(fleet.devices[4])
    for device in (fleet.devices[0], fleet.devices[8]):  # of nine members seven must answer
        device.answers_openings = False
    start(fleet, robust="median", **GROUPS)
    fleet.run(ended(fleet))
    assert fleet.phase() == "released"
    assert not moved(fleet).any()
    assert fleet.service.store.averaged_rounds("churn") == 1
    assert stats(fleet)["seconds"]["opening"] > 29


def poison(device, size: int = 60 * ONE) -> None:
    """As large as a device of one's own program cares to be: the mask hides it."""
    device.values = lambda offer: np.full(offer.length, size, np.int32)


def everybody_sends(fleet, size: int) -> None:
    for device in fleet.devices:
        device.values = lambda offer, sent=size: np.full(offer.length, sent, np.int32)


@pytest.mark.parametrize(("rule", "near"), [("mean", False), ("median", True)])
def test_one_poisoned_group_moves_the_mean_and_not_the_median(fleet, rule, near):
    everybody_sends(fleet, ONE)
    poison(fleet.devices[2])
    start(fleet, robust=rule, **GROUPS)
    fleet.run(ended(fleet))
    distance = np.abs(moved(fleet) - ONE).max()
    assert (distance < ONE / 20) == near
    assert near or distance > 5 * ONE


def test_the_gate_leaves_out_a_group_that_alone_spoils_the_metric(fleet):
    """One weight decides; honest devices raise it, one device lowers it by more than all of them together."""
    for device in fleet.devices:
        size = -20 * ONE if device.name == "device-2" else ONE
        device.values = lambda offer, sent=size: np.where(np.arange(offer.length) == 0, sent, 0).astype(np.int32)
    start(fleet, group_gate=True, group_margin=0.1, clip=1024.0, step=2.0**-6, **GROUPS)
    fleet.run(ended(fleet))
    left_out = [group["reason"] for group in stats(fleet)["groups"] if group["reason"]]
    assert len(left_out) == 1
    assert left_out[0].startswith("gate: auc")
    assert abs(moved(fleet)[0] - ONE) < ONE / 20


def test_a_device_whose_shares_nobody_can_read_costs_its_own_group_and_no_other(fleet):
    """It seals to a key of its own, and signs what it sealed: only the members can notice."""
    liar = fleet.devices[4]
    away = X25519PrivateKey.generate().public_key().public_bytes_raw()

    def entries(offer):
        found = OneHotDevice.entries(liar, offer)
        if ("churn", offer.round) in liar.uploads:
            return found
        return {name: msgspec.structs.replace(entry, epoch_key=away) for name, entry in found.items()}

    liar.entries = entries
    start(fleet, **GROUPS)
    fleet.run(ended(fleet))
    assert fleet.phase() == "released"
    lost = next(group for group in groups_of(fleet).values() if "device-4" in group)
    held = [int(device.name not in lost) for device in fleet.devices]
    assert np.round(moved(fleet)[:9] * 6 / ONE).astype(int).tolist() == held
    assert sorted(group["reason"] for group in stats(fleet)["groups"]) == ["", "", "unreadable-shares"]
