"""A torch module rebuilt from an ONNX graph, so that a new architecture trains without new software.

A node that reads trainable weights is a *site* and becomes a torch layer; every other node is a pure
function (pure_ops). Refused with UnsupportedModel: trainable weights anywhere but at a site, weights used
twice, and operations outside the whitelist. Runs nothing of the file but these functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edge_sdk.artifact.errors import SchemaError, WrongVector
from edge_sdk.artifact.graph import Model, Node, parse
from edge_sdk.artifact.names import LOSS, LOSSES, SCHEMA, trainable_tensors
from edge_sdk.artifact.safety import check_parsed
from edge_sdk.artifact.schema import Schema
from edge_sdk.training.jobs import TrainingFailed
from edge_sdk.training.pure_ops import operation, padded, unsupported

Vector = npt.NDArray[np.float32]


class Elementwise(nn.Module):
    """x + weight or x * weight, the weight broadcast over the batch."""

    def __init__(self, op: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.adds = op == "Add"
        self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape of x."""
        return x + self.weight if self.adds else x * self.weight

    def by_example(self, gradient: torch.Tensor) -> torch.Tensor:
        """[B, *weight]: `gradient` [B, ...] of each example, added up over the axes that the weight is broadcast to.

        Raises TrainingFailed where the weight spans the batch.
        """
        weight = self.weight
        if weight.dim() >= gradient.dim() and weight.shape[-gradient.dim()] != 1:
            raise TrainingFailed("wrong-shape", "a weight that spans the batch cannot be trained by record")
        shape = (1,) * (gradient.dim() - weight.dim()) + tuple(weight.shape)
        summed = [axis for axis in range(1, gradient.dim()) if shape[axis] == 1]
        reduced = gradient.sum(summed, keepdim=True) if summed else gradient
        return reduced.reshape(len(gradient), *weight.shape)


@dataclass(frozen=True)
class Slot:
    """Where one trainable initializer lives; `transposed` where torch keeps the other layout."""

    parameter: nn.Parameter
    transposed: bool

    def read(self) -> torch.Tensor:
        """The values in ONNX layout, flat."""
        value = self.parameter.detach()
        return (value.T if self.transposed else value).reshape(-1)

    def write(self, flat: torch.Tensor) -> None:
        """Set the values from ONNX layout, flat."""
        shape = self.parameter.shape
        value = flat.reshape(shape[::-1]).T if self.transposed else flat.reshape(shape)
        with torch.no_grad():
            self.parameter.copy_(value)


@dataclass(frozen=True)
class Step:
    """One evaluation: reads `inputs` by name (empty for none), writes `output`. `layer`: the site; `op`: a function."""

    run: Callable[[list[torch.Tensor | None]], torch.Tensor]
    inputs: tuple[str, ...]
    output: str
    layer: nn.Module | None = None
    op: str = ""


class GraphModule(nn.Module):
    """The trainable twin of an ONNX file."""

    def __init__(self, data: bytes) -> None:
        """Check and rebuild. Raises UnsafeModel or UnsupportedModel."""
        super().__init__()
        model = parse(data)
        check_parsed(model)
        self.loss_name = _loss_name(model)
        self.quantiles = _quantiles(model) if self.loss_name == "pinball" else None
        self.sites = nn.ModuleList()
        self._slots: dict[str, Slot] = {}
        self._steps: list[Step] = []
        self.output = model.outputs[0].name
        tensors = trainable_tensors(model)
        self._shapes = {tensor.name: tensor.dims for tensor in tensors}
        self._constants = {
            tensor.name: torch.tensor(tensor.array())
            for tensor in model.initializers
            if tensor.name not in self._shapes
        }
        self._build(model)
        lost = [name for name in self._shapes if name not in self._slots]
        if lost:
            raise unsupported(f"nothing in the graph trains {lost[0]!r}")
        self._order = [self._slots[tensor.name] for tensor in tensors]
        self.load_vector(np.concatenate([tensor.array().reshape(-1) for tensor in tensors]))

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The graph's first output for a batch of named inputs."""
        return self.values(inputs)[self.output]

    def values(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Every value of the graph by name, the inputs included."""
        values: dict[str, torch.Tensor] = {**self._constants, **inputs}
        for step in self._steps:
            values[step.output] = step.run([values[name] if name else None for name in step.inputs])
        return values

    def update_vector(self) -> Vector:
        """All trainable weights, float32 [d]: order of "fl.trainable", layout of ONNX."""
        return torch.cat([slot.read() for slot in self._order]).numpy().copy()

    def flatten(self, per_parameter: Callable[[nn.Parameter], torch.Tensor]) -> Vector:
        """A vector like `update_vector` of something that has each parameter's shape, such as its gradient."""
        parts = []
        for slot in self._order:
            value = per_parameter(slot.parameter).detach()
            parts.append((value.T if slot.transposed else value).reshape(-1))
        return torch.cat(parts).numpy().copy()

    def load_vector(self, vector: Vector) -> None:
        """Set all trainable weights. Raises WrongVector for another length."""
        sizes = [slot.parameter.numel() for slot in self._order]
        if vector.shape != (sum(sizes),):
            raise WrongVector("wrong-length", f"the module has {sum(sizes)} weights, the vector {list(vector.shape)}")
        for slot, part in zip(self._order, torch.split(torch.from_numpy(vector.copy()), sizes), strict=True):
            slot.write(part)

    def scaled_layer(self) -> tuple[str, float, nn.Linear] | None:
        """(input, c, layer) of a model that is layer(c * input) and nothing else; None for any other."""
        *before, last = self._steps
        if len(before) > 1 or last.output != self.output or not isinstance(last.layer, nn.Linear):
            return None
        (source,), scale = last.inputs, 1.0
        if before:
            known = [self._constants[name] for name in before[0].inputs if name in self._constants]
            if before[0].op != "Mul" or before[0].output != source or len(known) != 1:
                return None
            if known[0].numel() != 1 or known[0].dim() > 2:
                return None
            (source,) = [name for name in before[0].inputs if name not in self._constants]
            scale = known[0].item()
        return None if source in self._constants else (source, scale, last.layer)

    def _build(self, model: Model) -> None:
        uses = Counter(name for node in model.nodes for name in node.inputs)
        uses.update(value.name for value in model.outputs)
        fused: set[int] = set()
        for index, node in enumerate(model.nodes):
            if index in fused:
                continue
            if not any(name in self._shapes for name in node.inputs):
                self._steps.append(_pure_step(node))
                continue
            bias = self._bias_add(model, index, uses) if node.op == "MatMul" else None
            if bias is not None:
                fused.add(bias)
            self._add_site(node, model.nodes[bias] if bias is not None else None)

    def _bias_add(self, model: Model, index: int, uses: Counter[str]) -> int | None:
        """The later Add that only adds a trainable bias to this MatMul's result."""
        product, width = model.nodes[index].outputs[0], self._shapes.get(model.nodes[index].inputs[1], ())[-1:]
        for later in range(index + 1, len(model.nodes)):
            node = model.nodes[later]
            if node.op == "Add" and product in node.inputs and uses[product] == 1:
                other = node.inputs[1 - node.inputs.index(product)]
                return later if self._shapes.get(other) == width else None
        return None

    def _add_site(self, node: Node, bias: Node | None) -> None:
        if node.op not in SITES or len([name for name in node.outputs if name]) != 1:
            raise unsupported(f"{node.op!r} cannot hold trainable weights: publish the model without it")
        step = SITES[node.op](self, node, bias)
        self._steps.append(step)

    def claim(self, name: str, parameter: nn.Parameter, *, transposed: bool = False) -> None:
        """Bind a trainable initializer to a layer's parameter. Raises UnsupportedModel where it cannot be."""
        if name not in self._shapes:
            raise unsupported(f"{name!r} sits beside trainable weights and is not trainable itself")
        if name in self._slots:
            raise unsupported(f"{name!r} is used at two places, and shared weights cannot be trained here")
        shape = tuple(parameter.shape[::-1] if transposed else parameter.shape)
        if shape != self._shapes[name]:
            raise unsupported(f"{name!r} has the shape {self._shapes[name]} where {shape} is needed")
        self._slots[name] = Slot(parameter, transposed)

    def trainable_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name to shape of every trainable initializer."""
        return self._shapes

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """The dimensions of a trainable initializer of that rank. Raises UnsupportedModel."""
        shape = self._shapes.get(name, ())
        if len(shape) != rank or 0 in shape:
            raise unsupported(f"{name!r} is not a trainable tensor of {rank} dimensions")
        return shape


def _loss_name(model: Model) -> str:
    name = model.metadata.get(LOSS, "")
    if name not in LOSSES:
        raise unsupported(f"the model's {LOSS} is {name!r} and must be one of {LOSSES}")
    return name


def _quantiles(model: Model) -> torch.Tensor:
    """float32 [Q]: what the outputs of a model with pinball loss are quantiles of, by its schema."""
    try:
        quantiles = Schema.from_json(model.metadata.get(SCHEMA, "")).label.quantiles
    except SchemaError as error:
        raise unsupported(f"pinball loss needs the model's {SCHEMA}: {error}") from error
    if not quantiles:
        raise unsupported("pinball loss needs a label with quantiles")
    return torch.tensor(quantiles, dtype=torch.float32)


def _pure_step(node: Node) -> Step:
    run, attributes = operation(node.op), node.attributes
    if len([name for name in node.outputs if name]) != 1:
        raise unsupported(f"{node.op!r} with several outputs cannot be trained here")
    return Step(lambda inputs: run(inputs, attributes), node.inputs, node.outputs[0], op=node.op)


def _layer_step(layer: nn.Module, source: str, output: str) -> Step:
    return Step(lambda inputs: layer(inputs[0]), (source,), output, layer)


def _optional(node: Node, index: int) -> str:
    return node.inputs[index] if index < len(node.inputs) else ""


def _add_layer(module: GraphModule, layer: nn.Module, weight: str, bias: str, *, transposed: bool = False) -> None:
    module.sites.append(layer)
    module.claim(weight, _parameter(layer, "weight"), transposed=transposed)
    if bias:
        module.claim(bias, _parameter(layer, "bias"))


def _parameter(layer: nn.Module, name: str) -> nn.Parameter:
    value = getattr(layer, name)
    assert isinstance(value, nn.Parameter)
    return value


def _gemm_site(module: GraphModule, node: Node, _: Node | None) -> Step:
    weight, bias, attributes = node.inputs[1], _optional(node, 2), node.attributes
    if attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1 or attributes.get("transA", 0):
        raise unsupported("Gemm is trainable with alpha = beta = 1 and without transA")
    turned = bool(attributes.get("transB", 0))
    shape = module.shape(weight, 2)
    rows, columns = shape if turned else shape[::-1]
    layer = nn.Linear(columns, rows, bias=bool(bias))
    _add_layer(module, layer, weight, bias, transposed=not turned)
    return _layer_step(layer, node.inputs[0], node.outputs[0])


def _matmul_site(module: GraphModule, node: Node, add: Node | None) -> Step:
    columns, rows = module.shape(node.inputs[1], 2)
    bias = next(name for name in add.inputs if name != node.outputs[0]) if add else ""
    layer = nn.Linear(columns, rows, bias=bool(bias))
    _add_layer(module, layer, node.inputs[1], bias, transposed=True)
    return _layer_step(layer, node.inputs[0], (add or node).outputs[0])


def _conv_site(module: GraphModule, node: Node, _: Node | None) -> Step:
    weight, bias = node.inputs[1], _optional(node, 2)
    attributes: dict[str, Any] = dict(node.attributes)
    rank = len(module.trainable_shapes().get(weight, ())) - 2
    if rank not in (1, 2):
        raise unsupported("Conv is trainable in 1-D and 2-D")
    outputs, per_group, *kernel = module.shape(weight, 2 + rank)
    group: int = attributes.get("group", 1)
    settings: dict[str, Any] = {
        "stride": tuple(attributes.get("strides", (1,) * rank)),
        "dilation": tuple(attributes.get("dilations", (1,) * rank)),
        "groups": group,
        "bias": bool(bias),
    }
    kind: type[nn.Module] = nn.Conv1d if rank == 1 else nn.Conv2d
    layer = kind(per_group * group, outputs, tuple(kernel), **settings)
    _add_layer(module, layer, weight, bias)
    return Step(lambda inputs: layer(padded(_first(inputs), attributes, rank)), node.inputs[:1], node.outputs[0])


def _gather_site(module: GraphModule, node: Node, _: Node | None) -> Step:
    if node.attributes.get("axis", 0) != 0:
        raise unsupported("an embedding is gathered along axis 0")
    rows, width = module.shape(node.inputs[0], 2)
    layer = nn.Embedding(rows, width)
    _add_layer(module, layer, node.inputs[0], "")

    def run(inputs: list[torch.Tensor | None]) -> torch.Tensor:
        indices = _first(inputs).long()
        result: torch.Tensor = layer(torch.where(indices < 0, indices + rows, indices))
        return result

    return Step(run, node.inputs[1:2], node.outputs[0])


def _layer_norm_site(module: GraphModule, node: Node, _: Node | None) -> Step:
    weight, bias = node.inputs[1], _optional(node, 2)
    # torch compares the width with the last axis when it runs; a graph that means another axis fails there.
    width = module.shape(weight, 1)
    layer = nn.LayerNorm(width, eps=_epsilon(node), bias=bool(bias))
    _add_layer(module, layer, weight, bias)
    return _layer_step(layer, node.inputs[0], node.outputs[0])


def _group_norm_site(module: GraphModule, node: Node, _: Node | None) -> Step:
    (channels,) = module.shape(node.inputs[1], 1)
    groups = node.attributes.get("num_groups")
    if not isinstance(groups, int) or groups < 1 or channels % groups:
        raise unsupported("GroupNormalization needs num_groups that divides its channels")
    layer = nn.GroupNorm(groups, channels, eps=_epsilon(node))
    _add_layer(module, layer, node.inputs[1], _optional(node, 2))
    return _layer_step(layer, node.inputs[0], node.outputs[0])


def _elementwise_site(module: GraphModule, node: Node, _: Node | None) -> Step:
    trainable = [index for index, name in enumerate(node.inputs) if name in module.trainable_shapes()]
    if len(trainable) != 1:
        raise unsupported(f"{node.op} of two trainable tensors cannot be trained here")
    weight, source = node.inputs[trainable[0]], node.inputs[1 - trainable[0]]
    layer = Elementwise(node.op, module.trainable_shapes()[weight])
    _add_layer(module, layer, weight, "")
    return _layer_step(layer, source, node.outputs[0])


def _epsilon(node: Node) -> float:
    value = node.attributes.get("epsilon", 1e-5)
    assert isinstance(value, float)
    return value


def _first(inputs: list[torch.Tensor | None]) -> torch.Tensor:
    value = inputs[0]
    assert value is not None
    return value


SITES: Final[Mapping[str, Callable[[GraphModule, Node, Node | None], Step]]] = {
    "Gemm": _gemm_site,
    "MatMul": _matmul_site,
    "Conv": _conv_site,
    "Gather": _gather_site,
    "LayerNormalization": _layer_norm_site,
    "GroupNormalization": _group_norm_site,
    "Add": _elementwise_site,
    "Mul": _elementwise_site,
}
