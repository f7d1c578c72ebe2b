"""One real data set as a benchmark sees it: rows of natural clients, a model, and the settings it is trained with.

Every choice (features, model, rounds, clip) is made on the validation part of the training rows; the test rows give the
published figure and nothing else. Refuses rows that do not fit together, and settings that nobody reads.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from edge_sdk.artifact.schema import Schema
from edge_sdk.protocol.messages import Unit

if TYPE_CHECKING:
    from edge_sdk.training.plain import PlainPlan

Array = npt.NDArray[Any]
Application = Literal["demand", "churn", "satisfaction", "recommendation", "service"]
Model = Callable[[int], bytes]  # a seed to ONNX bytes

# Keys of `Dataset.settings`; each value is the keyword arguments of a TaskSpec that differ from its defaults.
SETTINGS: Final = ("no_privacy", "eps8_shared", "eps8_local", "eps3_shared", "eps3_local")
ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Rows:
    """B labelled records. `clients`: whose device holds each. `subjects`: int64 [B], equal for one customer, or None.

    `records` are as an app would give them to `fl.record`, without the label; `answers` are the labels as recorded.
    """

    records: Sequence[Mapping[str, Any]]
    answers: Sequence[Any]
    clients: Sequence[str]
    subjects: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        sizes = {len(self.records), len(self.answers), len(self.clients)}
        if len(sizes | ({len(self.subjects)} if self.subjects is not None else set())) != 1:
            raise ValueError("records, answers, clients and subjects need one entry a row each")

    def __len__(self) -> int:
        return len(self.records)

    def take(self, places: Array) -> Rows:
        """The rows where `places` (bool [B]) is true, or at `places` (int)."""
        chosen = [int(place) for place in (np.flatnonzero(places) if places.dtype == bool else places)]
        return Rows(
            [self.records[i] for i in chosen],
            [self.answers[i] for i in chosen],
            [self.clients[i] for i in chosen],
            None if self.subjects is None else self.subjects[chosen],
        )


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One data set. `metric` is a name of `aggregator.evaluation`, and `baseline` the figure that it is held against.

    `model(seed)`: the first checkpoint. `private_model`: another for the settings with noise, where a smaller one
    does better under it. `validation`: bool over `train`, the rows by which choices were made. `settings`: see
    SETTINGS. `plan`: how the references without privacy are trained, central and alone. `score(logits, rows)`: the
    metric, where `aggregator.evaluation` cannot give it from the schema alone; logits float64 [B, outputs]. `seeds`:
    how many runs a figure is the mean of; more where three spread as widely as what they are compared for. `apart`: no
    label occurs at two clients, and their owners know it.
    """

    name: str
    application: Application
    metric: str
    higher_is_better: bool
    schema: Schema
    model: Model
    train: Rows
    validation: npt.NDArray[np.bool_]
    test: Rows
    baseline: float
    baseline_words: str
    unit: Unit
    settings: Mapping[str, Mapping[str, Any]]
    private_model: Model | None = None
    score: Callable[[Array, Rows], float] | None = None
    plan: PlainPlan | None = None
    seeds: int = 3
    apart: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.settings) - set(SETTINGS)
        if unknown:
            raise ValueError(f"{self.name}: no benchmark reads the settings {sorted(unknown)}; known are {SETTINGS}")
        if self.validation.shape != (len(self.train),) or self.validation.dtype != bool:
            raise ValueError(f"{self.name}: validation is bool [{len(self.train)}], one for each training row")

    def first_model(self, setting: str, seed: int) -> bytes:
        """What a run of this setting starts from."""
        private = self.private_model if setting != "no_privacy" else None
        return (private or self.model)(seed)


def data_directory() -> Path | None:
    """Where the data sets lie: CHORALE_DATA, else ../shared/data beside the repository; None where neither is there."""
    named = os.environ.get("CHORALE_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


def every_fifth(rows: int, fold: int = 0) -> npt.NDArray[np.bool_]:
    """The fixed validation part of `rows` training rows: those whose number hashes (CRC-32) to 0 modulo 5. bool [B].

    `fold`: 1 to 4 for one of the other fifths.
    """
    return np.array([zlib.crc32(str(row).encode()) % 5 == fold for row in range(rows)], bool)


def subject_numbers(names: Sequence[str]) -> npt.NDArray[np.int64]:
    """int64 [B]: the same number for the same name."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names], np.int64)
