"""Every hostile file is refused with UnsafeModel and its reason, and nothing else ever escapes."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge_sdk.artifact.errors import UnsafeModel
from edge_sdk.artifact.safety import check_model
from edge_sdk.artifact.schema import CategoryField, Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.wire import write_bytes, write_varint

SCHEMA = Schema((NumberField("age"), CategoryField("plan", ("gold", "basic"))), Label("churn", "binary", ("no", "yes")))
GOOD = tabular_classifier(SCHEMA, (4,), seed=1)


def changed(edit):
    model = onnx.load_from_string(GOOD)
    edit(model)
    return model.SerializeToString()


def add_node(model, op, inputs=("features",), domain="", **attributes):
    model.graph.node.append(helper.make_node(op, list(inputs), [f"extra{len(model.graph.node)}"], domain=domain))
    model.graph.node[-1].attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())


def external(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def location_only(model):
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def endless_loop(model):
    condition = helper.make_tensor_value_info("keep", TensorProto.BOOL, [])
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    same = helper.make_node("Identity", ["keep"], ["kept"])
    kept = helper.make_tensor_value_info("kept", TensorProto.BOOL, [])
    body = helper.make_graph([same], "body", [count, condition], [kept])
    add_node(model, "Loop", ("", "features"), body=body)


def function(model):
    opset = [helper.make_opsetid("", 21)]
    node = helper.make_node("Relu", ["x"], ["y"])
    model.functions.append(helper.make_function("mine", "F", ["x"], ["y"], [node], opset))


def weights_of(value):
    def edit(model):
        tensor = model.graph.initializer[0]
        array = numpy_helper.to_array(tensor).copy()
        array.flat[0] = value
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return edit


def short_raw(model):
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def huge_dims(model):
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([1 << 40, 1 << 40])


def negative_dims(model):
    model.graph.initializer[0].dims[0] = -1


def float_data(model):
    tensor = model.graph.initializer[1]
    values = numpy_helper.to_array(tensor).tolist()
    tensor.ClearField("raw_data")
    tensor.float_data.extend(values)


def doubles(model):
    tensor = model.graph.initializer[1]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def sparse(model):
    model.graph.sparse_initializer.add().dims.append(3)


def training_info(model):
    model.training_info.add()


def sequence_input(model):
    model.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(model.graph.input[0].type))


def cycle(model):
    model.graph.node[0].input[0] = "logits"


def twice(model):
    model.graph.node[1].output[0] = model.graph.node[0].output[0]


def no_output(model):
    model.graph.output[0].name = "nothing"


def old_opset(model):
    model.opset_import[0].version = 9


def metadata_twice(model):
    model.metadata_props.add(key="fl.loss", value="mse")


def wrong_trainable(model):
    helper.set_model_props(model, {"fl.trainable": '["nobody"]'})


def trainable_no_list(model):
    helper.set_model_props(model, {"fl.trainable": "{}"})


def many_nodes(model):
    for _ in range(6000):
        add_node(model, "Relu")


def nan_constant(model):
    add_node(model, "Constant", (), value=numpy_helper.from_array(np.array([np.nan], np.float32)))


HOSTILE = {
    "external data": (external, "external-data"),
    "external location without an address": (location_only, "external-data"),
    "an endless Loop": (endless_loop, "subgraphs"),
    "a Loop by name alone": (lambda m: add_node(m, "Loop"), "operation"),
    "a function": (function, "functions"),
    "an operation outside the list": (lambda m: add_node(m, "RandomNormalLike"), "operation"),
    "a foreign domain": (lambda m: add_node(m, "Gelu", domain="com.microsoft"), "domain"),
    "a foreign opset": (lambda m: m.opset_import.append(helper.make_opsetid("com.microsoft", 1)), "domain"),
    "an old opset": (old_opset, "opset"),
    "NaN weights": (weights_of(np.nan), "not-finite"),
    "infinite weights": (weights_of(np.inf), "not-finite"),
    "a NaN constant": (nan_constant, "not-finite"),
    "raw bytes that do not fit": (short_raw, "raw-length"),
    "huge dimensions": (huge_dims, "raw-length"),
    "negative dimensions": (negative_dims, "dims"),
    "numbers outside raw_data": (float_data, "numbers-outside-raw-data"),
    "doubles": (doubles, "dtype"),
    "sparse initializers": (sparse, "sparse-initializers"),
    "training info": (training_info, "training-info"),
    "a sequence as input": (sequence_input, "sequence-types"),
    "a cycle": (cycle, "wiring"),
    "a value defined twice": (twice, "wiring"),
    "an output nothing computes": (no_output, "wiring"),
    "a metadata key twice": (metadata_twice, "duplicate-name"),
    "a trainable name that is no weight": (wrong_trainable, "trainable"),
    "a trainable list that is none": (trainable_no_list, "trainable"),
    "too many nodes": (many_nodes, "size"),
    "a cast to a string": (lambda m: add_node(m, "Cast", to=TensorProto.STRING), "dtype"),
}


def test_a_good_model_passes():
    check_model(GOOD)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_its_reason(name):
    edit, reason = HOSTILE[name]
    with pytest.raises(UnsafeModel) as refusal:
        check_model(changed(edit))
    assert refusal.value.reason == reason


def test_a_file_above_the_limit_is_refused_before_it_is_read():
    with pytest.raises(UnsafeModel) as refusal:
        check_model(b"\xff" * 101, max_bytes=100)
    assert refusal.value.reason == "size"


def test_a_second_graph_that_protobuf_would_merge_is_refused():
    model = onnx.load_from_string(GOOD)
    smuggled = GOOD + write_bytes(7, onnx.GraphProto(name="second").SerializeToString())
    assert onnx.load_from_string(smuggled).graph.node == model.graph.node
    with pytest.raises(UnsafeModel) as refusal:
        check_model(smuggled)
    assert refusal.value.reason == "repeated-field"


def test_an_unknown_field_is_refused():
    with pytest.raises(UnsafeModel) as refusal:
        check_model(GOOD + write_bytes(99, b"x"))
    assert refusal.value.reason == "unknown-field"


def test_a_length_beyond_the_file_is_refused():
    with pytest.raises(UnsafeModel) as refusal:
        check_model(write_varint(7 << 3 | 2) + write_varint(1 << 62))
    assert refusal.value.reason == "truncated"


@pytest.mark.parametrize("step", [1, 7])
def test_no_truncated_file_passes(step):
    for size in range(0, len(GOOD), step):
        # A cut between two metadata entries leaves a well-formed file without the last ones.
        try:
            check_model(GOOD[:size])
        except UnsafeModel:
            continue
        assert onnx.load_from_string(GOOD[:size]).graph == onnx.load_from_string(GOOD).graph


@given(st.binary(max_size=300))
def test_random_bytes_never_pass_and_never_crash(data):
    with pytest.raises(UnsafeModel):
        check_model(data)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_mutated_file_passes_or_is_refused_and_never_crashes(edits):
    data = bytearray(GOOD)
    for place, value in edits:
        data[place] = value
    with contextlib.suppress(UnsafeModel):
        check_model(bytes(data))


def test_the_check_imports_no_onnx():
    program = (
        "import sys; from edge_sdk.artifact import features, graph_lock, safety, schema, weights\n"
        "safety.check_model(sys.stdin.buffer.read())\n"
        "print([name for name in ('onnx', 'onnxruntime', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], input=GOOD, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "[]"
