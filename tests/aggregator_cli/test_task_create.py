"""`task create` signs nothing and writes nothing until every check has passed, and says what would pass."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from aggregator import cli, task_warnings, tasks
from aggregator.home import Home
from aggregator.releases.repository import Repository
from aggregator.store.schema import open_database
from aggregator.store.store import Store
from edge_sdk.artifact.schema import Label, NumberField, Schema, SequenceField, SeriesField
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.config import Config

FIELDS = (NumberField("age"), NumberField("calls"))
BINARY = Schema(FIELDS, Label("churn", "binary", ("no", "yes")))
CLASSES = Schema(FIELDS, Label("plan", "classes", ("small", "middle", "large")))
NUMBER = Schema(FIELDS, Label("spend", "number", ()))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    place = tmp_path / "home"
    monkeypatch.setenv("AGGREGATOR_HOME", str(place))
    assert cli.main(["init", str(place), "--fleet", "acme", "--port", "0", "--enrol-port", "0"]) == 0
    capsys.readouterr()
    return place


def model_file(folder: Path, schema: Schema = BINARY, hidden: tuple[int, ...] = ()) -> Path:
    path = folder / f"{schema.label.kind}-{len(hidden)}.onnx"
    path.write_bytes(tabular_classifier(schema, hidden, 0))
    return path


def held_out_file(folder: Path, schema: Schema = BINARY) -> Path:
    labels = schema.label.names or (1.5, 2.5)
    records = [{"age": i, "calls": 2 * i, schema.label.name: labels[i % len(labels)]} for i in range(12)]
    path = folder / f"{schema.label.kind}.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def create(*words: object) -> int:
    return cli.main(["task", "create", *map(str, words), "--epsilon", "3"])


def locked(home: Path, task: str = "churn") -> object:
    return Repository(Home(home).releases).locked_graph(task)


def refusal(capsys: pytest.CaptureFixture[str], code: int) -> tuple[str, str]:
    assert code == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("aggregator: error: ")
    assert hint.startswith("aggregator: hint: ")
    return error, hint


def test_a_name_that_is_taken_leaves_the_lock_of_the_running_task(home: Path, tmp_path: Path, capsys) -> None:
    assert create("churn", "--model", model_file(tmp_path)) == 0
    before = locked(home)
    capsys.readouterr()
    error, _ = refusal(capsys, create("churn", "--model", model_file(tmp_path, hidden=(3,))))
    assert "already" in error
    assert locked(home) == before


def test_held_out_records_that_do_not_fit_lock_no_graph(home: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "odd.jsonl").write_text('{"age": 1}\n')
    for name, said in (("odd.jsonl", "do not fit"), ("absent.jsonl", "No such file")):
        words = ("churn", "--model", model_file(tmp_path), "--held-out", tmp_path / name)
        error, _ = refusal(capsys, create(*words))
        assert said in error
    assert locked(home) is None
    assert create("churn", "--model", model_file(tmp_path), "--held-out", held_out_file(tmp_path)) == 0
    assert locked(home) is not None


@pytest.mark.parametrize(
    ("schema", "metric", "offered"),
    [(CLASSES, "auc", "accuracy"), (NUMBER, "accuracy", "mse"), (BINARY, "mse", "auc")],
)
def test_a_metric_that_the_records_do_not_give_is_refused(
    *, home: Path, tmp_path: Path, capsys, schema, metric, offered
):
    words = ("t", "--model", model_file(tmp_path, schema), "--held-out", held_out_file(tmp_path, schema))
    error, hint = refusal(capsys, create(*words, "--metric", metric))
    assert f"give no {metric}" in error
    assert offered in hint
    assert locked(home, "t") is None
    assert create(*words, "--metric", offered) == 0


def test_auc_of_records_of_one_class_is_refused(home: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text('{"age": 1, "calls": 1, "churn": "no"}\n' * 3)
    _, hint = refusal(capsys, create("churn", "--model", model_file(tmp_path), "--held-out", file))
    assert "both among the records" in hint


@pytest.mark.parametrize("epsilon", ["nan", "inf", "-inf"])
def test_an_epsilon_that_is_no_number_is_named(home: Path, tmp_path: Path, capsys, epsilon: str) -> None:
    words = ["task", "create", "churn", "--model", str(model_file(tmp_path)), f"--epsilon={epsilon}"]
    error, hint = refusal(capsys, cli.main(words))
    assert f"target_epsilon is {epsilon}" in error
    assert "finite" in hint


def test_a_name_of_other_letters_is_told_which_letters(home: Path, tmp_path: Path, capsys) -> None:
    error, hint = refusal(capsys, create("X_Y", "--model", model_file(tmp_path)))
    assert "'X_Y'" in error
    assert "a-z, 0-9" in hint
    assert "[a-z" not in error + hint


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x08\x09\x12\x00", bytes(100)])
def test_a_file_that_is_not_onnx_is_refused(home: Path, tmp_path: Path, capsys, content: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    error, hint = refusal(capsys, create("churn", "--model", tmp_path / "bad.onnx"))
    assert "the model is refused" in error
    assert "ONNX" in hint
    assert locked(home) is None


def test_a_cohort_below_what_devices_ask_for_is_warned_of(home: Path, tmp_path: Path, capsys) -> None:
    assert create("few", "--model", model_file(tmp_path), "--n-min", 4) == 0
    warning = capsys.readouterr().err
    assert warning.startswith("aggregator: warning: n_min is 4")
    assert "min_cohort" in warning
    assert create("enough", "--model", model_file(tmp_path), "--n-min", 5) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("words", "setting", "said"),
    [
        (("--epsilon", "6", "--delta", "0.001"), "max_delta", "delta is 0.001"),
        (("--noise-multiplier", "1", "--rounds", "100"), "max_epsilon", "every offer after the first "),
        (("--noise-multiplier", "0.5"), "max_epsilon", "every offer of this task"),
        (
            ("--unit", "device", "--epsilon", "8", "--n-min", "100", "--honest-share", "0.95"),
            "max_honest_share",
            "95 honest devices of 100",
        ),
        (("--insecure-without-noise",), "insecure_without_noise", "no noise"),
    ],
)
def test_a_task_that_devices_refuse_by_default_is_warned_of_before_and_when_it_is_created(
    tmp_path: Path, capsys, words, setting, said
) -> None:
    model = str(model_file(tmp_path))
    for action in ("plan", "create"):
        assert cli.main(["task", action, "churn", "--model", model, "--json", *words]) == 0
        shown = capsys.readouterr()
        (warning,) = json.loads(shown.out)["warnings"]
        assert said in warning
        assert setting in warning
        assert shown.err == f"aggregator: warning: {warning}\n"


WINDOW = Schema(
    (SeriesField("recent", 28, key="site", time="day"),), Label("visitors", "number", relative_to="recent", log=True)
)
HISTORY = Schema(
    (SequenceField("bought", ("tea", "jam"), last=9),), Label("next", "classes", ("tea", "jam"), unseen_of="bought")
)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(("schema", "count"), [(WINDOW, 29), (HISTORY, 10)])
def test_a_unit_of_records_whose_labels_fill_windows_is_warned_of(tmp_path: Path, capsys, schema, count) -> None:
    model = str(model_file(tmp_path, schema))
    for action in ("plan", "create"):
        assert cli.main(["task", action, "demand", "--model", model, "--json", "--epsilon", "3"]) == 0
        (warning,) = json.loads(capsys.readouterr().out)["warnings"]
        assert f"one {schema.label.name!r} may be in up to {count}," in warning
        assert "--unit device" in warning
    assert cli.main(["task", "plan", "other", "--model", model, "--epsilon", "3", "--unit", "device"]) == 0
    assert "may be in up to" not in capsys.readouterr().err


def test_a_series_of_what_is_no_label_is_not_warned_of() -> None:
    assert Schema((SeriesField("minutes", 28),), BINARY.label).reach_of_label == 0


def test_a_model_without_a_record_schema_is_refused_before_anything_is_signed(home, tmp_path: Path, capsys) -> None:
    import onnx

    made = onnx.load_from_string(model_file(tmp_path).read_bytes())
    kept = [each for each in made.metadata_props if each.key != "fl.schema"]
    del made.metadata_props[:]
    made.metadata_props.extend(kept)
    (tmp_path / "bare.onnx").write_bytes(made.SerializeToString())
    error, _ = refusal(capsys, create("bare", "--model", tmp_path / "bare.onnx"))
    assert "record schema" in error
    assert locked(home, "bare") is None


def test_the_warnings_know_the_defaults_of_a_device(tmp_path: Path) -> None:
    device = Config(home=tmp_path)
    assert device.min_cohort == task_warnings.MIN_COHORT
    assert device.max_delta == task_warnings.MAX_DELTA
    assert device.max_epsilon == task_warnings.MAX_EPSILON
    assert device.max_honest_share == task_warnings.MAX_HONEST_SHARE
    assert not device.insecure_without_noise


def test_a_plan_says_what_would_be_settled_for_each_unit_and_creates_nothing(
    home: Path, tmp_path: Path, capsys
) -> None:
    words = ("task", "plan", "--model", str(model_file(tmp_path)), "--epsilon", "3", "--n-max", "50")
    assert cli.main([*words, "--unit", "customer", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["privacy"]["epsilon"] == pytest.approx(3.0, rel=0.005)
    assert planned["headroom_used"] < 1
    others = {(other["unit"], other["placement"]): other for other in planned["others"]}
    assert len(others) == 5
    assert others["record", "shared"]["privacy"]["honest_devices_assumed"] == 4
    assert cli.main([*words, "--unit", "device", "--language", "zh"]) == 0
    assert "ε = 3" in capsys.readouterr().out
    error, _ = refusal(capsys, cli.main([*words, "--honest-share", "0.1", "--unit", "device"]))
    assert "too few to share noise" in error
    assert list(Home(home).checkpoints.glob("*")) == []
    assert locked(home) is None


def test_a_whole_task_is_read_from_a_file_and_options_override_it(home: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "churn.json"
    spec = tasks.build_spec(name="any", noise_multiplier=1.0, rounds=7, unit="device", server_optimizer="yogi")
    file.write_bytes(msgspec.json.encode(spec))
    model = model_file(tmp_path)
    assert create("churn", "--model", model, "--spec", file, "--rounds", 4, "--accept-little-signal") == 0
    connection = open_database(Home(home).database)
    made = tasks.parse_spec(Store(connection).task("churn").spec)
    connection.close()
    said = (made.name, made.rounds, made.unit, made.server_optimizer, made.target_epsilon, made.noise_multiplier)
    assert said == ("churn", 4, "device", "yogi", 3.0, None)


@pytest.mark.parametrize("text", ["", "[]", '{"rounds": 3', "nothing"])
def test_a_task_file_that_is_none_is_refused(home: Path, tmp_path: Path, capsys, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    error, hint = refusal(capsys, create("t", "--model", model_file(tmp_path), "--spec", tmp_path / "t.json"))
    assert "cannot read the task file" in error
    assert "JSON object" in hint


def test_a_field_of_the_task_file_that_nobody_knows_is_named(home: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "t.json").write_text('{"colour": "red"}')
    error, _ = refusal(capsys, create("t", "--model", model_file(tmp_path), "--spec", tmp_path / "t.json"))
    assert "colour" in error


def test_a_task_is_shown_with_what_differs_from_the_defaults_and_its_json_makes_another(home, tmp_path, capsys) -> None:
    model = model_file(tmp_path)
    assert create("one", "--model", model, "--unit", "device", "--server-optimizer", "adam", "--buffer", 7) == 0
    capsys.readouterr()
    assert cli.main(["task", "describe", "one"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"* server_optimizer: adam", "* buffer: 7", "  server_momentum: 0.9", "  clip: not given"} <= set(lines)
    assert cli.main(["task", "describe", "one", "--json"]) == 0
    (tmp_path / "one.json").write_text(capsys.readouterr().out)
    assert cli.main(["task", "create", "two", "--model", str(model), "--spec", str(tmp_path / "one.json")]) == 0
    capsys.readouterr()
    assert cli.main(["task", "describe", "two"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == lines[1:]
    error, _ = refusal(capsys, cli.main(["task", "describe", "none"]))
    assert "no task 'none'" in error
