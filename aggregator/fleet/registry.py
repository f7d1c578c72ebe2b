"""Who is in the fleet. The registry, not the broker, is the authority: a revoked device is out at its next message.

Works on the connection it is given and joins a transaction that is open on it. Refuses a token that is unknown, used
up, expired or not proved, a name that an active device already has, an epoch key to which nothing can be sealed, and a
second change of a device's key within one epoch of the roster.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import sqlite3
from collections.abc import Callable, Iterator
from typing import Final, Literal, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator.errors import AggregatorError
from aggregator.fleet.authority import AuthorityRefused, Issued
from aggregator.ledger import Ledger
from aggregator.store import audit_log
from edge_sdk.protocol import codec, enrolment, roster
from edge_sdk.protocol.enrolment import EnrolmentAnswer, EnrolmentRefused, EnrolmentRequest, Token, TrustBundle
from edge_sdk.protocol.errors import MalformedMessage
from edge_sdk.protocol.roster import RosterEntry, SignedRoster

log = logging.getLogger(__name__)
TOKEN_TTL_S: Final = 86_400
ROSTER_TTL_S: Final = 7 * 86_400

SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS devices (
        device TEXT PRIMARY KEY, sign_key BLOB NOT NULL, epoch_key BLOB NOT NULL, serial TEXT NOT NULL,
        not_after INTEGER NOT NULL, status TEXT NOT NULL CHECK (status IN ('active', 'revoked')), kind TEXT NOT NULL,
        steward INTEGER NOT NULL, enrolled_at INTEGER NOT NULL, last_seen INTEGER)""",
    """CREATE TABLE IF NOT EXISTS certificates (
        serial TEXT PRIMARY KEY, device TEXT NOT NULL, not_after INTEGER NOT NULL, revoked_at INTEGER)""",
    """CREATE TABLE IF NOT EXISTS tokens (
        token_id TEXT PRIMARY KEY, key BLOB NOT NULL, kind TEXT NOT NULL, steward INTEGER NOT NULL,
        uses INTEGER NOT NULL, used INTEGER NOT NULL DEFAULT 0, expires_at INTEGER NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS redemptions (
        request BLOB PRIMARY KEY, token_id TEXT NOT NULL, device TEXT NOT NULL, answer BLOB NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS signed_rosters (epoch INTEGER PRIMARY KEY, blob BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS key_changes (device TEXT PRIMARY KEY, epoch INTEGER NOT NULL)",
)


class RegistryRefused(AggregatorError):
    """The registry holds no such device, or will not do this to it."""


class Device(NamedTuple):
    """A device as the fleet knows it. Keys are 32 bytes; times are Unix seconds."""

    device: str
    sign_key: bytes
    epoch_key: bytes
    serial: str
    not_after: int
    status: Literal["active", "revoked"]
    kind: str
    steward: bool
    enrolled_at: int
    last_seen: int | None


@functools.lru_cache(maxsize=1 << 16)  # an exchange takes tens of microseconds, and a waiting task asks at every tick
def _usable(epoch_key: bytes) -> bool:
    try:
        roster.check_epoch_key(epoch_key)
    except MalformedMessage:
        log.warning("a device is left out of the roster for its epoch key %s: enrol it again", epoch_key.hex())
        return False
    return True


_COLUMNS: Final = ", ".join(Device._fields)


def _device(row: tuple[object, ...]) -> Device:
    fields = dict(zip(Device._fields, row, strict=True))
    return Device(**{**fields, "steward": bool(fields["steward"])})  # type: ignore[arg-type]  # SQLite's own types


class Registry:
    """The devices and tokens of one fleet, in SQLite."""

    def __init__(self, connection: sqlite3.Connection, fleet: str) -> None:
        """`connection` is used by one thread at a time; the tables are made where they are missing."""
        self.fleet = fleet
        self._db = connection
        self._ledger = Ledger(connection)
        for statement in (*SCHEMA, *audit_log.TABLES.split(";")):
            connection.execute(statement)

    def create_token(
        self,
        *,
        fingerprint: str,
        address: str,
        now: float,
        entropy: Callable[[int], bytes],
        kind: str = "device",
        steward: bool = False,
        uses: int = 1,
        ttl_s: float = TOKEN_TTL_S,
    ) -> Token:
        """A token for `uses` devices within `ttl_s`. `fingerprint` is the root's SHA-256 in hex; `address` host:port
        of the bootstrap listener. Only a key derived from its secret is kept."""
        if uses < 1 or not 0 < ttl_s <= 366 * 86_400:
            raise RegistryRefused("a token needs at least one use and at most a year", "see --uses and --ttl")
        short = fingerprint[: enrolment.FINGERPRINT_CHARACTERS]
        token = Token(self.fleet, entropy(6).hex(), entropy(enrolment.SECRET_BYTES), short, address)
        key = enrolment.token_key(token.secret)
        row = (token.token_id, key, kind, steward, uses, int(now + ttl_s))
        with self._transaction():
            self._db.execute(
                "INSERT INTO tokens (token_id, key, kind, steward, uses, expires_at) VALUES (?, ?, ?, ?, ?, ?)", row
            )
            facts: dict[str, str | int | bool] = {
                "token": token.token_id,
                "uses": uses,
                "kind": kind,
                "steward": steward,
            }
            audit_log.append(self._db, now, "token", **facts, expires_at=int(now + ttl_s))
        return token

    def redeem(
        self,
        request: EnrolmentRequest,
        *,
        issue: Callable[[bytes], Issued],
        bundle: TrustBundle,
        sign: Callable[[bytes], bytes],
        now: float,
    ) -> EnrolmentAnswer:
        """Enrol a device: check the token, have `issue` sign its request, register it, answer. All of it, or nothing.

        `sign` is by the authority's key: the answer states what a device of this name had spent before.
        The same request again gets the same answer, so a lost answer costs no token. Raises EnrolmentRefused.
        """
        with self._transaction():
            row = self._db.execute(
                "SELECT key, kind, steward, uses, used, expires_at FROM tokens WHERE token_id = ?", (request.token_id,)
            ).fetchone()
            if row is None:
                raise EnrolmentRefused("no such token", reason="unknown-token")
            key, kind, steward, uses, used, expires_at = row
            request.check(key)
            known = self._db.execute("SELECT answer FROM redemptions WHERE request = ?", (request.digest(),)).fetchone()
            if known is not None:
                return codec.unpack(known[0], EnrolmentAnswer)
            if now >= expires_at:
                raise EnrolmentRefused("the token has expired", reason="expired-token")
            if used >= uses:
                raise EnrolmentRefused("the token has been used", reason="used-token")
            issued = self._admit(request, issue, kind, bool(steward), now)
            entries = self._ledger.carry_over(issued.device)
            spent = enrolment.state_spent(self.fleet, issued.device, int(now), entries, sign)
            answer = enrolment.make_answer(key, request, issued.chain_pem, bundle, spent)
            self._db.execute("UPDATE tokens SET used = used + 1 WHERE token_id = ?", (request.token_id,))
            row = (request.digest(), request.token_id, issued.device, codec.pack(answer))
            self._db.execute("INSERT INTO redemptions VALUES (?, ?, ?, ?)", row)
            facts = {"device": issued.device, "token": request.token_id, "serial": issued.serial}
            facts["spent"] = hashlib.sha256(codec.pack(spent)).hexdigest()
            audit_log.append(self._db, now, "enrolled", **facts, kind=kind, sign_key=request.sign_key.hex())
        return answer

    def _admit(
        self, request: EnrolmentRequest, issue: Callable[[bytes], Issued], kind: str, steward: bool, now: float
    ) -> Issued:
        try:
            roster.check_epoch_key(request.epoch_key)
        except MalformedMessage as error:
            raise EnrolmentRefused(str(error), reason=error.reason) from error
        try:
            issued = issue(request.csr)
        except AuthorityRefused as error:
            reason = "name" if error.reason in ("name", "reserved-name") else "malformed"
            raise EnrolmentRefused(str(error), reason=reason) from error
        current = self.get(issued.device)
        if current is not None and current.status == "active":
            raise EnrolmentRefused(f"the name {issued.device} is taken", reason="name-taken")
        device = Device(
            issued.device,
            request.sign_key,
            request.epoch_key,
            issued.serial,
            issued.not_after,
            "active",
            kind,
            steward,
            int(now),
            None,
        )
        self._db.execute(f"INSERT OR REPLACE INTO devices ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?)", device)
        self._db.execute("DELETE FROM key_changes WHERE device = ?", (device.device,))
        self._record_certificate(issued)
        return issued

    def _record_certificate(self, issued: Issued) -> None:
        row = (issued.serial, issued.device, issued.not_after)
        self._db.execute("INSERT INTO certificates (serial, device, not_after) VALUES (?, ?, ?)", row)

    def renew(self, device: str, csr: bytes, *, issue: Callable[[bytes], Issued], now: float) -> Issued:
        """A new certificate, for a new key, of an active device. The old one stays good until it runs out, and a
        revocation takes both. Raises RegistryRefused or AuthorityRefused."""
        self.require_active(device)
        issued = issue(csr)
        if issued.device != device:
            raise RegistryRefused(f"{device} asked for a certificate of {issued.device}", reason="name")
        with self._transaction():
            self._record_certificate(issued)
            row = (issued.serial, issued.not_after, int(now), device)
            self._db.execute("UPDATE devices SET serial = ?, not_after = ?, last_seen = ? WHERE device = ?", row)
            audit_log.append(self._db, now, "certificate", device=device, serial=issued.serial)
        return issued

    def revoke(self, device: str, *, now: float) -> None:
        """Throw a device out for good: its signature counts no more and all its certificates go on the list.

        Rewrite the CRL and reload the broker next. Raises RegistryRefused for an unknown device.
        """
        with self._transaction():
            changed = self._db.execute("UPDATE devices SET status = 'revoked' WHERE device = ?", (device,)).rowcount
            if not changed:
                raise self._unknown(device)
            self._db.execute(
                "UPDATE certificates SET revoked_at = ? WHERE device = ? AND revoked_at IS NULL", (int(now), device)
            )
            audit_log.append(self._db, now, "revoked", device=device)

    def revoked_serials(self, now: float) -> list[tuple[str, int]]:
        """(serial, revoked at) of every revoked certificate that has not run out: what the CRL lists."""
        query = "SELECT serial, revoked_at FROM certificates WHERE revoked_at IS NOT NULL AND not_after > ? ORDER BY 1"
        return [(str(serial), int(at)) for serial, at in self._db.execute(query, (int(now),))]

    def get(self, device: str) -> Device | None:
        row = self._db.execute(f"SELECT {_COLUMNS} FROM devices WHERE device = ?", (device,)).fetchone()
        return None if row is None else _device(row)

    def require_active(self, device: str) -> Device:
        """The device, if it may speak. Raises RegistryRefused ("unknown-device" or "revoked")."""
        found = self.get(device)
        if found is None:
            raise self._unknown(device)
        if found.status != "active":
            hint = "enrol it again with a token from `aggregator enroll-token`"
            raise RegistryRefused(f"device {device} is revoked", hint, reason="revoked")
        return found

    def _unknown(self, device: str) -> RegistryRefused:
        return RegistryRefused(
            f"there is no device {device!r}", "see `aggregator devices` for the names", reason="unknown-device"
        )

    def devices(self) -> list[Device]:
        """Every device that ever enrolled, by name."""
        return [_device(row) for row in self._db.execute(f"SELECT {_COLUMNS} FROM devices ORDER BY device")]

    def active(self) -> list[Device]:
        """The devices that may speak, by name."""
        return [device for device in self.devices() if device.status == "active"]

    def touch(self, device: str, *, now: float) -> None:
        """Note that a verified message came from the device."""
        self._db.execute("UPDATE devices SET last_seen = ? WHERE device = ?", (int(now), device))

    def set_epoch_key(self, device: str, epoch_key: bytes, *, now: float = 0.0) -> None:
        """The device's next epoch key, for the next roster: one change for each roster that was signed.

        Raises MalformedMessage "key"; RegistryRefused: "repeat" for a further change, or as `require_active`.
        """
        with self._transaction():
            self.require_active(device)
            roster.check_epoch_key(epoch_key)
            newest = self._newest_epoch()
            row = self._db.execute("SELECT epoch FROM key_changes WHERE device = ?", (device,)).fetchone()
            if row is not None and row[0] >= newest:
                raise RegistryRefused(f"{device} changed its key already", "wait for the next roster", reason="repeat")
            self._db.execute("INSERT OR REPLACE INTO key_changes VALUES (?, ?)", (device, newest))
            self._db.execute("UPDATE devices SET epoch_key = ? WHERE device = ?", (epoch_key, device))
            audit_log.append(self._db, now, "epoch-key", device=device, key=epoch_key.hex())

    def _newest_epoch(self) -> int:
        (epoch,) = self._db.execute("SELECT coalesce(max(epoch), 0) FROM signed_rosters").fetchone()
        return int(epoch)

    def set_steward(self, device: str, steward: bool, *, now: float = 0.0) -> None:
        """Nominate, or no longer. Counts from the next roster on. Raises RegistryRefused."""
        with self._transaction():
            self.require_active(device)
            self._db.execute("UPDATE devices SET steward = ? WHERE device = ?", (steward, device))
            audit_log.append(self._db, now, "steward", device=device, steward=steward)

    def entries(self) -> tuple[RosterEntry, ...]:
        """What the next roster states: the active devices, without any whose stored epoch key is unusable."""
        active = [device for device in self.active() if _usable(device.epoch_key)]
        return tuple(RosterEntry(d.device, d.sign_key, d.epoch_key, d.steward) for d in active)

    def issue_roster(
        self, key: Ed25519PrivateKey, *, now: float, beacon: Callable[[], bytes], ttl_s: float = ROSTER_TTL_S
    ) -> SignedRoster:
        """Freeze the active devices, then draw the beacon, sign the next epoch and keep it.

        `beacon` gives 32 fresh random bytes and is called after the freeze. Raises LocalProtocolError when empty.
        """
        with self._transaction():
            frozen = roster.freeze(self.entries())
            epoch = self._newest_epoch() + 1
            signed = roster.sign(
                frozen,
                key,
                fleet=self.fleet,
                epoch=epoch,
                beacon=beacon(),
                issued_at=int(now),
                expires_at=int(now + ttl_s),
            )
            self._db.execute("INSERT INTO signed_rosters VALUES (?, ?)", (epoch, signed.to_blob()))
            statement = hashlib.sha256(signed.statement).hexdigest()
            audit_log.append(self._db, now, "roster", epoch=epoch, devices=len(frozen), statement=statement)
        return signed

    def signed_roster(self, epoch: int | None = None) -> SignedRoster | None:
        """The roster of an epoch, or the newest."""
        query = "SELECT blob FROM signed_rosters WHERE epoch = coalesce(?, (SELECT max(epoch) FROM signed_rosters))"
        row = self._db.execute(query, (epoch,)).fetchone()
        return None if row is None else roster.from_blob(row[0])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """One transaction; inside the caller's own, where one is open, which then commits or not as the caller says."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
