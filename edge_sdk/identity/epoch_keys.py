"""A committee member's X25519 keys: older, current and next, one file each (SPEC 7.3.2). Refuses a fourth.

    epoch.key        current: the newest verified roster names it, or the enrolment did
    epoch-next.key   next: on the disk, and from then on told to the aggregator; no roster names it yet
    epoch-older.key  older: what was sealed to it may still have to be opened

Each change is atomic on the disk; a crash leaves the state before it or after it. Deleting is an unlink: flash memory
keeps blocks that were overwritten, so overwriting a file first would promise nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_sdk.identity.keys import (
    EPOCH_KEY,
    IdentityError,
    load_epoch_key,
    private_directory,
    save_epoch_key,
    sync_directory,
)

NEXT_KEY: Final = "epoch-next.key"
OLDER_KEY: Final = "epoch-older.key"
SECRET_BYTES: Final = 32


class Holder(Protocol):
    """Whoever was given the key at enrolment (`DeviceKeys`): follows to the current one, so that no copy stays."""

    epoch: X25519PrivateKey


class EpochKeys:
    """The files in `directory`. One thread changes them; `publics` and `find` are for any. Hides the keys."""

    def __init__(self, directory: Path, holder: Holder) -> None:
        """Read the files; `holder.epoch` is the current key where there is no file yet. Raises IdentityError."""
        self._directory, self._holder = directory, holder
        if (directory / EPOCH_KEY).exists():
            holder.epoch = load_epoch_key(directory / EPOCH_KEY)
        else:
            save_epoch_key(private_directory(directory) / EPOCH_KEY, holder.epoch)
        for unfinished in directory.glob(".epoch*.part"):
            unfinished.unlink()
        self._older, self._next = self._read(OLDER_KEY), self._read(NEXT_KEY)
        if self._older is not None and _public(self._older) == self.current:
            self.delete_older()  # the crash came in the middle of `promote`, which is done again
        self._index()

    def __repr__(self) -> str:
        return f"EpochKeys({len(self.publics)} keys)"

    @property
    def current(self) -> bytes:
        """Public key (32 bytes) that the newest verified roster names."""
        return _public(self._holder.epoch)

    @property
    def next(self) -> bytes | None:
        """Public key that is sent and not yet named, if there is one."""
        return None if self._next is None else _public(self._next)

    @property
    def older(self) -> bytes | None:
        """Public key of earlier rosters whose rounds may still be opened, if there is one."""
        return None if self._older is None else _public(self._older)

    @property
    def publics(self) -> tuple[bytes, ...]:
        """Every public key that this device holds the secret of."""
        return tuple(self._known)

    def find(self, public: bytes) -> X25519PrivateKey | None:
        """The secret of a public key; None where it was deleted or never made here."""
        return self._known.get(public)

    def make_next(self, entropy: Callable[[int], bytes]) -> bytes:
        """Make the next key and put it on the disk; its public key may be told from then on.

        Raises IdentityError while there is a next or an older one, OSError where it cannot be written.
        """
        if self._next is not None or self._older is not None:
            raise IdentityError("an epoch key is changing already: make another when the older one is deleted")
        key = X25519PrivateKey.from_private_bytes(entropy(SECRET_BYTES))
        save_epoch_key(self._directory / NEXT_KEY, key)
        self._next = key
        self._index()
        return _public(key)

    def promote(self) -> None:
        """A verified roster names the next key: it is the current one now, and the current one the older."""
        if self._next is None:
            raise IdentityError("there is no next epoch key: make one first")
        save_epoch_key(self._directory / OLDER_KEY, self._holder.epoch)
        (self._directory / NEXT_KEY).replace(self._directory / EPOCH_KEY)
        sync_directory(self._directory)
        self._older, self._holder.epoch, self._next = self._holder.epoch, self._next, None
        self._index()

    def delete_older(self) -> None:
        """Nothing that was sealed to the older key has to be opened any more."""
        (self._directory / OLDER_KEY).unlink(missing_ok=True)
        sync_directory(self._directory)
        self._older = None
        self._index()

    def _read(self, name: str) -> X25519PrivateKey | None:
        path = self._directory / name
        return load_epoch_key(path) if path.exists() else None

    def _index(self) -> None:
        # One assignment of a whole dictionary: the work thread never sees half a change.
        held = (self._holder.epoch, self._next, self._older)
        self._known = {_public(key): key for key in held if key is not None}


def _public(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()
