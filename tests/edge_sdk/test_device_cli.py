"""The device's command line: plain errors with a remedy, and answers from the disk alone."""

from __future__ import annotations

import ast
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fleet_of_eight import MODEL
from nobodys_broker import enrol

import edge_sdk
from edge_sdk.cli import main
from edge_sdk.testing import FakeAggregator

EXAMPLES = Path(__file__).parents[2] / "firmware_examples"
RECORD = '{"minutes": 120.0, "calls": 2}'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    FakeAggregator(tmp_path).install("churn", MODEL, version=4)
    return tmp_path


def test_predict_answers_from_the_disk(home, capsys):
    assert main(["predict", "churn", "--home", str(home), "--json-record", RECORD, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["label"] in ("yes", "no")
    assert answer["model_version"] == 4
    assert main(["predict", "churn", "--home", str(home), "--json-record", RECORD]) == 0
    assert re.fullmatch(r"(yes|no)  0\.\d{3}\n(yes|no)  0\.\d{3}\n", capsys.readouterr().out)


def test_predict_and_status_work_while_a_client_runs(tmp_path, capsys):
    with FakeAggregator(tmp_path) as fake:
        fake.install("churn", MODEL, version=4)
        with fake.client() as fl:
            fl.record("churn", json.loads(RECORD), "yes")
            assert fl.flush(5.0)
            assert main(["predict", "churn", "--home", str(tmp_path), "--json-record", RECORD]) == 0
            capsys.readouterr()
            assert main(["status", "--home", str(tmp_path), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["models"]["churn"]["version"] == 4
    assert status["examples"] == {"churn": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "other", "--json-record", RECORD], "no model for task 'other'"),
        (["predict", "churn", "--json-record", "{"], "not json"),
        (["predict", "churn", "--json-record", "[]"], "not an object"),
        (["predict", "churn", "--json-record", '{"minutes": "x"}'], "calls"),
        (["run"], "no enrolled device"),
        (["enroll", "rubbish", "--device", "kiosk-1"], "not an enrolment token"),
        (["dance"], "invalid choice"),
    ],
)
def test_an_error_is_one_line_with_a_remedy_and_no_traceback(home, capsys, arguments, message):
    places = ["--home", str(home)] if arguments[0] != "dance" else []
    try:
        code = main([*arguments, *places])
    except SystemExit as stop:
        code = stop.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert lines[0].startswith("edge-sdk: error: ")
    assert message in lines[0].lower()
    assert len(lines) <= 2
    assert all(line.startswith("edge-sdk: hint: ") for line in lines[1:])


def test_a_home_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["status", "--home", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["kiosk", "call_centre_terminal", "service_desk"])
def test_an_example_is_short_and_uses_public_names_only(program):
    source = (EXAMPLES / program / "main.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 100
    used = {node.attr for node in ast.walk(ast.parse(source)) if _is_edge_sdk(node)}
    assert used <= set(edge_sdk.__all__)
    assert "from edge_sdk" not in source
    assert (EXAMPLES / program / "README.md").exists()


def _is_edge_sdk(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "edge_sdk"


@pytest.mark.parametrize("program", ["kiosk", "call_centre_terminal"])
def test_an_example_answers_offline_and_ends_in_order(program, enrolled, tmp_path):
    table = tmp_path / "customers.csv"
    table.write_text("minutes,calls,churn\n" + "".join(f"{i}.5,{i},{'yes' if i % 2 else 'no'}\n" for i in range(30)))
    options = ["--home", str(enrolled), "--data", str(table), "--task", "churn", "--every", "0.2", "--json-lines"]
    root = EXAMPLES.parent
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / program / "main.py"), *options],
        stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(root), "PATH": "/usr/bin"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        answers = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert {answer["label"] for answer in answers} <= {"yes", "no"}
    assert answers[0]["model_version"] == 4
    with FakeAggregator(enrolled).client() as fl:
        fl.flush(5.0)
        assert fl.status()["examples"] == {"churn": 30}


@pytest.fixture
def enrolled(home: Path) -> Path:
    return enrol(home)
