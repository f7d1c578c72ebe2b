"""What a command of the operator appends to the audit log is signed when it ends, whether the service runs or not.

Refuses nothing: where the signing key cannot be read, what was done stays done, and it says what is not signed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from aggregator import status
from aggregator.audit import Audit
from aggregator.config import Config
from aggregator.errors import AggregatorError
from aggregator.fleet.authority import open_authority
from aggregator.fleet.registry import Registry
from aggregator.home import Home
from aggregator.store import audit_log
from aggregator.store.store import Store


@contextmanager
def recorded(home: Path, config: Config, clock: Callable[[], float] = time.time) -> Iterator[tuple[Store, Registry]]:
    """`status.opened` for a command that writes."""
    with status.opened(home, config) as (store, registry):
        before = audit_log.last(store.connection)[0]
        yield store, registry
        if audit_log.last(store.connection)[0] > before:
            _sign(store, home, config, clock())


def _sign(store: Store, home: Path, config: Config, now: float) -> None:
    try:
        key = open_authority(Home(home).authority, now=now).sign_key
        Audit(store, key, config.fleet, home).after_command(now)
    except (AggregatorError, OSError) as error:
        newest = audit_log.newest_head(store.connection)
        said = unsigned_line(*audit_log.unsigned(store.connection, newest.size if newest else 0))
        sys.stderr.write(f"aggregator: warning: {said}: {error}\n")


def unsigned_line(count: int, since: int) -> str:
    """What the operator is told of entries after the newest signed head; `since`: Unix time of the first."""
    moment = datetime.fromtimestamp(since, UTC).isoformat()
    return (
        f"{count} entries of the audit log, the first of {moment}, are under no signed head and can be changed unseen"
    )
