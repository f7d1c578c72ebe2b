"""Which fields pushed a prediction, and how far: each field's columns are put out in turn and the model asked again.

Occlusion (Zeiler and Fergus 2014, on fields in place of image patches). A push is a statement about the model, not
about the world: of two fields that say the same, each may get part of the push or none. Needs no torch. Refuses records
that do not fit the schema (RecordError).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge_sdk.artifact.features import INPUT, features
from edge_sdk.artifact.schema import Schema, column_spans

Array = npt.NDArray[Any]
Neutral = Literal["typical"] | Mapping[str, Any]


def pushes(
    schema: Schema, run: Callable[[Array], Array], record: Mapping[str, Any], neutral: Neutral = "typical"
) -> list[tuple[str, float]]:
    """(field, how much its value moved the predicted logit), the strongest first.

    `run`: features float32 [B, F] to logits float32 [B, K]; called once, with one row a field and one for the record
    itself. `neutral`: what stands in for a field that is put out. "typical" is all zeros: the mean of a number, no
    word, no text. A record takes its own values instead, such as those of the median customer. The logit is that of the
    predicted class; of a binary label, always that of its second name, so that a push below 0 speaks against it; of a
    number, the prediction in scales. Raises RecordError.
    """
    spans = column_spans(schema)
    row = features(schema, [record])[INPUT]
    stand_in = np.zeros_like(row) if neutral == "typical" else features(schema, [neutral])[INPUT]
    rows = np.repeat(row, 1 + len(spans), axis=0)
    for place, columns in enumerate(spans.values(), start=1):
        rows[place, columns] = stand_in[0, columns]
    scores = _predicted(schema, np.asarray(run(rows), np.float64).reshape(len(rows), -1))
    found = [(name, float(scores[0] - score)) for name, score in zip(spans, scores[1:], strict=True)]
    return sorted(found, key=lambda push: -abs(push[1]))


def _predicted(schema: Schema, logits: Array) -> Array:
    """[B]: the logit of what the first row predicts."""
    if schema.label.kind == "classes":
        return logits[:, int(logits[0].argmax())]
    if schema.label.kind == "number":
        return logits[:, schema.label.median]
    return logits[:, 0]
