import numpy as np
import torch

from aggregator import tasks
from edge_sdk.artifact.features import features, labels
from edge_sdk.artifact.recipes import satisfaction
from edge_sdk.artifact.safety import check_model
from edge_sdk.artifact.weights import read_vector
from edge_sdk.training.dp_sgd import train
from edge_sdk.training.module import GraphModule
from edge_sdk.training.plans import training_plan

SCHEMA = satisfaction.schema(["food", "wifi"], {"language": ["en", "zh"]})
HAPPY = {"food": 5, "wifi": None, "language": "zh"}
UNHAPPY = {"food": 1, "wifi": 2, "language": None}


def test_each_point_of_a_rating_and_no_answer_have_columns_of_their_own():
    rows = features(SCHEMA, [HAPPY, UNHAPPY])["features"]
    food, wifi, language = rows[:, :7], rows[:, 7:14], rows[:, 14:]
    assert food.tolist() == [[1.0, 0, 0, 0, 0, 0, 1], [-3.0, 0, 1, 0, 0, 0, 0]]
    assert wifi.tolist() == [[0.0, 1, 0, 0, 0, 0, 0], [-2.0, 0, 0, 1, 0, 0, 0]]
    assert language.tolist() == [[0.0, 1, 0, 0], [0.0, 0, 0, 1]]


def test_a_step_of_the_recipes_task_tells_the_satisfied_from_the_others():
    made = satisfaction.model(SCHEMA, 0)
    check_model(made)
    spec = tasks.build_spec(**satisfaction.TASK)
    terms = tasks.settle(spec, read_vector(made).size)
    records, module = [HAPPY, UNHAPPY] * 4, GraphModule(made)
    inputs = features(SCHEMA, records)
    targets = labels(SCHEMA, ["yes", "no"] * 4)
    result = train(
        module, inputs, targets, plan=training_plan(terms, 8), key=bytes(32), on_step=lambda step, steps: None
    )
    module.load_vector(module.update_vector() + np.float32(0.1) * result.update)
    logits = module({"features": torch.from_numpy(inputs["features"])})
    assert logits[0, 0] > 0 > logits[1, 0]


def test_the_task_settles_within_its_epsilon():
    spec = tasks.build_spec(**satisfaction.TASK)
    terms = tasks.settle(spec, SCHEMA.width + 1)
    assert (terms.unit, terms.placement) == ("record", "shared")
    assert 7.9 < tasks.epsilon_after(terms, SCHEMA.width + 1, spec.rounds) <= 8.0
