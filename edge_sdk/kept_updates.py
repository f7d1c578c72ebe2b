"""A trained update whose round was over before it could leave: kept for the next offer that takes it (SPEC 7.6.1).

One file a task, readable by its owner alone: what it holds is neither clipped nor masked, and noised only where noise
is local. It leaves once at most, so it is deleted before it is released. Forgets what no later offer could take: an
update of a model that is no longer listed, under other terms, from examples that were erased since, or older than
a week.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from edge_sdk.kept_files import KeptFiles
from edge_sdk.protocol.messages import Offer, PrivacyTerms

FOLDER: Final = "kept"
KEPT_S: Final = 7 * 86_400  # after it no longest round waits: what was trained then is trained anew
log = logging.getLogger("edge_sdk")


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An update, float32 little-endian, and all that decides who may have it."""

    model: bytes
    graph_digest: bytes
    privacy: PrivacyTerms
    consent: int
    erasures: int
    trained_at: int  # seconds since 1970, by the offer that it was trained for
    update: bytes

    def __repr__(self) -> str:
        return "_Kept(...)"


class KeptUpdates:
    """The kept updates of one home directory. Any thread, one at a time for each task."""

    def __init__(self, home: Path) -> None:
        self._files = KeptFiles(home / FOLDER, ".update")

    def keep(self, offer: Offer, update: npt.NDArray[np.float32], erasures: int) -> None:
        """Keep what was trained on the first model of an offer. Raises OSError where the disk is full."""
        kept = _Kept(
            offer.models[0], offer.graph_digest, offer.privacy, offer.consent, erasures, offer.issued_at,
            update.astype("<f4").tobytes(),
        )  # fmt: skip
        self._files.write(offer.task, msgspec.msgpack.encode(kept))

    def find(self, offer: Offer, erasures: int) -> npt.NDArray[np.float32] | None:
        """An update that this offer takes, float32 [offer.length], scaled by its staleness; None where there is none.

        An update of the k-th listed model, from 0, counts 1 / sqrt(1 + k) (FedBuff, Nguyen et al. 2022, section 5).
        """
        kept = self._read(offer.task)
        if kept is None:
            return None
        same = (kept.graph_digest, kept.privacy, kept.erasures) == (offer.graph_digest, offer.privacy, erasures)
        fits = len(kept.update) == 4 * offer.length and kept.consent >= offer.consent and kept.model in offer.models
        if not (same and fits) or _is_old(kept, offer.issued_at):
            self.forget(offer.task)
            return None
        stale = offer.models.index(kept.model)
        return (np.frombuffer(kept.update, "<f4") / np.float32(math.sqrt(1 + stale))).astype(np.float32)

    def forget(self, task: str) -> None:
        """Delete what is kept for a task, and see the deletion through to the disk."""
        self._files.forget(task)

    def forget_all(self) -> None:
        """Delete what is kept for any task: the device's owner said no."""
        self._files.forget_all()

    def sweep(self, now: int) -> None:
        """Delete what is too old to leave at `now`, seconds since 1970: its task may have ended, and nobody ask."""
        for task in self._files.tasks():
            kept = self._read(task)
            if kept is not None and _is_old(kept, now):
                self.forget(task)
        self._files.forget_half_written()

    def _read(self, task: str) -> _Kept | None:
        try:
            return msgspec.msgpack.decode(self._files.read(task), type=_Kept)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            log.warning("the kept update of %s cannot be read, it is forgotten: %s", task, error)
            self.forget(task)
            return None


def _is_old(kept: _Kept, now: int) -> bool:
    return now - kept.trained_at > KEPT_S
