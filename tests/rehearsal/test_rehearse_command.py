"""`aggregator rehearse`: a file of one's own ends in a report or in one line that names the remedy."""

from __future__ import annotations

import csv
import json
import random
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from aggregator.cli import main
from aggregator.rehearsal import page

ROWS = 240


def rows(seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    made = []
    for number in range(ROWS):
        age, plan = rng.randrange(18, 90), rng.choice(["basic", "plus"])
        left = rng.random() < (0.8 if plan == "basic" and age < 50 else 0.15)
        made.append({
            "kunde": f"K-{number}", "age": str(age), "plan": plan, "since": f"2023-0{1 + number % 9}-11",
            "note": "" if number % 5 else "late, again", "shop": f"店 {number % 6}", "left": "yes" if left else "no",
        })  # fmt: skip
    return made


def written(path: Path, made: list[dict[str, str]], delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(made[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(made)
    return path


def run(*words: str) -> int:
    return main(["rehearse", *map(str, words)])


HOSTILE = {
    "empty": ("", ["--label", "y", "--by", "b"], "is empty"),
    "header alone": ("y,b\n", ["--label", "y", "--by", "b"], "no rows"),
    "one column": ("y\n1\n0\n1\n", ["--label", "y", "--devices", "5"], "no column is left"),
    "no such label": ("x,b\n1,2\n", ["--label", "y", "--by", "b"], "no column of the file"),
    "no such device": ("y,x\n1,2\n", ["--label", "y", "--by", "b"], "no column of the file"),
    "constant label": ("y,x,b\n1,2,3\n1,3,4\n", ["--label", "y", "--by", "b"], "every row has the same"),
    "empty label": ("y,x,b\n,2,3\n,3,4\n", ["--label", "y", "--by", "b"], "no row has"),
    "one device": ("y,x,b\n1,2,3\n0,3,3\n1,4,3\n", ["--label", "y", "--by", "b"], "1 device;"),
    "nothing but identifiers": (
        "y,id,b\n" + "".join(f"{i % 2},{i},{i % 7}\n" for i in range(90)), ["--label", "y", "--by", "b"], "no column",
    ),
    "all nothing": (
        "y,x,b\n" + "".join(f"{i % 2},NaN,{i % 7}\n" for i in range(90)), ["--label", "y", "--by", "b"], "no column",
    ),
    "nobody's rows": ("y,x\n1,2\n0,3\n", ["--label", "y"], "whose device"),
    "two devices": ("y,x\n1,2\n0,3\n", ["--label", "y", "--devices", "2"], "hide nobody"),
    "no budget": ("y,x,b\n1,2,3\n", ["--label", "y", "--by", "b", "--epsilon", "-1"], "no budget"),
    "no customers": ("y,x,b\n1,2,3\n", ["--label", "y", "--by", "b", "--unit", "customer"], "whose each row"),
    "a label without bounds": (
        "y,x,b\n" + "".join(f"{(-1) ** i * (i + 1)}e306,{i % 9},{i % 7}\n" for i in range(90)),
        ["--label", "y", "--by", "b"], "have no mean or scale",
    ),
    "a label of essays": (
        "y,x,b\n" + "".join(f"{'w' * 300}{i % 3},{i},{i % 7}\n" for i in range(90)),
        ["--label", "y", "--by", "b"], "long",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_teaches_nothing_ends_in_one_line_and_a_remedy(tmp_path, capsys, case):
    text, words, expected = HOSTILE[case]
    (tmp_path / "a.csv").write_text(text)
    assert run(tmp_path / "a.csv", *words, "--report", tmp_path / "out") == 2
    said = capsys.readouterr().err.splitlines()
    assert expected in said[-2]
    assert said[-1].startswith("aggregator: hint: ")
    assert not (tmp_path / "out").exists()


def test_a_task_file_that_does_not_parse_is_refused(tmp_path, capsys):
    data = written(tmp_path / "a.csv", rows())
    (tmp_path / "task.json").write_text('{"rounds": ')
    assert run(data, "--label", "left", "--by", "shop", "--task", tmp_path / "task.json") == 2
    assert "cannot read the task file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"target_epsilon": "abc"}', "target_epsilon"),
        ('{"target_epsilon": -2}', "target_epsilon"),
        ('{"target_epsilon": 1e9}', "target_epsilon"),
        ('{"rounds": "many"}', "rounds"),
        ('{"rounds": 0}', "0 rounds"),
        ('{"rounds": -5}', "rounds"),
        ('{"rounds": 20000}', "20000 rounds"),
        ('{"rounds": null}', "rounds"),
        ('{"epsilon": 3}', "unknown field"),
        ("[3]", "cannot read the task file"),
    ],
)
def test_a_task_file_of_rubbish_values_ends_in_one_line_and_a_remedy(tmp_path, capsys, text, word):
    data = written(tmp_path / "a.csv", rows())
    (tmp_path / "task.json").write_text(text)
    words = ["--label", "left", "--by", "shop", "--task", tmp_path / "task.json", "--report", tmp_path / "out"]
    assert run(data, *words) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert word in said[0]
    assert said[1].startswith("aggregator: hint: ")


def test_a_metric_that_the_label_cannot_give_is_refused_with_those_that_fit(tmp_path, capsys):
    data = written(tmp_path / "a.csv", rows())
    (tmp_path / "task.json").write_text('{"metric": "rmse"}')
    words = ["--label", "left", "--by", "shop", "--task", tmp_path / "task.json", "--report", tmp_path / "out"]
    assert run(data, *words) == 2
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert "'left' is yes or no, which has no rmse" in error
    assert "auc, accuracy, log_loss" in hint
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_metric_that_was_asked_for_is_what_the_report_goes_by(tmp_path, capsys):
    data, out = written(tmp_path / "a.csv", rows()), tmp_path / "out"
    (tmp_path / "task.json").write_text('{"metric": "macro_f1", "rounds": 2}')
    words = ["--label", "left", "--by", "shop", "--task", tmp_path / "task.json", "--no-masks", "--report", out]
    assert run(data, *words) == 0
    assert "round 2 of 2: 6 devices" in (said := capsys.readouterr().out)
    assert "macro_f1" in said
    summary = json.loads((out / "summary.json").read_text())
    assert summary["metric"] == json.loads((out / "task.json").read_text())["metric"] == "macro_f1"
    assert summary["curve"][-1][1] == summary["scores"]["fleet"]["macro_f1"]


@pytest.mark.slow
def test_a_metric_that_the_test_rows_do_not_give_is_refused_where_it_was_asked_for(tmp_path, capsys):
    made = rows()
    for place, row in enumerate(made):
        row["left"] = "yes" if place == 7 else "no"
    data = written(tmp_path / "a.csv", made)
    (tmp_path / "task.json").write_text('{"metric": "auc", "rounds": 1}')
    words = ["--label", "left", "--by", "shop", "--task", tmp_path / "task.json", "--no-masks"]
    assert run(data, *words, "--report", tmp_path / "out") == 2
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert "held back for the test give no auc" in error
    assert "--test-share" in hint


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_customers_on_several_devices_are_counted_and_told_what_they_pay(tmp_path, capsys):
    made = rows()
    for number, row in enumerate(made):
        row["kunde"] = f"K-{number // 2}"  # neighbours lie in two shops
    data, out = written(tmp_path / "roaming.csv", made), tmp_path / "out"
    words = ["--label", "left", "--by", "shop", "--subject", "kunde", "--rounds", "2", "--no-masks", "--report", out]
    assert run(data, *words) == 0
    said = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    found = summary["customers_on_several_devices"]
    assert found["share"] == 1.0
    assert found["most_devices"] == 2
    assert found["epsilon_on_two"] > 2 * summary["privacy"]["epsilon"]
    for place in (said, (out / "report.html").read_text(), " ".join(summary["advice"])):
        assert f"epsilon {found['epsilon_on_two']:.3g} on two devices" in place
        assert "placement local" in place


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_masked_rehearsal_reports_and_suggests_a_task_that_can_be_created(tmp_path, capsys):
    data, out = written(tmp_path / "churn of a shop.csv", rows()), tmp_path / "out"
    words = ["--label", "left", "--by", "shop", "--rounds", "3", "--seed", "5"]
    assert run(data, *words, "--report", out) == 0
    said = capsys.readouterr().out
    for line in ("kunde", "since weekday", "round 3 of 3: 6 devices", "epsilon 8", "report:"):
        assert line.split()[0] in said
    summary = json.loads((out / "summary.json").read_text())
    assert summary["privacy"]["epsilon"] == pytest.approx(8.0, abs=0.01)
    assert set(summary["scores"]) >= {"start", "alone", "fleet", "fleet_no_privacy", "central", "central_dp"}
    assert [entry["train"] + entry["test"] for entry in summary["by_device"]] == [40] * 6
    page = (out / "report.html").read_text()
    assert "店 3" in page
    assert "$" not in page.replace("$3", "")
    assert not [word for word in ("src=", "<link", "<script", "@import") if word in page]
    assert run(data, *words, "--report", tmp_path / "plain", "--no-masks", "--json") == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["scores"]["fleet"] == summary["scores"]["fleet"]
    for command in summary["next"][:2]:
        arguments = [
            word.replace("fleet-home", str(tmp_path / "home")) for word in shlex.split(command.replace("\\\n", ""))[1:]
        ]
        assert main(arguments) == 0


@pytest.mark.slow
def test_a_task_that_cannot_be_private_is_advice_beside_the_figures_without_privacy(tmp_path, capsys):
    few = rows()[:24]
    data = written(tmp_path / "few.csv", few, ";")
    words = ["--label", "left", "--by", "shop", "--epsilon", "0.001", "--rounds", "2"]
    assert run(data, *words, "--report", tmp_path / "out") == 0
    assert "refused" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["privacy"] is None
    assert summary["refused"]["hint"]
    assert "fleet" not in summary["scores"]
    assert "central" in summary["scores"]


@pytest.mark.slow
def test_privacy_that_is_switched_off_is_named_for_what_it_is(tmp_path, capsys):
    data = written(tmp_path / "off.csv", rows())
    words = ["--label", "left", "--by", "shop", "--epsilon", "none", "--rounds", "2", "--no-masks"]
    assert run(data, *words, "--report", tmp_path / "out") == 0
    assert "PRIVACY IS OFF" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "task.json").read_text())["insecure_without_noise"] is True


def test_a_page_says_where_some_devices_stand_for_all():
    def trial(devices):
        return SimpleNamespace(train=np.ones(devices), test=np.ones(devices))

    assert "200 devices drawn" in page._sampled(trial(300))
    assert not page._sampled(trial(200))
