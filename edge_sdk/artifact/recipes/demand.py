"""Demand: how many visitors, sales or calls will this site have tomorrow, and between which bounds? Holds no data.

The model begins as the mean of the same place in the last four seasons (four Mondays for a Monday) and learns what to
add: a linear part and, with `hidden`, a layer that bends, because a Saturday follows a Friday otherwise than a Friday a
Thursday. All numbers are relative to the site's own level, so that one model serves a small site and a large one.
Refuses a season longer than the window, and a schema of another kind. docs/applications/demand.md has what it reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from edge_sdk.artifact.errors import SchemaError
from edge_sdk.artifact.fields import Calendar
from edge_sdk.artifact.recipes.kinds import check_fits
from edge_sdk.artifact.schema import CategoryField, Field, Label, Schema, SeriesField, check_schema, column_spans
from edge_sdk.artifact.starter import OUTPUT, gemm, node, serialise

WEEK: Final = 7
SEASONS: Final = 4
HIDDEN: Final = 32
# A closed site's zero lies nine units of log below its level: without a reach it would outweigh months of days.
REACH: Final = 2.5
# Of the usual bound of first weights: small ones keep gradients short, so that less noise hides them.
SHARE: Final = 0.3
DAYS: Final = ("holiday", "before_holiday", "after_holiday", "ordinary")

# A round is one step over all records of all devices. The clip is above the length of nine gradients in ten: a lower
# one costs nothing at the median, but it cuts the rare surprises and makes the interval too narrow.
TASK: Final[dict[str, Any]] = {
    "name": "demand",
    "unit": "record",
    "placement": "shared",
    "target_epsilon": 8.0,
    "delta": 1e-5,
    "rounds": 100,
    "sample_rate": 1.0,
    "units_per_device": 365,
    "max_grad_norm": 4.0,
    "learning_rate": 1.0,
    "server_optimizer": "adam",
    "server_learning_rate": 0.02,
    "server_tau": 1e-5,
    "server_decay": "linear",
    "metric": "wape",
    "release_every": 25,
    "profile": "P32",
}


def schema(
    *,
    window: int = 28,
    calendar: Sequence[Calendar] = ("weekday",),
    days: Sequence[str] = DAYS,
    more: Sequence[Field] = (),
    spread: float = 0.4,
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9),
) -> Schema:
    """The record: "recent" (the last `window` values), "day" (ISO date to forecast), "kind_of_day", and `more` fields.

    `calendar`: take "yearday" only where there is more than one year to learn from. `spread`: the usual distance of
    log(1 + demand) from the mean of its window, which makes the outputs about 1. "site" names whose series it is and
    may be left out. Raises SchemaError.
    """
    recent = SeriesField("recent", window, key="site", time="day", calendar=tuple(calendar))
    kinds = (CategoryField("kind_of_day", tuple(days)),) if days else ()
    label = Label("demand", "number", scale=spread, log=True, relative_to="recent", quantiles=quantiles)
    made = Schema((recent, *kinds, *more), label)
    check_schema(made)
    return made


def model(schema: Schema, seed: int, *, season: int = WEEK, hidden: int = HIDDEN) -> bytes:
    """ONNX bytes: logits = seasonal mean + linear(x) + head(relu(layer(x))), x the features within +-2.5.

    `season`: values after which the series repeats (five for a centre that is open five days a week). `hidden`: width
    of the layer, 0 for none; its weights are uniform in +-0.3 sqrt(6 / F), all other trained weights zero. Raises
    SchemaError.
    """
    check_fits(schema, "demand")
    if not schema.label.relative_to:
        what = f"the recipe 'demand' needs the series that {schema.label.name!r} continues"
        raise SchemaError("schema", f"{what}; name it in the label's relative_to")
    outputs, width = schema.label.outputs, schema.width
    weights: dict[str, Any] = {
        "reach.low": np.array(-REACH, np.float32),
        "reach.high": np.array(REACH, np.float32),
        "season.weight": _seasonal(schema, season),
        "season.bias": np.zeros(outputs, np.float32),
        "linear.weight": np.zeros((outputs, width), np.float32),
        "linear.bias": np.zeros(outputs, np.float32),
    }
    if hidden:
        drawn = np.random.default_rng(seed).random((hidden, width)) * 2 - 1
        weights["layer.weight"] = (drawn * SHARE * np.sqrt(6.0 / width)).astype(np.float32)
        weights["layer.bias"] = np.zeros(hidden, np.float32)
        weights["head.weight"] = np.zeros((outputs, hidden), np.float32)
        weights["head.bias"] = np.zeros(outputs, np.float32)
    trained = [name for name in weights if name.split(".")[0] in {"linear", "layer", "head"}]
    return serialise(schema, _nodes(bends=hidden > 0), weights, trained)


def _seasonal(schema: Schema, season: int) -> Any:
    """[outputs, F]: the mean of the last four values that lie whole seasons back, in the label's scale."""
    series = schema.series(schema.label.relative_to)
    if not 1 <= season <= series.window:
        raise SchemaError("schema", f"a season of {season} does not fit into a window of {series.window}")
    last = column_spans(schema)[series.name].start + series.window
    lags = list(range(season, series.window + 1, season))[:SEASONS]
    weight = np.zeros((schema.label.outputs, schema.width), np.float32)
    weight[:, [last - lag for lag in lags]] = 1.0 / (len(lags) * schema.label.scale)
    return weight


def _nodes(*, bends: bool) -> list[Any]:
    learnt = "linear.out"
    nodes = [
        node("Clip", ["features", "reach.low", "reach.high"], "inputs"),
        gemm("inputs", "season.weight", "season.bias", "season.out"),
        gemm("inputs", "linear.weight", "linear.bias", "linear.out"),
    ]
    if bends:
        learnt = "learnt"
        nodes += [
            gemm("inputs", "layer.weight", "layer.bias", "layer.sum"),
            node("Relu", ["layer.sum"], "layer.out"),
            gemm("layer.out", "head.weight", "head.bias", "head.out"),
            node("Add", ["linear.out", "head.out"], learnt),
        ]
    return [*nodes, node("Add", ["season.out", learnt], OUTPUT)]
