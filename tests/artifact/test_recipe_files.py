import json

import pytest

from aggregator import tasks
from edge_sdk.artifact.recipes import (
    APPLICATIONS,
    churn,
    demand,
    fitting,
    recipe,
    recommendation,
)
from edge_sdk.artifact.recipes.__main__ import main
from edge_sdk.artifact.recipes.kinds import KINDS
from edge_sdk.artifact.schema import Label, NumberField, Schema, TextField


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


LABELS = {
    "binary": Label("left", "binary", ("no", "yes")),
    "classes": Label("kind", "classes", ("a", "b", "c")),
    "number": Label("visitors", "number"),
}


MISFITS = [(application, kind) for application in APPLICATIONS for kind in LABELS if kind not in KINDS[application]]


def refused(folder, capsys, application, schema):
    """What the command says: the error and the hint."""
    (folder / "record.json").write_text(schema.to_json())
    assert main([application, "--out", str(folder / "out"), "--schema", str(folder / "record.json")]) == 1
    assert not (folder / "out").exists()
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("recipes: error: ")
    assert hint.startswith("recipes: hint: ")
    return error, hint


@pytest.mark.parametrize(("application", "kind"), MISFITS)
def test_a_label_of_another_kind_is_refused_naming_the_recipes_for_it(tmp_path, capsys, application, kind):
    error, hint = refused(tmp_path, capsys, application, Schema((TextField("text", 64),), LABELS[kind]))
    assert f"the recipe {application!r} predicts" in error
    assert f"the label {LABELS[kind].name!r} is" in error
    assert hint.split(": ")[-1].split(", ") == [name for name, kinds in KINDS.items() if kind in kinds]


@pytest.mark.parametrize(
    ("application", "kind", "said"),
    [
        ("demand", "number", ("needs the series that 'visitors' continues", "relative_to")),
        ("recommendation", "number", ("'own' is not there", "recommendation.rating_schema")),
        ("recommendation", "classes", ("'basket' has to be a sequence", "recommendation.schema")),
        ("service", "classes", ("'rain' is none", "leave it out")),
    ],
)
def test_fields_of_another_application_are_refused_with_a_hint(tmp_path, capsys, application, kind, said):
    error, hint = refused(tmp_path, capsys, application, Schema((NumberField("rain"),), LABELS[kind]))
    assert said[0] in error
    assert said[1] in hint


def test_grades_get_the_task_of_grades(tmp_path):
    schema = recommendation.rating_schema(["tea", "jam"], {})
    (tmp_path / "record.json").write_text(schema.to_json())
    out = tmp_path / "out"
    assert main(["recommendation", "--out", str(out), "--schema", str(tmp_path / "record.json")]) == 0
    assert json.loads((out / "recommendation.task.json").read_text())["metric"] == "rmse"


def test_the_recipe_that_fits_a_schema_is_found_by_it():
    assert fitting(recommendation.rating_schema(["tea", "jam"], {})) == "recommendation"
    assert fitting(demand.schema()) == "demand"
    assert fitting(Schema((NumberField("age"),), LABELS["binary"])) == "churn"
    assert fitting(Schema((NumberField("age"),), LABELS["classes"])) is None


def test_an_unknown_application_is_refused_naming_those_that_there_are():
    with pytest.raises(ValueError, match=", ".join(APPLICATIONS)):
        recipe("weather")
