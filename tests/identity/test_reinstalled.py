"""A device that was wiped and enrols again under its name: over the real socket, its ledger starts where it ended."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from aggregator.fleet.authority import Authority, create_authority
from aggregator.fleet.bootstrap import BootstrapListener, enroller
from aggregator.fleet.registry import Registry
from aggregator.ledger import Ledger
from edge_sdk.device_db import open_device_db, transaction
from edge_sdk.identity.enrolment import Identity, enrol, load_identity, post
from edge_sdk.identity.keys import IdentityError
from edge_sdk.privacy.accounting import ACCOUNTANT_VERSION, compose, epsilon, subsampled_gaussian
from edge_sdk.privacy.curves import LedgerError, pack
from edge_sdk.privacy.ledger import BudgetSpent
from edge_sdk.privacy.ledger import Ledger as DeviceLedger
from edge_sdk.protocol import enrolment
from edge_sdk.protocol.enrolment import EnrolmentAnswer, EnrolmentRefused, EnrolmentRequest, SpentStatement, Token
from edge_sdk.protocol.messages import Spent, SpentEntry

NOW = 1_800_000_000.0
ONE = subsampled_gaussian(0.1, 1.0, 10)
DELTA = 1e-5


def entry(rounds: int) -> SpentEntry:
    return SpentEntry("intent", "customer", rounds, rounds, ACCOUNTANT_VERSION, pack(compose([ONE] * rounds)))


class Fleet(NamedTuple):
    authority: Authority
    registry: Registry
    ledger: Ledger
    listener: BootstrapListener

    def enrol(self, home: Path, name: str = "kiosk-a", **changes: object) -> Identity:
        return enrol(self.token().reveal(), name, home, entropy=os.urandom, **changes)  # type: ignore[arg-type]

    def token(self) -> Token:
        address = f"127.0.0.1:{self.listener.port}"
        made = {"fingerprint": self.authority.fingerprint, "address": address, "now": NOW, "entropy": os.urandom}
        return self.registry.create_token(**made)  # type: ignore[arg-type]

    def heard(self, rounds: int, counter: int = 1) -> None:
        """The device told that it had spent so much."""
        self.ledger.report("kiosk-a", Spent(counter, (entry(rounds),)), b"frame", enrolled_at=0.0, now=NOW)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    authority = create_authority(tmp_path / "ca", b"correct horse", fleet="f0", now=NOW)
    database = sqlite3.connect(tmp_path / "fleet.db", isolation_level=None, check_same_thread=False)
    registry = Registry(database, "f0")
    bundle = authority.bundle(broker_host="localhost", broker_port=8883, tuf_root="{}")
    handle = enroller(registry, authority, bundle=lambda: bundle, clock=lambda: NOW)
    listener = BootstrapListener(handle, credentials=authority.directory)
    listener.start()
    yield Fleet(authority, registry, Ledger(database), listener)
    listener.stop()
    database.close()


def test_a_wiped_device_refuses_what_it_would_have_refused(fleet: Fleet, tmp_path: Path) -> None:
    budget = epsilon(compose([ONE] * 5), DELTA)
    fleet.enrol(tmp_path / "first")
    fleet.heard(5)
    fleet.registry.revoke("kiosk-a", now=NOW)
    identity = fleet.enrol(tmp_path / "second")
    connection = open_device_db(tmp_path / "device.db")
    for _ in range(2):  # at every start, and once is enough
        with transaction(connection):
            DeviceLedger(connection).carry(identity.spent)
    ledger = DeviceLedger(connection)
    assert ledger.epsilon("intent", "customer", DELTA) == pytest.approx(budget)
    with pytest.raises(BudgetSpent):
        ledger.check("intent", "customer", ONE, budget * 1.0001, DELTA)
    with pytest.raises(BudgetSpent):
        ledger.check("intent", "record", ONE, budget * 1.0001, DELTA)  # the same people, by another name
    ledger.check("churn", "customer", ONE, budget, DELTA)
    assert ledger.rounds("intent", "customer") == []
    connection.close()


def test_a_device_whose_name_is_new_has_an_empty_statement(fleet: Fleet, tmp_path: Path) -> None:
    fleet.enrol(tmp_path / "first")
    fleet.heard(3)
    assert fleet.enrol(tmp_path / "other", "kiosk-b").spent == ()
    statement = json.loads((tmp_path / "other" / "spent.json").read_text())
    assert statement["entries"] == []
    assert statement["device"] == "kiosk-b"


def test_a_second_wipe_before_a_word_loses_nothing(fleet: Fleet, tmp_path: Path) -> None:
    fleet.enrol(tmp_path / "first")
    fleet.heard(3)
    for home in ("second", "third"):
        fleet.registry.revoke("kiosk-a", now=NOW)
        assert fleet.enrol(tmp_path / home).spent == (entry(3),)
    fleet.heard(4)  # counted anew since it was enrolled
    fleet.registry.revoke("kiosk-a", now=NOW)
    assert fleet.enrol(tmp_path / "fourth").spent == (entry(4),)


def test_a_lost_answer_comes_again_with_the_same_statement(fleet: Fleet, tmp_path: Path) -> None:
    fleet.enrol(tmp_path / "first")
    fleet.heard(3)
    fleet.registry.revoke("kiosk-a", now=NOW)
    token, home = fleet.token().reveal(), tmp_path / "second"

    def lossy(to: Token, body: bytes) -> bytes:
        post(to, body)
        raise EnrolmentRefused("the answer was lost", reason="unreachable")

    with pytest.raises(EnrolmentRefused):
        enrol(token, "kiosk-a", home, entropy=os.urandom, send=lossy)
    assert enrol(token, "kiosk-a", home, entropy=os.urandom).spent == (entry(3),)


@pytest.mark.parametrize("change", ["entries", "device", "issued_at", "signature"])
def test_a_changed_statement_is_refused(fleet: Fleet, tmp_path: Path, change: str) -> None:
    """On the way the proof of the whole answer fails; made by a holder of the token without the key, the signature."""
    changes = {"entries": (), "device": "kiosk-b", "issued_at": 7, "signature": bytes(64)}
    fleet.enrol(tmp_path / "first")
    fleet.heard(3)
    fleet.registry.revoke("kiosk-a", now=NOW)

    def meddled(token: Token, body: bytes, *, prove: bool) -> bytes:
        answer = enrolment.from_json(post(token, body), EnrolmentAnswer)
        spent = msgspec.structs.replace(answer.spent, **{change: changes[change]})
        if prove:
            request = enrolment.from_json(body, EnrolmentRequest)
            key = enrolment.token_key(token.secret)
            return enrolment.to_json(enrolment.make_answer(key, request, answer.chain_pem, answer.bundle, spent))
        return enrolment.to_json(msgspec.structs.replace(answer, spent=spent))

    for prove, reason in ((False, "wrong-fleet"), (True, "wrong-statement")):
        with pytest.raises(EnrolmentRefused) as refusal:
            fleet.enrol(tmp_path / reason, send=lambda to, body, prove=prove: meddled(to, body, prove=prove))
        assert refusal.value.reason == reason
        assert not (tmp_path / reason / "device.crt").exists()
        fleet.registry.revoke("kiosk-a", now=NOW)


def test_the_statement_of_another_device_is_refused_though_the_authority_signed_it(fleet: Fleet) -> None:
    sign = fleet.authority.roster_key.sign
    statement = enrolment.state_spent("f0", "kiosk-b", 1, (entry(1),), sign)
    key = fleet.authority.roster_key.public_key().public_bytes_raw()
    statement.check(key, fleet="f0", device="kiosk-b")
    for fleet_name, device in (("f0", "kiosk-a"), ("f1", "kiosk-b")):
        with pytest.raises(EnrolmentRefused, match="kiosk-b of f0"):
            statement.check(key, fleet=fleet_name, device=device)


def test_a_damaged_statement_on_the_disk_stops_the_device(fleet: Fleet, tmp_path: Path) -> None:
    fleet.enrol(tmp_path / "first")
    file = tmp_path / "first" / "spent.json"
    statement = enrolment.from_json(file.read_bytes(), SpentStatement)
    file.write_bytes(enrolment.to_json(msgspec.structs.replace(statement, issued_at=1)))
    with pytest.raises(IdentityError, match="enrol again"):
        load_identity(tmp_path / "first")


def test_a_ledger_that_was_not_wiped_is_raised_to_the_statement_and_not_beyond() -> None:
    ledger = DeviceLedger(sqlite3.connect(":memory:", isolation_level=None))
    for number in (1, 2):
        ledger.charge("intent", "customer", number, ONE)
    ledger.carry((entry(2),))
    assert ledger.spent("intent", "customer") == pytest.approx(compose([ONE] * 2))
    ledger.carry((entry(5),))
    assert ledger.spent("intent", "customer") == pytest.approx(compose([ONE] * 5))
    (told,) = ledger.entries()
    assert (told.rounds, told.last_round) == (5, 5)
    ledger.carry((entry(3),))
    assert ledger.spent("intent", "customer") == pytest.approx(compose([ONE] * 5))


def test_a_statement_that_cannot_be_read_is_no_permission_to_spend() -> None:
    ledger = DeviceLedger(sqlite3.connect(":memory:", isolation_level=None))
    with pytest.raises(LedgerError, match="update the software"):
        ledger.carry((msgspec.structs.replace(entry(1), accountant=99),))
