"""From what was asked and what the fleet holds to a task: rounds, clip, pace, cohort. Pure.

Shared noise: a round is one step over every record, so that its noise is added as seldom as possible. Refuses what
`tasks.settle` refuses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec
import numpy as np

from aggregator import tasks
from aggregator.errors import TaskRefused
from aggregator.evaluation import metrics_of, usual_metric
from aggregator.rehearsal.population import Population
from aggregator.tasks import TaskSpec
from edge_sdk.artifact.schema import Label
from edge_sdk.artifact.weights import read_vector
from edge_sdk.protocol.messages import Placement, Unit

ROUNDS: Final = {"record": 100, "customer": 100, "device": 30}
LOCAL_STEPS: Final = 5
MOST_COHORT: Final = 1000
PRESENT: Final = 0.8  # of the devices: the smallest cohort that the suggested task opens


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says of the task. `epsilon` None: no privacy. `given`: fields of a task file."""

    name: str
    unit: Unit
    epsilon: float | None
    placement: Placement | None = None
    rounds: int | None = None
    given: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the model moves, and the bound of one unit's gradient."""

    optimizer: Literal["momentum", "adam"]
    learning_rate: float
    clip: float


def task_name(stem: str) -> str:
    """A task's name from a file's."""
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:40].strip("-") or "rehearsed"


def metric_for(asked: Asked, label: Label) -> str:
    """The metric that was asked for, else the label's usual one. Raises TaskRefused where the label cannot give it."""
    wanted = asked.given.get("metric") or usual_metric(label)
    fitting = metrics_of(label)
    if wanted not in fitting:
        kind = {"binary": "yes or no", "classes": "one of some classes", "number": "a number"}[label.kind]
        hint = f'give one of {", ".join(fitting)} as "metric" in --task, or leave it out for {fitting[0]}'
        raise TaskRefused(f"{label.name!r} is {kind}, which has no {wanted}", hint, reason="metric")
    return str(wanted)


def spec_for(asked: Asked, people: Population, model: bytes, pace: Pace, metric: str) -> TaskSpec:
    """The task to rehearse, which is also the one suggested. Raises TaskRefused for fields that do not fit."""
    units = people.units(customers=asked.unit == "customer")
    able = int((units > 0).sum())
    cohort = min(able, MOST_COHORT)
    fields: dict[str, Any] = {
        "name": asked.name,
        "unit": asked.unit,
        "placement": asked.placement or "shared",
        "rounds": asked.rounds or ROUNDS[asked.unit],
        "n_min": max(3, cohort if cohort < 5 else int(PRESENT * cohort)),
        "n_max": max(3, cohort),
        "units_per_device": max(1, min(1_000_000, round(float(units[units > 0].mean())))),
        "metric": metric,
        "profile": "P32",
        **_paced(asked, pace),
        **({"insecure_without_noise": True} if asked.epsilon is None else {"target_epsilon": asked.epsilon}),
    }
    if asked.unit == "customer":
        fields["per_customer"] = _most_of_one(people)
    if "noise_multiplier" in asked.given:
        fields.pop("target_epsilon", None)
    fields |= asked.given
    fields.setdefault("release_every", max(1, fields["rounds"] // 4))
    return _roomy(tasks.build_spec(**fields), units, read_vector(model).size)


def _paced(asked: Asked, pace: Pace) -> dict[str, Any]:
    if asked.unit == "device":
        local = {"sample_rate": 0.5, "steps": LOCAL_STEPS, "learning_rate": min(10.0, 3 * pace.learning_rate)}
        if pace.optimizer == "adam":
            local["learning_rate"] = 0.1
        return {**local, "max_grad_norm": pace.clip, "server_optimizer": "momentum", "server_learning_rate": 0.5}
    fields: dict[str, Any] = {"sample_rate": 1.0, "max_grad_norm": pace.clip, "server_optimizer": pace.optimizer}
    fields |= {"steps": 1} if asked.placement == "local" else {}
    if pace.optimizer == "adam":
        return {**fields, "learning_rate": 1.0, "server_learning_rate": pace.learning_rate, "server_decay": "linear"}
    return {**fields, "learning_rate": pace.learning_rate, "server_decay": "linear"}


def _most_of_one(people: Population) -> int:
    """Rows that nineteen in twenty customers stay below on a device, at most 64."""
    apart = people.unit_subjects()
    if apart is None or not (apart >= 0).any():
        return 1
    return int(np.clip(np.quantile(np.bincount(apart[apart >= 0]), 0.95), 1, 64))


def _roomy(spec: TaskSpec, units: Any, length: int) -> TaskSpec:
    """With room in the sum for the device that holds most, where the modulus has it: `clip` bounds a device's sum."""
    if spec.clip is not None or spec.unit == "device" or spec.placement != "shared":
        return spec
    usual = spec.units_per_device
    for most in (float(units.max()), 4.0 * usual):
        if most <= usual:
            continue
        wide = msgspec.structs.replace(spec, clip=spec.max_grad_norm * (most + 6 * most**0.5 + 6))
        try:
            tasks.settle(wide, length)
        except TaskRefused as error:
            if error.reason == "sizing":
                continue
        return wide
    return spec


def without_noise(spec: TaskSpec) -> TaskSpec:
    """The same task with privacy switched off; records and customers in one step a round: what the data can give."""
    bare = msgspec.structs.replace(
        spec, target_epsilon=None, noise_multiplier=None, max_epsilon=None, insecure_without_noise=True
    )
    if spec.unit == "device":
        return bare
    return msgspec.structs.replace(bare, placement="shared", steps=None, proximal=0.0, weight_bound=0)
