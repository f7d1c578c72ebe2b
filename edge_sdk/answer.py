"""What `predict` gives back. Never an exception: without a model or with a wrong record it says so in `error`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Answer:
    """One prediction, best label first. `available` is False where there is none, and `error` says why."""

    __slots__ = (
        "_feedback", "_pushes", "calibrated", "error", "interval", "model_sha256", "model_version", "personal", "ranked"
    )  # fmt: skip

    def __init__(
        self,
        ranked: tuple[tuple[str, float], ...] = (),
        *,
        model_version: int = 0,
        model_sha256: str = "",
        error: str = "",
        feedback: Callable[[Any, str | None, int], None] | None = None,
        interval: tuple[float, float] | None = None,
        pushes: Callable[[], list[tuple[str, float]]] | None = None,
        personal: bool = False,
        calibrated: bool = False,
    ) -> None:
        """`ranked`: (label, score) pairs, best first; `model_sha256` is hex.

        `interval`: (low, high) in the label's units where the model tells one, such as the bounds that eight of ten
        demands lie between; else None. `calibrated`: it is fitted to what was recorded on this device before; False
        while too little was, and it is the model's own. `pushes()` gives what `why` shows. `personal`: this device's
        own version of that release answered (`model_sha256` stays the release's).
        """
        self.personal, self.calibrated = personal, calibrated
        self.interval, self._pushes = interval, pushes
        self.ranked, self.model_version, self.model_sha256, self.error = ranked, model_version, model_sha256, error
        self._feedback = feedback

    def __repr__(self) -> str:
        return f"Answer({self.label!r}, {self.score:.3f})" if self.available else f"Answer(unavailable: {self.error})"

    @property
    def available(self) -> bool:
        """True where a model answered."""
        return bool(self.ranked)

    @property
    def label(self) -> str | None:
        """The best label; None without an answer."""
        return self.ranked[0][0] if self.ranked else None

    @property
    def score(self) -> float:
        """Probability of the best label (for a number, its value); 0.0 without an answer."""
        return self.ranked[0][1] if self.ranked else 0.0

    def top(self, k: int) -> list[tuple[str, float]]:
        """The k best (label, score) pairs; none where `k` is no number."""
        try:
            return list(self.ranked[: max(0, int(k))])
        except Exception:
            return []

    def why(self, k: int = 3) -> list[tuple[str, float]]:
        """The k fields that pushed this prediction most, with how far; [] where that cannot be told. Never raises.

        A push above 0 speaks for what was predicted (of two labels: for the second), one below 0 against it. It is
        worked out when asked for, by asking the model once more; it says how the model decides, not what causes what.
        """
        try:
            return [] if self._pushes is None else self._pushes()[: max(0, int(k))]
        except Exception:
            return []

    def feedback(self, label: Any, subject: str | None = None, consent: int = 0) -> None:
        """What was right after all: the record is kept with this label and trains the next model.

        `consent`: the notice that the subject agreed to, as for `EdgeClient.record`.
        """
        if self._feedback is not None:
            self._feedback(label, subject, consent)
