"""The module rebuilt from ONNX computes what onnxruntime computes, and refuses what it cannot train."""

from __future__ import annotations

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge_sdk.artifact.errors import WrongVector
from edge_sdk.artifact.safety import OPERATIONS
from edge_sdk.artifact.weights import read_vector, write_vector
from edge_sdk.training.module import SITES, GraphModule
from edge_sdk.training.pure_ops import PURE, UnsupportedModel

RNG = np.random.default_rng(5)


def build(nodes, weights, inputs, *, constants=None, trainable=None, output="logits", loss="cross_entropy"):
    """ONNX bytes; nodes are (op, inputs, output, attributes)."""
    constants = constants or {}
    kinds = {"f": TensorProto.FLOAT, "i": TensorProto.INT64}
    graph = helper.make_graph(
        [helper.make_node(op, list(ins), [out], **attributes) for op, ins, out, attributes in nodes],
        "g",
        [helper.make_tensor_value_info(name, kinds[kind], shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        initializer=[numpy_helper.from_array(array, name) for name, array in {**weights, **constants}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    names = list(weights) if trainable is None else trainable
    helper.set_model_props(model, {"fl.trainable": msgspec.json.encode(names).decode(), "fl.loss": loss})
    return model.SerializeToString()


def w(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


X = {"features": ("f", ["b", 4])}
IDS = {"features": ("i", ["b", 7])}
SEQUENCE = {"features": ("f", ["b", 3, 9])}
IMAGE = {"features": ("f", ["b", 2, 8, 8])}
GEMM = [("Gemm", ["features", "w", "c"], "logits", {"transB": 1})]
CONV = {"kernel_shape": [3], "pads": [2, 1], "strides": [2], "dilations": [2]}
CONV2 = {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1], "group": 2}

MODELS = {
    "gemm transB": build(GEMM, {"w": w(3, 4), "c": w(3)}, X),
    "gemm": build([("Gemm", ["features", "w", "c"], "logits", {})], {"w": w(4, 3), "c": w(3)}, X),
    "gemm without bias": build([("Gemm", ["features", "w"], "logits", {})], {"w": w(4, 3)}, X),
    "matmul": build([("MatMul", ["features", "w"], "logits", {})], {"w": w(4, 3)}, X),
    "matmul and bias": build(
        [("MatMul", ["features", "w"], "m", {}), ("Add", ["c", "m"], "logits", {})], {"c": w(3), "w": w(4, 3)}, X
    ),
    "scale and shift": build(
        [("Mul", ["features", "s"], "m", {}), ("Add", ["m", "t"], "logits", {})], {"s": w(4), "t": w(1, 4)}, X
    ),
    "embedding and mean": build(
        [
            ("Gather", ["e", "features"], "g", {}),
            ("ReduceMean", ["g", "axes"], "m", {"keepdims": 0}),
            ("Gemm", ["m", "w", "c"], "logits", {"transB": 1}),
        ],
        {"e": w(20, 5), "w": w(2, 5), "c": w(2)},
        IDS,
        constants={"axes": ints(1)},
    ),
    "conv 1-d with uneven pads": build(
        [
            ("Conv", ["features", "w", "c"], "h", CONV),
            ("GlobalAveragePool", ["h"], "p", {}),
            ("Flatten", ["p"], "logits", {}),
        ],
        {"w": w(6, 3, 3), "c": w(6)},
        SEQUENCE,
    ),
    "conv 2-d in groups": build(
        [
            ("Conv", ["features", "w", "c"], "h", CONV2),
            ("GroupNormalization", ["h", "s", "t"], "n", {"num_groups": 2}),
            ("MaxPool", ["n"], "p", {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 1, 0, 1]}),
            ("Flatten", ["p"], "logits", {}),
        ],
        {"w": w(4, 1, 3, 2), "c": w(4), "s": w(4), "t": w(4)},
        IMAGE,
    ),
    "layer norm": build(
        [("LayerNormalization", ["features", "s", "t"], "logits", {"epsilon": 1e-3})], {"s": w(4), "t": w(4)}, X
    ),
}


def pure(op, *more, attributes=None, constants=None, inputs=X):
    """A trained layer after one pure operation."""
    shift = [(op, ["features", *more], "h", attributes or {}), ("Flatten", ["h"], "f", {})]
    last = [("Cast", ["f"], "c", {"to": TensorProto.FLOAT}), ("Mul", ["c", "scale"], "logits", {})]
    return build(shift + last, {"scale": w(1)}, inputs, constants=constants or {})


FOUR = {"k": w(4)}
PURE_MODELS = {
    **{
        op: pure(op, "k", constants=FOUR)
        for op in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Greater", "Less", "Equal")
    },
    **{op: pure(op, "k", constants=FOUR) for op in ("GreaterOrEqual", "LessOrEqual")},
    **{
        op: pure(op)
        for op in ("Neg", "Abs", "Exp", "Erf", "Relu", "Tanh", "Sigmoid", "Softplus", "Gelu", "Identity", "Sin", "Cos")
    },
    **{op: pure(op) for op in ("Reciprocal", "LeakyRelu", "Softmax", "LogSoftmax", "ReduceL2", "Shape")},
    "gelu by tanh": pure("Gelu", attributes={"approximate": "tanh"}),
    "softmax over the batch": pure("Softmax", attributes={"axis": 0}),
    "leaky": pure("LeakyRelu", attributes={"alpha": 0.3}),
    "pow": pure("Pow", "k", constants={"k": np.array([2.0], np.float32)}),
    "clip": pure("Clip", "low", "high", constants={"low": np.float32(-0.5), "high": np.float32(0.5)}),
    "clip above": pure("Clip", "", "high", constants={"high": np.float32(0.5)}),
    **{
        op: pure(op, "axes", attributes={"keepdims": keep}, constants={"axes": ints(-1)}, inputs=SEQUENCE)
        for op, keep in (("ReduceSum", 0), ("ReduceMean", 1), ("ReduceMax", 0), ("ReduceMin", 1))
    },
    "reshape": pure("Reshape", "shape", constants={"shape": ints(0, -1, 2)}),
    "transpose": pure("Transpose", attributes={"perm": [0, 2, 1]}, inputs=SEQUENCE),
    "unsqueeze": pure("Unsqueeze", "axes", constants={"axes": ints(-1, 1)}),
    "slice": pure("Slice", "s", "e", "a", "t", constants={"s": ints(-1), "e": ints(-9), "a": ints(1), "t": ints(-2)}),
    "slice forward": pure("Slice", "s", "e", constants={"s": ints(0, 1), "e": ints(9, 3)}),
    "expand": pure("Expand", "shape", constants={"shape": ints(2, 1, 1)}, inputs={"features": ("f", [1, 4])}),
    "pad": pure("Pad", "pads", "v", constants={"pads": ints(0, 1, 0, 2), "v": np.float32(3)}),
    "gather": pure("Gather", "i", attributes={"axis": 1}, constants={"i": ints(0, -1, 2)}),
    "average pool": pure(
        "AveragePool",
        attributes={"kernel_shape": [3], "strides": [2], "pads": [1, 1], "count_include_pad": 1},
        inputs=SEQUENCE,
    ),
    "max pool": pure("MaxPool", attributes={"kernel_shape": [3], "dilations": [2]}, inputs=SEQUENCE),
}


def example(data, rows=3):
    session = onnxruntime.InferenceSession(data)
    declared = session.get_inputs()[0]
    shape = [rows if isinstance(size, str) else size for size in declared.shape]
    if declared.type == "tensor(int64)":
        return session, RNG.integers(-7, 20, shape)
    return session, RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", [*MODELS, *PURE_MODELS])
def test_the_module_computes_what_onnxruntime_computes(name):
    data = {**MODELS, **PURE_MODELS}[name]
    session, x = example(data)
    with torch.no_grad():
        ours = GraphModule(data)({"features": torch.from_numpy(x)}).numpy()
    np.testing.assert_allclose(ours, session.run(None, {"features": x})[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_weights_go_in_and_come_out_exactly_in_onnx_layout(name):
    data = MODELS[name]
    module = GraphModule(data)
    assert module.update_vector().tobytes() == read_vector(data).tobytes()
    vector = RNG.normal(size=read_vector(data).shape).astype(np.float32)
    module.load_vector(vector)
    assert module.update_vector().tobytes() == vector.tobytes()
    session = onnxruntime.InferenceSession(write_vector(data, vector, {}))
    _, x = example(data)
    ours = module({"features": torch.from_numpy(x)}).detach().numpy()
    np.testing.assert_allclose(ours, session.run(None, {"features": x})[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_every_gradient_agrees_with_finite_differences(name):
    data = MODELS[name]
    module, (_, x) = GraphModule(data).double(), example(data)
    inputs = {"features": torch.from_numpy(x if x.dtype == np.int64 else x.astype(np.float64))}
    weights = torch.from_numpy(RNG.normal(size=module(inputs).shape))
    (module(inputs) * weights).sum().backward()
    gradient = module.flatten(lambda parameter: parameter.grad)
    start, step = module.update_vector(), 1e-6
    for index in RNG.choice(len(start), size=min(6, len(start)), replace=False):
        values = []
        for sign in (1, -1):
            moved = start.copy()
            moved[index] += sign * step
            module.load_vector(moved)
            values.append((module(inputs) * weights).sum().item())
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(gradient[index], abs=1e-4, rel=1e-4)


def test_the_safety_list_and_the_interpreter_name_the_same_operations():
    assert set(PURE) | set(SITES) == OPERATIONS


REFUSED = {
    "a weight at no site": build(
        [("Sigmoid", ["w"], "h", {}), ("MatMul", ["features", "h"], "logits", {})], {"w": w(4, 3)}, X
    ),
    "a weight used twice": build(
        [("MatMul", ["features", "w"], "h", {}), ("MatMul", ["h", "w"], "logits", {})], {"w": w(4, 4)}, X
    ),
    "a weight nothing uses": build(GEMM, {"w": w(3, 4), "c": w(3), "idle": w(2)}, X),
    "a constant bias beside a weight": build(GEMM, {"w": w(3, 4)}, X, constants={"c": w(3)}),
    "gemm with alpha": build([("Gemm", ["features", "w"], "logits", {"alpha": 2.0})], {"w": w(4, 3)}, X),
    "auto pads": build(
        [("Conv", ["features", "w"], "logits", {"auto_pad": "SAME_UPPER"})], {"w": w(6, 3, 3)}, SEQUENCE
    ),
    "an unknown loss": build(GEMM, {"w": w(3, 4), "c": w(3)}, X, loss="hinge"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused_with_a_clear_error(name):
    with pytest.raises(UnsupportedModel) as refusal:
        GraphModule(REFUSED[name])({"features": torch.zeros(2, 3, 9)})
    assert refusal.value.reason == "unsupported"


@settings(max_examples=20)
@given(st.integers(0, 30).filter(lambda size: size != 15))
def test_a_vector_of_the_wrong_length_is_refused(size):
    with pytest.raises(WrongVector, match="15 weights"):
        GraphModule(MODELS["gemm"]).load_vector(np.zeros(size, np.float32))
