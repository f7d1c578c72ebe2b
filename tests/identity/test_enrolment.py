"""Enrolment end to end, over a real HTTPS socket: what a token admits, and what it does not."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sqlite3
import ssl
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from aggregator.fleet.authority import Authority, create_authority
from aggregator.fleet.bootstrap import BootstrapError, BootstrapListener, enroller
from aggregator.fleet.registry import Registry
from edge_sdk.identity import trust
from edge_sdk.identity.enrolment import enrol, load_identity, needs_renewal, post
from edge_sdk.identity.keys import DeviceKeys, IdentityError
from edge_sdk.protocol import enrolment
from edge_sdk.protocol.enrolment import EnrolmentAnswer, EnrolmentRefused, EnrolmentRequest, Token

NOW = 1_800_000_000.0


@dataclass
class Fleet:
    """A listener with its registry; `now` is the fleet's clock."""

    authority: Authority
    registry: Registry
    listener: BootstrapListener
    now: list[float] = field(default_factory=lambda: [NOW])
    told: list[bool] = field(default_factory=list)

    def token(self, **changes: object) -> Token:
        values = {"address": f"127.0.0.1:{self.listener.port}", "now": self.now[0], "entropy": os.urandom, **changes}
        return self.registry.create_token(fingerprint=self.authority.fingerprint, **values)  # type: ignore[arg-type]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    authority = create_authority(tmp_path / "ca", b"correct horse", fleet="f0", now=NOW)
    database = sqlite3.connect(tmp_path / "fleet.db", isolation_level=None, check_same_thread=False)
    registry = Registry(database, "f0")
    now, told = [NOW], []
    bundle = authority.bundle(broker_host="localhost", broker_port=8883, tuf_root='{"signed": 1}')
    handle = enroller(
        registry, authority, bundle=lambda: bundle, clock=lambda: now[0], on_enrolled=lambda: told.append(True)
    )
    listener = BootstrapListener(handle, credentials=authority.directory)
    listener.start()
    yield Fleet(authority, registry, listener, now, told)
    listener.stop()
    database.close()


def refused(token_text: str, device: str, home: Path) -> EnrolmentRefused:
    with pytest.raises(EnrolmentRefused) as caught:
        enrol(token_text, device, home, entropy=os.urandom)
    assert caught.value.remedy == enrolment.REMEDIES[caught.value.reason]
    assert not (home / "device.crt").exists()
    return caught.value


def test_a_token_makes_an_identity(fleet: Fleet, tmp_path: Path) -> None:
    home = tmp_path / "device"
    identity = enrol(fleet.token().reveal(), "kiosk-a", home, entropy=os.urandom)
    assert identity.device == "kiosk-a"
    assert identity.bundle.aggregator_key == fleet.authority.sign_key.public_key().public_bytes_raw()
    assert identity.bundle.authority_key == fleet.authority.roster_key.public_key().public_bytes_raw()
    assert (identity.bundle.broker_host, identity.bundle.broker_port) == ("localhost", 8883)
    assert identity.bundle.tuf_root == '{"signed": 1}'
    registered = fleet.registry.require_active("kiosk-a")
    assert (registered.sign_key, registered.epoch_key) == (identity.keys.sign_public, identity.keys.epoch_public)
    assert fleet.told == [True]
    loaded = load_identity(home)
    assert loaded.bundle == identity.bundle
    assert loaded.keys.sign_public == identity.keys.sign_public
    context = ssl.create_default_context(cafile=str(identity.ca_file))
    context.load_cert_chain(identity.certificate_file, identity.key_file)


def test_every_file_of_a_device_is_private(fleet: Fleet, tmp_path: Path) -> None:
    home = tmp_path / "device"
    enrol(fleet.token().reveal(), "kiosk-a", home, entropy=os.urandom)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()}
    assert set(modes.values()) == {0o600}
    assert set(modes) == {"tls.key", "sign.key", "epoch.key", "device.crt", "ca.pem", "trust.json", "spent.json"}
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_wrong_secret_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    wrong = msgspec.structs.replace(fleet.token(), secret=bytes(16))
    assert refused(wrong.reveal(), "kiosk-a", tmp_path / "d").reason == "wrong-token"
    assert fleet.registry.devices() == []


def test_an_unknown_token_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    unknown = msgspec.structs.replace(fleet.token(), token_id="0123456789ab")
    assert refused(unknown.reveal(), "kiosk-a", tmp_path / "d").reason == "unknown-token"


def test_a_replayed_token_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    text = fleet.token().reveal()
    enrol(text, "kiosk-a", tmp_path / "a", entropy=os.urandom)
    assert refused(text, "kiosk-b", tmp_path / "b").reason == "used-token"
    assert [d.device for d in fleet.registry.devices()] == ["kiosk-a"]


def test_an_expired_token_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    text = fleet.token(ttl_s=60).reveal()
    fleet.now[0] += 60
    assert refused(text, "kiosk-a", tmp_path / "d").reason == "expired-token"


def test_a_taken_name_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    enrol(fleet.token().reveal(), "kiosk-a", tmp_path / "a", entropy=os.urandom)
    assert refused(fleet.token().reveal(), "kiosk-a", tmp_path / "b").reason == "name-taken"


@pytest.mark.parametrize("device", ["aggregator-1", "Kiosk", "", "all"])
def test_a_bad_name_never_leaves_the_device(fleet: Fleet, tmp_path: Path, device: str) -> None:
    assert refused(fleet.token().reveal(), device, tmp_path / "d").reason == "name"
    assert fleet.listener.counters == {}


def test_a_lost_answer_costs_no_token(fleet: Fleet, tmp_path: Path) -> None:
    text, home = fleet.token().reveal(), tmp_path / "device"

    def lossy(token: Token, body: bytes) -> bytes:
        post(token, body)
        raise EnrolmentRefused("the answer was lost", reason="unreachable")

    with pytest.raises(EnrolmentRefused):
        enrol(text, "kiosk-a", home, entropy=os.urandom, send=lossy)
    identity = enrol(text, "kiosk-a", home, entropy=os.urandom)
    assert fleet.registry.require_active("kiosk-a").sign_key == identity.keys.sign_public


def test_the_secret_never_travels(fleet: Fleet, tmp_path: Path) -> None:
    token, seen = fleet.token(), []

    def listening(to: Token, body: bytes) -> bytes:
        seen.extend([body, post(to, body)])
        return seen[1]

    enrol(token.reveal(), "kiosk-a", tmp_path / "d", entropy=os.urandom, send=listening)
    everything = b"".join(seen)
    assert token.secret not in everything
    assert token.secret.hex().encode() not in everything
    assert token.reveal().split(".")[3].encode() not in everything


def forged_answer(fleet: Fleet, tmp_path: Path, **changes: object) -> EnrolmentRefused:
    """A man in the middle, who has the listener's answer and changes it."""

    def meddle(token: Token, body: bytes) -> bytes:
        answer = enrolment.from_json(post(token, body), EnrolmentAnswer)
        return enrolment.to_json(msgspec.structs.replace(answer, **changes))

    with pytest.raises(EnrolmentRefused) as caught:
        enrol(fleet.token().reveal(), "kiosk-a", tmp_path / "d", entropy=os.urandom, send=meddle)
    assert not (tmp_path / "d" / "device.crt").exists()
    return caught.value


def test_a_changed_answer_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    other = fleet.authority.bundle(broker_host="evil.example.org", broker_port=8883, tuf_root="{}")
    assert forged_answer(fleet, tmp_path, bundle=other).reason == "wrong-fleet"
    fleet.registry.revoke("kiosk-a", now=NOW)
    assert forged_answer(fleet, tmp_path, chain_pem="rubbish").reason == "wrong-fleet"
    fleet.registry.revoke("kiosk-a", now=NOW)
    assert forged_answer(fleet, tmp_path, proof=bytes(32)).reason == "wrong-fleet"


def test_an_answer_to_another_request_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    token = fleet.token(uses=2)
    kept: list[bytes] = []

    def keep(to: Token, body: bytes) -> bytes:
        kept.append(post(to, body))
        return kept[0]

    enrol(token.reveal(), "kiosk-a", tmp_path / "a", entropy=os.urandom, send=keep)
    with pytest.raises(EnrolmentRefused) as caught:
        enrol(token.reveal(), "kiosk-b", tmp_path / "b", entropy=os.urandom, send=keep)
    assert caught.value.reason == "wrong-fleet"


def test_a_stranger_listening_at_the_address_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    stranger = create_authority(tmp_path / "stranger", b"correct horse", fleet="f0", now=NOW)

    def answer(token: Token, body: bytes) -> bytes:
        request = enrolment.from_json(body, EnrolmentRequest)
        issued = stranger.issue(request.csr, now=NOW)
        bundle = stranger.bundle(broker_host="localhost", broker_port=1, tuf_root="{}")
        spent = enrolment.state_spent("f0", "kiosk-a", 0, (), stranger.roster_key.sign)
        return enrolment.to_json(enrolment.make_answer(bytes(32), request, issued.chain_pem, bundle, spent))

    with pytest.raises(EnrolmentRefused) as caught:
        enrol(fleet.token().reveal(), "kiosk-a", tmp_path / "d", entropy=os.urandom, send=answer)
    assert caught.value.reason == "wrong-fleet"


def test_a_request_with_another_signing_key_is_refused(fleet: Fleet) -> None:
    token, mine, theirs = fleet.token(), DeviceKeys.generate(), DeviceKeys.generate()
    request = enrolment.make_request(
        token,
        nonce=bytes(16),
        csr=mine.request("f0", "kiosk-a"),
        sign_key=theirs.sign_public,
        epoch_key=mine.epoch_public,
        sign=mine.sign,
    )
    with pytest.raises(EnrolmentRefused) as caught:
        post(token, enrolment.to_json(request))
    assert caught.value.reason == "wrong-proof"


@pytest.mark.parametrize("field_name", ["nonce", "csr", "sign_key", "epoch_key"])
def test_a_changed_request_is_refused(fleet: Fleet, tmp_path: Path, field_name: str) -> None:
    def meddle(token: Token, body: bytes) -> bytes:
        request = enrolment.from_json(body, EnrolmentRequest)
        value = bytearray(getattr(request, field_name))
        value[0] ^= 1
        return post(token, enrolment.to_json(msgspec.structs.replace(request, **{field_name: bytes(value)})))

    with pytest.raises(EnrolmentRefused) as caught:
        enrol(fleet.token().reveal(), "kiosk-a", tmp_path / "d", entropy=os.urandom, send=meddle)
    assert caught.value.reason == "wrong-token"


def raw(fleet: Fleet, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> int:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", fleet.listener.port, timeout=10, context=context)
    connection.request(method, path, body, headers or {})
    status = connection.getresponse().status
    connection.close()
    return status


def test_the_listener_can_do_nothing_else(fleet: Fleet) -> None:
    assert raw(fleet, "GET", "/enrol") == 501
    assert raw(fleet, "GET", "/") == 501
    assert raw(fleet, "POST", "/other", b"{}") == 404
    assert raw(fleet, "POST", "/enrol", b"", {"Content-Length": "99999999"}) == 413
    assert raw(fleet, "POST", "/enrol", b"", {"Content-Length": "-1"}) == 413
    for rubbish in (b"", b"{}", b"[]", b"\xff" * 100, json.dumps({"token_id": "a"}).encode(), b"[" * 60_000):
        assert raw(fleet, "POST", "/enrol", rubbish) == 400
    assert fleet.listener.counters == {"malformed": 6}


def test_silent_connections_hold_up_nobody(fleet: Fleet, tmp_path: Path) -> None:
    silent = [socket.create_connection(("127.0.0.1", fleet.listener.port)) for _ in range(10)]
    done = threading.Event()

    def enrol_one() -> None:
        enrol(fleet.token().reveal(), "kiosk-a", tmp_path / "d", entropy=os.urandom)
        done.set()

    threading.Thread(target=enrol_one, daemon=True).start()
    assert done.wait(4), "an enrolment waits for somebody else's silence"
    for connection in silent:
        connection.close()


def test_a_taken_port_is_a_clear_error(fleet: Fleet) -> None:
    with pytest.raises(BootstrapError, match="cannot listen") as caught:
        BootstrapListener(lambda request: None, credentials=fleet.authority.directory, port=fleet.listener.port)  # type: ignore[arg-type,return-value]
    assert caught.value.hint


def test_nobody_at_the_address_is_a_clear_error(fleet: Fleet, tmp_path: Path) -> None:
    text = fleet.token().reveal()
    fleet.listener.stop()
    assert refused(text, "kiosk-a", tmp_path / "d").reason == "unreachable"


def test_an_enrolled_device_is_not_enrolled_over(fleet: Fleet, tmp_path: Path) -> None:
    enrol(fleet.token().reveal(), "kiosk-a", tmp_path / "d", entropy=os.urandom)
    with pytest.raises(IdentityError, match="use another directory"):
        enrol(fleet.token().reveal(), "kiosk-b", tmp_path / "d", entropy=os.urandom)


def test_a_damaged_identity_names_the_remedy(fleet: Fleet, tmp_path: Path) -> None:
    home = tmp_path / "d"
    with pytest.raises(IdentityError, match="edge-sdk enroll"):
        load_identity(home)
    enrol(fleet.token().reveal(), "kiosk-a", home, entropy=os.urandom)
    (home / "trust.json").write_text("{}")
    with pytest.raises(IdentityError, match="damaged"):
        load_identity(home)
    (home / "trust.json").chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        trust.load_bundle(home)


def test_a_certificate_is_renewed_from_two_thirds_of_its_life(fleet: Fleet, tmp_path: Path) -> None:
    identity = enrol(fleet.token().reveal(), "kiosk-a", tmp_path / "d", entropy=os.urandom)
    pem = identity.certificate_file.read_bytes()
    assert not needs_renewal(pem, NOW + 264 * 86_400)
    assert needs_renewal(pem, NOW + 265 * 86_400)


def test_a_token_reads_back_and_hides_when_printed() -> None:
    token = Token("f0", "a1b2", bytes(range(16)), "0123456789abcdef", "fl.example.org:8443")
    assert token.reveal() == "chorale1.f0.a1b2.AAECAwQFBgcICQoLDA0ODw.0123456789abcdef.fl.example.org:8443"
    assert Token.parse(f" {token.reveal()}\n") == token
    assert (token.host, token.port) == ("fl.example.org", 8443)
    assert "AAEC" not in f"{token} {token!r}"
    address = msgspec.structs.replace(token, address="[::1]:8443")
    assert (Token.parse(address.reveal()).host, address.port) == ("::1", 8443)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "chorale1",
        "chorale2.f0.a1b2.AAECAwQFBgcICQoLDA0ODw.0123456789abcdef.h:1",
        "chorale1.F0.a1b2.AAECAwQFBgcICQoLDA0ODw.0123456789abcdef.h:1",
        "chorale1.f0.a1b2.AAECAwQFBgcICQoLDA0O.0123456789abcdef.h:1",
        "chorale1.f0.a1b2.AAECAwQFBgcICQoLDA0OD!.0123456789abcdef.h:1",
        "chorale1.f0.a1b2.AAECAwQFBgcICQoLDA0ODw.0123.h:1",
        "chorale1.f0.a1b2.AAECAwQFBgcICQoLDA0ODw.0123456789abcdef.h",
        "chorale1.f0.a1b2.AAECAwQFBgcICQoLDA0ODw.0123456789abcdef.:1",
        "chorale1.f0.a1b2.AAECAwQFBgcICQoLDA0ODw.0123456789abcdef.h:x",
    ],
)
def test_a_damaged_token_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(EnrolmentRefused, match="not an enrolment token") as caught:
        Token.parse(text)
    assert caught.value.reason == "wrong-token"
    assert caught.value.remedy
