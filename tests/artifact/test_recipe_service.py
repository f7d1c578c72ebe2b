import numpy as np
import pytest
import torch

from aggregator import tasks
from edge_sdk.artifact.features import features, labels
from edge_sdk.artifact.recipes import service
from edge_sdk.artifact.safety import check_model
from edge_sdk.artifact.weights import read_vector
from edge_sdk.training.dp_sgd import train
from edge_sdk.training.module import GraphModule
from edge_sdk.training.plans import training_plan

ENGLISH = service.schema(["card_swallowed", "top_up_failed", "exchange_rate"])
CHINESE = service.schema(["银行卡", "充值", "汇率"], language="zh")
TEXTS = {
    ENGLISH: ["The machine swallowed my card!", "my top up did not go through", "what is the rate for euros?"],
    CHINESE: ["我的卡被吞了", "充值没有成功", "欧元的汇率是多少？"],
}


@pytest.mark.parametrize("schema", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_a_text_has_length_one_whatever_its_language_and_length(schema):
    texts = [*TEXTS[schema], TEXTS[schema][0] * 20]
    rows = features(schema, [{"text": text} for text in texts])["features"]
    assert rows.shape == (4, schema.width)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("schema", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_a_step_of_the_recipes_task_recognises_the_texts_it_saw(schema):
    made = service.model(schema, 0)
    check_model(made)
    terms = tasks.settle(tasks.build_spec(**service.TASK), read_vector(made).size)
    module, inputs = GraphModule(made), features(schema, [{"text": text} for text in TEXTS[schema]])
    result = train(
        module,
        inputs,
        labels(schema, list(schema.label.names)),
        plan=training_plan(terms, 3),
        key=bytes(32),
        on_step=lambda step, steps: None,
        subjects=np.arange(3),
    )
    module.load_vector(module.update_vector() + result.update)
    assert module({"features": torch.from_numpy(inputs["features"])}).argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("intents", [10, 77, 150])
def test_the_task_settles_within_its_epsilon_for_as_many_intents_as_a_bank_has(intents):
    length = intents * (service.WIDTH["en"] + 1)
    spec = tasks.build_spec(**service.TASK)
    terms = tasks.settle(spec, length)
    assert (terms.unit, terms.placement) == ("customer", "shared")
    assert 7.9 < tasks.epsilon_after(terms, length, spec.rounds) <= 8.0


def test_a_threshold_hands_over_no_more_known_texts_than_allowed():
    known, foreign = np.arange(100) / 100, np.array([0.05, 0.09, 0.1, 0.5])
    found = service.refusal(known, foreign, most_lost=0.1)
    assert found == service.Refusal(0.1, 0.5, 0.1)
    assert service.refusal(known, foreign, most_lost=0.0).lost == 0.0
    with pytest.raises(ValueError, match="held-out"):
        service.refusal(known[:0], foreign)


def test_equal_scores_do_not_hand_over_more_than_allowed():
    assert service.refusal(np.full(50, 0.9), np.array([0.1]), most_lost=0.2) == service.Refusal(0.9, 1.0, 0.0)
