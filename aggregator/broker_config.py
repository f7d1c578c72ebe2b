"""Configuration of the embedded broker, written from the registry's list of devices. Pure text in, text out.

One list of devices rules both brokers: a device that is not on it may neither speak nor listen, even while its
connection is still open. The rules name each device's exact shard, so nobody writes into another's subtree.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from edge_sdk.protocol import topics

MAX_PACKET_BYTES: Final = 131_072  # the wide message profile of 120 KiB and its headers
JETSTREAM: Final = "jetstream"
MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024


class Site(NamedTuple):
    """Where one broker lives. `credentials` holds ca.pem, crl.pem, broker.crt and broker.key."""

    fleet: str
    host: str
    port: int
    directory: Path
    credentials: Path
    user: str


def _device_base(fleet: str, device: str) -> str:
    return f"{topics.PREFIX}/{fleet}/{topics.shard(device)}/{device}"


def mosquitto_rules(fleet: str, devices: Sequence[str], aggregators: Sequence[str]) -> str:
    """The access list: one block a certificate name. Whatever it does not name is refused."""
    lines = []
    for device in devices:
        base = _device_base(fleet, device)
        lines += [f"user {device}", f"topic write {base}/up/+", f"topic read {base}/down/+"]
        lines += [f"topic read {topics.PREFIX}/{fleet}/all/+", ""]
    for aggregator in aggregators:
        base = f"{topics.PREFIX}/{fleet}"
        lines += [f"user {aggregator}", f"topic read {base}/+/+/up/+", f"topic write {base}/+/+/down/+"]
        lines += [f"topic write {base}/all/+", ""]
    return "\n".join(lines)


def mosquitto_settings(site: Site) -> str:
    """mosquitto.conf. Mutual TLS, no persistence: whatever matters is asked for again (DESIGN 9)."""
    credentials = site.credentials
    settings = {
        "per_listener_settings": "false",
        "user": site.user,  # started as root it would drop to a user that cannot read the 0600 key
        "listener": f"{site.port} {site.host}",
        "cafile": credentials / "ca.pem",
        "certfile": credentials / "broker.crt",
        "keyfile": credentials / "broker.key",
        "crlfile": credentials / "crl.pem",
        "tls_version": "tlsv1.2",  # the least accepted: 1.3 is used where both sides have it
        "require_certificate": "true",
        "use_identity_as_username": "true",
        # Without it any device that knows another's client id takes over that session.
        "use_username_as_clientid": "true",
        "allow_anonymous": "false",
        "acl_file": site.directory / "acl.conf",
        "persistence": "false",
        "max_packet_size": MAX_PACKET_BYTES,
        "max_inflight_messages": "20",
        "max_queued_messages": "2000",
        "max_queued_bytes": MAX_QUEUED_BYTES,
        "set_tcp_nodelay": "true",
        "connection_messages": "false",
        "log_dest": "stderr",
    }
    lines = [f"{key} {value}" for key, value in settings.items()]
    return "\n".join([*lines, *(f"log_type {kind}" for kind in ("error", "warning", "notice")), ""])


def _nats_user(name: str, publish: Sequence[str], subscribe: Sequence[str]) -> dict[str, object]:
    inner = ["$MQTT.sub.>", "$MQTT.deliver.pubrel.>"]  # where the server's own QoS 1 deliveries arrive
    return {
        "user": name,
        # A user without a password must not be reachable on the plain NATS port.
        "allowed_connection_types": ["MQTT"],
        "permissions": {"publish": list(publish), "subscribe": [*subscribe, *inner]},
    }


def _subject(topic: str) -> str:
    return topic.replace("/", ".").replace("+", "*")


def nats_users(fleet: str, devices: Sequence[str], aggregators: Sequence[str]) -> list[dict[str, object]]:
    """One permission block a certificate; the certificate's URI is the user's name (`verify_and_map`)."""
    users = []
    for device in devices:
        base = _subject(_device_base(fleet, device))
        listens = [f"{base}.down.*", _subject(f"{topics.PREFIX}/{fleet}/all/+")]
        users.append(_nats_user(topics.device_uri(fleet, device), [f"{base}.up.*"], listens))
    for aggregator in aggregators:
        base = _subject(f"{topics.PREFIX}/{fleet}")
        speaks = [f"{base}.*.*.down.*", f"{base}.all.*"]
        users.append(_nats_user(topics.aggregator_uri(fleet, aggregator), speaks, [f"{base}.*.*.up.*"]))
    return users


def nats_settings(site: Site, devices: Sequence[str], aggregators: Sequence[str]) -> str:
    """nats.conf, as JSON, which its format includes."""
    credentials = site.credentials
    tls = {
        "cert_file": str(credentials / "broker.crt"),
        "key_file": str(credentials / "broker.key"),
        "ca_file": str(credentials / "ca.pem"),
        "verify_and_map": True,
    }
    settings = {
        "server_name": f"chorale-{site.fleet}",
        "host": "127.0.0.1",
        "port": -1,  # the plain NATS port: any free one, on loopback, and no user may come in by it
        "tls": tls,
        "max_payload": MAX_PACKET_BYTES,
        "jetstream": {"store_dir": str(site.directory / JETSTREAM), "max_file": MAX_QUEUED_BYTES * 16},
        "mqtt": {
            "host": site.host,
            "port": site.port,
            "tls": tls,
            "ack_wait": "30s",
            "max_ack_pending": 100,
            "reject_qos2_publish": True,
        },
        "authorization": {"users": nats_users(site.fleet, devices, aggregators)},
    }
    return json.dumps(settings, indent=1)
