"""`aggregator renew`: sign root and targets for another life. Refuses fewer than two root keys."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aggregator import setup
from aggregator.home import Home
from aggregator.releases.errors import ReleaseError
from aggregator.releases.keys import open_root_keys, open_targets_key
from aggregator.releases.repository import Repository

DAY_S: Final = 86_400.0
SOON_DAYS: Final = 30


def renew(home: Path, offline: Path, passphrase_file: str | None, *, now: float) -> dict[str, int]:
    """Sign both roles; days left of each. `offline`: folder of the offline keys. Raises ConfigError, ReleaseError."""
    passphrase = setup.read_passphrase(offline, passphrase_file)
    targets_key = open_targets_key(offline, passphrase)
    Repository(Home(home).releases).renew(open_root_keys(offline, passphrase), targets_key, now)
    return days_left(home, now)


def days_left(home: Path, now: float) -> dict[str, int]:
    """Whole days until "root" and "targets" run out, negative after; empty without a repository."""
    try:
        expiry = Repository(Home(home).releases).offline_expiry()
    except ReleaseError:
        return {}
    return {role: int((at - now) // DAY_S) for role, at in expiry.items()}


def reminder(days: dict[str, int]) -> str:
    """One line for the operator where a role runs out soon, else ""."""
    soon = [
        f"{role} {'ran out' if left < 0 else f'has {left} days left'}"
        for role, left in days.items()
        if left < SOON_DAYS
    ]
    return f"release metadata: {', '.join(soon)}; run `aggregator renew` with the offline keys" if soon else ""
