"""One trained home for all tests of evidence; the small fleet of the aggregator's tests makes it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "aggregator"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy it before anything is changed."""
    from evidence_home import trained_home

    wishes = {"consent": 3, "target_epsilon": 6.0, "noise_multiplier": None}
    return trained_home(tmp_path_factory.mktemp("evidence") / "home", **wishes)
