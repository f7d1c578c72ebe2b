"""Two slots and a bundled model for one task, and a journal that survives a crash at any instant.

A new model is staged beside the active one, tried, then committed or rolled back; the active model's file is never
written. A model that crashed twice while staged or on trial is rolled back at the next start and quarantined by hash.
It refuses a step out of order, and serves no file whose hash is not the journal's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import msgspec

from .durable import move_durably, removed_on_failure, write_durably
from .errors import WrongPhase

CRASHES_ALLOWED = 1
TIMEOUTS_ALLOWED = 2  # a loaded machine times out too: only the third is the model's own fault
QUARANTINED_KEPT = 64
JOURNAL = "journal.json"
CARD = ".card.json"

Slot = Literal["a", "b"]


class Phase(StrEnum):
    """Where a new model is on its way."""

    IDLE = "idle"
    STAGED = "staged"
    TRIAL = "trial"


TRANSITIONS = {
    (Phase.IDLE, Phase.STAGED),  # downloaded, verified, in the free slot
    (Phase.STAGED, Phase.TRIAL),  # probed
    (Phase.STAGED, Phase.IDLE),  # refused by the probe, or crashed twice
    (Phase.TRIAL, Phase.IDLE),  # committed, rolled back, or crashed twice
}


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model in a slot; `sha256` is hex."""

    slot: Slot
    version: int
    sha256: str


class Journal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that must survive. `running` is true while a start that serves a candidate has not ended cleanly."""

    phase: Phase = Phase.IDLE
    active: Entry | None = None
    previous: Entry | None = None
    candidate: Entry | None = None
    running: bool = False
    crashes: int = 0
    quarantine: dict[str, str] = {}  # sha256 -> reason, oldest first; msgspec copies an empty default
    outcome: str = "new"
    timeouts: int = 0  # probes of this candidate that ran into the wall clock


@dataclass(frozen=True)
class Model:
    """A model file that may be loaded: its path, release version (the bundled model's may be 0) and hex SHA-256."""

    path: Path
    version: int
    sha256: str


def card_name(sha256: str) -> str:
    """The file name of the card of a model with this hash (hex)."""
    return f"{sha256}{CARD}"


class Slots:
    """Opened at start of the process, closed at its end; one owner a directory."""

    def __init__(self, directory: Path, bundled: Path | None = None, bundled_version: int = 0) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._bundled = Model(bundled, bundled_version, _digest(bundled)) if bundled else None
        self._journal = self._recovered(self._load())

    @property
    def phase(self) -> Phase:
        """Where the new model is."""
        return self._journal.phase

    @property
    def outcome(self) -> str:
        """How the last change ended, as a stable word: committed, rolled-back, refused, crashed, damaged, ..."""
        return self._journal.outcome

    @property
    def quarantine(self) -> dict[str, str]:
        """Hashes (hex) that will not be tried again, each with its reason."""
        return dict(self._journal.quarantine)

    def active(self) -> Model | None:
        """The committed model or the bundled one, whichever is newer, or None."""
        committed, bundled = self._model(self._journal.active), self._bundled
        newer = committed is None or (bundled is not None and bundled.version > committed.version)
        return bundled if newer else committed

    def candidate(self) -> Model | None:
        """The staged or tried model, if there is one."""
        return self._model(self._journal.candidate)

    def serving(self) -> Model | None:
        """The model to predict with now: the one on trial, else the active one."""
        return self.candidate() if self.phase is Phase.TRIAL else self.active()

    def incoming(self) -> Path:
        """Where to put a download: on the slots' own file system, beside them."""
        return self._directory / "incoming.onnx"

    def card_file(self, sha256: str) -> Path:
        """Where the model card of these bytes lies, beside the slots."""
        return self._directory / card_name(sha256)

    def _forget_cards(self) -> None:
        """Only cards of models that the journal still names are kept."""
        entries = (self._journal.active, self._journal.previous, self._journal.candidate)
        kept = {card_name(entry.sha256) for entry in entries if entry is not None}
        for file in self._directory.glob(f"*{CARD}"):
            if file.name not in kept:
                file.unlink(missing_ok=True)

    def stage(self, version: int, sha256: str) -> None:
        """Take the flushed file at `incoming()` into the free slot. Raises WrongPhase, OSError."""
        self._expect(Phase.STAGED)
        slot: Slot = "b" if self._journal.active and self._journal.active.slot == "a" else "a"
        entry = Entry(slot, version, sha256)
        with removed_on_failure(self.incoming()):
            self._save(previous=None, outcome="staging")  # the free slot may hold the previous model: forget it first
            move_durably(self.incoming(), self._file(slot))
            self._save(phase=Phase.STAGED, candidate=entry, running=True, crashes=0, timeouts=0, outcome="staged")

    def begin_trial(self) -> None:
        """The probe passed: serve the candidate, keep the active model."""
        self._expect(Phase.TRIAL)
        self._save(phase=Phase.TRIAL, running=True, outcome="trial")

    def commit(self) -> None:
        """The trial went well: the candidate becomes active, the active one becomes previous."""
        if self.phase is not Phase.TRIAL:
            raise WrongPhase(f"nothing is on trial (phase {self.phase}): call begin_trial first", reason="phase")
        active = self._journal.active
        self._end(active=self._journal.candidate, previous=active, outcome="committed")

    def roll_back(self, reason: str) -> None:
        """Drop the candidate, staged or on trial, and never try these bytes again. The active model serves on."""
        self._expect(Phase.IDLE)
        candidate = self._journal.candidate
        assert candidate is not None
        self._end(outcome="rolled-back", quarantine=self._quarantined(candidate.sha256, reason))

    def timed_out(self) -> bool:
        """Count a probe that gave no answer in time. True: the candidate stays staged, to be probed again later."""
        timeouts = self._journal.timeouts + 1
        if timeouts > TIMEOUTS_ALLOWED:
            self.roll_back("timeout")
            return False
        self._save(timeouts=timeouts, running=False, outcome="probe-timeout")
        return True

    def revert(self, reason: str) -> None:
        """Go back from the committed model to the one before it (the other slot, else the bundled model)."""
        bad = self._journal.active
        if self.phase is not Phase.IDLE or bad is None:
            raise WrongPhase("only a committed model can be reverted", reason="phase")
        self._save(
            active=self._journal.previous,
            previous=None,
            quarantine=self._quarantined(bad.sha256, reason),
            outcome="reverted",
        )

    def refuse(self, sha256: str, reason: str) -> None:
        """Quarantine bytes that never reached a slot."""
        self._save(quarantine=self._quarantined(sha256, reason), outcome="refused")

    def close(self) -> None:
        """The process ends as it should, or nothing of the candidate runs now: it is not blamed for the end."""
        if self._journal.running:
            self._save(running=False)

    # -- the journal

    def _load(self) -> Journal:
        try:
            return msgspec.json.decode((self._directory / JOURNAL).read_bytes(), type=Journal)
        except FileNotFoundError:
            return Journal()
        except msgspec.MsgspecError:
            return Journal(outcome="journal-unreadable")

    def _recovered(self, journal: Journal) -> Journal:
        """What the last process left: forget files that are not what the journal says, count an unclean end."""
        self._journal = journal
        self.incoming().unlink(missing_ok=True)
        candidate = self._sound(journal.candidate)
        if (candidate is None) != (journal.phase is Phase.IDLE):
            self._end(outcome="damaged")
        active, previous = self._sound(journal.active), self._sound(journal.previous)
        if (active, previous) != (journal.active, journal.previous):
            outcome = journal.outcome if active == journal.active else "damaged"
            self._save(active=active or previous, previous=previous if active else None, outcome=outcome)
        if self.phase is not Phase.IDLE:
            self._count_start()
        return self._journal

    def _sound(self, entry: Entry | None) -> Entry | None:
        return entry if entry is not None and _digest(self._file(entry.slot)) == entry.sha256 else None

    def _count_start(self) -> None:
        crashes = self._journal.crashes + self._journal.running
        if crashes > CRASHES_ALLOWED:
            self.roll_back("crashed")
            self._save(outcome="crashed")
        else:
            self._save(crashes=crashes, running=True)

    def _expect(self, to: Phase) -> None:
        if (self.phase, to) not in TRANSITIONS:
            raise WrongPhase(f"a model cannot go from {self.phase} to {to}", reason="phase")

    def _end(self, **changes: object) -> None:
        self._save(phase=Phase.IDLE, candidate=None, running=False, crashes=0, timeouts=0, **changes)
        self._forget_cards()

    def _save(self, **changes: object) -> None:
        journal = msgspec.structs.replace(self._journal, **changes)
        write_durably(self._directory / JOURNAL, msgspec.json.encode(journal))
        self._journal = journal

    def _quarantined(self, sha256: str, reason: str) -> dict[str, str]:
        kept = list({**self._journal.quarantine, sha256: reason}.items())
        return dict(kept[-QUARANTINED_KEPT:])

    def _file(self, slot: Slot) -> Path:
        return self._directory / f"{slot}.onnx"

    def _model(self, entry: Entry | None) -> Model | None:
        return Model(self._file(entry.slot), entry.version, entry.sha256) if entry else None


def _digest(file: Path) -> str:
    """Hex SHA-256 of a file, empty where it cannot be read."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return ""
