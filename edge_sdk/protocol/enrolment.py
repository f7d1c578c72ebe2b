"""Enrolment: what a new device and the fleet say to each other once. Pure; refuses whatever the token does not prove.

A one-time token carries a 128-bit secret. The secret never travels: the device proves it by an HMAC over the whole
request, the fleet by an HMAC over the request's hash and the whole answer. So the device knows the fleet before it
has a CA to check TLS by, and TLS below it is not verified, only the HMAC is. A failed answer cannot be proved (there
may be no token to prove it by) and is shown as a claim.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from typing import Annotated, Final, Self, TypeVar

import msgspec
from msgspec import Meta, Struct

from edge_sdk.protocol import codec, topics
from edge_sdk.protocol.errors import MalformedMessage, RemoteProtocolError
from edge_sdk.protocol.messages import Digest, Name, Second, SpentEntry

MAX_BODY_BYTES: Final = 163_840
MOST_STATED: Final = 64  # entries of a statement of what was spent
SECRET_BYTES: Final = 16
NONCE_BYTES: Final = 16
FINGERPRINT_CHARACTERS: Final = 16
PATH: Final = "/enrol"

REMEDIES: Final = {
    "unknown-token": "make a new one with `aggregator enroll-token` and copy it whole",
    "wrong-token": "the token was copied wrongly or belongs to another fleet: copy it again, whole",
    "used-token": "a token admits a stated number of devices: make a new one with `aggregator enroll-token`",
    "expired-token": "make a new one with `aggregator enroll-token`, and look at both clocks",
    "name-taken": "choose another name; for the same device again: `aggregator enroll-token --replace NAME`",
    "name": "use 1 to 48 of a-z, 0-9 and '-', no '-' at an end; `all`, `broker` and `aggregator…` are reserved",
    "wrong-proof": "the request does not hold together: update the SDK and try again",
    "wrong-statement": "the answer is not whole: enrol again with a new token; that does not help: ask the fleet",
    "malformed": "update the SDK; if that does not help, look whether something on the way rewrites HTTP",
    "wrong-fleet": "the answer does not come from the fleet that made the token: check the address in it",
    "unreachable": "start the aggregator with its bootstrap listener, and check the address in the token",
}

T = TypeVar("T", bound=Struct)
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]


class EnrolmentRefused(RemoteProtocolError):
    """Enrolment ended without a certificate. `reason` is one of REMEDIES; `remedy` says what to do."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message, reason=reason)
        self.remedy = REMEDIES.get(reason, "see the aggregator's log")


class Token(Struct, frozen=True):
    """`chorale1.<fleet>.<token id>.<secret>.<first 16 hex digits of the root's SHA-256>.<host:port>`."""

    fleet: str
    token_id: str
    secret: bytes
    fingerprint: str
    address: str

    def __repr__(self) -> str:
        return f"Token({self.token_id!r}, secret=...)"

    def __str__(self) -> str:
        return repr(self)

    def reveal(self) -> str:
        """The token's text. Whoever reads it may enrol a device."""
        secret = base64.urlsafe_b64encode(self.secret).rstrip(b"=").decode()
        return ".".join(("chorale1", self.fleet, self.token_id, secret, self.fingerprint, self.address))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a token's text. Raises EnrolmentRefused("wrong-token")."""
        parts = text.strip().split(".", 5)
        wrong = EnrolmentRefused("this is not an enrolment token", reason="wrong-token")
        if len(parts) != 6 or parts[0] != "chorale1" or not all(map(topics.is_name, parts[1:3])):
            raise wrong
        try:
            secret = base64.b64decode(parts[3] + "==", altchars=b"-_", validate=True)
        except binascii.Error as error:
            raise wrong from error
        host, _, port = parts[5].rpartition(":")
        if len(secret) != SECRET_BYTES or len(parts[4]) != FINGERPRINT_CHARACTERS or not host or not port.isdigit():
            raise wrong
        return cls(parts[1], parts[2], secret, parts[4], parts[5])

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


class TrustBundle(Struct, frozen=True, forbid_unknown_fields=True):
    """Whom a device trusts, and where the broker is. Public, and fixed at enrolment.

    `aggregator_key` and `authority_key` are Ed25519 public keys (32 bytes); `ca_pem` the issuing certificate and the
    root; `tuf_root` the text of the TUF root.json that updates start from.
    """

    fleet: Name
    aggregator_key: Digest
    authority_key: Digest
    ca_pem: str
    broker_host: Annotated[str, Meta(min_length=1, max_length=255)]
    broker_port: Annotated[int, Meta(ge=1, le=65_535)]
    tuf_root: str


class EnrolmentRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """What the device sends. `signature`, by the signing key, proves that key; `proof` proves the token."""

    token_id: Name
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    csr: Annotated[bytes, Meta(min_length=1, max_length=8192)]
    sign_key: Digest
    epoch_key: Digest
    signature: Signature
    proof: Digest

    def digest(self) -> bytes:
        """SHA-256 of the whole request: the same request again gets the same answer again."""
        return hashlib.sha256(codec.prefixed(self.claims(), self.signature, self.proof)).digest()

    def claims(self) -> bytes:
        """Canonical bytes of what is claimed, which `signature` and `proof` cover."""
        return _claims(self.token_id, self.nonce, self.csr, self.sign_key, self.epoch_key)

    def check(self, token_key: bytes) -> None:
        """Raises EnrolmentRefused: "wrong-token" (HMAC) or "wrong-proof" (signature)."""
        if not hmac.compare_digest(_proof(token_key, b"request", self.claims()), self.proof):
            raise EnrolmentRefused("the request does not prove the token", reason="wrong-token")
        try:
            codec.verify(self.sign_key, self.signature, self.claims())
        except RemoteProtocolError as error:
            raise EnrolmentRefused("the request does not prove its signing key", reason="wrong-proof") from error


class SpentStatement(Struct, frozen=True, forbid_unknown_fields=True):
    """What a device had spent of everybody's privacy before this enrolment, by all that the fleet knows (SPEC 7.8).

    Empty for a name that is new. The signature is the authority's: whoever states too little has signed it.
    """

    fleet: Name
    device: Name
    issued_at: Second
    entries: Annotated[tuple[SpentEntry, ...], Meta(max_length=MOST_STATED)]
    signature: Signature

    def check(self, authority_key: bytes, *, fleet: str, device: str) -> None:
        """Raises EnrolmentRefused("wrong-statement") where it is about another, or the authority never made it."""
        signed = _stated(self.fleet, self.device, self.issued_at, self.entries)
        try:
            codec.verify(authority_key, self.signature, signed)
        except RemoteProtocolError as error:
            raise EnrolmentRefused("the authority never stated this", reason="wrong-statement") from error
        if (self.fleet, self.device) != (fleet, device):
            raise EnrolmentRefused(f"what {self.device} of {self.fleet} had spent", reason="wrong-statement")


def state_spent(
    fleet: str, device: str, issued_at: int, entries: tuple[SpentEntry, ...], sign: Callable[[bytes], bytes]
) -> SpentStatement:
    """A statement under the authority's key. `issued_at`: seconds since 1970."""
    return SpentStatement(fleet, device, issued_at, entries, sign(_stated(fleet, device, issued_at, entries)))


class EnrolmentAnswer(Struct, frozen=True, forbid_unknown_fields=True):
    """What the fleet answers: the certificate chain (leaf first, PEM), whom to trust, what was spent, and the proof."""

    chain_pem: str
    bundle: TrustBundle
    spent: SpentStatement
    proof: Digest

    def check(self, token_key: bytes, request: EnrolmentRequest) -> None:
        """Raises EnrolmentRefused("wrong-fleet") unless whoever holds the token's key answered this very request."""
        expected = _answer_proof(token_key, request, self.chain_pem, self.bundle, self.spent)
        if not hmac.compare_digest(expected, self.proof):
            raise EnrolmentRefused("the answer does not prove the token", reason="wrong-fleet")


class EnrolmentRefusal(Struct, frozen=True, forbid_unknown_fields=True):
    """The answer where there is none."""

    reason: str
    message: str


def token_key(secret: bytes) -> bytes:
    """The HMAC key both sides derive, so that the fleet need not keep the token itself (32 bytes)."""
    return hashlib.sha256(codec.prefixed("chorale/enrolment/1", secret)).digest()


def make_request(
    token: Token, *, nonce: bytes, csr: bytes, sign_key: bytes, epoch_key: bytes, sign: Callable[[bytes], bytes]
) -> EnrolmentRequest:
    """A request under `token`. `nonce` is 16 fresh random bytes; `sign` signs by the key whose public half is given."""
    claims = _claims(token.token_id, nonce, csr, sign_key, epoch_key)
    proof = _proof(token_key(token.secret), b"request", claims)
    return EnrolmentRequest(token.token_id, nonce, csr, sign_key, epoch_key, sign(claims), proof)


def make_answer(
    key: bytes, request: EnrolmentRequest, chain_pem: str, bundle: TrustBundle, spent: SpentStatement
) -> EnrolmentAnswer:
    """An answer to `request` under the token's key."""
    return EnrolmentAnswer(chain_pem, bundle, spent, _answer_proof(key, request, chain_pem, bundle, spent))


def to_json(value: Struct) -> bytes:
    """JSON as it travels; byte strings are base64."""
    return msgspec.json.encode(value)


def from_json(data: bytes, kind: type[T]) -> T:
    """Strict inverse of `to_json`. Raises MalformedMessage."""
    if len(data) > MAX_BODY_BYTES:
        raise MalformedMessage(f"{len(data)} bytes where {MAX_BODY_BYTES} are the most", reason="size")
    try:
        value: T = msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(f"not a valid {kind.__name__}: {error}", reason="body") from error
    return value


def _claims(token_id: str, nonce: bytes, csr: bytes, sign_key: bytes, epoch_key: bytes) -> bytes:
    return codec.prefixed("chorale/enrol/1", token_id, nonce, csr, sign_key, epoch_key)


def _proof(key: bytes, side: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, codec.prefixed(side, *parts), "sha256")


def _stated(fleet: str, device: str, issued_at: int, entries: tuple[SpentEntry, ...]) -> bytes:
    return codec.prefixed("chorale/spent/1", fleet, device, hashlib.sha256(codec.pack((issued_at, entries))).digest())


def _answer_proof(
    key: bytes, request: EnrolmentRequest, chain_pem: str, bundle: TrustBundle, spent: SpentStatement
) -> bytes:
    whole = codec.pack((chain_pem, bundle, spent))
    return _proof(key, b"answer", request.digest(), hashlib.sha256(whole).digest())
