"""Satisfaction from a survey: ratings and a few words in, the probability of a satisfied customer out. Holds no data.

Each rating has a weight of its own for every point of the scale and one for "not answered", which means that the
service was not used. Nothing has to be learned before the first round: the scale says where the ratings lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from edge_sdk.artifact.recipes.kinds import check_fits
from edge_sdk.artifact.schema import CategoryField, Label, NumberField, Schema, check_schema
from edge_sdk.artifact.starter import tabular_classifier

TASK: Final[dict[str, Any]] = {
    "name": "satisfaction",
    "unit": "record",
    "placement": "shared",
    "target_epsilon": 8.0,
    "delta": 1e-5,
    "rounds": 100,
    "sample_rate": 1.0,
    "units_per_device": 500,
    "max_grad_norm": 4.0,
    "learning_rate": 0.15,
    "server_optimizer": "momentum",
    "server_decay": "linear",
    "metric": "auc",
    "release_every": 25,
    "profile": "P32",
}


def schema(
    ratings: Sequence[str],
    words: Mapping[str, Sequence[str]],
    *,
    best: int = 5,
    label: str = "satisfied",
    names: tuple[str, str] = ("no", "yes"),
) -> Schema:
    """The record: ratings from 1 to `best`, and words with their vocabularies; None where one was not answered.

    `names[1]` is the satisfied customer. Raises SchemaError.
    """
    between = tuple(point + 0.5 for point in range(1, best))
    numbers = (NumberField(name, 0.8 * best, best / 5, missing=True, edges=between) for name in ratings)
    categories = (CategoryField(name, tuple(known), missing=True) for name, known in words.items())
    made = Schema((*numbers, *categories), Label(label, "binary", names))
    check_schema(made)
    return made


def model(schema: Schema, seed: int) -> bytes:
    """Logistic regression that starts at zero; the seed changes nothing. Raises SchemaError."""
    check_fits(schema, "satisfaction")
    return tabular_classifier(schema, (), seed)
