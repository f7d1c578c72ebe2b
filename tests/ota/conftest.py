"""Fixtures of the over-the-air tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from ota_fleet import Fleet, Link, new_repository


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    repository = new_repository(tmp_path / "aggregator")
    return Fleet(tmp_path, repository, Link(repository))
