"""What a demo came to: the figures, and whether each promise held. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from aggregator.demo.desk import Replied, promises
from aggregator.demo.play import Picture, Play
from aggregator.evaluation import LOWER_IS_BETTER
from edge_sdk.protocol.chunks import CHUNK_BYTES

FEWEST_DEVICES: Final = 8
HELLO_BYTES: Final = 1400
CHUNK_FRAME_BYTES: Final = 40  # SPEC 6.3: 24 of header, 16 of tag


@dataclass(frozen=True, slots=True)
class Alone:
    """One device by itself: the same model and as many steps, with no privacy at all and with the fleet's."""

    device: str
    records: int
    without_privacy: float
    with_privacy: float


@dataclass(frozen=True, slots=True)
class Forgery:
    """One forged release: which device refused it, in which words, and whether its model stayed."""

    attack: str
    device: str
    reason: str
    refused: bool
    model_unchanged: bool


def wire_bytes(upload: int) -> int:
    """Bytes that an upload of this plaintext size puts on the wire: chunks, their headers and tags, and the hello."""
    return upload + -(-upload // CHUNK_BYTES) * CHUNK_FRAME_BYTES + HELLO_BYTES


@dataclass(slots=True)
class Outcome:
    """Filled in step by step. `task` is the task's last status; times in seconds."""

    devices: int
    rounds: int
    play: Play
    broker: str = ""
    task: dict[str, Any] = field(default_factory=dict)
    killed_while_training: str = ""
    killed_after_upload: str = ""
    after_kill: dict[str, Any] = field(default_factory=dict)
    alone: list[Alone] = field(default_factory=list)
    central: float = 0.0
    central_private: float = 0.0
    pictures: list[Picture] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)
    forgeries: list[Forgery] = field(default_factory=list)
    desk_device: str = ""
    replies: list[Replied] = field(default_factory=list)
    weight_bytes: int = 0  # of one masked weight on the wire: the task's profile
    upload_ratio_100k: float = 0.0
    seconds: float = 0.0

    @property
    def rounds_shown(self) -> list[dict[str, Any]]:
        """Rounds that were opened."""
        return [entry for entry in self.task.get("rounds", []) if entry["metric"] is not None]

    @property
    def fleet_metric(self) -> float:
        """Of the released model, on the held-out records."""
        release = self.task.get("release")
        return float(release["metric"]) if release and release["metric"] is not None else 0.0

    @property
    def released(self) -> str:
        """SHA-256 of the newest release, in hex."""
        release = self.task.get("release")
        return str(release["sha256"]) if release else ""

    @property
    def compared(self) -> bool:
        """Every device alone and one centre were trained too."""
        return bool(self.alone)

    @property
    def local_mean(self) -> float:
        return sum(one.without_privacy for one in self.alone) / len(self.alone) if self.alone else 0.0

    @property
    def local_private_mean(self) -> float:
        return sum(one.with_privacy for one in self.alone) / len(self.alone) if self.alone else 0.0

    @property
    def lower_is_better(self) -> bool:
        """Is the metric an error?"""
        return self.task.get("metric_name") in LOWER_IS_BETTER

    def better(self, one: float, other: float) -> bool:
        """Is `one` the better value of the metric?"""
        return one < other if self.lower_is_better else one > other

    @property
    def on_new_model(self) -> int:
        """Living devices whose last answer came from the newest release."""
        return sum(sha256 == self.released != "" for sha256 in self.models.values())

    @property
    def upload_ratio(self) -> float:
        last = self.rounds_shown[-1] if self.rounds_shown else None
        return float(wire_bytes(last["upload_bytes"]) / last["float32_bytes"]) if last else 0.0

    @property
    def seconds_per_round(self) -> float:
        """Mean over the rounds, of the sum of their phases."""
        sums = [sum(second or 0.0 for second in entry["seconds"].values()) for entry in self.rounds_shown]
        return sum(sums) / len(sums) if sums else 0.0

    def checks(self) -> list[tuple[str, bool]]:
        """Every promise as a sentence, and whether it held. The demo succeeds when all did."""
        survivors = set(self.after_kill.get("devices", ()))
        alone = ("the fleet's model beats the mean device alone", self.better(self.fleet_metric, self.local_mean))
        private = (
            "the fleet's model beats the mean device with the same privacy",
            self.better(self.fleet_metric, self.local_private_mean),
        )
        compared = (alone, private) if self.play.reaches_alone else (private,)
        return [
            (f"at least {FEWEST_DEVICES} device processes took part", self.devices >= FEWEST_DEVICES),
            (f"all {self.rounds} rounds were opened", len(self.rounds_shown) >= self.rounds),
            *(compared if self.compared else ()),
            (
                "the round went on without the device that was killed while it trained",
                bool(self.killed_while_training) and self.killed_while_training not in survivors and bool(survivors),
            ),
            (
                "the update of the device that died after its upload counted",
                self.killed_after_upload in survivors,
            ),
            (
                "every living device predicts with the newest signed release",
                self.on_new_model == len(self.models) > 0,
            ),
            (
                "both forged releases were refused, and no active model changed",
                len(self.forgeries) == 2 and all(one.refused and one.model_unchanged for one in self.forgeries),
            ),
            *(promises(self.replies) if self.play.desk else ()),
        ]


def summary(outcome: Outcome) -> dict[str, Any]:
    """summary.json: the figures for a script."""
    privacy = outcome.task.get("privacy", {})
    return {
        "ok": all(held for _, held in outcome.checks()),
        "checks": dict(outcome.checks()),
        "application": outcome.play.name,
        "rounds": len(outcome.rounds_shown),
        "devices": outcome.devices,
        "metric_name": outcome.task.get("metric_name", ""),
        "lower_is_better": outcome.lower_is_better,
        "metric_fleet": round(outcome.fleet_metric, 4),
        "metric_local_mean": round(outcome.local_mean, 4) if outcome.compared else None,
        "metric_local_mean_same_privacy": round(outcome.local_private_mean, 4) if outcome.compared else None,
        "metric_central": round(outcome.central, 4) if outcome.compared else None,
        "metric_central_same_privacy": round(outcome.central_private, 4) if outcome.compared else None,
        "metric_by_round": [round(entry["metric"], 4) for entry in outcome.rounds_shown],
        "epsilon": privacy.get("epsilon"),
        "delta": privacy.get("delta"),
        "privacy_unit": privacy.get("unit", ""),
        "privacy_placement": privacy.get("placement", ""),
        "privacy_adjacency": privacy.get("adjacency", ""),
        "privacy_against": privacy.get("against", ""),
        "upload_ratio_float32": round(outcome.upload_ratio, 2),
        "upload_ratio_float32_at_100k": round(outcome.upload_ratio_100k, 4),
        "devices_on_new_model": outcome.on_new_model,
        "devices_alive": len(outcome.models),
        "model_sha256": outcome.released,
        "killed_while_training": outcome.killed_while_training,
        "killed_after_upload": outcome.killed_after_upload,
        "forged_model_refused": bool(outcome.forgeries) and all(one.refused for one in outcome.forgeries),
        "forged_reasons": [one.reason for one in outcome.forgeries],
        "questions_asked": len(outcome.replies),
        "questions_answered_by_device": sum(one.by_itself for one in outcome.replies),
        "seconds_per_round": round(outcome.seconds_per_round, 3),
        "seconds": round(outcome.seconds, 1),
        "broker": outcome.broker,
        "data_source": outcome.play.source,
    }
