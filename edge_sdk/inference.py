"""Local predictions through onnxruntime, with a model that can be swapped while calls are in flight.

A call takes the model once and finishes on it; a swap is one assignment after the new session is open. It refuses to
predict without a model (`NoModel`), and refuses a file without a record schema (`BadModel`); the old one serves on.
onnxruntime is loaded with the first model, never by importing this module.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sdk.answering import Answers
    from edge_sdk.artifact.schema import Schema

OUTPUT = "logits"


class NoModel(Exception):
    """There is no model for this task on this device yet."""


class BadModel(Exception):
    """The file cannot be served: it does not load, or holds no record schema."""


def no_pushes() -> list[tuple[str, float]]:
    """Of an answer that nobody can explain."""
    return []


@dataclass(frozen=True)
class Answer:
    """One prediction. `ranked` holds (label, score) from best to worst; `model_sha256` is hex.

    `interval`: the outer quantiles of a number that has them. `pushes()`: `edge_sdk.artifact.pushes`, when asked for.
    """

    ranked: tuple[tuple[str, float], ...]
    model_version: int
    model_sha256: str
    interval: tuple[float, float] | None = None
    pushes: Callable[[], list[tuple[str, float]]] = field(default=no_pushes, repr=False, compare=False)
    personal: bool = False  # by this device's own version of that model
    calibrated: bool = False  # the interval is fitted to what was recorded on this device

    @property
    def label(self) -> str:
        """The best label; for a number, its name."""
        return self.ranked[0][0]

    @property
    def score(self) -> float:
        """Probability of the best label; for a number, its value."""
        return self.ranked[0][1]

    def top(self, k: int) -> list[tuple[str, float]]:
        """The k best (label, score) pairs, best first."""
        return list(self.ranked[:k])


@dataclass(frozen=True, repr=False)
class ServedModel:
    """One opened model; immutable, so a call in flight keeps it whole."""

    session: Any
    schema: Schema
    version: int
    sha256: str  # of the release, for a personal version too
    fleet: ServedModel | None = None  # the release itself, where this is a personal version of it

    @property
    def personal(self) -> bool:
        """True where this device trained the weights for itself."""
        return self.fleet is not None

    def __repr__(self) -> str:
        return f"ServedModel(version={self.version}, sha256={self.sha256[:12]}...)"

    def predict(
        self, records: Sequence[Mapping[str, Any]], widened: Sequence[float | None] | None = None
    ) -> list[Answer]:
        """One answer a record, in order. Raises RecordError naming the field that does not fit.

        `widened`: how far the device moves each interval (`IntervalScores.widening`); None leaves the model's own.
        """
        from edge_sdk.artifact.features import decide, features, intervals

        if not records:
            return []
        (logits,) = self.session.run([OUTPUT], features(self.schema, records))
        moved = [None] * len(records) if widened is None else widened
        between = intervals(self.schema, logits, records, [by or 0.0 for by in moved])
        bounds: Sequence[tuple[float, float] | None] = [None] * len(records) if between is None else between
        ranks = decide(self.schema, logits, records)
        return [
            Answer(
                tuple(ranked), self.version, self.sha256, interval, partial(self.pushes, record), self.personal,
                calibrated=interval is not None and by is not None,
            )
            for ranked, interval, by, record in zip(ranks, bounds, moved, records, strict=True)
        ]  # fmt: skip

    def score(self, record: Mapping[str, Any], label: Any) -> float | None:
        """How far a label lay outside this model's interval (`features.scores`); None without one.

        Raises RecordError.
        """
        from edge_sdk.artifact.features import features, scores

        if len(self.schema.label.quantiles) < 2:
            return None
        (logits,) = self.session.run([OUTPUT], features(self.schema, [record]))
        return float(scores(self.schema, logits, [label], [record])[0])

    def pushes(self, record: Mapping[str, Any]) -> list[tuple[str, float]]:
        """(field, how far it moved the prediction), the strongest first. Raises RecordError."""
        from edge_sdk.artifact.features import INPUT
        from edge_sdk.artifact.pushes import pushes

        return pushes(self.schema, lambda rows: self.session.run([OUTPUT], {INPUT: rows})[0], record)


class Models:
    """The model in service for each task. Safe to use from any number of threads."""

    def __init__(self) -> None:
        self._served: dict[str, ServedModel] = {}
        self.answers: dict[str, Answers] = {}  # task -> the operator's list; one assignment swaps it

    def load(self, task: str, data: bytes, version: int) -> ServedModel:
        """Open a model (ONNX bytes) and put it into service at once. Raises BadModel; the old one then serves on."""
        served = open_model(data, version)
        self._served[task] = served
        return served

    def load_personal(self, task: str, data: bytes, release: str) -> None:
        """Serve a personal version of the release with this SHA-256 (hex), while that one serves. Raises BadModel."""
        served = self._served.get(task)
        fleet = served.fleet or served if served is not None else None
        if fleet is None or fleet.sha256 != release:
            return
        self._served[task] = personal_of(fleet, data)

    def drop_personal(self, task: str) -> None:
        """Serve the release itself again, where a personal version served."""
        served = self._served.get(task)
        if served is not None and served.fleet is not None:
            self._served[task] = served.fleet

    def unload(self, task: str) -> None:
        """Take a task's model out of service, if there is one."""
        self._served.pop(task, None)

    def serving(self) -> dict[str, ServedModel]:
        """Task -> model in service: a copy."""
        return dict(self._served)

    def current(self, task: str) -> ServedModel:
        """The model in service. Raises NoModel."""
        try:
            return self._served[task]
        except KeyError:
            known = ", ".join(sorted(self._served)) or "none"
            remedy = "bundle one with the app, or connect once to fetch it"
            raise NoModel(f"no model for task {task!r} (tasks with one: {known}): {remedy}") from None

    def predict(self, task: str, records: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Predict on the model in service when the call began. Raises NoModel, RecordError."""
        return self.current(task).predict(records)

    def score(self, task: str, record: Mapping[str, Any], label: Any) -> float | None:
        """`ServedModel.score` by the model in service. Raises NoModel, RecordError."""
        return self.current(task).score(record, label)


def open_model(data: bytes, version: int) -> ServedModel:
    """Open ONNX bytes that have passed the checks of `edge_sdk.artifact.safety`. Raises BadModel."""
    from edge_sdk.artifact.names import SCHEMA
    from edge_sdk.artifact.schema import Schema

    sha256 = hashlib.sha256(data).hexdigest()
    try:
        session = open_session(data)
        schema = Schema.from_json(session.get_modelmeta().custom_metadata_map[SCHEMA])
    except Exception as error:
        raise BadModel(f"model {sha256[:12]} cannot be served ({error}): publish it again") from error
    return ServedModel(session, schema, version, sha256)


def personal_of(fleet: ServedModel, data: bytes) -> ServedModel:
    """A personal version (ONNX bytes) of an opened release, under the release's name. Raises BadModel."""
    return dataclasses.replace(open_model(data, fleet.version), sha256=fleet.sha256, fleet=fleet)


def open_session(data: bytes) -> Any:
    """An onnxruntime session of one thread that gives its memory back after each call."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # failures arrive as exceptions
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
