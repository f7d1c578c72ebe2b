"""What the operator sees of a running aggregator, as one plain dict read from its database. Changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aggregator import cohort, renewal, tasks
from aggregator.audit import ALARMS
from aggregator.config import Config
from aggregator.errors import TaskRefused
from aggregator.fleet.registry import Registry
from aggregator.home import Home
from aggregator.ledger import Alarm, Ledger
from aggregator.ledger_report import alarm_lines
from aggregator.model_card import newest_offer
from aggregator.server_round import said_why
from aggregator.store import audit_log
from aggregator.store.rows import RoundRow, TaskRow
from aggregator.store.schema import open_database
from aggregator.store.store import Store
from edge_sdk.artifact.errors import ArtifactError
from edge_sdk.artifact.weights import read_vector
from edge_sdk.privacy import statement
from edge_sdk.protocol.messages import PrivacyTerms

Status = dict[str, Any]
ROUNDS_SHOWN = 200


@contextmanager
def opened(home: Path, config: Config) -> Iterator[tuple[Store, Registry]]:
    """The store and the registry on a connection of their own."""
    connection = open_database(Home(home).database)
    try:
        yield Store(connection), Registry(connection, config.fleet)
    finally:
        connection.close()


def gather(home: Path, store: Store, registry: Registry, now: float) -> Status:
    """Tasks with their rounds, devices, and refusals by kind and reason."""
    presence = store.presence()
    live = cohort.live({device: (at, phase) for device, (at, phase, _) in presence.items()}, now)
    devices = registry.devices()
    active = [device.device for device in devices if device.status == "active"]
    return {
        "fleet": registry.fleet,
        "devices": {"active": len(active), "live": len(live & set(active)), "revoked": len(devices) - len(active)},
        "tasks": [_task(home, store, row, now) for row in store.tasks()],
        "ledger_alarms": [alarm._asdict() for alarm in Ledger(store.connection).alarms() if alarm.standing],
        "offline_roles_days": renewal.days_left(home, now),
        "refusals": {f"{kind}/{reason}": count for (kind, reason), count in sorted(store.refusals().items())},
        "audit": _audit(store),
    }


def _audit(store: Store) -> Status:
    """How long the audit log is, how far it is signed, and which heads that were signed it does not hold."""
    newest = audit_log.newest_head(store.connection)
    entries, alarms = audit_log.last(store.connection)[0], store.value(ALARMS) or []
    return {"entries": entries, "signed": newest.size if newest else 0, "alarms": alarms}


def _task(home: Path, store: Store, row: TaskRow, now: float) -> Status:
    spec = tasks.parse_spec(row.spec)
    rounds = store.rounds(row.name, last=ROUNDS_SHOWN)
    terms, length = _terms(home, spec, row, rounds)
    release = store.last_release(row.name)
    spent = tasks.rounds_spent(store, row.name)
    return {
        "name": row.name,
        "status": row.status,
        "reason": row.reason,
        "rounds_done": tasks.rounds_done(store, spec),
        "rounds_wanted": spec.rounds,
        "phase": rounds[-1].phase if rounds else "waiting",
        "waiting": rounds[-1].waiting if rounds else "for the first round",
        "phase_s": round(max(0.0, now - rounds[-1].phase_since), 1) if rounds else 0.0,
        "metric_name": spec.metric,
        "privacy": _charged(store, row.name, terms, spec.n_min) or privacy(terms, length, spent, spec.n_min),
        "release": None if release is None else {"version": release[0], "sha256": release[2], "metric": release[3]},
        "rounds": _rounds(store, rounds, spec),
    }


def _terms(home: Path, spec: tasks.TaskSpec, row: TaskRow, rounds: list[RoundRow]) -> tuple[PrivacyTerms | None, int]:
    """The terms in force and the update's length: as last offered, else as the task would be offered."""
    if rounds:
        offer = newest_offer(rounds)
        return offer.privacy, offer.length
    try:
        length = read_vector(Home(home).checkpoint_file(row.checkpoint).read_bytes()).size
        return tasks.settle(spec, length), length
    except (OSError, ArtifactError, TaskRefused):
        return None, 0


def privacy(terms: PrivacyTerms | None, length: int, rounds: int, n_min: int) -> Status:
    """Epsilon with all that it means nothing without: see `edge_sdk.privacy.statement`."""
    return {} if terms is None else statement.state(terms, length, rounds, n_min).to_dict()


def _charged(store: Store, task: str, terms: PrivacyTerms | None, n_min: int) -> Status:
    """The same from the ledger, which knows every round by its own terms; nothing before the first offer."""
    spent = Ledger(store.connection).model(task)
    if terms is None or spent is None or not spent.rounds:
        return {}
    return statement.charged(terms, spent.epsilon, spent.rounds, n_min).to_dict()


def _rounds(store: Store, rows: list[RoundRow], spec: tasks.TaskSpec) -> list[Status]:
    """Every round shown, with the epsilon spent up to it by the ledger; None where nothing is promised."""
    charged = sorted(Ledger(store.connection).by_round(spec.name))
    shown = []
    for row in rows:
        checkpoint = store.checkpoint(row.task, row.number)
        entry = _round(store, row, checkpoint[1].get(spec.metric) if checkpoint else None)
        epsilon = max((spent for number, _, spent in charged if number <= row.number), default=0.0)
        promised = not spec.insecure_without_noise and math.isfinite(epsilon)
        shown.append({**entry, "epsilon": round(epsilon, 4) if promised else None})
    return shown


def _round(store: Store, row: RoundRow, metric: float | None) -> Status:
    uploads = store.uploads(row.task, row.number, "accepted", "summed")
    return {
        "round": row.number,
        "phase": row.phase,
        "reason": row.reason,
        "waiting": row.waiting,
        "devices_in": len(uploads),
        "devices": [upload.device for upload in uploads],
        "metric": metric,
        "query": row.stats.get("query"),
        "refused": row.stats.get("refused", {}),
        "groups": row.stats.get("groups", []),
        "upload_bytes": row.stats.get("upload_bytes_each"),
        "float32_bytes": row.stats.get("float32_bytes_each"),
        "version": row.stats.get("version"),
        "seconds": _seconds(row.stats.get("seconds", {})),
    }


def _seconds(by_phase: dict[str, float]) -> dict[str, float | None]:
    """Where a round's time went: `training` until the first upload, `collecting` until the last."""
    opening = by_phase.get("closed", 0.0) + by_phase.get("opening", 0.0) - by_phase.get("averaging", 0.0)
    return {
        "training": by_phase.get("offered"),
        "collecting": by_phase.get("collecting"),
        "opening": round(opening, 3) if "opening" in by_phase else None,
        "averaging": by_phase.get("averaging"),
        "evaluating": by_phase.get("evaluating"),
        "releasing": by_phase.get("releasing"),
    }


def lines(status: Status) -> list[str]:
    """The same, for people: plain lines."""
    devices = status["devices"]
    text = [
        f"fleet {status['fleet']}: {devices['live']} of {devices['active']} devices live, {devices['revoked']} revoked"
    ]
    for task in status["tasks"]:
        text += task_lines(task)
    if not status["tasks"]:
        text.append("no tasks yet: aggregator task create NAME --model FILE.onnx --held-out FILE.jsonl")
    text += alarm_lines([Alarm(**alarm) for alarm in status["ledger_alarms"]])
    if reminder := renewal.reminder(status["offline_roles_days"]):
        text.append(reminder)
    if status["audit"]["alarms"]:
        lost = status["audit"]["alarms"][-1]
        what = f"ALARM: the audit log lost entries: it does not hold the head of {lost['size']} ({lost['source']})"
        text.append(f"{what}; run `aggregator audit verify`")
    refused = ", ".join(f"{count} {reason}" for reason, count in status["refusals"].items())
    return [*text, f"refused messages: {refused or 'none'}"]


def task_lines(task: Status) -> list[str]:
    """One task: how far, what it waits for, what it is worth and what it costs."""
    head = f"task {task['name']}: {task['status']}, {task['rounds_done']} of {task['rounds_wanted']} rounds"
    why = task["reason"] or task["waiting"]
    text = [f"{head}, {task['phase']}" + (f" ({why})" if why else "")]
    release = task["release"]
    if release:
        metric = "" if release["metric"] is None else f", {task['metric_name']} {release['metric']:.4f}"
        text.append(f"  release {release['version']}{metric}, sha256 {release['sha256'][:16]}")
    refused = next((entry for entry in reversed(task["rounds"]) if entry["refused"]), None)
    if refused:
        text.append(f"  devices that took no part in round {refused['round']}: {said_why(refused['refused'])}")
    if left_out := _left_out(task["rounds"]):
        text.append(f"  {left_out}")
    if task["privacy"]:
        text.append(f"  privacy: {privacy_line(task['privacy'])}")
    return text


def _left_out(rounds: list[Status]) -> str:
    """What became of the groups of the newest round that left one out, "" where none did."""
    for entry in reversed(rounds):
        if why := sorted({group["reason"].split(":")[0] for group in entry["groups"] if group["reason"]}):
            count = sum(bool(group["reason"]) for group in entry["groups"])
            return f"round {entry['round']} left out {count} of {len(entry['groups'])} groups: {', '.join(why)}"
    return ""


def privacy_line(terms: Status) -> str:
    """One sentence that may stand alone."""
    return str(terms["sentence"])
