"""What a device can say about itself from its files alone, whether it runs or not. Reads, changes nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sdk.config import Config

if TYPE_CHECKING:
    from edge_sdk.privacy.ledger import Ledger


def read_status(config: Config, now: float) -> dict[str, Any]:
    """A plain dict: models, examples, fields left out, privacy spent, own versions, epoch key, uploads, and counters.

    Missing files give empty parts. `now`: the device's own clock, seconds since 1970.
    """
    from edge_sdk.personal import PersonalWeights

    home = config.home
    return {
        "home": str(home),
        "models": installed_models(home),
        "examples": dict(
            _rows(home / "examples.db", "SELECT task, COUNT(*) FROM examples GROUP BY task ORDER BY task")
        ),
        **_held(home / "examples.db"),
        "training": config.training and not (home / "training.off").exists(),
        "examples_set_aside": (home / "examples.db.unreadable").exists(),
        "privacy": _privacy(config),
        "epoch_key": _epoch_key(home / "device.db", now),
        "personal": PersonalWeights(home).stated() if config.personalise else {},
        **_device(home / "device.db"),
    }


def _held(path: Path) -> dict[str, Any]:
    """By task: examples, subjects, those with consent, the oldest (seconds since 1970), bytes; and fields left out."""
    from edge_sdk.consent import AGREED

    columns = ("count", "subjects", "consented", "oldest", "bytes")
    query = (
        "SELECT task, COUNT(*), COUNT(DISTINCT NULLIF(subject, X'')), COALESCE(SUM(agreed > 0), 0), MIN(recorded_at),"
        f" SUM(LENGTH(sealed)) FROM (SELECT *, {AGREED} AS agreed FROM examples) GROUP BY task ORDER BY task"
    )
    held = {task: dict(zip(columns, row, strict=True)) for task, *row in _rows(path, query)}
    dropped: dict[str, dict[str, int]] = {}
    for task, name, n in _rows(path, "SELECT task, field, n FROM dropped ORDER BY task, field"):
        dropped.setdefault(task, {})[name] = n
    return {"examples_held": held, "fields_dropped": dropped}


def installed_models(home: Path) -> dict[str, dict[str, Any]]:
    """Task -> version, SHA-256 (hex) and file of the model that serves, by the slots' journals."""
    import msgspec

    from edge_sdk.ota.slots import JOURNAL, Journal, Phase

    found: dict[str, dict[str, Any]] = {}
    for path in sorted((home / "models").glob(f"*/{JOURNAL}")):
        try:
            journal = msgspec.json.decode(path.read_bytes(), type=Journal)
        except (OSError, msgspec.MsgspecError):
            continue
        entry = journal.candidate if journal.phase is Phase.TRIAL else journal.active
        if entry is not None:
            file = str(path.with_name(f"{entry.slot}.onnx"))
            found[path.parent.name] = {"version": entry.version, "sha256": entry.sha256, "file": file}
    return found


def _rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    if not path.exists():
        return []
    try:
        connection = sqlite3.connect(path, timeout=2.0)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()
    except sqlite3.Error:
        return []


def _device(path: Path) -> dict[str, Any]:
    counters: dict[str, dict[str, int]] = {}
    for kind, reason, n in _rows(path, "SELECT kind, reason, n FROM counters ORDER BY kind, reason"):
        counters.setdefault(kind, {})[reason] = n
    columns = ("task", "round", "state", "reason", "size_bytes", "chunks_sent", "chunks_resent")
    uploads = _rows(
        path, "SELECT task, round, state, reason, size, sent, resent FROM outbox ORDER BY rowid DESC LIMIT 20"
    )
    return {
        "refusals": counters.pop("refusal", {}),
        "revoked": bool(counters.get("refused-by-aggregator", {}).get("revoked")),
        "counters": counters,
        "uploads": [dict(zip(columns, row, strict=True)) for row in uploads],
    }


def _epoch_key(path: Path, now: float) -> dict[str, Any]:
    """Number of the current key (1: the enrolled one), its age, and whether a next and an older one are there."""
    from edge_sdk.device_db import TIME_FLOOR

    keys = {state: row for state, *row in _rows(path, "SELECT state, number, made_at, clock_at FROM epoch_keys")}
    if "current" not in keys:
        return {}
    number, made_at, clock_at = keys["current"]
    floor = _rows(path, f"SELECT value FROM facts WHERE name = '{TIME_FLOOR}'")
    by_clock = int(now) - clock_at if clock_at else 0  # a signed time that was ahead hides nothing from this one
    age_s = max(0, by_clock, int(now) - made_at, *(row[0] - made_at for row in floor))
    return {"number": number, "age_s": age_s, "next_sent": "next" in keys, "older_kept": "older" in keys}


def _privacy(config: Config) -> dict[str, dict[str, dict[str, Any]]]:
    """Task -> unit -> what was spent and what that means, by the terms it was charged under, and the budget."""
    path = config.home / "device.db"
    spent: dict[str, dict[str, dict[str, Any]]] = {}
    charged = _rows(path, "SELECT DISTINCT task, unit FROM privacy_spends ORDER BY task, unit")
    if not charged:
        return spent
    from edge_sdk.privacy.ledger import Ledger

    connection = sqlite3.connect(path, timeout=2.0)
    try:
        ledger = Ledger(connection)
        for task, unit in charged:
            spent.setdefault(task, {})[unit] = {**_stated(ledger, task, unit, config), "budget": config.max_epsilon}
    finally:
        connection.close()
    return spent


def _stated(ledger: Ledger, task: str, unit: str, config: Config) -> dict[str, Any]:
    """`rounds` counts those of an earlier installation (`rounds_carried`), whose terms are not known here."""
    from edge_sdk.privacy.statement import charged, unplaced

    under, (rounds, carried) = ledger.under(task, unit), ledger.counts(task, unit)
    delta = config.max_delta if under is None else under.terms.delta
    epsilon = ledger.epsilon(task, unit, delta)
    if under is None:
        stated = unplaced(unit, delta, epsilon, rounds)
    else:
        stated = charged(under.terms, epsilon, rounds, under.n_min).to_dict()
    return {**stated, "epsilon": epsilon, "rounds_carried": carried}
