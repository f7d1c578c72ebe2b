"""Weights to a vector and back, the same bytes on both sides, and the digest that locks the graph."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from edge_sdk.artifact.errors import UnsafeModel, WrongVector
from edge_sdk.artifact.graph_lock import graph_digest
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.weights import metadata, read_vector, trainable, write_vector

SCHEMA = Schema((NumberField("age"), NumberField("calls")), Label("churn", "binary", ("no", "yes")))
MODEL = tabular_classifier(SCHEMA, (3,), seed=7)
SIZE = 3 * 2 + 3 + 3 + 1


def by_onnx(data):
    """The slow oracle: the same vector by the official library."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(data).graph.initializer}
    return np.concatenate([tensors[name].reshape(-1) for name, _ in trainable(data)])


def edited(edit):
    model = onnx.load_from_string(MODEL)
    edit(model)
    return model.SerializeToString()


def test_the_vector_is_the_one_the_official_library_reads():
    assert [shape for _, shape in trainable(MODEL)] == [(3, 2), (3,), (1, 3), (1,)]
    assert read_vector(MODEL).dtype == np.float32
    np.testing.assert_array_equal(read_vector(MODEL), by_onnx(MODEL))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=SIZE, max_size=SIZE))
def test_a_written_vector_is_read_back_exactly(values):
    vector = np.array(values, np.float32)
    data = write_vector(MODEL, vector, {"fl.round": "9"})
    assert read_vector(data).tobytes() == vector.tobytes()
    assert by_onnx(data).tobytes() == vector.tobytes()
    assert metadata(data)["fl.round"] == "9"
    onnx.checker.check_model(onnx.load_from_string(data))


def test_both_sides_write_the_same_bytes_whatever_the_order_of_metadata_and_history():
    vector = np.arange(SIZE, dtype=np.float32)
    once = write_vector(MODEL, vector, {"b": "2", "a": "1"})
    detour = write_vector(write_vector(MODEL, vector * 3, {"a": "0"}), vector, {"a": "1", "b": "2"})
    assert once == detour


def test_the_written_model_computes_with_the_new_weights():
    vector = np.arange(SIZE, dtype=np.float32)
    session = onnxruntime.InferenceSession(write_vector(MODEL, vector, {"fl.round": "1"}))
    x = np.array([[1.0, 2.0]], np.float32)
    w1, b1, w2, b2 = vector[:6].reshape(3, 2), vector[6:9], vector[9:12].reshape(1, 3), vector[12:]
    np.testing.assert_allclose(session.run(None, {"features": x})[0], np.maximum(x @ w1.T + b1, 0) @ w2.T + b2)
    assert session.get_modelmeta().custom_metadata_map["fl.round"] == "1"


@pytest.mark.parametrize("shape", [(SIZE - 1,), (SIZE + 1,), (0,), (1, SIZE)])
def test_a_vector_of_the_wrong_length_is_refused_and_says_so(shape):
    with pytest.raises(WrongVector, match=rf"{SIZE} trainable weights") as refusal:
        write_vector(MODEL, np.zeros(shape, np.float32), {})
    assert refusal.value.reason == "wrong-length"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_refused(value):
    vector = np.zeros(SIZE, np.float32)
    vector[4] = value
    with pytest.raises(WrongVector, match="1 of 13") as refusal:
        write_vector(MODEL, vector, {})
    assert refusal.value.reason == "not-finite"


def test_locked_metadata_cannot_be_rewritten_with_the_weights():
    with pytest.raises(WrongVector) as refusal:
        write_vector(MODEL, read_vector(MODEL), {"fl.loss": "mse"})
    assert refusal.value.reason == "locked-metadata"


def test_a_model_without_a_trainable_list_has_no_vector():
    def drop(model):
        del model.metadata_props[:]

    with pytest.raises(UnsafeModel, match=r"fl\.trainable"):
        read_vector(edited(drop))


def test_the_digest_is_the_same_across_rounds():
    later = write_vector(MODEL, read_vector(MODEL) + 1, {"fl.round": "12", "fl.lineage": "ab"})
    assert graph_digest(later) == graph_digest(MODEL)
    assert len(graph_digest(MODEL)) == 32


def change_operation(model):
    model.graph.node[1].op_type = "Tanh"


def change_attribute(model):
    model.graph.node[0].attribute[0].i = 0


def change_schema(model):
    helper.set_model_props(model, {**{p.key: p.value for p in model.metadata_props}, "fl.schema": "{}"})


def change_dims(model):
    model.graph.initializer[0].dims[:] = [2, 3]


def change_producer(model):
    model.producer_name = "somebody"


@pytest.mark.parametrize("edit", [change_operation, change_attribute, change_schema, change_dims, change_producer])
def test_the_digest_changes_with_anything_but_weights_and_free_metadata(edit):
    assert graph_digest(edited(edit)) != graph_digest(MODEL)


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_the_digest_covers_constants_that_are_not_trained(dtype):
    def with_constant(value):
        return edited(
            lambda model: model.graph.initializer.append(numpy_helper.from_array(np.array([value], dtype), "constant"))
        )

    assert graph_digest(with_constant(1)) != graph_digest(with_constant(2))


def test_the_digest_changes_where_a_weight_leaves_the_trainable_list():
    def shorten(model):
        helper.set_model_props(model, {"fl.trainable": '["layer0.weight"]'})

    assert graph_digest(edited(shorten)) != graph_digest(MODEL)
