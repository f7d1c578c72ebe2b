"""The ONNX operations without weights, as torch functions. Refuses every other operation (UnsupportedModel).

Semantics: ONNX operator specification, opset 18 to 21.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch reader knows
from torch import Tensor

from edge_sdk.artifact.errors import ArtifactError

Inputs = Sequence[Tensor | None]
Attributes = Mapping[str, Any]
Operation = Callable[[Inputs, Attributes], Tensor]

_TORCH_DTYPES: Final = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool}


class UnsupportedModel(ArtifactError):
    """The graph uses an operation, attribute or layout that cannot be trained here."""


def unsupported(message: str) -> UnsupportedModel:
    """The error for something in the graph that has no torch counterpart here."""
    return UnsupportedModel("unsupported", message)


def operation(op: str) -> Operation:
    """The function of an operation. Raises UnsupportedModel."""
    if op not in PURE:
        raise unsupported(f"the operation {op!r} cannot be trained here: publish the model without it")
    return PURE[op]


def _given(inputs: Inputs, index: int) -> Tensor:
    value = inputs[index] if index < len(inputs) else None
    if value is None:
        raise unsupported(f"an operation lacks its input {index}")
    return value


def _optional(inputs: Inputs, index: int) -> Tensor | None:
    return inputs[index] if index < len(inputs) else None


def _ints(value: Tensor) -> list[int]:
    return [int(item) for item in value.reshape(-1).tolist()]


def _unary(function: Callable[[Tensor], Tensor]) -> Operation:
    return lambda inputs, _: function(_given(inputs, 0))


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    return lambda inputs, _: function(_given(inputs, 0), _given(inputs, 1))


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Operation:
    def run(inputs: Inputs, _: Attributes) -> Tensor:
        result = _given(inputs, 0)
        for index in range(1, len(inputs)):
            result = function(result, _given(inputs, index))
        return result

    return run


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    a, b, c = _given(inputs, 0), _given(inputs, 1), _optional(inputs, 2)
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    product = torch.mul(a @ b, attributes.get("alpha", 1.0))
    return product if c is None else product + torch.mul(c, attributes.get("beta", 1.0))


def _clip(inputs: Inputs, _: Attributes) -> Tensor:
    low, high = _optional(inputs, 1), _optional(inputs, 2)
    value = _given(inputs, 0)
    value = value if low is None else torch.maximum(value, low)
    return value if high is None else torch.minimum(value, high)


def _gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    data, indices = _given(inputs, 0), _given(inputs, 1).long()
    axis = attributes.get("axis", 0) % data.dim()
    size = data.shape[axis]
    chosen = data.index_select(axis, torch.where(indices < 0, indices + size, indices).reshape(-1))
    return chosen.reshape(data.shape[:axis] + indices.shape + data.shape[axis + 1 :])


def _reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    value, shape = _given(inputs, 0), _ints(_given(inputs, 1))
    if not attributes.get("allowzero", 0):
        shape = [value.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return value.reshape(shape)


def _flatten(inputs: Inputs, attributes: Attributes) -> Tensor:
    value = _given(inputs, 0)
    axis = attributes.get("axis", 1)
    axis = axis + value.dim() if axis < 0 else axis
    return value.reshape(math.prod(value.shape[:axis]), math.prod(value.shape[axis:]))


def _transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    value = _given(inputs, 0)
    return value.permute(tuple(attributes.get("perm") or reversed(range(value.dim()))))


def _axes(inputs: Inputs, index: int) -> list[int] | None:
    axes = _optional(inputs, index)
    return None if axes is None else _ints(axes)


def _squeeze(inputs: Inputs, _: Attributes) -> Tensor:
    value, axes = _given(inputs, 0), _axes(inputs, 1)
    return value.squeeze() if axes is None else value.squeeze(tuple(axes))


def _unsqueeze(inputs: Inputs, _: Attributes) -> Tensor:
    value, axes = _given(inputs, 0), _ints(_given(inputs, 1))
    rank = value.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        value = value.unsqueeze(axis)
    return value


def _slice(inputs: Inputs, _: Attributes) -> Tensor:
    value, starts, ends = _given(inputs, 0), _ints(_given(inputs, 1)), _ints(_given(inputs, 2))
    axes = _axes(inputs, 3) or list(range(len(starts)))
    steps = _axes(inputs, 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # A backward slice to the very start ends at the smallest integer.
        stop = None if step < 0 and end < -(2**31) else end
        places = range(*slice(start, stop, step).indices(value.shape[axis]))
        value = value.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return value


def _constant(_: Inputs, attributes: Attributes) -> Tensor:
    kinds = {"value_float": torch.float32, "value_floats": torch.float32, "value_int": torch.int64}
    for name, value in attributes.items():
        if name == "value":
            return torch.tensor(value)
        if name in (*kinds, "value_ints"):
            return torch.tensor(value, dtype=kinds.get(name, torch.int64))
    raise unsupported("a Constant holds no number")


def _constant_of_shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    value = torch.tensor(attributes["value"]) if "value" in attributes else torch.zeros(1)
    return value.reshape(()).expand(_ints(_given(inputs, 0))).clone()


def _shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    sizes = list(_given(inputs, 0).shape)
    return torch.tensor(sizes[attributes.get("start", 0) : attributes.get("end")], dtype=torch.int64)


def _expand(inputs: Inputs, _: Attributes) -> Tensor:
    value, shape = _given(inputs, 0), _ints(_given(inputs, 1))
    # Two-way broadcasting: a 1 in the shape keeps the value's own size.
    own = [1] * (len(shape) - value.dim()) + list(value.shape)
    shape = [1] * (len(own) - len(shape)) + shape
    return value.expand([mine if wanted == 1 else wanted for mine, wanted in zip(own, shape, strict=True)])


def _pad(inputs: Inputs, attributes: Attributes) -> Tensor:
    value, pads, fill = _given(inputs, 0), _ints(_given(inputs, 1)), _optional(inputs, 2)
    mode = attributes.get("mode", "constant")
    if mode != "constant" or _optional(inputs, 3) is not None:
        raise unsupported("Pad is supported in constant mode and without axes")
    rank = value.dim()
    # ONNX lists all begins, then all ends; torch lists pairs from the last axis.
    pairs = [pad for axis in reversed(range(rank)) for pad in (pads[axis], pads[axis + rank])]
    return F.pad(value, pairs, value=0.0 if fill is None else fill.item())


def _reduce(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Operation:
    def run(inputs: Inputs, attributes: Attributes) -> Tensor:
        value, axes = _given(inputs, 0), _axes(inputs, 1)
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return value
        return function(value, tuple(axes or range(value.dim())), bool(attributes.get("keepdims", 1)))

    return run


def padded(value: Tensor, attributes: Attributes, rank: int, fill: float = 0.0) -> Tensor:
    """`value` [B, C, ...] with a window's explicit pads applied. Raises UnsupportedModel for auto_pad."""
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", ""):
        raise unsupported("auto_pad is not supported: publish with explicit pads")
    pads = attributes.get("pads", (0,) * 2 * rank)
    if not any(pads):
        return value
    return F.pad(value, [pad for axis in reversed(range(rank)) for pad in (pads[axis], pads[axis + rank])], value=fill)


def _pool(inputs: Inputs, attributes: Attributes, *, largest: bool) -> Tensor:
    value, kernel = _given(inputs, 0), tuple(attributes["kernel_shape"])
    rank = len(kernel)
    strides = tuple(attributes.get("strides", (1,) * rank))
    dilations = tuple(attributes.get("dilations", (1,) * rank))
    if rank > 2 or attributes.get("ceil_mode", 0) or (not largest and any(d != 1 for d in dilations)):
        raise unsupported("pooling is supported in 1-D and 2-D, without ceil_mode and without dilated averages")
    if largest:
        wide = padded(value, attributes, rank, fill=-torch.inf)
        return (F.max_pool1d if rank == 1 else F.max_pool2d)(wide, kernel, strides, 0, dilations)
    if any(attributes.get("pads", ())) and not attributes.get("count_include_pad", 0):
        raise unsupported("a padded average pool must count its padding")
    wide = padded(value, attributes, rank)
    return F.avg_pool1d(wide, kernel, strides) if rank == 1 else F.avg_pool2d(wide, kernel, strides)


def _softmax(inputs: Inputs, attributes: Attributes) -> Tensor:
    return _given(inputs, 0).softmax(attributes.get("axis", -1))


def _gelu(inputs: Inputs, attributes: Attributes) -> Tensor:
    return F.gelu(_given(inputs, 0), approximate=attributes.get("approximate", "none"))


PURE: Final[Mapping[str, Operation]] = {
    "Gemm": _gemm,
    "MatMul": _binary(torch.matmul),
    "Gather": _gather,
    "Add": _binary(torch.add),
    "Sub": _binary(torch.sub),
    "Mul": _binary(torch.mul),
    "Div": _binary(_divide),
    "Pow": lambda inputs, _: torch.pow(_given(inputs, 0), _given(inputs, 1)).to(_given(inputs, 0).dtype),
    "Neg": _unary(torch.neg),
    "Abs": _unary(torch.abs),
    "Sqrt": _unary(torch.sqrt),
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Erf": _unary(torch.erf),
    "Reciprocal": _unary(torch.reciprocal),
    "Min": _fold(torch.minimum),
    "Max": _fold(torch.maximum),
    "Clip": _clip,
    "Where": lambda inputs, _: torch.where(_given(inputs, 0), _given(inputs, 1), _given(inputs, 2)),
    "Cast": lambda inputs, attributes: _given(inputs, 0).to(_TORCH_DTYPES[attributes["to"]]),
    "Equal": _binary(torch.eq),
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "And": _binary(torch.logical_and),
    "Or": _binary(torch.logical_or),
    "Not": _unary(torch.logical_not),
    "Relu": _unary(torch.relu),
    "LeakyRelu": lambda inputs, attributes: F.leaky_relu(_given(inputs, 0), attributes.get("alpha", 0.01)),
    "Tanh": _unary(torch.tanh),
    "Sin": _unary(torch.sin),
    "Cos": _unary(torch.cos),
    "Sigmoid": _unary(torch.sigmoid),
    "Softplus": _unary(F.softplus),
    "Gelu": _gelu,
    "Softmax": _softmax,
    "LogSoftmax": lambda inputs, attributes: _given(inputs, 0).log_softmax(attributes.get("axis", -1)),
    "Concat": lambda inputs, attributes: torch.cat(
        [_given(inputs, i) for i in range(len(inputs))], dim=attributes["axis"]
    ),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Shape": _shape,
    "Expand": _expand,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Identity": _unary(lambda value: value),
    "Pad": _pad,
    "ReduceSum": _reduce(lambda value, axes, keep: value.sum(axes, keepdim=keep)),
    "ReduceMean": _reduce(lambda value, axes, keep: value.mean(axes, keepdim=keep)),
    "ReduceMax": _reduce(lambda value, axes, keep: value.amax(axes, keepdim=keep)),
    "ReduceMin": _reduce(lambda value, axes, keep: value.amin(axes, keepdim=keep)),
    "ReduceL2": _reduce(lambda value, axes, keep: value.square().sum(axes, keepdim=keep).sqrt()),
    "MaxPool": lambda inputs, attributes: _pool(inputs, attributes, largest=True),
    "AveragePool": lambda inputs, attributes: _pool(inputs, attributes, largest=False),
    "GlobalAveragePool": _unary(lambda value: value.mean(tuple(range(2, value.dim())), keepdim=True)),
}
