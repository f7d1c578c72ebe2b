"""What a task is, and whether it can run at all: privacy, sizing and cohort are settled before any device hears of it.

The settling itself is in `aggregator.task_terms`. Pure but for `check_task`, which reads, and `create_task`, which
writes the first checkpoint and the row. Refuses, with TaskRefused and what would make it feasible, what cannot be
settled, and a task whose metric its held-out records do not give.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from aggregator import optimizers, task_terms
from aggregator.about import About, missing
from aggregator.errors import HomeRefused, TaskRefused
from aggregator.evaluation import evaluate, read_heldout
from aggregator.grouping import FEWEST_ROBUST, MOST_GROUPS
from aggregator.home import Home
from aggregator.releases.durable import write_durably
from aggregator.robust import Rule
from aggregator.store import audit_log
from aggregator.store.rows import TaskRow
from aggregator.store.store import Store
from edge_sdk.artifact.errors import ArtifactError
from edge_sdk.artifact.names import SCHEMA
from edge_sdk.artifact.safety import check_model
from edge_sdk.artifact.schema import Schema
from edge_sdk.artifact.weights import metadata, read_vector
from edge_sdk.privacy import charges
from edge_sdk.protocol import topics
from edge_sdk.protocol.messages import Name, NotNegative, Placement, Positive, PrivacyTerms, Unit

MOST_VALUES: Final = 1 << 27  # of all groups' sums: 1 GiB once opened
Devices = Annotated[int, Meta(ge=3, le=65_535)]
Metric = Literal[
    "auc", "accuracy", "log_loss", "brier", "calibration_error", "macro_f1", "hit_rate_10", "ndcg_10",
    "mse", "rmse", "mae", "wape", "coverage",
]  # fmt: skip


class TaskSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A task as the operator describes it. Times in seconds; give either `noise_multiplier` or `target_epsilon`.

    `max_epsilon`: the task ends before the round that would exceed it (not given: target_epsilon, where that is).
    `units_per_device`: a round guess at how many records or customers a device holds. It fixes the divisor of each
    step, so a device with more than that moves the model more. `placement`: where the noise is added; not given, the
    device unit shares it and the others add it locally. `honest_share`: the part of n_min that is taken to add its
    share of the noise. `consent`: the version of the notice that customers must have agreed to (0: none is asked).
    `release_every`: rounds between releases. `min_improvement`: how much better than the last release the metric must
    be (may be negative). `groups`: sums that a round opens, of at least n_min devices each, so that `robust` can take
    their coordinate-wise median or trimmed mean (`trim`: the share cut off at either end). `group_gate`: a group whose
    own mean makes the metric on the held-out records worse by more than `group_margin` is left out. `clip`, `steps`:
    not given, what the placement needs. `accept_little_signal`: create the task though its noise drowns what it learns.
    `about`: what only a person can say of it. `server_*`: how the mean update moves the model (aggregator.optimizers).
    `proximal`: the pull of every local step towards the offered weights. `weight_bound`: device unit; an update counts
    min(examples, bound) / bound, and `units_per_device` guesses the examples of one. `buffer`: a round closes when so
    many uploads are in, and `window_s` only bounds how long it holds up a new roster; 0: rounds end with their window.
    `accept_models`: an update trained on any of so many last checkpoints is taken.
    """

    name: Name
    unit: Unit = "record"
    placement: Placement | None = None
    per_customer: Annotated[int, Meta(ge=1, le=100_000)] = 32
    consent: Annotated[int, Meta(ge=0)] = 0
    rounds: Annotated[int, Meta(ge=0, le=100_000)] = 10  # 0: no training, for questions alone (`aggregator analytics`)
    n_min: Devices = 5
    n_max: Devices = 1000
    window_s: Annotated[int, Meta(ge=1, le=7 * 86_400)] = 600
    opening_s: Annotated[int, Meta(ge=1, le=86_400)] = 300
    pause_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 0.0
    profile: Literal["P16", "P24", "P32"] = "P24"
    clip: Positive | None = None
    step: Positive | None = None
    noise_multiplier: Annotated[float, Meta(ge=0.0, le=1e6)] | None = None
    target_epsilon: Positive | None = None
    max_epsilon: Positive | None = None
    delta: Annotated[float, Meta(gt=0.0, lt=1.0)] = 1e-5
    max_grad_norm: Positive = 1.0
    sample_rate: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.1
    steps: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    learning_rate: Positive = 0.1
    honest_share: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.8
    stewards: bool = False
    metric: Metric = "auc"
    min_improvement: float = 0.0
    release_every: Annotated[int, Meta(ge=1, le=100_000)] = 1
    server_optimizer: optimizers.Rule = "fedavg"
    server_learning_rate: Positive = 1.0
    server_momentum: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.9
    server_beta2: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.99
    server_tau: Positive = 1e-3
    server_decay: optimizers.Decay = "none"
    proximal: NotNegative = 0.0
    weight_bound: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    buffer: Annotated[int, Meta(ge=0, le=65_535)] = 0
    accept_models: Annotated[int, Meta(ge=1, le=16)] = 1
    insecure_without_noise: bool = False
    accept_little_signal: bool = False
    units_per_device: Annotated[int, Meta(ge=1, le=1_000_000)] = 500
    groups: Annotated[int, Meta(ge=1, le=MOST_GROUPS)] = 1
    robust: Rule = "mean"
    trim: Annotated[float, Meta(gt=0.0, lt=0.5)] = 0.2
    group_gate: bool = False
    group_margin: Annotated[float, Meta(ge=0.0)] = 0.02
    about: About = About()


def parse_spec(text: bytes | str) -> TaskSpec:
    """Read a task from JSON. Raises TaskRefused naming the field."""
    try:
        return msgspec.json.decode(text, type=TaskSpec, strict=True)
    except msgspec.DecodeError as error:
        raise TaskRefused(f"the task does not parse: {error}", "correct that field", reason="spec") from error


def build_spec(**fields: Any) -> TaskSpec:
    """A checked task from Python values. Raises TaskRefused naming the field."""
    if not topics.is_name(str(fields.get("name", ""))):
        hint = "use 1 to 48 of a-z, 0-9 and '-', with no '-' at either end"
        raise TaskRefused(f"{fields.get('name')!r} is not a name for a task", hint, reason="spec")
    for field, value in fields.items():  # JSON knows neither, so they would be taken for a field that was not given
        if isinstance(value, float) and not math.isfinite(value):
            raise TaskRefused(f"{field} is {value}", f"give a finite number for {field}", reason="spec")
    return parse_spec(msgspec.json.encode(fields))


def settle(spec: TaskSpec, length: int) -> PrivacyTerms:
    """The terms that every offer of the task carries, for an update of `length` coordinates. Raises TaskRefused."""
    _check_groups(spec, length)
    _check_buffer(spec)
    return task_terms.settle(msgspec.structs.replace(spec, rounds=max(1, spec.rounds)), length)


def _check_buffer(spec: TaskSpec) -> None:
    least = spec.n_min * fewest_groups(spec)
    if spec.buffer and not least <= spec.buffer <= spec.n_max * spec.groups:
        raise TaskRefused(
            f"a round that closes at {spec.buffer} uploads does not fit n_min {spec.n_min} and n_max {spec.n_max}",
            f"give a buffer of {least} to {spec.n_max * spec.groups}, or 0 for rounds that end with their window",
            reason="buffer",
        )


def fewest_groups(spec: TaskSpec) -> int:
    """How many groups a round must open: a robust average of one or two would not be robust."""
    return 1 if spec.robust == "mean" else FEWEST_ROBUST


def _check_groups(spec: TaskSpec, length: int) -> None:
    if spec.groups < fewest_groups(spec):
        raise TaskRefused(
            f"a {spec.robust} of {spec.groups} groups is not robust",
            f"give at least {FEWEST_ROBUST} groups, or the mean",
            reason="groups",
        )
    if spec.n_max < spec.groups * spec.n_min:
        raise TaskRefused(
            f"{spec.n_max} devices do not fill {spec.groups} groups of {spec.n_min}",
            f"raise n_max to {spec.groups * spec.n_min}, or take {spec.n_max // spec.n_min} groups",
            reason="groups",
        )
    if spec.groups > 1 and spec.groups * length > MOST_VALUES:
        raise TaskRefused(
            f"{spec.groups} sums of {length} values do not fit into memory together",
            f"take {max(1, MOST_VALUES // length)} groups",
            reason="groups",
        )


def epsilon_after(terms: PrivacyTerms, length: int, rounds: int) -> float | None:
    """Epsilon at the task's delta after so many rounds; None without noise."""
    return charges.epsilon(terms, length, rounds)


def budget(spec: TaskSpec) -> float | None:
    """The epsilon that no round may exceed: the one stated, else the one that the noise was made for; None for none."""
    return spec.target_epsilon if spec.max_epsilon is None else spec.max_epsilon


def rounds_spent(store: Store, task: str) -> int:
    """How many rounds count against epsilon: those whose sum was opened. What left a device is on that one's ledger."""
    return store.averaged_rounds(task)


def rounds_done(store: Store, spec: TaskSpec) -> int:
    """Rounds that are over and count: after `spec.rounds` of them the task's epsilon is spent."""
    return store.averaged_rounds(spec.name)


class Checked(NamedTuple):
    """What the checks of a new task found: the update's length, its terms, the held-out records' bytes."""

    length: int
    terms: PrivacyTerms
    records: bytes | None


def check_task(store: Store, spec: TaskSpec, *, model: bytes, heldout: Path | None) -> Checked:
    """Everything that can be refused, before anything is written or signed.

    Raises TaskRefused or ModelRefused, or HomeRefused where the name is taken.
    """
    if store.task(spec.name):
        raise HomeRefused(f"there is a task {spec.name!r} already", "choose another name")
    length = model_length(model)
    model_schema(model)
    terms = settle(spec, length)
    if heldout is None:
        if spec.group_gate:
            raise TaskRefused("group_gate needs held-out records", "give them with --held-out", reason="groups")
        return Checked(length, terms, None)
    _check_metric(spec, evaluate(model, read_heldout(model, heldout)))
    return Checked(length, terms, heldout.read_bytes())


def model_length(model: bytes) -> int:
    """How many coordinates an update of this model has. Raises TaskRefused."""
    try:
        check_model(model)
        return int(read_vector(model).size)
    except ArtifactError as error:
        hint = "give an ONNX file as the SDK's authoring side publishes it, with --model"
        raise TaskRefused(f"the model is refused: {error}", hint, reason=error.reason) from error


def model_schema(model: bytes) -> Schema:
    """What the records of this model look like. Raises TaskRefused."""
    try:
        return Schema.from_json(metadata(model).get(SCHEMA, ""))
    except ArtifactError as error:
        hint = "give an ONNX file as the SDK's authoring side publishes it, with --model"
        raise TaskRefused(f"the model is refused: {error}", hint, reason=error.reason) from error


def _check_metric(spec: TaskSpec, metrics: Mapping[str, float]) -> None:
    """A metric that is never measured would leave the gate open."""
    if spec.metric not in metrics:
        given = ", ".join(sorted(metrics))
        hint = f"choose with --metric from {given}; auc wants a label of two classes, both among the records"
        raise TaskRefused(f"the held-out records give no {spec.metric}", hint, reason="metric")


def create_task(store: Store, home: Home, spec: TaskSpec, *, model: bytes, heldout: Path | None, now: float) -> str:
    """Check everything, keep the first checkpoint and the held-out records, add the task. Returns the model's SHA-256.

    The service takes the task up within a second. Raises as `check_task`.
    """
    checked = check_task(store, spec, model=model, heldout=heldout)
    home.prepare()
    if checked.records is not None:
        write_durably(home.heldout_file(spec.name), checked.records, mode=0o600)
    sha256 = hashlib.sha256(model).hexdigest()
    write_durably(home.checkpoint_file(sha256), model)
    kept = home.heldout_file(spec.name).name if heldout is not None else ""
    row = TaskRow(spec.name, msgspec.json.encode(spec), "active", "", int(now), sha256, kept, 0.0)
    with store.transaction():
        store.add_task(row)
        store.add_checkpoint(sha256, task=spec.name, number=0, parent="", metrics={}, at=now)
        store.log(now, "task", spec.name, 0, rounds=spec.rounds, unit=spec.unit)
        facts = {"spec": hashlib.sha256(row.spec).hexdigest(), "model": sha256, "unit": spec.unit}
        numbers = {"rounds": spec.rounds, "consent": spec.consent}
        audit_log.append(store.connection, now, "task-created", spec.name, **facts, **numbers)
    return sha256


def describe_task(store: Store, name: str, about: About, *, now: float) -> list[str]:
    """Put these statements in place of those made before; what is still missing. Raises HomeRefused for no such task.

    The audit log holds the digests of the task before and after.
    """
    with store.transaction():
        row = store.task(name)
        if row is None:
            raise HomeRefused(f"there is no task {name!r}", "see `aggregator task list`")
        after = msgspec.json.encode(msgspec.structs.replace(parse_spec(row.spec), about=about))
        store.set_task(name, spec=after)
        facts = {"before": hashlib.sha256(row.spec).hexdigest(), "spec": hashlib.sha256(after).hexdigest()}
        audit_log.append(store.connection, now, "task-described", name, **facts, missing=missing(about))
    return missing(about)
