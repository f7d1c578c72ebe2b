"""`aggregator evidence`: in the making."""

from __future__ import annotations

from typing import Any


def add_evidence(commands: Any, add: Any) -> None:
    """Nothing yet."""
