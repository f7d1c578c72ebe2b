"""`aggregator init | serve | enroll-token | devices | task | analytics | status | renew | audit | evidence | …`.

Says what went wrong in one line and the remedy in another, and exits with 2. Never shows a traceback for what an
operator can put right.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from aggregator import config as settings
from aggregator import setup, status
from aggregator.config import Config, ConfigError
from aggregator.recording import recorded

UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
FAILED: Final = 2
OS_HINT: Final = "see that the file or folder is there and that you may use it"
OS_HINTS: Final = {
    errno.ENOENT: "see that the path is right; a home that lost files is restored from a copy",
    errno.EACCES: "run this as the user that owns the file",
    errno.EPERM: "run this as the user that owns the file",
    errno.ENOSPC: "free space on the disk, then run this again",
    errno.EADDRINUSE: "stop the program that holds the port, or set another one in aggregator.toml",
}
Command = Callable[[argparse.Namespace], int]


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
        if not _is_ours(error):
            raise
        return _complain(error)


def _is_ours(error: Exception) -> bool:
    """Errors of our own rooms, and of the operating system: everything that an operator can act on."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("aggregator", "edge_sdk")


def _complain(error: Exception) -> int:
    message, hint = _said(error)
    print(f"aggregator: error: {message[:1].lower()}{message[1:]}", file=sys.stderr)
    print(f"aggregator: hint: {hint}", file=sys.stderr)
    return FAILED


def _said(error: Exception) -> tuple[str, str]:
    """What went wrong, and what to do about it."""
    message = str(error) or type(error).__name__
    hint = getattr(error, "hint", "") or getattr(error, "remedy", "")
    if hint:
        return message, hint
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or message}", OS_HINTS.get(error.errno or 0, OS_HINT)
    if getattr(error, "reason", "") == "wrong-passphrase":
        return message, "give the file with the passphrase that `aggregator init` was given, with --passphrase-file"
    what, _, remedy = message.rpartition(": ")  # the release repository says both in one sentence
    return (what, remedy) if what else (message, "see `aggregator --help`, and aggregator.log in the home")


class _Parser(argparse.ArgumentParser):
    """Wrong usage speaks in the same two lines as every other error."""

    def error(self, message: str) -> Any:
        raise ConfigError(message, f"see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="aggregator", description="Federated learning for customer service: the aggregator.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    _add_init(commands)
    _add_fleet(commands)
    _add_tasks(commands)
    _add_demo(commands)
    from aggregator.audit_commands import add_commands

    add_commands(commands, _add, _Parser)
    from aggregator.analytics_commands import add_analytics

    add_analytics(commands, _add)
    from aggregator.answer_commands import add_answers

    add_answers(commands, _add, _Parser)
    from aggregator.evidence.commands import add_evidence

    add_evidence(commands, _add)
    from aggregator.rehearsal.command import add_rehearse

    add_rehearse(commands, _add)
    return parser


def _add(commands: Any, name: str, command: Command, text: str, *, home: bool = True) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command)
    if home:
        parser.add_argument("--home", help=f"default: {settings.HOME_VARIABLE}, else ./{settings.DEFAULT_HOME}")
    return parser


def _add_init(commands: Any) -> None:
    parser = _add(
        commands, "init", _init, "make a new fleet: every key, the release repository, the settings", home=False
    )
    parser.add_argument("home", metavar="DIR")
    parser.add_argument("--fleet", default="fleet", help="the fleet's name (default: fleet)")
    parser.add_argument("--host", default="127.0.0.1", help="name or address that devices connect to")
    parser.add_argument("--bind", help="address to listen on (default: loopback for a loopback host, else all)")
    parser.add_argument("--port", type=int, default=8883, help="the broker's port; 0 takes a free one")
    parser.add_argument("--enrol-port", type=int, default=8884, help="the enrolment port; 0 takes a free one")
    parser.add_argument("--broker", choices=settings.BROKERS, default="auto")
    parser.add_argument("--passphrase-file", help="protects the offline keys; without it one is drawn")
    serve = _add(commands, "serve", _serve, "run the broker, the enrolment listener and the rounds, until SIGTERM")
    serve.add_argument("--plain", action="store_true", help="plain lines even on a terminal")


def _add_fleet(commands: Any) -> None:
    token = _add(commands, "enroll-token", _enroll_token, "make a token that lets devices join")
    token.add_argument("--uses", type=int, default=1, help="how many devices it admits (default: 1)")
    token.add_argument("--ttl", type=duration, default="24h", help="how long it is good, such as 30m, 24h, 7d")
    token.add_argument("--kind", default="device", help="a word of your own, such as kiosk")
    token.add_argument("--steward", action="store_true", help="an always-on host that may sit on the committee")
    token.add_argument("--replace", metavar="NAME", help="revoke this device first, so that its name can enrol again")
    token.add_argument("--json", action="store_true")
    devices = _add(commands, "devices", _devices, "list the fleet's devices, or revoke one")
    devices.add_argument("action", nargs="?", choices=("list", "revoke"), default="list")
    devices.add_argument("name", nargs="?", help="the device to revoke")
    devices.add_argument("--json", action="store_true")
    shown = _add(commands, "status", _status, "rounds, what they wait for, privacy spent, refusals")
    shown.add_argument("--json", action="store_true")
    ledger = _add(
        commands, "ledger", _ledger, "privacy spent by model and by device, and where a device's word differs"
    )
    ledger.add_argument("--task", help="this task alone")
    ledger.add_argument("--device", help="this device alone")
    ledger.add_argument("--json", action="store_true")
    renew = _add(commands, "renew", _renew, "sign root and targets anew: targets within 90 days, root within a year")
    renew.add_argument("--offline", help="folder of the offline keys (default: HOME/offline)")
    renew.add_argument("--passphrase-file", help="default: the one that init drew")


def _add_tasks(commands: Any) -> None:
    parser = commands.add_parser("task", help="create, list, stop, resume or widen a learning task")
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=_Parser)
    create = _add(actions, "create", _task_create, "start learning: the service takes it up within a second")
    create.add_argument("name", metavar="NAME")
    create.add_argument("--model", required=True, help="the first model, an ONNX file")
    create.add_argument("--held-out", help="labelled records to measure with, one JSON object a line")
    create.add_argument(
        "--about", metavar="FILE", help="purpose, legal basis, controller, …: JSON, see docs/evidence.md"
    )
    create.add_argument("--offline", help="folder of the offline keys (default: HOME/offline)")
    create.add_argument("--passphrase-file", help="default: the one that init drew")
    create.add_argument("--json", action="store_true")
    plan = _add(actions, "plan", _task_plan, "say what create would settle and promise, and create nothing")
    plan.add_argument("name", metavar="NAME", nargs="?", default="plan")
    plan.add_argument("--model", required=True, help="the first model, an ONNX file")
    plan.add_argument("--language", choices=("en", "zh"), default="en", help="of the promise (default: en)")
    plan.add_argument("--json", action="store_true")
    from aggregator.task_options import add_options

    add_options(create)
    add_options(plan)
    describe = _add(actions, "describe", _task_describe, "show a task's settings, or state anew what people say of it")
    describe.add_argument("name", metavar="NAME")
    describe.add_argument("--about", metavar="FILE", help="put these statements in place: JSON, see docs/evidence.md")
    describe.add_argument("--json", action="store_true", help="the settings as a file for `task create --spec`")
    listed = _add(actions, "list", _task_list, "every task and how far it is")
    listed.add_argument("--json", action="store_true")
    stop = _add(actions, "stop", _task_stop, "no further rounds; the one that runs is finished")
    stop.add_argument("name", metavar="NAME")
    resume = _add(actions, "resume", _task_resume, "go on with a task that was stopped")
    resume.add_argument("name", metavar="NAME")
    from aggregator.widening_command import add_widen

    add_widen(actions, _add)


def _add_demo(commands: Any) -> None:
    parser = _add(commands, "demo", _demo, "the whole loop on this machine, with a report", home=False)
    words = "churn (the default), intents, demand, satisfaction or recommend"
    parser.add_argument("application", metavar="APPLICATION", nargs="?", default="churn", help=words)
    parser.add_argument("--report", default="demo-report", help="a folder for the report (default: demo-report)")
    parser.add_argument("--devices", type=int, default=12)
    parser.add_argument("--rounds", type=int, help="default: as many as the application needs")
    parser.add_argument("--broker", choices=settings.BROKERS, default="auto")
    parser.add_argument("--seed", type=int, default=0, help="chooses whom the demo kills; noise is never seeded")
    skip = "do not train every device alone and one centre to compare with"
    parser.add_argument("--no-comparison", dest="comparison", action="store_false", help=skip)


def duration(text: str) -> float:
    """Seconds of `30m`, `24h`, `7d` or `90s`. Raises argparse.ArgumentTypeError."""
    number, unit = text[:-1], text[-1:]
    if unit not in UNITS_S or not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write 30m, 24h or 7d")
    return float(int(number) * UNITS_S[unit])


def _opened(chosen: argparse.Namespace) -> tuple[Path, Config]:
    home = settings.home_directory(chosen.home)
    return home, settings.load(home)


def _init(chosen: argparse.Namespace) -> int:
    from aggregator.broker import free_port

    home = settings.home_directory(chosen.home)
    loopback = chosen.host in ("127.0.0.1", "localhost", "::1")
    config = Config(
        fleet=chosen.fleet,
        host=chosen.host,
        bind=chosen.bind or ("127.0.0.1" if loopback else "0.0.0.0"),  # noqa: S104 - devices elsewhere must reach it
        port=chosen.port or free_port(),
        enrol_port=chosen.enrol_port or free_port(),
        broker=chosen.broker,
    )
    passphrase = setup.read_passphrase(home, chosen.passphrase_file) if chosen.passphrase_file else None
    drawn = setup.init_home(home, config, passphrase=passphrase, now=time.time(), entropy=os.urandom)
    offline = setup.offline_directory(home)
    print(f"made fleet {config.fleet} in {home}")
    print(f"offline keys in {offline}: move this folder to a safe place; it is needed to create tasks")
    if drawn:
        print(f"their passphrase was drawn and lies in {offline / setup.PASSPHRASE}: keep it apart from the keys")
    print(f"next: aggregator serve --home {home}")
    return 0


def _serve(chosen: argparse.Namespace) -> int:
    from aggregator.serving import serve

    home, config = _opened(chosen)
    return serve(home, config, live=sys.stdout.isatty() and not chosen.plain)


def _enroll_token(chosen: argparse.Namespace) -> int:
    from aggregator.fleet.authority import open_authority
    from aggregator.home import Home

    home, config = _opened(chosen)
    now = time.time()
    authority = open_authority(Home(home).authority, now=now)
    with recorded(home, config) as (_, registry):
        if chosen.replace:
            registry.revoke(chosen.replace, now=now)
        token = registry.create_token(
            fingerprint=authority.fingerprint,
            address=f"{config.host}:{config.enrol_port}",
            now=now,
            entropy=os.urandom,
            kind=chosen.kind,
            steward=chosen.steward,
            uses=chosen.uses,
            ttl_s=chosen.ttl,
        ).reveal()
    if chosen.json:
        print(json.dumps({"token": token, "uses": chosen.uses, "expires_at": int(now + chosen.ttl)}))
    else:
        print(token)
        print("on the device: edge-sdk enroll TOKEN --home DIR --device NAME", file=sys.stderr)
    return 0


def _devices(chosen: argparse.Namespace) -> int:
    home, config = _opened(chosen)
    if chosen.action == "revoke":
        return _revoke(home, config, chosen.name)
    with status.opened(home, config) as (store, registry):
        presence, rows = store.presence(), registry.devices()
    shown: list[dict[str, Any]] = []
    for row in rows:
        seen_at, phase, active = presence.get(row.device, (None, "", {}))
        shown.append(
            {"device": row.device, "kind": row.kind, "status": row.status, "steward": row.steward}
            | {"enrolled_at": row.enrolled_at, "certificate_until": row.not_after}
            | {"seen_at": seen_at, "phase": phase, "models": active}
        )
    if chosen.json:
        print(json.dumps(shown))
        return 0
    for entry in shown:
        models = " ".join(f"{task}={sha256[:12]}" for task, sha256 in entry["models"].items())
        print(
            f"{entry['device']:24} {entry['kind']:12} {entry['status']:8} {entry['phase'] or 'never seen':12} {models}"
        )
    return 0


def _revoke(home: Path, config: Config, name: str | None) -> int:
    if not name:
        raise ConfigError("which device?", "aggregator devices revoke NAME")
    with recorded(home, config) as (_, registry):
        registry.revoke(name, now=time.time())
    print(f"{name} is revoked: its next message is refused, and the broker lets it in no more")
    return 0


def _status(chosen: argparse.Namespace) -> int:
    home, config = _opened(chosen)
    with status.opened(home, config) as (store, registry):
        gathered = status.gather(home, store, registry, time.time())
    print(json.dumps(gathered) if chosen.json else "\n".join(status.lines(gathered)))
    return 0


def _ledger(chosen: argparse.Namespace) -> int:
    from aggregator import ledger_report

    home, config = _opened(chosen)
    with status.opened(home, config) as (store, registry):
        if chosen.device and registry.get(chosen.device) is None:
            raise ConfigError(f"there is no device {chosen.device!r}", "see `aggregator devices`")
        if chosen.task and store.task(chosen.task) is None:
            raise ConfigError(f"there is no task {chosen.task!r}", "see `aggregator task list`")
        gathered = ledger_report.gather(store, task=chosen.task, device=chosen.device)
    print(json.dumps(gathered) if chosen.json else "\n".join(ledger_report.lines(gathered)))
    return 0


def _renew(chosen: argparse.Namespace) -> int:
    from aggregator.renewal import renew

    home, _ = _opened(chosen)
    offline = Path(chosen.offline) if chosen.offline else setup.offline_directory(home)
    days = renew(home, offline, chosen.passphrase_file, now=time.time())
    print("signed anew: " + ", ".join(f"{role} for {left} days" for role, left in days.items()))
    return 0


def _task_create(chosen: argparse.Namespace) -> int:
    from aggregator.task_options import create

    home, config = _opened(chosen)
    created = create(home, config, chosen, now=time.time())
    _warn(created["warnings"])
    if chosen.json:
        print(json.dumps(created))
        return 0
    print(f"task {created['name']}: model {created['sha256'][:16]}, its graph is locked for devices")
    print(f"privacy after {created['rounds']} rounds: {status.privacy_line(created['privacy'])}")
    return 0


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        print(f"aggregator: warning: {warning}", file=sys.stderr)


def _task_plan(chosen: argparse.Namespace) -> int:
    from aggregator.task_options import plan, plan_lines

    planned = plan(chosen)
    _warn(planned["warnings"])
    print(json.dumps(planned) if chosen.json else "\n".join(plan_lines(planned, chosen.language)))
    return 0


def _task_list(chosen: argparse.Namespace) -> int:
    home, config = _opened(chosen)
    with status.opened(home, config) as (store, registry):
        shown = status.gather(home, store, registry, time.time())["tasks"]
    if chosen.json:
        print(json.dumps(shown))
        return 0
    for task in shown:
        print("\n".join(status.task_lines(task)))
    return 0


def _task_describe(chosen: argparse.Namespace) -> int:
    from aggregator.about import read_about
    from aggregator.tasks import describe_task

    home, config = _opened(chosen)
    if not chosen.about:
        print(_described(home, config, chosen))
        return 0
    with recorded(home, config) as (store, _):
        left = describe_task(store, chosen.name, read_about(Path(chosen.about)), now=time.time())
    print(f"task {chosen.name} is described anew" + (f"; not stated: {', '.join(left)}" if left else ""))
    return 0


def _described(home: Path, config: Config, chosen: argparse.Namespace) -> str:
    from aggregator.task_options import described
    from aggregator.tasks import parse_spec

    with status.opened(home, config) as (store, _):
        task = store.task(chosen.name)
    if task is None:
        raise ConfigError(f"there is no task {chosen.name!r}", "see `aggregator task list`")
    return task.spec.decode() if chosen.json else "\n".join(described(parse_spec(task.spec)))


def _task_stop(chosen: argparse.Namespace) -> int:
    _set_running(chosen, "paused", "stopped by the operator")
    print(f"task {chosen.name} is stopped; `aggregator task resume {chosen.name}` goes on with it")
    return 0


def _task_resume(chosen: argparse.Namespace) -> int:
    _set_running(chosen, "active", "")
    print(f"task {chosen.name} goes on")
    return 0


def _set_running(chosen: argparse.Namespace, status_: str, reason: str) -> None:
    from aggregator.store import audit_log

    home, config = _opened(chosen)
    with recorded(home, config) as (store, _), store.transaction():
        task = store.task(chosen.name)
        if task is None:
            raise ConfigError(f"there is no task {chosen.name!r}", "see `aggregator task list`")
        if task.status not in ("active", "paused"):
            hint = "its privacy budget is meant for those rounds: create a task of another name for more"
            raise ConfigError(f"task {chosen.name} has ended: it is {task.status}", hint)
        store.set_task(chosen.name, status=status_, reason=reason)
        kind = "task-resumed" if status_ == "active" else "task-stopped"
        audit_log.append(store.connection, time.time(), kind, chosen.name)


def _demo(chosen: argparse.Namespace) -> int:
    from aggregator.demo.run import run

    return run(
        Path(chosen.report).absolute(),
        chosen.application,
        devices=chosen.devices,
        rounds=chosen.rounds,
        broker=chosen.broker,
        seed=chosen.seed,
        comparison=chosen.comparison,
    )


if __name__ == "__main__":
    sys.exit(main())
