"""What a task is, and whether it can run at all: privacy, sizing and cohort are settled before any device hears of it.

The settling itself is in `aggregator.task_terms`. Pure but for `check_task`, which reads, and `create_task`, which
writes the first checkpoint and the row. Refuses, with TaskRefused and what would make it feasible, what cannot be
settled, and a task whose metric its held-out records do not give.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

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
from edge_sdk.artifact.safety import check_model
from edge_sdk.artifact.weights import read_vector
from edge_sdk.privacy import accounting
from edge_sdk.protocol import topics
from edge_sdk.protocol.errors import SizingRefused
from edge_sdk.protocol.messages import Name, Placement, Positive, PrivacyTerms, Unit
from edge_sdk.protocol.quantize import integer_bound, l2_bound
from edge_sdk.protocol.secagg.committee import check_headroom
from edge_sdk.protocol.secagg.ring import profile

MOST_STEPS: Final = 18  # a clip of 2^18 steps: rounding is then far below any noise
SIGMA_STEPS: Final = 128.0  # one device's noise in steps: Skellam is Gaussian there and its table small
MOST_VALUES: Final = 1 << 27  # of all groups' sums: 1 GiB once opened
Devices = Annotated[int, Meta(ge=3, le=65_535)]


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
    own mean makes the metric on the held-out records worse by more than `group_margin` is left out.
    """

    name: Name
    unit: Unit = "record"
    placement: Placement | None = None
    per_customer: Annotated[int, Meta(ge=1, le=100_000)] = 32
    consent: Annotated[int, Meta(ge=0)] = 0
    rounds: Annotated[int, Meta(ge=1, le=100_000)] = 10
    n_min: Devices = 5
    n_max: Devices = 1000
    window_s: Annotated[int, Meta(ge=1, le=7 * 86_400)] = 600
    opening_s: Annotated[int, Meta(ge=1, le=86_400)] = 300
    pause_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 0.0
    profile: Literal["P16", "P24", "P32"] = "P24"
    clip: Positive = 1.0
    step: Positive | None = None
    noise_multiplier: Annotated[float, Meta(ge=0.0, le=1e6)] | None = None
    target_epsilon: Positive | None = None
    max_epsilon: Positive | None = None
    delta: Annotated[float, Meta(gt=0.0, lt=1.0)] = 1e-5
    max_grad_norm: Positive = 1.0
    sample_rate: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.1
    steps: Annotated[int, Meta(ge=1, le=100_000)] = 10
    learning_rate: Positive = 0.1
    honest_share: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.8
    stewards: bool = False
    metric: Literal["auc", "accuracy", "log_loss", "mse"] = "auc"
    min_improvement: float = 0.0
    release_every: Annotated[int, Meta(ge=1, le=100_000)] = 1
    server_optimizer: Literal["fedavg"] = "fedavg"
    server_learning_rate: Positive = 1.0
    insecure_without_noise: bool = False
    units_per_device: Annotated[int, Meta(ge=1, le=1_000_000)] = 500
    groups: Annotated[int, Meta(ge=1, le=MOST_GROUPS)] = 1
    robust: Rule = "mean"
    trim: Annotated[float, Meta(gt=0.0, lt=0.5)] = 0.2
    group_gate: bool = False
    group_margin: Annotated[float, Meta(ge=0.0)] = 0.02


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
    _check_words(spec)
    _check_groups(spec, length)
    placement: Placement = spec.placement or ("shared" if spec.unit == "device" else "local")
    honest = max(1, math.floor(spec.honest_share * spec.n_min)) if placement == "shared" else 1
    noise = _noise(spec, lambda z: accounting.gaussian(z) if spec.unit == "device" else _record(spec, z))
    step = spec.step or _step(spec, length, noise, honest)
    if spec.unit == "device" and spec.noise_multiplier is None:
        noise = _noise(spec, lambda z: _device(spec.clip, step, z, length))
    terms = PrivacyTerms(
        unit=spec.unit,
        placement=placement,
        noise_multiplier=noise,
        per_customer=spec.per_customer,
        max_grad_norm=spec.max_grad_norm,
        sample_rate=spec.sample_rate,
        steps=spec.steps,
        learning_rate=spec.learning_rate,
        delta=spec.delta,
        honest=honest,
        clip=spec.clip,
        step=step,
        insecure_without_noise=spec.insecure_without_noise,
        expected_batch=max(1, round(spec.sample_rate * spec.units_per_device)),
    )
    check_sizing(spec, terms)
    return terms


def _check_words(spec: TaskSpec) -> None:
    if spec.n_max < spec.n_min:
        raise TaskRefused(f"n_max {spec.n_max} is below n_min {spec.n_min}", "raise n_max", reason="cohort")
    given = [value for value in (spec.noise_multiplier, spec.target_epsilon) if value is not None]
    if len(given) == 2:
        raise TaskRefused("both noise_multiplier and target_epsilon are given", "give one of them", reason="privacy")
    if not spec.insecure_without_noise and not any(given):
        raise TaskRefused(
            "the task has no noise, so its updates would not be private",
            "give target_epsilon (for example 4.0), or insecure_without_noise for data that is not personal",
            reason="privacy",
        )
    if spec.insecure_without_noise and any(given):
        raise TaskRefused("insecure_without_noise contradicts the noise", "remove one of them", reason="privacy")


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


def _noise(spec: TaskSpec, of_round: Callable[[float], accounting.Spend]) -> float:
    """The noise multiplier: the one stated, or the least that keeps all rounds within the target."""
    if spec.target_epsilon is None:
        return spec.noise_multiplier or 0.0
    try:
        return accounting.calibrate(
            spec.target_epsilon, spec.delta, lambda z: tuple(spec.rounds * order for order in of_round(z))
        )
    except ValueError as error:
        raise TaskRefused(
            f"no noise keeps {spec.rounds} rounds within epsilon {spec.target_epsilon}: {error}",
            "raise target_epsilon, or take fewer rounds",
            reason="privacy",
        ) from error


def _record(spec: TaskSpec, noise: float) -> accounting.Spend:
    return accounting.subsampled_gaussian(spec.sample_rate, noise, spec.steps)


def _device(clip: float, step: float, noise: float, length: int) -> accounting.Spend:
    """One round of the device unit: Skellam noise of the honest devices on the rounded sum."""
    l2 = l2_bound(clip, step, length)
    return accounting.skellam(l2, min(math.sqrt(length) * l2, l2 * l2), (noise * clip / step) ** 2)


def spend(terms: PrivacyTerms, length: int) -> accounting.Spend:
    """What one round costs each unit, by order of Renyi divergence."""
    if terms.unit == "device":
        return _device(terms.clip, terms.step, terms.noise_multiplier, length)
    return accounting.subsampled_gaussian(terms.sample_rate, terms.noise_multiplier, terms.steps)


def epsilon_after(terms: PrivacyTerms, length: int, rounds: int) -> float | None:
    """Epsilon at the task's delta after so many rounds; None without noise."""
    if not terms.noise_multiplier:
        return None
    return accounting.epsilon(accounting.compose([spend(terms, length)] * rounds), terms.delta)


def budget(spec: TaskSpec) -> float | None:
    """The epsilon that no round may exceed: the one stated, else the one that the noise was made for; None for none."""
    return spec.target_epsilon if spec.max_epsilon is None else spec.max_epsilon


def rounds_spent(store: Store, task: str, unit: str) -> int:
    """How many rounds count against epsilon: where it holds against the aggregator itself, each that sent it anything.

    The device unit holds thanks to the mask, so only an opened sum counts.
    """
    return store.uploaded_rounds(task) if unit == "record" else store.averaged_rounds(task)


def rounds_done(store: Store, spec: TaskSpec) -> int:
    """Rounds that are over and count: after `spec.rounds` of them the task's epsilon is spent."""
    return store.uploaded_rounds(spec.name, over=True) if spec.unit == "record" else store.averaged_rounds(spec.name)


def _step(spec: TaskSpec, length: int, noise: float, honest: int) -> float:
    """The finest power of two that fits: as many steps in a clip as the noise needs, then what the profile holds."""
    wanted = 2.0**MOST_STEPS
    if spec.unit == "device" and noise:
        wanted = max(SIGMA_STEPS * math.sqrt(honest) / noise, 8 * math.sqrt(length))
    exponent = math.floor(math.log2(spec.clip / min(wanted, 2.0**MOST_STEPS)))
    for finer in range(exponent, exponent + 2 * MOST_STEPS):
        if _fits(spec, 2.0**finer, noise, honest):
            return 2.0**finer
    raise TaskRefused(
        f"{spec.n_max} devices do not fit profile {spec.profile}",
        "take a larger profile or a lower n_max",
        reason="sizing",
    )


def _fits(spec: TaskSpec, step: float, noise: float, honest: int) -> bool:
    try:
        _check_headroom(spec, step, noise, honest)
    except SizingRefused:
        return False
    return True


def _check_headroom(spec: TaskSpec, step: float, noise: float, honest: int) -> None:
    sigma = noise * spec.clip / (step * math.sqrt(honest)) if spec.unit == "device" else 0.0
    check_headroom(profile(spec.profile), spec.n_max, integer_bound(spec.clip, step), sigma)


def check_sizing(spec: TaskSpec, terms: PrivacyTerms) -> None:
    """SPEC 7.2. Raises TaskRefused, naming a step that would fit."""
    try:
        _check_headroom(spec, terms.step, terms.noise_multiplier, terms.honest)
    except SizingRefused as error:
        larger = next(
            (terms.step * 2**k for k in range(1, 40) if _fits(spec, terms.step * 2**k, *_noise_of(terms))), None
        )
        hint = (
            f"a step of {larger:g} would fit"
            if larger and larger < spec.clip
            else "take a larger profile or a lower n_max"
        )
        raise TaskRefused(f"the sum could wrap around: {error}", hint, reason="sizing") from error


def _noise_of(terms: PrivacyTerms) -> tuple[float, int]:
    return terms.noise_multiplier, terms.honest


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
    try:
        check_model(model)
        length = int(read_vector(model).size)
    except ArtifactError as error:
        hint = "give an ONNX file as the SDK's authoring side publishes it, with --model"
        raise TaskRefused(f"the model is refused: {error}", hint, reason=error.reason) from error
    terms = settle(spec, length)
    if heldout is None:
        if spec.group_gate:
            raise TaskRefused("group_gate needs held-out records", "give them with --held-out", reason="groups")
        return Checked(length, terms, None)
    _check_metric(spec, evaluate(model, read_heldout(model, heldout)))
    return Checked(length, terms, heldout.read_bytes())


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
        facts = {"spec": hashlib.sha256(row.spec).hexdigest(), "model": sha256, "rounds": spec.rounds}
        audit_log.append(
            store.connection, now, "task-created", spec.name, **facts, unit=spec.unit, consent=spec.consent
        )
    return sha256
