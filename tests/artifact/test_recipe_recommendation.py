import numpy as np
import onnxruntime
import pytest

from aggregator import tasks
from edge_sdk.artifact.errors import SchemaError
from edge_sdk.artifact.features import decide, features, labels
from edge_sdk.artifact.recipes import recommendation
from edge_sdk.artifact.safety import check_model
from edge_sdk.artifact.schema import CategoryField, Label, NumberField, Schema
from edge_sdk.artifact.weights import read_vector
from edge_sdk.training.dp_sgd import train
from edge_sdk.training.module import GraphModule
from edge_sdk.training.plans import training_plan

DESCRIPTIONS = {
    "r1": "red spotted tea cup",
    "r2": "red spotted tea plate",
    "r3": "red spotted tea pot",
    "g1": "garden gnome",
    "g2": "garden lamp",
    "g3": "garden chair",
    "p1": "blue pencil",
    "p2": "green pencil",
}
SCHEMA = recommendation.schema(list(DESCRIPTIONS))
TASTES = recommendation.catalogue(list(DESCRIPTIONS.values()))
RECORD = {"basket": ["r1"], "history": ["p1", "r1"]}
RATINGS = recommendation.rating_schema(["ann", "bob"], {"service": ["0", "1"]}, window=40)
GRADED = {"own": [5, 4, 5], "visitor": "v1", "item": "bob", "service": "0"}


def run(model, schema, records):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, features(schema, records))[0]


def stepped(model, schema, records, answers, task):
    """The weights after one private step of one device."""
    module = GraphModule(model)
    terms = tasks.settle(tasks.build_spec(**task), read_vector(model).size)
    result = train(
        module,
        features(schema, records),
        labels(schema, answers, records),
        plan=training_plan(terms, len(records)),
        key=bytes(32),
        on_step=lambda step, steps: None,
        subjects=np.arange(len(records)) // 2,
    )
    assert result.engine == "bookkeeping"
    return result.update


def test_a_record_is_encoded_by_its_visit_and_all_of_its_history():
    row = features(SCHEMA, [RECORD])["features"][0]
    assert np.flatnonzero(row).tolist() == [0, 9, 9 + 6]  # r1 of the basket; r1 and p1 of the history
    assert row[9] == pytest.approx(0.5**0.5)


def test_before_any_training_the_catalogue_recommends_what_is_alike_and_not_bought_yet():
    model = recommendation.model(SCHEMA, 0, tastes=TASTES)
    check_model(model)
    (ranked,) = decide(SCHEMA, run(model, SCHEMA, [RECORD]), [RECORD])
    names = [name for name, _ in ranked]
    assert set(names[:2]) == {"r2", "r3"}
    assert not {"r1", "p1"} & set(names)


def test_tastes_are_the_square_root_of_likeness():
    likeness = recommendation.catalogue(["a b", "a c", "d e"], 3)
    squared = (likeness @ likeness.T) @ (likeness @ likeness.T)
    near = recommendation.NEIGHBOURS * np.exp(-1 / recommendation.REACH)
    assert np.diag(squared) == pytest.approx(np.full(3, 1 + recommendation.NEIGHBOURS), rel=1e-5)
    assert squared[0, 1] > near  # a shared word beside the neighbouring place
    assert squared[1, 2] == pytest.approx(near, abs=1e-4)  # nothing but the place


def test_bought_items_take_no_part_in_the_loss():
    model = recommendation.model(SCHEMA, 0, tastes=TASTES)
    scores = run(model, SCHEMA, [RECORD])[0]
    assert scores[[0, 6]].tolist() == [recommendation.BOUGHT] * 2
    assert (np.delete(scores, [0, 6]) > recommendation.BOUGHT).all()


@pytest.mark.parametrize("given", [{"tastes": TASTES}, {}, {"tastes": TASTES, "factors": 4}])
def test_a_private_step_of_the_task_moves_every_kind_of_model(given):
    model = recommendation.model(SCHEMA, 3, **given)
    update = stepped(model, SCHEMA, [RECORD] * 8, ["g1"] * 8, recommendation.TASK)
    assert np.isfinite(update).all()
    assert np.linalg.norm(update) > 0


def test_the_first_grade_is_the_visitors_own_level_as_far_as_it_is_known():
    model = recommendation.rating_model(RATINGS, 0)
    check_model(model)
    (few,), (none,) = run(model, RATINGS, [GRADED, GRADED | {"own": []}])
    assert few == pytest.approx(3 / (3 + recommendation.ENOUGH) * (14 / 3 - recommendation.MIDDLE), abs=1e-4)
    assert none == pytest.approx(0.0, abs=1e-5)
    assert decide(RATINGS, np.array([few]), [GRADED])[0][0][1] == pytest.approx(recommendation.MIDDLE + few)


def test_a_private_step_of_the_rating_task_moves_the_items_that_were_graded():
    model = recommendation.model(RATINGS, 0)
    assert model == recommendation.rating_model(RATINGS, 0)
    quiet = recommendation.RATING_TASK | {"target_epsilon": None, "insecure_without_noise": True}
    update = stepped(model, RATINGS, [GRADED] * 8, [5] * 8, quiet)
    ann, bob = update[2], update[3]  # after the two weights of the visitor
    assert ann == 0
    assert bob > 0


@pytest.mark.parametrize("task", [recommendation.TASK, recommendation.RATING_TASK])
def test_the_tasks_settle_within_their_epsilon(task):
    length, spec = 3_800, tasks.build_spec(**task)
    terms = tasks.settle(spec, length)
    assert (terms.unit, terms.placement, terms.steps) == ("customer", "shared", 1)
    assert 7.8 < tasks.epsilon_after(terms, length, spec.rounds) <= 8.0


def test_tastes_of_another_catalogue_and_records_of_another_kind_are_refused():
    with pytest.raises(SchemaError, match="tastes"):
        recommendation.model(SCHEMA, 0, tastes=TASTES[:3])
    other = Schema((NumberField("age"), CategoryField("item", ("a",))), Label("next", "classes", ("a", "b")))
    with pytest.raises(SchemaError, match="basket"):
        recommendation.model(other, 0)
    with pytest.raises(SchemaError, match="own"):
        recommendation.model(Schema((NumberField("age"),), Label("rating", "number")), 0)
