"""The command line says what is wrong and what to do, in two lines, and never shows a traceback."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from aggregator import cli
from aggregator.demo.plays import churn
from edge_sdk.artifact.starter import tabular_classifier


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    place = tmp_path / "home"
    monkeypatch.setenv("AGGREGATOR_HOME", str(place))
    assert cli.main(["init", str(place), "--fleet", "acme", "--port", "0", "--enrol-port", "0"]) == 0
    capsys.readouterr()
    return place


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "first.onnx"
    path.write_bytes(tabular_classifier(churn.schema(), (), 0))
    return path


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    error, hint = err.splitlines()
    assert out == ""
    assert error.startswith("aggregator: error: ")
    assert hint.startswith("aggregator: hint: ")
    return error, hint


def test_every_file_of_a_new_home_is_closed_to_others(home: Path) -> None:
    for path in (home, home / "offline", home / "authority", home / "releases" / "online"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    secret = [*(home / "offline").iterdir(), *(home / "releases" / "online").iterdir(), home / "aggregator.db"]
    secret += [path for path in (home / "authority").iterdir() if path.suffix == ".key"]
    assert len(secret) >= 14
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}


def test_offline_keys_are_encrypted_and_in_one_folder(home: Path) -> None:
    keys = [path for path in (home / "offline").iterdir() if path.name != "passphrase"]
    assert sorted(path.name for path in keys) == [
        "root-1.pem",
        "root-2.pem",
        "root-3.pem",
        "root-ca.key",
        "targets.pem",
    ]
    assert all(b"ENCRYPTED" in path.read_bytes() for path in keys)
    assert not (home / "authority" / "offline").exists()


def test_a_given_passphrase_is_not_copied_into_the_home(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse battery\n")
    place = tmp_path / "other"
    words = ["init", str(place), "--port", "0", "--enrol-port", "0", "--passphrase-file", str(secret)]
    assert cli.main(words) == 0
    assert not (place / "offline" / "passphrase").exists()
    assert not any(b"correct horse" in path.read_bytes() for path in place.rglob("*") if path.is_file())


def test_init_does_not_touch_a_home_that_exists(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    error, hint = complaint(capsys, "init", str(home))
    assert "holds an aggregator already" in error
    assert "another directory" in hint
    assert before == {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_a_missing_home_names_the_command_that_makes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("AGGREGATOR_HOME", raising=False)
    _, hint = complaint(capsys, "status", "--home", str(tmp_path / "nowhere"))
    assert "aggregator init" in hint


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frobnicate"], "invalid choice"),
        ([], "required"),
        (["enroll-token", "--ttl", "soon"], "no duration"),
        (["enroll-token", "--uses", "0"], "at least one use"),
        (["devices", "revoke", "kiosk-7"], "no device 'kiosk-7'"),
        (["devices", "revoke"], "which device"),
        (["task", "stop", "churn"], "no task 'churn'"),
        (["task", "create", "churn", "--model", "absent.onnx"], "cannot read the model"),
        (["demo", "--devices", "3"], "8 to 32 devices"),
    ],
)
def test_every_mistake_has_a_remedy(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    error, hint = complaint(capsys, *words)
    assert said in error
    assert len(hint) > len("aggregator: hint: ")


def test_an_unknown_setting_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (home / "aggregator.toml").open("a") as file:
        file.write("prot = 1\n")
    error, hint = complaint(capsys, "status")
    assert "'prot' is not a setting" in error
    assert "enrol_port" in hint


def test_the_environment_overrides_the_file(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGGREGATOR_PORT", "many")
    error, _ = complaint(capsys, "status")
    assert "port is 'many'" in error


def test_a_token_as_json_admits_whom_it_says(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["enroll-token", "--uses", "3", "--ttl", "30m", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["uses"] == 3
    assert made["token"].startswith("chorale1.acme.")


def test_a_task_states_its_privacy_with_all_that_belongs_to_it(
    home: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(record) + "\n" for record in churn.load(8).held_out[:40]))
    words = ["task", "create", "churn", "--model", str(model), "--held-out", str(held_out), "--epsilon", "3"]
    assert cli.main([*words, "--sample-rate", "0.2", "--steps", "20", "--json"]) == 0
    privacy = json.loads(capsys.readouterr().out)["privacy"]
    assert privacy["epsilon"] == pytest.approx(3.0, abs=0.01)
    assert privacy["epsilon"] <= 3.0
    assert (privacy["unit"], privacy["delta"]) == ("record", 1e-5)
    assert privacy["against"] == "everyone, the aggregator included"
    assert cli.main(["status", "--json"]) == 0
    task = json.loads(capsys.readouterr().out)["tasks"][0]
    assert (task["name"], task["status"], task["privacy"]["epsilon"]) == ("churn", "active", 0.0)
    assert cli.main(["task", "stop", "churn"]) == 0
    assert cli.main(["task", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])[0]["status"] == "paused"


def test_a_task_without_noise_is_refused_before_its_graph_is_locked(
    home: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error, hint = complaint(capsys, "task", "create", "churn", "--model", str(model))
    assert "no noise" in error
    assert "target_epsilon" in hint
    assert not list((home / "releases" / "public" / "targets").rglob("*churn*"))


def test_without_the_offline_keys_no_task_is_made(home: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "offline").rename(home.parent / "safe")
    words = ["task", "create", "churn", "--model", str(model), "--epsilon", "3"]
    _, hint = complaint(capsys, *words)
    assert "--offline" in hint
    assert cli.main([*words, "--offline", str(home.parent / "safe")]) == 0
