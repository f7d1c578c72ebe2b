import json

import pytest

from aggregator import tasks
from edge_sdk.artifact.recipes import APPLICATIONS, churn, recipe
from edge_sdk.artifact.recipes.__main__ import main
from edge_sdk.artifact.schema import NumberField


def test_the_task_file_of_a_recipe_is_one_that_the_aggregator_reads(tmp_path, capsys):
    assert main(["churn", "--out", str(tmp_path)]) == 0
    file = tmp_path / "churn.task.json"
    assert tasks.parse_spec(file.read_bytes()) == tasks.build_spec(**churn.TASK)
    assert capsys.readouterr().out.split() == [str(file)]


def test_with_a_schema_the_first_model_is_written_beside_it(tmp_path):
    schema = churn.schema([NumberField("tenure", 30.0, 20.0)], {"contract": ["month", "year"]})
    (tmp_path / "record.json").write_text(schema.to_json())
    assert main(["churn", "--out", str(tmp_path / "out"), "--schema", str(tmp_path / "record.json")]) == 0
    assert (tmp_path / "out" / "churn.onnx").read_bytes() == churn.model(schema, 0)


def test_nothing_is_written_over(tmp_path, capsys):
    (tmp_path / "churn.task.json").write_text("mine")
    assert main(["churn", "--out", str(tmp_path)]) == 1
    assert (tmp_path / "churn.task.json").read_text() == "mine"
    assert "is there already" in capsys.readouterr().err


def test_a_schema_that_does_not_hold_is_refused_before_anything_is_written(tmp_path, capsys):
    (tmp_path / "record.json").write_text(json.dumps({"fields": []}))
    assert main(["churn", "--out", str(tmp_path / "out"), "--schema", str(tmp_path / "record.json")]) == 1
    assert not (tmp_path / "out").exists()
    assert "schema" in capsys.readouterr().err


def test_an_unknown_application_is_refused_naming_those_that_there_are():
    with pytest.raises(ValueError, match=", ".join(APPLICATIONS)):
        recipe("weather")
