"""The SDK that a device app embeds. Importing it loads nothing heavy; the public names are resolved when used."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import edge_sdk.testing  # noqa: F401 - tells type checkers of the submodule
    from edge_sdk.answer import Answer
    from edge_sdk.client import EdgeClient, init
    from edge_sdk.config import Config, ConfigError

__all__ = ["Answer", "Config", "ConfigError", "EdgeClient", "init", "testing"]

_HOMES = {
    "Answer": "edge_sdk.answer",
    "Config": "edge_sdk.config",
    "ConfigError": "edge_sdk.config",
    "EdgeClient": "edge_sdk.client",
    "init": "edge_sdk.client",
}

logging.getLogger("edge_sdk").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """PEP 562: a public name is looked up in its module with its first use."""
    if name == "testing":
        return importlib.import_module("edge_sdk.testing")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"edge_sdk has no {name!r}; its names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
