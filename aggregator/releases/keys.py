"""Signing keys of the release repository, as PEM files of mode 0600.

Offline keys (three for root, one for targets) are encrypted under a passphrase and belong on a medium that the
aggregator cannot read. Online keys (rounds, snapshot, timestamp) lie beside the repository.
An empty passphrase is refused, and so is overwriting a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined] # re-exported without __all__

from .durable import write_durably
from .errors import ReleaseError, ReleaseRefused, WrongPassphrase

ROOT_NAMES = ("root-1", "root-2", "root-3")
ROOT_THRESHOLD = 2
TARGETS_NAME = "targets"
ONLINE_NAMES = ("rounds", "snapshot", "timestamp")


@dataclass(frozen=True, repr=False)
class OnlineKeys:
    """The keys a running aggregator holds. Stolen, they ship weights but never a new graph."""

    rounds: CryptoSigner
    snapshot: CryptoSigner
    timestamp: CryptoSigner

    def __repr__(self) -> str:
        return "OnlineKeys(...)"


def ensure_key(directory: Path, name: str, passphrase: bytes | None) -> CryptoSigner:
    """Open the key of this name, or make it where it is missing, so that an interrupted start can be repeated."""
    if not (directory / f"{name}.pem").exists():
        _create_key(directory, name, passphrase)
    return open_key(directory, name, passphrase)


def open_key(directory: Path, name: str, passphrase: bytes | None) -> CryptoSigner:
    """Open one key file. Raises ReleaseError where it is absent, WrongPassphrase where it does not open."""
    path = directory / f"{name}.pem"
    try:
        private = load_pem_private_key(path.read_bytes(), password=passphrase)
    except FileNotFoundError:
        raise ReleaseError(f"no {name}.pem in {directory}: mount the medium that holds it", reason="no-key") from None
    except (ValueError, TypeError):
        raise WrongPassphrase(f"{name}.pem does not open: check the passphrase", reason="wrong-passphrase") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise ReleaseError(f"{name}.pem is not an Ed25519 key: restore it from its backup", reason="wrong-key")
    return CryptoSigner(private)


def open_targets_key(offline_dir: Path, passphrase: bytes) -> CryptoSigner:
    """The offline key that locks graphs."""
    return open_key(offline_dir, TARGETS_NAME, passphrase)


def open_root_keys(offline_dir: Path, passphrase: bytes) -> list[CryptoSigner]:
    """Whichever root keys are on this medium; two of three sign a new root."""
    present = [name for name in ROOT_NAMES if (offline_dir / f"{name}.pem").exists()]
    return [open_key(offline_dir, name, passphrase) for name in present]


def open_online_keys(directory: Path) -> OnlineKeys:
    """The three online keys of a repository."""
    return OnlineKeys(*(open_key(directory, name, None) for name in ONLINE_NAMES))


def _create_key(directory: Path, name: str, passphrase: bytes | None) -> None:
    if passphrase is not None and not passphrase:
        raise ReleaseRefused("the passphrase is empty: choose one for the offline keys", reason="empty-passphrase")
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    write_durably(directory / f"{name}.pem", pem, mode=0o600)
