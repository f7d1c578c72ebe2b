"""Errors of the release repository. Imports nothing of ours.

* ReleaseError
  + ReleaseRefused      the repository will not sign this: wrong graph, too large, not newer
  + ReleaseNotFound     no such file, or a path that nobody may ask for
  + WrongPassphrase     an offline key does not open
"""

from __future__ import annotations


class ReleaseError(Exception):
    """Root of the tree. `reason` is a stable kebab-case word for counters and logs."""

    def __init__(self, message: str, *, reason: str = "unspecified") -> None:
        super().__init__(message)
        self.reason = reason


class ReleaseRefused(ReleaseError):
    """The repository will not sign this."""


class ReleaseNotFound(ReleaseError):
    """No such file, or a path that nobody may ask for."""


class WrongPassphrase(ReleaseError):
    """An offline key does not open."""
