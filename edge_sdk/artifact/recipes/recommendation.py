"""Recommendation: what will this visitor want next? Holds no data.

What is personal stays on the device: the visitor's history is the model's input, never its weight. What the fleet
learns is the side of the items. Two models. `model` scores the items of a catalogue against a visitor's history; where
the catalogue's descriptions are given it knows before the first round which items are alike, and private training only
has to weigh that. `rating_model` predicts a grade from the visitor's own level and the item. Refuses a catalogue that
does not fit the schema. docs/applications/recommendation.md has what each reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edge_sdk.artifact.errors import SchemaError
from edge_sdk.artifact.recipes.kinds import check_fits
from edge_sdk.artifact.schema import (
    CategoryField,
    Field,
    Label,
    Schema,
    SequenceField,
    SeriesField,
    check_schema,
    column_spans,
)
from edge_sdk.artifact.starter import OUTPUT, gemm, node, serialise
from edge_sdk.artifact.text import hash_all

TASTES: Final = 512
FACTORS: Final = 64
GRAMS: Final = 2**14
SHARPNESS: Final = 15.0  # of the first scores: larger makes the model surer of what the catalogue says
PAST: Final = 0.6  # weight of the whole history beside the latest visit, before training
NEIGHBOURS: Final = 0.5  # weight of standing close together in the catalogue, beside alike descriptions
REACH: Final = 3.0  # places in the catalogue after which that weight has fallen to 1/e
BOUGHT: Final = -20.0  # the score of what the visitor has: no probability is spent on it
# How far a step of the tastes' weights reaches beside one of the items' own: a single clip then serves both.
PACE: Final = 14.0
ENOUGH: Final = 10.0  # ratings after which half of a visitor's own level is believed
MIDDLE: Final = 3.0  # of the grades
EVENLY: Final = 0.15  # what is true of every rating has so much smaller inputs than an item, or it would fill the clip

Floats = npt.NDArray[np.float32]

# Few long steps: the first model already knows what is alike, and only weighs it. No momentum, which overshoots in ten.
TASK: Final[dict[str, Any]] = {
    "name": "recommendation",
    "unit": "customer",
    "placement": "shared",
    "target_epsilon": 8.0,
    "delta": 1e-5,
    "rounds": 10,
    "sample_rate": 1.0,
    "per_customer": 3,
    "units_per_device": 100,
    "max_grad_norm": 2.0,
    "learning_rate": 100.0,
    "server_decay": "cosine",
    "metric": "hit_rate_10",
    "release_every": 10,
    "profile": "P32",
}
# For `rating_model`: every item has a weight of its own to find.
RATING_TASK: Final[dict[str, Any]] = TASK | {
    "name": "rating",
    "rounds": 30,
    "per_customer": 100,
    "max_grad_norm": 4.0,
    "learning_rate": 8.0,
    "server_optimizer": "momentum",
    "server_decay": "linear",
    "metric": "rmse",
}


def schema(items: Sequence[str], *, last: int = 400, label: str = "next") -> Schema:
    """The record: "history" (all items so far, oldest first) and "basket" (those of the latest visit); both in full.

    What is in the history is not recommended again. `last`: items of the history that are read. Raises SchemaError.
    """
    known = tuple(items)
    fields = (SequenceField("basket", known, last=last), SequenceField("history", known, last=last))
    made = Schema(fields, Label(label, "classes", known, unseen_of="history"))
    check_schema(made)
    return made


def rating_schema(
    items: Sequence[str],
    words: Mapping[str, Sequence[str]],
    *,
    window: int = 100,
    label: str = "rating",
    more: Sequence[Field] = (),
) -> Schema:
    """The record: "own" (the visitor's earlier grades, at most `window`), "item", and words with their vocabularies.

    Raises SchemaError.
    """
    own = SeriesField("own", window, key="visitor", log=False)
    kinds = (CategoryField(name, tuple(known)) for name, known in words.items())
    made = Schema((own, CategoryField("item", tuple(items)), *kinds, *more), Label(label, "number", mean=MIDDLE))
    check_schema(made)
    return made


def catalogue(descriptions: Sequence[str], width: int = TASTES) -> Floats:
    """Where each item lies in the taste space, float32 [I, width], from what an operator publishes of it anyway.

    Two items are alike by the words, word pairs and fours of letters of their descriptions (weighted by their rarity in
    the catalogue), and by standing near each other in it. The rows are V diag(s)^(1/4) of the `width` largest
    eigenvalues s of that likeness, so the product of two rows is its square root: broad likeness counts for less.
    `width` falls to the number of items. Takes I^3 steps: seconds for thousands of items.
    """
    grams = np.zeros((len(descriptions), GRAMS), np.float32)
    rows, buckets, values = hash_all(descriptions, GRAMS, (4,), (1, 2))
    grams[rows, buckets] = values
    grams *= np.log(len(descriptions) / np.maximum((grams != 0).sum(axis=0), 1)).astype(np.float32)
    lengths = np.linalg.norm(grams, axis=1, keepdims=True)
    grams /= np.where(lengths > 0, lengths, 1.0)
    places = np.arange(len(descriptions))
    alike = grams @ grams.T + NEIGHBOURS * np.exp(-np.abs(places[:, None] - places) / REACH)
    sizes, directions = np.linalg.eigh(alike.astype(np.float64))
    kept = slice(None, -1 - min(width, len(places)), -1)
    return np.asarray(directions[:, kept] * np.maximum(sizes[kept], 0.0) ** 0.25, np.float32)


def model(schema: Schema, seed: int, *, tastes: Floats | None = None, factors: int | None = None) -> bytes:
    """ONNX bytes: scores of all items, float32 [B, I].

    scores = E (a * (E' basket) + b * (E' history)) + popularity + (second layer of first layer of both), where E is
    `tastes` [I, d] of `catalogue`, fixed, and all else is trained. `factors`: width of the first layer, which learns
    what is bought together and starts random, while the second starts at zero; not given, it is 64 without `tastes` and
    0 with. It has three weights an item for each factor, too many for private training of a few thousand visitors.
    A schema of grades gives `rating_model`. Raises SchemaError.
    """
    check_fits(schema, "recommendation")
    if schema.label.kind == "number":
        return rating_model(schema, seed)
    spans, count = column_spans(schema), len(schema.label.names)
    for name in ("basket", "history"):
        if name not in spans or spans[name].stop - spans[name].start != count + 1:
            raise SchemaError("schema", f"{name!r} has to be a sequence over the {count} items that are ranked")
    if tastes is not None and (tastes.ndim != 2 or len(tastes) != count):
        raise SchemaError("schema", f"tastes of shape {list(tastes.shape)} do not fit {count} items")
    width = factors if factors is not None else (0 if tastes is not None else FACTORS)
    weights = _spans(spans, count) | _liked(tastes) | _together(width, schema, seed)
    weights |= {"popularity": np.zeros(count, np.float32), "bought": np.array(BOUGHT, np.float32)}
    weights["nothing"] = np.array(0.0, np.float32)
    trained = [name for name in weights if name.split(".")[0] in {"liking", "together", "popularity"}]
    return serialise(schema, _nodes(tastes is not None, width > 0), weights, trained)


def _spans(spans: Mapping[str, slice], count: int) -> dict[str, Any]:
    """Where Slice finds the items of each field; the column for unknown items is left out."""
    bounds: dict[str, Any] = {"columns": np.array([1], np.int64)}
    for name in ("basket", "history"):
        bounds[f"{name}.first"] = np.array([spans[name].start], np.int64)
        bounds[f"{name}.end"] = np.array([spans[name].start + count], np.int64)
    return bounds


def _liked(tastes: Floats | None) -> dict[str, Any]:
    if tastes is None:
        return {}
    width = tastes.shape[1]
    return {
        "tastes": np.asarray(tastes, np.float32),
        "pace": np.array(PACE, np.float32),
        "liking.basket": np.full(width, SHARPNESS / PACE, np.float32),
        "liking.history": np.full(width, SHARPNESS * PAST / PACE, np.float32),
    }


def _together(width: int, schema: Schema, seed: int) -> dict[str, Any]:
    if not width:
        return {}
    drawn = np.random.default_rng(seed).standard_normal((width, schema.width))
    return {
        "together.inner": (drawn / np.sqrt(width)).astype(np.float32),
        "together.shift": np.zeros(width, np.float32),
        "together.outer": np.zeros((width, len(schema.label.names)), np.float32),
    }


def _nodes(alike: bool, together: bool) -> list[Any]:
    parts, fields = [], ("basket", "history")
    nodes = [node("Slice", ["features", f"{name}.first", f"{name}.end", "columns"], name) for name in fields]
    if alike:
        nodes += [
            *(node("MatMul", [name, "tastes"], f"{name}.taste") for name in fields),
            *(node("Mul", [f"{name}.taste", f"liking.{name}"], f"{name}.liked") for name in fields),
            node("Add", ["basket.liked", "history.liked"], "liked"),
            node("Mul", ["liked", "pace"], "liking"),
            node("Transpose", ["tastes"], "items", perm=[1, 0]),
            node("MatMul", ["liking", "items"], "alike"),
        ]
        parts.append("alike")
    if together:
        nodes += [
            gemm("features", "together.inner", "together.shift", "inner"),
            node("MatMul", ["inner", "together.outer"], "together"),
        ]
        parts.append("together")
    total = parts[0]
    if len(parts) == 2:
        total = "sum"
        nodes.append(node("Add", parts, total))
    return [
        *nodes,
        node("Add", [total, "popularity"], "scores"),
        node("Greater", ["history", "nothing"], "has"),
        node("Where", ["has", "bought", "scores"], OUTPUT),
    ]


def rating_model(schema: Schema, seed: int) -> bytes:  # noqa: ARG001 # recipes take a seed; nothing is random here
    """ONNX bytes: the grade, float32 [B, 1], relative to the middle of the scale: what `rating_schema` asks for.

    w * s * (the visitor's own mean - middle) + v * s + item + words, with s = n / (n + 10) for n own grades. It
    starts at w = 1 and zeros: the visitor's own level, believed as far as there are grades. Raises SchemaError.
    """
    check_fits(schema, "recommendation")
    spans = column_spans(schema)
    for name in ("own", "item"):
        if name not in spans:
            what = f"a grade needs the fields 'own' (a series) and 'item', and {name!r} is not there"
            raise SchemaError("schema", f"{what}; make the schema with recommendation.rating_schema")
    own = schema.series("own")
    if schema.fields[0] is not own or own.log or own.calendar:
        raise SchemaError("schema", "'own' has to be the first field, a series without logarithm and calendar")
    words = schema.width - own.width
    evenly = np.full(words, EVENLY)
    evenly[: spans["item"].stop - own.width] = 1.0
    weights: dict[str, Any] = {
        "columns": np.array([1], np.int64),
        "level.first": np.array([own.window], np.int64),
        "gone.first": np.array([own.window + 1], np.int64),
        "rest.first": np.array([own.width], np.int64),
        "rest.end": np.array([schema.width], np.int64),
        "five": np.array(5.0, np.float32),
        "one": np.array(1.0, np.float32),
        "window": np.array(own.window, np.float32),
        "enough": np.array(ENOUGH, np.float32),
        "middle": np.array(1.0 + MIDDLE, np.float32),
        "evenly": evenly.astype(np.float32),
        "evenly.own": np.array(EVENLY, np.float32),
        "visitor.weight": np.array([[1.0 / EVENLY], [0.0]], np.float32),
        "items.weight": np.zeros((words, 1), np.float32),
    }
    trained = ["visitor.weight", "items.weight"]
    return serialise(schema, _rating_nodes(), weights, trained)


def _rating_nodes() -> list[Any]:
    return [
        node("Slice", ["features", "level.first", "gone.first", "columns"], "level.log"),
        node("Slice", ["features", "gone.first", "rest.first", "columns"], "gone"),
        node("Slice", ["features", "rest.first", "rest.end", "columns"], "rest"),
        # The level comes as log(1 + mean) / 5, the number of grades as the share of the window that is empty.
        node("Mul", ["level.log", "five"], "level.whole"),
        node("Exp", ["level.whole"], "level.one"),
        node("Sub", ["level.one", "middle"], "level"),
        node("Sub", ["one", "gone"], "there"),
        node("Mul", ["there", "window"], "count"),
        node("Add", ["count", "enough"], "count.more"),
        node("Div", ["count", "count.more"], "sure"),
        node("Mul", ["sure", "level"], "shift"),
        node("Concat", ["shift", "sure"], "visitor.both", axis=1),
        node("Mul", ["visitor.both", "evenly.own"], "visitor"),
        node("MatMul", ["visitor", "visitor.weight"], "by.visitor"),
        node("Mul", ["rest", "evenly"], "about"),
        node("MatMul", ["about", "items.weight"], "by.item"),
        node("Add", ["by.visitor", "by.item"], OUTPUT),
    ]
