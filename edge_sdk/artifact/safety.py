"""Decides from the bytes alone whether a model file may be loaded. Imports no onnx, runs nothing of the file.

onnxruntime and onnx.checker are no trust boundary: they follow external data, hang on an endless loop and
pass expansions of many gigabytes (measured). This check comes before them. What it cannot see, such as a
constant that asks for a huge tensor, is left to the probe's memory and CPU limits.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edge_sdk.artifact.errors import UnsafeModel
from edge_sdk.artifact.graph import DTYPES, FLOAT, Model, Node, parse, unique
from edge_sdk.artifact.names import trainable_names

__all__ = ["MAX_BYTES", "OPERATIONS", "UnsafeModel", "check_model", "check_parsed"]

MAX_BYTES: Final = 64 << 20
MAX_NODES: Final = 5_000
MAX_METADATA_BYTES: Final = 1 << 20
OPSETS: Final = range(18, 22)
IR_VERSIONS: Final = range(8, 14)

# The operations that training/module.py can rebuild: a model that cannot be trained must not be installed.
_NAMES: Final = (
    "Gemm MatMul Conv Gather LayerNormalization GroupNormalization "
    "Add Sub Mul Div Pow Neg Abs Sqrt Exp Log Erf Reciprocal Min Max Clip Where Cast "
    "Equal Greater GreaterOrEqual Less LessOrEqual And Or Not "
    "Sin Cos Relu LeakyRelu Tanh Sigmoid Softplus Gelu Softmax LogSoftmax "
    "Concat Reshape Flatten Transpose Squeeze Unsqueeze Slice Shape Expand Constant ConstantOfShape Identity Pad "
    "ReduceSum ReduceMean ReduceMax ReduceMin ReduceL2 MaxPool AveragePool GlobalAveragePool "
)
OPERATIONS: Final = frozenset(_NAMES.split())


def check_model(data: bytes, max_bytes: int = MAX_BYTES) -> None:
    """Raise UnsafeModel, with a reason, unless every rule of this module holds."""
    if len(data) > max_bytes:
        raise UnsafeModel("size", f"the model has {len(data)} bytes and the limit is {max_bytes}")
    check_parsed(parse(data))


def check_parsed(model: Model) -> None:
    """The rules that hold beyond the file's syntax."""
    _check_versions(model)
    if len(model.nodes) > MAX_NODES:
        raise UnsafeModel("size", f"the graph has {len(model.nodes)} nodes and the limit is {MAX_NODES}")
    if sum(len(key) + len(value) for key, value in model.metadata.items()) > MAX_METADATA_BYTES:
        raise UnsafeModel("size", f"the metadata is larger than {MAX_METADATA_BYTES} bytes")
    for node in model.nodes:
        _check_node(node)
    _check_wiring(model)
    _check_weights(model)


def _check_versions(model: Model) -> None:
    if model.ir_version not in IR_VERSIONS:
        raise UnsafeModel("ir-version", f"IR version {model.ir_version} is not one of {list(IR_VERSIONS)}")
    opsets = unique(list(model.opsets), "opsets")
    for domain in opsets:
        if domain != "":
            raise UnsafeModel("domain", f"the operator domain {domain!r} is not allowed")
    if opsets.get("") not in OPSETS:
        raise UnsafeModel("opset", f"opset {opsets.get('')} is not one of {list(OPSETS)}: export with 21")


def _check_node(node: Node) -> None:
    if node.domain != "":
        raise UnsafeModel("domain", f"{node.op!r} comes from the domain {node.domain!r}, which is not allowed")
    if node.op not in OPERATIONS:
        raise UnsafeModel("operation", f"the operation {node.op!r} is not allowed")
    if node.op == "Cast" and node.attributes.get("to") not in DTYPES:
        raise UnsafeModel("dtype", f"a Cast goes to the ONNX data type {node.attributes.get('to')}")
    for name, value in node.attributes.items():
        # Minus infinity is a legitimate attention mask; not-a-number is never legitimate.
        numbers = np.asarray(value) if isinstance(value, np.ndarray | float | tuple) else None
        if numbers is not None and numbers.dtype.kind == "f" and np.isnan(numbers).any():
            raise UnsafeModel("not-finite", f"attribute {name!r} of {node.op} is not a number")


def _check_wiring(model: Model) -> None:
    """Every value is defined once, before its use: no cycles, nothing from an outer scope."""
    for value in (*model.inputs, *model.outputs):
        if value.dtype not in DTYPES:
            raise UnsafeModel("dtype", f"{value.name!r} has ONNX data type {value.dtype}")
    names = [value.name for value in model.inputs] + [tensor.name for tensor in model.initializers]
    known = set(unique([(name, None) for name in names], "inputs or initializers"))
    for node in model.nodes:
        for name in node.inputs:
            if name and name not in known:
                raise UnsafeModel("wiring", f"{node.op} reads {name!r} before anything defines it")
        for name in node.outputs:
            if name in known:
                raise UnsafeModel("wiring", f"{name!r} is defined twice")
            if name:
                known.add(name)
    missing = [value.name for value in model.outputs if value.name not in known]
    if missing or not model.outputs:
        raise UnsafeModel("wiring", f"nothing computes the graph's outputs {missing}")


def _check_weights(model: Model) -> None:
    trainable_names(model)
    for tensor in model.initializers:
        if tensor.dtype == FLOAT and not np.isfinite(tensor.array()).all():
            raise UnsafeModel("not-finite", f"the weights {tensor.name!r} hold NaN or infinity")
