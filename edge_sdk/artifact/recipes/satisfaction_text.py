"""Satisfaction from what a customer wrote: a tweet, a review, a closing line, in English or Chinese. Holds no data.

A linear model on hashed n-grams. A text has length 1, so one clip fits all. Chinese needs no words found.
docs/applications/satisfaction_text.md has what was tried and what it reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from edge_sdk.artifact.recipes.kinds import check_fits
from edge_sdk.artifact.recipes.texts import Language, text_classifier, text_field
from edge_sdk.artifact.schema import Label, Schema, check_schema

WIDTH: Final[dict[Language, int]] = {"en": 4096, "zh": 16384}

TASK: Final[dict[str, Any]] = {
    "name": "satisfaction-text",
    "unit": "record",
    "placement": "shared",
    "target_epsilon": 8.0,
    "delta": 1e-5,
    "rounds": 60,
    "sample_rate": 1.0,
    "n_max": 200,
    "units_per_device": 500,
    "max_grad_norm": 3.0,
    "learning_rate": 0.33,
    "server_optimizer": "adam",
    "server_learning_rate": 0.1,
    "metric": "accuracy",
    "release_every": 20,
    "profile": "P32",
}


def schema(
    names: Sequence[str] = ("negative", "positive"),
    *,
    language: Language = "en",
    width: int | None = None,
    text: str = "text",
    label: str = "satisfied",
) -> Schema:
    """The record: one text. Two `names` make a yes-or-no label, the second the satisfied one. Raises SchemaError."""
    field = text_field(text, width or WIDTH[language], language, chinese=(1, 2))
    made = Schema((field,), Label(label, "binary" if len(names) == 2 else "classes", tuple(names)))
    check_schema(made)
    return made


def model(schema: Schema, seed: int) -> bytes:  # noqa: ARG001 - every recipe takes a seed
    """Logistic or softmax regression that starts at zero; the seed changes nothing. Raises SchemaError."""
    check_fits(schema, "satisfaction_text")
    return text_classifier(schema)
