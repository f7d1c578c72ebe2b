"""Each rule of the broker, with real certificates over real sockets, on mosquitto and on the NATS server."""

from __future__ import annotations

import os
import queue
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from conftest import FLEET, Client, Site, eventually
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from aggregator.broker import Broker, BrokerError
from aggregator.fleet.authority import create_authority
from aggregator.fleet.bootstrap import BootstrapListener, enroller
from aggregator.fleet.registry import Registry
from edge_sdk.identity.enrolment import enrol
from edge_sdk.protocol import topics
from edge_sdk.protocol.errors import LocalProtocolError
from edge_sdk.transport.interface import MAX_PAYLOAD_BYTES, WINDOW
from edge_sdk.transport.mqtt import MqttTransport, tls_context

UP_A = topics.up(FLEET, "kiosk-a", "hello")
UP_B = topics.up(FLEET, "kiosk-b", "hello")
DOWN_A = topics.down(FLEET, "kiosk-a", "grant")
DOWN_B = topics.down(FLEET, "kiosk-b", "grant")


def nothing_arrives_before_the_marker(client: Client, marker: bytes) -> None:
    """What came before the marker is what the broker let through: the marker must be the first."""
    assert client.next()[1] == marker


def test_device_and_aggregator_hear_each_other(broker: Site) -> None:
    aggregator, device = broker.aggregator().start().connected(), broker.device("kiosk-a").start().connected()
    assert device.transport.publish(UP_A, b"up")
    assert aggregator.next() == (UP_A, b"up")
    assert aggregator.transport.publish(DOWN_A, b"down")
    assert device.next() == (DOWN_A, b"down")
    assert aggregator.transport.publish(topics.to_all(FLEET, "offer"), b"all")
    assert device.next() == (topics.to_all(FLEET, "offer"), b"all")
    assert device.transport.publish(topics.up(FLEET, "kiosk-a", "hb"), b"beat", qos=0)
    assert aggregator.next()[1] == b"beat"


def test_a_device_cannot_speak_as_another(broker: Site) -> None:
    aggregator = broker.aggregator().start().connected()
    a, b = broker.device("kiosk-a").start().connected(), broker.device("kiosk-b").start().connected()
    wrong_shard = f"fl/v1/{FLEET}/{(topics.shard('kiosk-b') + 1) % 64}/kiosk-b/up/hello"
    forged = [UP_A, DOWN_A, DOWN_B, topics.to_all(FLEET, "offer"), wrong_shard, "fl/v1/f1/0/kiosk-b/up/hello"]
    for topic in forged:
        assert b.transport.publish(topic, b"forged")
    assert b.transport.publish(UP_B, b"marker")
    nothing_arrives_before_the_marker(aggregator, b"marker")
    assert aggregator.transport.publish(topics.to_all(FLEET, "offer"), b"marker")
    nothing_arrives_before_the_marker(a, b"marker")
    nothing_arrives_before_the_marker(b, b"marker")
    if broker.broker.kind == "mosquitto":  # MQTT 3.1.1 has no way to say no
        assert {topic for topic, _ in b.refused} == set(forged)


@pytest.mark.parametrize(
    "greedy",
    [
        "#",
        "+/#",
        f"fl/v1/{FLEET}/#",
        f"fl/v1/{FLEET}/+/+/down/+",
        f"fl/v1/{FLEET}/+/+/up/+",
        DOWN_A,
        "$MQTT/#",
        "$MQTT/sub/#",
        "$MQTT/deliver/pubrel/#",
        "$JS/#",
        "+/sub/#",
        "$SYS/#",
    ],
)
def test_a_device_cannot_listen_to_another(broker: Site, greedy: str) -> None:
    """Also not to the NATS server's inner subjects, on which it delivers everybody's messages."""
    aggregator, a = broker.aggregator().start().connected(), broker.device("kiosk-a").start().connected()
    spy, heard, answered = _raw_client(broker, "kiosk-b"), queue.Queue(), queue.Queue()
    spy.on_message = lambda _client, _data, message: heard.put(message.payload)
    spy.on_subscribe = lambda *_: answered.put(True)
    _connect_raw(spy, broker)
    spy.subscribe(topics.device_filters(FLEET, "kiosk-b")[0], 1)
    assert answered.get(timeout=10)
    for qos in (0, 1):
        spy.subscribe(greedy, qos)
        eventually(lambda: not answered.empty(), 1.0)
    assert a.transport.publish(UP_A, b"secret")
    assert aggregator.next()[1] == b"secret"
    assert aggregator.transport.publish(DOWN_A, b"secret")
    assert a.next()[1] == b"secret"
    assert aggregator.transport.publish(DOWN_B, b"marker")
    assert heard.get(timeout=10) == b"marker"
    spy.disconnect()
    spy.loop_stop()


def _raw_client(site: Site, device: str, client_id: str = "") -> paho.Client:
    """paho with nothing of ours around it: what an attacker with a stolen certificate would use."""
    settings = site.device(device).transport._settings
    protocol = MQTTProtocolVersion.MQTTv311
    client = paho.Client(
        CallbackAPIVersion.VERSION2, client_id=client_id, protocol=protocol, reconnect_on_failure=False
    )
    client.tls_set_context(tls_context(settings))
    return client


def _connect_raw(client: paho.Client, site: Site) -> None:
    client.connect("127.0.0.1", site.broker.port)
    client.loop_start()
    assert eventually(client.is_connected)


def test_a_last_will_cannot_speak_as_another(broker: Site) -> None:
    aggregator = broker.aggregator().start().connected()
    b = _raw_client(broker, "kiosk-b", "dying")
    b.will_set(UP_A, b"forged", qos=1)
    try:
        _connect_raw(b, broker)
        b.socket().shutdown(socket.SHUT_RDWR)
    except (AssertionError, OSError):
        pass  # NATS refuses the connection itself
    b.loop_stop()
    assert broker.device("kiosk-a").start().connected().transport.publish(UP_A, b"marker")
    nothing_arrives_before_the_marker(aggregator, b"marker")


def test_another_devices_client_id_disturbs_nobody(broker: Site) -> None:
    """mosquitto renames the thief to its certificate, even if he knows the id; on NATS nobody can guess it."""
    known = {"client_id": "kiosk-a"} if broker.broker.kind == "mosquitto" else {}
    aggregator, a = broker.aggregator().start().connected(), broker.device("kiosk-a", **known).start().connected()
    thief = _raw_client(broker, "kiosk-b", "kiosk-a")
    _connect_raw(thief, broker)
    assert aggregator.transport.publish(DOWN_A, b"for a")
    assert a.next() == (DOWN_A, b"for a")
    assert a.transport.counters["connections"] == 1
    assert not a.transport.counters.get("lost")
    thief.disconnect()
    thief.loop_stop()


def test_no_certificate_is_refused(broker: Site) -> None:
    settings = broker.device("kiosk-a").transport._settings
    for user in (None, "kiosk-a", topics.device_uri(FLEET, "kiosk-a")):
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311)
        client.tls_set(ca_certs=str(settings.ca_file))
        if user:
            client.username_pw_set(user, "")
        answers: list[bool] = []
        client.on_connect = lambda _c, _d, _f, code, _p, seen=answers: seen.append(not code.is_failure)
        try:
            client.connect("127.0.0.1", broker.broker.port)
            deadline = time.monotonic() + 3
            while client.loop(0.1) == 0 and time.monotonic() < deadline:
                pass
        except OSError:
            pass
        assert True not in answers


def test_a_foreign_authority_with_the_same_names_is_refused(broker: Site) -> None:
    foreign = create_authority(broker.directory / "foreign", b"correct horse", fleet=FLEET, now=time.time())
    directory, _ = broker.certify("kiosk-a", foreign, folder="impostor")
    impostor = broker.client("kiosk-a", directory / "device.crt", directory / "tls.key").start()
    assert eventually(lambda: len(impostor.connections) >= 3)
    assert not any(up for up, _ in impostor.connections)
    assert "certificate" in impostor.connections[0][1]


def test_a_foreign_broker_is_refused(broker: Site) -> None:
    foreign = create_authority(broker.directory / "foreign", b"correct horse", fleet=FLEET, now=time.time())
    client = broker.device("kiosk-a", ca_file=foreign.directory / "ca.pem").start()
    assert eventually(lambda: len(client.connections) >= 2)
    assert not any(up for up, _ in client.connections)
    assert "verify failed" in client.connections[0][1]


def test_a_certified_device_that_is_not_in_the_registry_is_mute_and_deaf(broker: Site) -> None:
    aggregator = broker.aggregator().start().connected()
    stranger = broker.device("kiosk-x").start()
    eventually(lambda: bool(stranger.connections))
    stranger.transport.publish(topics.up(FLEET, "kiosk-x", "hello"), b"stranger")
    assert broker.device("kiosk-a").start().connected().transport.publish(UP_A, b"marker")
    nothing_arrives_before_the_marker(aggregator, b"marker")


def test_a_new_device_is_admitted_by_a_reload(broker: Site) -> None:
    aggregator, a = broker.aggregator().start().connected(), broker.device("kiosk-a").start().connected()
    newcomer = broker.device("kiosk-c").start()
    broker.broker.reload(["kiosk-a", "kiosk-b", "kiosk-c"])

    def heard() -> bool:
        newcomer.transport.publish(topics.up(FLEET, "kiosk-c", "hello"), b"new")
        return not aggregator.messages.empty()

    assert eventually(heard)
    assert a.transport.counters["connections"] == 1


def test_a_revoked_device_is_silenced_at_once_and_refused_when_it_returns(broker: Site) -> None:
    aggregator, a = broker.aggregator().start().connected(), broker.device("kiosk-a").start().connected()
    directory, issued = broker.certify("kiosk-b")
    own = {"subscriptions": topics.device_filters(FLEET, "kiosk-b")}
    b = broker.client("kiosk-b", directory / "device.crt", directory / "tls.key", **own).start().connected()
    assert aggregator.transport.publish(DOWN_B, b"before")
    assert b.next()[1] == b"before"
    assert b.transport.publish(UP_B, b"before")
    assert aggregator.next() == (UP_B, b"before")
    broker.authority.write_crl([(issued.serial, int(time.time()))], now=time.time())
    broker.broker.reload(["kiosk-a"])
    time.sleep(0.5)  # the reload is a signal: neither broker says when it is done
    b.transport.publish(UP_B, b"after")
    if broker.broker.kind == "nats":
        assert eventually(lambda: not b.transport.connected), "NATS drops the live connection"
    assert a.transport.publish(UP_A, b"marker")
    nothing_arrives_before_the_marker(aggregator, b"marker")
    aggregator.transport.publish(DOWN_B, b"after")
    aggregator.transport.publish(DOWN_A, b"marker")
    assert a.next()[1] == b"marker"
    assert b.messages.empty(), "it may not listen either"
    again = broker.client("kiosk-b", directory / "device.crt", directory / "tls.key").start()
    assert eventually(lambda: len(again.connections) >= 3)
    assert not any(up for up, _ in again.connections)
    assert a.transport.counters["connections"] == 1


def test_the_largest_message_passes_and_a_larger_one_is_refused_here(broker: Site) -> None:
    aggregator, device = broker.aggregator().start().connected(), broker.device("kiosk-a").start().connected()
    whole = random.Random(1).randbytes(MAX_PAYLOAD_BYTES)
    with pytest.raises(LocalProtocolError, match="cut it into chunks"):
        device.transport.publish(UP_A, whole + b"!")
    assert device.transport.publish(UP_A, whole)
    assert aggregator.next() == (UP_A, whole)


def test_the_window_fills_says_so_and_empties(broker: Site) -> None:
    aggregator, device = broker.aggregator().start().connected(), broker.device("kiosk-a").start().connected()
    sent, most, payload = 0, 0, bytes(MAX_PAYLOAD_BYTES)
    refusals = 0
    deadline = time.monotonic() + 30
    while sent < 200 and time.monotonic() < deadline:
        if device.transport.publish(UP_A, payload):
            sent += 1
        else:
            refusals += 1
            time.sleep(0.001)
        most = max(most, device.transport.in_flight)
    assert sent == 200
    assert most == WINDOW
    assert refusals > 0
    assert device.capacity
    for _ in range(200):
        aggregator.next()
    assert eventually(lambda: device.transport.counters["acknowledged"] == 200)
    assert device.transport.in_flight == 0


def test_a_token_leads_all_the_way_to_the_aggregator(broker: Site) -> None:
    """Enrolment over HTTPS, reload, mutual TLS, a message: what a new device lives through."""
    aggregator = broker.aggregator().start().connected()
    database = sqlite3.connect(broker.directory / "fleet.db", isolation_level=None, check_same_thread=False)
    registry = Registry(database, FLEET)
    bundle = broker.authority.bundle(broker_host="localhost", broker_port=broker.broker.port, tuf_root="{}")
    handle = enroller(
        registry,
        broker.authority,
        bundle=lambda: bundle,
        clock=time.time,
        on_enrolled=lambda: broker.broker.reload([device.device for device in registry.active()]),
    )
    listener = BootstrapListener(handle, credentials=broker.authority.directory)
    listener.start()
    address, fingerprint = f"localhost:{listener.port}", broker.authority.fingerprint
    token = registry.create_token(fingerprint=fingerprint, address=address, now=time.time(), entropy=os.urandom)
    identity = enrol(token.reveal(), "kiosk-n", broker.directory / "new", entropy=os.urandom)
    listener.stop()
    subscriptions = topics.device_filters(FLEET, "kiosk-n")
    newcomer = broker.client(
        "kiosk-n",
        identity.certificate_file,
        identity.key_file,
        ca_file=identity.ca_file,
        host=identity.bundle.broker_host,
        subscriptions=subscriptions,
    )
    newcomer.start().connected()
    topic = topics.up(FLEET, "kiosk-n", "hello")

    def heard() -> bool:
        newcomer.transport.publish(topic, b"new")
        return not aggregator.messages.empty()

    assert eventually(heard)
    assert aggregator.next() == (topic, b"new")
    database.close()


def test_a_killed_broker_comes_back_and_everybody_with_it(broker: Site) -> None:
    aggregator, device = broker.aggregator().start().connected(), broker.device("kiosk-a").start().connected()
    first = broker.broker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert eventually(lambda: not device.transport.connected and not aggregator.transport.connected)
    assert not device.transport.publish(UP_A, b"into the void")
    assert eventually(broker.broker.healthy)
    assert broker.broker.pid != first
    device.connected()
    aggregator.connected()
    assert device.transport.publish(UP_A, b"again")
    assert aggregator.next() == (UP_A, b"again")
    assert aggregator.transport.publish(DOWN_A, b"again")
    assert device.next() == (DOWN_A, b"again")
    assert broker.broker.restarts == 1


def test_a_failing_callback_ends_nothing(broker: Site) -> None:
    device, aggregator = broker.device("kiosk-a"), broker.aggregator().start().connected()
    device.start().connected()
    broken, device.messages = device.messages, None  # type: ignore[assignment]
    assert aggregator.transport.publish(DOWN_A, b"one")
    assert eventually(lambda: device.transport.counters.get("callback_errors") == 1)
    device.messages = broken
    assert aggregator.transport.publish(DOWN_A, b"two")
    assert device.next() == (DOWN_A, b"two")
    assert device.transport.counters["connections"] == 1


def test_stopping_ends_the_thread(broker: Site) -> None:
    device = broker.device("kiosk-a").start().connected()
    device.transport.stop()
    assert not device.transport.connected
    assert not device.transport.publish(UP_A, b"late")
    assert not device.transport._thread.is_alive()  # type: ignore[union-attr]


def test_a_second_broker_on_the_same_port_is_refused(broker: Site) -> None:
    other = Broker(
        broker.directory / "other",
        broker.authority.directory,
        fleet=FLEET,
        kind=broker.broker.kind,
        port=broker.broker.port,
    )
    with pytest.raises(BrokerError, match="taken by another program"):
        other.start([])
    other.stop()
    assert broker.broker.healthy()


ORPHAN = """
import sys
from pathlib import Path
from aggregator.broker import Broker
Broker(Path(sys.argv[1]), Path(sys.argv[2]), fleet="f0", kind=sys.argv[3], port=int(sys.argv[4])).start(["kiosk-a"])
print("up", flush=True)
input()
"""


def test_a_broker_left_by_a_killed_aggregator_is_replaced(broker: Site) -> None:
    kind, port, home = broker.broker.kind, broker.broker.port, broker.broker.directory
    broker.broker.stop()
    arguments = [sys.executable, "-c", ORPHAN, str(home), str(broker.authority.directory), kind, str(port)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        parent.kill()
    left = int((home / "broker.pid").read_text())
    os.kill(left, 0)
    broker.broker.start(["kiosk-a"])
    assert broker.broker.pid != left
    assert not Path(f"/proc/{left}/cmdline").exists() or not Path(f"/proc/{left}/cmdline").read_bytes()
    assert broker.device("kiosk-a").start().connected()


def test_a_stranger_who_has_the_recorded_pid_is_left_alone(broker: Site) -> None:
    broker.broker.stop()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        (broker.broker.directory / "broker.pid").write_text(str(stranger.pid))
        broker.broker.start(["kiosk-a"])
        assert stranger.poll() is None
        stranger.kill()


def test_the_transport_is_what_the_interface_says() -> None:
    from edge_sdk.transport.interface import Transport

    names = [name for name in dir(Transport) if not name.startswith("_")]
    assert set(names) <= set(dir(MqttTransport))
