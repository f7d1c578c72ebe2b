"""`edge-sdk audit verify | show | head`: this device's journal, and what it saw of the aggregator's log.

`verify` exits with 1 and names the first bad entry. `head` writes the aggregator's signed heads that this device was
shown, for `aggregator audit verify --witness`. All of it only reads. `verify` refuses a device without an identity.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

from edge_sdk import journal
from edge_sdk.config import IDENTITY, Config, load
from edge_sdk.device_db import DeviceDbError
from edge_sdk.identity.enrolment import load_identity
from edge_sdk.protocol import hashlog

BROKEN: Final = 1
MOST_TOLD: Final = 20
Add = Callable[..., argparse.ArgumentParser]


def add_commands(commands: Any, add: Add) -> None:
    """The three actions, each made with `add(actions, name, command, summary)`."""
    parser = commands.add_parser("audit", help="verify or show the journal, or export the aggregator's heads")
    actions = parser.add_subparsers(required=True, metavar="action")
    verify = add(actions, "verify", _verify, "find an entry that was changed, removed or moved, or a journal cut short")
    verify.add_argument("--json", action="store_true")
    show = add(actions, "show", _show, "the newest entries, a line each")
    show.add_argument("--last", type=int, default=50, help="how many (default: 50)")
    show.add_argument("--json", action="store_true")
    add(actions, "head", _head, "the aggregator's signed heads that this device was shown, as JSON")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


@contextlib.contextmanager
def _opened(chosen: argparse.Namespace) -> Iterator[tuple[Config, sqlite3.Connection]]:
    config = load(home=chosen.home)
    path = config.home / "device.db"
    if not path.exists():
        raise DeviceDbError(f"{path} is not there; start this device once with `edge-sdk run`")
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10.0)
    try:
        yield config, connection
    finally:
        connection.close()


def _verify(chosen: argparse.Namespace) -> int:
    with _opened(chosen) as (config, connection):
        who = load_identity(config.home / IDENTITY)
        about = {"fleet": who.bundle.fleet, "device": who.device}
        checked = journal.check(connection, config.home, key=who.keys.sign_public, **about)
        conflicts = sum(conflict for _, conflict in journal.seen_heads(connection))
    if chosen.json:
        said = {"ok": not checked.findings, "entries": checked.size, "signed": checked.signed}
        findings = [finding._asdict() for finding in checked.findings]
        _say(json.dumps({**said, "head": checked.head.hex(), "findings": findings, "aggregator_conflicts": conflicts}))
    else:
        _tell(checked, conflicts)
    return BROKEN if checked.findings else 0


def _tell(checked: hashlog.Checked, conflicts: int) -> None:
    if not checked.findings:
        _say(f"{checked.size} entries hold together; {checked.signed} of them are under a signed head")
    for finding in checked.findings[:MOST_TOLD]:
        sys.stderr.write(f"edge-sdk: error: journal: {finding.said}\n")
    if checked.findings:
        sys.stderr.write(
            "edge-sdk: hint: keep this directory as it is; was device.db replaced on purpose, move journal.head away\n"
        )
    if conflicts:
        _say(f"the aggregator showed {conflicts} heads of its log that contradict others: see `edge-sdk audit head`")


def _show(chosen: argparse.Namespace) -> int:
    with _opened(chosen) as (_, connection):
        rows = journal.rows(connection)
    for row in rows[-max(1, chosen.last) :]:
        _say(json.dumps(hashlog.told(row)) if chosen.json else hashlog.line(row))
    return 0


def _head(chosen: argparse.Namespace) -> int:
    with _opened(chosen) as (_, connection):
        device, heads = journal.named_device(connection), journal.seen_heads(connection)
    sys.stdout.write(journal.heads_json((head, device) for head, _ in heads))
    return 0
