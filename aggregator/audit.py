"""Signs the audit log's head, shows it to devices, and notices when a head that was signed is gone. Reads no clock.

The newest signed head is kept beside the database too (`audit.head`), and every device that connects is a witness.
Refuses to write a new head over one that the log does not hold: that file is the proof that entries were lost.
"""

from __future__ import annotations

import base64
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator.errors import AggregatorError
from aggregator.releases.durable import exclusive, write_durably
from aggregator.spool import disk_full_is_said
from aggregator.store import audit_log
from aggregator.store.store import Store
from edge_sdk.protocol import codec, hashlog
from edge_sdk.protocol.errors import WrongSignature
from edge_sdk.protocol.hashlog import Checked, Evidence
from edge_sdk.protocol.messages import Count, LogHead, Second

log = logging.getLogger(__name__)
HEAD_FILE: Final = "audit.head"
ALARMS: Final = "audit-alarms"
ENTRIES: Final = 64  # at most so many entries without a signed head while the service runs
PERIOD_S: Final = 60.0  # and none for longer
DAY_S: Final = 86_400
COUNTED: Final = "audit-refusals"
COUNT_S: Final = 3600.0  # refused messages are recorded in bulk
MOST_REASONS: Final = 40


class HeadsRefused(AggregatorError):
    """A file of signed heads cannot be read."""


class Audit:
    """The log's signed heads while the service runs."""

    def __init__(self, store: Store, key: Ed25519PrivateKey, fleet: str, home: Path) -> None:
        """`key` is the aggregator's signing key: every device has its public half in its bundle."""
        self._store, self._key, self._fleet, self._file = store, key, fleet, home / HEAD_FILE
        self._public = key.public_key().public_bytes_raw()
        self._witnessed: dict[str, LogHead] = {}
        self._file_is_proof = False
        self._counted_at = 0.0
        self.newest = audit_log.newest_head(store.connection)

    def begin(self, now: float, **facts: hashlog.Value) -> None:
        """The service starts: hold the log against the head that was kept, then sign where it stands."""
        with self._store.transaction():
            audit_log.append(self._store.connection, now, "service-started", **facts)
        self._look(now)
        self.sign(now)

    def after_command(self, now: float) -> None:
        """A command wrote in a process of its own: what it appended is under a signed head when it ends."""
        if audit_log.last(self._store.connection)[0] > (self.newest.size if self.newest else 0):
            self._look(now)
            self.sign(now)

    def _look(self, now: float) -> None:
        """Alarm where the log does not go through its newest checkpoint or the head in the file, which stays then."""
        for proof in [*([Evidence(self.newest, "its newest checkpoint")] if self.newest else []), *self._kept()]:
            if self._is_signed(proof.head) and not self._holds(proof.head):
                self._file_is_proof = self._file_is_proof or proof.source == HEAD_FILE
                self._alarm(now, proof)

    def _kept(self) -> list[Evidence]:
        try:
            return read_heads(self._file) if self._file.exists() else []
        except HeadsRefused as error:
            log.error("%s", error)
            return []

    def end(self, now: float) -> None:
        """The service stops in order."""
        self._count_refusals(now)
        with self._store.transaction():
            audit_log.append(self._store.connection, now, "service-stopped")
        self.due(now, all_of_it=True)

    def due(self, now: float, *, all_of_it: bool = False) -> None:
        """Keep what devices witnessed; sign where there is enough that is not signed. Raises DiskFull."""
        if self._witnessed:
            with self._store.transaction():
                for device, head in self._witnessed.items():
                    audit_log.keep_witness(self._store.connection, device, head, lost=False)
            self._witnessed.clear()
        if not 0 <= now - self._counted_at < COUNT_S:
            self._count_refusals(now)
        size, signed = audit_log.last(self._store.connection)[0], self.newest
        if signed is not None and size < signed.size:
            self._alarm(now, Evidence(signed, "the newest checkpoint"))
        behind = 0 if signed is None else size - signed.size
        late = signed is None or not 0 <= now - signed.time < PERIOD_S
        if behind >= ENTRIES or (behind and (late or all_of_it)) or signed is None:
            self.sign(now)

    def _count_refusals(self, now: float) -> None:
        """How many messages were refused since the last such entry, and why; devices choose some of the words."""
        self._counted_at = now
        before = self._store.value(COUNTED) or {}
        totals = {f"{kind}/{reason}": count for (kind, reason), count in self._store.refusals().items()}
        news = Counter({what: count - before.get(what, 0) for what, count in totals.items()})
        if any(news.values()):
            with self._store.transaction():
                said = {what[:64]: count for what, count in news.most_common(MOST_REASONS) if count > 0}
                audit_log.append(self._store.connection, now, "refused", **said)
                self._store.set_value(COUNTED, totals)

    def sign(self, now: float) -> None:
        """Sign the newest head, keep it in the table, then beside the database.

        Dated never before the one before it, which devices take for another log, unless that was dated a day ahead.
        """
        with self._store.transaction():
            end, before = audit_log.last(self._store.connection), audit_log.newest_head(self._store.connection)
            at = before.time if before and 0 < before.time - int(now) < DAY_S else int(now)
            head = hashlog.sign_head(end, self._key, fleet=self._fleet, who=codec.AGGREGATOR, time=at)
            audit_log.keep_head(self._store.connection, head)
        self.newest = head
        if not self._file_is_proof:
            with exclusive(self._file.with_suffix(".lock")), disk_full_is_said():  # a command may write it too
                write_durably(self._file, write_heads([head]), mode=0o600)

    # -- witnesses

    def witness(self, device: str, head: LogHead, now: float) -> str:
        """A device sends back the newest head that it was shown: "" where the log holds it, else a word that counts.

        A head that this aggregator did not sign proves nothing, and one it signed but lost is an alarm.
        """
        if head != self.newest:
            if not self._is_signed(head):
                return "witness-signature"
            if not self._holds(head):
                self._lost(device, head, now)
                return "log-lost"
        self._witnessed[device] = head
        return ""

    def _lost(self, device: str, head: LogHead, now: float) -> None:
        with self._store.transaction():
            news = audit_log.keep_witness(self._store.connection, device, head, lost=True)
        if news:
            self._alarm(now, Evidence(head, f"witnessed by {device}"))

    def _alarm(self, now: float, proof: Evidence) -> None:
        """Once for each head: say it in the log itself, among the events, in the status and in aggregator.log."""
        facts: dict[str, Any] = {"size": proof.head.size, "head": proof.head.head.hex(), "source": proof.source}
        if any(alarm["head"] == facts["head"] for alarm in self._store.value(ALARMS) or []):
            return
        log.error("the audit log lost entries: it lacks the head of %d signed ones (%s)", proof.head.size, proof.source)
        with self._store.transaction():
            audit_log.append(self._store.connection, now, "alarm", reason="log-lost", **facts)
            self._store.log(now, "alarm", "", 0, reason="log-lost", **facts)
            self._store.set_value(ALARMS, [*(self._store.value(ALARMS) or []), {"at": now, **facts}][-16:])

    def _holds(self, head: LogHead) -> bool:
        return audit_log.contains(self._store.connection, head)

    def _is_signed(self, head: LogHead) -> bool:
        try:
            hashlog.verify_head(head, self._public, fleet=self._fleet, who=codec.AGGREGATOR)
        except WrongSignature:
            return False
        return True


def check(store: Store, home: Path, key: bytes, fleet: str, witnesses: Iterable[Evidence] = ()) -> Checked:
    """Hold the whole log against itself, its checkpoints, `audit.head`, the devices' heads and those given."""
    file, connection = home / HEAD_FILE, store.connection
    kept = read_heads(file) if file.exists() else []  # first: what a head in the file covers is in the tables by then
    connection.execute("BEGIN")  # one state of the tables, whoever else writes
    try:
        proofs = [*audit_log.heads(connection), *kept, *audit_log.witnessed(connection), *witnesses]
        rows = audit_log.rows(connection)
        return hashlog.check(rows, proofs, key=key, fleet=fleet, who=codec.AGGREGATOR)
    finally:
        connection.execute("ROLLBACK")


class _Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: Count
    head: str
    time: Second
    signature: str
    source: str = ""


def write_heads(heads: Iterable[LogHead]) -> bytes:
    """Signed heads as JSON, as `edge-sdk audit head` writes them too."""
    said = [_Said(head.size, head.head.hex(), head.time, base64.b64encode(head.signature).decode()) for head in heads]
    return msgspec.json.encode({"heads": said}) + b"\n"


def read_heads(path: Path) -> list[Evidence]:
    """Read a file of signed heads: `audit.head`, or what a device exported. Raises HeadsRefused."""
    try:
        said = msgspec.json.decode(path.read_bytes(), type=dict[str, list[_Said]])["heads"]
        return [
            Evidence(
                LogHead(one.size, bytes.fromhex(one.head), one.time, base64.b64decode(one.signature, validate=True)),
                path.name if not one.source else f"{path.name}: {one.source}",
            )
            for one in said
        ]
    except OSError as error:
        raise HeadsRefused(f"cannot read {path}: {error.strerror}", "name the file of a device's heads") from error
    except (msgspec.MsgspecError, ValueError, KeyError) as error:
        hint = "make it on a device with `edge-sdk audit head --home DIR > FILE`"
        raise HeadsRefused(f"{path} holds no signed heads: {error}", hint) from error
