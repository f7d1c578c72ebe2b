"""Service automation: what does this customer want? A text in, one of the operator's intents out. Holds no data.

A linear model on hashed n-grams, for English and Chinese alike. A text has length 1, so one clip fits all and the noise
in an intent's score does not grow with the width. `refusal` turns held-out scores into the confidence below which a
person answers. docs/applications/service.md has what was tried and what it reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_sdk.artifact.recipes.kinds import check_fits
from edge_sdk.artifact.recipes.texts import Language, text_classifier, text_field
from edge_sdk.artifact.schema import Label, Schema, check_schema

WIDTH: Final[dict[Language, int]] = {"en": 2048, "zh": 8192}

# A round is one step over all customers of all devices, and devices whose intents differ do not pull apart. With fewer
# than a thousand customers in all, a server_learning_rate of 0.03 and 30 rounds do better; without noise, 0.33.
TASK: Final[dict[str, Any]] = {
    "name": "intents",
    "unit": "customer",
    "placement": "shared",
    "target_epsilon": 8.0,
    "delta": 1e-5,
    "rounds": 60,
    "sample_rate": 1.0,
    "per_customer": 32,
    "n_max": 64,
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
    intents: Sequence[str],
    *,
    language: Language = "en",
    width: int | None = None,
    text: str = "text",
    label: str = "intent",
) -> Schema:
    """The record: one text. `width`: columns that its n-grams are hashed into. Raises SchemaError."""
    field = text_field(text, width or WIDTH[language], language, chinese=(1, 2, 3))
    made = Schema((field,), Label(label, "classes", tuple(intents)))
    check_schema(made)
    return made


def model(schema: Schema, seed: int) -> bytes:  # noqa: ARG001 - every recipe takes a seed
    """Softmax regression that starts at zero; the seed changes nothing. Raises SchemaError."""
    check_fits(schema, "service")
    return text_classifier(schema)


class Refusal(NamedTuple):
    """Below `threshold` a person answers. `caught`: share of foreign texts below it; `lost`: share of known ones."""

    threshold: float
    caught: float
    lost: float


def refusal(known: npt.NDArray[np.float64], foreign: npt.NDArray[np.float64], most_lost: float = 0.1) -> Refusal:
    """The highest threshold that hands over at most `most_lost` of the texts with a known intent.

    `known` [N], `foreign` [M]: best scores on held-out texts whose intent the model has, and on texts that have none
    of them. Raises ValueError without known ones.
    """
    if not len(known):
        raise ValueError("a threshold needs held-out texts with a known intent")
    threshold = float(np.sort(known)[int(most_lost * len(known))])
    caught = float(np.mean(foreign < threshold)) if len(foreign) else 0.0
    return Refusal(threshold, caught, float(np.mean(known < threshold)))
