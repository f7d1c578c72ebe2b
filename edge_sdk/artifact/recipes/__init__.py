"""Ready recipes, one module an application: a schema from plain parameters, a first model, the defaults of a task.

Each module has `schema(...)`, `model(schema, seed) -> ONNX bytes` and `TASK`, what `aggregator task create --spec`
reads. They hold no data. Models need `onnx`; none needs torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final, Protocol, cast

from edge_sdk.artifact.schema import Schema

APPLICATIONS: Final = ("churn", "demand", "recommendation", "satisfaction", "satisfaction_text", "service")


class Recipe(Protocol):
    """What every module here has, beside its own `schema(...)`."""

    TASK: dict[str, Any]

    def model(self, schema: Schema, seed: int) -> bytes:
        """The first checkpoint for these records, checked ONNX bytes. Raises SchemaError."""
        ...


def recipe(application: str) -> Recipe:
    """The module of an application. Raises ValueError naming those that there are."""
    if application not in APPLICATIONS:
        raise ValueError(f"there is no recipe {application!r}; choose from {', '.join(APPLICATIONS)}")
    return cast(Recipe, import_module(f"edge_sdk.artifact.recipes.{application}"))
