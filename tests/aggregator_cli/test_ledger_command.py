"""`aggregator ledger` and `enroll-token --replace`: what an operator sees of spends, and how a device comes back."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from aggregator import cli
from aggregator.config import load
from aggregator.ledger import Ledger
from aggregator.status import opened
from aggregator.tasks import parse_spec, settle
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.protocol.messages import Spent

SCHEMA = Schema((NumberField("age"),), Label("churn", "binary", ("no", "yes")))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A fleet with one task, of which two rounds were opened, and two devices, of which one forgot to charge."""
    place = tmp_path / "home"
    monkeypatch.setenv("AGGREGATOR_HOME", str(place))
    assert cli.main(["init", str(place), "--fleet", "acme", "--port", "0", "--enrol-port", "0"]) == 0
    (tmp_path / "first.onnx").write_bytes(tabular_classifier(SCHEMA, (), 0))
    assert cli.main(["task", "create", "churn", "--model", str(tmp_path / "first.onnx"), "--epsilon", "3"]) == 0
    with opened(place, load(place)) as (store, registry):
        ledger = Ledger(store.connection)
        terms = settle(parse_spec(store.task("churn").spec), 2)
        for name in ("kiosk-a", "kiosk-b"):
            values = (name, bytes(32), bytes(32), name, 2**40, "active", "kiosk", 0, 0, None)
            registry._db.execute("INSERT INTO devices VALUES (?,?,?,?,?,?,?,?,?,?)", values)
        with store.transaction():
            for number in (1, 2):
                ledger.offered("churn", number, terms, 2, 10.0)
                ledger.accepted("kiosk-a", "churn", number)
                ledger.accepted("kiosk-b", "churn", number)
                ledger.opened("churn", number, 20.0)
            ledger.report("kiosk-b", Spent(1, ()), b"frame", enrolled_at=0.0, now=30.0)
    capsys.readouterr()
    return place


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert cli.main(["ledger", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_models_devices_and_differences_are_shown(home: Path, capsys) -> None:
    found = shown(capsys)
    (model,) = found["models"]
    assert (model["task"], model["rounds_opened"], model["budget"]) == ("churn", 2, 3.0)
    assert 0 < model["epsilon"] < 3
    assert [entry["device"] for entry in found["devices"]] == ["kiosk-a", "kiosk-b"]
    assert found["devices"][0]["accepted"] == {"rounds": 2, "last_round": 2, "epsilon": model["epsilon"]}
    assert [(alarm["device"], alarm["kind"]) for alarm in found["alarms"]] == [("kiosk-b", "charged-less")]
    assert [entry["device"] for entry in shown(capsys, "--device", "kiosk-a")["devices"]] == ["kiosk-a"]
    assert shown(capsys, "--device", "kiosk-a")["alarms"] == []


def test_in_words_a_difference_names_what_to_do_and_the_status_says_it_too(home: Path, capsys) -> None:
    for command in ("ledger", "status"):
        assert cli.main([command]) == 0
        text = capsys.readouterr().out
        assert "alarm: ledgers differ: kiosk-b, task churn, record: it has charged 0 rounds, 2 were accepted" in text
        assert "enrol it anew" in text
    assert cli.main(["ledger", "--device", "nobody"]) == 2
    assert "there is no device 'nobody'" in capsys.readouterr().err


def test_a_device_is_replaced_by_one_command_and_its_spend_stays(home: Path, capsys) -> None:
    assert cli.main(["enroll-token", "--replace", "kiosk-a"]) == 0
    assert capsys.readouterr().out.startswith("chorale1.acme.")
    with opened(home, load(home)) as (store, registry):
        assert registry.get("kiosk-a").status == "revoked"
        (stated,) = Ledger(store.connection).carry_over("kiosk-a")
        assert stated.rounds == 2
        assert len(msgspec.msgpack.encode(stated)) < 1500
    assert cli.main(["enroll-token", "--replace", "nobody"]) == 2
