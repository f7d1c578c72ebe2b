"""The trainable part of a model that its outputs are a straight line of: outputs = offset + inputs W + b.

It is what a device makes its own: the last layer, every layer that is only added to it, and the last biases. Layers
beneath stay as they are, so that one pass over the rows is enough for any number of fits. Refuses nothing: a model
without such a part has no view, and its device keeps the fleet's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from edge_sdk.artifact.graph import Model, Node, parse
from edge_sdk.artifact.names import trainable_tensors
from edge_sdk.training.losses import Features
from edge_sdk.training.module import GraphModule

Floats = npt.NDArray[np.float32]
_PASS_ROWS: Final = 1024
_AGREE: Final = 1e-3


@dataclass(frozen=True)
class _Piece:
    """A trainable tensor of the outer part. `source`: the value that it is multiplied with, "" for a bias."""

    name: str
    source: str
    turned: bool  # [K, m] in the file, where the view holds [m, K]


@dataclass(frozen=True)
class Outer:
    """Rows as the outer part sees them: inputs [n, m], offset [n, K] and weights [m, K], float32. m counts biases.

    `bias`: the row of `weights` that is added to every output as it is; None where the model has no such.
    """

    inputs: Floats
    offset: Floats
    weights: Floats
    bias: int | None
    _spans: tuple[tuple[int, slice, bool], ...]  # where each tensor begins in the update vector, its rows, and turned

    def vector(self, whole: Floats, weights: Floats) -> Floats:
        """`whole`, an update vector [d], with the outer part replaced by `weights` [m, K]."""
        result = whole.copy()
        for start, rows, turned in self._spans:
            part = weights[rows]
            flat = (part.T if turned else part).reshape(-1)
            result[start : start + flat.size] = flat
        return result


def outer(data: bytes, module: GraphModule, features: Features) -> Outer | None:
    """The view of `module`, made from the ONNX bytes `data`, on these rows; None where the model has none."""
    pieces = _pieces(parse(data))
    if not pieces:
        return None
    vector, places = module.update_vector(), _places(module)
    parts = [_part(vector, places[piece.name], piece) for piece in pieces]
    module.load_vector(_without(vector, places, pieces))
    offset, _ = _values(module, features, ())
    module.load_vector(vector)
    outputs, sources = _values(module, features, {piece.source for piece in pieces if piece.source})
    ones = np.ones((len(outputs), 1), np.float32)
    inputs = np.concatenate([sources[piece.source] if piece.source else ones for piece in pieces], axis=1)
    weights, spans, row = np.concatenate(parts), [], 0
    for piece, part in zip(pieces, parts, strict=True):
        spans.append((places[piece.name][0], slice(row, row + len(part)), piece.turned))
        row += len(part)
    if inputs.shape[1] != len(weights) or offset.shape[1] != weights.shape[1]:
        return None
    if not np.allclose(offset + inputs @ weights, outputs, _AGREE, _AGREE * max(1.0, float(np.abs(outputs).max()))):
        return None
    bias = next((span[1].start for span, piece in zip(spans, pieces, strict=True) if not piece.source), None)
    return Outer(inputs, offset, weights, bias, tuple(spans))


def _pieces(model: Model) -> list[_Piece]:
    """Back from the output through sums, to the layers and biases that are trained."""
    made = {name: node for node in model.nodes for name in node.outputs}
    trained = {tensor.name for tensor in trainable_tensors(model)}
    found: list[_Piece] = []
    open_values = [model.outputs[0].name]
    while open_values:
        node = made.get(open_values.pop())
        if node is None:
            continue
        if node.op == "Add":
            found += [_Piece(name, "", turned=False) for name in node.inputs if name in trained]
            open_values += [name for name in node.inputs if name not in trained]
        elif node.op in {"Gemm", "MatMul"} and node.inputs[1] in trained and node.inputs[0] not in trained:
            found += _layer(node)
    return found


def _layer(node: Node) -> list[_Piece]:
    turned = node.op == "Gemm" and bool(node.attributes.get("transB", 0))
    bias = [_Piece(name, "", turned=False) for name in node.inputs[2:] if name]
    return [_Piece(node.inputs[1], node.inputs[0], turned), *bias]


def _places(module: GraphModule) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Where each trainable tensor begins in the update vector, and its shape."""
    places, start = {}, 0
    for name, shape in module.trainable_shapes().items():
        places[name] = (start, shape)
        start += int(np.prod(shape))
    return places


def _part(vector: Floats, place: tuple[int, tuple[int, ...]], piece: _Piece) -> Floats:
    start, shape = place
    value = vector[start : start + int(np.prod(shape))]
    if not piece.source:
        return value.reshape(1, -1)
    return value.reshape(shape).T if piece.turned else value.reshape(shape)


def _without(vector: Floats, places: dict[str, tuple[int, tuple[int, ...]]], pieces: list[_Piece]) -> Floats:
    result = vector.copy()
    for piece in pieces:
        start, shape = places[piece.name]
        result[start : start + int(np.prod(shape))] = 0.0
    return result


def _values(module: GraphModule, features: Features, names: Any) -> tuple[Floats, dict[str, Floats]]:
    """The outputs [n, K] and the named values [n, *] of all rows."""
    rows, outputs = len(next(iter(features.values()))), []
    values: dict[str, list[Floats]] = {name: [] for name in names}
    with torch.no_grad():
        for start in range(0, rows, _PASS_ROWS):
            part = {name: value[start : start + _PASS_ROWS] for name, value in features.items()}
            seen = module.values(part)
            outputs.append(seen[module.output].reshape(len(next(iter(part.values()))), -1).numpy())
            for name, kept in values.items():
                kept.append(seen[name].numpy())
    return np.concatenate(outputs), {name: np.concatenate(kept) for name, kept in values.items()}
