"""What models and devices spend at the aggregator: charged, stopped in time, compared, given back."""

from __future__ import annotations

import sqlite3

import msgspec
import pytest
from small_fleet import SmallFleet, first_model

from aggregator import ledger_report, status, tasks
from aggregator.comparison import said
from aggregator.errors import HomeRefused, ModelRefused, TaskRefused
from aggregator.ledger import Ledger, cost
from aggregator.releasing import Releases
from edge_sdk.artifact.weights import read_vector
from edge_sdk.privacy.accounting import ACCOUNTANT_VERSION, compose, epsilon
from edge_sdk.privacy.curves import pack
from edge_sdk.privacy.curves import unpack as unpack_curve
from edge_sdk.privacy.ledger import Ledger as DeviceLedger
from edge_sdk.protocol.codec import unpack
from edge_sdk.protocol.errors import MalformedMessage, UnexpectedMessage
from edge_sdk.protocol.messages import Offer, PrivacyTerms, Spent, SpentEntry

LENGTH = 100
TERMS = PrivacyTerms(
    unit="record",
    placement="local",
    noise_multiplier=1.0,
    max_grad_norm=1.0,
    per_customer=32,
    sample_rate=0.1,
    steps=10,
    learning_rate=0.1,
    delta=1e-5,
    honest=1,
    clip=1.0,
    step=2.0**-10,
    insecure_without_noise=False,
    expected_batch=50,
    proximal=0.0,
    weight_bound=0,
)


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def fleet(tmp_path):
    return SmallFleet(tmp_path / "home")


@pytest.fixture
def ledger():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    yield Ledger(connection)
    connection.close()


def rounds_cost(count, terms=TERMS):
    return compose([cost(terms, LENGTH)] * count)


def start(fleet, **fields):
    fleet.task(**fields)
    fleet.hello_all()


def ended(fleet, number=1):
    return lambda: any(row.number == number and row.secret is None for row in fleet.rounds())


def ledger_of(fleet):
    return Ledger(fleet.service.store.connection)


def entry(rounds, spend, task="churn", unit="record", last=None):
    return SpentEntry(task, unit, rounds, rounds if last is None else last, ACCOUNTANT_VERSION, pack(spend))


def offer_rounds(ledger, count, at=1000.0):
    for number in range(1, count + 1):
        ledger.offered("churn", number, TERMS, LENGTH, at + number)


def report(ledger, counter, *entries, enrolled_at=0.0):
    """The kinds of the alarms that are new."""
    told = Spent(counter, entries)
    frame, now = msgspec.msgpack.encode(told), 5000.0 + counter
    return [a.kind for a in ledger.report("kiosk-1", told, frame, enrolled_at=enrolled_at, now=now)]


def no_model(*_):
    raise ModelRefused("a weight is not finite", "lower the learning rate", reason="not-finite")


def fleet_status(fleet):
    service = fleet.service
    return status.gather(fleet.home.path, service.store, service.registry, fleet.now)["tasks"][0]


def audit_rows(fleet):
    return fleet.service.store.connection.execute("SELECT CAST(entry AS BLOB) FROM audit_log").fetchall()


# -- models


def test_a_task_ends_before_the_round_that_would_overspend_and_a_restart_does_not_revive_it(fleet):
    start(fleet, rounds=3, noise_multiplier=0.8, pause_s=5.0)
    fleet.run(ended(fleet))
    spec = tasks.parse_spec(fleet.service.store.task("churn").spec)
    quiet = msgspec.structs.replace(spec, noise_multiplier=1.0)
    length = int(read_vector(first_model()).size)
    loud, one = (cost(tasks.settle(each, length), length) for each in (spec, quiet))
    two, three = (epsilon(compose([loud, *[one] * n]), spec.delta) for n in (1, 2))
    # At creation max_epsilon is held against all rounds of these terms; what was spent under others counts too.
    quiet = msgspec.structs.replace(quiet, max_epsilon=(two + three) / 2)
    fleet.service.store.set_task("churn", spec=msgspec.json.encode(quiet))
    fleet.restart()
    fleet.hello_all()
    fleet.run(lambda: fleet.service.store.task("churn").status == "spent")
    assert [row.phase for row in fleet.rounds()] == ["released"] * 2
    assert ledger_of(fleet).epsilon("churn") == pytest.approx(two)
    reason = fleet.service.store.task("churn").reason
    assert f"would bring it to {three:.4g}" in reason
    assert "create a task of another name" in reason
    fleet.restart()
    fleet.hello_all()
    for _ in range(60):
        fleet.turn()
    assert len(fleet.rounds()) == 2
    assert fleet.service.store.task("churn").status == "spent"
    assert "spent" in [kind for _, _, kind, *_ in fleet.service.store.events()]


def test_a_target_epsilon_is_a_budget_that_all_its_rounds_fit_into(fleet):
    start(fleet, rounds=3, noise_multiplier=None, target_epsilon=3.0)
    fleet.run(lambda: fleet.service.store.task("churn").status != "active")
    assert fleet.service.store.task("churn").status == "done"
    assert 2.9 < ledger_of(fleet).epsilon("churn") <= 3.0


def test_a_round_that_was_not_opened_costs_the_model_nothing_and_the_devices_what_left_them(fleet):
    for device in fleet.devices:
        device.answers_openings = False
    start(fleet)
    fleet.run(ended(fleet))
    assert fleet.phase() == "aborted"
    ledger = ledger_of(fleet)
    assert ledger.epsilon("churn") == 0.0
    accounts = ledger.accounts()
    assert [(a.device, a.source, a.rounds) for a in accounts] == [(f"device-{i}", "accepted", 1) for i in range(6)]
    for device in fleet.devices:
        device.answers_openings = True
    fleet.run(ended(fleet, 2))
    offer = unpack(fleet.service.store.round("churn", 2).frame[68:], Offer)
    one = cost(offer.privacy, offer.length)
    assert ledger.model("churn").rounds == 1
    assert ledger.epsilon("churn") == epsilon(one, offer.privacy.delta)
    assert ledger.accounts("device-0")[0].spend == pack(compose([one, one]))


def test_a_sum_that_could_be_read_is_charged_though_its_round_is_aborted(fleet):
    send = fleet.devices[0].send
    fleet.devices[0].send = lambda offer, digest, plain: send(offer, digest, plain[:-40] + bytes(range(40)))
    start(fleet)
    fleet.run(ended(fleet))
    row = fleet.rounds()[0]
    assert (row.phase, row.reason) == ("aborted", "canaries")
    assert ledger_of(fleet).model("churn").rounds == 1
    assert sum(b"sum-refused" in entry for (entry,) in audit_rows(fleet)) == 1
    shown = fleet_status(fleet)["rounds"][0]["epsilon"]
    assert shown == round(ledger_of(fleet).epsilon("churn"), 4) > 0
    db = fleet.service.store.connection
    db.execute("UPDATE curves SET accountant = 0")  # a new accountant counts all anew, this one too
    fleet.restart()
    assert ledger_of(fleet).model("churn").rounds >= 1


def test_a_sum_whose_model_is_no_model_is_charged_too(fleet, monkeypatch):
    monkeypatch.setattr(Releases, "average", no_model)
    start(fleet, rounds=1)
    fleet.run(ended(fleet))
    assert (fleet.phase(), fleet.rounds()[0].reason) == ("aborted", "not-finite")
    assert ledger_of(fleet).model("churn").rounds == 1


@pytest.mark.parametrize("phase", ["collecting", "averaging", "averaged", "released"])
def test_a_crash_neither_forgets_a_charge_nor_charges_twice(fleet, phase):
    crashes = [phase]

    def hook(name):
        if crashes and name == crashes[0]:
            crashes.clear()
            raise Crash

    fleet.hook = hook
    start(fleet, rounds=1)
    with pytest.raises(Crash):
        fleet.run(ended(fleet))
    done = ledger_of(fleet).model("churn").rounds
    assert done == (1 if fleet.service.store.checkpoint("churn", 1) else 0)
    fleet.restart()
    fleet.hello_all()
    fleet.run(ended(fleet))
    assert fleet.phase() == "released"
    assert ledger_of(fleet).model("churn").rounds == 1
    assert {a.rounds for a in ledger_of(fleet).accounts()} == {1}


def test_a_round_of_other_terms_is_charged_and_stopped_by_its_own(ledger):
    offer_rounds(ledger, 3)
    for number in (1, 2, 3):
        ledger.opened("churn", number, 2000.0)
    budget = epsilon(rounds_cost(4), 1e-5)
    ledger.check_budget("churn", TERMS, LENGTH, budget, 4)
    # Round 3 is opened by a second try: what is said of it counts it once.
    assert ledger.epsilon_with("churn", TERMS, LENGTH, 3) == (3, pytest.approx(epsilon(rounds_cost(3), 1e-5)))
    louder = msgspec.structs.replace(TERMS, noise_multiplier=0.6)
    with pytest.raises(TaskRefused) as refusal:
        ledger.check_budget("churn", louder, LENGTH, budget, 4)
    assert refusal.value.reason == "spent"
    for word in (
        "for each record",
        "delta 1e-05",
        "one record added or removed",
        "Gaussian, version",
        "against everyone",
    ):
        assert word in str(refusal.value)
    ledger.check_budget("churn", louder, LENGTH, None, 4)
    ledger.offered("churn", 4, louder, LENGTH, 1004.0)
    ledger.opened("churn", 4, 2000.0)
    together = compose([rounds_cost(3), cost(louder, LENGTH)])
    assert ledger.epsilon("churn") == pytest.approx(epsilon(together, 1e-5))


def test_what_an_older_version_left_is_entered_at_the_next_start(fleet):
    start(fleet)
    fleet.run(lambda: fleet.service.store.task("churn").status == "done")
    before = (ledger_of(fleet).model("churn"), ledger_of(fleet).accounts())
    for table in ("round_charges", "curves", "device_spends"):
        fleet.service.store._write(f"DELETE FROM {table}")
    fleet.restart()
    assert (ledger_of(fleet).model("churn"), ledger_of(fleet).accounts()) == before


def test_a_round_whose_cost_cannot_be_read_is_not_forgotten_but_stops_the_start(fleet):
    start(fleet, rounds=1)
    fleet.run(ended(fleet))
    fleet.service.store._write("DELETE FROM round_charges")
    frame = fleet.service.store.round("churn", 1).frame
    fleet.service.store.set_round("churn", 1, frame=frame[:68] + b"\x80")
    with pytest.raises(HomeRefused, match="round 1 of task churn"):
        fleet.restart()


# -- comparison


def test_equal_ledgers_raise_no_alarm(ledger):
    offer_rounds(ledger, 2)
    ledger.accepted("kiosk-1", "churn", 1)
    ledger.accepted("kiosk-1", "churn", 2)
    assert report(ledger, 1, entry(2, rounds_cost(2))) == []
    told = Spent(1, (entry(2, rounds_cost(2)),))
    assert ledger.frame("kiosk-1") == msgspec.msgpack.encode(told)


def test_a_device_that_charged_less_than_was_accepted_from_it_is_alarmed_once_and_may_recover(ledger):
    offer_rounds(ledger, 2)
    ledger.accepted("kiosk-1", "churn", 1)
    ledger.accepted("kiosk-1", "churn", 2)
    assert report(ledger, 1) == ["charged-less"]
    assert report(ledger, 2, entry(1, rounds_cost(1))) == []  # known already
    (alarm,) = ledger.alarms()
    assert (alarm.times, alarm.standing) == (2, True)
    assert "charged 1 rounds, 2 were accepted" in alarm.detail
    assert report(ledger, 3, entry(2, rounds_cost(2))) == []
    assert [a.standing for a in ledger.alarms()] == [False]


def test_charges_for_uploads_that_never_came_are_explained_by_the_offers_and_no_more_than_those(ledger):
    offer_rounds(ledger, 3)
    ledger.accepted("kiosk-1", "churn", 1)
    assert report(ledger, 1, entry(3, rounds_cost(3))) == []
    assert report(ledger, 2, entry(4, rounds_cost(4))) == ["charged-more"]
    assert "charged 4 rounds, 3 at most" in ledger.alarms()[0].detail


def test_offers_from_before_a_device_was_enrolled_explain_nothing(ledger):
    offer_rounds(ledger, 3)
    assert report(ledger, 1, entry(3, rounds_cost(3)), enrolled_at=1002.0) == ["charged-more"]


def test_a_task_that_nobody_offered_is_an_alarm(ledger):
    assert report(ledger, 1, entry(1, rounds_cost(1), task="other")) == ["charged-more"]


def test_a_repeat_and_a_curve_that_is_none_are_refused(ledger):
    report(ledger, 5, entry(0, rounds_cost(0)))
    with pytest.raises(UnexpectedMessage, match="was seen"):
        report(ledger, 5, entry(0, rounds_cost(0)))
    short = SpentEntry("churn", "record", 1, 1, ACCOUNTANT_VERSION, bytes(16))
    with pytest.raises(MalformedMessage):
        report(ledger, 6, short)
    assert report(ledger, 7, SpentEntry("churn", "record", 1, 1, 99, bytes(16))) == ["other-accountant"]


def test_what_a_device_says_is_kept_compared_and_shown_through_the_whole_service(fleet):
    start(fleet, rounds=1)
    fleet.run(ended(fleet))
    honest, liar = fleet.devices[:2]
    (account,) = ledger_of(fleet).accounts(honest.name)
    honest.say(Spent(1, (SpentEntry("churn", "record", 1, 1, ACCOUNTANT_VERSION, account.spend),)))
    liar.say(Spent(1, ()))
    liar.say(Spent(1, ()))  # delivered twice
    fleet.turn()
    assert [(a.device, a.kind) for a in ledger_of(fleet).alarms()] == [(liar.name, "charged-less")]
    assert ledger_of(fleet).frame(honest.name)[:2] == b"Ch"
    assert fleet.refused("spent", "ledger-differs") == 1
    assert fleet.refused("spent", "repeat") == 1
    assert [data["device"] for _, _, kind, _, _, data in fleet.service.store.events() if kind == "ledger-differs"] == [
        liar.name
    ]
    shown = ledger_report.gather(fleet.service.store)
    assert shown["models"][0]["rounds_opened"] == 1
    assert shown["models"][0]["epsilon"] == pytest.approx(ledger_of(fleet).epsilon("churn"), abs=1e-4)
    assert {entry["device"] for entry in shown["devices"]} == {device.name for device in fleet.devices}
    text = "\n".join(ledger_report.lines(shown))
    for line in ("model churn (done): epsilon ", "devices' epsilons of churn record: at delta "):
        (found,) = (each for each in text.splitlines() if each.startswith(line))
        for word in ("delta 1e-05", "one record added or removed", "Gaussian, version", "against everyone"):
            assert word in found
    assert shown["models"][0]["against"] == shown["devices"][0]["against"] == "everyone, the aggregator included"
    assert f"alarm: ledgers differ: {liar.name}" in text
    assert "revoke it, then enrol it anew" in text
    assert ledger_report.gather(fleet.service.store, device=honest.name)["alarms"] == []


def test_a_disk_restored_from_a_copy_is_an_alarm_until_the_device_is_enrolled_anew(ledger):
    offer_rounds(ledger, 100)
    for count in range(1, 41):  # 40 uploads left it, none was accepted yet
        assert report(ledger, count, entry(count, rounds_cost(count))) == []
    # back to where two were charged, and on from there: each figure alone could be true
    assert report(ledger, 3, entry(3, rounds_cost(3), last=41)) == ["charged-less", "counter-back"]
    for counter in range(4, 42):
        assert report(ledger, counter, entry(counter, rounds_cost(counter), last=100)) == []
    standing = {alarm.kind: alarm for alarm in ledger.alarms() if alarm.standing}
    assert set(standing) == {"counter-back"}  # what it charges has overtaken what it said, not what it spent
    assert "message 40 came after its message 40" in standing["counter-back"].detail
    assert "enrol it anew" in said(standing["counter-back"])
    ledger.carry_over("kiosk-1")
    assert not any(alarm.standing for alarm in ledger.alarms())


def test_messages_that_are_delivered_again_in_any_order_are_no_alarm(ledger):
    offer_rounds(ledger, 3)
    told = [(n, entry(n, rounds_cost(n))) for n in (1, 2, 3)]
    for counter, account in told:
        report(ledger, counter, account)
    for counter, account in told:
        with pytest.raises(UnexpectedMessage, match="was seen"):
            report(ledger, counter, account)
    assert ledger.alarms() == []


def test_a_device_that_says_less_than_it_said_is_alarmed_though_its_counter_grows(ledger):
    offer_rounds(ledger, 9)
    report(ledger, 1, entry(9, rounds_cost(9)))
    assert report(ledger, 2, entry(4, rounds_cost(4))) == ["charged-less"]
    assert "charged 4 rounds, and said 9 before" in ledger.alarms()[0].detail
    assert report(ledger, 3) == []  # stands, as long as it says less
    assert [alarm.standing for alarm in ledger.alarms()] == [True]
    (stated,) = ledger.carry_over("kiosk-1")
    assert (stated.rounds, stated.curve) == (9, pack(rounds_cost(9)))


# -- enrolled anew


def test_a_device_enrolled_anew_is_told_the_most_that_anybody_knows(ledger):
    offer_rounds(ledger, 4)
    ledger.accepted("kiosk-1", "churn", 1)
    report(ledger, 3, entry(3, rounds_cost(3)))
    (stated,) = ledger.carry_over("kiosk-1")
    assert (stated.rounds, stated.last_round, stated.curve) == (3, 3, pack(rounds_cost(3)))
    assert ledger.carry_over("kiosk-1") == (stated,)  # and again, if it is wiped before it says anything
    assert ledger.carry_over("kiosk-2") == ()
    anew = DeviceLedger(sqlite3.connect(":memory:", isolation_level=None))
    anew.carry((stated,))
    anew.charge("churn", "record", 4, cost(TERMS, LENGTH))
    ledger.accepted("kiosk-1", "churn", 4)
    assert report(ledger, 1, *anew.entries(), enrolled_at=1004.0) == []  # counters begin anew
    assert anew.entries()[0].rounds == 4


def test_a_second_installation_that_said_nothing_is_not_forgotten_by_the_third(ledger):
    offer_rounds(ledger, 20)
    ledger.accepted("kiosk-1", "churn", 1)
    report(ledger, 1, entry(10, rounds_cost(10)))
    ledger.carry_over("kiosk-1")
    for number in range(11, 16):
        ledger.accepted("kiosk-1", "churn", number)
    (stated,) = ledger.carry_over("kiosk-1")
    assert (stated.rounds, stated.last_round) == (15, 15)
    assert epsilon(unpack_curve(stated.accountant, stated.curve), 1e-5) == pytest.approx(epsilon(rounds_cost(15), 1e-5))
    assert ledger.carry_over("kiosk-1") == (stated,)


def test_a_device_that_drops_its_statement_is_alarmed(ledger):
    offer_rounds(ledger, 2)
    ledger.accepted("kiosk-1", "churn", 1)
    ledger.carry_over("kiosk-1")
    anew = DeviceLedger(sqlite3.connect(":memory:", isolation_level=None))
    anew.charge("churn", "record", 2, cost(TERMS, LENGTH))
    ledger.accepted("kiosk-1", "churn", 2)
    assert report(ledger, 1, *anew.entries(), enrolled_at=1002.0) == ["charged-less"]
