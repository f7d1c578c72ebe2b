"""Enrol this device: keys, request, proof, certificate. Refuses an answer that does not prove the token.

TLS to the bootstrap listener is not verified, because a new device has no CA yet; the HMAC under the token's secret
authenticates both sides, whatever lies between (edge_sdk.protocol.enrolment).
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from edge_sdk.identity.keys import CERTIFICATE, TLS_KEY, DeviceKeys, IdentityError, read_private, write_private
from edge_sdk.identity.trust import CA_FILE, load_bundle, root_fingerprint, save_bundle
from edge_sdk.protocol import enrolment, topics
from edge_sdk.protocol.enrolment import (
    EnrolmentAnswer,
    EnrolmentRefusal,
    EnrolmentRefused,
    EnrolmentRequest,
    SpentStatement,
    Token,
    TrustBundle,
)
from edge_sdk.protocol.errors import MalformedMessage
from edge_sdk.protocol.messages import SpentEntry

TIMEOUT_S: Final = 15.0
RENEW_AT: Final = 2 / 3
PENDING: Final = "enrolment.json"
SPENT: Final = "spent.json"

Post = Callable[[Token, bytes], bytes]


class Identity(NamedTuple):
    """An enrolled device. Paths are what a TLS context wants.

    `not_before`: when the certificate's life began, seconds since 1970; it is later than that, whatever the clock says.
    `spent`: what the fleet stated that this device had spent before; its ledger starts from there.
    """

    device: str
    keys: DeviceKeys
    bundle: TrustBundle
    certificate_file: Path
    key_file: Path
    ca_file: Path
    not_before: int = 0
    spent: tuple[SpentEntry, ...] = ()


def post(token: Token, body: bytes) -> bytes:
    """Send a request to the listener that the token names. Raises EnrolmentRefused("unreachable" or "malformed")."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the answer's HMAC is checked instead: see above
    connection = http.client.HTTPSConnection(token.host, token.port, timeout=TIMEOUT_S, context=context)
    try:
        connection.request("POST", enrolment.PATH, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        data = response.read(enrolment.MAX_BODY_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise EnrolmentRefused(f"cannot reach {token.address}: {error}", reason="unreachable") from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        _raise_refusal(data)
    return data


def _raise_refusal(data: bytes) -> None:
    try:
        refusal = enrolment.from_json(data, EnrolmentRefusal)
    except MalformedMessage as error:
        raise EnrolmentRefused("the listener answered something else", reason="malformed") from error
    raise EnrolmentRefused(f"the fleet refused: {refusal.message[:200]}", reason=refusal.reason)


def enrol(
    token_text: str, device: str, directory: Path, *, entropy: Callable[[int], bytes], send: Post = post
) -> Identity:
    """Enrol `device` under a token and write its identity into `directory`.

    A request whose answer was lost is sent again as it was, so a token is not wasted. Raises EnrolmentRefused with
    its remedy, IdentityError where `directory` holds an identity already.
    """
    token = Token.parse(token_text)
    if not topics.is_device_name(device):
        raise EnrolmentRefused(f"{device!r} cannot be a device's name", reason="name")
    if (directory / CERTIFICATE).exists():
        raise IdentityError(f"{directory} holds an enrolled device already: use another directory or remove it")
    keys, request = _request(token, device, directory, entropy)
    try:
        answer = enrolment.from_json(send(token, enrolment.to_json(request)), EnrolmentAnswer)
    except MalformedMessage as error:
        raise EnrolmentRefused(f"the listener's answer: {error}", reason="malformed") from error
    answer.check(enrolment.token_key(token.secret), request)
    _check_answer(answer, token, device, keys)
    answer.spent.check(answer.bundle.authority_key, fleet=token.fleet, device=device)
    save_bundle(directory, answer.bundle)
    write_private(directory / SPENT, enrolment.to_json(answer.spent))
    # Last: this file says that the identity is whole.
    write_private(directory / CERTIFICATE, answer.chain_pem.encode())
    (directory / PENDING).unlink(missing_ok=True)
    return load_identity(directory)


def _request(
    token: Token, device: str, directory: Path, entropy: Callable[[int], bytes]
) -> tuple[DeviceKeys, EnrolmentRequest]:
    """The pending request of this token and device if there is one, else fresh keys and a new request, saved first."""
    pending = directory / PENDING
    if pending.exists():
        with contextlib.suppress(MalformedMessage):
            keys, request = DeviceKeys.load(directory), enrolment.from_json(read_private(pending), EnrolmentRequest)
            if request.token_id == token.token_id and request.sign_key == keys.sign_public and _names(request, device):
                return keys, request
    keys = DeviceKeys.generate()
    keys.save(directory)
    request = enrolment.make_request(
        token,
        nonce=entropy(enrolment.NONCE_BYTES),
        csr=keys.request(token.fleet, device),
        sign_key=keys.sign_public,
        epoch_key=keys.epoch_public,
        sign=keys.sign,
    )
    write_private(pending, enrolment.to_json(request))
    return keys, request


def _names(request: EnrolmentRequest, device: str) -> bool:
    return _common_name(x509.load_pem_x509_csr(request.csr).subject) == device


def _common_name(name: x509.Name) -> str:
    return str(name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _check_answer(answer: EnrolmentAnswer, token: Token, device: str, keys: DeviceKeys) -> None:
    """The certificate is ours, and the fleet is the one that the token names."""
    if answer.bundle.fleet != token.fleet or not root_fingerprint(answer.bundle.ca_pem).startswith(token.fingerprint):
        raise EnrolmentRefused("the answer names another fleet than the token", reason="wrong-fleet")
    try:
        leaf = x509.load_pem_x509_certificates(answer.chain_pem.encode())[0]
    except ValueError as error:
        raise EnrolmentRefused("the certificate does not parse", reason="malformed") from error
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*form) != keys.tls.public_key().public_bytes(*form):
        raise EnrolmentRefused("the certificate is not for this device's key", reason="malformed")
    if _common_name(leaf.subject) != device:
        raise EnrolmentRefused("the certificate is not for this device's name", reason="malformed")


def load_identity(directory: Path) -> Identity:
    """The identity that `enrol` wrote. Raises IdentityError with the remedy."""
    certificate = directory / CERTIFICATE
    data = read_private(certificate)
    try:
        leaf = x509.load_pem_x509_certificates(data)[0]
    except ValueError as error:
        raise IdentityError(f"{certificate} is damaged ({error}): restore it from a copy or enrol again") from error
    bundle, keys = load_bundle(directory), DeviceKeys.load(directory)
    begin = int(leaf.not_valid_before_utc.timestamp())
    name, key_file, ca_file = _common_name(leaf.subject), directory / TLS_KEY, directory / CA_FILE
    spent = _stated_spent(directory / SPENT, bundle, name)
    return Identity(name, keys, bundle, certificate, key_file, ca_file, begin, spent)


def _stated_spent(file: Path, bundle: TrustBundle, device: str) -> tuple[SpentEntry, ...]:
    """What the fleet stated at enrolment; identities of older versions have no such file."""
    if not file.exists():
        return ()
    try:
        statement = enrolment.from_json(read_private(file), SpentStatement)
        statement.check(bundle.authority_key, fleet=bundle.fleet, device=device)
    except (MalformedMessage, EnrolmentRefused) as error:
        raise IdentityError(f"{file} is damaged ({error}): restore it from a copy or enrol again") from error
    return statement.entries


def needs_renewal(certificate_pem: bytes, now: float) -> bool:
    """True from two thirds of a certificate's life on: ask for a new one, with a new key."""
    leaf = x509.load_pem_x509_certificates(certificate_pem)[0]
    begin, end = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    return now >= begin + (end - begin) * RENEW_AT
