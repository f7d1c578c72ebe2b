"""The keys of the example store: one a subject, wrapped under the device's own. Does no database work, reads no clock.

Whoever holds a copy of the examples without the wrapped key of a subject cannot read that subject's rows, whatever
else he holds. Refuses a key file that is not whole.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edge_sdk.identity.keys import write_private

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
NOBODY: Final = b""  # the subject of an example that has none
SET_ASIDE: Final = ".unreadable"


class ExamplesUnreadable(Exception):
    """The examples recorded so far are lost to this device; the message names the remedy. It goes on without them."""


class ExampleKeys:
    """Wraps, opens and names by the device's key file, which is made on first use with mode 0600."""

    def __init__(self, key_file: Path, entropy: Callable[[int], bytes]) -> None:
        """`entropy(n)` gives n fresh random bytes. Raises OSError where the key cannot be written whole."""
        if not key_file.exists():
            write_private(key_file, entropy(KEY_BYTES))
        key = key_file.read_bytes()
        self._entropy, self._device = entropy, AESGCM(key)
        self._naming = hashlib.sha256(b"chorale/subject/1" + key).digest()

    def __repr__(self) -> str:
        return "ExampleKeys(...)"

    def name(self, subject: str | None) -> bytes:
        """The keyed hash that stands for a subject, 32 bytes; empty for nobody."""
        return NOBODY if subject is None else hmac.digest(self._naming, str(subject).encode(), "sha256")

    def fresh(self, owner: bytes) -> tuple[bytes, bytes]:
        """A new key and its wrapping, for an owner as `owner_of` names it."""
        key = self._entropy(KEY_BYTES)
        return key, self._seal(self._device, key, b"chorale/subject-key/1" + owner)

    def unwrap(self, owner: bytes, wrapped: bytes) -> bytes | None:
        """The key of an owner; None where this device's key did not wrap it."""
        return _opened(self._device, wrapped, b"chorale/subject-key/1" + owner)

    def seal(self, key: bytes, plain: bytes, task: str, subject: bytes) -> bytes:
        """An example under its owner's key, bound to task and subject."""
        return self._seal(AESGCM(key), plain, _bound(task, subject))

    def open(self, key: bytes, sealed: bytes, task: str, subject: bytes) -> bytes | None:
        """The example; None where the key does not open it."""
        return _opened(AESGCM(key), sealed, _bound(task, subject))

    def open_first_form(self, sealed: bytes, task: str) -> bytes | None:
        """A row of the first form of the file, sealed by the device's key itself."""
        return _opened(self._device, sealed, task.encode())

    def _seal(self, aead: AESGCM, plain: bytes, bound: bytes) -> bytes:
        nonce = self._entropy(NONCE_BYTES)
        return nonce + aead.encrypt(nonce, plain, bound)


def owner_of(task: str, subject: bytes) -> bytes:
    """Whose key seals an example: its subject's ("s" and its name), or the task's ("t") where there is none."""
    return b"s" + subject if subject else b"t" + task.encode()


def key_is_sound(key_file: Path) -> bool:
    """True for a whole key, and for none at all: one is made on first use."""
    return not key_file.exists() or key_file.stat().st_size == KEY_BYTES


def set_aside(path: Path, key_file: Path, what: str) -> ExamplesUnreadable:
    """Rename the examples and their key. The log goes first: left behind, it would be replayed into the new file."""
    aside = path.with_name(path.name + SET_ASIDE)
    for end in ("-wal", "-shm", ""):
        old, new = path.with_name(path.name + end), aside.with_name(aside.name + end)
        new.unlink(missing_ok=True)
        if old.exists():
            old.replace(new)
    key_file.replace(key_file.with_name(key_file.name + SET_ASIDE))
    return ExamplesUnreadable(
        f"{key_file} {what}, so the examples recorded so far cannot be read; they were set aside as {aside.name}:"
        f" put the right key and that file back from a copy, or remove {aside}"
    )


def _bound(task: str, subject: bytes) -> bytes:
    return b"chorale/example/2\0" + task.encode() + b"\0" + subject


def _opened(aead: AESGCM, sealed: bytes, bound: bytes) -> bytes | None:
    try:
        return aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound)
    except (InvalidTag, ValueError):
        return None
