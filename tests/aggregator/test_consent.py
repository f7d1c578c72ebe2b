"""Consent at the aggregator: what lacks it is refused, what is withdrawn is dropped while it can be (SPEC 6.7)."""

from __future__ import annotations

import msgspec
import pytest
from small_fleet import SmallFleet
from test_service_rounds import ended, raised, start

from edge_sdk.protocol.codec import Chunk
from edge_sdk.protocol.messages import Withdraw

THREE_CHUNKS = (3000,)


@pytest.fixture
def fleet(tmp_path):
    return SmallFleet(tmp_path / "home")


@pytest.fixture
def sending(tmp_path):
    """Every device but the first is in; the first has sent one chunk of three."""
    fleet = SmallFleet(tmp_path / "home", hidden=THREE_CHUNKS)
    first = fleet.devices[0]
    first.progress = lambda *args, **kwargs: None
    start(fleet, window_s=60)
    fleet.run(lambda: len(fleet.service.store.uploads("churn", 1, "accepted", "summed")) == 5)
    upload = first.uploads["churn", 1]
    first.send_chunk(upload, 0)
    fleet.turn()
    return fleet, first, upload


def test_a_hello_below_the_offers_notice_is_refused_and_the_others_go_on(fleet):
    old, start_upload = fleet.devices[0], fleet.devices[0].send

    def with_an_old_notice(offer, digest, plain):
        start_upload(msgspec.structs.replace(offer, consent=2), digest, plain)

    old.send = with_an_old_notice
    start(fleet, consent=3, window_s=30)
    fleet.run(ended(fleet))
    assert [(r.about, r.reason) for r in old.refusals][:1] == [("hello", "consent")]
    assert raised(fleet) == [0, 1, 1, 1, 1, 1]
    assert fleet.refused("hello", "consent") > 0


def test_what_is_withdrawn_on_its_way_is_in_no_sum_and_not_waited_for(sending):
    fleet, first, upload = sending
    first.say(Withdraw("churn", (upload.hello.upload,)))
    begun = fleet.now
    fleet.run(ended(fleet))
    assert fleet.now - begun < 55, "the round waited for its window"
    assert raised(fleet) == [0, 1, 1, 1, 1, 1]
    assert fleet.service._ingest._arriving == {}
    assert [event[5]["uploads"] for event in fleet.service.store.events() if event[2] == "withdrawn"] == [1]


def test_a_withdrawn_upload_does_not_come_back_by_what_is_delivered_late_or_twice(sending):
    fleet, first, upload = sending
    for _ in range(2):
        first.say(Withdraw("churn", (upload.hello.upload,)))
        first.say(upload.hello)
        first.say(upload.hello)
        fleet.turn()
    assert [(r.accepted, r.reason) for r in upload.receipts] == [(False, "dropped")] * 4
    assert fleet.service._ingest._arriving == {}
    fleet.restart()
    first.say(upload.hello)
    fleet.turn()
    assert fleet.service._ingest._arriving == {}


def test_a_withdrawal_that_overtakes_its_hello_holds(sending):
    fleet, first, upload = sending
    fleet.service._ingest.drop_device("device-0")
    late = msgspec.structs.replace(upload.hello, upload=b"late-withdrawal!")
    first.say(Withdraw("churn", (late.upload,)))
    first.say(late)
    fleet.turn()
    assert fleet.service._ingest._arriving == {}
    assert fleet.service.store.upload(late.upload).state == "dropped"


def test_without_a_name_every_upload_of_the_device_and_the_task_goes(sending):
    fleet, first, upload = sending
    fleet.devices[1].say(Withdraw("churn", ()))
    first.say(Withdraw("other", ()))
    fleet.turn()
    assert list(fleet.service._ingest._arriving) == [upload.hello.upload]
    first.say(Withdraw("churn", ()))
    fleet.turn()
    assert fleet.service._ingest._arriving == {}
    fleet.service._ingest.sweep()
    assert list(fleet.home.spool.iterdir()) == [] or all(
        upload.hello.upload.hex() not in file.name for file in fleet.home.spool.iterdir()
    )


def test_another_devices_upload_cannot_be_withdrawn(sending):
    fleet, _, upload = sending
    fleet.devices[1].say(Withdraw("churn", (upload.hello.upload,)))
    fleet.turn()
    assert list(fleet.service._ingest._arriving) == [upload.hello.upload]


def test_what_is_in_the_sum_stays_in_it(sending):
    fleet, first, upload = sending
    for index in (1, 2):
        fleet.service._ingest.chunk("device-0", Chunk(upload.hello.upload, index, upload.chunks[index]), fleet.now)
    del first.progress
    first.say(upload.hello)
    fleet.run(lambda: upload.over)
    first.say(Withdraw("churn", (upload.hello.upload,)))
    fleet.run(ended(fleet))
    assert raised(fleet) == [1, 1, 1, 1, 1, 1]


def test_a_device_cannot_fill_the_tables_with_withdrawals(sending):
    fleet, _, _ = sending
    for base in range(4):
        names = tuple(bytes([base, n]) * 8 for n in range(64))
        fleet.devices[2].say(Withdraw("churn", names))
        fleet.turn()
    rows = fleet.service.store.uploads("churn", 1, "dropped")
    assert len([row for row in rows if row.device == "device-2"]) == 8
