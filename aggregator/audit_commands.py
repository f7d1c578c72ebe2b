"""`aggregator audit verify | show | export`: the audit log from the command line.

`verify` exits with 1 and names the first bad entry where the log is not what was signed. Refuses a file of witnessed
heads that it cannot read.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from aggregator import audit, status
from aggregator.config import Config, home_directory, load
from aggregator.fleet.authority import open_authority
from aggregator.home import Home
from aggregator.recording import recorded, unsigned_line
from aggregator.store import audit_log
from aggregator.store.store import Store
from edge_sdk.protocol import codec, hashlog

BROKEN: Final = 1
MOST_TOLD: Final = 20
Add = Callable[..., argparse.ArgumentParser]


def add_commands(commands: Any, add: Add, parser_class: type[argparse.ArgumentParser]) -> None:
    """The three actions, each made with `add(actions, name, command, text)`."""
    parser = commands.add_parser("audit", help="verify, show or export the audit log")
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=parser_class)
    verify = add(actions, "verify", _verify, "find an entry that was changed, removed or moved, or a log cut short")
    verify.add_argument(
        "--witness", action="append", default=[], metavar="FILE", help="heads of a device: edge-sdk audit head > FILE"
    )
    verify.add_argument("--json", action="store_true")
    show = add(actions, "show", _show, "the newest entries, a line each")
    show.add_argument("--last", type=int, default=50, help="how many (default: 50)")
    show.add_argument("--task", help="only of this task")
    show.add_argument("--kind", help="only of this kind, such as release")
    show.add_argument("--json", action="store_true")
    add(actions, "export", _export, "all of it as JSON lines, with the key that signs it")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _opened(chosen: argparse.Namespace) -> tuple[Path, Config]:
    home = home_directory(chosen.home)
    return home, load(home)


def _key(home: Path) -> bytes:
    return open_authority(Home(home).authority, now=time.time()).sign_key.public_key().public_bytes_raw()


def _verify(chosen: argparse.Namespace) -> int:
    home, config = _opened(chosen)
    witnesses = [proof for file in chosen.witness for proof in audit.read_heads(Path(file))]
    with status.opened(home, config) as (store, _):
        checked = audit.check(store, home, _key(home), config.fleet, witnesses)
        proofs = len(witnesses) + len(audit_log.witnessed(store.connection))
        unsigned, since = audit_log.unsigned(store.connection, checked.signed)
    if chosen.json:
        _say(json.dumps({**as_json(checked), "unsigned": unsigned, "unsigned_since": since}))
        return BROKEN if checked.findings else 0
    if not checked.findings:
        _say(f"{checked.size} entries hold together; {checked.signed} of them are under a signed head")
        if unsigned:
            _say(unsigned_line(unsigned, since))
        _say(f"heads that devices witnessed and that fit: {proofs}")
        return 0
    for finding in checked.findings[:MOST_TOLD]:
        sys.stderr.write(f"aggregator: error: audit log: {finding.said}\n")
    sys.stderr.write(f"aggregator: hint: {remedy(checked)}\n")
    return BROKEN


def remedy(checked: hashlog.Checked) -> str:
    """What the operator does next."""
    first = min(finding.entry for finding in checked.findings)
    return f"the first entry in doubt is {first}; keep this home as it is, and compare it with a copy from before"


def as_json(checked: hashlog.Checked) -> dict[str, Any]:
    """The verdict for scripts."""
    return {
        "ok": not checked.findings,
        "entries": checked.size,
        "signed": checked.signed,
        "head": checked.head.hex(),
        "findings": [finding._asdict() for finding in checked.findings],
    }


def _show(chosen: argparse.Namespace) -> int:
    home, config = _opened(chosen)
    with status.opened(home, config) as (store, _):
        since = 0 if chosen.task or chosen.kind else max(0, audit_log.last(store.connection)[0] - chosen.last)
        rows = [(hashlog.read(row.entry), row) for row in audit_log.rows(store.connection, since)]
    wanted = [
        row
        for entry, row in rows
        if chosen.task in (None, entry.task) and chosen.kind in (None, entry.kind)
    ]  # fmt: skip
    for row in wanted[-max(1, chosen.last) :]:
        _say(json.dumps(hashlog.told(row)) if chosen.json else hashlog.line(row))
    return 0


def _export(chosen: argparse.Namespace) -> int:
    home, config = _opened(chosen)
    with recorded(home, config) as (store, _):
        lines = export(store, _key(home), config.fleet, now=time.time())
    sys.stdout.writelines(f"{json.dumps(line)}\n" for line in lines)
    return 0


def export(store: Store, key: bytes, fleet: str, *, now: float) -> list[dict[str, Any]]:
    """Who signs, every entry as its bytes, every signed head: enough to verify it anywhere. Is itself recorded."""
    with store.transaction():
        audit_log.append(store.connection, now, "exported", entries=audit_log.last(store.connection)[0])
        rows, proofs = list(audit_log.rows(store.connection)), audit_log.heads(store.connection)
    lines: list[dict[str, Any]] = [{"fleet": fleet, "who": codec.AGGREGATOR, "key": key.hex()}]
    lines += [{**hashlog.told(row), "entry": base64.b64encode(row.entry).decode()} for row in rows]
    for proof in proofs:
        head = proof.head
        signature = base64.b64encode(head.signature).decode()
        lines.append({"size": head.size, "head": head.head.hex(), "time": head.time, "signature": signature})
    return lines
