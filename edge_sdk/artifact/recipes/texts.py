"""What the recipes for texts share: n-grams by language, and a linear model without a bias. Holds no data."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np

from edge_sdk.artifact.schema import Schema, TextField, check_schema
from edge_sdk.artifact.starter import OUTPUT, node, serialise

# "en" holds for all languages that put spaces between words; a Chinese text needs no words found.
Language = Literal["en", "zh"]
_ENGLISH: Final = ((3, 4), (1, 2))  # sizes of n-grams of characters, and of words


def text_field(name: str, width: int, language: Language, chinese: tuple[int, ...]) -> TextField:
    """One text. `width`: columns that its n-grams are hashed into; `chinese`: sizes of n-grams of characters."""
    chars, words = _ENGLISH if language == "en" else (chinese, ())
    return TextField(name, width, chars=chars, words=words)


def bare_classifier(schema: Schema) -> bytes:
    """ONNX bytes of logits = W x, all zero. Raises SchemaError.

    A bias would add 1 to the squared length of every text, which is 1, so the clip would leave the text 0.7 of its
    gradient under the same noise. What is common in all texts takes the bias' place.
    """
    check_schema(schema)
    weights = {"head.weight": np.zeros((schema.label.outputs, schema.width), np.float32)}
    return serialise(schema, [node("Gemm", ["features", "head.weight"], OUTPUT, transB=1)], weights, list(weights))
