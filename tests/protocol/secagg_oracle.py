"""The vectors' generator as a module: `tests` is a name that installed packages take, so it is loaded by its path."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location(
    "generate_secagg", Path(__file__).parents[1] / "vectors" / "generate_secagg.py"
)
assert _spec is not None
assert _spec.loader is not None
oracle = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracle)
