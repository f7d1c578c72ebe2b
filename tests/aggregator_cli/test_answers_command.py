"""`aggregator answers`: a list is checked by the task's model, signed once, numbered, and in the audit log."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from aggregator import cli
from aggregator.config import load
from aggregator.home import Home
from aggregator.releases.repository import Repository
from aggregator.status import opened
from aggregator.store import audit_log
from edge_sdk.artifact.schema import Label, NumberField, Schema, TextField
from edge_sdk.artifact.starter import linear_classifier
from edge_sdk.protocol import hashlog

LIST = {
    "answers": [
        {"intent": "hours", "text": "From nine to six."},
        {"intent": "hours", "language": "zh", "text": "九点到十八点。"},
        {"intent": "return", "text": "Within thirty days."},
    ],
    "handover": {"en": "A colleague will help you."},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet with a task that tells intents and one that predicts a number."""
    folder = tmp_path_factory.mktemp("made")
    place = folder / "home"
    assert cli.main(["init", str(place), "--fleet", "acme", "--port", "0", "--enrol-port", "0"]) == 0
    models = {
        "service": Schema((TextField("asked", 64),), Label("intent", "classes", ("hours", "return", "oos"))),
        "demand": Schema((NumberField("rain"),), Label("visitors", "number")),
    }
    for name, schema in models.items():
        (folder / "first.onnx").write_bytes(linear_classifier(schema))
        words = [
            "--model",
            str(folder / "first.onnx"),
            "--placement",
            "shared",
            "--accept-little-signal",
            "--epsilon",
            "4",
        ]
        assert cli.main(["task", "create", name, *words, "--n-max", "40", "--home", str(place)]) == 0
    return place


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    place = Path(shutil.copytree(made, tmp_path / "home"))
    monkeypatch.setenv("AGGREGATOR_HOME", str(place))
    capsys.readouterr()
    return place


def written(home: Path, **parts: object) -> str:
    file = home / "answers.json"
    file.write_text(json.dumps({**LIST, **parts}), encoding="utf-8")
    return str(file)


def test_a_list_is_numbered_signed_listed_and_logged(home, capsys):
    assert cli.main(["answers", "list"]) == 0
    assert "no answers are published" in capsys.readouterr().out
    for version in (1, 2):
        assert cli.main(["answers", "publish", "--task", "service", written(home)]) == 0
        said = capsys.readouterr().out
        assert f"answers version {version} of service: 3 answers, threshold 0.6" in said
        assert "handed over in zh, for want of an answer: return\n" in said
    assert cli.main(["answers", "list"]) == 0
    assert capsys.readouterr().out == "service  version 2: 3 answers to 2 intents (en, zh), threshold 0.6\n"
    assert cli.main(["answers", "list", "--json", "--task", "service"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["version"], shown["answers"][1]["text"]) == (2, "九点到十八点。")
    with opened(home, load(home)) as (store, _):
        kinds = [hashlog.read(row.entry).kind for row in audit_log.rows(store.connection)]
    assert kinds.count("answers-published") == 2
    assert list(Repository(Home(home).releases).answers("service")) == [1, 2]


@pytest.mark.parametrize(
    ("task", "parts", "told"),
    [
        ("service", {"answers": [{"intent": "refund", "text": "x"}]}, ("refund", "hours, oos, return")),
        ("service", {"refuse": ["hours"]}, ("answered and yet refused: hours", "`refuse`")),
        ("service", {"threshold": 2}, ("$.threshold", "docs/embedding.md")),
        ("demand", {}, ("predicts a number", "intents")),
        ("nobody", {}, ("no task 'nobody'", "task list")),
    ],
)
def test_a_list_that_devices_could_not_serve_is_never_signed(home, capsys, task, parts, told):
    assert cli.main(["answers", "publish", "--task", task, written(home, **parts)]) == 2
    error = capsys.readouterr().err
    assert all(words in error for words in told)
    assert Repository(Home(home).releases).answers(task) == {}
