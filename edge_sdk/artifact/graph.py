"""An ONNX file as plain frozen values, without onnx. Refuses what it does not know (UnsafeModel).

Refused while reading: functions, training info, sparse and quantised tensors, external data, sub-graphs,
sequence and map types, numbers outside `raw_data`, and a raw length that differs from the dimensions.
Field numbers are those of onnx.proto (IR version 13).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from edge_sdk.artifact.errors import UnsafeModel
from edge_sdk.artifact.wire import Field, Layout, Message

FLOAT: Final = 1
DTYPES: Final[Mapping[int, np.dtype[Any]]] = {
    FLOAT: np.dtype("<f4"),
    6: np.dtype("<i4"),
    7: np.dtype("<i8"),
    9: np.dtype("?"),
}
AttributeValue = float | int | str | tuple[float, ...] | tuple[int, ...] | tuple[str, ...] | npt.NDArray[Any]
T = TypeVar("T")

_MODEL: Final = Layout(
    "the model",
    {1: "int", 2: "bytes", 3: "bytes", 4: "bytes", 5: "int", 6: "bytes", 7: "bytes", 8: "many", 14: "many"},
    {20: "training-info", 25: "functions", 26: "device-configuration"},
)
METADATA_FIELD: Final = 14
_GRAPH: Final = Layout(
    "the graph",
    {1: "many", 2: "bytes", 5: "many", 10: "bytes", 11: "many", 12: "many", 13: "many", 16: "many"},
    {14: "quantization-annotation", 15: "sparse-initializers"},
)
_NODE: Final = Layout(
    "a node",
    {1: "many", 2: "many", 3: "bytes", 4: "bytes", 5: "many", 6: "bytes", 7: "bytes", 9: "many"},
    {8: "function-overload", 10: "device-configuration"},
)
_ATTRIBUTE: Final = Layout(
    "an attribute",
    {
        1: "bytes",
        2: "float",
        3: "int",
        4: "bytes",
        5: "bytes",
        7: "floats",
        8: "ints",
        9: "many",
        13: "bytes",
        20: "int",
    },
    {
        6: "subgraphs",
        10: "tensor-lists",
        11: "subgraphs",
        14: "type-attributes",
        15: "type-attributes",
        21: "function-attributes",
        22: "sparse-tensors",
        23: "sparse-tensors",
    },
)
_TENSOR: Final = Layout(
    "a tensor",
    {1: "ints", 2: "int", 8: "bytes", 9: "bytes", 12: "bytes", 14: "int", 16: "many"},
    {
        3: "segments",
        4: "numbers-outside-raw-data",
        5: "numbers-outside-raw-data",
        6: "strings",
        7: "numbers-outside-raw-data",
        10: "numbers-outside-raw-data",
        11: "numbers-outside-raw-data",
        13: "external-data",
    },
)
_PAIR: Final = Layout("a metadata entry", {1: "bytes", 2: "bytes"}, {})
_OPSET: Final = Layout("an opset", {1: "bytes", 2: "int"}, {})
_VALUE: Final = Layout("a value", {1: "bytes", 2: "bytes", 3: "bytes", 4: "many"}, {})
_TYPE: Final = Layout(
    "a type",
    {1: "bytes", 6: "bytes"},
    {4: "sequence-types", 5: "map-types", 7: "opaque-types", 8: "sparse-tensors", 9: "optional-types"},
)
_TENSOR_TYPE: Final = Layout("a tensor type", {1: "int", 2: "bytes"}, {})
_SHAPE: Final = Layout("a shape", {1: "many"}, {})
_DIMENSION: Final = Layout("a dimension", {1: "int", 2: "bytes", 3: "bytes"}, {})


@dataclass(frozen=True, slots=True)
class Tensor:
    """Named constant numbers. `raw_at` is the file offset of `raw`."""

    name: str
    dims: tuple[int, ...]
    dtype: int
    raw: memoryview
    raw_at: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    def array(self) -> npt.NDArray[Any]:
        """A read-only view of the numbers, shape `dims`."""
        return np.frombuffer(self.raw, DTYPES[self.dtype]).reshape(self.dims)


@dataclass(frozen=True, slots=True)
class Node:
    """One operation."""

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, AttributeValue]


@dataclass(frozen=True, slots=True)
class Value:
    """A graph input or output. `shape` holds None for a dynamic dimension and is None where unknown."""

    name: str
    dtype: int
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True)
class Model:
    """A whole file."""

    ir_version: int
    opsets: tuple[tuple[str, int], ...]
    nodes: tuple[Node, ...]
    initializers: tuple[Tensor, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    metadata: Mapping[str, str]

    def initializer(self, name: str) -> Tensor | None:
        """The initializer of that name."""
        return next((tensor for tensor in self.initializers if tensor.name == name), None)


def parse(data: bytes) -> Model:
    """Read a whole file. Raises UnsafeModel; never anything else, whatever the bytes."""
    model = model_message(data)
    body = model.one(7)
    if body is None:
        raise UnsafeModel("no-graph", "the file holds no graph: it is not an ONNX model")
    graph = Message(body.data, body.at, _GRAPH)
    return Model(
        ir_version=model.integer(1),
        opsets=tuple(_opset(field) for field in model.all(8)),
        nodes=tuple(_node(field) for field in graph.all(1)),
        initializers=tuple(_tensor(field) for field in graph.all(5)),
        inputs=tuple(_value(field) for field in graph.all(11)),
        outputs=tuple(_value(field) for field in graph.all(12)),
        metadata=_metadata(model),
    )


def model_message(data: bytes) -> Message:
    """The outermost message, its fields checked but not read deeper."""
    return Message(memoryview(data), 0, _MODEL)


def read_metadata(data: bytes) -> dict[str, str]:
    """`metadata_props` alone, without reading the graph. Raises UnsafeModel."""
    return _metadata(model_message(data))


def unique(pairs: Sequence[tuple[str, T]], what: str) -> dict[str, T]:
    """A dict of the pairs; a name that occurs twice is refused."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise UnsafeModel("duplicate-name", f"two {what} have the same name")
    return result


def _metadata(model: Message) -> dict[str, str]:
    pairs = [Message(field.data, field.at, _PAIR) for field in model.all(METADATA_FIELD)]
    return unique([(pair.text(1), pair.text(2)) for pair in pairs], "metadata entries")


def _opset(field: Field) -> tuple[str, int]:
    opset = Message(field.data, field.at, _OPSET)
    return opset.text(1), opset.integer(2)


def _tensor(field: Field) -> Tensor:
    message = Message(field.data, field.at, _TENSOR)
    name = message.text(8)
    if message.integer(14) != 0:
        raise UnsafeModel("external-data", f"tensor {name!r} keeps its numbers outside the file: export it inside")
    dtype, dims = message.integer(2), tuple(message.integers(1))
    if dtype not in DTYPES:
        raise UnsafeModel("dtype", f"tensor {name!r} has ONNX data type {dtype}; allowed are {sorted(DTYPES)}")
    if len(dims) > 8 or any(dim < 0 for dim in dims):
        raise UnsafeModel("dims", f"tensor {name!r} has the impossible shape {dims}")
    raw = message.one(9)
    length = len(raw.data) if raw else 0
    if length != math.prod(dims) * DTYPES[dtype].itemsize:
        raise UnsafeModel("raw-length", f"tensor {name!r} of shape {dims} holds {length} bytes of numbers")
    return Tensor(name, dims, dtype, raw.data if raw else memoryview(b""), raw.at if raw else 0)


def _node(field: Field) -> Node:
    message = Message(field.data, field.at, _NODE)
    attributes = unique([_attribute(part) for part in message.all(5)], "attributes of a node")
    return Node(
        op=message.text(4),
        domain=message.text(7),
        name=message.text(3),
        inputs=tuple(message.texts(1)),
        outputs=tuple(message.texts(2)),
        attributes=attributes,
    )


_READERS: Final[Mapping[int, tuple[int, Callable[[Message], AttributeValue]]]] = {
    1: (2, lambda m: m.floats(2)[0] if m.has(2) else 0.0),
    2: (3, lambda m: m.integer(3)),
    3: (4, lambda m: m.text(4)),
    4: (5, lambda m: _tensor(_present(m, 5)).array()),
    6: (7, lambda m: tuple(m.floats(7))),
    7: (8, lambda m: tuple(m.integers(8))),
    8: (9, lambda m: tuple(m.texts(9))),
}


def _present(message: Message, number: int) -> Field:
    field = message.one(number)
    if field is None:
        raise UnsafeModel("attribute", "an attribute names a tensor and holds none")
    return field


def _attribute(field: Field) -> tuple[str, AttributeValue]:
    message = Message(field.data, field.at, _ATTRIBUTE)
    name, kind = message.text(1), message.integer(20)
    if kind not in _READERS:
        raise UnsafeModel("attribute", f"attribute {name!r} has the type {kind}, which is not allowed")
    number, read = _READERS[kind]
    if any(message.has(other) for other, _ in _READERS.values() if other != number):
        raise UnsafeModel("attribute", f"attribute {name!r} holds values of two types")
    return name, read(message)


def _value(field: Field) -> Value:
    message = Message(field.data, field.at, _VALUE)
    name, kind = message.text(1), _part(message, 2, _TYPE)
    tensor = _part(kind, 1, _TENSOR_TYPE) if kind else None
    if tensor is None:
        raise UnsafeModel("types", f"the graph's input or output {name!r} is not a tensor")
    shape = _part(tensor, 2, _SHAPE)
    return Value(name, tensor.integer(1), tuple(_dimension(part) for part in shape.all(1)) if shape else None)


def _dimension(field: Field) -> int | None:
    message = Message(field.data, field.at, _DIMENSION)
    return message.integer(1) if message.has(1) else None


def _part(message: Message, number: int, layout: Layout) -> Message | None:
    field = message.one(number)
    return Message(field.data, field.at, layout) if field else None
