"""Errors of over-the-air models. Imports nothing of ours.

* OtaError
  + UpdateUnavailable     silence or absence: nothing is known to be wrong, ask again later
  + UpdateRefused         metadata or bytes that do not verify; the active model is untouched
    - ModelRefused        bytes that are signed and whole, yet unfit to run: quarantined by hash
  + DiskFull              no room for the new model; the active model is untouched
  + WrongPhase            a step out of order: a bug of ours
"""

from __future__ import annotations


class OtaError(Exception):
    """Root of the tree. `reason` is a stable kebab-case word for counters and logs."""

    def __init__(self, message: str, *, reason: str = "unspecified") -> None:
        super().__init__(message)
        self.reason = reason


class UpdateUnavailable(OtaError):
    """Silence or absence; ask again later."""


class UpdateRefused(OtaError):
    """Metadata or bytes that do not verify."""


class ModelRefused(UpdateRefused):
    """Signed and whole, yet unfit to run."""


class DiskFull(OtaError):
    """No room for the new model."""


class WrongPhase(OtaError):
    """A step out of order."""
