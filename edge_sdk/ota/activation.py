"""Brings a new model into service: verified, staged, probed, on trial, then committed or rolled back.

Every refusal leaves the active model serving. Bytes that were signed and yet failed are quarantined by hash, so they
are not fetched again; bytes that did not match their signed hash are not, since the broker may have spoiled them.
What a full disk or a busy machine interrupted is not the model's fault: the journal keeps it, the next update ends it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from .errors import ModelRefused, OtaError, UpdateUnavailable
from .probe import ProbeFailed, run_probe
from .rules import Candidate, ReleaseFeed
from .slots import Model, Phase, Slots

Probe = Callable[[Path], None]
Serve = Callable[[Model | None], None]


class Activation:
    """One task's updates. `serve(model)` puts a model into service, or takes it out for None.

    Where `serve` raises, the model served before must still be in service (as with `Models.load`).
    """

    def __init__(self, task: str, feed: ReleaseFeed, slots: Slots, serve: Serve, *, probe: Probe = run_probe) -> None:
        self._task = task
        self._feed = feed
        self._slots = slots
        self._serve = serve
        self._probe = probe

    def start(self) -> Model | None:
        """Serve what the journal says, and finish what a crash left staged. None where there is no model at all."""
        serving = False
        with contextlib.suppress(OtaError, OSError):  # what does not fit on the disk now is finished by `update`
            serving = self._serve_trial()
        if not serving:
            self._serve(self._slots.active())
        if self._slots.phase is Phase.STAGED:
            with contextlib.suppress(OtaError, OSError):
                self._probe_and_try()
        return self._slots.serving()

    def check(self, now: float) -> Candidate | None:
        """A release newer than the serving model and not in quarantine, or None. Raises as ReleaseFeed."""
        serving = self._slots.serving()
        above = serving.version if serving else 0
        return self._feed.check_for_update(self._task, above, now, self._slots.quarantine)

    def install(self, candidate: Candidate, now: float) -> Model:
        """Download, verify, stage, probe and put on trial. Commit or roll back afterwards.

        Raises OtaError and leaves the active model serving.
        """
        if self._slots.phase is not Phase.IDLE:
            raise UpdateUnavailable("another model is on trial: commit it or roll it back", reason="busy")
        try:
            card = self._slots.card_file(candidate.sha256)
            self._feed.download(candidate, self._slots.incoming(), now, card=card)
        except ModelRefused as error:
            self._slots.refuse(candidate.sha256, error.reason)
            raise
        self._slots.stage(candidate.version, candidate.sha256)
        self._probe_and_try()
        model = self._slots.serving()
        assert model is not None
        return model

    def commit(self) -> None:
        """The trial went well."""
        self._slots.commit()

    def roll_back(self, reason: str) -> None:
        """The trial went badly: the active model serves again, these bytes are not tried again."""
        try:
            self._slots.roll_back(reason)
        finally:  # on a full disk the journal waits, the app does not
            self._serve(self._slots.active())

    def update(self, now: float) -> Model | None:
        """Check, install and commit in one step, for devices without a trial period. None where nothing is newer.

        First ends what an earlier update could not. Raises OtaError and leaves the active model serving.
        """
        finished = self._finish()
        try:
            candidate = self.check(now)
        except UpdateUnavailable:
            if finished is None:
                raise
            return finished
        if candidate is None:
            return finished
        self.install(candidate, now)
        self.commit()
        return self._slots.active()

    def _finish(self) -> Model | None:
        """Bring a model that is staged or on trial into service for good; None where there is none such."""
        if self._slots.phase is Phase.IDLE:
            return None
        if self._slots.phase is Phase.STAGED:
            self._probe_and_try()
        elif not self._serve_trial():
            return None
        self.commit()
        return self._slots.active()

    def _probe_and_try(self) -> None:
        """Probe what is staged and serve it on trial. Raises ModelRefused, or UpdateUnavailable: it stays staged."""
        staged = self._slots.candidate()
        assert staged is not None
        try:
            self._probe(staged.path)
        except ProbeFailed as failure:
            if failure.reason == "timeout" and self._slots.timed_out():
                raise UpdateUnavailable(f"{failure}; it is probed again", reason="probe-timeout") from failure
            if failure.reason != "timeout":
                self._slots.roll_back(failure.reason)
            raise ModelRefused(str(failure), reason=f"probe-{failure.reason}") from failure
        except OSError as error:
            self._slots.close()  # nothing of it runs: should the machine go down now, the model is not blamed
            raise UpdateUnavailable(f"the probe could not be started: {error}", reason="probe-not-started") from error
        self._slots.begin_trial()
        if not self._serve_trial():
            raise ModelRefused("the model passed the probe but could not be served", reason="not-served")

    def _serve_trial(self) -> bool:
        """Serve the candidate on trial; a failure rolls back. False where none is serving."""
        candidate = self._slots.candidate()
        if candidate is None or self._slots.phase is not Phase.TRIAL:
            return False
        try:
            self._serve(candidate)
        except Exception:
            self._slots.roll_back("not-served")
            return False
        return True
