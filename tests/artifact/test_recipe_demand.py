import numpy as np
import onnxruntime
import pytest

from aggregator import tasks
from edge_sdk.artifact.errors import SchemaError
from edge_sdk.artifact.features import decide, features, intervals, labels
from edge_sdk.artifact.fields import NumberField
from edge_sdk.artifact.recipes import demand
from edge_sdk.artifact.safety import check_model
from edge_sdk.artifact.weights import read_vector, write_vector
from edge_sdk.training.dp_sgd import train
from edge_sdk.training.module import GraphModule
from edge_sdk.training.plans import training_plan

SCHEMA = demand.schema(more=(NumberField("docks", 17.5, 4.0),))
WEEKS = [100.0, 200.0, 300.0, 400.0, 500.0, 60.0, 70.0] * 4
RECORD = {"recent": WEEKS, "day": "2014-05-05", "site": "70", "kind_of_day": "holiday", "docks": 21.5}


def forecast(model, records, schema=SCHEMA):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, features(schema, records))[0]


def test_a_record_is_its_window_against_its_own_level_then_calendar_kind_of_day_and_the_rest():
    row = features(SCHEMA, [RECORD])["features"][0]
    level = np.log1p(WEEKS).mean()
    assert np.allclose(row[:28], np.log1p(WEEKS) - level, atol=1e-6)
    assert np.allclose(row[28:30], [level / 5, 0.0], atol=1e-6)
    assert row[30:].tolist() == [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("hidden", [0, 32])
def test_the_first_model_repeats_what_comes_after_whole_weeks_at_any_level(hidden):
    model = demand.model(SCHEMA, 3, hidden=hidden)
    check_model(model)
    records = [RECORD, RECORD | {"recent": [value * 50 for value in WEEKS]}, RECORD | {"recent": WEEKS[3:] + WEEKS[:3]}]
    answers = decide(SCHEMA, forecast(model, records), records)
    # The value seven places back, in the window's own unit of log(1 + demand).
    assert [round(ranked[0][1]) for ranked in answers] == [100, 5000, 400]
    assert intervals(SCHEMA, forecast(model, records), records)[0] == pytest.approx((100, 100), rel=1e-4)


def test_a_season_of_five_business_days_begins_five_places_back():
    schema = demand.schema(window=20, calendar=(), days=())
    records = [{"recent": [10.0, 20.0, 30.0, 40.0, 50.0] * 4, "day": "2003-09-01"}]
    answers = decide(schema, forecast(demand.model(schema, 0, season=5), records, schema), records)
    assert answers[0][0][1] == pytest.approx(10.0, rel=1e-4)


def test_a_season_longer_than_the_window_is_refused():
    with pytest.raises(SchemaError, match="a season of 30 does not fit"):
        demand.model(SCHEMA, 0, season=30)


def test_a_private_step_of_the_recipes_task_widens_the_interval_and_lowers_the_loss():
    model, records = demand.model(SCHEMA, 3), [RECORD] * 40
    rng = np.random.default_rng(0)
    targets = labels(SCHEMA, (100 * np.exp(rng.standard_normal(40))).tolist(), records)
    module, terms = GraphModule(model), tasks.settle(tasks.build_spec(**demand.TASK), read_vector(model).size)
    weights = read_vector(model)
    for _ in range(5):
        module.load_vector(weights)
        plan = training_plan(terms, len(records))
        result = train(
            module, features(SCHEMA, records), targets, plan=plan, key=bytes(32), on_step=lambda step, steps: None
        )
        assert result.engine == "bookkeeping"
        assert np.linalg.norm(result.update) <= terms.max_grad_norm * len(records)
        weights = weights + np.float32(0.02 / len(records)) * result.update
    before, after = forecast(model, records), forecast(write_vector(model, weights, {}), records)
    assert pinball(after, targets) < pinball(before, targets)
    low, high = intervals(SCHEMA, after, records)[0]
    assert low < 100 < high


def pinball(outputs, targets):
    error = targets[:, None] - outputs
    levels = np.array(SCHEMA.label.quantiles)
    return np.maximum(levels * error, (levels - 1) * error).sum(1).mean()
