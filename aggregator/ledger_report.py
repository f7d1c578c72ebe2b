"""What `aggregator ledger` shows: what models and devices have spent, and where a device's word differs. Reads only."""

from __future__ import annotations

from typing import Any

from aggregator import model_card, tasks
from aggregator.comparison import said
from aggregator.ledger import Account, Alarm, Ledger
from aggregator.store.store import Store
from edge_sdk.privacy import accounting, statement
from edge_sdk.privacy.accounting import ACCOUNTANT_VERSION
from edge_sdk.privacy.curves import unpack
from edge_sdk.protocol.messages import Offer

Report = dict[str, Any]


def gather(store: Store, *, task: str | None = None, device: str | None = None) -> Report:
    """Models, devices and alarms, of one task or device where it is named."""
    ledger = Ledger(store.connection)
    deltas = {row.name: _delta(ledger, store, row.name) for row in store.tasks()}
    rows = [row for row in store.tasks() if task in (None, row.name)]
    return {
        "models": [] if device else [_model(store, ledger, tasks.parse_spec(row.spec), row.status) for row in rows],
        "devices": [_meaning(store, entry) | entry for entry in _devices(ledger.accounts(device, task), deltas)],
        "alarms": [
            alarm._asdict()
            for alarm in ledger.alarms()
            if task in (None, alarm.task) and device in (None, alarm.device)
        ],
    }


def _delta(ledger: Ledger, store: Store, task: str) -> float:
    spent, row = ledger.model(task), store.task(task)
    if spent is not None or row is None:
        return spent.delta if spent is not None else 1e-5
    return tasks.parse_spec(row.spec).delta


def _offer(store: Store, task: str, unit: str) -> Offer | None:
    """The newest offer of the task, where it is of this unit."""
    rows = store.rounds(task, last=1)
    offer = model_card.offer_of(rows[-1]) if rows else None
    return offer if offer is not None and offer.privacy.unit == unit else None


def _model(store: Store, ledger: Ledger, spec: tasks.TaskSpec, status: str) -> Report:
    """The figure with all that it means nothing without, by the terms of the newest offer."""
    spent, budget, offer = ledger.model(spec.name), tasks.budget(spec), _offer(store, spec.name, spec.unit)
    rounds, epsilon = (spent.rounds, spent.epsilon) if spent else (0, 0.0)
    if offer is None:
        meaning = {"sentence": statement.OFF["en"]} if spec.insecure_without_noise else {}
        meaning = meaning or statement.unplaced(spec.unit, spent.delta if spent else spec.delta, epsilon, rounds)
    else:
        meaning = statement.charged(offer.privacy, epsilon, rounds, offer.secagg.n_min).to_dict()
    return meaning | {
        "task": spec.name,
        "status": status,
        "unit": spec.unit,
        "delta": spec.delta,
        "rounds_opened": rounds,
        "epsilon": None if spec.insecure_without_noise else round(epsilon, 4),
        "budget": budget,
    }


def _meaning(store: Store, entry: Report) -> Report:
    """What the figures of a device are to be read by; where they are of another unit than is offered now, what the
    ledger alone knows."""
    offer = _offer(store, entry["task"], entry["unit"])
    if offer is None:
        said = statement.unplaced(entry["unit"], entry["delta"], 0.0, 0)
        return {name: said[name] for name in ("adjacency", "accountant", "against")} | {"placement": None}
    whole = statement.charged(offer.privacy, 0.0, 0, offer.secagg.n_min).to_dict()
    return {name: whole[name] for name in ("adjacency", "accountant", "against", "placement", "assumptions")}


def _devices(accounts: list[Account], deltas: dict[str, float]) -> list[Report]:
    found: dict[tuple[str, str, str], Report] = {}
    for account in accounts:
        key = (account.device, account.task, account.unit)
        entry = found.setdefault(
            key, {"device": key[0], "task": key[1], "unit": key[2], "delta": deltas.get(key[1], 1e-5)}
        )
        readable = account.accountant == ACCOUNTANT_VERSION
        spend = unpack(account.accountant, account.spend) if readable else None
        entry[account.source] = {
            "rounds": account.rounds,
            "last_round": account.last_round,
            "epsilon": None if spend is None else round(accounting.epsilon(spend, entry["delta"]), 4),
        }
    return list(found.values())


def lines(report: Report) -> list[str]:
    """The same, for people."""
    text = []
    for model in report["models"]:
        of = "no budget" if model["budget"] is None else f"budget {model['budget']:g}"
        opened = f"{model['rounds_opened']} opened sums"
        text.append(f"model {model['task']} ({model['status']}): {model['sentence']}; {opened}, {of}")
    for entry in report["devices"]:
        words = ", ".join(f"{source} {_figure(entry.get(source))}" for source in ("accepted", "reported"))
        carried = f", carried over {_figure(entry['carried'])}" if "carried" in entry else ""
        text.append(f"device {entry['device']} {entry['task']} {entry['unit']}: {words}{carried}")
    text += _legend(report["devices"])
    text += alarm_lines([Alarm(**alarm) for alarm in report["alarms"]])
    return text or ["nothing was spent yet"]


def _legend(devices: list[Report]) -> list[str]:
    """One line for each task and unit: how the devices' figures above are to be read."""
    said = {
        (entry["task"], entry["unit"]): f"at delta {entry['delta']:g} for each {entry['unit']} ({entry['adjacency']}; "
        f"{entry['accountant']}), against {entry['against']}"
        for entry in devices
    }
    return [f"devices' epsilons of {task} {unit}: {words}" for (task, unit), words in said.items()]


def _figure(account: Report | None) -> str:
    if account is None:
        return "nothing"
    epsilon = "an unreadable spend" if account["epsilon"] is None else f"epsilon {account['epsilon']:.3f}"
    return f"{epsilon} in {account['rounds']} rounds"


def alarm_lines(alarms: list[Alarm]) -> list[str]:
    """One line for each difference that stands."""
    return [f"alarm: ledgers differ: {said(alarm)}" for alarm in alarms if alarm.standing]
