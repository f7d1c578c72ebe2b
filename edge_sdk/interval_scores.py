"""Intervals that keep their promise at this site: how far past ones were off, and how far the next is moved.

Conformalised quantile regression (Romano, Patterson and Candès 2019, arXiv:1905.03222) over the newest days. When a
label is recorded, its score says how far it lay outside the interval of the model in service, below 0 inside
(`edge_sdk.artifact.features.scores`). Both ends of the next interval are moved by a quantile of the last scores.

What holds: while days are alike, the next label lies inside as often as the quantiles say, or up to 1 in n + 1 more
often, n being the scores that are known (theorem 1 there). Worse days are followed once they are a fifth of the kept
ones, 12 of 60 for an interval of 80 %, however far out they lie; better days once they are the rest, 48 of them. Days
that get worse every day are missed every day: nothing is promised of them. The scale of the scores does not matter.

The scores lie among the windows: sealed, one list a key and subject, bounded, aged and erased as these are, and never
uploaded. Those of the newest days count, by the record's own time where it has one, so that a history given late stays
history. The threshold is worked out from them anew each time, so that nothing of an erased score stays in it. A new
release goes on with them, as long as its label has the same scale and the same quantiles. Reads no clock. Refuses
nothing: what cannot be judged is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from edge_sdk.retention import PLAUSIBLE
from edge_sdk.windows import AHEAD_S, End, Filled, Own, Window, Windows, time_of

if TYPE_CHECKING:
    from edge_sdk.artifact.schema import Label, Schema

# Chosen on validation days (docs/applications/demand.md).
FEWEST: Final = 10  # labels, before which the model's own interval stays
KEPT: Final = 60  # scores a key


def threshold(scores: Sequence[float], share: float) -> float:
    """What the next score stays under or at with probability `share`, if it is like these; at least one, in any order.

    The ceil((n + 1) share)-th smallest of n: split conformal prediction (section 4 of the paper above). The largest
    where that is more than n: 0.95 needs 19 scores, and no more than 60 of 61 can be promised.
    """
    place = math.ceil((len(scores) + 1) * share - 1e-9)  # 0.8 - 0.1 is a little more than 0.7
    return sorted(scores)[min(max(place, 1), len(scores)) - 1]


class IntervalScores:
    """The scores of this device, kept in its windows. Safe from any thread."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows

    def add(
        self, task: str, schema: Schema, fields: Mapping[str, Any], subject: str | None, score: float, *, now: int,
        at: int,
    ) -> int:  # fmt: skip
        """Keep the score of a record, recorded at `at`; returns how many windows had to go for it.

        The same time of a record again takes the place of its score; one more than a day ahead of `now` is left out,
        as by `Windows.for_example`.
        """
        own = _own(schema)
        latest = now + AHEAD_S if now >= PLAUSIBLE else None
        when = None
        with contextlib.suppress(ValueError):  # without a time it can read, the order of the calls counts
            when = time_of(own, fields)
        if not math.isfinite(score) or (when is not None and latest is not None and when > latest):
            return 0
        window = Window(*self._place(task, schema, fields), self._windows.subject(subject))
        return self._windows.extend(Filled({}, (End(window, when, KEPT, latest),)), score, at)

    def widening(self, task: str, schema: Schema, fields: Mapping[str, Any]) -> float | None:
        """How far both ends of a record's interval are moved, in units of the label's scale; below 0: inwards.

        By the scores of its key alone, of all subjects. None where too few are known, or there is no interval.
        """
        quantiles = schema.label.quantiles
        if len(quantiles) < 2:
            return None
        kept = self._windows.newest(self._place(task, schema, fields), KEPT, dated=bool(_own(schema).time))
        scores = [score for score in kept if isinstance(score, float) and math.isfinite(score)]
        return threshold(scores, quantiles[-1] - quantiles[0]) if len(scores) >= FEWEST else None

    def _place(self, task: str, schema: Schema, fields: Mapping[str, Any]) -> tuple[str, str, bytes]:
        key = fields.get(_own(schema).key)
        return task, _place_name(schema.label), self._windows.named(key) if isinstance(key, str) and key else b""


def _own(schema: Schema) -> Own:
    """Whose key and time tell one record's interval from another's: the series' that the label is relative to."""
    if not schema.label.relative_to:
        return Own("", KEPT)
    series = schema.series(schema.label.relative_to)
    return Own(series.name, KEPT, series.key, series.time)


def _place_name(label: Label) -> str:
    """Another unit or another promise is another list; fields of a record are never called so."""
    meant = (label.scale, label.log, label.relative_to, label.quantiles[0], label.quantiles[-1])
    return f"interval of {label.name} {hashlib.sha256(repr(meant).encode()).hexdigest()[:8]}"
