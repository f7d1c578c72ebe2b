"""The device's journal: what it did with what it learnt, chained and signed, and what it saw of the aggregator's log.

Holds no subject's name, no field and no label. Bounded: older entries go, up to a signed head that is kept. Reads no
clock. Refuses nothing; where the disk takes no entry, what it records is undone with it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from edge_sdk.device_db import transaction
from edge_sdk.protocol import codec, hashlog
from edge_sdk.protocol.errors import MalformedMessage, WrongSignature
from edge_sdk.protocol.hashlog import Checked, Evidence, Finding, Row, Value
from edge_sdk.protocol.messages import LogHead

HEAD_FILE: Final = "journal.head"
SIGN_ENTRIES: Final = 64
SIGN_S: Final = 60
MOST_ENTRIES: Final = 20_000
LEFT_ENTRIES: Final = 10_000
HOUR_S: Final = 3600
DAY_S: Final = 86_400
MOST_SEEN: Final = 4000  # of the aggregator's heads, two an hour, then evenly over all the time, the oldest for ever
MOST_CONFLICTS: Final = 64  # the first ones

log = logging.getLogger("edge_sdk")


class Journal:
    """Appends entries through one connection. For one thread; several processes and threads may have their own."""

    def __init__(self, connection: sqlite3.Connection, now: Callable[[], float]) -> None:
        """`now()`: the verified time, seconds since 1970."""
        self._db, self._now = connection, now

    def note(self, kind: str, task: str = "", number: int = 0, /, **data: Value) -> None:
        """Append an entry: in the transaction that is open, so that both are there or neither, else in its own.

        Raises DiskFull, sqlite3.Error.
        """
        if self._db.in_transaction:
            self._append(kind, task, number, data)
            return
        with transaction(self._db):
            self._append(kind, task, number, data)

    def _append(self, kind: str, task: str, number: int, data: dict[str, Value]) -> None:
        row = hashlog.following(last(self._db), at=self._now(), kind=kind, task=task, number=number, data=data)
        self._db.execute("INSERT INTO journal VALUES (?, ?, ?)", row)


def last(connection: sqlite3.Connection) -> tuple[int, bytes]:
    """Number and head of the newest entry."""
    row = connection.execute("SELECT n, head FROM journal ORDER BY n DESC LIMIT 1").fetchone()
    return (int(row[0]), bytes(row[1])) if row else (0, hashlog.START)


class JournalSigner:
    """Signs the journal's head as it grows, keeps it in the table and beside it, and lets old entries go."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        journal: Journal,
        home: Path,
        *,
        fleet: str,
        device: str,
        key: bytes,
        sign: Callable[[bytes], bytes],
    ) -> None:
        """`key`: the 32-byte public half of what `sign` signs with."""
        self._db, self._journal, self._file = connection, journal, home / HEAD_FILE
        self._fleet, self._device, self._key, self._sign = fleet, device, key, sign
        row = connection.execute("SELECT size, time, key FROM journal_heads ORDER BY size DESC LIMIT 1").fetchone()
        known = row is not None and row[2] == key
        self._signed: int = row[0] if known else 0
        self._signed_at: int = row[1] if known else 0
        self._file_is_proof = False
        self._keys = _keys_beside(self._file)

    def begin(self, now: int) -> None:
        """The device starts. A key that is new here is named in the journal and signs at once."""
        self._keys = [*dict.fromkeys([*(self._keys or self._keys_of_before()), self._key])]
        if not self._signed:
            who: dict[str, Value] = {"key": self._key.hex(), "device": self._device, "fleet": self._fleet}
            self._journal.note(hashlog.IDENTITY, **who)
        self._file_is_proof = not self._holds_beside()
        if self._file_is_proof:
            log.error("the journal lost entries: it does not hold the signed head in %s", self._file)
            self._journal.note("alarm", reason="journal-lost")
        self.turn(now, all_of_it=not self._signed)

    def _keys_of_before(self) -> list[bytes]:
        """Of a file that an older version left: the key of the table that signed what lies in it."""
        found = self._db.execute("SELECT DISTINCT key FROM journal_heads")
        keys = [bytes(key) for (key,) in found]
        return [
            key for key in keys if any(self._signed_by(key, proof.head) for proof in _beside_or_nothing(self._file))
        ]

    def _signed_by(self, key: bytes, head: LogHead) -> bool:
        try:
            hashlog.verify_head(head, key, fleet=self._fleet, who=self._device)
        except WrongSignature:
            return False
        return True

    def _holds_beside(self) -> bool:
        """Does the journal go through the head that lies beside the database?

        Entries are let go of only `LEFT_ENTRIES` below that head (`_prune`): nothing nearer to it may be missing.
        """
        (first,) = self._db.execute("SELECT coalesce(min(n), 1) FROM journal").fetchone()
        for head in (proof.head for proof in _beside_or_nothing(self._file)):
            row = self._db.execute("SELECT head FROM journal WHERE n = ?", (head.size,)).fetchone()
            if row is None or row[0] != head.head or 1 < first > head.size - LEFT_ENTRIES + 1:
                return False
        return True

    def turn(self, now: int, *, all_of_it: bool = False) -> None:
        """Sign where enough is not signed yet, or for long enough. Raises OSError, sqlite3.Error."""
        end = last(self._db)
        behind = end[0] - self._signed
        if behind <= 0 or not (all_of_it or behind >= SIGN_ENTRIES or not 0 <= now - self._signed_at < SIGN_S):
            return
        head = hashlog.sign_head(end, self._sign, fleet=self._fleet, who=self._device, time=now)
        values = (head.size, head.head, head.time, head.signature, self._key)
        with transaction(self._db):
            self._db.execute("INSERT OR REPLACE INTO journal_heads VALUES (?, ?, ?, ?, ?)", values)
        self._signed, self._signed_at = head.size, now
        if not self._file_is_proof:
            partial = self._file.with_suffix(".part")
            partial.write_text(heads_json([(head, "")], self._keys))
            partial.replace(self._file)
        with transaction(self._db):
            self._prune(head.size)

    def _prune(self, size: int) -> None:
        """After the newest head lies beside the database, which is how far above what goes `_holds_beside` expects."""
        (first,) = self._db.execute("SELECT coalesce(min(n), 1) FROM journal").fetchone()
        if size - first < MOST_ENTRIES:
            return
        found = "SELECT coalesce(max(size), 0) FROM journal_heads WHERE size <= ?"
        (upto,) = self._db.execute(found, (size - LEFT_ENTRIES,)).fetchone()
        self._db.execute("DELETE FROM journal WHERE n <= ?", (upto,))
        self._db.execute("DELETE FROM journal_heads WHERE size < ?", (upto,))


class Witness:
    """The heads of the aggregator's log that this device was shown: two an hour, each contradiction, bounded.

    What hour it is the device says, never the head: its signer could choose which one gives way to it.
    """

    def __init__(self, connection: sqlite3.Connection, key: bytes, fleet: str) -> None:
        """`key`: the aggregator's Ed25519 public key, from the trust bundle."""
        self._db, self._key, self._fleet = connection, key, fleet
        columns = "SELECT size, head, time, signature FROM seen_heads"
        row = connection.execute(f"{columns} WHERE conflict = 0 ORDER BY size DESC, rowid DESC LIMIT 1").fetchone()
        self.newest = LogHead(*row) if row else None

    def shown(self, head: LogHead, journal: Journal | None, *, now: int, stated: int) -> str:
        """Keep a head; "" or why it contradicts what was shown before, which goes into the journal once for each head.

        `now`: the device's verified time, seconds since 1970; `stated`: that of the State with the head. Raises
        WrongSignature where the aggregator did not sign it, DiskFull.
        """
        if head == self.newest:
            return ""
        hashlog.verify_head(head, self._key, fleet=self._fleet, who=codec.AGGREGATOR)
        why = hashlog.conflict(self.newest, head) if self.newest is not None else ""
        if not why and head.time > max(now, stated) + DAY_S:
            why = f"a head of {head.size} entries is dated {head.time - stated} s after the State that shows it"
        with transaction(self._db):
            new = self._keep(head, now, conflict=bool(why))
            if why and new and journal is not None:
                journal.note("alarm", reason="log-conflict", size=head.size, head=head.head.hex())
        if not why:
            self.newest = head
        return why

    def _keep(self, head: LogHead, now: int, *, conflict: bool) -> bool:
        (held,) = self._db.execute("SELECT count(*) FROM seen_heads WHERE conflict = ?", (conflict,)).fetchone()
        if conflict and held >= MOST_CONFLICTS:
            return False  # the first ones prove as much, and nobody fills the journal with more
        values = (head.size, head.head, head.time, head.signature, conflict, now)
        new = self._db.execute("INSERT OR IGNORE INTO seen_heads VALUES (?, ?, ?, ?, ?, ?)", values).rowcount > 0
        if not conflict:
            self._thin(now // HOUR_S, held + new > MOST_SEEN)
        return new

    def _thin(self, hour: int, too_many: bool) -> None:
        """Of this hour the first and the last stay; where there are too many, one goes that others lie close to."""
        kept = f"FROM seen_heads WHERE conflict = 0 AND seen_at / {HOUR_S} = ?"
        ends = "SELECT min(rowid) FROM hours UNION SELECT max(rowid) FROM hours"
        self._db.execute(
            f"WITH hours AS (SELECT rowid {kept})"
            f" DELETE FROM seen_heads WHERE rowid IN hours AND rowid NOT IN ({ends})",
            (hour,),
        )
        if too_many:
            self._db.execute(
                "DELETE FROM seen_heads WHERE rowid = (SELECT id FROM (SELECT rowid AS id, lead(seen_at) OVER shown"
                " - lag(seen_at) OVER shown AS gap FROM seen_heads WHERE conflict = 0 WINDOW shown AS (ORDER BY rowid))"
                " WHERE gap IS NOT NULL ORDER BY gap, id LIMIT 1)"
            )


def seen_heads(connection: sqlite3.Connection) -> list[tuple[LogHead, bool]]:
    """Every head of the aggregator's log that is kept, and whether it contradicted one shown before."""
    found = connection.execute("SELECT size, head, time, signature, conflict FROM seen_heads ORDER BY size, rowid")
    return [(LogHead(*row[:4]), bool(row[4])) for row in found]


def rows(connection: sqlite3.Connection) -> list[Row]:
    """Every entry that is kept, oldest first."""
    found = "SELECT n, CAST(entry AS BLOB), CAST(head AS BLOB) FROM journal ORDER BY n"  # whatever was made of them
    return [Row(*row) for row in connection.execute(found)]


def named_device(connection: sqlite3.Connection) -> str:
    """The device that the newest `identity` entry names, "" where there is none."""
    query = "SELECT CAST(entry AS BLOB) FROM journal WHERE instr(entry, CAST(? AS BLOB)) ORDER BY n DESC"
    for (entry,) in connection.execute(query, (hashlog.IDENTITY,)):
        with contextlib.suppress(MalformedMessage):  # somebody changed it: `check` says so
            read = hashlog.read(entry)
            if read.kind == hashlog.IDENTITY:
                return str(read.data.get("device", ""))
    return ""


def check(connection: sqlite3.Connection, home: Path, *, fleet: str, device: str, key: bytes) -> Checked:
    """Hold the journal against itself and its signed heads. `key`: this device's public signing key."""
    kept = rows(connection)
    signed = connection.execute("SELECT size, head, time, signature, key FROM journal_heads ORDER BY size").fetchall()
    evidence = [Evidence(LogHead(*row[:4]), "checkpoint") for row in signed]
    evidence += _beside(home / HEAD_FILE)
    start, first_key = (0, hashlog.START), key
    if signed and kept and kept[0].n == signed[0][0] + 1:  # older entries went, up to the head that is kept
        start, first_key = (signed[0][0], signed[0][1]), signed[0][4]
    about = {"key": first_key, "fleet": fleet, "who": device}
    checked = hashlog.check(kept, evidence, start=start, follow_identity=True, **about)  # type: ignore[arg-type] # by name
    wrong = [*_wrong_identity(kept, checked, first_key, key)]
    if start[0] and checked.size - start[0] < LEFT_ENTRIES and not checked.findings:
        said = f"entries up to {start[0]} are missing, though no more than {checked.size - start[0]} follow"
        wrong.append(Finding(start[0], "removed", said))
    if first_key != key and first_key not in _keys_beside(home / HEAD_FILE):
        said = (
            f"older entries went up to a head that is signed by a key which {HEAD_FILE} does not name as this device's"
        )
        wrong.append(Finding(start[0] + 1, "signature", said))
    return checked._replace(findings=(*checked.findings, *wrong))


def _wrong_identity(kept: Iterable[Row], checked: Checked, first_key: bytes, key: bytes) -> Iterator[Finding]:
    """The key that the journal names last must be this device's own, and must have signed since."""
    named, since = first_key, 0
    for row in kept:
        if hashlog.IDENTITY.encode() in row.entry and 0 < row.n <= checked.size:
            entry = hashlog.read(row.entry)
            if entry.kind == hashlog.IDENTITY:
                named, since = hashlog.identity_key(entry) or b"", row.n
    if named != key:
        yield Finding(since or 1, "signature", "the journal was signed by another key than this device's")
    elif checked.signed < since and not checked.findings:
        yield Finding(since, "signature", f"the key that entry {since} names signed nothing after it")


def _beside(path: Path) -> list[Evidence]:
    """The head beside the database. Raises ValueError where the file is not one of ours."""
    if not path.exists():
        return []
    said = json.loads(path.read_text())["heads"]
    return [
        Evidence(
            LogHead(int(one["size"]), bytes.fromhex(one["head"]), int(one["time"]), base64.b64decode(one["signature"])),
            path.name,
        )
        for one in said
    ]


def _beside_or_nothing(path: Path) -> list[Evidence]:
    try:
        return _beside(path)
    except (OSError, ValueError, KeyError, TypeError):
        return []  # no head of ours, so no proof of anything


def _keys_beside(path: Path) -> list[bytes]:
    """Every key that this device ever signed its journal with, as the file beside the database says."""
    try:
        return [bytes.fromhex(key) for key in json.loads(path.read_text()).get("keys", [])]
    except (OSError, ValueError, AttributeError, TypeError):
        return []


def heads_json(heads: Iterable[tuple[LogHead, str]], keys: Iterable[bytes] = ()) -> str:
    """Signed heads, each with where it is from, as `aggregator audit verify --witness` reads them.

    `keys`: for the file beside a journal, those that its device signed it with.
    """
    said: list[dict[str, Any]] = [
        {
            "size": head.size,
            "head": head.head.hex(),
            "time": head.time,
            "signature": base64.b64encode(head.signature).decode(),
            "source": source,
        }
        for head, source in heads
    ]
    named = {"keys": [key.hex() for key in keys]}
    return json.dumps({"heads": said, **(named if named["keys"] else {})}) + "\n"
