import numpy as np
import pytest

from edge_sdk.artifact.errors import RecordError
from edge_sdk.artifact.pushes import pushes
from edge_sdk.artifact.schema import CategoryField, Label, NumberField, Schema, column_spans

FIELDS = (
    NumberField("calls", 2.0, 0.5),
    CategoryField("plan", ("basic", "large")),
    NumberField("tenure", 10.0, 5.0, missing=True, edges=(6.0, 12.0)),
)
CHURN = Schema(FIELDS, Label("churn", "binary", ("no", "yes")))
RECORD = {"calls": 4.0, "plan": "large", "tenure": 5.0}
# calls, [basic, large, other], [value, missing, below 6, 6 to 12, above]
WEIGHTS = np.array([0.5, -1.0, 1.5, 0.0, -0.3, 0.2, 0.4, 0.0, -0.4], np.float32)


def linear(rows):
    return rows @ WEIGHTS[:, None] - 0.7


def test_a_push_in_a_linear_model_is_weight_times_value_of_the_fields_columns():
    found = dict(pushes(CHURN, linear, RECORD))
    assert found == pytest.approx({"calls": 0.5 * 4.0, "plan": 1.5, "tenure": -0.3 * -1.0 + 0.4})


def test_pushes_of_a_linear_model_and_its_bias_add_up_to_the_logit():
    encoded = np.array([[4.0, 0, 1, 0, -1.0, 0, 1, 0, 0]], np.float32)
    assert sum(push for _, push in pushes(CHURN, linear, RECORD)) - 0.7 == pytest.approx(float(linear(encoded)[0, 0]))


def test_the_strongest_push_comes_first_whatever_its_sign():
    found = pushes(CHURN, linear, {"calls": 0.5, "plan": "basic", "tenure": None})
    assert [name for name, _ in found] == ["calls", "plan", "tenure"]
    assert [push for _, push in found] == pytest.approx([-1.5, -1.0, 0.2])


def test_against_a_record_a_field_with_the_same_value_pushes_nothing():
    neutral = {"calls": 3.0, "plan": "large", "tenure": 20.0}
    found = dict(pushes(CHURN, linear, RECORD, neutral))
    assert found == pytest.approx({"calls": 0.5 * 2.0, "plan": 0.0, "tenure": -0.3 * (-1.0 - 2.0) + 0.4 + 0.4})


def test_fields_that_only_count_together_each_push_the_whole_of_it():
    spans = column_spans(CHURN)

    def both(rows):
        return (rows[:, spans["calls"]][:, 0] * rows[:, spans["plan"]][:, 1])[:, None]

    assert dict(pushes(CHURN, both, RECORD)) == pytest.approx({"calls": 4.0, "plan": 4.0, "tenure": 0.0})


def test_of_several_classes_the_predicted_one_is_explained():
    schema = Schema(FIELDS, Label("reason", "classes", ("price", "service", "move")))
    table = np.zeros((schema.width, 3), np.float32)
    table[0] = [1.0, 2.0, -1.0]
    assert dict(pushes(schema, lambda rows: rows @ table, RECORD))["calls"] == pytest.approx(8.0)


def test_of_quantiles_the_median_is_explained():
    schema = Schema(FIELDS, Label("spend", "number", quantiles=(0.1, 0.5, 0.9)))
    table = np.zeros((schema.width, 3), np.float32)
    table[0] = [9.0, 2.0, -1.0]
    assert dict(pushes(schema, lambda rows: rows @ table, RECORD))["calls"] == pytest.approx(8.0)


def test_the_model_is_asked_once_for_all_fields():
    shapes = []
    pushes(CHURN, lambda rows: (shapes.append(rows.shape), linear(rows))[1], RECORD)
    assert shapes == [(4, CHURN.width)]


def test_a_record_that_does_not_fit_is_refused_by_name():
    with pytest.raises(RecordError, match="calls"):
        pushes(CHURN, linear, {"plan": "basic", "tenure": 1.0})
    with pytest.raises(RecordError, match="plan"):
        pushes(CHURN, linear, RECORD, {"calls": 1.0, "plan": 7, "tenure": 1.0})
