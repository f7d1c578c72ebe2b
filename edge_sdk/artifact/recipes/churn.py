"""Churn: will this customer leave? Numbers and words about a customer in, a probability out. Holds no data.

Two models. `model` is logistic regression, which needs few records and says plainly what moved it; a number with
`edges` gets a weight for each interval, so it need not be a straight line. `bent_model` has a hidden layer, for reasons
to leave that only hold together. docs/applications/churn.md has what each reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from edge_sdk.artifact.recipes.kinds import check_fits
from edge_sdk.artifact.schema import CategoryField, Label, NumberField, Schema, check_schema
from edge_sdk.artifact.starter import tabular_classifier

HIDDEN: Final = 32

# A round is one step over all records of all devices. The clip is about the length of an encoded record: a lower one
# costs hardly any AUC, but leaves probabilities that are none.
TASK: Final[dict[str, Any]] = {
    "name": "churn",
    "unit": "customer",
    "placement": "shared",
    "target_epsilon": 8.0,
    "delta": 1e-5,
    "rounds": 100,
    "sample_rate": 1.0,
    "per_customer": 1,
    "units_per_device": 500,
    "max_grad_norm": 4.0,
    "learning_rate": 0.1,
    "server_optimizer": "momentum",
    "server_decay": "linear",
    "metric": "auc",
    "release_every": 25,
    "profile": "P32",
}


def schema(
    numbers: Sequence[NumberField],
    words: Mapping[str, Sequence[str]],
    *,
    missing: Sequence[str] = (),
    label: str = "churn",
    names: tuple[str, str] = ("no", "yes"),
) -> Schema:
    """The record: these numbers, and for each of `words` its vocabulary. `names[1]` is the customer who left.

    `missing`: words that may be None; a number says so itself. Raises SchemaError.
    """
    categories = (CategoryField(name, tuple(known), missing=name in missing) for name, known in words.items())
    made = Schema((*numbers, *categories), Label(label, "binary", names))
    check_schema(made)
    return made


def model(schema: Schema, seed: int) -> bytes:
    """Logistic regression that starts at zero; the seed changes nothing. Raises SchemaError."""
    check_fits(schema, "churn")
    return tabular_classifier(schema, (), seed)


def bent_model(schema: Schema, seed: int) -> bytes:
    """One hidden layer of 32. Needs more rounds than `model`: 200 to 300. Raises SchemaError."""
    check_fits(schema, "churn")
    return tabular_classifier(schema, (HIDDEN,), seed)
