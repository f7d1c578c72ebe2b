"""The digest of a model's graph: what a weights-only release may not change. Imports no onnx.

The offline key signs this digest, so a stolen aggregator key can ship new weights and never a new graph.
"""

from __future__ import annotations

import hashlib
from typing import Final

from edge_sdk.artifact.graph import FLOAT, METADATA_FIELD, Model, model_message, parse
from edge_sdk.artifact.names import LOCKED, trainable_names

_DOMAIN: Final = b"chorale/graph/1"


def graph_digest(data: bytes) -> bytes:
    """32 bytes: SHA-256 of the file without its weights and its changeable metadata. Raises UnsafeModel.

    Left out are the numbers of the trainable initializers (of every float32 initializer where the file names
    none) and all metadata but the keys of `names.LOCKED`. Constants such as the shape of a Reshape stay in:
    they are part of what the graph computes.
    """
    model = parse(data)
    digest = hashlib.sha256(_DOMAIN)
    view, at = memoryview(data), 0
    for start, end in sorted(_weight_spans(model) + _metadata_spans(data)):
        digest.update(view[at:start])
        at = end
    digest.update(view[at:])
    for key in LOCKED:
        value = model.metadata.get(key, "").encode()
        digest.update(key.encode() + len(value).to_bytes(8, "little") + value)
    return digest.digest()


def _weight_spans(model: Model) -> list[tuple[int, int]]:
    # The lengths of the raw bytes stay in the digest through the dimensions and the length prefix.
    names = trainable_names(model) or [tensor.name for tensor in model.initializers if tensor.dtype == FLOAT]
    chosen = frozenset(names)
    return [(t.raw_at, t.raw_at + len(t.raw)) for t in model.initializers if t.name in chosen and len(t.raw)]


def _metadata_spans(data: bytes) -> list[tuple[int, int]]:
    return [(field.start, field.end) for field in model_message(data).all(METADATA_FIELD)]
