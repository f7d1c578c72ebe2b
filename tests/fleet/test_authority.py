"""The authority: what it signs, what it refuses, and that OpenSSL believes it."""

from __future__ import annotations

import datetime as dt
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from aggregator.fleet.authority import Authority, AuthorityRefused, create_authority, open_authority
from aggregator.fleet.files import LooseFile

NOW = 1_800_000_000.0
DAY = 86_400


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create_authority(
        tmp_path / "ca", b"correct horse", fleet="f0", now=NOW, hosts=["fl.example.org", "10.0.0.7"]
    )


def request(name: str, key: object | None = None) -> bytes:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, digest).public_bytes(Encoding.PEM)  # type: ignore[arg-type]


def first(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificates(pem.encode())[0]


def test_a_device_certificate_is_for_397_days_one_name_and_clients_only(authority: Authority) -> None:
    issued = authority.issue(request("kiosk-a"), now=NOW)
    leaf = first(issued.chain_pem)
    assert leaf.not_valid_before_utc == dt.datetime.fromtimestamp(NOW - 3600, dt.UTC)
    assert leaf.not_valid_after_utc == dt.datetime.fromtimestamp(NOW + 397 * DAY, dt.UTC)
    assert leaf.subject.rfc4514_string() == "CN=kiosk-a,O=f0"
    assert f"{leaf.serial_number:x}" == issued.serial
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [use.dotted_string for use in uses] == ["1.3.6.1.5.5.7.3.2"]
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.UniformResourceIdentifier) == ["fleet://f0/device/kiosk-a"]


def test_an_ed25519_key_is_signed_too(authority: Authority) -> None:
    assert authority.issue(request("kiosk-a", ed25519.Ed25519PrivateKey.generate()), now=NOW).device == "kiosk-a"


@pytest.mark.parametrize(
    ("csr", "reason"),
    [
        (b"", "csr"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "csr"),
        (request(""), "name"),
        (request("kiosk+a"), "name"),
        (request("Kiosk"), "name"),
        (request("a" * 49), "name"),
        (request("kiosk.a"), "name"),
        (request("aggregator-1"), "reserved-name"),
        (request("aggregator-9"), "reserved-name"),
        (request("broker"), "reserved-name"),
        (request("kiosk-a", rsa.generate_private_key(65537, 2048)), "key-type"),
        (request("kiosk-a", ec.generate_private_key(ec.SECP384R1())), "key-type"),
    ],
)
def test_a_bad_request_is_refused(authority: Authority, csr: bytes, reason: str) -> None:
    with pytest.raises(AuthorityRefused) as refused:
        authority.issue(csr, now=NOW)
    assert refused.value.reason == reason


def test_a_request_signed_by_another_key_is_refused(authority: Authority) -> None:
    der = bytearray(
        x509.load_pem_x509_csr(request("kiosk-a", ed25519.Ed25519PrivateKey.generate())).public_bytes(Encoding.DER)
    )
    der[-1] ^= 1
    broken = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)
    with pytest.raises(AuthorityRefused) as refused:
        authority.issue(broken, now=NOW)
    assert refused.value.reason == "csr-signature"


def test_extensions_asked_for_are_not_given(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kiosk-a")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    leaf = first(authority.issue(csr.public_bytes(Encoding.PEM), now=NOW).chain_pem)
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == []


def test_every_secret_is_private_and_the_root_key_is_encrypted(authority: Authority) -> None:
    home = authority.directory
    loose = [p for p in home.rglob("*") if p.is_file() and stat.S_IMODE(p.stat().st_mode) != 0o600]
    assert loose == []
    assert stat.S_IMODE(home.stat().st_mode) == stat.S_IMODE((home / "offline").stat().st_mode) == 0o700
    root = (home / "offline" / "root.key").read_bytes()
    assert b"ENCRYPTED" in root
    with pytest.raises(ValueError):
        serialization.load_pem_private_key(root, b"wrong horse")
    serialization.load_pem_private_key(root, b"correct horse")


def test_the_brokers_certificate_carries_its_names(authority: Authority) -> None:
    leaf = first((authority.directory / "broker.crt").read_text())
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["localhost", "fl.example.org"]
    assert [str(a) for a in san.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "10.0.0.7"]


def test_opening_again_gives_the_same_authority_and_renews_what_runs_out(authority: Authority) -> None:
    before = (authority.directory / "broker.crt").read_text()
    again = open_authority(authority.directory, now=NOW + 50 * DAY)
    assert again.fingerprint == authority.fingerprint
    assert (authority.directory / "broker.crt").read_text() == before
    open_authority(authority.directory, now=NOW + 61 * DAY)
    renewed = first((authority.directory / "broker.crt").read_text())
    assert renewed.not_valid_after_utc.timestamp() == NOW + (61 + 90) * DAY
    san = renewed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "fl.example.org" in san.get_values_for_type(x509.DNSName)


def test_it_is_not_made_twice_nor_badly(authority: Authority, tmp_path: Path) -> None:
    for arguments, reason in (
        ((authority.directory, b"correct horse", "f0"), "exists"),
        ((tmp_path / "x", b"short", "f0"), "passphrase"),
        ((tmp_path / "x", b"correct horse", "F 0"), "name"),
    ):
        directory, passphrase, fleet = arguments
        with pytest.raises(AuthorityRefused) as refused:
            create_authority(directory, passphrase, fleet=fleet, now=NOW)
        assert refused.value.reason == reason
        assert refused.value.hint
    with pytest.raises(AuthorityRefused, match="no whole authority"):
        open_authority(tmp_path / "nowhere", now=NOW)
    (authority.directory / "roster.key").chmod(0o644)
    with pytest.raises(LooseFile):
        open_authority(authority.directory, now=NOW)


def test_the_list_of_revoked_certificates_is_good_for_seven_days(authority: Authority) -> None:
    serial = authority.issue(request("kiosk-a"), now=NOW).serial
    crl = x509.load_pem_x509_crl(authority.write_crl([(serial, int(NOW))], now=NOW).read_bytes())
    assert crl.get_revoked_certificate_by_serial_number(int(serial, 16)) is not None
    assert crl.next_update_utc == dt.datetime.fromtimestamp(NOW + 7 * DAY, dt.UTC)
    issuing = x509.load_pem_x509_certificates(authority.ca_pem.encode())[0]
    assert crl.is_signature_valid(issuing.public_key())  # type: ignore[arg-type]
    empty = x509.load_pem_x509_crl(authority.write_crl([], now=NOW + 1).read_bytes())
    assert len(empty) == 0
    number = x509.CRLNumber
    later, earlier = (c.extensions.get_extension_for_class(number).value.crl_number for c in (empty, crl))
    assert later > earlier


def _verifies(home: Path, leaf: Path, purpose: str) -> subprocess.CompletedProcess[str]:
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-CAfile",
        str(home / "root.pem"),
        "-untrusted",
        str(home / "ca.pem"),
    ]
    command += ["-attime", str(int(NOW)), "-purpose", purpose, str(leaf)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")
def test_openssl_believes_it_strictly_and_holds_it_to_its_fleet(authority: Authority, tmp_path: Path) -> None:
    home = authority.directory
    root = x509.load_pem_x509_certificates(authority.ca_pem.encode())[1]
    (home / "root.pem").write_bytes(root.public_bytes(Encoding.PEM))
    leaf = tmp_path / "leaf.pem"
    leaf.write_text(authority.issue(request("kiosk-a"), now=NOW).chain_pem)
    assert _verifies(home, leaf, "sslclient").returncode == 0
    assert _verifies(home, leaf, "sslserver").returncode != 0
    assert _verifies(home, home / "broker.crt", "sslserver").returncode == 0
    # A stolen issuing key that names a device of another fleet convinces nobody.
    authority.fleet = "f1"
    leaf.write_text(authority.issue(request("kiosk-a"), now=NOW).chain_pem)
    outside = _verifies(home, leaf, "sslclient")
    assert outside.returncode != 0
    assert "permitted subtree violation" in outside.stderr
