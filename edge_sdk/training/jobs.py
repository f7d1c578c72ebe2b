"""What goes to the training process and what comes back. Imports no torch; secrets hide in repr.

A plan without noise is refused for the record unit unless it says so by an ugly name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edge_sdk.protocol.messages import Placement, Unit

Array = npt.NDArray[Any]
_DTYPES: Final = ("float32", "int64", "int32", "bool")


class TrainingFailed(Exception):
    """Training gave no update. `reason` is a kebab-case word for counters and logs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class TrainingPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one round trains.

    unit: "record" clips each record's gradient to `max_grad_norm`; "customer" clips the summed gradient of all drawn
        examples of one subject to it; "device" trains plainly, and the whole update is clipped and noised later, in
        protection.
    placement, for record and customer: "local" adds noise of `noise_multiplier` times the clip at every step here;
        "shared" takes one step and returns minus the sum of the clipped gradients, which is noised in protection.
    batch_size: expected units a step (device unit: records a step). Record and customer divide each step's sum by it.
    per_customer: a subject with more examples gives so many of them, chosen anew at each step.
    sample_rate, for record and customer: each unit is drawn with this probability, independently. Where privacy counts
        it is given, with a batch_size that does not depend on the data: a rate or divisor made from the number of
        units would betray it. None: batch_size / units.
    proximal: every step also moves by learning_rate * proximal towards the weights that it began with (FedProx, Li et
        al. 2020, equation 2). That pull reads no data, so it needs no noise.
    weight: the whole update is multiplied by it, at most 1, before it is clipped in protection.
    """

    unit: Unit
    learning_rate: float
    steps: int
    batch_size: int
    max_grad_norm: float = 1.0
    noise_multiplier: float = 0.0
    placement: Placement = "local"
    per_customer: int = 32
    insecure_without_noise: bool = False
    sample_rate: float | None = None
    proximal: float = 0.0
    weight: float = 1.0


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An array on the wire: C order, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: Array) -> Tensor:
        """Copy an array of an allowed type. Raises ValueError for another."""
        if array.dtype.name not in _DTYPES:
            raise ValueError(f"arrays of {array.dtype.name} are not sent to training: use one of {_DTYPES}")
        return cls(array.dtype.name, array.shape, np.ascontiguousarray(array).tobytes())

    def array(self) -> Array:
        """A writable copy. Raises ValueError where data, shape and type do not fit."""
        if self.dtype not in _DTYPES:
            raise ValueError(f"array of {self.dtype}")
        return np.frombuffer(self.data, self.dtype).reshape(self.shape).copy()


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="frame", tag="job"):
    """One round's training. `key`: 32 bytes of operating-system entropy, for this job only.

    `subjects`, int64 [B], says whose each record is, by any numbers; customer unit only.
    """

    model: bytes
    features: dict[str, Tensor]
    labels: Tensor
    subjects: Tensor | None
    plan: TrainingPlan
    key: bytes

    def __repr__(self) -> str:
        return f"Job(plan={self.plan}, records={self.labels.shape[0]}, ...)"


class PersonalJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="frame", tag="personal"):
    """Train a device's own version of a model. `subjects`, int64 [B], says whose each record is, by any numbers.

    `apart`: as for `training.personal.personalise`.
    """

    model: bytes
    features: dict[str, Tensor]
    labels: Tensor
    subjects: Tensor
    seed: int
    apart: bool

    def __repr__(self) -> str:
        return f"PersonalJob(records={self.labels.shape[0]}, ...)"


class Cancel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="frame", tag="cancel"):
    """Stop between two batches."""


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="frame", tag="progress"):
    """`step` of `steps` is done."""

    step: int
    steps: int


Engine = Literal["plain", "bookkeeping", "hooks"]


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the accountant needs: rate, noise multiplier of what was added *here*, steps taken."""

    q: float
    noise_multiplier: float
    steps: int


class Done(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="frame", tag="done"):
    """The update (float32, little-endian), its sampling and the mean loss before training."""

    update: bytes
    sampling: Sampling
    loss: float
    records: int
    engine: Engine

    def __repr__(self) -> str:
        return f"Done(sampling={self.sampling}, ...)"


class PersonalDone(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="frame", tag="personal-done"):
    """A device's own weights, float32 little-endian; b"" where the fleet's stay. Nothing here may leave the device.

    Losses: means over rows held out of the fit, None where there were too few to hold out.
    """

    vector: bytes
    kind: str
    alpha: float
    rows: int
    loss_fleet: float | None
    loss_personal: float | None

    def __repr__(self) -> str:
        return f"PersonalDone(kind={self.kind!r}, ...)"


class Failed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="frame", tag="failed"):
    """No update, and why."""

    reason: str
    message: str


Request = Job | PersonalJob | Cancel
Reply = Progress | Done | PersonalDone | Failed


class TrainResult(msgspec.Struct, frozen=True):
    """What a round's training gives: an update float32 [d] in the order of the model's trainable list.

    For the shared placement the update is minus the sum of clipped gradients, not yet divided or noised. Nothing
    here may leave the device as it is: protection clips, noises and masks it; `loss` and `records` are exact.
    `engine` tells how gradients were clipped: "hooks" is the slow way, for layers that book-keeping does not know.
    """

    update: npt.NDArray[np.float32]
    sampling: Sampling
    loss: float
    records: int
    engine: Engine = "plain"

    def __repr__(self) -> str:
        return f"TrainResult(sampling={self.sampling}, ...)"


def job(
    model: bytes,
    features: Mapping[str, Array],
    labels: Array,
    plan: TrainingPlan,
    key: bytes,
    *,
    subjects: Array | None = None,
) -> Job:
    """Check and pack. Raises TrainingFailed for an empty data set or an impossible plan."""
    check_plan(plan)
    check_subjects(plan, None if subjects is None else subjects.shape, len(labels))
    packed = _packed(features, labels)
    return Job(model, packed, Tensor.of(labels), None if subjects is None else Tensor.of(subjects), plan, key)


def personal_job(
    model: bytes, features: Mapping[str, Array], labels: Array, subjects: Array, seed: int, *, apart: bool = False
) -> PersonalJob:
    """Check and pack. Raises TrainingFailed for an empty data set."""
    if len(subjects) != len(labels):
        raise TrainingFailed("wrong-shape", f"{len(subjects)} subjects do not fit {len(labels)} labels")
    return PersonalJob(model, _packed(features, labels), Tensor.of(labels), Tensor.of(subjects), seed, apart)


def _packed(features: Mapping[str, Array], labels: Array) -> dict[str, Tensor]:
    if len(labels) == 0:
        raise TrainingFailed("no-examples", "there are no examples to train on: wait until some are recorded")
    for name, array in features.items():
        if len(array) != len(labels):
            raise TrainingFailed("wrong-shape", f"{name!r} has {len(array)} rows for {len(labels)} labels")
    return {name: Tensor.of(array) for name, array in features.items()}


def check_plan(plan: TrainingPlan) -> None:
    """Raise TrainingFailed for a plan that cannot run or that would add no noise by accident."""
    numbers = (plan.learning_rate, plan.max_grad_norm)
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise TrainingFailed("plan", "learning rate and clip must be finite and above 0")
    if plan.sample_rate is not None and not 0 < plan.sample_rate <= 1:
        raise TrainingFailed("plan", "a sampling rate is above 0 and at most 1")
    if plan.steps < 1 or plan.batch_size < 1 or not 0 <= plan.noise_multiplier < math.inf:
        raise TrainingFailed("plan", "a plan needs at least one step, one record a batch and a noise of 0 or more")
    if plan.per_customer < 1:
        raise TrainingFailed("plan", "a customer gives at least one example a step: raise per_customer")
    local = plan.unit != "device" and plan.placement == "local"
    if local and plan.noise_multiplier == 0 and not plan.insecure_without_noise:
        raise TrainingFailed("no-noise", f"the {plan.unit} unit needs noise: set a noise multiplier above 0")
    if not local and plan.noise_multiplier != 0:
        raise TrainingFailed("plan", "noise is added here only for record and customer with local placement")
    if not 0 <= plan.proximal * plan.learning_rate <= 1 or not 0 < plan.weight <= 1:
        raise TrainingFailed("plan", "a pull is from 0 to 1 / learning rate, a weight above 0 and at most 1")
    if plan.weight < 1 and plan.unit != "device" and not plan.insecure_without_noise:
        raise TrainingFailed("plan", f"a weight by examples would betray their number: not for the {plan.unit} unit")
    if plan.placement == "shared" and plan.unit != "device" and plan.steps != 1:
        raise TrainingFailed("plan", "shared placement is one step of the record or customer unit")


def check_subjects(plan: TrainingPlan, shape: tuple[int, ...] | None, records: int) -> None:
    """Raise TrainingFailed for a customer unit without subjects, and for subjects that do not fit the records."""
    if plan.unit == "customer" and shape is None:
        raise TrainingFailed("no-subjects", "the customer unit needs to know whose each example is: record a subject")
    if shape is not None and shape != (records,):
        raise TrainingFailed("wrong-shape", f"{shape} subjects do not fit {records} labels")
