"""`aggregator task widen NAME --label NEW`: a signed release with more labels, and the task goes on with it.

No round may be open while the model changes its length: the task is stopped, the open round ends first, and then graph,
release and checkpoint change. Repeating a command that was broken off changes nothing twice. Refuses a task that has
ended, a model that cannot grow, and terms that the longer update does not keep; the ledgers go on as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from aggregator import config as settings
from aggregator import setup, tasks
from aggregator.config import Config, ConfigError
from aggregator.errors import TaskRefused
from aggregator.home import Home
from aggregator.recording import recorded
from aggregator.releases.durable import exclusive, write_durably
from aggregator.releases.keys import open_targets_key
from aggregator.releases.repository import Repository
from aggregator.releasing import Releases, Verdict
from aggregator.store import audit_log
from aggregator.store.rows import TaskRow
from aggregator.store.store import Store
from aggregator.widening import widened
from edge_sdk.artifact.graph_lock import graph_digest
from edge_sdk.artifact.weights import read_vector

WAIT_S: Final = 900
LOOK_S: Final = 0.5
Add = Callable[..., argparse.ArgumentParser]
Pause = Callable[[float], None]


def add_widen(actions: Any, add: Add) -> None:
    """`task widen`, made with `add(actions, name, command, text)`."""
    parser = add(actions, "widen", _widen, "let the label list grow: a signed release with new labels at the end")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--label", action="append", dest="labels", required=True, help="a new label; may be repeated")
    parser.add_argument("--wait", type=float, default=WAIT_S, help="seconds for the open round to end (default: 900)")
    parser.add_argument("--offline", help="folder of the offline keys (default: HOME/offline)")
    parser.add_argument("--passphrase-file", help="default: the one that init drew")
    parser.add_argument("--json", action="store_true")


def _widen(chosen: argparse.Namespace) -> int:
    home = settings.home_directory(chosen.home)
    config = settings.load(home)
    offline = Path(chosen.offline) if chosen.offline else setup.offline_directory(home)
    key = open_targets_key(offline, setup.read_passphrase(offline, chosen.passphrase_file))
    done = widen(home, config, chosen.name, chosen.labels, key, wait_s=chosen.wait, clock=time.time, pause=time.sleep)
    if chosen.json:
        sys.stdout.write(json.dumps(done, ensure_ascii=False) + "\n")
        return 0
    for line in _lines(done):
        sys.stdout.write(line + "\n")
    return 0


def _lines(done: dict[str, Any]) -> list[str]:
    lines = [f"task {done['name']}: {done['labels']} labels, release {done['version']}, its wider graph is locked"]
    if done["optimizer_dropped"]:
        lines.append("the server optimizer begins anew: what it remembered was of the shorter model")
    return lines


def widen(
    home: Path,
    config: Config,
    name: str,
    labels: list[str],
    key: Any,
    *,
    wait_s: float,
    clock: Callable[[], float],
    pause: Pause,
) -> dict[str, Any]:
    """Stop, wait, widen, lock, release, go on. `key`: the offline targets key.

    Raises ConfigError, TaskRefused, ModelRefused, ReleaseError.
    """
    with exclusive(home / "task-create.lock"), recorded(home, config, clock) as (store, _):
        task = _open_task(store, name)
        _planned(Home(home), task, labels)  # what is refused is refused before the task is stopped
        store.set_task(name, status="paused", reason="its label list grows")
        try:
            _wait_for_the_round(store, name, wait_s, pause)
            now_open = _open_task(store, name)
            model = _planned(Home(home), now_open, labels)
            done = _exchange(store, Home(home), _Exchange(now_open, model, labels, clock()), key)
        except BaseException:
            if task.status == "active" and _open_task(store, name).checkpoint == task.checkpoint:
                store.set_task(name, status="active", reason="")
            raise
        if task.status == "active":
            store.set_task(name, status="active", reason="")
        return done


def _open_task(store: Store, name: str) -> TaskRow:
    task = store.task(name)
    if task is None:
        raise ConfigError(f"there is no task {name!r}", "see `aggregator task list`")
    if task.status not in ("active", "paused"):
        raise ConfigError(f"task {name} has ended: it is {task.status}", "create a task of another name from its model")
    return task


def _wait_for_the_round(store: Store, name: str, wait_s: float, pause: Pause) -> None:
    """The service finishes a round that is open, though its task is stopped."""
    waited = 0.0
    while open_rounds := [row.number for row in store.unfinished_rounds() if row.task == name]:
        if waited >= wait_s:
            hint = "see `aggregator status`: the service must run for it to end; then repeat this, or give more --wait"
            raise TaskRefused(f"round {open_rounds[0]} of {name} is still open", hint, reason="open-round")
        pause(LOOK_S)
        waited += LOOK_S


def _planned(home: Home, task: TaskRow, labels: list[str]) -> bytes:
    """The wider model; everything that can be refused is, before anything is written."""
    model = widened(home.checkpoint_file(task.checkpoint).read_bytes(), labels)
    tasks.settle(tasks.parse_spec(task.spec), int(read_vector(model).size))
    return model


class _Exchange(NamedTuple):
    """A task's model and the wider one in its place."""

    task: TaskRow
    model: bytes
    labels: list[str]
    now: float

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.model).hexdigest()


def _exchange(store: Store, home: Home, wanted: _Exchange, key: Any) -> dict[str, Any]:
    """Checkpoint file, lock, release, tables: in an order in which the next try ends what this one left."""
    task, repository = wanted.task, Repository(home.releases)
    releases = Releases(store, home, repository, lambda: wanted.now)
    dropped = bool(releases.optimizer_state(task, task.checkpoint))
    write_durably(home.checkpoint_file(wanted.sha256), wanted.model)
    lock = repository.locked_graph(task.name)
    most = max(int(lock["max_bytes"]) if lock else 0, 2 * len(wanted.model))
    repository.lock_graph(task.name, graph_digest(wanted.model).hex(), most, key, wanted.now)
    verdict = releases.anew(task, wanted.sha256)
    if verdict.version is None:
        raise TaskRefused(f"the wider model is not released: {verdict.reason}", "repeat this", reason="release")
    with store.transaction():
        _record(store, releases, wanted, verdict)
    told = {"name": task.name, "labels": _count(wanted.model), "added": wanted.labels, "sha256": wanted.sha256}
    return {**told, "version": verdict.version, "optimizer_dropped": dropped}


def _record(store: Store, releases: Releases, wanted: _Exchange, verdict: Verdict) -> None:
    """In the caller's transaction: the checkpoint that the next round trains, and its release. Made by no round."""
    task, number = wanted.task, store.lowest_checkpoint(wanted.task.name) - 1
    store.add_checkpoint(
        wanted.sha256, task=task.name, number=number, parent=task.checkpoint, metrics={}, at=wanted.now
    )
    releases.record(task, number, wanted.sha256, verdict)
    store.set_task(task.name, checkpoint=wanted.sha256)
    store.log(wanted.now, "widened", task.name, 0, labels=len(wanted.labels), version=verdict.version)
    facts = {"sha256": wanted.sha256, "parent": task.checkpoint, "version": verdict.version}
    audit_log.append(store.connection, wanted.now, "task-widened", task.name, 0, **facts, labels=len(wanted.labels))


def _count(model: bytes) -> int:
    from edge_sdk.artifact.names import SCHEMA
    from edge_sdk.artifact.schema import Schema
    from edge_sdk.artifact.weights import metadata

    return len(Schema.from_json(metadata(model)[SCHEMA]).label.names)
