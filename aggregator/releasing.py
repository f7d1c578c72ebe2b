"""From an opened sum to a checkpoint, and from a checkpoint to a release. Repeating any of it changes nothing.

Refuses to release a checkpoint that the gates refuse; it stays a checkpoint, and devices go on predicting with the
release before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from aggregator import averaging, evaluation, tasks
from aggregator.errors import AggregatorError, ModelRefused
from aggregator.home import Home
from aggregator.releases.durable import write_durably
from aggregator.releases.errors import ReleaseError
from aggregator.releases.repository import Repository
from aggregator.round_terms import RoundTerms
from aggregator.spool import disk_full_is_said
from aggregator.store.rows import TaskRow
from aggregator.store.store import Store
from aggregator.tasks import TaskSpec
from edge_sdk.artifact.errors import ArtifactError

FIRST_VERSION: Final = 1


class Verdict(NamedTuple):
    """What became of a checkpoint: `version` None where it is not released, and why."""

    version: int | None
    reason: str
    metrics: dict[str, float]
    seconds: dict[str, float]
    usable: bool  # may the next round train on it?


class Releases:
    """The checkpoints and releases of every task."""

    def __init__(self, store: Store, home: Home, repository: Repository | None, clock: Callable[[], float]) -> None:
        """Without a repository everything stays a checkpoint."""
        self._store, self._home, self._repository, self._clock = store, home, repository, clock
        self._heldout: dict[str, evaluation.Heldout] = {}

    def spec(self, task: TaskRow) -> TaskSpec:
        return msgspec.json.decode(task.spec, type=TaskSpec)

    def model(self, sha256: str) -> bytes:
        return self._home.checkpoint_file(sha256).read_bytes()

    def average(self, task: TaskRow, terms: RoundTerms, total: npt.NDArray[np.int64], devices: int) -> tuple[str, Any]:
        """Write the next checkpoint; (its SHA-256 in hex, what to record of it). Raises ModelRefused, DiskFull."""
        spec, privacy = self.spec(task), terms.offer.privacy
        spent = tasks.rounds_spent(self._store, task.name, privacy.unit)
        rounds = spent if privacy.unit == "record" else spent + 1  # this round's uploads are in, its sum is not counted
        epsilon = tasks.epsilon_after(privacy, terms.offer.length, rounds)
        parent = terms.offer.models[0].hex()
        words = {
            averaging.TASK: task.name,
            averaging.ROUND: str(terms.offer.round),
            averaging.PRIVACY: averaging.privacy_statement(privacy, epsilon, rounds),
        }
        model = averaging.average(
            self.model(parent),
            total,
            step=privacy.step,
            devices=devices,
            server_learning_rate=spec.server_learning_rate,
            metadata=words,
        )
        sha256 = hashlib.sha256(model).hexdigest()
        with disk_full_is_said():
            write_durably(self._home.checkpoint_file(sha256), model)
        stated = {
            "epsilon": epsilon,
            "delta": privacy.delta,
            "unit": privacy.unit,
            "devices": devices,
            "rounds": rounds,
        }
        return sha256, {**stated, "parent": parent}

    def release(self, task: TaskRow, number: int, sha256: str, stats: dict[str, Any]) -> Verdict:
        """Evaluate a checkpoint, ask the gates and publish. The caller records the verdict."""
        began = self._clock()
        try:
            metrics = self._evaluate(task, sha256)
        except AggregatorError as error:
            took = {"evaluating": self._clock() - began}
            return Verdict(None, f"gate: {error}", {}, took, usable=not isinstance(error, ModelRefused))
        evaluated = self._clock()
        reason, version = self._gate(task, number, metrics), None
        if not reason:
            version, reason = self._publish(task, number, sha256, {**stats, **metrics})
        seconds = {"evaluating": evaluated - began, "releasing": self._clock() - evaluated}
        return Verdict(version, reason, metrics, seconds, usable=True)

    def _evaluate(self, task: TaskRow, sha256: str) -> dict[str, float]:
        if not task.heldout:
            return {}
        model = self.model(sha256)
        if task.name not in self._heldout:
            self._heldout[task.name] = evaluation.read_heldout(model, self._home.heldout_file(task.name))
        return evaluation.evaluate(model, self._heldout[task.name])

    def _gate(self, task: TaskRow, number: int, metrics: dict[str, float]) -> str:
        spec, last = self.spec(task), self._store.last_release(task.name)
        done = tasks.rounds_done(self._store, spec)
        if number and done % spec.release_every and done < spec.rounds:
            return f"gate: every {spec.release_every} rounds are released"
        refused = evaluation.gate(metrics, last[3] if last else None, spec.metric, spec.min_improvement)
        return f"gate: {refused}" if refused else ""

    def _publish(self, task: TaskRow, number: int, sha256: str, facts: dict[str, Any]) -> tuple[int | None, str]:
        if self._repository is None:
            return None, "no release repository"
        last = self._store.last_release(task.name)
        version = last[0] + 1 if last else FIRST_VERSION
        # TUF metadata holds no floats.
        custom = {key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in facts.items()}
        custom |= {"round": str(number)}
        try:
            self._repository.publish(task.name, version, self.model(sha256), custom, self._clock())
        except (ReleaseError, ArtifactError) as error:
            return None, f"release: {error}"
        return version, "released"

    def record(self, task: TaskRow, number: int, sha256: str, verdict: Verdict) -> None:
        """Write the verdict down, in the caller's transaction."""
        self._store.set_metrics(sha256, verdict.metrics)
        metric = verdict.metrics.get(self.spec(task).metric)
        if verdict.version is not None:
            at = self._clock()
            self._store.add_release(task.name, verdict.version, number=number, sha256=sha256, metric=metric, at=at)
