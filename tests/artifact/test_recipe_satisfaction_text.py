import numpy as np
import pytest
import torch

from aggregator import tasks
from edge_sdk.artifact.features import features, labels
from edge_sdk.artifact.recipes import satisfaction_text
from edge_sdk.artifact.safety import check_model
from edge_sdk.artifact.weights import read_vector
from edge_sdk.training.dp_sgd import train
from edge_sdk.training.module import GraphModule
from edge_sdk.training.plans import training_plan

REVIEWS = satisfaction_text.schema(language="zh")
TWEETS = satisfaction_text.schema(("negative", "neutral", "positive"))


def test_two_answers_make_a_binary_label_and_three_make_classes():
    assert (REVIEWS.label.kind, REVIEWS.label.outputs) == ("binary", 1)
    assert (TWEETS.label.kind, TWEETS.label.outputs) == ("classes", 3)


def test_a_step_of_the_recipes_task_tells_a_good_chinese_review_from_a_bad_one():
    made = satisfaction_text.model(REVIEWS, 0)
    check_model(made)
    terms = tasks.settle(tasks.build_spec(**satisfaction_text.TASK), read_vector(made).size)
    module, inputs = (
        GraphModule(made),
        features(REVIEWS, [{"text": "水果很新鲜，物流快"}, {"text": "屏幕坏了，很失望"}]),
    )
    result = train(
        module,
        inputs,
        labels(REVIEWS, ["positive", "negative"]),
        plan=training_plan(terms, 2),
        key=bytes(32),
        on_step=lambda step, steps: None,
    )
    module.load_vector(module.update_vector() + result.update)
    logits = module({"features": torch.from_numpy(inputs["features"])})
    assert logits[0, 0] > 0 > logits[1, 0]


@pytest.mark.parametrize("schema", [REVIEWS, TWEETS], ids=["binary", "classes"])
def test_the_task_settles_within_its_epsilon(schema):
    length = (schema.width + 1) * schema.label.outputs
    spec = tasks.build_spec(**satisfaction_text.TASK)
    terms = tasks.settle(spec, length)
    assert (terms.unit, terms.placement) == ("record", "shared")
    assert 7.9 < tasks.epsilon_after(terms, length, spec.rounds) <= 8.0


def test_what_is_hashed_of_a_text_does_not_depend_on_its_width_of_letters():
    rows = features(REVIEWS, [{"text": "质量ＯＫ"}, {"text": "质量ok"}])["features"]
    assert np.array_equal(rows[0], rows[1])
