"""Authoring side: a torch module to the ONNX file that devices train. Needs torch, onnx, onnxscript (extra `author`).

`torch.onnx.export` merges equal initializers, folds, transposes and unties weights without a word. So the
module is exported with every parameter replaced by its own index; the indices are read back, and a file whose
initializers are not exactly a permutation of the parameters is refused (PublishRefused).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from edge_sdk.artifact.errors import ArtifactError
from edge_sdk.artifact.names import LOSS, LOSSES, SCHEMA, TRAINABLE
from edge_sdk.artifact.safety import check_model
from edge_sdk.artifact.schema import Schema, check_schema

OPSET: Final = 21
# Whole numbers from here to 2^24 are exact in float32, and no weight of a fresh model looks like one.
OFFSET: Final = 1 << 22
MAX_PARAMETERS: Final = (1 << 24) - OFFSET
# What an exporter may do to a weight and still leave a permutation of it.
_MOVES: Final = frozenset(("Transpose", "Reshape", "Slice", "Concat", "Squeeze", "Unsqueeze", "Identity", "Flatten"))

Array = npt.NDArray[Any]


class PublishRefused(ArtifactError):
    """The export does not hold exactly the module's parameters."""


def publish(
    module: nn.Module,
    example_inputs: Mapping[str, torch.Tensor],
    schema: Schema,
    loss: str,
    path: Path | None = None,
) -> bytes:
    """Export in evaluation mode and return the ONNX bytes, also written to `path` where given.

    `example_inputs`: name to tensor with the batch first, in the order of `forward`; use at least 2 rows.
    The output is named "logits". Raises PublishRefused, SchemaError or UnsafeModel.
    """
    check_schema(schema)
    if loss not in LOSSES:
        raise PublishRefused("loss", f"the loss {loss!r} is not one of {LOSSES}")
    flat = _flat_parameters(module)
    model = _export(_numbered(module), example_inputs)
    _fold_moves(model)
    names = _restore(model, flat)
    properties = {LOSS: loss, SCHEMA: schema.to_json(), TRAINABLE: msgspec.json.encode(names).decode()}
    onnx.helper.set_model_props(model, properties)
    data: bytes = model.SerializeToString(deterministic=True)
    check_model(data)
    if path is not None:
        path.write_bytes(data)
    return data


def _flat_parameters(module: nn.Module) -> Array:
    parameters = [parameter.detach().reshape(-1) for parameter in module.parameters()]
    count = sum(len(parameter) for parameter in parameters)
    if not 0 < count <= MAX_PARAMETERS:
        raise PublishRefused("size", f"a module needs 1 to {MAX_PARAMETERS} parameters, not {count}")
    return torch.cat(parameters).to(torch.float32).numpy().copy()


def _numbered(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose parameters hold their own indices."""
    traced, at = copy.deepcopy(module).eval(), OFFSET
    with torch.no_grad():
        for parameter in traced.parameters():
            parameter.copy_(torch.arange(at, at + parameter.numel(), dtype=torch.float32).view_as(parameter))
            at += parameter.numel()
    return traced


def _export(module: nn.Module, example_inputs: Mapping[str, torch.Tensor]) -> onnx.ModelProto:
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        module,
        tuple(example_inputs.values()),
        input_names=list(example_inputs),
        output_names=["logits"],
        dynamic_shapes=tuple({0: batch} for _ in example_inputs),
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _drop_notes(model)
    return model


def _drop_notes(model: onnx.ModelProto) -> None:
    """The exporter writes source paths and type notes, which would differ from machine to machine."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    model.doc_string = model.graph.doc_string = ""
    model.producer_name, model.producer_version = "chorale", ""
    values = (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer)
    for part in values:
        part.doc_string = ""
        del part.metadata_props[:]
    used = {node.domain for node in model.graph.node}
    kept = [opset for opset in model.opset_import if opset.domain in ("", *used)]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _is_indices(array: Array) -> bool:
    return bool(array.dtype == np.float32 and array.size and (array >= OFFSET).all())


def _fold_moves(model: onnx.ModelProto) -> None:
    """Evaluate nodes that only move weights about, so that their result is the initializer."""
    values = _constants(model)
    kept = []
    for node in model.graph.node:
        known = all(name in values for name in node.input if name)
        if node.op_type in _MOVES and known and any(_is_indices(values[name]) for name in node.input if name):
            inputs = {name: values[name] for name in node.input if name}
            (result,) = ReferenceEvaluator(node).run(None, inputs)
            values[node.output[0]] = np.ascontiguousarray(result)
        else:
            kept.append(node)
    used = {name for node in kept for name in node.input} | {value.name for value in model.graph.output}
    del model.graph.node[:]
    model.graph.node.extend(kept)
    del model.graph.initializer[:]
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in values.items() if name in used
    )


def _restore(model: onnx.ModelProto, flat: Array) -> list[str]:
    """Put the parameters back in place of their indices; the names of the trainable initializers in file order."""
    names, seen = [], np.zeros(len(flat), np.int64)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if not _is_indices(array):
            _refuse_mixed(tensor.name, array)
            continue
        indices = array.astype(np.int64) - OFFSET
        if (indices >= len(flat)).any() or not np.array_equal(indices + OFFSET, array):
            raise PublishRefused(
                "changed", f"the exporter changed the numbers of {tensor.name!r}, not only their place"
            )
        np.add.at(seen, indices.reshape(-1), 1)
        tensor.CopyFrom(numpy_helper.from_array(flat[indices], tensor.name))
        names.append(tensor.name)
    if (seen == 0).any():
        raise PublishRefused("missing", f"{int((seen == 0).sum())} of {len(flat)} parameters are not in the export")
    if (seen > 1).any():
        raise PublishRefused("untied", f"{int((seen > 1).sum())} parameters occur more than once in the export")
    return names


def _refuse_mixed(name: str, array: Array) -> None:
    if array.dtype == np.float32 and ((array >= OFFSET) & (array < 1 << 24)).any():
        raise PublishRefused("changed", f"{name!r} mixes parameters with other numbers: keep them apart in the module")
