"""A device's own version of each task's model: when it is trained, where it is kept, when it is void. Work thread.

Trained on this device's examples for this device alone, without noise: it is never uploaded, no offer can ask for it,
and no ledger counts it, because nothing leaves. Kept in one file a task that its owner alone may read. Refuses to serve
what was learned from examples that were erased since, for another release than the one in service, or `RENEW_S` ago.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from edge_sdk.kept_files import KeptFiles
from edge_sdk.retention import DAY_S

if TYPE_CHECKING:
    from edge_sdk.examples_store import ExamplesStore
    from edge_sdk.inference import Models
    from edge_sdk.training.jobs import PersonalDone, PersonalJob

FOLDER: Final = "personal"
RENEW_S: Final = 7 * DAY_S  # what retention erased from the examples is gone from the weights so much later
GROWTH: Final = 0.25  # of the examples learned from: so many new ones are worth training anew
log = logging.getLogger("edge_sdk")

Train = Callable[["PersonalJob", Callable[[], bool]], "PersonalDone"]  # raises TrainingFailed


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was trained last for a task. `vector`: float32 little-endian, b"" where the fleet's weights stay.

    `release`: SHA-256 (hex) of the model it changes; `erasures` and `newest`: the examples it learned from; losses are
    means over rows held out of the fit, None where there were too few.
    """

    release: str
    erasures: int
    newest: int
    trained_at: int
    kind: str
    alpha: float
    rows: int
    loss_fleet: float | None
    loss_personal: float | None
    vector: bytes

    def __repr__(self) -> str:
        return f"Kept(kind={self.kind!r}, rows={self.rows}, ...)"

    def fresh(self, now: float) -> bool:
        """Was it trained in the last `RENEW_S`?"""
        return 0 <= now - self.trained_at < RENEW_S

    def stated(self) -> dict[str, Any]:
        """What `status` shows."""
        names = ("kind", "alpha", "rows", "trained_at", "loss_fleet", "loss_personal")
        return {name: getattr(self, name) for name in names}


class PersonalWeights:
    """The files of one home directory. Any thread, one at a time for each task."""

    def __init__(self, home: Path) -> None:
        self._files = KeptFiles(home / FOLDER, ".weights")

    def keep(self, task: str, kept: Kept) -> None:
        """Replace what is kept for a task. Raises OSError where the disk is full."""
        self._files.write(task, msgspec.msgpack.encode(kept))

    def find(self, task: str) -> Kept | None:
        """What is kept for a task; None without it, and where it cannot be read."""
        try:
            return msgspec.msgpack.decode(self._files.read(task), type=Kept)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("the personal weights of %s cannot be read, they are trained anew: %s", task, error)
            return None

    def forget(self, task: str) -> None:
        """Delete what is kept for a task, and see the deletion through to the disk."""
        self._files.forget(task)

    def forget_all(self) -> None:
        """Delete what is kept for every task."""
        self._files.forget_all()

    def forget_old(self, served: Collection[str], now: int) -> None:
        """Delete what is kept of tasks that are not served any more, and is void by its age or cannot be read."""
        for task in set(self._files.tasks()).difference(served):
            kept = self.find(task)
            if kept is None or not kept.fresh(now):
                self.forget(task)

    def stated(self) -> dict[str, dict[str, Any]]:
        """What is kept, by task, without the weights."""
        return {task: kept.stated() for task in self._files.tasks() if (kept := self.find(task)) is not None}


class Personalisation:
    """Looks after every task's personal version. One thread owns it."""

    def __init__(
        self,
        home: Path,
        models: Models,
        examples: ExamplesStore,
        *,
        release: Callable[[str], bytes],
        train: Train,
        least: int,
        entropy: Callable[[int], bytes],
        apart: bool = False,
    ) -> None:
        """`release(task)`: the ONNX bytes in service; `least`: examples below which nothing is trained.

        `apart`: the labels recorded here occur on no other device.
        """
        self._apart = apart
        self._models, self._examples, self._weights = models, examples, PersonalWeights(home)
        self._release, self._train, self._least, self._entropy = release, train, least, entropy

    def look(self, now: int, may_train: Callable[[], bool], cancelled: Callable[[], bool]) -> None:
        """Serve what holds, void what does not, train what is due. Raises TrainingFailed, OSError."""
        serving = self._models.serving()
        self._weights.forget_old(serving, now)
        for task, served in serving.items():
            kept = self._valid(task, served.sha256, now)
            if kept is not None and kept.vector and not served.personal:
                self._serve(task, kept)
            if self._due(task, kept) and may_train():
                self._learn(task, served.sha256, now, cancelled)

    def _valid(self, task: str, release: str, now: int) -> Kept | None:
        kept = self._weights.find(task)
        if kept is None:
            self._models.drop_personal(task)
            return None
        if holds(kept, release, self._examples.erasures(task), now):
            return kept
        self._models.drop_personal(task)
        self._weights.forget(task)
        return None

    def _due(self, task: str, kept: Kept | None) -> bool:
        """Enough examples; and enough new ones, where the same release was made personal before."""
        if kept is None:
            return self._examples.count(task) >= self._least
        return self._examples.newer(task, kept.newest) >= max(self._least, GROWTH * kept.rows)

    def _learn(self, task: str, release: str, now: int, cancelled: Callable[[], bool]) -> None:
        erasures, newest = self._examples.erasures(task), self._examples.newest(task)
        packed = self._job(task)

        def void() -> bool:
            return self._examples.erasures(task) != erasures

        done = self._train(packed, lambda: cancelled() or void())
        losses = (done.loss_fleet, done.loss_personal)
        kept = Kept(
            release, erasures, newest, now, done.kind, done.alpha, done.rows, losses[0], losses[1], done.vector
        )  # fmt: skip
        self._weights.keep(task, kept)
        self._models.drop_personal(task)
        self._serve(task, kept)
        if void():  # erased in between: whoever erased it looked for this file before it was there
            self._models.drop_personal(task)
            self._weights.forget(task)
        else:
            log.info("task %s: %d examples make the device's version %r", task, kept.rows, kept.kind)

    def _job(self, task: str) -> PersonalJob:
        from edge_sdk.artifact.features import features, labels
        from edge_sdk.round_work import fits, subject_numbers
        from edge_sdk.training.jobs import personal_job

        schema = self._models.current(task).schema
        fitting = [example for example in self._examples.read(task) if fits(schema, example)]
        records = [example.fields for example in fitting]
        targets = labels(schema, [example.label for example in fitting], records)
        seed = int.from_bytes(self._entropy(7), "little")
        return personal_job(
            self._release(task), features(schema, records), targets, subject_numbers(fitting), seed, apart=self._apart
        )  # fmt: skip

    def _serve(self, task: str, kept: Kept) -> None:
        data = version(self._release(task), kept)
        if data is not None:
            self._models.load_personal(task, data, kept.release)


def version(release: bytes, kept: Kept) -> bytes | None:
    """ONNX bytes of a personal version, after the checks of a release: safe to load, the same graph, finite weights.

    None where the fleet's weights stay, or what is kept belongs to another release. Raises ArtifactError.
    """
    from edge_sdk.artifact.graph_lock import graph_digest
    from edge_sdk.artifact.safety import check_model
    from edge_sdk.artifact.weights import write_vector

    if not kept.vector or hashlib.sha256(release).hexdigest() != kept.release:
        return None
    data = write_vector(release, np.frombuffer(kept.vector, "<f4").astype(np.float32), {})
    check_model(data)
    return data if graph_digest(data) == graph_digest(release) else None


def holds(kept: Kept, release: str, erasures: int, now: float) -> bool:
    """Does what is kept belong to this release (hex), these examples and this week?"""
    return (kept.release, kept.erasures) == (release, erasures) and kept.fresh(now)
