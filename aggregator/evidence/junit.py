"""Counts and digest of a JUnit file, as `pytest --junitxml FILE` writes it.

A suite within a suite is counted with the outer one. Refuses (ConfigError) any other file, a suite that does not say
how many tests it has, a file of no test at all, and one that declares entities.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Final
from xml.parsers import expat

from aggregator.config import ConfigError

HINT: Final = "make it with `pytest --junitxml FILE`"
COUNTS: Final = ("tests", "failures", "errors", "skipped")
_COUNT: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
_WHEN: Final = re.compile(r"[0-9T:.+-]{10,40}", re.ASCII)
Attributes = dict[str, str]


def read(path: Path) -> dict[str, Any]:
    """Tests, failures, errors, skipped, when, and the file's SHA-256 in hex. Raises ConfigError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", HINT) from error
    try:
        suites = _outermost(data)
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise ConfigError(f"{path} is no JUnit file: {error}", HINT) from error
    if not suites:
        raise ConfigError(f"{path} holds no test suite", HINT)
    try:
        total = {name: sum(_count(suite, name) for suite in suites) for name in COUNTS}
    except ValueError as error:
        raise ConfigError(f"{path}: {error}", HINT) from error
    if total["tests"] == 0:
        raise ConfigError(f"{path} counts no test", f"{HINT}, and look at why none was collected")
    when = suites[0].get("timestamp", "")
    return {**total, "at": when if _WHEN.fullmatch(when) else None, "sha256": hashlib.sha256(data).hexdigest()}


def _outermost(data: bytes) -> list[Attributes]:
    """The attributes of every test suite that is not within another. Raises ExpatError, and ValueError for a DTD."""
    parser, found, within = expat.ParserCreate(), list[Attributes](), [0]

    def start(name: str, attributes: Attributes) -> None:
        if name == "testsuite":
            if not within[0]:
                found.append(attributes)
            within[0] += 1

    def end(name: str) -> None:
        within[0] -= name == "testsuite"

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type, which may declare entities")

    parser.StartElementHandler, parser.EndElementHandler, parser.StartDoctypeDeclHandler = start, end, refuse
    parser.Parse(data, True)
    return found


def _count(suite: Attributes, name: str) -> int:
    """A suite's count; what it does not say of its failures, errors or skipped tests is 0. Raises ValueError."""
    said = suite.get(name, "" if name == "tests" else "0")
    if not _COUNT.fullmatch(said):
        raise ValueError(f"the suite {suite.get('name', '')[:60]!r} gives no count of its {name}")
    return int(said)
