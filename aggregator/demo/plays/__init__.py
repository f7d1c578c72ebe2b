"""The demo's applications, one module each with a `PLAY`. Refuses a name it does not know, and says which it knows."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from aggregator.config import ConfigError
from aggregator.demo.play import Play

PLAYS: Final = ("churn", "intents", "demand", "satisfaction", "recommend")


def play(name: str) -> Play:
    """The application of this name. Raises ConfigError."""
    if name not in PLAYS:
        raise ConfigError(f"there is no demo {name!r}", f"choose one of {', '.join(PLAYS)}")
    found: Play = import_module(f"aggregator.demo.plays.{name}").PLAY
    return found
