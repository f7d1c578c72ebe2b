"""What a rehearsal found: scores by run, the curve, what was promised. Holds figures; measures none."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from aggregator import tasks
from aggregator.errors import TaskRefused
from aggregator.evaluation import Heldout
from aggregator.rehearsal.choosing import Choice
from aggregator.rehearsal.fleet import Figures
from aggregator.rehearsal.population import Roaming
from aggregator.rehearsal.scores import Scores
from edge_sdk.artifact.schema import Schema
from edge_sdk.artifact.weights import read_vector
from edge_sdk.privacy import statement
from edge_sdk.protocol.messages import PrivacyTerms

Whole = npt.NDArray[np.int64]


@dataclass(slots=True)
class Trial:
    """What a rehearsal found. Scores by run; a run that could not be is not there."""

    metric: str
    schema: Schema
    spec: tasks.TaskSpec
    choice: Choice
    names: tuple[str, ...]
    train: Whole  # rows by device
    test: Whole
    heldout: Heldout
    owners: Whole
    terms: PrivacyTerms | None = None
    refused: TaskRefused | None = None
    scores: dict[str, Scores] = field(default_factory=dict)
    curve: list[tuple[int, float]] = field(default_factory=list)
    figures: list[Figures] = field(default_factory=list)
    outputs: npt.NDArray[np.float64] | None = None  # of the reported model over the test rows
    plain_seconds: float = 0.0
    masked: bool = True
    roaming: Roaming | None = None  # customer unit
    advice: list[str] = field(default_factory=list)

    @property
    def model(self) -> bytes:
        """The first checkpoint."""
        return self.choice.candidate.model

    @property
    def reported(self) -> str:
        """The run that calibration and confusion are drawn of."""
        return "fleet" if "fleet" in self.scores else "fleet_no_privacy"

    @property
    def statement(self) -> statement.PrivacyStatement | None:
        """What the whole task promises; None where it was refused."""
        if self.terms is None:
            return None
        return statement.state(self.terms, read_vector(self.model).size, self.spec.rounds, self.spec.n_min)

    def overall(self, run: str) -> float | None:
        """The metric of a run over all test rows."""
        return self.scores[run].overall.get(self.metric) if run in self.scores else None
