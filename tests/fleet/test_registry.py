"""The registry: tokens are spent once, names are unique, revocation is final, rosters only grow older."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from aggregator.fleet.authority import Authority, create_authority
from aggregator.fleet.registry import Registry, RegistryRefused
from edge_sdk.identity.keys import DeviceKeys
from edge_sdk.protocol import enrolment, roster
from edge_sdk.protocol.enrolment import EnrolmentAnswer, EnrolmentRefused, EnrolmentRequest, Token
from edge_sdk.protocol.errors import LocalProtocolError, MalformedMessage

NOW = 1_800_000_000.0
RANDOM = random.Random(5)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create_authority(tmp_path / "ca", b"correct horse", fleet="f0", now=NOW)


@pytest.fixture
def registry() -> Registry:
    return Registry(sqlite3.connect(":memory:", isolation_level=None), "f0")


def token_for(registry: Registry, authority: Authority, **changes: object) -> Token:
    values = {
        "fingerprint": authority.fingerprint,
        "address": "127.0.0.1:8443",
        "now": NOW,
        "entropy": RANDOM.randbytes,
    }
    return registry.create_token(**{**values, **changes})  # type: ignore[arg-type]


def request_for(token: Token, device: str) -> EnrolmentRequest:
    keys = DeviceKeys.generate()
    return enrolment.make_request(
        token,
        nonce=RANDOM.randbytes(16),
        csr=keys.request("f0", device),
        sign_key=keys.sign_public,
        epoch_key=keys.epoch_public,
        sign=keys.sign,
    )


def redeem(registry: Registry, authority: Authority, request: EnrolmentRequest, now: float = NOW) -> EnrolmentAnswer:
    bundle = authority.bundle(broker_host="localhost", broker_port=8883, tuf_root="{}")
    sign = authority.roster_key.sign
    return registry.redeem(request, issue=lambda csr: authority.issue(csr, now=now), bundle=bundle, sign=sign, now=now)


def enrol(registry: Registry, authority: Authority, device: str, **changes: object) -> EnrolmentRequest:
    request = request_for(token_for(registry, authority, **changes), device)
    redeem(registry, authority, request)
    return request


def test_a_token_admits_a_device(registry: Registry, authority: Authority) -> None:
    request = enrol(registry, authority, "kiosk-a", kind="kiosk", steward=True)
    (device,) = registry.active()
    assert (device.device, device.kind, device.steward, device.status) == ("kiosk-a", "kiosk", True, "active")
    assert (device.sign_key, device.epoch_key) == (request.sign_key, request.epoch_key)
    assert device.not_after == NOW + 397 * 86_400


def test_a_token_is_spent_by_its_uses(registry: Registry, authority: Authority) -> None:
    token = token_for(registry, authority, uses=2)
    redeem(registry, authority, request_for(token, "kiosk-a"))
    redeem(registry, authority, request_for(token, "kiosk-b"))
    with pytest.raises(EnrolmentRefused) as refused:
        redeem(registry, authority, request_for(token, "kiosk-c"))
    assert refused.value.reason == "used-token"
    assert [d.device for d in registry.active()] == ["kiosk-a", "kiosk-b"]


def test_the_same_request_again_gets_the_same_answer_and_costs_nothing(
    registry: Registry, authority: Authority
) -> None:
    token = token_for(registry, authority)
    request = request_for(token, "kiosk-a")
    answer = redeem(registry, authority, request)
    assert redeem(registry, authority, request, now=NOW + 10**7) == answer
    answer.check(enrolment.token_key(token.secret), request)
    assert len(registry.devices()) == 1


def test_a_refused_request_changes_nothing_and_costs_no_token(registry: Registry, authority: Authority) -> None:
    token = token_for(registry, authority)
    before = list(registry._db.iterdump())
    with pytest.raises(EnrolmentRefused) as refused:
        redeem(registry, authority, request_for(token, "aggregator-1"))
    assert refused.value.reason == "name"
    assert list(registry._db.iterdump()) == before
    redeem(registry, authority, request_for(token, "kiosk-a"))


def test_a_taken_name_is_refused_until_its_bearer_is_revoked(registry: Registry, authority: Authority) -> None:
    first = enrol(registry, authority, "kiosk-a")
    with pytest.raises(EnrolmentRefused) as refused:
        enrol(registry, authority, "kiosk-a")
    assert refused.value.reason == "name-taken"
    assert registry.require_active("kiosk-a").sign_key == first.sign_key
    registry.revoke("kiosk-a", now=NOW)
    second = enrol(registry, authority, "kiosk-a")
    assert registry.require_active("kiosk-a").sign_key == second.sign_key
    assert len(registry.revoked_serials(NOW)) == 1


@pytest.mark.parametrize(("later", "reason"), [(86_399, None), (86_400, "expired-token")])
def test_a_token_expires(registry: Registry, authority: Authority, later: int, reason: str | None) -> None:
    request = request_for(token_for(registry, authority), "kiosk-a")
    if reason is None:
        redeem(registry, authority, request, now=NOW + later)
        return
    with pytest.raises(EnrolmentRefused) as refused:
        redeem(registry, authority, request, now=NOW + later)
    assert refused.value.reason == reason


def test_the_registry_keeps_no_token(registry: Registry, authority: Authority) -> None:
    token = token_for(registry, authority)
    everything = "\n".join(registry._db.iterdump())
    assert token.secret.hex().upper() not in everything.upper()
    assert token.reveal().split(".")[3] not in everything


def test_revoking_lists_every_certificate_the_device_ever_had(registry: Registry, authority: Authority) -> None:
    enrol(registry, authority, "kiosk-a")
    first = registry.require_active("kiosk-a").serial
    csr = DeviceKeys.generate().request("f0", "kiosk-a")
    renewed = registry.renew("kiosk-a", csr, issue=lambda c: authority.issue(c, now=NOW + 10), now=NOW + 10)
    registry.revoke("kiosk-a", now=NOW + 20)
    assert dict(registry.revoked_serials(NOW + 20)) == {first: NOW + 20, renewed.serial: NOW + 20}
    assert registry.revoked_serials(NOW + 398 * 86_400) == []
    assert registry.active() == []
    with pytest.raises(RegistryRefused, match="revoked") as refused:
        registry.require_active("kiosk-a")
    assert "enrol it again" in refused.value.hint


def test_a_device_cannot_renew_as_another(registry: Registry, authority: Authority) -> None:
    enrol(registry, authority, "kiosk-a")
    csr = DeviceKeys.generate().request("f0", "kiosk-b")
    with pytest.raises(RegistryRefused, match="certificate of kiosk-b"):
        registry.renew("kiosk-a", csr, issue=lambda c: authority.issue(c, now=NOW), now=NOW)


def test_an_unknown_device_is_refused_by_name(registry: Registry) -> None:
    for act in (
        lambda: registry.revoke("ghost", now=NOW),
        lambda: registry.require_active("ghost"),
        lambda: registry.set_epoch_key("ghost", bytes(32)),
        lambda: registry.set_steward("ghost", True),
    ):
        with pytest.raises(RegistryRefused, match="no device 'ghost'"):
            act()


def test_a_roster_holds_the_active_devices_and_its_beacon_comes_last(registry: Registry, authority: Authority) -> None:
    for name in ("kiosk-b", "kiosk-a", "kiosk-c"):
        enrol(registry, authority, name)
    registry.revoke("kiosk-c", now=NOW)
    registry.set_epoch_key("kiosk-a", b"e" * 32)
    drawn: list[bool] = []

    def beacon() -> bytes:
        drawn.append(registry._db.in_transaction)
        return b"b" * 32

    signed = registry.issue_roster(authority.roster_key, now=NOW, beacon=beacon)
    assert drawn == [True]
    public = authority.roster_key.public_key().public_bytes_raw()
    seen = roster.verify(
        signed.statement, signed.signature, public, fleet="f0", entries=signed.entries, now=int(NOW), min_epoch=1
    )
    assert [e.device for e in seen.entries] == ["kiosk-a", "kiosk-b"]
    assert seen.entries[0].epoch_key == b"e" * 32
    second = registry.issue_roster(authority.roster_key, now=NOW, beacon=lambda: b"c" * 32)
    assert registry.signed_roster() == second
    assert registry.signed_roster(1) == signed
    assert registry.signed_roster(9) is None


def test_no_devices_make_no_roster_and_use_no_epoch(registry: Registry, authority: Authority) -> None:
    with pytest.raises(LocalProtocolError, match="enrol one"):
        registry.issue_roster(authority.roster_key, now=NOW, beacon=lambda: bytes(32))
    assert registry.signed_roster() is None


def test_the_registry_joins_the_callers_transaction(registry: Registry, authority: Authority) -> None:
    enrol(registry, authority, "kiosk-a")
    registry._db.execute("BEGIN")
    registry.revoke("kiosk-a", now=NOW)
    registry._db.execute("ROLLBACK")
    assert registry.require_active("kiosk-a")


def test_everything_survives_a_restart(tmp_path: Path, authority: Authority) -> None:
    path = tmp_path / "fleet.db"
    with sqlite3.connect(path, isolation_level=None) as connection:
        enrol(Registry(connection, "f0"), authority, "kiosk-a")
    connection.close()
    again = sqlite3.connect(path, isolation_level=None)
    assert [d.device for d in Registry(again, "f0").active()] == ["kiosk-a"]
    again.close()


def low_order_request(token: Token, device: str) -> EnrolmentRequest:
    keys = DeviceKeys.generate()
    return enrolment.make_request(
        token, nonce=bytes(16), csr=keys.request("f0", device), sign_key=keys.sign_public, epoch_key=bytes(32),
        sign=keys.sign,
    )  # fmt: skip


def test_an_epoch_key_that_cannot_be_used_is_refused_at_enrolment_and_costs_no_token(
    registry: Registry, authority: Authority
) -> None:
    token = token_for(registry, authority)
    before = list(registry._db.iterdump())
    with pytest.raises(EnrolmentRefused) as refused:
        redeem(registry, authority, low_order_request(token, "kiosk-a"))
    assert refused.value.reason == "key"
    assert list(registry._db.iterdump()) == before
    redeem(registry, authority, request_for(token, "kiosk-a"))


def issue(registry: Registry, authority: Authority) -> roster.SignedRoster:
    return registry.issue_roster(authority.roster_key, now=NOW, beacon=lambda: bytes(32))


def test_a_device_changes_its_key_once_for_each_roster(registry: Registry, authority: Authority) -> None:
    enrol(registry, authority, "kiosk-a")
    issue(registry, authority)
    keys = [DeviceKeys.generate().epoch_public for _ in range(3)]
    with pytest.raises(MalformedMessage) as unusable:
        registry.set_epoch_key("kiosk-a", bytes(32))
    registry.set_epoch_key("kiosk-a", keys[0])
    with pytest.raises(RegistryRefused) as further:
        registry.set_epoch_key("kiosk-a", keys[1])
    assert (unusable.value.reason, further.value.reason) == ("key", "repeat")
    assert issue(registry, authority).entries[0].epoch_key == keys[0]
    registry.set_epoch_key("kiosk-a", keys[2])
    assert issue(registry, authority).entries[0].epoch_key == keys[2]


def test_a_device_enrolled_again_may_change_its_key_again(registry: Registry, authority: Authority) -> None:
    enrol(registry, authority, "kiosk-a")
    registry.set_epoch_key("kiosk-a", DeviceKeys.generate().epoch_public)
    registry.revoke("kiosk-a", now=NOW)
    enrol(registry, authority, "kiosk-a")
    key = DeviceKeys.generate().epoch_public
    registry.set_epoch_key("kiosk-a", key)
    assert registry.require_active("kiosk-a").epoch_key == key


def test_a_device_whose_stored_key_cannot_be_used_is_left_out_of_the_roster(
    registry: Registry, authority: Authority
) -> None:
    for name in ("kiosk-a", "kiosk-b"):
        enrol(registry, authority, name)
    registry._db.execute("UPDATE devices SET epoch_key = ? WHERE device = 'kiosk-a'", (bytes(32),))
    assert [entry.device for entry in issue(registry, authority).entries] == ["kiosk-b"]
