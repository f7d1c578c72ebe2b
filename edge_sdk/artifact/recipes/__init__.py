"""Ready recipes, one module an application: a schema from plain parameters, a first model, the defaults of a task.

Each module has `schema(...)`, `model(schema, seed) -> ONNX bytes` and `TASK`, what `aggregator task create --spec`
reads. They hold no data. Models need `onnx`; none needs torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final, Protocol, cast

from edge_sdk.artifact.errors import SchemaError
from edge_sdk.artifact.recipes.kinds import KINDS
from edge_sdk.artifact.schema import Schema

APPLICATIONS: Final = tuple(KINDS)


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


def task(application: str, schema: Schema | None = None) -> dict[str, Any]:
    """The defaults of an application's task, for these records. Raises ValueError for an unknown one."""
    module = recipe(application)
    if application == "recommendation" and schema is not None and schema.label.kind == "number":
        from edge_sdk.artifact.recipes.recommendation import RATING_TASK

        return RATING_TASK
    return module.TASK


def fitting(schema: Schema) -> str | None:
    """The first application whose recipe makes a model for these records; None where they fit none."""
    for application in APPLICATIONS:
        try:
            recipe(application).model(schema, 0)
        except SchemaError:
            continue
        return application
    return None
