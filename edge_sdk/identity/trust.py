"""Whom this device trusts, on disk. Written once, at enrolment; refuses a bundle that does not parse."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from edge_sdk.identity.keys import IdentityError, read_private, write_private
from edge_sdk.protocol import enrolment
from edge_sdk.protocol.enrolment import TrustBundle
from edge_sdk.protocol.errors import MalformedMessage

BUNDLE: Final = "trust.json"
CA_FILE: Final = "ca.pem"

__all__ = ["BUNDLE", "CA_FILE", "TrustBundle", "load_bundle", "root_fingerprint", "save_bundle"]


def save_bundle(directory: Path, bundle: TrustBundle) -> None:
    """Write trust.json, and ca.pem beside it for TLS."""
    write_private(directory / CA_FILE, bundle.ca_pem.encode())
    write_private(directory / BUNDLE, enrolment.to_json(bundle))


def load_bundle(directory: Path) -> TrustBundle:
    """Read what `save_bundle` wrote. Raises IdentityError."""
    try:
        return enrolment.from_json(read_private(directory / BUNDLE), TrustBundle)
    except MalformedMessage as error:
        raise IdentityError(
            f"{directory / BUNDLE} is damaged ({error}): restore it from a copy or enrol again"
        ) from error


def root_fingerprint(ca_pem: str) -> str:
    """SHA-256 (hex) of the self-signed certificate in a chain. Raises IdentityError where there is not exactly one."""
    try:
        chain = x509.load_pem_x509_certificates(ca_pem.encode())
    except ValueError as error:
        raise IdentityError(f"the fleet's certificates do not parse ({error}): enrol again") from error
    roots = [certificate for certificate in chain if certificate.issuer == certificate.subject]
    if len(roots) != 1:
        raise IdentityError("the fleet's certificates hold no single root: enrol again")
    return roots[0].fingerprint(hashes.SHA256()).hex()
