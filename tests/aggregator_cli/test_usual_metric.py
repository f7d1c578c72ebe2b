"""`task create` needs no metric: it follows the label. What docs/authoring.md shows is enough."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from aggregator import cli
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import linear_classifier

PAGE = (Path(__file__).parents[2] / "docs" / "authoring.md").read_text(encoding="utf-8")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "fleet-home", "--fleet", "acme", "--port", "0", "--enrol-port", "0"]) == 0
    capsys.readouterr()
    return tmp_path / "fleet-home"


def settings_of(capsys: pytest.CaptureFixture[str], name: str) -> dict[str, object]:
    capsys.readouterr()
    assert cli.main(["task", "describe", name, "--home", "fleet-home", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("label", "metric"),
    [
        (Label("y", "binary", ("no", "yes")), "auc"),
        (Label("y", "classes", ("a", "b", "c")), "accuracy"),
        (Label("y", "number"), "rmse"),
        (Label("y", "number", quantiles=(0.1, 0.5, 0.9)), "wape"),
    ],
)
def test_a_task_without_a_metric_goes_by_the_one_of_its_label(home, capsys, label, metric):
    Path("m.onnx").write_bytes(linear_classifier(Schema((NumberField("a"),), label)))
    answers = label.names or (1.0, 2.0)
    Path("h.jsonl").write_text("".join(json.dumps({"a": 1, "y": one}) + "\n" for one in answers))
    words = ["--home", "fleet-home", "--model", "m.onnx", "--held-out", "h.jsonl", "--epsilon", "8"]
    assert cli.main(["task", "create", "t", *words]) == 0
    assert f'"metric":"{metric}"' in json.dumps(settings_of(capsys, "t")).replace(" ", "")
    Path("s.json").write_text(json.dumps({"metric": "mse" if label.kind == "number" else "brier"}))
    assert cli.main(["task", "create", "u", *words, "--spec", "s.json"]) == 0
    assert re.search('"metric": "(mse|brier)"', json.dumps(settings_of(capsys, "u")))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's exporter warns about itself
def test_the_documented_command_makes_a_task_of_the_documented_model(home, capsys):
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(script, {"__name__": "authoring"})
    (line,) = re.findall(r"^aggregator (task create .*)$", PAGE, re.MULTILINE)
    (example,) = re.findall(r'`(\{"minutes": .*?\})`', PAGE)
    Path("labelled.jsonl").write_text(example + "\n")
    assert cli.main(shlex.split(line)) == 0
    assert '"metric": "accuracy"' in json.dumps(settings_of(capsys, "intent"))
