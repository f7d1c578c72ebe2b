"""`edge-sdk enroll | run | status | predict | answer | training | explain | card | export | forget`: a device.

Says what went wrong in one line and the remedy in another, and exits with 2; no traceback for what a user can put
right. `status` and `predict` only read, so they work while `run` runs, and without any connection.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import re
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edge_sdk.config import IDENTITY, Config, ConfigError, load

if TYPE_CHECKING:
    from edge_sdk.artifact.schema import Schema
    from edge_sdk.examples_store import ExamplesStore
    from edge_sdk.inference import Answer, ServedModel

FAILED: Final = 2
WHY: Final = 3  # fields shown
Command = Callable[[argparse.Namespace], int]


class CommandError(Exception):
    """A command cannot go on. `remedy` is what the user does next."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class _Parser(argparse.ArgumentParser):
    """Wrong usage speaks in the same two lines as every other error."""

    def error(self, message: str) -> Any:
        _complain(message, f"see `{self.prog} --help`")
        raise SystemExit(FAILED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    try:
        chosen = _parser().parse_args(arguments)
        command: Command = chosen.command
        return command(chosen)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return FAILED
    except Exception as error:
        if not _can_be_put_right(error):
            raise
        _complain(*_two_lines(error))
        return FAILED


def _can_be_put_right(error: Exception) -> bool:
    """True for our own errors and the disk's; anything else is a bug and shows its traceback."""
    ours = type(error).__module__.split(".")[0] == "edge_sdk"
    return ours or isinstance(error, (CommandError, OSError, sqlite3.Error))


def _two_lines(error: Exception) -> tuple[str, str]:
    """What went wrong, and what the user does next: the error's own remedy, else the one for its kind."""
    if getattr(error, "remedy", ""):
        return str(error), str(getattr(error, "remedy", ""))
    if isinstance(error, sqlite3.Error):
        return f"a file in the device's directory cannot be used: {error}", "check the disk and who owns the files"
    parting = "; " if isinstance(error, ConfigError) or "; " in str(error) else ": "
    message, _, remedy = str(error).rpartition(parting)
    if message and not isinstance(error, OSError) and type(error).__name__ != "RecordError":
        return message, remedy
    return str(error), _REMEDIES.get(type(error).__name__, "check that the file is there and that this user may use it")


_REMEDIES: Final = {
    "RecordError": "give the fields of the model's schema, each with a value of its kind",
    "IdentityError": "restore it from a copy, or enrol again with `edge-sdk enroll`",
    "ConfigError": "correct the setting in edge.toml, the environment or the arguments",
}


def _complain(message: str, hint: str) -> None:
    print(f"edge-sdk: error: {message[:1].lower()}{message[1:]}", file=sys.stderr)
    if hint:
        print(f"edge-sdk: hint: {hint}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="edge-sdk", description="One device of a Chorale fleet.")
    commands = parser.add_subparsers(required=True, metavar="command")
    enroll = _command(commands, "enroll", _enroll, "join a fleet with a one-time token")
    enroll.add_argument("token")
    enroll.add_argument("--device", help="the device's name: a-z, 0-9 and '-' (default: the host's)")
    run = _command(commands, "run", _run, "stay connected: learn, upload, update")
    run.add_argument("--verbose", action="store_true", help="say what happens, on standard error")
    status = _command(commands, "status", _status, "what this device has, spent and refused")
    status.add_argument("--json", action="store_true")
    training = _command(commands, "training", _training, "let this device learn, or not")
    training.add_argument("switch", choices=("on", "off"))
    explain = _command(commands, "explain", _explain, "a notice for customers: what is kept and what leaves")
    explain.add_argument("--task", required=True)
    explain.add_argument("--language", default="en", help="en or zh")
    card = _command(commands, "card", _card, "the model card that was signed with the installed model")
    card.add_argument("--task", required=True)
    card.add_argument("--json", action="store_true", help="as it was signed")
    export = _command(commands, "export", _export, "everything held of one subject, as JSON")
    export.add_argument("subject")
    forget = _command(commands, "forget", _forget, "erase every example of one subject")
    forget.add_argument("subject")
    predict = _command(commands, "predict", _predict, "answer one record with the installed model")
    predict.add_argument("task")
    predict.add_argument("--json-record", required=True, metavar="JSON", help="the record's fields as a JSON object")
    predict.add_argument("--json", action="store_true")
    predict.add_argument("--why", action="store_true", help="the fields that pushed the prediction")
    answer = _command(commands, "answer", _answer, "what to say to a customer's text: a signed answer, or a person")
    answer.add_argument("text")
    answer.add_argument("--task", required=True)
    answer.add_argument("--language", default="en", help="of the answer, such as en or zh (default: en)")
    answer.add_argument("--json", action="store_true")
    from edge_sdk.audit_commands import add_commands

    add_commands(commands, _command)
    return parser


def _command(commands: Any, name: str, command: Command, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
    parser.add_argument("--home", type=Path, help="the device's directory (default: EDGE_HOME)")
    parser.set_defaults(command=command)
    return parser


def _enroll(chosen: argparse.Namespace) -> int:
    from edge_sdk.identity.enrolment import enrol

    home = load(home=chosen.home).home
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    device = chosen.device or _host_name()
    identity = enrol(chosen.token, device, home / IDENTITY, entropy=os.urandom)
    _forget_revocation(home / "device.db")
    print(f"enrolled {identity.device} in fleet {identity.bundle.fleet}")
    print(f"next: edge-sdk run --home {home}")
    return 0


def _forget_revocation(path: Path) -> None:
    """What the last identity was told is not said of the new one."""
    if path.exists():
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DELETE FROM counters WHERE kind = 'refused-by-aggregator' AND reason = 'revoked'")


def _host_name() -> str:
    name = re.sub(r"[^a-z0-9]+", "-", socket.gethostname().lower()).strip("-")[:48].strip("-")
    if not name:
        raise CommandError("this host has no usable name", "give one with --device")
    return name


def _run(chosen: argparse.Namespace) -> int:
    from edge_sdk.client import check_home, init
    from edge_sdk.identity.enrolment import load_identity

    config = load(home=chosen.home)
    check_home(config.home)
    load_identity(config.home / IDENTITY)  # an identity that cannot be used is told here, not in a log
    level = logging.INFO if chosen.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    told: list[BaseException] = []
    with init(config, on_error=told.append) as client:
        print(f"running in {client.config.home}; stop with ctrl-c", flush=True)
        while not stop.wait(1.0):
            if told and client.status()["phase"] == "failed":
                raise CommandError(str(told[0]), "put that right, then start `edge-sdk run` again") from told[0]
            told.clear()
    return 0


def _status(chosen: argparse.Namespace) -> int:
    from edge_sdk.device_status import read_status

    status = read_status(_enrolled(chosen.home), time.time())
    if chosen.json:
        print(json.dumps(status, indent=2, sort_keys=True))
        return 0
    for line in _told(status):
        print(line)
    return 0


def _told(status: Mapping[str, Any]) -> list[str]:
    """Status as lines for a person."""
    lines = [f"home      {status['home']}"]
    if status["revoked"]:
        lines.append("revoked   the aggregator says that this device is revoked: enrol it again with a new token")
    lines += [f"model     {task}: version {m['version']} ({m['sha256'][:12]})" for task, m in status["models"].items()]
    lines += [
        f"personal  {task}: {p['kind']}, from {p['rows']} examples, for this device alone"
        for task, p in status["personal"].items()
    ]
    lines += [f"examples  {task}: {n}" for task, n in status["examples"].items()]
    lines += [
        f"fields    {task}: left out {', '.join(f'{name} ({n})' for name, n in names.items())}"
        for task, names in status["fields_dropped"].items()
    ]
    if not status["training"]:
        lines.append("training  off: `edge-sdk training on` lets this device learn again")
    if status["examples_set_aside"]:
        file = Path(status["home"], "examples.db.unreadable")
        lines.append(f"examples  older ones cannot be read any more: put their key back from a copy, or remove {file}")
    for task, units in status["privacy"].items():
        for p in units.values():
            lines.append(f"privacy   {task}: {p['sentence']}; this device allows {p['budget']:g}")
    if key := status["epoch_key"]:
        waits = ", the next one waits for a roster" if key["next_sent"] else ""
        lines.append(f"epoch key number {key['number']}, {key['age_s'] / 3600:.1f} hours old{waits}")
    for u in status["uploads"]:
        lines.append(f"upload    {u['task']} round {u['round']}: {u['state']} {u['reason']}".rstrip())
    lines += [f"refused   {reason}: {n}" for reason, n in status["refusals"].items()]
    if n := sum(status["counters"].get("audit", {}).values()):
        lines.append(f"alarm     the aggregator's log contradicted what it showed before, {n} times")
    return lines


def _training(chosen: argparse.Namespace) -> int:
    """A file, so that a running device sees it within a second and it outlives every restart."""
    from edge_sdk.engine import TRAINING_OFF

    config = _enrolled(chosen.home)
    if chosen.switch == "off":
        (config.home / TRAINING_OFF).touch(mode=0o600)
        print("training is off: nothing is learnt here, and what waited to be sent is dropped")
        return 0
    (config.home / TRAINING_OFF).unlink(missing_ok=True)
    if not config.training:
        raise CommandError("training is off in the settings", "set training = true in edge.toml or EDGE_TRAINING")
    print("training is on")
    return 0


def _explain(chosen: argparse.Namespace) -> int:
    from edge_sdk.disclosure import notice

    print(notice(_enrolled(chosen.home), chosen.task, chosen.language))
    return 0


def _card(chosen: argparse.Namespace) -> int:
    from edge_sdk.model_card import lines, read_card

    home = _enrolled(chosen.home).home
    card = read_card(home, chosen.task)
    if card is None:
        raise CommandError(f"there is no card of a model for task {chosen.task!r}", "it comes with the next release")
    print(json.dumps(card, ensure_ascii=False) if chosen.json else "\n".join(lines(card)))
    return 0


def _export(chosen: argparse.Namespace) -> int:
    from edge_sdk.disclosure import plain, rounds_of
    from edge_sdk.recorder import held_of

    config = _enrolled(chosen.home)
    with _examples(config) as examples:
        held = held_of(examples, chosen.subject)
    held["rounds"] = rounds_of(config.home / "device.db", held["tasks"])
    print(json.dumps(plain(held), indent=2, ensure_ascii=False))
    return 0


def _forget(chosen: argparse.Namespace) -> int:
    from edge_sdk.kept_updates import KeptUpdates
    from edge_sdk.personal import PersonalWeights

    config = _enrolled(chosen.home)
    with _examples(config) as examples:
        gone = examples.forget(chosen.subject)
        for task in examples.owed():
            KeptUpdates(config.home).forget(task)
            PersonalWeights(config.home).forget(task)
    print(f"examples erased: {gone}; what waits to be sent and may hold them goes")
    _note_forgotten(config.home / "device.db", gone)
    return 0


def _note_forgotten(path: Path, gone: int) -> None:
    """Into the journal, as the running device does; it signs what was added when it next runs."""
    from edge_sdk.device_db import TIME_FLOOR, fact, open_device_db
    from edge_sdk.journal import Journal

    if path.exists():
        with contextlib.closing(open_device_db(path)) as connection:
            floor = fact(connection, TIME_FLOOR)
            Journal(connection, lambda: max(time.time(), floor)).note("forgotten", examples=gone)


@contextlib.contextmanager
def _examples(config: Config) -> Iterator[ExamplesStore]:
    """The example store, beside a device that may be running."""
    from edge_sdk.recorder import open_examples

    if not (config.home / "examples.db").exists():
        raise CommandError(f"{config.home} holds no examples", "nothing was recorded there yet; check --home")
    examples = open_examples(config, os.urandom)
    try:
        if examples.damage is not None:
            raise examples.damage
        yield examples
    finally:
        examples.close()


def _predict(chosen: argparse.Namespace) -> int:
    config = _enrolled(chosen.home)
    model, again = _installed(config, chosen.task)
    record, widened = _with_windows(config, chosen.task, model.schema, _record(chosen.json_record))
    answer = _answered(model, again, record, widened)
    if chosen.json:
        ranked = [{"label": label, "score": score} for label, score in answer.ranked]
        version = {"model_version": answer.model_version, "model_sha256": answer.model_sha256}
        version["personal"] = answer.personal
        more: dict[str, Any] = {"interval": answer.interval, "calibrated": answer.calibrated}
        more |= {"why": answer.pushes()} if chosen.why else {}
        print(json.dumps({"label": answer.label, "score": answer.score, "ranked": ranked, **more, **version}))
        return 0
    for label, score in answer.top(3):
        print(f"{label}  {score:.3f}")
    if answer.interval is not None:
        low, high = answer.interval
        known = "" if answer.calibrated else " (not calibrated: too little was recorded here)"
        print(f"between  {low:.3f} and {high:.3f}{known}")
    if chosen.why:
        print(*(f"pushed by {name}  {push:+.3f}" for name, push in answer.pushes()[:WHY]), sep="\n")
    return 0


def _answer(chosen: argparse.Namespace) -> int:
    from edge_sdk import answering, stored_answers

    home = _enrolled(chosen.home).home
    model, again = _installed(_enrolled(chosen.home), chosen.task)
    listed = stored_answers.load(home, chosen.task)
    record = answering.record_of(model.schema, chosen.text)
    ranked = _answered(model, again, record).ranked
    answers = None if listed is None else answering.Answers(listed)
    reply = answering.reply(answers, model.schema, record, ranked, chosen.language)
    if chosen.json:
        print(json.dumps(dataclasses.asdict(reply), ensure_ascii=False))
        return 0
    print(reply.text)
    why = f", a person takes over: {reply.reason}" if reply.handed_over else ""
    print(f"{reply.intent}  {reply.confidence:.3f}{why}", file=sys.stderr)
    return 0


def _installed(config: Config, task: str) -> tuple[ServedModel, str]:
    """The installed model of a task, opened, and what to do where it does not answer."""
    from edge_sdk.device_status import installed_models
    from edge_sdk.inference import BadModel, open_model

    models = installed_models(config.home)
    if task not in models:
        known = ", ".join(models) or "none"
        raise CommandError(
            f"no model for task {task!r} (tasks with one: {known})", "`edge-sdk run` fetches it once connected"
        )
    path = Path(models[task]["file"])
    again = f"remove {path.parent}; `edge-sdk run` fetches the model again"
    try:
        return _personal(config, task, open_model(path.read_bytes(), models[task]["version"]), path), again
    except FileNotFoundError as error:
        raise CommandError(f"the model's file {path} is missing", again) from error
    except BadModel as error:
        raise CommandError(f"the model's file {path} is damaged", again) from error


def _personal(config: Config, task: str, served: ServedModel, path: Path) -> ServedModel:
    """The device's own version of the installed model, where it has one that holds."""
    from edge_sdk.inference import personal_of
    from edge_sdk.personal import PersonalWeights, holds, version

    kept = PersonalWeights(config.home).find(task) if config.personalise else None
    if kept is None or not kept.vector:
        return served
    with _examples(config) as examples:
        erasures = examples.erasures(task)
    data = version(path.read_bytes(), kept) if holds(kept, served.sha256, erasures, time.time()) else None
    return served if data is None else personal_of(served, data)


def _with_windows(
    config: Config, task: str, schema: Schema, record: dict[str, Any]
) -> tuple[Mapping[str, Any], float | None]:
    """The record with the windows that it leaves out, and how far its interval is moved, by the device's store."""
    from edge_sdk.interval_scores import IntervalScores
    from edge_sdk.windows import Windows, own_fields

    whole = all(own.name in record for own in own_fields(schema)) and len(schema.label.quantiles) < 2
    if whole or not (config.home / "examples.db").exists():
        return record, None
    windows = Windows()
    with _examples(config) as examples:
        windows.load(examples.windows.read(), examples.name)
    try:
        filled = windows.for_prediction(task, schema, record, None)
        return filled, IntervalScores(windows).widening(task, schema, record)
    except ValueError as error:
        raise CommandError(str(error), "record more, or give the window in the record") from error


def _answered(model: ServedModel, again: str, record: Mapping[str, Any], widened: float | None = None) -> Answer:
    try:
        return model.predict([record], [widened])[0]
    except ValueError:
        raise
    except Exception as error:  # whatever the runtime raises
        raise CommandError(f"the model gave no answer: {error}", again) from error


def _record(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"--json-record is not JSON: {error}", """write it as '{"field": value, …}'""") from error
    if not isinstance(record, dict):
        raise CommandError("--json-record is not an object", """write it as '{"field": value, …}'""")
    return record


def _enrolled(home: Path | None) -> Config:
    config = load(home=home)
    if not config.home.is_dir():
        raise CommandError(f"{config.home} is not there", "`edge-sdk enroll TOKEN --home DIR` makes it")
    return config


if __name__ == "__main__":
    sys.exit(main())
