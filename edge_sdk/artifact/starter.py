"""A first model for a tabular task, written as ONNX without torch. Needs `onnx` (extra `aggregator`).

The same schema, layers and seed give the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import msgspec
import numpy as np

from edge_sdk.artifact.names import LOSS, SCHEMA, TRAINABLE
from edge_sdk.artifact.safety import check_model
from edge_sdk.artifact.schema import Schema, check_schema

OPSET: Final = 21
IR_VERSION: Final = 10
OUTPUT: Final = "logits"
LOSS_BY_KIND: Final = {"binary": "binary_cross_entropy", "classes": "cross_entropy", "number": "mse"}


def tabular_classifier(schema: Schema, hidden: Sequence[int], seed: int) -> bytes:
    """ONNX bytes of a perceptron: "features" float32 [B, F] to "logits" float32 [B, 1 or K].

    `hidden` are the widths of the ReLU layers; () is logistic (or linear) regression, which starts at zero.
    Other weights are uniform in +-sqrt(6 / fan-in) (He et al. 2015), biases zero. Raises SchemaError.
    """
    check_schema(schema)
    widths = [schema.width, *hidden, schema.label.outputs]
    rng = np.random.default_rng(seed)
    weights: dict[str, Any] = {}
    for layer, (columns, rows) in enumerate(pairwise(widths)):
        # A last layer at zero makes the first prediction the same for everyone: no random preference to unlearn.
        bound = 0.0 if layer == len(hidden) else np.sqrt(6.0 / columns)
        weights[f"layer{layer}.weight"] = ((rng.random((rows, columns)) * 2 - 1) * bound).astype(np.float32)
        weights[f"layer{layer}.bias"] = np.zeros(rows, np.float32)
    return _serialise(schema, _layers(len(hidden)), weights)


def _layers(last: int) -> list[Any]:
    from onnx import helper

    nodes, value = [], "features"
    for layer in range(last + 1):
        name = f"layer{layer}"
        summed = OUTPUT if layer == last else f"{name}.sum"
        nodes.append(helper.make_node("Gemm", [value, f"{name}.weight", f"{name}.bias"], [summed], name=name, transB=1))
        if layer < last:
            value = f"{name}.out"
            nodes.append(helper.make_node("Relu", [summed], [value], name=f"{name}.relu"))
    return nodes


def _serialise(schema: Schema, nodes: list[Any], weights: dict[str, Any]) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "tabular",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", schema.width])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", schema.label.outputs])],
        initializer=[numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="chorale"
    )
    helper.set_model_props(
        model,
        {
            LOSS: LOSS_BY_KIND[schema.label.kind],
            SCHEMA: schema.to_json(),
            TRAINABLE: msgspec.json.encode(list(weights)).decode(),
        },
    )
    data: bytes = model.SerializeToString(deterministic=True)
    check_model(data)
    return data
