"""Whole rounds through the service over a memory broker, with exact inputs, in good order and bad."""

from __future__ import annotations

import os
import resource

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_fleet import FLEET, SmallFleet, indicator

from edge_sdk.protocol import codec, topics
from edge_sdk.protocol.codec import unpack
from edge_sdk.protocol.messages import Done, Heartbeat, Offer, Report, Share
from edge_sdk.protocol.sealing import seal_to_round
from edge_sdk.transport.memory import Envelope

KINDS = ["hello", "data", "done", "get", "hb", "share", "ask", "report", "key", "grant", "nonsense"]


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def fleet(tmp_path):
    return SmallFleet(tmp_path / "home")


def ended(fleet, number=1):
    """The round is over and its key forgotten."""
    return lambda: any(row.number == number and row.secret is None for row in fleet.rounds())


def offer_of(fleet, number=1) -> Offer:
    return unpack(fleet.service.store.round("churn", number).frame[68:], Offer)


def raised(fleet, number=1) -> list[int]:
    """How often each device stands in the sum, read from the two checkpoints."""
    store, offer = fleet.service.store, offer_of(fleet, number)
    after, _ = store.checkpoint("churn", number)
    count = len(store.uploads("churn", number, "accepted", "summed"))
    return indicator(fleet.home, offer.models[0].hex(), after, count, offer.privacy.step)[: len(fleet.devices)]


def start(fleet, **fields):
    fleet.task(**fields)
    fleet.hello_all()


def test_a_round_gives_the_sum_of_exactly_the_devices_that_were_in(fleet):
    start(fleet)
    fleet.run(ended(fleet))
    assert fleet.phase() == "released"
    assert raised(fleet) == [1] * 6
    _, metrics = fleet.service.store.checkpoint("churn", 1)
    assert {"auc", "accuracy", "log_loss"} <= set(metrics)
    assert fleet.service.store.last_release("churn")[:2] == (2, 1)


def test_a_task_ends_after_its_rounds_and_its_versions_rise_by_one(fleet):
    start(fleet, rounds=3)
    fleet.run(lambda: fleet.service.store.task("churn").status == "done")
    assert [row.phase for row in fleet.rounds()] == ["released"] * 3
    assert fleet.service.store.last_release("churn")[:2] == (4, 3)
    stats = fleet.rounds()[-1].stats
    assert stats["epsilon"] > fleet.rounds()[0].stats["epsilon"] > 0
    assert {"collecting", "opening", "averaging", "evaluating", "releasing"} <= set(stats["seconds"])
    assert not list(fleet.home.spool.iterdir())
    assert not list(fleet.home.sums.iterdir())


def test_a_device_that_vanishes_and_a_member_that_is_silent_stop_nothing(fleet):
    fleet.devices[1].takes_part = False
    fleet.devices[2].answers_openings = False
    start(fleet)
    fleet.run(ended(fleet))
    assert fleet.phase() == "released"
    assert raised(fleet) == [1, 0, 1, 1, 1, 1]


def test_a_device_that_declines_is_not_waited_for(fleet):
    fleet.devices[5].takes_part = False
    start(fleet, window_s=3600)
    fleet.run(lambda: len(fleet.service.store.uploads("churn", 1, "accepted", "summed")) == 5)
    fleet.devices[5].say(Report(1, "churn", 1, "offer-refused", "privacy", ""))
    fleet.run(ended(fleet), limit=200)
    assert fleet.service.store.round("churn", 1).stats["devices"] == 5


def test_a_goodbye_counts_at_once_and_an_old_heartbeat_does_not(fleet):
    start(fleet)
    device = fleet.devices[0]
    device.beat()
    fleet.turn()
    for counter, phase in ((1, "idle"), (9, "gone")):
        device.say(Heartbeat(os.urandom(8), counter, phase, {}), 0)
    fleet.turn()
    assert fleet.refused("hb", "repeat") == 1
    assert not device.refusals  # a repeat is dropped, not answered
    assert device.name not in fleet.service._presence.live(fleet.now, 90.0)


def test_too_few_uploads_abort_the_round_and_the_next_has_a_new_number(fleet):
    for device in fleet.devices[2:]:
        device.takes_part = False
    start(fleet, window_s=20)
    fleet.run(ended(fleet))
    assert (fleet.phase(1), fleet.rounds()[0].reason) == ("aborted", "n-min")
    assert fleet.service.store.checkpoint("churn", 1) is None
    for device in fleet.devices:
        device.takes_part = True
    fleet.run(ended(fleet, 2))
    assert fleet.phase(2) == "released"


def test_nothing_is_offered_while_too_few_devices_are_live_and_the_reason_is_shown(fleet):
    fleet.task(n_min=5)
    for device in fleet.devices[:4]:
        device.ask()
    for _ in range(20):
        fleet.turn()
    assert fleet.rounds() == []
    assert fleet.service.store.task("churn").reason == "4 of at least 5 devices are live"


def test_a_fleet_too_small_for_a_committee_is_told_what_is_missing(tmp_path):
    fleet = SmallFleet(tmp_path / "home", count=4)
    start(fleet)
    for _ in range(10):
        fleet.turn()
    assert "committee needs 5 members" in fleet.service.store.task("churn").reason


def test_a_wrong_answer_spoils_one_round_and_not_the_next(fleet):
    liar = fleet.devices[3]
    honest_say = liar.say

    def say(message, qos=1):
        if isinstance(message, Share) and message.round == 1:
            offer, digest = liar.offers["churn", 1]
            message = Share("churn", 1, spoiled(fleet, offer, digest, liar))
        honest_say(message, qos)

    liar.say = say
    start(fleet)
    fleet.run(ended(fleet))
    assert fleet.phase(1) == "aborted"
    assert fleet.rounds()[0].reason in ("canaries", "wrong-share")
    fleet.run(ended(fleet, 2))
    assert fleet.phase(2) == "released"
    assert raised(fleet, 2) == [1] * 6


def spoiled(fleet, offer, digest, liar) -> bytes:
    """An answer of the right form with other numbers in it."""
    from aggregator.opening_requests import expected_hash
    from edge_sdk.protocol.chunks import share_info
    from edge_sdk.protocol.messages import ShareBody

    live = fleet.service._rounds._open["churn"]
    sums = np.arange(live.terms.profile.degree // live.terms.plan.packing).astype("<u2").tobytes()
    place = offer.secagg.committee.index(liar.name) + 1
    body = ShareBody(
        digest,
        expected_hash(live.terms, fleet.service._rounds._openings.groups(live.terms, live.grouping)),
        place,
        (sums,),
    )
    return seal_to_round(codec.pack(body), offer.round_key, share_info(digest, liar.name))


def test_an_upload_whose_signature_does_not_hold_gets_a_final_no(fleet):
    forger = fleet.devices[0]
    own, forger_signs = forger.sign_key, fleet.devices[1].sign_key

    def upload(offer, digest, original=forger.upload):
        forger.sign_key = forger_signs  # for the shares; the hello is signed by its own key again
        say, forger.say = forger.say, lambda message, qos=1: held.append(message)
        original(offer, digest)
        forger.sign_key, forger.say = own, say
        forger.say(held[0])

    held: list = []
    forger.upload = upload
    start(fleet)
    fleet.run(ended(fleet))
    receipts = forger.uploads["churn", 1].receipts
    assert receipts[0].reason == "upload-signature"
    assert not any(receipt.accepted for receipt in receipts)
    assert raised(fleet) == [0, 1, 1, 1, 1, 1]


def test_a_second_upload_of_a_device_is_refused_and_a_repeated_done_gets_its_receipt_again(fleet):
    fleet.devices[5].takes_part = False
    start(fleet, window_s=3600)
    device = fleet.devices[0]
    fleet.run(lambda: ("churn", 1) in device.uploads and device.uploads["churn", 1].over)
    first = device.uploads.pop(("churn", 1))
    device.upload(first.offer, first.digest)
    fleet.run(lambda: bool(device.refusals), limit=50)
    assert (device.refusals[-1].reason, device.refusals[-1].about) == ("already-in", "hello")
    device.uploads["churn", 1] = first
    before = len(first.receipts)
    device.say(Done(first.hello.upload))
    fleet.run(lambda: len(first.receipts) > before, limit=50)
    assert first.receipts[-1].accepted
    fleet.devices[5].takes_part = True
    fleet.devices[5].ask()
    fleet.run(ended(fleet))
    assert raised(fleet) == [1] * 6


def test_a_revoked_device_is_out_at_its_next_message(fleet):
    start(fleet, window_s=3600)
    fleet.devices[4].takes_part = False
    fleet.run(lambda: ("churn", 1) in fleet.devices[0].offers)
    fleet.service.registry.revoke("device-4", now=fleet.now)
    fleet.devices[4].ask()
    fleet.run(ended(fleet))
    assert fleet.refused("ask", "revoked") == 1
    assert raised(fleet) == [1, 1, 1, 1, 0, 1]
    fleet.run(ended(fleet, 2))
    assert fleet.fleet_calls[-1] == [d.name for d in fleet.devices if d.name != "device-4"]
    assert "device-4" not in offer_of(fleet, 2).secagg.committee
    assert offer_of(fleet, 2).secagg.epoch == offer_of(fleet, 1).secagg.epoch + 1


def test_a_checkpoint_that_is_not_better_is_kept_and_not_released(fleet):
    start(fleet, min_improvement=2.0)
    fleet.run(ended(fleet))
    row = fleet.rounds()[0]
    assert (row.phase, row.reason.split()[0]) == ("released", "gate:")
    assert fleet.service.store.last_release("churn")[:2] == (1, 0)
    assert fleet.service.store.task("churn").checkpoint == fleet.service.store.checkpoint("churn", 1)[0]


def test_only_every_nth_round_and_the_last_are_released(fleet):
    start(fleet, rounds=3, release_every=2)
    fleet.run(lambda: fleet.service.store.task("churn").status == "done")
    released = [fleet.service.store.release_of("churn", n) for n in (1, 2, 3)]
    assert released == [None, 2, 3]


@pytest.mark.parametrize(
    "phase",
    ["offered", "collecting", "closed", "opening", "averaging", "averaged", "published", "released"],
)
def test_a_crash_at_any_phase_changes_nothing_about_the_result(fleet, phase):
    crashed: list[str] = []

    def hook(reached: str) -> None:
        if reached == phase and not crashed:
            crashed.append(phase)
            raise Crash

    fleet.hook = hook
    start(fleet)
    with pytest.raises(Crash):
        fleet.run(ended(fleet))
    fleet.restart()
    fleet.run(ended(fleet))
    assert fleet.phase() == "released"
    assert raised(fleet) == [1] * 6
    assert fleet.service.store.last_release("churn")[:2] == (2, 1)


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_lost_repeated_and_swapped_messages_and_restarts_never_change_the_sum(tmp_path_factory, data):
    fleet = SmallFleet(tmp_path_factory.mktemp("noise") / "home", count=5)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    held: list[Envelope] = []

    def tamper(envelope: Envelope) -> list[Envelope]:
        dice = rng.random()
        if dice < 0.15:
            return []
        if dice < 0.30:
            return [envelope, envelope]
        if dice < 0.40:
            held.append(envelope)
            return []
        return [envelope, *(held.pop() for _ in range(min(len(held), 1)))]

    fleet.broker.tamper = tamper
    start(fleet, rounds=1, window_s=100, opening_s=500)
    for restart_after in data.draw(st.lists(st.integers(1, 60), max_size=3)):
        for count in range(restart_after):
            fleet.turn()
            if count % 20 == 19:
                for device in fleet.devices:
                    device.tick()
        fleet.restart()
    fleet.run(lambda: bool(fleet.rounds()) or not fleet.hello_all())
    fleet.run(ended(fleet), limit=20_000)
    if fleet.phase() == "released":
        included = {u.device for u in fleet.service.store.uploads("churn", 1, "accepted", "summed")}
        assert raised(fleet) == [int(device.name in included) for device in fleet.devices]
        for device in fleet.devices:
            if any(r.accepted for u in device.uploads.values() for r in u.receipts):
                assert device.name in included


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), payload=st.binary(max_size=300), head=st.booleans(), known=st.booleans())
def test_rubbish_on_any_topic_is_counted_and_changes_no_round(collecting, kind, payload, head, known):
    device = "device-0" if known else "nobody"
    frame = (b"Ch\x01" + bytes([len(payload) % 10]) + payload) if head else payload
    before, total = collecting.service._rounds._open["churn"].state, collecting.service._refusals.total
    collecting.service._desk.receive(topics.up(FLEET, device, kind), frame, collecting.now)
    assert collecting.service._rounds._open["churn"].state == before
    assert collecting.service._refusals.total == total + 1


@pytest.fixture(scope="module")
def collecting(tmp_path_factory):
    fleet = SmallFleet(tmp_path_factory.mktemp("collecting") / "home")
    fleet.devices[5].takes_part = False
    start(fleet, window_s=3600)
    fleet.run(lambda: fleet.phase() == "collecting")
    return fleet


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda frame: frame[:50], "truncated"),
        (lambda frame: frame + bytes(70_000), "size"),
        (lambda frame: b"XX" + frame[2:], "magic"),
        (lambda frame: frame[:2] + b"\x09" + frame[3:], "version"),
        (lambda frame: frame[:3] + b"\x04" + frame[4:], "kind"),
        (lambda frame: frame[:-1] + bytes([frame[-1] ^ 1]), "signature"),
        (lambda frame: frame + b"\x00", "signature"),
    ],
)
def test_a_spoiled_frame_is_refused_by_its_reason(collecting, spoil, reason):
    device = collecting.devices[0]
    sent: list[bytes] = []
    device.publish, publish = (lambda topic, frame, qos: sent.append(frame)), device.publish
    device.ask()
    device.publish = publish
    before = collecting.refused("ask", reason)
    collecting.service._desk.receive(topics.up(FLEET, device.name, "ask"), spoil(sent[0]), collecting.now)
    assert collecting.refused("ask", reason) == before + 1


def test_a_message_of_one_device_in_the_name_of_another_is_refused(collecting):
    device, victim = collecting.devices[0], topics.up(FLEET, "device-1", "ask")
    sent: list[bytes] = []
    device.publish, publish = (lambda topic, frame, qos: sent.append(frame)), device.publish
    device.ask()
    device.publish = publish
    before = collecting.refused("ask", "signature")
    collecting.service._desk.receive(victim, sent[0], collecting.now)
    assert collecting.refused("ask", "signature") == before + 1


def test_a_member_gets_its_own_opening_and_nobody_else_gets_any(fleet):
    fleet.devices[0].answers_openings = fleet.devices[1].answers_openings = False
    start(fleet, opening_s=3600)
    fleet.run(lambda: fleet.phase() == "opening")
    desk = fleet.service._desk
    assert desk._read("device-0", "opening/churn/1", 0, 10)[0] > 0
    assert desk._read("stranger", "opening/churn/1", 0, 10) is None
    for path in ("opening/churn/2", "checkpoint/../../x", "tuf/../aggregator.db", "roster/x", "checkpoint/" + "g" * 64):
        assert desk._read("device-0", path, 0, 10) is None
    fleet.devices[0].ask()
    fleet.run(lambda: fleet.devices[0].states == 2, limit=50)


def test_a_full_disk_refuses_and_loses_nothing(tmp_path):
    fleet = SmallFleet(tmp_path / "home", hidden=(12_000,))  # half a megabyte an upload
    late = fleet.devices[5]
    late.takes_part = False
    start(fleet, window_s=3600)
    fleet.run(lambda: len(fleet.service.store.uploads("churn", 1, "accepted", "summed")) == 5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    late.takes_part = True
    late.done_blobs.clear()
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        late.get(f"roster/{offer_of(fleet).secagg.epoch}")
        fleet.run(lambda: bool(late.refusals), limit=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (late.refusals[-1].reason, late.refusals[-1].upload) == ("disk-full", None)
    fleet.run(ended(fleet))
    assert raised(fleet) == [1] * 6
