"""What the operator is told when something cannot be done: always with a remedy. Imports nothing of ours.

* AggregatorError        the command line prints `aggregator: error: …` and `aggregator: hint: …`
  + TaskRefused          the task as described could not run, or not safely
  + HomeRefused          the home directory or its database is not one that this version can use
  + ModelRefused         a model failed its checks, or the gates before a release
  + DiskFull             nothing was lost, but nothing more can be taken
"""

from __future__ import annotations


class AggregatorError(Exception):
    """Root of the tree. `hint` names the remedy; `reason` is a stable kebab-case word for counters."""

    def __init__(self, message: str, hint: str = "", *, reason: str = "unspecified") -> None:
        super().__init__(message)
        self.hint = hint
        self.reason = reason


class TaskRefused(AggregatorError):
    """The task as described could not run, or not safely."""


class HomeRefused(AggregatorError):
    """The home directory or its database is not one that this version can use."""


class ModelRefused(AggregatorError):
    """A model failed its checks, or the gates before a release."""


class DiskFull(AggregatorError):
    """Nothing was lost, but nothing more can be taken."""
