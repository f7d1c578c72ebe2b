"""The device's own keys, in files that only their owner can read. Refuses files that others can read.

    tls.key      P-256: mutual TLS to the broker; renewed with the certificate
    sign.key     Ed25519: signs every message of the device
    epoch.key    X25519: opens what other devices seal to this one as a committee member; rotates (epoch_keys)

P-256 for TLS because every broker takes it; Ed25519 works with mosquitto and NATS but not with AWS IoT Core.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from edge_sdk.protocol import topics

TLS_KEY: Final = "tls.key"
SIGN_KEY: Final = "sign.key"
EPOCH_KEY: Final = "epoch.key"
CERTIFICATE: Final = "device.crt"

PrivateKey = EllipticCurvePrivateKey | Ed25519PrivateKey | X25519PrivateKey


class IdentityError(Exception):
    """The device's identity is missing, damaged or lies open. The message names the remedy."""


class DeviceKeys:
    """The three keys of a device. Hides them when printed."""

    def __init__(self, tls: EllipticCurvePrivateKey, sign: Ed25519PrivateKey, epoch: X25519PrivateKey) -> None:
        self.tls = tls
        self.signing = sign
        self.epoch = epoch

    def __repr__(self) -> str:
        return "DeviceKeys(...)"

    @classmethod
    def generate(cls) -> DeviceKeys:
        """Fresh keys from the operating system."""
        return cls(generate_private_key(SECP256R1()), Ed25519PrivateKey.generate(), X25519PrivateKey.generate())

    def sign(self, data: bytes) -> bytes:
        """Ed25519 signature (64 bytes)."""
        return self.signing.sign(data)

    @property
    def sign_public(self) -> bytes:
        return self.signing.public_key().public_bytes_raw()

    @property
    def epoch_public(self) -> bytes:
        return self.epoch.public_key().public_bytes_raw()

    def request(self, fleet: str, device: str) -> bytes:
        """Certificate request (PEM) for the TLS key: CN=device and the fleet's URI."""
        uri = x509.UniformResourceIdentifier(topics.device_uri(fleet, device))
        return (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)]))
            .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
            .sign(self.tls, hashes.SHA256())
            .public_bytes(Encoding.PEM)
        )

    def save(self, directory: Path) -> None:
        """Write the three files, each atomically with mode 0600, into a directory of mode 0700."""
        private_directory(directory)
        for name, key in ((TLS_KEY, self.tls), (SIGN_KEY, self.signing), (EPOCH_KEY, self.epoch)):
            write_private(directory / name, _pem(key))

    @classmethod
    def load(cls, directory: Path) -> DeviceKeys:
        """Read what `save` wrote. Raises IdentityError."""
        tls, sign, epoch = (_load(directory / name) for name in (TLS_KEY, SIGN_KEY, EPOCH_KEY))
        if not (
            isinstance(tls, EllipticCurvePrivateKey)
            and isinstance(sign, Ed25519PrivateKey)
            and isinstance(epoch, X25519PrivateKey)
        ):
            raise IdentityError(f"a key in {directory} has the wrong type: restore it from a copy or enrol again")
        return cls(tls, sign, epoch)


def load_epoch_key(path: Path) -> X25519PrivateKey:
    """Read one epoch key. Raises IdentityError."""
    key = _load(path)
    if not isinstance(key, X25519PrivateKey):
        raise IdentityError(f"{path} is not an epoch key: restore it from a copy or enrol again")
    return key


def save_epoch_key(path: Path, key: X25519PrivateKey) -> None:
    """Write one epoch key atomically with mode 0600."""
    write_private(path, _pem(key))


def _pem(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load(path: Path) -> object:
    try:
        return serialization.load_pem_private_key(read_private(path), None)
    except (ValueError, TypeError) as error:
        raise IdentityError(f"{path} does not hold a key ({error}): restore it from a copy or enrol again") from error


def private_directory(path: Path) -> Path:
    """Make `path` with mode 0700, or tighten it."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


def write_private(path: Path, data: bytes) -> None:
    """Write a file of mode 0600, whole or not at all: temporary file, fsync, rename, fsync of the directory."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames and deletions in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_private(path: Path) -> bytes:
    """Read a secret. Raises IdentityError where it is missing or where group or others may read it."""
    try:
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise IdentityError(f"{path} has mode {mode:04o}, so others can read it: run `chmod 600 {path}`")
        return path.read_bytes()
    except OSError as error:
        raise IdentityError(
            f"cannot read {path} ({error.strerror}): enrol this device with `edge-sdk enroll`"
        ) from error
