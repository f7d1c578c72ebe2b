"""Records to tensors and logits to answers; every record that does not fit is refused by name."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from edge_sdk.artifact.errors import RecordError, SchemaError
from edge_sdk.artifact.features import decide, features, labels
from edge_sdk.artifact.schema import CategoryField, Label, NumberField, Schema
from edge_sdk.artifact.starter import fourier_classifier, tabular_classifier
from edge_sdk.artifact.weights import trainable, write_vector

FIELDS = (NumberField("age", 40.0, 10.0), CategoryField("plan", ("gold", "basic")))
BINARY = Schema(FIELDS, Label("churn", "binary", ("stays", "leaves")))
CLASSES = Schema(FIELDS, Label("intent", "classes", ("card", "loan", "other")))
NUMBER = Schema(FIELDS, Label("minutes", "number", (), 100.0, 50.0))


def test_a_record_becomes_standardised_numbers_and_one_hot_words():
    rows = [{"age": 50, "plan": "basic"}, {"age": 35.0, "plan": "platinum"}]
    matrix = features(BINARY, rows)["features"]
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, [[1.0, 0, 1, 0], [-0.5, 0, 0, 1]])


def test_a_number_far_from_all_others_counts_as_a_million_scales():
    rows = [{"age": age, "plan": "basic"} for age in (1e9, -1e9, 1e300, -1.7e308, 10_000_000)]
    ages = features(BINARY, rows)["features"][:, 0]
    np.testing.assert_array_equal(ages, [1e6, -1e6, 1e6, -1e6, 999_996.0])
    assert labels(NUMBER, [1e12, -1e300]).tolist() == [1e6, -1e6]
    tiny = Schema((NumberField("age", -1e308, 1e-300),), NUMBER.label)
    assert features(tiny, [{"age": 1.7e308}])["features"].tolist() == [[1e6]]


def test_no_records_give_an_empty_matrix():
    assert features(BINARY, [])["features"].shape == (0, 4)


BAD = [
    ({"age": 50}, "missing-field", "'plan' is missing.*gold"),
    ({"age": 50, "plan": "gold", "name": "x"}, "extra-field", "'name'"),
    ({"age": "old", "plan": "gold"}, "wrong-type", "'age' must be a finite number"),
    ({"age": True, "plan": "gold"}, "wrong-type", "'age'"),
    ({"age": None, "plan": "gold"}, "wrong-type", "'age'"),
    ({"age": float("nan"), "plan": "gold"}, "not-finite", "'age'"),
    ({"age": float("inf"), "plan": "gold"}, "not-finite", "'age'"),
    ({"age": 10**400, "plan": "gold"}, "not-finite", "'age'"),
    ({"age": 50, "plan": 3}, "wrong-type", "'plan' must be a text"),
]


@pytest.mark.parametrize(("record", "reason", "words"), BAD)
def test_a_record_that_does_not_fit_is_refused_by_name(record, reason, words):
    with pytest.raises(RecordError, match=words) as refusal:
        features(BINARY, [{"age": 1, "plan": "gold"}, record])
    assert refusal.value.reason == reason


def test_labels_have_the_type_that_the_loss_needs():
    assert labels(BINARY, ["leaves", "stays"]).tolist() == [1.0, 0.0]
    assert labels(BINARY, ["leaves"]).dtype == np.float32
    assert labels(CLASSES, ["other", "card"]).tolist() == [2, 0]
    assert labels(CLASSES, ["card"]).dtype == np.int64
    assert labels(NUMBER, [150, 75]).tolist() == [1.0, -0.5]


@pytest.mark.parametrize(
    ("schema", "value"), [(BINARY, "maybe"), (CLASSES, 1), (NUMBER, "ten"), (NUMBER, float("nan"))]
)
def test_a_label_outside_the_schema_is_refused(schema, value):
    with pytest.raises(RecordError, match=schema.label.name):
        labels(schema, [value])


def test_decisions_are_probabilities_from_best_to_worst():
    ((first, second),) = decide(BINARY, np.array([[1.5]], np.float32))
    assert first == ("leaves", pytest.approx(1 / (1 + np.exp(-1.5))))
    assert second == ("stays", pytest.approx(1 / (1 + np.exp(1.5))))
    rows = decide(CLASSES, np.array([[0.0, 2.0, 1.0], [900.0, 0.0, -900.0]]))
    assert [name for name, _ in rows[0]] == ["loan", "other", "card"]
    assert sum(score for _, score in rows[0]) == pytest.approx(1)
    assert rows[1][0] == ("card", 1.0)
    assert decide(NUMBER, np.array([[-1.0]])) == [[("minutes", 50.0)]]


@pytest.mark.parametrize("schema", [BINARY, CLASSES, NUMBER])
def test_a_schema_survives_its_json(schema):
    assert Schema.from_json(schema.to_json()) == schema
    assert Schema.from_json(schema.to_json()).to_json() == schema.to_json()


@pytest.mark.parametrize(
    "schema",
    [
        Schema((), BINARY.label),
        Schema((NumberField("x"), NumberField("x")), BINARY.label),
        Schema((NumberField("churn"),), BINARY.label),
        Schema((NumberField("x", 0.0, 0.0),), BINARY.label),
        Schema((NumberField("x", float("nan"), 1.0),), BINARY.label),
        Schema((CategoryField("x", ()),), BINARY.label),
        Schema((CategoryField("x", ("a", "a")),), BINARY.label),
        Schema(FIELDS, Label("y", "binary", ("one",))),
        Schema(FIELDS, Label("y", "classes", ("a", "a"))),
        Schema(FIELDS, Label("y", "number", ("a",))),
    ],
)
def test_a_schema_that_cannot_be_encoded_is_refused(schema):
    with pytest.raises(SchemaError):
        tabular_classifier(schema, (), seed=0)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"fields":[],"label":{}}', '{"fields":[{"kind":"sound"}]}'])
def test_a_schema_that_is_not_one_is_refused(text):
    with pytest.raises(SchemaError):
        Schema.from_json(text)


@pytest.mark.parametrize(("schema", "outputs"), [(BINARY, 1), (CLASSES, 3), (NUMBER, 1)])
@pytest.mark.parametrize("hidden", [(), (5,), (6, 4)])
def test_a_starter_model_runs_and_starts_without_a_preference(schema, outputs, hidden):
    data = tabular_classifier(schema, hidden, seed=3)
    inputs = features(schema, [{"age": 50, "plan": "basic"}] * 2)
    (logits,) = onnxruntime.InferenceSession(data).run(["logits"], inputs)
    np.testing.assert_array_equal(logits, np.zeros((2, outputs), np.float32))


def test_the_same_seed_gives_the_same_bytes_for_ever():
    data = tabular_classifier(BINARY, (4,), seed=1)
    assert data == tabular_classifier(BINARY, (4,), seed=1)
    assert data != tabular_classifier(BINARY, (4,), seed=2)
    assert hashlib.sha256(data).hexdigest()[:16] == "1aae17b8c944d858"


def test_fourier_features_approximate_the_gaussian_kernel_and_only_the_head_is_trained():
    data = fourier_classifier(BINARY, width=4096, bandwidth=0.5, seed=3)
    assert trainable(data) == [("head.weight", (1, 4096)), ("head.bias", (1,))]
    columns = BINARY.width
    rows = np.random.default_rng(0).standard_normal((6, columns)).astype(np.float32)
    # A head that holds phi(rows[0]) gives phi(rows[0]) . phi(x), which is exp(-|bandwidth (rows[0] - x)|^2 / 2).
    constants = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(data).graph.initializer}
    phi = np.sqrt(2 / 4096) * np.cos(rows @ constants["features.weight"].T + constants["features.phase"])
    model = write_vector(data, np.append(phi[0], 0.0).astype(np.float32))
    session = onnxruntime.InferenceSession(model)
    expected = np.exp(-0.5 * (0.5 * np.linalg.norm(rows - rows[0], axis=1)) ** 2)
    np.testing.assert_allclose(session.run(None, {"features": rows})[0][:, 0], expected, atol=0.08)
