"""The errors of the model artefact. Imports nothing of ours.

* ArtifactError
  + UnsafeModel    the file may not be loaded on this device; the active model stays
  + WrongVector    an update does not fit the model's weights
  + RecordError    a record or label does not fit the model's schema
  + SchemaError    the schema itself is not usable

Every refusal carries a short `reason` that is counted and logged.
"""

from __future__ import annotations


class ArtifactError(ValueError):
    """Root of the tree. `reason` is a stable kebab-case word for counters and logs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class UnsafeModel(ArtifactError):
    """The file may not be loaded on this device."""


class WrongVector(ArtifactError):
    """An update does not fit the model's weights."""


class RecordError(ArtifactError):
    """A record or label does not fit the model's schema."""


class SchemaError(ArtifactError):
    """The schema itself is not usable."""
