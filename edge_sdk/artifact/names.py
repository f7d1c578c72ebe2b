"""The metadata keys of a model file, and the trainable list, which fixes the order of the update vector."""

from __future__ import annotations

from typing import Final

import msgspec

from edge_sdk.artifact.errors import UnsafeModel
from edge_sdk.artifact.graph import FLOAT, Model, Tensor, unique

TRAINABLE: Final = "fl.trainable"
SCHEMA: Final = "fl.schema"
LOSS: Final = "fl.loss"
# What a weights-only release may never change; part of the graph digest.
LOCKED: Final = (LOSS, SCHEMA, TRAINABLE)
LOSSES: Final = ("binary_cross_entropy", "cross_entropy", "mse", "pinball")


def trainable_names(model: Model) -> list[str]:
    """The names of "fl.trainable", each a distinct float32 initializer; [] where the key is absent."""
    text = model.metadata.get(TRAINABLE)
    if text is None:
        return []
    try:
        names = msgspec.json.decode(text.encode(), type=list[str])
    except msgspec.DecodeError as error:
        raise UnsafeModel("trainable", f"{TRAINABLE} is not a JSON list of names: publish the model again") from error
    unique([(name, None) for name in names], "trainable weights")
    floats = {tensor.name for tensor in model.initializers if tensor.dtype == FLOAT}
    missing = [name for name in names if name not in floats]
    if missing:
        raise UnsafeModel("trainable", f"{TRAINABLE} names {missing[0]!r}, which is no float32 initializer")
    return names


def trainable_tensors(model: Model) -> list[Tensor]:
    """The trainable initializers in the order of the update vector. Raises UnsafeModel where there are none."""
    names = trainable_names(model)
    if not names:
        raise UnsafeModel("trainable", f"the model has no {TRAINABLE} metadata: publish it with artifact.publish")
    by_name = {tensor.name: tensor for tensor in model.initializers}
    return [by_name[name] for name in names]
