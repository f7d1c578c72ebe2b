"""`aggregator evidence --task T | --all`, and `aggregator evidence verify DIR`.

An export is an entry of the audit log, written before the bundle is, so that the bundle's own head covers it. `verify`
needs no home: with one, or with --key, it insists on that key. Refuses an export without a task.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from aggregator import config as settings
from aggregator import status
from aggregator.config import Config, ConfigError
from aggregator.errors import AggregatorError
from aggregator.evidence import bundle
from aggregator.evidence.collect import Source, collect
from aggregator.evidence.phrases import LANGUAGES, Language
from aggregator.fleet.authority import open_authority
from aggregator.home import Home
from aggregator.recording import recorded
from aggregator.releases.repository import Repository
from aggregator.store import audit_log

BROKEN: Final = 1
Add = Callable[..., argparse.ArgumentParser]


def add_evidence(commands: Any, add: Add) -> None:
    """The command, made with `add(commands, name, command, text)`."""
    parser = add(commands, "evidence", _evidence, "a signed bundle for a GDPR or PIPL assessment, or verify one")
    parser.add_argument("action", nargs="?", choices=("export", "verify"), default="export")
    parser.add_argument("directory", nargs="?", metavar="DIR", help="verify: the bundle's folder")
    parser.add_argument("--task", help="export: this task")
    parser.add_argument("--all", action="store_true", help="export: every task, a folder each")
    parser.add_argument("--out", metavar="DIR", help="export: where to (default: evidence-TASK-DATE)")
    parser.add_argument("--language", choices=("en", "zh", "both"), default="both", help="pages (default: both)")
    parser.add_argument("--tests", metavar="FILE", help="export: JUnit file of this version's tests")
    parser.add_argument(
        "--key", metavar="HEX", help="verify: the aggregator's key; else that of the home, if there is one"
    )


def _evidence(chosen: argparse.Namespace) -> int:
    return _verify(chosen) if chosen.action == "verify" else _export(chosen)


def _export(chosen: argparse.Namespace) -> int:
    if bool(chosen.task) == bool(chosen.all):
        raise ConfigError("which task?", "aggregator evidence --task NAME, or --all")
    home, now = settings.home_directory(chosen.home), time.time()
    config = settings.load(home)
    languages = LANGUAGES if chosen.language == "both" else (chosen.language,)
    with status.opened(home, config) as (store, _):
        names = [row.name for row in store.tasks()] if chosen.all else [chosen.task]
    for name in names:
        given = Path(chosen.out) if chosen.out else None
        out = _folder(name, now) if given is None else given / name if chosen.all else given
        tests = Path(chosen.tests) if chosen.tests else None
        manifest = export(home, config, name, out, languages=languages, tests=tests, now=now)
        sys.stdout.write(f"{out}: {', '.join(manifest.files)}; signed\n")
    return 0


def _folder(task: str, now: float) -> Path:
    return Path(f"evidence-{task}-{time.strftime('%Y%m%d', time.gmtime(now))}")


def export(
    home: Path,
    config: Config,
    task: str,
    out: Path,
    *,
    languages: tuple[Language, ...] = LANGUAGES,
    tests: Path | None = None,
    now: float,
) -> bundle.Manifest:
    """Collect, write and sign the bundle of one task. Raises HomeRefused, ConfigError, AuthorityRefused, OSError."""
    place = Home(home)
    authority, repository = open_authority(place.authority, now=now), Repository(place.releases)
    with recorded(home, config) as (store, registry):
        source = Source(place, config.fleet, store, registry, authority, repository)
        collect(source, task, now=now, tests=tests)  # what cannot be collected is not recorded as exported
        with store.transaction():
            audit_log.append(store.connection, now, "evidence", task, languages=[*languages])
        facts = collect(source, task, now=now, tests=tests)
    latest = repository.latest(task)
    card = repository.card(latest) if latest is not None else None
    return bundle.write(out, bundle.files(facts, card, languages), authority.sign_key, facts)


def _verify(chosen: argparse.Namespace) -> int:
    if not chosen.directory:
        raise ConfigError("which bundle?", "aggregator evidence verify DIR")
    key = _key(chosen)
    try:
        manifest, signed_by = bundle.verify(Path(chosen.directory), key)
    except bundle.BundleRefused as error:
        sys.stderr.write(f"aggregator: error: {error}\naggregator: hint: {error.hint}\n")
        return BROKEN
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(manifest.made_at))
    sys.stdout.write(
        f"{len(manifest.files)} files of task {manifest.task}, fleet {manifest.fleet}, {when} UTC: whole\n"
    )
    told = "which is this fleet's" if key is not None else "compare it with the fleet's: nothing here vouches for it"
    sys.stdout.write(f"signed by {signed_by}, {told}\n")
    return 0


def _key(chosen: argparse.Namespace) -> bytes | None:
    """The key that must have signed: the one given, else the home's; None where there is neither."""
    if chosen.key:
        try:
            return _of_length(bytes.fromhex(chosen.key))
        except ValueError as error:
            raise ConfigError("--key is not a key", "give its 32 bytes as 64 hex digits") from error
    if not (chosen.home or os.environ.get(settings.HOME_VARIABLE)):
        return None
    home = settings.home_directory(chosen.home)
    try:
        return open_authority(Home(home).authority, now=time.time()).sign_key.public_key().public_bytes_raw()
    except AggregatorError as error:
        raise ConfigError(f"{home} holds no key to compare with: {error}", "give it with --key") from error


def _of_length(key: bytes) -> bytes:
    if len(key) != 32:
        raise ValueError("32 bytes")
    return key
