"""`aggregator answers publish | list`: the operator's answers by intent, signed and sent with the models.

What cannot be served is refused before anything is signed: an intent that the task's model does not know, a text that
is empty or too long (edge_sdk.answer_list). Prints through the terminal alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from aggregator import config as settings
from aggregator import status
from aggregator.config import ConfigError
from aggregator.home import Home
from aggregator.recording import recorded
from aggregator.releases.repository import Repository
from aggregator.store import audit_log
from aggregator.store.rows import TaskRow
from aggregator.store.store import Store
from edge_sdk.answer_list import AnswersRefused, check_intents, read_signed, read_written, sealed, unanswered
from edge_sdk.artifact.names import SCHEMA
from edge_sdk.artifact.schema import Schema
from edge_sdk.artifact.weights import metadata

SHOWN: Final = 8  # intents in one line
Add = Callable[..., argparse.ArgumentParser]


def add_answers(commands: Any, add: Add, parser_class: Any) -> None:
    """`answers` with its two actions, each made with `add(actions, name, command, text)`."""
    parser = commands.add_parser("answers", help="sign the answers that devices give to recognised intents")
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=parser_class)
    publish = add(actions, "publish", _publish, "check, sign and publish a list of answers; devices fetch it soon")
    publish.add_argument("file", metavar="FILE", help="JSON, see docs/embedding.md")
    publish.add_argument("--task", required=True)
    publish.add_argument("--json", action="store_true")
    listed = add(actions, "list", _list, "the newest list of answers of every task")
    listed.add_argument("--task", help="this task alone")
    listed.add_argument("--json", action="store_true")


def _say(*said: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in said))


def _publish(chosen: argparse.Namespace) -> int:
    home = settings.home_directory(chosen.home)
    config, now = settings.load(home), time.time()
    written = read_written(Path(chosen.file).read_bytes())
    repository = Repository(Home(home).releases)
    with recorded(home, config) as (store, _):
        labels = _labels(Home(home), _task(store, chosen.task))
        check_intents(written, labels)
        version = max(repository.answers(chosen.task), default=0) + 1
        data = sealed(written, chosen.task, version)
        with store.transaction():
            digest = hashlib.sha256(data).hexdigest()
            audit_log.append(store.connection, now, "answers-published", chosen.task, 0, version=version, sha256=digest)
            repository.publish_answers(chosen.task, version, data, now)
    missing = unanswered(written, labels)
    if chosen.json:
        _say(json.dumps({"task": chosen.task, "version": version, "unanswered": missing}, ensure_ascii=False))
        return 0
    _say(f"answers version {version} of {chosen.task}: {len(written.answers)} answers, threshold {written.threshold:g}")
    for language, names in missing.items():
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            _say(f"handed over in {language}, for want of an answer: {', '.join(names[:SHOWN])}{more}")
    _say("devices fetch it with their next look for an update")
    return 0


def _list(chosen: argparse.Namespace) -> int:
    home = settings.home_directory(chosen.home)
    repository = Repository(Home(home).releases)
    with status.opened(home, settings.load(home)) as (store, _):
        names = [_task(store, chosen.task).name] if chosen.task else [row.name for row in store.tasks()]
    newest = {name: max(found.items()) for name in names if (found := repository.answers(name))}
    lists = {name: read_signed(data, name, version) for name, (version, data) in newest.items()}
    if chosen.json:
        _say(json.dumps([msgspec.to_builtins(each) for each in lists.values()], ensure_ascii=False))
        return 0
    for name, each in lists.items():
        languages = ", ".join(sorted({answer.language for answer in each.answers}))
        intents = len({answer.intent for answer in each.answers})
        _say(
            f"{name}  version {each.version}: {len(each.answers)} answers to {intents} intents ({languages}), "
            f"threshold {each.threshold:g}"
        )
    if not lists:
        _say("no answers are published; see `aggregator answers publish --help`")
    return 0


def _task(store: Store, name: str) -> TaskRow:
    task = store.task(name)
    if task is None:
        raise ConfigError(f"there is no task {name!r}", "see `aggregator task list`")
    return task


def _labels(home: Home, task: TaskRow) -> tuple[str, ...]:
    """The labels of the task's model. Raises AnswersRefused where it predicts a number."""
    schema = Schema.from_json(metadata(home.checkpoint_file(task.checkpoint).read_bytes())[SCHEMA])
    if schema.label.kind == "number":
        raise AnswersRefused(f"the model of {task.name} predicts a number", "answers need a task that tells intents")
    return schema.label.names
