"""A hash-chained log: entries, heads, and what is wrong with one (SPEC 12). Bytes in, findings out; no I/O, no clock.

Each head covers every entry before it, so no entry can be changed, removed or moved without changing all later heads;
a signed head that somebody else keeps shows a log that was written anew or cut short. Refuses an entry that is larger
than 4 KiB. Says nothing about entries after the newest signed head but that they hang together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta, Struct

from edge_sdk.protocol import codec
from edge_sdk.protocol.errors import LocalProtocolError, MalformedMessage, WrongSignature
from edge_sdk.protocol.messages import Count, LogHead, Round, Second, Word

START: Final = bytes(32)  # the head of a log without entries
MAX_ENTRY_BYTES: Final = 4096
KEY_BYTES: Final = 32
MAX_WORD: Final = 300
MAX_LISTED: Final = 32
IDENTITY: Final = "identity"  # the entry that names the key of every later head of a device's journal

Kind = Annotated[str, Meta(min_length=1, max_length=48, pattern=r"^[a-z0-9-]+\Z")]
Value = str | int | float | bool | list[str] | None


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a log. `task` is empty and `round` 0 where it is about neither; `at` is Unix time."""

    n: Round
    at: Second
    kind: Kind
    task: Word
    round: Count
    data: dict[str, Value]


class Row(NamedTuple):
    """An entry as it is kept: its number, its bytes, and the head after it."""

    n: int
    entry: bytes
    head: bytes


class Evidence(NamedTuple):
    """A signed head, and where it was found ("checkpoint", "device kiosk-7", …)."""

    head: LogHead
    source: str


class Finding(NamedTuple):
    """What is wrong: the first entry concerned, a word for counters, and a sentence."""

    entry: int
    reason: str
    said: str


class Checked(NamedTuple):
    """A log's length and head as far as it holds, how far that is signed, and everything that is wrong."""

    size: int
    head: bytes
    signed: int
    findings: tuple[Finding, ...]


def following(
    last: tuple[int, bytes], *, at: float, kind: str, task: str, number: int, data: Mapping[str, Value]
) -> Row:
    """The row after `last` (its number and head; `(0, START)` for the first). Raises LocalProtocolError."""
    n, head = last
    short = {name: _shortened(value) for name, value in data.items()}
    entry = codec.pack(Entry(n + 1, max(0, int(at)), kind, task, number, short))
    if len(entry) > MAX_ENTRY_BYTES:
        raise LocalProtocolError(f"a log entry of {len(entry)} bytes exceeds {MAX_ENTRY_BYTES}", reason="size")
    return Row(n + 1, entry, chained(head, entry))


def _shortened(value: Value) -> Value:
    """Long words and lists lose their ends: an entry that does not fit would undo what it records."""
    if isinstance(value, str):
        return value if len(value) <= MAX_WORD else value[: MAX_WORD - 1] + "…"
    if isinstance(value, list) and len(value) > MAX_LISTED:
        return [*value[:MAX_LISTED], f"and {len(value) - MAX_LISTED} more"]
    return value


def chained(head: bytes, entry: bytes) -> bytes:
    """The head after an entry: SHA-256("chorale/log/1" || head before || entry)."""
    return hashlib.sha256(b"chorale/log/1" + head + entry).digest()


def read(entry: bytes) -> Entry:
    """Parse an entry. Raises MalformedMessage."""
    return codec.unpack(entry, Entry)


def _signed_bytes(fleet: str, who: str, size: int, head: bytes, time: int) -> bytes:
    return codec.prefixed("chorale/loghead/1", fleet, who, size.to_bytes(8, "big"), head, time.to_bytes(8, "big"))


def sign_head(
    last: tuple[int, bytes], sign: Callable[[bytes], bytes] | Ed25519PrivateKey, *, fleet: str, who: str, time: int
) -> LogHead:
    """The signed statement that `who`'s log ends, for now, in `last` (number and head)."""
    size, head = last
    signer = sign.sign if isinstance(sign, Ed25519PrivateKey) else sign
    return LogHead(size, head, time, signer(_signed_bytes(fleet, who, size, head, time)))


def verify_head(head: LogHead, key: bytes, *, fleet: str, who: str) -> None:
    """Check the signature under the 32-byte public key of `who`. Raises WrongSignature."""
    codec.verify(key, head.signature, _signed_bytes(fleet, who, head.size, head.head, head.time))


def identity_key(entry: Entry) -> bytes | None:
    """The 32-byte key that an `identity` entry names; None where it names none."""
    try:
        key = bytes.fromhex(str(entry.data.get("key", "")))
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES else None


def conflict(kept: LogHead, shown: LogHead) -> str:
    """Why a head that is shown cannot follow the one that is kept: "" where it may.

    A longer log is believed here; whoever holds the entries checks that it contains the kept head.
    """
    if shown.size < kept.size:
        return f"the log had {kept.size} entries, now {shown.size} are shown"
    if shown.size == kept.size and shown.head != kept.head:
        return f"two different logs of {kept.size} entries are shown"
    if shown.time < kept.time:
        return f"a head of {shown.size} entries is dated {kept.time - shown.time} s before one that was shown earlier"
    return ""


class _Walk:
    """Goes along the rows and notes the heads of the sizes that evidence is about."""

    def __init__(self, start: tuple[int, bytes], wanted: set[int], key: bytes, follow: bool) -> None:
        self.size, self.head = start
        self.heads = {self.size: self.head}
        self.keys = [(0, key)]
        self._wanted, self._follow = wanted, follow

    def take(self, row: Row) -> Finding | None:
        """What is wrong with the next row, if anything."""
        expected = self.size + 1
        if row.n != expected:
            return Finding(expected, "removed", f"entry {expected} is missing: entry {row.n} follows {self.size}")
        try:
            entry = read(row.entry)
        except MalformedMessage as error:
            return Finding(expected, "changed", f"entry {expected} is no entry any more: {error}")
        if entry.n != expected:
            return Finding(expected, "moved", f"entry {entry.n} stands in the place of entry {expected}")
        head = chained(self.head, row.entry)
        if head != row.head:
            return Finding(expected, "changed", f"entry {expected} or its head was changed")
        named = identity_key(entry) if self._follow and entry.kind == IDENTITY else b""
        if named is None:
            return Finding(expected, "signature", f"entry {expected} names no key that could sign what follows")
        self.size, self.head = expected, head
        if expected in self._wanted:
            self.heads[expected] = head
        if named:
            self.keys.append((expected, named))
        return None

    def key(self, size: int) -> bytes:
        """The key that signs a head of this size."""
        return next(key for since, key in reversed(self.keys) if since <= size)


def check(
    rows: Iterable[Row],
    evidence: Iterable[Evidence],
    *,
    key: bytes,
    fleet: str,
    who: str,
    start: tuple[int, bytes] = (0, START),
    follow_identity: bool = False,
) -> Checked:
    """Hold a log against itself and against every signed head that there is.

    `key`: who signs (with `follow_identity`, until the first `identity` entry); `start`: number and head before the
    first row, where older rows were dropped.
    """
    proofs = sorted(evidence, key=lambda proof: (proof.head.size, proof.source))
    walk = _Walk(start, {proof.head.size for proof in proofs}, key, follow_identity)
    broken = next((found for row in rows if (found := walk.take(row)) is not None), None)
    findings = [broken] if broken else []
    signed = start[0]
    for proof in proofs:
        found = _held_against(walk, proof, signed, broken=broken is not None, fleet=fleet, who=who)
        if found is not None:
            findings.append(found)
        elif start[0] <= proof.head.size <= walk.size:
            signed = max(signed, proof.head.size)
    return Checked(walk.size, walk.head, signed, tuple(findings))


def _held_against(walk: _Walk, proof: Evidence, signed: int, *, broken: bool, fleet: str, who: str) -> Finding | None:
    head, since = proof.head, proof.source
    try:
        verify_head(head, walk.key(head.size), fleet=fleet, who=who)
    except WrongSignature:
        said = f"the head of {head.size} entries ({since}) is not signed by this log's key: it proves nothing"
        return Finding(max(1, min(signed + 1, head.size)), "signature", said)
    if head.size > walk.size:
        if broken:
            return None  # the break before it is told already
        said = f"the log ends at entry {walk.size}, but {head.size} entries were signed ({since}): it was cut short"
        return Finding(walk.size + 1, "cut", said)
    if head.size in walk.heads and walk.heads[head.size] != head.head:
        said = f"entries {signed + 1} to {head.size} are not those that were signed ({since}): they were written anew"
        return Finding(signed + 1, "rewritten", said)
    return None


def told(row: Row) -> dict[str, Any]:
    """A row for people and scripts."""
    entry = read(row.entry)
    place = {"n": entry.n, "at": entry.at, "kind": entry.kind, "task": entry.task, "round": entry.round}
    return {**place, "data": entry.data, "head": row.head.hex()}


def line(row: Row) -> str:
    """A row as one line, its time as Unix seconds."""
    entry = read(row.entry)
    about = " ".join(filter(None, [entry.task, f"round {entry.round}" if entry.round else ""]))
    said = ", ".join(f"{name} {value}" for name, value in entry.data.items())
    return " ".join(filter(None, [f"{entry.n:6} {entry.at} {entry.kind}", about, said]))
