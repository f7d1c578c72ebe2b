"""The runs of `benchmarks/applications.py` on rows made here, and its tabular sets where the data are there."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from aggregator.metrics import auc
from benchmarks.applications import folded
from benchmarks.applying import satisfaction
from benchmarks.applying.churn import SETS as CHURN
from benchmarks.applying.dataset import Dataset, Rows, data_directory, every_fifth, subject_numbers
from benchmarks.applying.running import RUNS, Bench
from benchmarks.applying.satisfaction import SETS as SURVEYS
from benchmarks.applying.scaling import number, one_digit
from edge_sdk.artifact.features import column_spans, features
from edge_sdk.artifact.recipes import churn
from edge_sdk.artifact.schema import NumberField

TABULAR = CHURN | SURVEYS
SCHEMA = churn.schema([NumberField("calls"), NumberField("tenure")], {"plan": ["a"]})
FLEET = {
    "unit": "record", "placement": "shared", "rounds": 5, "sample_rate": 1.0, "n_min": 3, "units_per_device": 40,
    "max_grad_norm": 4.0, "learning_rate": 1.0, "profile": "P32",
}  # fmt: skip


def made_rows(count, seed):
    rng = np.random.default_rng(seed)
    records = [{"calls": float(rng.normal()), "tenure": float(rng.normal()), "plan": "a"} for _ in range(count)]
    answers = ["yes" if record["calls"] - record["tenure"] + rng.normal() > 0 else "no" for record in records]
    return Rows(records, answers, [f"shop-{place % 3}" for place in range(count)])


def made_set(**settings):
    train = made_rows(120, 1)
    return Dataset(
        name="made",
        application="churn",
        metric="auc",
        higher_is_better=True,
        schema=SCHEMA,
        model=lambda seed: churn.model(SCHEMA, seed),
        train=train,
        validation=every_fifth(len(train)),
        test=made_rows(90, 2),
        baseline=0.8,
        baseline_words="made",
        unit="record",
        settings=settings,
    )


WITHOUT = {**FLEET, "insecure_without_noise": True}


def test_a_fleet_of_one_step_rounds_learns_what_one_centre_learns():
    bench = Bench(made_set(no_privacy=WITHOUT))
    fleet, centre = bench.run("fleet", 0), bench.run("central", 0)
    assert fleet[""] == pytest.approx(centre[""], abs=0.03)
    assert fleet[""] > 0.7


def test_a_private_fleet_and_a_private_centre_are_run_by_the_same_setting():
    bench = Bench(made_set(eps8_shared={**FLEET, "target_epsilon": 8.0}))
    assert bench.run("shared_eps8", 1)[""] == pytest.approx(bench.run("central_dp_eps8", 1)[""], abs=0.1)


def test_what_a_set_has_no_setting_for_is_left_out():
    bench = Bench(made_set(no_privacy=WITHOUT))
    assert [run for run in RUNS if "eps" in run and bench.run(run, 0) is not None] == []


def test_a_clients_rows_are_answered_by_its_own_model_and_scored_together():
    bench = Bench(made_set(no_privacy=WITHOUT))
    outputs = np.zeros((90, 1))
    clients = np.array(bench.scored.clients)
    rng = np.random.default_rng(4)
    models = {0: rng.normal(size=30), 2: rng.normal(size=30)}  # the client in the middle has no model
    for place, scores in models.items():
        outputs[clients == f"shop-{place}", 0] = scores
    known, truth = clients != "shop-1", bench.heldout.targets.astype(np.int64)
    outputs[~known] = np.nan
    found = bench._figures(outputs)
    assert found[""] == pytest.approx(auc(outputs[known, 0], truth[known]))
    each = [auc(scores, truth[clients == f"shop-{place}"]) for place, scores in models.items()]
    assert found["by_client"] == pytest.approx(np.mean(each))


def test_validating_trains_without_the_validation_rows_and_does_not_look_at_the_test_rows():
    dataset = made_set(no_privacy=WITHOUT)
    bench = Bench(dataset, validating=True)
    held = [record for record, chosen in zip(dataset.train.records, dataset.validation, strict=True) if chosen]
    assert list(bench.scored.records) == held
    assert len(bench.population.labels) == len(dataset.train) - len(held)


def test_the_validation_part_is_a_fifth_that_never_changes():
    assert every_fifth(10).tolist() == [False, False, False, False, False, False, True, False, False, False]
    assert 0.17 < every_fifth(4000).mean() < 0.23


def test_the_other_fifths_hold_the_other_rows_each_once():
    assert np.sum([every_fifth(200, fold) for fold in range(5)], axis=0).tolist() == [1] * 200
    other = folded(made_set(no_privacy=WITHOUT), 3)
    assert other.validation.tolist() == every_fifth(120, 3).tolist()


def test_validation_rows_that_have_their_place_cannot_be_folded():
    ordered = replace(made_set(), validation=np.arange(120) > 100)
    with pytest.raises(SystemExit, match="no other fold"):
        folded(ordered, 1)


def test_settings_that_nobody_reads_are_refused():
    with pytest.raises(ValueError, match="eps5_shared"):
        made_set(eps5_shared=FLEET)


def test_rows_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="one entry a row"):
        Rows([{}], ["yes"], ["a", "b"])
    with pytest.raises(ValueError, match="one entry a row"):
        Rows([{}], ["yes"], ["a"], np.zeros(2, np.int64))


def test_the_same_name_is_the_same_subject():
    assert subject_numbers(["b", "a", "b"]).tolist() == [0, 1, 0]


def test_scales_are_round_figures():
    assert [one_digit(value) for value in (0.0, 0.0347, -187.0, 4.6)] == [0.0, 0.03, -200.0, 5.0]
    field = number("spend", [0.0, np.e - 1, np.e**2 - 1, None, float("nan")], log=True, missing=True)
    assert (field.mean, field.scale) == (1.0, 0.8)


@pytest.mark.parametrize("name", [name for name in TABULAR if name != "churn_telco_client9"])
def test_a_tabular_set_has_its_rows_and_none_that_give_the_label_away(name):
    folder = data_directory()
    if folder is None:
        pytest.skip("the data sets are not beside the repository: set CHORALE_DATA")
    dataset = TABULAR[name](folder)
    sizes = {"churn_mlc": (3977, 51), "churn_online_retail": (2658, 10), "satisfaction_sfo": (12007, 7)}
    sizes |= {"churn_telco": (5717, 4)}
    assert (len(dataset.train), len(set(dataset.train.clients))) == sizes[name]
    used = {field.name for field in dataset.schema.fields}
    assert not used & {"churn", "Churn", "overall", "satisfied", "split", "customerID", "customer_id", "client"}
    bench = Bench(dataset, validating=True)
    assert np.linalg.norm(bench.population.features, axis=1).mean() < 10
    assert {bench.spec(setting).unit for setting in dataset.settings} == {"record"}


def test_a_code_that_only_test_rows_hold_is_none_of_the_vocabulary(tmp_path):
    columns = [*satisfaction._RATINGS, *satisfaction._CODES, "satisfied"]
    table = pd.DataFrame({name: [1, 2, 3] * 4 for name in columns})
    table = table.assign(client="a", split=["train"] * 9 + ["test"] * 3, lang=[1, 2] * 4 + [1, 9, 9, 9], satisfied=1)
    (tmp_path / "satisfaction_sfo").mkdir()
    table.to_csv(tmp_path / "satisfaction_sfo" / "survey.csv.gz")
    made = SURVEYS["satisfaction_sfo"](tmp_path)
    (lang,) = [field for field in made.schema.fields if field.name == "lang"]
    assert lang.vocabulary == ("1", "2")
    other = features(made.schema, made.test.records)["features"][:, column_spans(made.schema)["lang"]]
    assert other[:, 2].tolist() == [1.0, 1.0, 1.0]
