"""`aggregator analytics`: ask the fleet a question under the mask, wait for the answer, show it. See docs/analytics.md.

Prints through the terminal alone and writes the files that it is told to. Refuses what `asking`, `analytics` and the
task's budget refuse, before anything is queued.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from aggregator import analytics, asking, scales, status, tasks
from aggregator import config as settings
from aggregator.analytics import Question, QuestionRow, Questions
from aggregator.answers import lines, written_plot
from aggregator.config import ConfigError
from aggregator.errors import TaskRefused
from aggregator.home import Home
from aggregator.ledger import cost
from aggregator.recording import recorded
from aggregator.store.rows import TaskRow
from aggregator.store.store import Store
from edge_sdk.artifact.names import SCHEMA
from edge_sdk.artifact.schema import Schema
from edge_sdk.artifact.weights import metadata, read_vector
from edge_sdk.privacy import statement
from edge_sdk.protocol import topics

LOOK_S: Final = 0.5
WAIT_S: Final = 3600.0
LISTED: Final = 4  # statistics of a question, in a list of questions
Add = Callable[..., argparse.ArgumentParser]


def add_analytics(commands: Any, add: Add) -> None:
    """`analytics`, with its actions ask (the default), list and show."""
    text = "ask the fleet for statistics of its examples, under the mask and from the task's budget"
    parser = add(commands, "analytics", _analytics, text)
    parser.add_argument("action", nargs="?", choices=("ask", "list", "show"), default="ask")
    parser.add_argument("number", nargs="?", type=int, help="show: the question's number")
    parser.add_argument("--task", help="whose devices and budget")
    parser.add_argument("--ask", action="append", default=[], metavar="WHAT", help=f"may be repeated: {asking.HINT}")
    parser.add_argument("--name", default="question", help="a word of your own, such as weekly-kpis")
    parser.add_argument("--epsilon", type=float, help="what the answer may spend of the task's budget")
    parser.add_argument("--placement", choices=("local", "shared"), help="of the noise (default: the task's)")
    parser.add_argument("--unit", help="must be the task's: its ledger counts one unit")
    parser.add_argument("--units-per-device", type=int, help="a device with more counts for less (default: what fits)")
    parser.add_argument("--scales", action="store_true", help="learn mean and scale of every number of the schema")
    parser.add_argument("--range", action="append", default=[], metavar="FIELD:LOW:HIGH", help="--scales: its bounds")
    parser.add_argument("--intervals", type=int, default=0, help="--scales: edges of so many intervals, too")
    parser.add_argument("--out", metavar="FILE", help="--scales: the schema as JSON (default: print it)")
    parser.add_argument("--wait", action="store_true", help="until the answer is there")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the answer (needs matplotlib)")


def _analytics(chosen: argparse.Namespace) -> int:
    return {"ask": _ask, "list": _list, "show": _show}[chosen.action](chosen)


def _say(*said: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in said))


def _ask(chosen: argparse.Namespace) -> int:
    home = settings.home_directory(chosen.home)
    config = settings.load(home)
    with recorded(home, config) as (store, _):
        task = _task(store, chosen.task)
        question, warning = _checked(store, Home(home), task, chosen)
        number = Questions(store).add(task.name, question, time.time())
    for line in warning:
        sys.stderr.write(f"aggregator: {line}\n")
    if not (chosen.wait or chosen.scales or chosen.plot):
        _say(json.dumps({"question": number}) if chosen.json else f"question {number} waits for the task's next round")
        return 0
    with status.opened(home, config) as (store, _):
        row = _waited(store, number)
        return _scales(Home(home), store, row, chosen) if chosen.scales else _shown(row, chosen)


def _task(store: Store, name: str | None) -> TaskRow:
    task = store.task(name or "")
    if task is None:
        raise ConfigError(f"there is no task {name!r}", "name one with --task; see `aggregator task list`")
    if task.status == "paused":
        raise ConfigError(f"task {name} is stopped", f"go on with it first: aggregator task resume {name}")
    return task


def schema_of(home: Home, task: TaskRow) -> Schema:
    """What records of a task look like, by its newest checkpoint."""
    return Schema.from_json(metadata(home.checkpoint_file(task.checkpoint).read_bytes())[SCHEMA])


def _checked(store: Store, home: Home, task: TaskRow, chosen: argparse.Namespace) -> tuple[Question, list[str]]:
    """The question, sure to be affordable, and what the operator should know. Raises TaskRefused."""
    spec, schema = tasks.parse_spec(task.spec), schema_of(home, task)
    _check_words(chosen, spec)
    asked = scales.question(schema, _ranges(chosen.range)) if chosen.scales else asking.query(chosen.ask, schema)
    if not chosen.scales:
        asked = type(asked)(chosen.name, asked.statistics)
    question = Question(
        query=asked,
        epsilon=chosen.epsilon,
        placement=chosen.placement,
        units_per_device=chosen.units_per_device,
    )
    length, terms = analytics.settle(spec, question)
    analytics.check_budget(store, spec, terms, length)
    said = [f"this question: {statement.state(terms, length, 1, spec.n_min).sentence()}"]
    coming = max(0, spec.rounds - tasks.rounds_done(store, spec))
    model_length = int(read_vector(home.checkpoint_file(task.checkpoint).read_bytes()).size)
    training = cost(tasks.settle(spec, model_length), model_length)
    left = analytics.rounds_left(store, spec, cost(terms, length), training)
    if left < coming:
        said.append(f"warning: after it the budget pays for {left} of the {coming} training rounds still to come")
    return question, said


def _check_words(chosen: argparse.Namespace, spec: tasks.TaskSpec) -> None:
    if not topics.is_name(chosen.name):
        raise ConfigError(f"{chosen.name!r} is no name", "use 1 to 48 of a-z, 0-9 and '-'")
    if chosen.unit not in (None, spec.unit):
        hint = f"ask for the {spec.unit} unit, or create a task for questions: aggregator task create NAME --rounds 0"
        raise TaskRefused(f"task {spec.name} protects each {spec.unit}, and its ledger counts that", hint)
    if chosen.epsilon is not None and not 0 < chosen.epsilon < float("inf"):
        raise TaskRefused(f"an epsilon of {chosen.epsilon} is none", "give one above 0, such as 0.5")
    if chosen.scales and chosen.ask:
        raise ConfigError("--scales asks its own question", "leave --ask out")


def _ranges(given: list[str]) -> dict[str, tuple[float, float]]:
    found = {}
    for each in given:
        parts = each.rsplit(":", 2)
        try:
            found[parts[0]] = (float(parts[1]), float(parts[2]))
        except (ValueError, IndexError) as error:
            raise ConfigError(f"{each!r} is no range", "write --range FIELD:LOW:HIGH") from error
    return found


def _waited(store: Store, number: int) -> QuestionRow:
    """The question once it is done or failed; the running service asks it."""
    ends, questions, said = time.monotonic() + WAIT_S, Questions(store), ""
    while time.monotonic() < ends:
        row = questions.get(number)
        assert row is not None
        if row.status in analytics.ENDED:
            return row
        if (why := _waits_for(store, row)) != said and sys.stderr.isatty():
            said = why
            sys.stderr.write(f"aggregator: {why}\n")
        time.sleep(LOOK_S)
    hint = f"it stays queued; see `aggregator status`, then `aggregator analytics show {number}`"
    raise TaskRefused(f"question {number} has no answer after {WAIT_S / 60:.0f} minutes", hint)


def _waits_for(store: Store, row: QuestionRow) -> str:
    if row.status == "asked":
        return store.round(row.task, row.number).waiting or f"round {row.number} asks it"
    task = store.task(row.task)
    return (task.reason if task else "") or row.reason or "waiting for the service to ask it"


def _shown(row: QuestionRow, chosen: argparse.Namespace) -> int:
    if row.status == "failed":
        raise TaskRefused(f"question {row.id} was not answered: {row.reason}", "correct that, then ask again")
    if row.status != "done":
        _say(f"question {row.id} is {row.status}" + (f": {row.reason}" if row.reason else ""))
        return 0
    found = json.loads(row.answer)
    if chosen.plot:
        written_plot(found, Path(chosen.plot))
    _say(*([json.dumps(found)] if chosen.json else lines(found)))
    return 0


def _scales(home: Home, store: Store, row: QuestionRow, chosen: argparse.Namespace) -> int:
    if row.status == "failed":
        return _shown(row, chosen)
    made, notes = scales.learned(
        schema_of(home, _task(store, row.task)), json.loads(row.answer)["figures"], chosen.intervals
    )
    for note in notes:
        sys.stderr.write(f"aggregator: warning: {note}\n")
    if chosen.out:
        Path(chosen.out).write_text(made.to_json() + "\n", encoding="utf-8")
        _say(f"wrote {chosen.out}: a new task's model is made with it", *scales.next_steps(made, chosen.out, row.task))
    else:
        _say(made.to_json())
    return 0


def _list(chosen: argparse.Namespace) -> int:
    home = settings.home_directory(chosen.home)
    with status.opened(home, settings.load(home)) as (store, _):
        rows = Questions(store).all(chosen.task)
    if chosen.json:
        plain = [{name: getattr(row, name) for name in ("id", "task", "status", "number", "reason")} for row in rows]
        _say(json.dumps(plain))
        return 0
    for row in rows:
        statistics = row.question.query.statistics
        asks = ", ".join(f"{each.kind} {each.field or 'label'}" for each in statistics[:LISTED])
        asks += f" and {len(statistics) - LISTED} more" if len(statistics) > LISTED else ""
        why = f" ({row.reason})" if row.reason else ""
        where = f"{row.id:4} {row.task:16} {row.status:7} round {row.number or '-':<4}"
        _say(f"{where} {row.question.query.name}: {asks}{why}")
    if not rows:
        _say("nothing was asked yet: aggregator analytics --task T --ask labels --epsilon 0.5 --wait")
    return 0


def _show(chosen: argparse.Namespace) -> int:
    home = settings.home_directory(chosen.home)
    with status.opened(home, settings.load(home)) as (store, _):
        row = Questions(store).get(chosen.number or 0)
    if row is None:
        raise ConfigError(f"there is no question {chosen.number}", "see `aggregator analytics list`")
    return _shown(row, chosen)
