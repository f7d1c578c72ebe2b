import numpy as np
import onnxruntime
import pytest
import torch

from aggregator import tasks
from edge_sdk.artifact.errors import SchemaError
from edge_sdk.artifact.features import features, labels
from edge_sdk.artifact.recipes import churn
from edge_sdk.artifact.safety import check_model
from edge_sdk.artifact.schema import NumberField
from edge_sdk.artifact.weights import read_vector
from edge_sdk.training.dp_sgd import train
from edge_sdk.training.module import GraphModule
from edge_sdk.training.plans import training_plan

SCHEMA = churn.schema(
    [NumberField("tenure", 30.0, 20.0), NumberField("gap", 4.0, 1.0, log=True, missing=True, edges=(10.0, 50.0))],
    {"contract": ["month", "year"], "offer": ["a", "b"]},
    missing=["offer"],
)
RECORD = {"tenure": 50.0, "gap": None, "contract": "month", "offer": None}


def test_a_record_is_encoded_with_intervals_missing_values_and_other_words():
    row = features(SCHEMA, [RECORD])["features"]
    #                                tenure, gap, missing, its intervals, contract + other, offer + other, missing
    assert row.tolist() == [[1.0, *[0.0, 1.0, 0.0, 0.0, 0.0], *[1.0, 0.0, 0.0], *[0.0, 0.0, 0.0, 1.0]]]


@pytest.mark.parametrize("model", [churn.model, churn.bent_model])
def test_the_first_model_is_safe_and_has_no_opinion(model):
    made = model(SCHEMA, 3)
    check_model(made)
    session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
    assert session.run(None, features(SCHEMA, [RECORD]))[0].tolist() == [[0.0]]


@pytest.mark.parametrize("model", [churn.model, churn.bent_model])
def test_a_step_of_the_recipes_task_moves_towards_the_customers_who_left(model):
    made = model(SCHEMA, 3)
    records = [dict(RECORD, tenure=float(10 + 80 * (place % 2))) for place in range(8)]
    answers = ["yes" if place % 2 == 0 else "no" for place in range(8)]
    module = GraphModule(made)
    spec = tasks.build_spec(**churn.TASK)
    terms = tasks.settle(spec, read_vector(made).size)
    result = train(
        module,
        features(SCHEMA, records),
        labels(SCHEMA, answers),
        plan=training_plan(terms, len(records)),
        key=bytes(32),
        on_step=lambda step, steps: None,
        subjects=np.arange(8),
    )
    assert result.engine == "bookkeeping"
    assert np.linalg.norm(result.update) > 0
    module.load_vector(module.update_vector() + 0.1 * result.update)
    logits = module({"features": torch.from_numpy(features(SCHEMA, records[:2])["features"])})
    assert logits[0, 0] > logits[1, 0]


def test_the_task_settles_within_its_epsilon():
    spec = tasks.build_spec(**churn.TASK)
    terms = tasks.settle(spec, read_vector(churn.model(SCHEMA, 0)).size)
    assert (terms.unit, terms.placement, terms.steps) == ("customer", "shared", 1)
    assert 7.9 < tasks.epsilon_after(terms, SCHEMA.width + 1, spec.rounds) <= 8.0


def test_words_without_a_vocabulary_are_refused():
    with pytest.raises(SchemaError, match="contract"):
        churn.schema([NumberField("tenure")], {"contract": []})
