"""Everything that was measured about one task, as one plain dict. Reads only, and runs the self-tests.

Nothing is estimated: what the tables do not hold is None. Refuses (HomeRefused) a task that is not there.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import Counter
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from aggregator import about, audit, model_card, tasks
from aggregator.errors import HomeRefused
from aggregator.evidence import junit, questions
from aggregator.fleet.authority import DEVICE_DAYS, SERVICE_DAYS, Authority
from aggregator.fleet.registry import Registry
from aggregator.home import Home
from aggregator.ledger import Ledger, cost
from aggregator.releases.repository import Repository
from aggregator.store import audit_log
from aggregator.store.rows import RoundRow, TaskRow
from aggregator.store.store import Store
from edge_sdk.privacy import accounting
from edge_sdk.privacy.accounting import ACCOUNTANT_VERSION
from edge_sdk.privacy.curves import at_most, unpack
from edge_sdk.protocol import hashlog
from edge_sdk.protocol.secagg.selftest import known_answer_test

FORMAT: Final = 1
ENDED: Final = ("released", "aborted")
Facts = dict[str, Any]


class Source(NamedTuple):
    """Where evidence comes from."""

    home: Home
    fleet: str
    store: Store
    registry: Registry
    authority: Authority
    repository: Repository


def collect(source: Source, task: str, *, now: float, tests: Path | None = None) -> Facts:
    """All facts of one task. `tests`: a JUnit file of the running version's tests. Raises HomeRefused."""
    row = source.store.task(task)
    if row is None:
        raise HomeRefused(f"there is no task {task!r}", "see `aggregator task list`")
    spec = tasks.parse_spec(row.spec)
    model = source.home.checkpoint_file(row.checkpoint).read_bytes()
    rounds = source.store.rounds(task)
    return {
        "evidence": FORMAT,
        "made_at": int(now),
        "fleet": source.fleet,
        "task": task,
        "status": row.status,
        "created_at": row.created_at,
        "software": _software(),
        "stated": about.stated(spec.about),
        "not_stated": about.missing(spec.about),
        "data": model_card.fields(model),
        "consent": _consent(spec, rounds),
        "privacy": _privacy(source.store, spec, model),
        "devices": _devices(source, spec, rounds, now),
        "rounds": _rounds(source.store, spec, rounds),
        "questions": questions.asked(source.store, task, rounds),
        "releases": _releases(source, row),
        "keys": _keys(source, rounds),
        "protections": _protections(spec, rounds),
        "audit": _audit(source),
        "tests": _tests(source, row, tests),
    }


def _software() -> Facts:
    """The version that runs, None where it was not installed as a package, and a digest of its source files."""
    try:
        version: str | None = version_of("chorale")
    except PackageNotFoundError:
        version = None
    digest, packages = hashlib.sha256(), Path(__file__).parents[2]
    for file in sorted(file for name in ("aggregator", "edge_sdk") for file in packages.glob(f"{name}/**/*.py")):
        digest.update(hashlib.sha256(file.read_bytes()).digest() + str(file.relative_to(packages)).encode() + b"\0")
    return {"name": "chorale", "version": version, "source_sha256": digest.hexdigest()}


def _consent(spec: tasks.TaskSpec, rounds: list[RoundRow]) -> Facts:
    """Which notice the offers asked for, from when until when."""
    versions: dict[int, Facts] = {}
    for row in rounds:
        offer = model_card.offer_of(row)
        first = {"version": offer.consent, "first_offered": offer.issued_at, "rounds": 0}
        entry = versions.setdefault(offer.consent, first)
        entry["rounds"] += 1
        entry["last_offered"] = offer.issued_at
    return {"required": spec.consent, "offered": [versions[version] for version in sorted(versions)]}


def _privacy(store: Store, spec: tasks.TaskSpec, model: bytes) -> Facts:
    ledger, budget = Ledger(store.connection), tasks.budget(spec)
    off = spec.insecure_without_noise
    spent = _finite(ledger.epsilon(spec.name))
    by_round = [] if off else ledger.by_round(spec.name)
    return {
        "statement": model_card.privacy(store, spec, model),
        "insecure_without_noise": off,
        "spent": None if off else spent,
        "budget": None if off else budget,
        "left": None if off or budget is None or spent is None else max(0.0, budget - spent),
        "by_round": [
            {"round": number, "opened_at": int(at), "epsilon": _finite(total)} for number, at, total in by_round
        ],
    }


def _finite(epsilon: float | None) -> float | None:
    """JSON knows no infinity: an epsilon without bound is no figure at all."""
    return epsilon if epsilon is not None and math.isfinite(epsilon) else None


def _devices(source: Source, spec: tasks.TaskSpec, rounds: list[RoundRow], now: float) -> Facts:
    devices = source.registry.devices()
    active = [device for device in devices if device.status == "active"]
    return {
        "enrolled": len(devices),
        "active": len(active),
        "revoked": len(devices) - len(active),
        "certificates_run_out_from": min((device.not_after for device in active), default=None),
        "certificates_run_out": sum(device.not_after <= now for device in active),
        "kinds": dict(Counter(device.kind for device in active)),
        "ledger": _device_ledgers(source.store, spec, rounds),
    }


def _device_ledgers(store: Store, spec: tasks.TaskSpec, rounds: list[RoundRow]) -> Facts:
    """What accepted uploads have cost the devices, by the aggregator's account; nobody is named."""
    ledger, budget = Ledger(store.connection), tasks.budget(spec)
    accounts = [
        account
        for account in ledger.accounts(task=spec.name)
        if account.source == "accepted" and account.accountant == ACCOUNTANT_VERSION
    ]
    spends = [unpack(account.accountant, account.spend) for account in accounts]
    epsilons = [accounting.epsilon(spend, spec.delta) for spend in spends]
    at_limit = 0
    if budget is not None and rounds:
        offer = model_card.newest_offer(rounds)
        another = cost(offer.privacy, offer.length)
        after = [accounting.epsilon(accounting.compose([spend, another]), spec.delta) for spend in spends]
        at_limit = sum(not at_most(epsilon, budget) for epsilon in after)
    differences = [alarm for alarm in ledger.alarms() if alarm.task == spec.name]
    return {
        "devices_charged": len(epsilons),
        "largest": _finite(max(epsilons, default=None)),
        "median": _finite(statistics.median(epsilons) if epsilons else None),
        "at_limit": at_limit,
        "differences_standing": sum(alarm.standing for alarm in differences),
        "differences_ever": len(differences),
    }


def _rounds(store: Store, spec: tasks.TaskSpec, rounds: list[RoundRow]) -> Facts:
    sizes = model_card.cohorts(store, spec.name)
    aborted = Counter(row.reason for row in rounds if row.phase == "aborted")
    return {
        "offered": len(rounds),
        "opened": len(model_card.opened(store, spec.name)),
        "aborted": sum(aborted.values()),
        "aborted_why": dict(aborted),
        "wanted": spec.rounds,
        "n_min": spec.n_min,
        "cohorts": {**model_card.spread([entry["devices"] for entry in sizes]), "by_sum": sizes},
    }


def _releases(source: Source, task: TaskRow) -> Facts:
    listed = {release.version: release for release in source.repository.releases(task.name)}
    signed = {
        entry.data.get("version"): entry.data.get("keys")
        for entry in _entries(source.store, task.name, "release")
        if entry.data.get("version") is not None
    }
    found = source.store.connection.execute(
        "SELECT version, number, sha256, metric, at FROM releases WHERE task = ? ORDER BY version", (task.name,)
    )
    lock = source.repository.locked_graph(task.name)
    return {
        "metric": tasks.parse_spec(task.spec).metric,
        "graph": None if lock is None else {"digest": lock["graph_digest"], "max_bytes": lock["max_bytes"]},
        "graph_locked_by": source.repository.roles()["targets"]["keys"],
        "all": [
            {
                "version": version, "round": number, "sha256": sha256, "metric": metric, "at": int(at),
                "signed_by": signed.get(version), "served": version in listed,
                "card_sha256": listed[version].custom.get("card_sha256") if version in listed else None,
            }
            for version, number, sha256, metric, at in found
        ],
    }  # fmt: skip


def _entries(store: Store, task: str, kind: str) -> list[hashlog.Entry]:
    """Entries of the audit log of one kind; of one task, or of all where it is ""."""
    entries = (hashlog.read(row.entry) for row in audit_log.rows(store.connection))
    return [entry for entry in entries if entry.kind == kind and (not task or entry.task == task)]


def _keys(source: Source, rounds: list[RoundRow]) -> Facts:
    directory = source.authority.directory
    issuing, root = x509.load_pem_x509_certificates((directory / "ca.pem").read_bytes())
    newest = source.store.connection.execute("SELECT max(epoch) FROM signed_rosters").fetchone()[0]
    ended = [row for row in rounds if row.phase in ENDED]
    changes = _entries(source.store, "", "epoch-key")
    return {
        "authority": {**_certificate(root), "issuing_until": _certificate(issuing)["until"]},
        "services_until": {
            name: _certificate(x509.load_pem_x509_certificate(file.read_bytes()))["until"]
            for name in ("broker", "aggregator-1")
            if (file := directory / f"{name}.crt").exists()
        },
        "life_days": {"devices": DEVICE_DAYS, "services": SERVICE_DAYS},
        "aggregator_key": source.authority.sign_key.public_key().public_bytes_raw().hex(),
        "roster_key": source.authority.roster_key.public_key().public_bytes_raw().hex(),
        "releases": source.repository.roles(),
        "round_keys": {
            "ended": len(ended),
            "deleted": sum(row.secret is None for row in ended),
            "open": sum(row.secret is not None for row in rounds),
        },
        "epoch_keys": {
            "roster_epoch": newest,
            "changes_logged": len(changes),
            "last_change": max((entry.at for entry in changes), default=None),
        },
    }


def _certificate(one: x509.Certificate) -> Facts:
    return {"sha256": one.fingerprint(hashes.SHA256()).hex(), "until": int(one.not_valid_after_utc.timestamp())}


def _protections(spec: tasks.TaskSpec, rounds: list[RoundRow]) -> Facts:
    facts: Facts = {
        "unit": spec.unit,
        "placement": spec.placement,
        "groups": spec.groups,
        "robust": spec.robust,
        "trim": spec.trim if spec.robust == "trimmed_mean" else None,
        "group_gate": spec.group_gate,
        "min_improvement": spec.min_improvement,
        "stewards_only": spec.stewards,
        "secure_aggregation": spec.profile,
        "honest_share": spec.honest_share,
    }
    if rounds:
        offer = model_card.newest_offer(rounds)
        facts["placement"] = offer.privacy.placement
        facts["committee"] = len(offer.secagg.committee)
        facts["noise_multiplier"] = offer.privacy.noise_multiplier
    return facts


def _audit(source: Source) -> Facts:
    key = source.authority.sign_key.public_key().public_bytes_raw()
    checked = audit.check(source.store, source.home.path, key, source.fleet)
    alarms = _entries(source.store, "", "alarm")
    return {
        "ok": not checked.findings,
        "entries": checked.size,
        "signed": checked.signed,
        "head": checked.head.hex(),
        "findings": [finding.said for finding in checked.findings],
        "witnesses": len({proof.source for proof in audit_log.witnessed(source.store.connection)}),
        "alarms": [{"at": entry.at, "reason": str(entry.data.get("reason", ""))} for entry in alarms],
    }


def _tests(source: Source, task: TaskRow, tests: Path | None) -> Facts:
    """What was tried just now on the running version, and what its test suite said."""
    checks: list[tuple[str, Callable[[], bool]]] = [
        ("secure-aggregation-known-answer", _known_answers),
        ("database-integrity", lambda: _intact(source.store)),
        ("ledger-adds-up", lambda: _adds_up(source.store, task.name)),
        ("releases-are-what-was-signed", lambda: _served(source, task.name)),
    ]
    return {
        "checks": [{"check": name, "passed": _passes(run)} for name, run in checks],
        "suite": None if tests is None else junit.read(tests),
    }


def _known_answers() -> bool:
    known_answer_test()
    return True


def _passes(run: Callable[[], bool]) -> bool:
    try:
        return run()
    except Exception:  # whatever goes wrong in a self-test is its failure
        return False


def _intact(store: Store) -> bool:
    return bool(store.connection.execute("PRAGMA quick_check").fetchone()[0] == "ok")


def _adds_up(store: Store, task: str) -> bool:
    """The ledger's figure is the sum over its rounds: those that moved the model, and those logged as refused."""
    ledger, refused = Ledger(store.connection), {entry.round for entry in _entries(store, task, "sum-refused")}
    by_round = ledger.by_round(task)
    used = {row.number for row in store.rounds(task) if row.phase in model_card.OPENED}
    last = by_round[-1][2] if by_round else 0.0
    same = sorted(number for number, _, _ in by_round) == sorted(used | refused)
    return same and at_most(last, ledger.epsilon(task)) and at_most(ledger.epsilon(task), last)


def _served(source: Source, task: str) -> bool:
    """Every model that devices are offered has the hash that was signed and that the store recorded."""
    rows = source.store.connection.execute("SELECT version, sha256 FROM releases WHERE task = ?", (task,))
    recorded = dict(rows.fetchall())
    return all(source.repository.holds(release) for release in source.repository.releases(task)) and all(
        recorded.get(release.version) == release.sha256 for release in source.repository.releases(task)
    )
