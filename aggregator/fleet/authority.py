"""The fleet's own certificate authority. Signs only names of this fleet, and only keys it knows to be sound.

    offline/root.key   encrypted, ten years; needed only to make another issuing key: move it off this machine
    issuing.key        online, two years, constrained to `fleet://<fleet>/`; signs devices, the broker, the aggregator
    roster.key         Ed25519; signs rosters
    sign.key           Ed25519; signs the aggregator's messages
    ca.pem crl.pem     what the broker reads, with broker.* and aggregator-1.*

Whoever holds `roster.key` decides who is a device: where secure aggregation must hold against the aggregator's
operator, somebody else runs this directory and the aggregator gets only its own two keys.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aggregator.errors import AggregatorError
from aggregator.fleet.files import private_directory, read_private, write_private
from edge_sdk.protocol import topics
from edge_sdk.protocol.enrolment import TrustBundle

DAY_S: Final = 86_400
BACKDATE_S: Final = 3600  # a device whose clock is slow must not find its own certificate in the future
ROOT_DAYS: Final = 3652
ISSUING_DAYS: Final = 730
SERVICE_DAYS: Final = 90
# Revocation acts through the registry, at once; a short life would only help with renewal over the wire, to come.
DEVICE_DAYS: Final = 397
CRL_DAYS: Final = 7
AGGREGATOR: Final = "aggregator-1"
NAME_HINT: Final = "use 1 to 48 of a-z, 0-9 and '-', no '-' at an end"

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class AuthorityRefused(AggregatorError):
    """The authority will not sign this, or cannot be opened."""


class Issued(NamedTuple):
    """A new device certificate. `chain_pem` is the leaf followed by the issuing certificate."""

    device: str
    chain_pem: str
    serial: str
    not_after: int


def _instant(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(seconds), dt.UTC)


def _key_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _name(fleet: str, common_name: str) -> x509.Name:
    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, fleet)
    return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: PublicKey, now: float, days: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_instant(now - BACKDATE_S))
        .not_valid_after(_instant(now + days * DAY_S))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_certificate(
    fleet: str,
    title: str,
    key: ec.EllipticCurvePrivateKey,
    parent: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
    now: float,
) -> x509.Certificate:
    """The root (no parent) or the issuing certificate, which may name only `fleet://<fleet>/…`."""
    subject, signer = _name(fleet, f"{fleet} {title}"), parent[1] if parent else key
    issuer, days = (parent[0].subject, ISSUING_DAYS) if parent else (subject, ROOT_DAYS)
    builder = _builder(subject, issuer, key.public_key(), now, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0 if parent else 1), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = builder.add_extension(identifier, critical=False)
    if parent:
        # A URI with a host, not a URN: it is the one form of name that OpenSSL and Go (the NATS server) both constrain.
        within = x509.NameConstraints([x509.UniformResourceIdentifier(fleet)], None)
        builder = builder.add_extension(within, critical=True)
    return builder.sign(signer, hashes.SHA256())


def create_authority(
    directory: Path, passphrase: bytes, *, fleet: str, now: float, hosts: Sequence[str] = ()
) -> Authority:
    """Make a new authority in an empty `directory`. `hosts` are further names or addresses of the broker.

    Raises AuthorityRefused for a short passphrase, a bad fleet name or a directory that already holds one.
    """
    if not topics.is_name(fleet):
        raise AuthorityRefused(f"{fleet!r} is not a fleet's name", NAME_HINT, reason="name")
    if len(passphrase) < 8:
        raise AuthorityRefused("the root passphrase is too short", "give at least 8 bytes", reason="passphrase")
    if (directory / "issuing.key").exists():
        raise AuthorityRefused(
            f"{directory} already holds an authority", "open it, or choose another directory", reason="exists"
        )
    offline = private_directory(private_directory(directory) / "offline")
    root_key, issuing_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _authority_certificate(fleet, "root", root_key, None, now)
    issuing = _authority_certificate(fleet, "issuing", issuing_key, (root, root_key), now)
    locked = serialization.BestAvailableEncryption(passphrase)
    write_private(offline / "root.key", root_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    write_private(directory / "hosts", "\n".join(hosts).encode())
    write_private(directory / "ca.pem", issuing.public_bytes(Encoding.PEM) + root.public_bytes(Encoding.PEM))
    for name in ("roster.key", "sign.key"):
        write_private(directory / name, _key_pem(ed25519.Ed25519PrivateKey.generate()))
    write_private(directory / "issuing.key", _key_pem(issuing_key))  # last: its presence says the rest is whole
    authority = open_authority(directory, now=now)
    authority.write_crl([], now=now)
    return authority


def open_authority(directory: Path, *, now: float) -> Authority:
    """Open an authority and renew the broker's and the aggregator's certificates where a third of life is left.

    Raises AuthorityRefused where there is none, LooseFile where a key can be read by others.
    """
    try:
        key = serialization.load_pem_private_key(read_private(directory / "issuing.key"), None)
        issuing, root = x509.load_pem_x509_certificates((directory / "ca.pem").read_bytes())
        roster, sign = (
            serialization.load_pem_private_key(read_private(directory / name), None)
            for name in ("roster.key", "sign.key")
        )
    except (FileNotFoundError, ValueError) as error:
        lost = f"{error.filename} is missing" if isinstance(error, FileNotFoundError) else str(error)
        hint = "restore the home from a copy; `aggregator init` makes a new fleet in another directory"
        raise AuthorityRefused(f"{directory} holds no whole authority: {lost}", hint, reason="missing") from error
    if not (
        isinstance(key, ec.EllipticCurvePrivateKey)
        and isinstance(roster, ed25519.Ed25519PrivateKey)
        and isinstance(sign, ed25519.Ed25519PrivateKey)
    ):
        raise AuthorityRefused(f"a key in {directory} has the wrong type", "restore it from a copy", reason="key-type")
    authority = Authority(directory, key, (issuing, root), roster_key=roster, sign_key=sign)
    authority.renew_services(now=now)
    return authority


class Authority:
    """An opened authority. Its private keys never leave it; it hides them when printed."""

    def __init__(
        self,
        directory: Path,
        key: ec.EllipticCurvePrivateKey,
        chain: tuple[x509.Certificate, x509.Certificate],
        *,
        roster_key: ed25519.Ed25519PrivateKey,
        sign_key: ed25519.Ed25519PrivateKey,
    ) -> None:
        issuing, root = chain
        self.directory = directory
        self.roster_key = roster_key
        self.sign_key = sign_key
        self.ca_pem = (issuing.public_bytes(Encoding.PEM) + root.public_bytes(Encoding.PEM)).decode()
        self.fingerprint = root.fingerprint(hashes.SHA256()).hex()
        self.fleet = str(issuing.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)
        self._key = key
        self._issuing = issuing

    def __repr__(self) -> str:
        return f"Authority({self.fleet!r}, keys=...)"

    def bundle(self, *, broker_host: str, broker_port: int, tuf_root: str) -> TrustBundle:
        """What a device is told at enrolment to trust."""
        return TrustBundle(
            fleet=self.fleet,
            aggregator_key=self.sign_key.public_key().public_bytes_raw(),
            authority_key=self.roster_key.public_key().public_bytes_raw(),
            ca_pem=self.ca_pem,
            broker_host=broker_host,
            broker_port=broker_port,
            tuf_root=tuf_root,
        )

    def issue(self, csr_pem: bytes, *, now: float, days: int = DEVICE_DAYS) -> Issued:
        """Sign a device's request. Only the name and the key are taken from it; every extension is ours.

        Raises AuthorityRefused: "csr", "csr-signature", "name", "reserved-name", "key-type".
        """
        device, key = _read_request(csr_pem)
        uri = x509.UniformResourceIdentifier(topics.device_uri(self.fleet, device))
        leaf = self._leaf(device, key, [uri], ExtendedKeyUsageOID.CLIENT_AUTH, now=now, days=days)
        return Issued(device, self._chain(leaf), f"{leaf.serial_number:x}", int(now) + days * DAY_S)

    def write_crl(self, revoked: Iterable[tuple[str, int]], *, now: float) -> Path:
        """Write crl.pem, good for 7 days, from (serial hex, revoked at). An old one shuts every device out: rewrite."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._issuing.subject)
            .last_update(_instant(now - BACKDATE_S))
            .next_update(_instant(now + CRL_DAYS * DAY_S))
            .add_extension(x509.CRLNumber(int(now * 1000)), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        for serial, at in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(_instant(at))
            builder = builder.add_revoked_certificate(entry.build())
        path = self.directory / "crl.pem"
        write_private(path, builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM))
        return path

    def renew_services(self, *, now: float) -> bool:
        """Give the broker and the aggregator new keys and certificates where none or under a third of life is left.

        True where anything changed: reload the broker. Call it daily, as `write_crl`.
        """
        hosts = (self.directory / "hosts").read_text().split()
        names = [_host_name(host) for host in dict.fromkeys(["localhost", "127.0.0.1", *hosts])]
        changed = self._renew("broker", names, ExtendedKeyUsageOID.SERVER_AUTH, now)
        uri = x509.UniformResourceIdentifier(topics.aggregator_uri(self.fleet, AGGREGATOR))
        return self._renew(AGGREGATOR, [uri], ExtendedKeyUsageOID.CLIENT_AUTH, now) or changed

    def _renew(self, name: str, san: Sequence[x509.GeneralName], use: x509.ObjectIdentifier, now: float) -> bool:
        certificate, key_file = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        if certificate.exists() and key_file.exists():
            current = x509.load_pem_x509_certificate(certificate.read_bytes())
            if current.not_valid_after_utc > _instant(now + SERVICE_DAYS * DAY_S / 3):
                return False
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self._leaf(name, key.public_key(), san, use, now=now, days=SERVICE_DAYS)
        # The certificate goes first: an old key beside it fails loudly and is renewed at the next start.
        certificate.unlink(missing_ok=True)
        write_private(key_file, _key_pem(key))
        write_private(certificate, self._chain(leaf).encode())
        return True

    def _leaf(
        self,
        name: str,
        key: PublicKey,
        san: Sequence[x509.GeneralName],
        use: x509.ObjectIdentifier,
        *,
        now: float,
        days: int,
    ) -> x509.Certificate:
        builder = _builder(_name(self.fleet, name), self._issuing.subject, key, now, days)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.SubjectAlternativeName(san), critical=False)
            .add_extension(identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _chain(self, leaf: x509.Certificate) -> str:
        return (leaf.public_bytes(Encoding.PEM) + self._issuing.public_bytes(Encoding.PEM)).decode()


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _read_request(csr_pem: bytes) -> tuple[str, PublicKey]:
    """The name and the key of a request whose own signature holds."""
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        key, names = csr.public_key(), csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        valid = csr.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise AuthorityRefused(f"the certificate request does not parse: {error}", reason="csr") from error
    if not valid:
        raise AuthorityRefused("the certificate request is not signed by its own key", reason="csr-signature")
    device = str(names[0].value) if len(names) == 1 else ""
    if not topics.is_name(device):
        raise AuthorityRefused(f"{device!r} is not a device's name", NAME_HINT, reason="name")
    if not topics.is_device_name(device):
        raise AuthorityRefused(f"the name {device!r} is reserved", "choose another", reason="reserved-name")
    if isinstance(key, ed25519.Ed25519PublicKey):
        return device, key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return device, key
    raise AuthorityRefused("the key is neither P-256 nor Ed25519", "make new device keys", reason="key-type")
