"""A model whose label list grows: one more output for each new label, at the end. Pure; needs `onnx`, no torch.

A new output begins as the mean of the others, `MARGIN` lower: whatever the record, it is below the best of the others,
so no new label is named before it is learned, and together they take at most m / K / e of the probability that m new
beside K old labels share. Refuses, with ModelRefused, labels that are there already, labels of another kind than
classes, and a graph whose outputs are anything but a sum of layers and biases.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from aggregator.averaging import LINEAGE
from aggregator.errors import ModelRefused
from edge_sdk.artifact.errors import ArtifactError, SchemaError
from edge_sdk.artifact.names import SCHEMA, TRAINABLE
from edge_sdk.artifact.safety import check_model
from edge_sdk.artifact.schema import Schema, check_schema
from edge_sdk.artifact.weights import metadata

MARGIN: Final = 1.0  # natural logarithms below the mean of the others


def widened(model: bytes, labels: Sequence[str]) -> bytes:
    """ONNX bytes with these labels after the ones that are there. The same input gives the same bytes.

    Raises ModelRefused.
    """
    import onnx

    schema = wider_schema(model, labels)
    graph: Any = onnx.load_from_string(model)
    _widen(graph.graph, len(schema.label.names) - len(labels), len(labels), _trained(model))
    words = {**metadata(model), SCHEMA: schema.to_json(), LINEAGE: hashlib.sha256(model).hexdigest()}
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, dict(sorted(words.items())))
    data: bytes = graph.SerializeToString(deterministic=True)
    try:
        check_model(data)
    except ArtifactError as error:
        raise _refused(str(error)) from error
    return data


def wider_schema(model: bytes, labels: Sequence[str]) -> Schema:
    """The model's schema with these labels at the end. Raises ModelRefused."""
    schema = Schema.from_json(metadata(model)[SCHEMA])
    if schema.label.kind != "classes":
        raise _refused(f"{schema.label.name!r} is a {schema.label.kind}, and only a list of classes grows")
    if known := [label for label in labels if label in schema.label.names]:
        raise ModelRefused(f"{known[0]!r} is a label of the model already", "leave it out", reason="known-label")
    if not labels or not all(label.strip() for label in labels):
        raise ModelRefused("a label to add has no name", "name it with --label", reason="no-label")
    label = msgspec.structs.replace(schema.label, names=(*schema.label.names, *labels))
    wider = msgspec.structs.replace(schema, label=label)
    try:
        check_schema(wider)
    except SchemaError as error:
        raise _refused(str(error)) from error
    return wider


def _refused(what: str) -> ModelRefused:
    return ModelRefused(f"the label list cannot grow: {what}", "create a task of a new model", reason="not-wider")


def _trained(model: bytes) -> set[str]:
    return set(msgspec.json.decode(metadata(model)[TRAINABLE], type=list[str]))


def _widen(graph: Any, count: int, more: int, trained: set[str]) -> None:
    """Every layer and bias that the outputs are a sum of gets `more` outputs beside its `count`."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    uses = [name for node in graph.node for name in node.input]
    lowered = False
    for name, axis in _parts(graph, tensors):
        if uses.count(name) != 1:
            raise _refused(f"{name!r} is used at {uses.count(name)} places")
        bias = axis is None and name in trained
        _grow(tensors[name], axis, count, more, MARGIN if bias and not lowered else 0.0)
        lowered = lowered or bias
    if not lowered:
        raise _refused("its outputs have no trained bias")
    for value in (*graph.output, *(each for each in graph.value_info if each.name == graph.output[0].name)):
        last = value.type.tensor_type.shape.dim[-1]
        if last.dim_value == count:
            last.dim_value = count + more
    names = _summed(graph, tensors)
    for value in graph.value_info:
        if value.name in names and value.name != graph.output[0].name:
            value.type.tensor_type.shape.dim[-1].dim_value = count + more


def _summed(graph: Any, tensors: dict[str, Any]) -> set[str]:
    """The values, of as many columns as there are outputs, that the output is a sum of, itself included."""
    made = {node.output[0]: node for node in graph.node}
    found, waiting = set(), [graph.output[0].name]
    while waiting:
        name = waiting.pop()
        found.add(name)
        if name in made and made[name].op_type == "Add":
            waiting += [each for each in made[name].input if each not in tensors]
    return found


def _parts(graph: Any, tensors: dict[str, Any]) -> list[tuple[str, int | None]]:
    """The tensors that hold a number for each output, and along which axis; None for a bias."""
    made = {node.output[0]: node for node in graph.node}
    found: list[tuple[str, int | None]] = []
    for name in sorted(_summed(graph, tensors)):
        node = made.get(name)
        if node is not None and node.op_type == "Add":
            found += [(each, None) for each in node.input if each in tensors]
        elif node is not None and node.op_type in {"Gemm", "MatMul"} and node.input[1] in tensors:
            turned = any(each.name == "transB" and each.i for each in node.attribute)
            found += [(node.input[1], 0 if turned else 1), *((each, None) for each in node.input[2:] if each)]
        else:
            raise _refused(f"{name!r} is not a layer with weights of its own")
    return found


def _grow(tensor: Any, axis: int | None, count: int, more: int, lower: float) -> None:
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor)
    along = values.ndim - 1 if axis is None else axis
    if values.ndim == 0 or values.shape[along] != count or values.dtype != np.float32:
        raise _refused(f"{tensor.name!r} has the shape {list(values.shape)} where {count} outputs are expected")
    mean = values.astype(np.float64).mean(axis=along, keepdims=True) - lower
    grown = np.concatenate([values, np.repeat(mean, more, axis=along).astype(np.float32)], axis=along)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(grown), tensor.name))
