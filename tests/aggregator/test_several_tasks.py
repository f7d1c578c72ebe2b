"""What the operator sees and does while rounds run: two tasks, refusals, stopping, and rounds that came to nothing."""

from __future__ import annotations

import pytest
from small_fleet import START, SmallFleet

from aggregator import status, tasks
from aggregator.fleet.authority import open_authority
from aggregator.offering import epoch_of
from edge_sdk.artifact.weights import metadata
from edge_sdk.protocol.codec import unpack
from edge_sdk.protocol.errors import LocalProtocolError
from edge_sdk.protocol.messages import Offer, Report

PRIVACY = "fl.privacy"


@pytest.fixture
def fleet(tmp_path):
    return SmallFleet(tmp_path / "home")


def gathered(fleet):
    service = fleet.service
    return status.gather(fleet.home.path, service.store, service.registry, fleet.now)


def over(fleet, number, task="churn"):
    return lambda: any(row.number == number and row.secret is None for row in fleet.service.store.rounds(task))


def newest_epoch(fleet) -> int:
    return epoch_of(fleet.service.registry.signed_roster())


def test_a_device_that_enrols_is_on_a_roster_soon_though_one_of_two_tasks_is_always_collecting(fleet):
    fleet.devices[5].takes_part = False  # every round lasts its whole window
    fleet.task(rounds=90, window_s=9)
    fleet.hello_all()
    fleet.run(lambda: fleet.phase() == "collecting")
    for _ in range(40):
        fleet.turn()
    fleet.task(name="other", rounds=90, window_s=9)
    fleet.run(over(fleet, 2, "other"))
    assert newest_epoch(fleet) == 1  # the tasks do run side by side, out of step, on one roster
    key = open_authority(fleet.home.authority, now=START).sign_key.public_key().public_bytes_raw()
    fleet.devices.append(fleet.add("device-6", 6, key))
    first = {task: fleet.service.store.last_number(task) for task in ("churn", "other")}
    fleet.run(lambda: newest_epoch(fleet) == 2, limit=400)
    for task, number in first.items():
        fleet.run(over(fleet, number + 1, task), limit=1000)
        offer = unpack(fleet.service.store.round(task, number + 1).frame[68:], Offer)
        assert offer.secagg.epoch == 2
        assert "device-6" in {u.device for u in fleet.service.store.uploads(task, number + 1, "summed", "accepted")}


def test_the_operator_reads_why_nobody_uploads(fleet):
    for device in fleet.devices:
        device.takes_part = False
    fleet.task(window_s=30)
    fleet.hello_all()
    fleet.run(lambda: fleet.phase() == "offered")
    for device, reason in zip(fleet.devices, ["graph"] * 4 + ["cohort"] * 2, strict=True):
        for counter in (1, 2):  # a device that says it twice counts once
            device.say(Report(counter, "churn", 1, "offer-refused", reason, ""))
    fleet.devices[0].say(Report(3, "churn", 7, "offer-refused", "other-round", ""))
    for _ in range(5):
        fleet.turn()
    task = gathered(fleet)["tasks"][0]
    assert task["waiting"].endswith("devices that refuse: 4 graph, 2 cohort")
    assert task["rounds"][0]["refused"] == {"graph": 4, "cohort": 2}
    fleet.run(over(fleet, 1))
    assert any("round 1: 4 graph, 2 cohort" in line for line in status.lines(gathered(fleet)))


def aborted_then_released(fleet, unit):
    for device in fleet.devices[2:]:
        device.takes_part = False
    fleet.task(unit=unit, window_s=20, rounds=2)
    fleet.hello_all()
    fleet.run(over(fleet, 1))
    assert fleet.phase(1) == "aborted"
    for device in fleet.devices:
        device.takes_part = True
    fleet.run(lambda: fleet.service.store.task("churn").status == "done")
    task = gathered(fleet)["tasks"][0]
    model = fleet.home.checkpoint_file(fleet.service.store.task("churn").checkpoint).read_bytes()
    return task, metadata(model)[PRIVACY], tasks.settle(tasks.parse_spec(fleet.service.store.task("churn").spec), 13)


@pytest.mark.parametrize("unit", ["record", "device"])
def test_an_aborted_round_costs_the_model_nothing_because_its_sum_was_never_opened(fleet, unit):
    task, stated, terms = aborted_then_released(fleet, unit)
    assert [entry["phase"] for entry in task["rounds"]] == ["aborted", "released", "released"]
    once, twice = (tasks.epsilon_after(terms, 13, rounds) for rounds in (1, 2))
    assert [entry["epsilon"] for entry in task["rounds"]] == [0.0, round(once, 4), round(twice, 4)]
    assert task["privacy"]["epsilon"] == round(twice, 4)
    assert f"epsilon {twice:.4g} at delta 1e-05 for each {unit} after 2 rounds" in stated
    assert task["rounds_done"] == 2


def test_a_round_that_nobody_uploaded_to_costs_nothing(fleet):
    for device in fleet.devices:
        device.takes_part = False
    fleet.task(window_s=10)
    fleet.hello_all()
    fleet.run(over(fleet, 1))
    task = gathered(fleet)["tasks"][0]
    assert (task["rounds_done"], task["privacy"]["epsilon"]) == (0, 0.0)


def test_a_task_stopped_while_its_round_ends_stays_stopped(fleet):
    forget = fleet.service._ingest.forget_round

    def forgets(task, number):
        fleet.service.store.set_task("churn", status="paused", reason="stopped by the operator")
        forget(task, number)

    fleet.service._ingest.forget_round = forgets  # another process writes in the middle of `finish`
    fleet.task(rounds=3)
    fleet.hello_all()
    fleet.run(over(fleet, 1))
    for _ in range(50):
        fleet.turn()
    row = fleet.service.store.task("churn")
    assert (row.status, row.reason) == ("paused", "stopped by the operator")
    assert fleet.service.store.last_number("churn") == 1
    fleet.service._ingest.forget_round = forget
    fleet.service.store.set_task("churn", status="active", reason="")
    fleet.run(lambda: fleet.service.store.task("churn").status == "done")
    assert fleet.service.store.last_number("churn") == 3


def test_a_sum_of_another_count_than_the_accepted_uploads_is_never_opened(fleet):
    fleet.devices[5].takes_part = False
    fleet.task(window_s=3600)
    fleet.hello_all()
    fleet.run(lambda: len(fleet.service.store.uploads("churn", 1, "accepted", "summed")) == 5)
    live = fleet.service._rounds._open["churn"]
    live.state = type(live.state)(
        **{name: getattr(live.state, name) for name in live.state.__slots__}
        | {"accepted": live.state.accepted | {"device-5"}}
    )
    with pytest.raises(LocalProtocolError, match="hold 5 uploads, 6 were accepted"):
        fleet.service._rounds._prepare(live)
