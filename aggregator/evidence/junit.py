"""Counts and digest of a JUnit file, as `pytest --junitxml FILE` writes it. Refuses (ConfigError) any other file."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Final

from aggregator.config import ConfigError

HINT: Final = "make it with `pytest --junitxml FILE`"
_SUITE: Final = re.compile(rb"<testsuite\s([^>]*)>")
_COUNT: Final = re.compile(rb'\b(tests|failures|errors|skipped)="([0-9]{1,9})"')
_WHEN: Final = re.compile(rb'\btimestamp="([0-9T:.+-]{10,40})"')


def read(path: Path) -> dict[str, Any]:
    """Tests, failures, errors, skipped, when, and the file's SHA-256 in hex. Raises ConfigError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", HINT) from error
    suites = _SUITE.findall(data)
    if not suites:
        raise ConfigError(f"{path} holds no test suite", HINT)
    total = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for attributes in suites:
        for name, count in _COUNT.findall(attributes):
            total[name.decode()] += int(count)
    when = _WHEN.search(suites[0])
    return {**total, "at": when[1].decode() if when else None, "sha256": hashlib.sha256(data).hexdigest()}
