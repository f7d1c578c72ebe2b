"""Small ONNX models for the attacks, as devices get them. Needs `onnx`."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from onnx import TensorProto, helper, numpy_helper


def linear(width: int) -> bytes:
    """ "features" float32 [B, width] to one number, no bias, squared error, weights 0: each column is one weight."""
    node = helper.make_node("Gemm", ["features", "w"], ["logits"], transB=1)
    return _model([node], {"w": np.zeros((1, width), np.float32)}, TensorProto.FLOAT, width, "mse")


def text(words: int, length: int, width: int, classes: int, seed: int) -> bytes:
    """Word numbers int64 [B, length], embedded, laid end to end, one linear layer to logits [B, classes]."""
    rng = np.random.default_rng(seed)
    weights = {
        "e": rng.normal(size=(words, width)).astype(np.float32),
        "w": (rng.normal(size=(classes, length * width)) / np.sqrt(length * width)).astype(np.float32),
        "c": np.zeros(classes, np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["e", "features"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"], axis=1),
        helper.make_node("Gemm", ["f", "w", "c"], ["logits"], transB=1),
    ]
    return _model(nodes, weights, TensorProto.INT64, length, "cross_entropy")


def _model(nodes: list[Any], weights: Any, kind: int, width: int, loss: str) -> bytes:
    graph = helper.make_graph(
        nodes,
        "attacked",
        [helper.make_tensor_value_info("features", kind, ["b", width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {"fl.trainable": msgspec.json.encode(list(weights)).decode(), "fl.loss": loss})
    data: bytes = model.SerializeToString()
    return data
