"""`aggregator analytics`: what is asked is checked before it is queued, and an answer is shown with its intervals."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from aggregator import cli, scales
from aggregator.analytics import Questions
from aggregator.analytics_commands import schema_of
from aggregator.config import load
from aggregator.home import Home
from aggregator.status import opened
from edge_sdk.artifact.recipes.recommendation import rating_schema
from edge_sdk.artifact.schema import CategoryField, Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier

SCHEMA = Schema(
    (NumberField("age", 40.0, 10.0), CategoryField("plan", ("basic", "gold")), CategoryField("shop", buckets=8)),
    Label("churn", "binary", ("no", "yes")),
)
ESTIMATE = {"value": 41.5, "low": 40.25, "high": 42.75}
SHARE = {"value": 0.25, "low": 0.2, "high": 0.3}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet with two tasks: one that trains within epsilon 3, and one for questions alone."""
    folder = tmp_path_factory.mktemp("made")
    place, model = folder / "home", folder / "first.onnx"
    assert cli.main(["init", str(place), "--fleet", "acme", "--port", "0", "--enrol-port", "0"]) == 0
    model.write_bytes(tabular_classifier(SCHEMA, (), 0))
    shared = ["--model", str(model), "--placement", "shared", "--accept-little-signal", "--n-max", "40"]
    shared += ["--home", str(place)]
    assert cli.main(["task", "create", "churn", *shared, "--epsilon", "3"]) == 0
    assert cli.main(["task", "create", "kpis", *shared, "--rounds", "0", "--epsilon", "4"]) == 0
    return place


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A copy of it for one test."""
    place = Path(shutil.copytree(made, tmp_path / "home"))
    monkeypatch.setenv("AGGREGATOR_HOME", str(place))
    capsys.readouterr()
    return place


def test_a_question_is_queued_with_what_it_costs_and_listed(home, capsys):
    assert cli.main(["analytics", "--task", "kpis", "--ask", "labels", "--ask", "mean:age", "--epsilon", "0.5"]) == 0
    said = capsys.readouterr()
    assert "question 1 waits" in said.out
    assert "epsilon 0.5 at delta 1e-05 for each record" in said.err
    assert "warning" not in said.err
    assert cli.main(["analytics", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["task"], row["status"]) == ("kpis", "queued")
    assert cli.main(["analytics", "list"]) == 0
    assert "question: words label, moments age" in capsys.readouterr().out


def test_a_question_that_costs_training_rounds_says_how_many(home, capsys):
    assert cli.main(["analytics", "--task", "churn", "--ask", "labels", "--epsilon", "0.5"]) == 0
    assert "of the 10 training rounds still to come" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "nobody", "--ask", "labels", "--epsilon", "1"], "no task 'nobody'"),
        (["--task", "kpis", "--ask", "labels"], "an epsilon is needed"),
        (["--task", "kpis", "--ask", "labels", "--epsilon", "9"], "budget is spent"),
        (["--task", "kpis", "--ask", "labels", "--epsilon", "-1"], "is none"),
        (["--task", "kpis", "--ask", "mean:income", "--epsilon", "1"], "no field"),
        (["--task", "kpis", "--epsilon", "1"], "nothing is asked"),
        (["--task", "kpis", "--ask", "labels", "--unit", "device", "--epsilon", "1"], "protects each record"),
        (["--task", "kpis", "--ask", "labels", "--name", "No Name", "--epsilon", "1"], "is no name"),
        (["--task", "kpis", "--ask", "words:shop", "--epsilon", "1"], "number of its bucket"),
        (["--task", "kpis", "--ask", "words:shop:north,south", "--epsilon", "1"], "number of its bucket"),
        (["--task", "kpis", "--ask", "words:plan:gold,lead", "--epsilon", "1"], "keep 'lead' as 'other'"),
        (["--task", "kpis", "--ask", "words:age", "--epsilon", "1"], "'age' holds no words"),
        (["--task", "kpis", "--scales", "--range", "plan:0:1", "--epsilon", "1"], "is no number"),
        (["--task", "kpis", "--scales", "--range", "age", "--epsilon", "1"], "is no range"),
        # What is wrong with the question itself comes before what it would cost.
        (["--task", "kpis", "--ask", "mean:income", "--epsilon", "0.0001"], "no field"),
        (["--task", "kpis", "--ask", "histogram:age:0:90:0", "--epsilon", "0.0001"], "'0' is no number of bins"),
        (["--task", "kpis", "--ask", "histogram:age:0:90:-3", "--epsilon", "0.5"], "'-3' is no number of bins"),
        (["--task", "kpis", "--ask", "model:0", "--epsilon", "0.0001"], "'0' is no number of bins"),
        (["--task", "kpis", "--ask", "labels:churn", "--epsilon", "0.0001"], "no field"),
        (["show", "7"], "no question 7"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_and_not_queued(home, capsys, words, said):
    assert cli.main(["analytics", *words]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert said in error
    assert hint.startswith("aggregator: hint: ")
    with opened(home, load(home)) as (store, _):
        assert Questions(store).all() == []


def answered(home: Path, **answer: object) -> None:
    assert cli.main(["analytics", "--task", "kpis", "--ask", "words:plan", "--ask", "mean:age", "--epsilon", "1"]) == 0
    found = {
        "task": "kpis", "round": 1, "query": "question", "devices": 9, "unit": "record", "delta": 1e-5,
        "epsilon_of_question": 1.0, "epsilon": 1.0, "privacy": "epsilon 1 for each record",
        "figures": [
            {"kind": "words", "field": "plan", "count": ESTIMATE, "words": [{"word": "gold", "share": SHARE}]},
            {"kind": "moments", "field": "age", "count": ESTIMATE, "mean": ESTIMATE, "deviation": ESTIMATE},
        ], **answer,
    }  # fmt: skip
    with opened(home, load(home)) as (store, _), store.transaction():
        questions = Questions(store)
        questions.asked(questions.get(1), 1)
        questions.answer("kpis", 1, found)


def test_an_answer_is_shown_with_its_intervals_its_cost_and_a_picture(home, capsys, tmp_path):
    answered(home)
    capsys.readouterr()
    assert cli.main(["analytics", "show", "1", "--plot", str(tmp_path / "answer.png")]) == 0
    text = capsys.readouterr().out
    for words in ("words of plan", "share gold", "0.25", "0.2 to 0.3", "40.25 to 42.75", "9 devices", "epsilon 1 for"):
        assert words in text
    assert (tmp_path / "answer.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        (SCHEMA, "recipes churn"),
        (Schema((NumberField("age"),), Label("plan", "classes", ("basic", "gold", "lead"))), "linear_classifier"),
        (rating_schema(["tea", "jam"], {}, more=(NumberField("age"),)), "recipes recommendation"),
    ],
)
def test_the_commands_that_follow_learned_scales_make_a_task_of_them(home, tmp_path, monkeypatch, schema, told):
    monkeypatch.chdir(tmp_path)
    Path("my schema.json").write_text(schema.to_json(), encoding="utf-8")
    first, second = scales.next_steps(schema, "my schema.json", "t" * 48)
    assert told in first
    program, *words = shlex.split(first)
    assert program == "python"
    here = {**os.environ, "PYTHONPATH": str(Path(scales.__file__).parents[1])}
    subprocess.run([sys.executable, *words], check=True, env=here)
    program, *words = shlex.split(second)
    assert program == "aggregator"
    assert cli.main(words) == 0
    with opened(home, load(home)) as (store, _):
        assert schema_of(Home(home), store.task(words[2])) == schema


def answer_scales(home: Path) -> None:
    """What the service does with the first question."""
    parts = {"edges": [0.0, 40.0, 80.0], "shares": [SHARE, SHARE]}
    moments = {"mean": ESTIMATE, "deviation": {"value": 9.5, "low": 9.0, "high": 10.0}}
    figures = [{"kind": "moments", "field": "age", **moments}, {"kind": "histogram", "field": "age", **parts}]
    while True:
        with opened(home, load(home)) as (store, _):
            if (row := Questions(store).get(1)) is not None:
                with store.transaction():
                    Questions(store).asked(row, 1)
                    Questions(store).answer("kpis", 1, {"figures": figures})
                return
        time.sleep(0.01)


def test_learned_scales_are_written_and_the_commands_that_follow_are_told(home, tmp_path, capsys):
    out = tmp_path / "schema.json"
    service = threading.Thread(target=answer_scales, args=(home,), daemon=True)
    service.start()
    assert cli.main(["analytics", "--task", "kpis", "--scales", "--epsilon", "1", "--out", str(out)]) == 0
    made = Schema.from_json(out.read_bytes())
    assert (made.fields[0].mean, made.fields[0].scale) == (41.5, 9.5)
    wrote, *commands = capsys.readouterr().out.splitlines()
    assert str(out) in wrote
    assert commands == scales.next_steps(made, str(out), "kpis")


def test_a_question_that_failed_says_why(home, capsys):
    assert cli.main(["analytics", "--task", "kpis", "--ask", "labels", "--epsilon", "1"]) == 0
    with opened(home, load(home)) as (store, _):
        questions = Questions(store)
        questions.refuse(questions.get(1), "nobody is there", 1.0)
    capsys.readouterr()
    assert cli.main(["analytics", "show", "1"]) == 2
    assert "nobody is there" in capsys.readouterr().err
