"""The MQTT transport against brokers that misbehave. The well-behaved ones are in tests/e2e."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aggregator.fleet.authority import Authority, create_authority
from edge_sdk.transport.interface import Callbacks
from edge_sdk.transport.mqtt import MqttSettings, MqttTransport, check_dates

CONNACK_V5 = bytes([0x20, 3, 0, 0, 0])
CONNACK_V311 = bytes([0x20, 2, 0, 0])
Talk = Callable[[ssl.SSLSocket, int], None]


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create_authority(tmp_path / "ca", b"correct horse", fleet="f0", now=time.time())


FAR = 20 * 365 * 86_400


@pytest.fixture
def far_authority(tmp_path: Path) -> Authority:
    """A fleet that lives twenty years after this machine's clock."""
    return create_authority(tmp_path / "far", b"correct horse", fleet="f0", now=time.time() + FAR)


class Odd:
    """A TLS server that reads CONNECT, notes its version and then does whatever `talk` says."""

    def __init__(self, authority: Authority, talk: Talk) -> None:
        self.versions: list[int] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(authority.directory / "broker.crt", authority.directory / "broker.key")
        self._talk = talk
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), self._context.wrap_socket(connection, server_side=True) as secured:
            said = secured.recv(1024)
            if not said:
                return
            version = said[8]
            self.versions.append(version)
            self._talk(secured, version)

    def close(self) -> None:
        self._listener.close()


@contextlib.contextmanager
def running(authority: Authority, talk: Talk, **changes: object) -> Iterator[tuple[Odd, MqttTransport, list[str]]]:
    odd, told = Odd(authority, talk), []
    home, now = authority.directory, changes.pop("now", time.time)
    values = {
        "host": "localhost",
        "port": odd.port,
        "name": "aggregator-1",
        "ca_file": home / "ca.pem",
        "certificate_file": home / "aggregator-1.crt",
        "key_file": home / "aggregator-1.key",
        "backoff_first_s": 0.02,
        "backoff_last_s": 0.05,
        "connect_timeout_s": 0.3,
        "ack_timeout_s": 0.3,
        **changes,
    }
    transport = MqttTransport(MqttSettings(**values), rng=random.Random(3), now=now)  # type: ignore[arg-type]
    transport.start(
        Callbacks(
            on_connection=lambda up, reason: told.append(f"{up} {reason}"),
            on_refused=lambda topic, reason: told.append(f"refused {topic} {reason}"),
        )
    )
    try:
        yield odd, transport, told
    finally:
        transport.stop()
        odd.close()


def silent(connection: ssl.SSLSocket, _version: int) -> None:
    while connection.recv(1024):
        pass


def friendly(connection: ssl.SSLSocket, version: int) -> None:
    connection.sendall(CONNACK_V5 if version == 5 else CONNACK_V311)
    silent(connection, version)


def test_a_broker_that_never_answers_mqtt_5_is_asked_in_3_1_1(authority: Authority) -> None:
    def only_old(connection: ssl.SSLSocket, version: int) -> None:
        (friendly if version == 4 else silent)(connection, version)

    with running(authority, only_old) as (odd, transport, told):
        wait_for(lambda: transport.connected)
        assert odd.versions == [5, 4]
        assert told == ["False the broker does not answer", "True mqtt 3.1.1"]


def test_a_broker_that_hangs_up_on_mqtt_5_is_asked_in_3_1_1(authority: Authority) -> None:
    def only_old(connection: ssl.SSLSocket, version: int) -> None:
        if version == 4:
            friendly(connection, version)

    with running(authority, only_old) as (odd, transport, _told):
        wait_for(lambda: transport.connected)
        assert odd.versions == [5, 4]


def test_a_version_that_worked_is_kept_through_a_reconnect(authority: Authority) -> None:
    def short_lived(connection: ssl.SSLSocket, version: int) -> None:
        if version == 4:
            connection.sendall(CONNACK_V311)
            time.sleep(0.05)

    with running(authority, short_lived) as (odd, transport, _told):
        wait_for(lambda: transport.counters.get("connections", 0) >= 2)
        assert odd.versions[:3] == [5, 4, 4]


def test_a_refused_publish_is_reported_not_counted_as_sent(authority: Authority) -> None:
    def refuses(connection: ssl.SSLSocket, _version: int) -> None:
        connection.sendall(CONNACK_V5)
        packet = connection.recv(1024)
        topic_bytes = packet[3]
        mid = packet[4 + topic_bytes : 6 + topic_bytes]
        connection.sendall(bytes([0x40, 3]) + mid + bytes([0x87]))
        silent(connection, 5)

    with running(authority, refuses) as (_odd, transport, told):
        wait_for(lambda: transport.connected)
        assert transport.publish("fl/x", b"hello")
        wait_for(lambda: transport.counters.get("refused") == 1)
        assert "refused fl/x Not authorized" in told
        assert transport.in_flight == 0
        assert "acknowledged" not in transport.counters


def test_a_refused_subscription_ends_the_connection_and_says_which(authority: Authority) -> None:
    def refuses(connection: ssl.SSLSocket, _version: int) -> None:
        connection.sendall(CONNACK_V5)
        mid = connection.recv(1024)[2:4]
        connection.sendall(bytes([0x90, 4]) + mid + bytes([0, 0x87]))
        silent(connection, 5)

    with running(authority, refuses, subscriptions=("fl/secret",)) as (_odd, transport, told):
        wait_for(lambda: bool(told))
        assert told[0] == "False the broker refused a subscription: fl/secret (Not authorized)"
        assert not transport.connected
        assert not transport.publish("fl/x", b"hello")


def test_a_smaller_receive_maximum_of_the_broker_is_honoured(authority: Authority) -> None:
    def narrow(connection: ssl.SSLSocket, version: int) -> None:
        connection.sendall(bytes([0x20, 6, 0, 0, 3, 0x21, 0, 2]))
        silent(connection, version)

    with running(authority, narrow, ack_timeout_s=30.0) as (_odd, transport, _told):
        wait_for(lambda: transport.connected)
        assert [transport.publish("fl/x", b"") for _ in range(3)] == [True, True, False]


def test_a_broker_that_acknowledges_nothing_is_left(authority: Authority) -> None:
    with running(authority, friendly) as (_odd, transport, told):
        wait_for(lambda: transport.connected)
        assert transport.publish("fl/x", b"hello")
        assert transport.in_flight == 1
        wait_for(lambda: transport.counters.get("lost", 0) >= 1)
        assert told[1].startswith("False no acknowledgement")
        assert transport.counters["dropped"] == 1
        wait_for(lambda: transport.counters["connections"] >= 2)
        assert transport.in_flight == 0


def test_heartbeats_do_not_use_up_the_window(authority: Authority) -> None:
    with running(authority, friendly, ack_timeout_s=30.0) as (_odd, transport, _told):
        wait_for(lambda: transport.connected)
        for _ in range(50):
            wait_for(lambda: transport.publish("fl/hb", b"beat", qos=0))
        assert transport.in_flight == 0
        assert transport.publish("fl/x", b"hello")


def test_rubbish_from_the_broker_ends_the_connection_not_the_thread(authority: Authority) -> None:
    seed = random.Random(11)

    def rubbish(connection: ssl.SSLSocket, version: int) -> None:
        connection.sendall((CONNACK_V5 if version == 5 else CONNACK_V311) + seed.randbytes(500))

    with running(authority, rubbish) as (_odd, transport, told):
        wait_for(lambda: transport.counters.get("lost", 0) >= 10)
        assert transport._thread is not None
        assert transport._thread.is_alive()
        assert not transport.counters.get("callback_errors")
        assert told


def test_a_wrong_host_name_is_refused(authority: Authority) -> None:
    with running(authority, friendly, host="127.0.0.2") as (odd, _transport, told):
        wait_for(lambda: len(told) >= 2)
        assert odd.versions == []
        assert all(text.startswith("False cannot connect") for text in told)


def test_a_missing_certificate_file_is_a_reason_not_a_crash(authority: Authority) -> None:
    with running(authority, friendly, certificate_file=Path("nowhere.crt")) as (_odd, transport, told):
        wait_for(lambda: len(told) >= 2)
        assert "No such file" in told[0]
        assert transport.counters.get("errors") is None


def test_waits_grow_are_random_and_stay_under_their_limit(authority: Authority) -> None:
    waits: list[tuple[float, float]] = []

    class Recorder(random.Random):
        def uniform(self, a: float, b: float) -> float:
            waits.append((a, b))
            return 0.0

    home = authority.directory
    settings = MqttSettings(
        host="127.0.0.1",
        port=1,
        name="x",
        ca_file=home / "ca.pem",
        certificate_file=home / "aggregator-1.crt",
        key_file=home / "aggregator-1.key",
    )
    transport = MqttTransport(settings, rng=Recorder(1))
    transport.start(Callbacks())
    wait_for(lambda: len(waits) >= 10)
    transport.stop()
    assert [limit for _, limit in waits[:10]] == [1, 2, 4, 8, 16, 32, 64, 120, 120, 120]
    assert {low for low, _ in waits} == {0}


def test_settings_name_no_secret() -> None:
    settings = MqttSettings(
        host="h", port=1, name="n", ca_file=Path("ca"), certificate_file=Path("c"), key_file=Path("k")
    )
    assert "PRIVATE" not in repr(settings)
    assert settings.window == 8


@pytest.mark.parametrize("clock", [0.0, time.time()], ids=["1970", "now"])
def test_a_clock_behind_the_certificates_does_not_keep_a_device_away(far_authority: Authority, clock: float) -> None:
    with running(far_authority, friendly, now=lambda: clock) as (_odd, transport, told):
        wait_for(lambda: bool(told))
        assert transport.connected, told


@pytest.mark.parametrize("late_s", [91 * 86_400, 731 * 86_400])
def test_an_expired_certificate_is_refused_by_name_and_nothing_is_said_to_its_holder(
    authority: Authority, late_s: float
) -> None:
    with running(authority, friendly, now=lambda: time.time() + late_s) as (odd, transport, told):
        wait_for(lambda: len(told) >= 2)
        assert "expired on" in told[0]
        assert "set this machine's clock right" in told[0]
        assert odd.versions == []
        assert not transport.counters.get("connections")


def test_a_foreign_authority_or_another_host_name_is_refused_whatever_the_time(
    authority: Authority, far_authority: Authority
) -> None:
    for change in ({"ca_file": far_authority.directory / "ca.pem"}, {"host": "127.0.0.2"}):
        with running(authority, friendly, now=lambda: 0.0, **change) as (odd, _transport, told):
            wait_for(lambda: len(told) >= 2)
            assert "cannot connect" in told[0]
            assert odd.versions == []


def test_every_certificate_of_the_chain_is_judged_and_the_youngest_tells_the_time() -> None:
    def made(name: str, begin: str, end: str) -> dict[str, object]:
        return {"subject": ((("commonName", name),),), "notBefore": begin, "notAfter": end}

    leaf = made("broker", "Jan  1 00:00:00 2040 GMT", "Apr  1 00:00:00 2040 GMT")
    issuer = made("issuing", "Jan  1 00:00:00 2038 GMT", "Jan  1 00:00:00 2041 GMT")
    check_dates([leaf, issuer], 0.0)
    old = made("issuing", "Jan  1 00:00:00 2037 GMT", "Jan  1 00:00:00 2039 GMT")
    with pytest.raises(ssl.SSLCertVerificationError, match="issuing expired"):
        check_dates([leaf, old], 0.0)


def test_a_transport_that_never_started_leaves_nothing_open(authority: Authority) -> None:
    home = authority.directory
    settings = MqttSettings(
        host="h", port=1, name="n", ca_file=home / "ca.pem", certificate_file=Path("c"), key_file=Path("k")
    )
    before = len(list(Path("/proc/self/fd").iterdir()))
    transport = MqttTransport(settings, rng=random.Random(1))
    transport.stop()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
