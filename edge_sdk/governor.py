"""May this device train now? Reads no clock: the hour is an argument. Refuses while the app vetoes.

The veto is asked before training starts and between its batches, so a customer at the kiosk never waits for a round.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

log = logging.getLogger("edge_sdk")


@dataclass(slots=True)
class Governor:
    """The app's veto and the device's hours. `hours` (from, to) may wrap around midnight; None allows every hour."""

    hours: tuple[int, int] | None
    veto: Callable[[], object] | None = field(default=None)

    def objection(self, hour: int) -> str:
        """Why not now, as a word for status and counters; empty when training may go on."""
        if self.hours is not None and not _within(hour, *self.hours):
            return "hours"
        if self.veto is None:
            return ""
        try:
            return "app-busy" if self.veto() else ""
        except Exception:
            # The app's mistake must not reach the app through us; a veto that fails counts as busy.
            log.exception("the function given to @busy failed; this device will not train until it answers")
            return "veto-failed"


def _within(hour: int, start: int, end: int) -> bool:
    return start <= hour < end if start <= end else hour >= start or hour < end
