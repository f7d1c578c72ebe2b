"""From an opened sum to a checkpoint, and from a checkpoint to a release. Repeating any of it changes nothing.

Refuses to release a checkpoint that the gates refuse; it stays a checkpoint, and devices go on predicting with the
release before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from aggregator import averaging, evaluation, model_card, optimizers, robust, task_terms, tasks
from aggregator.errors import AggregatorError, ModelRefused, TaskRefused
from aggregator.home import Home
from aggregator.ledger import Ledger
from aggregator.opening_requests import OpenedGroup
from aggregator.releases.durable import write_durably
from aggregator.releases.errors import ReleaseError
from aggregator.releases.repository import Repository
from aggregator.round_terms import RoundTerms
from aggregator.spool import disk_full_is_said
from aggregator.store.rows import TaskRow
from aggregator.store.store import Store
from aggregator.tasks import TaskSpec
from edge_sdk.artifact.errors import ArtifactError
from edge_sdk.artifact.names import SCHEMA
from edge_sdk.artifact.weights import metadata
from edge_sdk.privacy import statement

FIRST_VERSION: Final = 1


class Verdict(NamedTuple):
    """What became of a checkpoint: `version` None where it is not released, and why."""

    version: int | None
    reason: str
    metrics: dict[str, float]
    seconds: dict[str, float]
    usable: bool  # may the next round train on it?
    keys: tuple[str, ...] = ()  # ids of the keys that signed the release


class Releases:
    """The checkpoints and releases of every task."""

    def __init__(self, store: Store, home: Home, repository: Repository | None, clock: Callable[[], float]) -> None:
        """Without a repository everything stays a checkpoint."""
        self._store, self._home, self._repository, self._clock = store, home, repository, clock
        self._ledger = Ledger(store.connection)
        self._heldout: dict[str, tuple[str, evaluation.Heldout]] = {}  # by task, with the schema it was read by

    def spec(self, task: TaskRow) -> TaskSpec:
        return msgspec.json.decode(task.spec, type=TaskSpec)

    def model(self, sha256: str) -> bytes:
        return self._home.checkpoint_file(sha256).read_bytes()

    def average(self, task: TaskRow, terms: RoundTerms, opened: Sequence[OpenedGroup]) -> tuple[str, Any]:
        """Write the next checkpoint; (its SHA-256 in hex, what to record of it). Raises ModelRefused, DiskFull.

        Where fewer groups are left than the task needs the model stays: the sums were seen, so the round counts.
        """
        spec, privacy = self.spec(task), terms.offer.privacy
        rounds, epsilon = self._ledger.epsilon_with(task.name, privacy, terms.offer.length, terms.offer.round)
        promised = statement.charged(privacy, epsilon, rounds, terms.offer.secagg.n_min)
        parent = terms.offer.models[0].hex()
        words = {
            averaging.TASK: task.name,
            averaging.ROUND: str(terms.offer.round),
            averaging.PRIVACY: promised.sentence(),
        }
        moved = partial(
            averaging.advance,
            self.model(parent),
            step=privacy.step,
            scale=task_terms.update_scale(spec, privacy),
            metadata=words,
        )
        said = self._judged(task, parent, opened, partial(moved, optimizer=optimizers.plain(spec), state=b""))
        kept = [group for group, why in zip(opened, said, strict=True) if not why]
        total, divisor = _combined(spec, kept)
        optimizer, state = optimizers.of(spec), self.optimizer_state(task, parent)
        model, after = moved(total, devices=divisor, optimizer=optimizer, state=state)
        sha256 = hashlib.sha256(model).hexdigest()
        with disk_full_is_said():
            write_durably(self._home.checkpoint_file(sha256), model)
            if after:
                write_durably(self._state_file(sha256), after, mode=0o600)
        self._forget_state(parent)
        stated = {
            "epsilon": promised.epsilon,
            "privacy": promised.sentence(),
            "delta": privacy.delta,
            "unit": privacy.unit,
            "devices_averaged": sum(len(group.devices) for group in kept),
            "rounds": rounds,
            "groups": [{"devices": len(group.devices), "reason": why} for group, why in zip(opened, said, strict=True)],
        }
        return sha256, {**stated, "parent": parent}

    def optimizer_state(self, task: TaskRow, checkpoint: str) -> bytes:
        """The server optimizer's state beside a checkpoint; empty before the first round and where none is needed.

        Raises TaskRefused where the file is gone: the next round would silently begin anew.
        """
        if optimizers.of(self.spec(task)).stateless or not self._store.is_averaged(task.name, checkpoint):
            return b""
        file = self._state_file(checkpoint)
        try:
            return file.read_bytes()
        except FileNotFoundError as error:
            hint = "put it back into checkpoints/ from a backup, or create a task of another name from this checkpoint"
            what = f"the server optimizer's state {file.name} is gone: {hint}"
            raise TaskRefused(what, hint, reason="optimizer") from error

    def _state_file(self, sha256: str) -> Path:
        return self._home.checkpoint_file(sha256).with_suffix(".optimizer")

    def _forget_state(self, checkpoint: str) -> None:
        """The state before this checkpoint's: nothing can go back behind it any more."""
        before = metadata(self.model(checkpoint)).get(averaging.LINEAGE)
        if before is not None:
            self._state_file(before).unlink(missing_ok=True)

    def lineage(self, task: TaskRow, most: int) -> list[str]:
        """The task's checkpoint and those of the same graph it was made from, newest first, at most so many."""
        found = [task.checkpoint]
        while (
            len(found) < most
            and self._store.is_averaged(task.name, found[-1])
            and (parent := self._store.parent(task.name, found[-1]))
        ):
            found.append(parent)
        return found

    def _judged(
        self, task: TaskRow, parent: str, opened: Sequence[OpenedGroup], moved: Callable[..., averaging.Moved]
    ) -> list[str]:
        """For each group "" or why it is left out: its sum does not hold, or its mean alone spoils the metric."""
        spec = self.spec(task)
        if not (spec.group_gate and task.heldout):
            return [group.reason for group in opened]
        before = self._metrics(task, self.model(parent)).get(spec.metric)
        return [group.reason or self._spoils(task, group, moved, before) for group in opened]

    def _spoils(
        self, task: TaskRow, group: OpenedGroup, moved: Callable[..., averaging.Moved], before: float | None
    ) -> str:
        spec = self.spec(task)
        try:
            metrics = self._metrics(task, moved(group.total, devices=len(group.devices)).model)
        except ModelRefused as error:
            return f"gate: {error}"
        refused = evaluation.gate(metrics, before, spec.metric, -spec.group_margin)
        return f"gate: {refused}" if refused else ""

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
            version, reason = self._publish(task, number, sha256, stats, metrics)
        seconds = {"evaluating": evaluated - began, "releasing": self._clock() - evaluated}
        keys = self._repository.release_keys() if version is not None and self._repository is not None else ()
        return Verdict(version, reason, metrics, seconds, usable=True, keys=keys)

    def anew(self, task: TaskRow, sha256: str) -> Verdict:
        """Publish a checkpoint of another graph, which no gate compares. The caller records the verdict."""
        metrics = self._evaluate(task, sha256)
        version, reason = self._publish(task, 0, sha256, {}, metrics)
        keys = self._repository.release_keys() if version is not None and self._repository is not None else ()
        return Verdict(version, reason, metrics, {}, usable=True, keys=keys)

    def _evaluate(self, task: TaskRow, sha256: str) -> dict[str, float]:
        if not task.heldout:
            return {}
        return self._metrics(task, self.model(sha256))

    def _metrics(self, task: TaskRow, model: bytes) -> dict[str, float]:
        schema = metadata(model).get(SCHEMA, "")
        if task.name not in self._heldout or self._heldout[task.name][0] != schema:
            read = evaluation.read_heldout(model, self._home.heldout_file(task.name))
            self._heldout[task.name] = (schema, read)
        return evaluation.evaluate(model, self._heldout[task.name][1])

    def _gate(self, task: TaskRow, number: int, metrics: dict[str, float]) -> str:
        spec, last = self.spec(task), self._store.last_release(task.name)
        done = tasks.rounds_done(self._store, spec)
        if number and done % spec.release_every and done < spec.rounds:
            return f"gate: every {spec.release_every} rounds are released"
        refused = evaluation.gate(metrics, last[3] if last else None, spec.metric, spec.min_improvement)
        return f"gate: {refused}" if refused else ""

    def _publish(
        self, task: TaskRow, number: int, sha256: str, stats: dict[str, Any], metrics: dict[str, float]
    ) -> tuple[int | None, str]:
        if self._repository is None:
            return None, "no release repository"
        last = self._store.last_release(task.name)
        version = last[0] + 1 if last else FIRST_VERSION
        # TUF metadata holds no floats.
        custom = {
            key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in (stats | metrics).items()
        }
        model, now = self.model(sha256), self._clock()
        custom |= {"round": str(number), "privacy": metadata(model).get(averaging.PRIVACY, "")}
        try:
            facts: dict[str, Any] = {"version": version, "sha256": sha256, "number": number, "metrics": metrics}
            card = model_card.card(self._store, task, model, **facts, now=now)
            self._repository.publish(task.name, version, model, custom, now, card=model_card.encoded(card))
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


def _combined(spec: TaskSpec, kept: Sequence[OpenedGroup]) -> tuple[robust.Total | None, int]:
    """The total that moves the model and its divisor; None where too few groups are left: then the model stays."""
    sums = [group.total for group in kept if group.total is not None]
    if len(sums) < tasks.fewest_groups(spec):
        return None, 1
    return robust.combine(spec.robust, sums, [len(group.devices) for group in kept], spec.trim)
