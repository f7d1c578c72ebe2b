"""A model's trainable weights as one float32 vector, and back. Works on the bytes; imports no onnx.

Both sides of a round write the same bytes for the same vector and metadata: numbers are overwritten in
place and metadata is written last, sorted by key. Refuses a vector of the wrong length or with NaN.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edge_sdk.artifact.errors import WrongVector
from edge_sdk.artifact.graph import METADATA_FIELD, model_message, parse, read_metadata
from edge_sdk.artifact.names import LOCKED, trainable_tensors
from edge_sdk.artifact.wire import write_bytes

Vector = npt.NDArray[np.float32]


def metadata(data: bytes) -> dict[str, str]:
    """Everything in `metadata_props`. Raises UnsafeModel."""
    return read_metadata(data)


def trainable(data: bytes) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every trainable initializer, in the order of the update vector. Raises UnsafeModel."""
    return [(tensor.name, tensor.dims) for tensor in trainable_tensors(parse(data))]


def read_vector(data: bytes) -> Vector:
    """The weights, float32 [d], in the order of `trainable` and the layout of ONNX. Raises UnsafeModel."""
    tensors = trainable_tensors(parse(data))
    return np.concatenate([tensor.array().reshape(-1) for tensor in tensors]).astype(np.float32)


def write_vector(data: bytes, vector: Vector, metadata: Mapping[str, str] | None = None) -> bytes:
    """The same file with other weights, float32 [d], and its metadata updated by `metadata`.

    Raises WrongVector for a wrong length, a value that is not finite, or a locked metadata key with a new value.
    """
    model = parse(data)
    tensors = trainable_tensors(model)
    _check_vector(vector, sum(tensor.size for tensor in tensors))
    merged = _merge(model.metadata, metadata or {})
    numbers = vector.astype("<f4").tobytes()
    out, at = bytearray(data), 0
    for tensor in tensors:
        out[tensor.raw_at : tensor.raw_at + len(tensor.raw)] = numbers[at : at + len(tensor.raw)]
        at += len(tensor.raw)
    for field in reversed(model_message(data).all(METADATA_FIELD)):
        del out[field.start : field.end]
    for key in sorted(merged):
        out += _entry(key, merged[key])
    return bytes(out)


def _entry(key: str, value: str) -> bytes:
    return write_bytes(METADATA_FIELD, write_bytes(1, key.encode()) + write_bytes(2, value.encode()))


def _merge(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    for key in LOCKED:
        if key in new and new[key] != old.get(key):
            raise WrongVector("locked-metadata", f"{key} belongs to the graph: publish a new model to change it")
    return {**old, **new}


def _check_vector(vector: Vector, length: int) -> None:
    if vector.ndim != 1 or vector.size != length:
        shape = list(vector.shape)
        raise WrongVector("wrong-length", f"the model has {length} trainable weights and the vector has shape {shape}")
    if not np.isfinite(vector).all():
        count = int(np.count_nonzero(~np.isfinite(vector)))
        raise WrongVector("not-finite", f"{count} of {length} weights are NaN or infinite: drop this update")
