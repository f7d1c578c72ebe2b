"""`aggregator init`: one command makes every key and directory of a new fleet. Refuses a home that exists already.

offline/     the root CA's key and the release keys (root-1 to root-3, targets), encrypted: to be moved elsewhere
authority/   issuing CA, roster key, the aggregator's signing key and certificates
releases/    the TUF repository and its online keys
broker/      configuration of the embedded broker
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aggregator import config as settings
from aggregator.config import Config, ConfigError
from aggregator.errors import HomeRefused
from aggregator.fleet.authority import create_authority
from aggregator.fleet.files import private_directory, write_private
from aggregator.home import Home
from aggregator.releases.repository import Repository
from aggregator.store.schema import open_database

OFFLINE: Final = "offline"
PASSPHRASE: Final = "passphrase"  # noqa: S105 - a file's name
ROOT_KEY: Final = "root-ca.key"


def offline_directory(home: Path) -> Path:
    """Where `init` leaves the offline keys, until somebody moves them."""
    return home / OFFLINE


def init_home(
    home: Path, config: Config, *, passphrase: bytes | None, now: float, entropy: Callable[[int], bytes]
) -> bool:
    """Make everything. Without a passphrase one is drawn and kept beside the keys; returns whether that was done.

    `aggregator.toml` is written last: its presence says that the rest is whole. Raises HomeRefused.
    """
    if (home / settings.FILE).exists():
        raise HomeRefused(f"{home} holds an aggregator already", "choose another directory, or `aggregator serve` it")
    if home.exists() and any(home.iterdir()):
        raise HomeRefused(f"{home} is not empty", "choose an empty directory, or remove what an interrupted init left")
    place = Home(home)
    place.prepare()
    offline = private_directory(offline_directory(home))
    generated = passphrase is None
    secret = passphrase or base64.urlsafe_b64encode(entropy(24))
    if generated:
        write_private(offline / PASSPHRASE, secret + b"\n")
    create_authority(place.authority, secret, fleet=config.fleet, now=now, hosts=[config.host])
    _move_root_key(place.authority, offline)
    Repository.create(place.releases, offline, secret, now)
    private_directory(home / "broker")
    open_database(place.database).close()
    settings.save(home, config)
    return generated


def _move_root_key(authority: Path, offline: Path) -> None:
    """Every offline key in one folder, so that one move takes them all off this machine."""
    (authority / "offline" / "root.key").replace(offline / ROOT_KEY)
    (authority / "offline").rmdir()


def read_passphrase(offline: Path, given: str | None) -> bytes:
    """The passphrase of the offline keys: from the file given, else from the one that `init` drew.

    Raises ConfigError where neither is there.
    """
    path = Path(given) if given else offline / PASSPHRASE
    try:
        passphrase = path.read_bytes().strip()
    except OSError as error:
        hint = "mount the medium with the offline keys and name it with --offline, or give --passphrase-file"
        raise ConfigError(f"cannot read the passphrase: {error}", hint) from error
    if not passphrase:
        raise ConfigError(f"{path} is empty", "put a passphrase of at least 8 characters into it")
    return passphrase
