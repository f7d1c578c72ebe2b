"""First models for a task with any record schema, written as ONNX without torch. Need `onnx` (extra `aggregator`).

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
from edge_sdk.artifact.schema import Label, Schema, check_schema

OPSET: Final = 21
IR_VERSION: Final = 10
OUTPUT: Final = "logits"
LOSS_BY_KIND: Final = {"binary": "binary_cross_entropy", "classes": "cross_entropy", "number": "mse"}


def loss_of(label: Label) -> str:
    """The loss that fits a label: "pinball" for a number with quantiles, else by its kind."""
    return "pinball" if label.quantiles else LOSS_BY_KIND[label.kind]


def tabular_classifier(schema: Schema, hidden: Sequence[int], seed: int) -> bytes:
    """ONNX bytes of a perceptron: "features" float32 [B, F] to "logits" float32 [B, outputs of the label].

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
    return serialise(schema, _layers(len(hidden)), weights, trainable=list(weights))


def linear_classifier(schema: Schema) -> bytes:
    """ONNX bytes of logits = W x + b at zero: logistic, softmax, linear or quantile regression. Raises SchemaError."""
    return tabular_classifier(schema, (), 0)


def fourier_classifier(schema: Schema, width: int, bandwidth: float, seed: int) -> bytes:
    """ONNX bytes of a linear model on random Fourier features: logits = W phi(x) + b, phi fixed, W and b trained.

    phi(x) = sqrt(2 / width) cos(A x + c), A normal with standard deviation `bandwidth`, c uniform in [0, 2 pi)
    (Rahimi and Recht 2007): a kernel machine, so it bends where a linear model cannot. phi has norm 1 whatever the
    width, so the noise of private training in the logits does not grow with it. Raises SchemaError.
    """
    check_schema(schema)
    rng = np.random.default_rng(seed)
    weights = {
        "features.weight": (rng.standard_normal((width, schema.width)) * bandwidth).astype(np.float32),
        "features.phase": (rng.random(width) * 2 * np.pi).astype(np.float32),
        "features.scale": np.array(np.sqrt(2.0 / width), np.float32),
        "head.weight": np.zeros((schema.label.outputs, width), np.float32),
        "head.bias": np.zeros(schema.label.outputs, np.float32),
    }
    return serialise(schema, _fourier_nodes(), weights, trainable=["head.weight", "head.bias"])


def _layers(last: int) -> list[Any]:
    nodes, value = [], "features"
    for layer in range(last + 1):
        name = f"layer{layer}"
        summed = OUTPUT if layer == last else f"{name}.sum"
        nodes.append(gemm(value, f"{name}.weight", f"{name}.bias", summed))
        if layer < last:
            value = f"{name}.out"
            nodes.append(node("Relu", [summed], value))
    return nodes


def _fourier_nodes() -> list[Any]:
    return [
        gemm("features", "features.weight", "features.phase", "features.angle"),
        node("Cos", ["features.angle"], "features.cosine"),
        node("Mul", ["features.cosine", "features.scale"], "features.out"),
        gemm("features.out", "head.weight", "head.bias", OUTPUT),
    ]


def gemm(value: str, weight: str, bias: str, output: str) -> Any:
    """A node for `output` = `value` weight^T + bias; no bias where its name is ""."""
    return node("Gemm", [name for name in (value, weight, bias) if name], output, transB=1)


def node(operation: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    """An ONNX node with one output, named like it."""
    from onnx import helper

    return helper.make_node(operation, inputs, [output], name=output, **attributes)


def serialise(schema: Schema, nodes: list[Any], weights: dict[str, Any], trainable: list[str]) -> bytes:
    """A checked model of `nodes`, from "features" to "logits". `weights`: arrays by name; `trainable`: those to learn.

    Raises UnsafeModel.
    """
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
            LOSS: loss_of(schema.label),
            SCHEMA: schema.to_json(),
            TRAINABLE: msgspec.json.encode(trainable).decode(),
        },
    )
    data: bytes = model.SerializeToString(deterministic=True)
    check_model(data)
    return data
