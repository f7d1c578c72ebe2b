"""Every error that a user can meet is one line, one remedy and exit code 2, however the program is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fleet_of_eight import MODEL
from nobodys_broker import enrol

from edge_sdk.cli import main
from edge_sdk.device_db import count, open_device_db
from edge_sdk.testing import FakeAggregator

RECORD = '{"minutes": 120.0, "calls": 2}'
PREDICT = ["predict", "churn", "--json-record", RECORD]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    FakeAggregator(tmp_path).install("churn", MODEL, version=4)
    return enrol(tmp_path)


def lay_open(home: Path) -> None:
    (home / "identity" / "sign.key").chmod(0o644)


def damage_certificate(home: Path) -> None:
    (home / "identity" / "device.crt").write_text("no certificate")


def damage_key(home: Path) -> None:
    (home / "identity" / "tls.key").write_text("no key")


def damage_db(home: Path) -> None:
    (home / "device.db").write_bytes(b"no database at all" * 100)


def model_file(home: Path) -> Path:
    (file,) = (home / "models" / "churn").glob("*.onnx")
    return file


def nothing(_: Path) -> None:
    """Leaves the home as it is."""


CASES = {
    "an open key": (lay_open, ["run"], "0644"),
    "a damaged certificate": (damage_certificate, ["run"], "damaged"),
    "a damaged key": (damage_key, ["run"], "does not hold a key"),
    "a damaged device.db": (damage_db, ["run"], "device.db"),
    "a missing model file": (lambda home: model_file(home).unlink(), PREDICT, "missing"),
    "a damaged model file": (lambda home: model_file(home).write_bytes(b"no model"), PREDICT, "damaged"),
    "a wrong record": (nothing, ["predict", "churn", "--json-record", '{"minutes": 1}'], "calls"),
    "a record of the wrong kind": (
        nothing, ["predict", "churn", "--json-record", '{"minutes": "x", "calls": 1}'], "minutes",
    ),
    "a list": (nothing, ["predict", "churn", "--json-record", "[]"], "not an object"),
    "endless nesting": (nothing, ["predict", "churn", "--json-record", "[" * 100_000], "not json"),
    "an unknown task": (nothing, ["predict", "weather", "--json-record", RECORD], "weather"),
    "a damaged edge.toml": (lambda home: (home / "edge.toml").write_text("="), ["status"], "edge.toml"),
    "a wrong setting": (lambda home: (home / "edge.toml").write_text("min_cohort = 1"), ["status"], "min_cohort"),
    "a file for a home": (lambda home: (home / "edge.toml").mkdir(), ["status"], "edge.toml"),
}  # fmt: skip


def judge(code: int, errors: str, message: str) -> None:
    lines = [line for line in errors.splitlines() if line.startswith("edge-sdk: ")]
    assert code == 2, errors
    assert len(lines) == 2
    assert lines[0].startswith("edge-sdk: error: ")
    assert message in lines[0].lower()
    assert len(lines[1]) > len("edge-sdk: hint: ")
    assert lines[1].startswith("edge-sdk: hint: ")


@pytest.mark.parametrize(("break_it", "arguments", "message"), CASES.values(), ids=list(CASES))
def test_an_error_names_itself_and_its_remedy(home, capsys, break_it, arguments, message):
    break_it(home)
    judge(main([*arguments, "--home", str(home)]), capsys.readouterr().err, message)


@pytest.mark.parametrize("case", ["an open key", "an unknown task", "a list", "a wrong record"])
def test_started_as_a_module_it_says_the_same_and_shows_no_traceback(home, case):
    break_it, arguments, message = CASES[case]
    break_it(home)
    command = [sys.executable, "-m", "edge_sdk.cli", *arguments, "--home", str(home)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=Path(__file__).parents[2]
    )
    judge(done.returncode, done.stderr, message)
    assert "Traceback" not in done.stderr


def test_a_device_that_was_told_of_its_revocation_says_so(home, capsys):
    open_device_db(home / "device.db").close()
    assert main(["status", "--home", str(home)]) == 0
    assert "revoked" not in capsys.readouterr().out
    db = open_device_db(home / "device.db")
    count(db, "refused-by-aggregator", "revoked")
    db.close()
    assert main(["status", "--home", str(home)]) == 0
    assert "revoked   the aggregator says" in capsys.readouterr().out
