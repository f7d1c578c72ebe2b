"""Scales of every number of a task's records, learned privately: the question, and the schema with its answer. Pure.

Refuses, with TaskRefused, a schema without numbers. A number that the answer does not tell keeps what it had.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from aggregator.asking import around
from aggregator.errors import TaskRefused
from edge_sdk.artifact.recipes import fitting
from edge_sdk.artifact.schema import Field, NumberField, Schema
from edge_sdk.protocol.messages import Query, Statistic

BINS: Final = 32
CROWDED: Final = 0.2  # a part at either end with so large a share hints at values beyond the bounds
NAME: Final = "scales"
LONGEST: Final = 41  # of a task's name, to which "-scaled" is added


def question(schema: Schema, ranges: Mapping[str, tuple[float, float]]) -> Query:
    """Moments and a histogram of every number; `ranges`: field -> bounds, where the schema's are not meant."""
    numbers = [field for field in schema.fields if isinstance(field, NumberField)]
    if unknown := sorted(ranges.keys() - {field.name for field in numbers}):
        raise TaskRefused(f"{unknown[0]!r} is no number of the records", "see the task's schema", reason="question")
    if not numbers:
        raise TaskRefused("the records hold no number", "scales are of numbers alone", reason="question")
    statistics = []
    for field in numbers:
        low, high = ranges.get(field.name) or around(field.mean, field.scale)
        statistics.append(Statistic("moments", field.name, low, high, 0, ()))
        statistics.append(Statistic("histogram", field.name, low, high, BINS, ()))
    return Query(NAME, tuple(statistics))


def learned(schema: Schema, figures: Sequence[Mapping[str, Any]], intervals: int) -> tuple[Schema, list[str]]:
    """The schema with means and scales as answered, and what to look at.

    `intervals`: so many with equally many values each, as edges of one-hot columns; 0 leaves the edges as they are.
    """
    by_field: dict[str, dict[str, Mapping[str, Any]]] = {}
    for figure in figures:
        by_field.setdefault(figure["field"], {})[figure["kind"]] = figure
    fields: list[Field] = []
    notes: list[str] = []
    for field in schema.fields:
        found = by_field.get(field.name)
        if not isinstance(field, NumberField) or found is None:
            fields.append(field)
            continue
        mean, spread = (found["moments"][name]["value"] for name in ("mean", "deviation"))
        if mean is None or not spread:
            notes.append(f"{field.name}: too few values under so much noise; it keeps mean {field.mean:g}")
            fields.append(field)
            continue
        notes += _beyond(field.name, found["histogram"])
        edges = _edges(found["histogram"], intervals) if intervals > 1 else field.edges
        fields.append(replace(field, mean=_short(mean), scale=_short(spread), edges=edges))
    return replace(schema, fields=tuple(fields)), notes


def _beyond(name: str, histogram: Mapping[str, Any]) -> list[str]:
    ends = [(histogram["shares"][place]["value"] or 0.0, histogram["edges"][place]) for place in (0, -1)]
    return [
        f"{name}: {share:.0%} of its values lie at {edge:g}, the end of what was asked; ask again with other bounds"
        for share, edge in ends
        if share > CROWDED
    ]


def _edges(histogram: Mapping[str, Any], intervals: int) -> tuple[float, ...]:
    """Ascending borders between parts of about as many values."""
    shares = [max(0.0, share["value"] or 0.0) for share in histogram["shares"]]
    total, below = sum(shares) or 1.0, 0.0
    found: list[float] = []
    for share, edge in zip(shares, histogram["edges"][1:], strict=True):
        below += share / total
        if below >= (len(found) + 1) / intervals and len(found) < intervals - 1 and edge < histogram["edges"][-1]:
            found.append(_short(edge))
    return tuple(sorted(set(found)))


def next_steps(schema: Schema, file: str, task: str) -> list[str]:
    """The commands that make a model of a schema in this file, and a task of the model beside this one."""
    application, quoted, name = fitting(schema), shlex.quote(file), f"{task[:LONGEST]}-scaled"
    if application is None:
        made = "pathlib.Path('model.onnx').write_bytes(starter.linear_classifier("
        made += "schema.Schema.from_json(pathlib.Path(sys.argv[1]).read_bytes())))"
        imports = "import pathlib, sys; from edge_sdk.artifact import schema, starter"
        return [
            f'python -c "{imports}; {made}" {quoted}',
            f"aggregator task create {name} --model model.onnx --epsilon 8",
        ]
    files = f"--model model/{application}.onnx --spec model/{application}.task.json"
    return [
        f"python -m edge_sdk.artifact.recipes {application} --out model --schema {quoted}",
        f"aggregator task create {name} {files}",
    ]


def _short(value: float) -> float:
    """Four digits: more would be noise."""
    return float(f"{value:.4g}")
