"""From a task's wishes to the terms that every offer carries: noise, step, clip, sizing. Pure.

Refuses, with TaskRefused and what would make it feasible, a task without noise or with next to none, an epsilon that no
noise reaches, a cohort too small for its unit, a sum that could wrap around, and noise that drowns all that the rounds
could learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from aggregator.errors import TaskRefused
from edge_sdk.privacy import charges
from edge_sdk.protocol.errors import SizingRefused
from edge_sdk.protocol.messages import Placement, PrivacyTerms
from edge_sdk.protocol.quantize import integer_bound
from edge_sdk.protocol.secagg.committee import check_headroom
from edge_sdk.protocol.secagg.ring import profile

if TYPE_CHECKING:
    from aggregator.tasks import TaskSpec

MOST_STEPS: Final = 18  # a clip of 2^18 steps: rounding is then far below any noise
SIGMA_STEPS: Final = 128.0  # one device's noise in steps: Skellam is Gaussian there and its table small
ROUNDING: Final = 0.02  # shared record and customer: rounding may add so much to the sensitivity
LOCAL_STEPS: Final = 10  # training steps a round where the task does not say
# Noise so many times above the largest movement that data could make leaves nothing to learn. Far on the safe side:
# useful tasks lie below about 5.
MOST_NOISE: Final = 50.0
LEAST_HONEST: Final = 2  # shared noise of one honest device would be that device's own: local noise says so plainly
_PROFILES: Final = ("P16", "P24", "P32")


def settle(spec: TaskSpec, length: int) -> PrivacyTerms:
    """The terms that every offer of the task carries, for an update of `length` coordinates. Raises TaskRefused."""
    _check_words(spec)
    fine = _draft(spec, length)
    terms = replace(fine, noise_multiplier=_noise(spec, fine, length))
    _check_useful(spec, terms, length)
    terms = replace(terms, step=spec.step or _step(spec, terms, length))
    if charges.noise_in_mask(terms):
        terms = replace(terms, noise_multiplier=_noise(spec, terms, length))
    _check_noise(terms, length)
    check_sizing(spec, terms)
    _check_budget(spec, terms, length)
    return terms


def placement_of(spec: TaskSpec) -> Placement:
    """Where the noise is added: as stated, else shared for the device unit and local for the others."""
    return spec.placement or ("shared" if spec.unit == "device" else "local")


def _draft(spec: TaskSpec, length: int) -> PrivacyTerms:
    """All but noise and step; the step is so fine that rounding costs nothing."""
    placement = placement_of(spec)
    batch = max(1, round(spec.sample_rate * spec.units_per_device))
    clip = spec.clip or _clip(spec, placement, batch)
    return PrivacyTerms(
        unit=spec.unit,
        placement=placement,
        noise_multiplier=spec.noise_multiplier or 0.0,
        per_customer=spec.per_customer,
        max_grad_norm=spec.max_grad_norm,
        sample_rate=spec.sample_rate,
        steps=_steps(spec, placement),
        learning_rate=spec.learning_rate,
        delta=spec.delta,
        honest=max(1, math.floor(spec.honest_share * spec.n_min)) if placement == "shared" else 1,
        clip=clip,
        step=(clip if spec.unit == "device" else spec.max_grad_norm) / (1000 * math.sqrt(length)),
        insecure_without_noise=spec.insecure_without_noise,
        expected_batch=batch,
        proximal=spec.proximal,
        weight_bound=spec.weight_bound,
    )


def update_scale(spec: TaskSpec, terms: PrivacyTerms) -> float:
    """What turns the mean of the opened sum into a change of the weights, but for the server's rate.

    With weighted updates the divisor is the number of devices still, times the weight of a device of
    `units_per_device` examples: the true weights would need the counts.
    """
    weight = min(spec.units_per_device, terms.weight_bound) / terms.weight_bound if terms.weight_bound else 1.0
    return charges.update_scale(terms) / weight


def _of_sums(spec: TaskSpec) -> bool:
    """Does a device upload the sum of its units' gradients, not a change of the weights?"""
    return placement_of(spec) == "shared" and spec.unit != "device"


def _clip(spec: TaskSpec, placement: Placement, batch: int) -> float:
    """One for a change of the weights; for a sum of gradients what a batch does not reach but once in 10^8 steps."""
    if placement == "shared" and spec.unit != "device":
        return spec.max_grad_norm * (batch + 6 * math.sqrt(batch) + 6)
    return 1.0


def _steps(spec: TaskSpec, placement: Placement) -> int:
    if placement == "local" or spec.unit == "device":
        return spec.steps or LOCAL_STEPS
    if spec.steps not in (None, 1):
        raise TaskRefused(
            f"shared noise takes one step a round for the {spec.unit} unit, not {spec.steps}",
            "leave steps out and take more rounds, or choose placement local",
            reason="privacy",
        )
    return 1


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
    _check_local_steps(spec)
    if placement_of(spec) == "shared" and any(given) and spec.honest_share * spec.n_min < LEAST_HONEST:
        raise TaskRefused(
            f"of {spec.n_min} devices, {spec.honest_share:g} are taken to be honest: too few to share noise",
            f"an n_min of {math.ceil(LEAST_HONEST / spec.honest_share)} would do, or placement local",
            reason="cohort",
        )


def _check_local_steps(spec: TaskSpec) -> None:
    """FedProx needs a second local step to pull, and a weight by examples must not betray their number."""
    if _of_sums(spec) and (spec.proximal or spec.weight_bound):
        raise TaskRefused(
            "proximal and weight_bound are for changes of weights, and here devices upload one step's sum of gradients",
            "leave them out: one step does not stray, and its sum weighs every device by its examples already",
            reason="placement",
        )
    if spec.weight_bound and spec.unit != "device" and not spec.insecure_without_noise:
        raise TaskRefused(
            f"the weight of an update would betray how many examples its device holds: the {spec.unit} unit hides that",
            "leave weight_bound out, or choose the device unit, whose noise hides all examples of a device",
            reason="privacy",
        )
    if spec.proximal * spec.learning_rate > 1:
        raise TaskRefused(
            f"a proximal pull of {spec.proximal:g} at learning rate {spec.learning_rate:g} would overshoot",
            f"give at most {1 / spec.learning_rate:g}",
            reason="proximal",
        )


def _noise(spec: TaskSpec, terms: PrivacyTerms, length: int) -> float:
    """The noise multiplier: the one stated, or the least that keeps all rounds within the target."""
    if spec.target_epsilon is None:
        return spec.noise_multiplier or 0.0
    try:
        return charges.calibrate(terms, length, spec.rounds, spec.target_epsilon)
    except ValueError as error:
        least = charges.epsilon(replace(terms, noise_multiplier=2.0**30), length, 1) or math.inf
        raise TaskRefused(
            f"no noise keeps {spec.rounds} rounds, or even one, within epsilon {spec.target_epsilon:g} at delta "
            f"{spec.delta:g}",
            f"a target_epsilon of {_upwards(least)} would be possible, or a larger delta",
            reason="privacy",
        ) from error


def _check_noise(terms: PrivacyTerms, length: int) -> None:
    """Every device would refuse such an offer."""
    if not charges.too_little_noise(terms):
        return
    least = replace(terms, noise_multiplier=charges.LEAST_NOISE)
    raise TaskRefused(
        f"a noise_multiplier below {charges.LEAST_NOISE:g} protects nobody, and this is {terms.noise_multiplier:.3g}",
        f"give at least {charges.LEAST_NOISE:g}: one round of that spends epsilon "
        f"{charges.epsilon(least, length, 1) or math.inf:.3g} already; useful tasks stay below 8",
        reason="privacy",
    )


def _check_useful(spec: TaskSpec, terms: PrivacyTerms, length: int) -> None:
    ratio = charges.noise_over_signal(terms, length, spec.rounds, spec.n_min)
    if ratio <= MOST_NOISE or spec.accept_little_signal:
        return
    less = replace(terms, noise_multiplier=terms.noise_multiplier * MOST_NOISE / ratio)
    epsilon = charges.epsilon(less, length, spec.rounds)
    remedy = "" if epsilon is None or not math.isfinite(epsilon) else f", or a target_epsilon of {_upwards(epsilon)}"
    raise TaskRefused(
        f"the noise would be {ratio:.0f} times the most that {spec.rounds} rounds of {spec.n_min} devices can move the "
        "model: nothing would be learnt",
        f"an n_min of {_cohort_for(spec, terms, length)}{remedy} would bring it to {MOST_NOISE:g}; "
        "accept_little_signal goes on regardless",
        reason="signal",
    )


def _cohort_for(spec: TaskSpec, terms: PrivacyTerms, length: int) -> int:
    def drowned(n: int) -> bool:
        honest = max(1, math.floor(spec.honest_share * n)) if terms.placement == "shared" else 1
        return charges.noise_over_signal(replace(terms, honest=honest), length, spec.rounds, n) > MOST_NOISE

    return _least(drowned, spec.n_min)


def _least(bad: Callable[[int], bool], low: int) -> int:
    """The least number above `low` that is not `bad`."""
    high = 2 * low
    while bad(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if bad(middle) else (low, middle)
    return high


def _check_budget(spec: TaskSpec, terms: PrivacyTerms, length: int) -> None:
    """All rounds must stay within max_epsilon, where it is given."""
    spent = charges.epsilon(terms, length, spec.rounds)
    if spec.max_epsilon is None or spent is None or spent <= spec.max_epsilon:
        return
    most = charges.rounds_within(terms, length, spec.max_epsilon)
    fewer = f"take at most {most} rounds" if most else "take more noise: one round of this one is too much"
    raise TaskRefused(
        f"{spec.rounds} rounds would spend epsilon {spent:.4g}, and max_epsilon is {spec.max_epsilon:g}",
        f"{fewer}, or allow a max_epsilon of {_upwards(spent)}",
        reason="privacy",
    )


def _upwards(epsilon: float) -> str:
    """Three digits, never below the value."""
    digits = 2 - math.floor(math.log10(epsilon))
    return f"{math.ceil(epsilon * 10**digits) / 10**digits:g}"


def _step(spec: TaskSpec, terms: PrivacyTerms, length: int) -> float:
    """The finest power of two that fits: as many steps as noise and rounding need, then what the profile holds."""
    step = _finest(spec, terms, length)
    if step is None:
        raise TaskRefused(
            f"{spec.n_max} devices do not fit profile {spec.profile}", _remedy(spec, terms, length), reason="sizing"
        )
    return step


def _finest(spec: TaskSpec, terms: PrivacyTerms, length: int) -> float | None:
    size, most = terms.clip, 2.0**MOST_STEPS
    wanted = most
    if _of_sums(spec):
        size, wanted = terms.max_grad_norm, math.sqrt(length) / ROUNDING
    elif spec.unit == "device" and terms.noise_multiplier:
        wanted = min(most, 8 * math.sqrt(length))
    coarsest = math.floor(math.log2(size / wanted)) if _of_sums(spec) else None
    if charges.noise_in_mask(terms):
        wanted = max(wanted, min(most, SIGMA_STEPS * math.sqrt(terms.honest) / terms.noise_multiplier))
    exponent = math.floor(math.log2(size / wanted))
    for finer in range(exponent, exponent + 2 * MOST_STEPS):
        if coarsest is not None and finer > coarsest:
            return None
        if _fits(spec, replace(terms, step=2.0**finer)):
            return 2.0**finer
    return None


def _remedy(spec: TaskSpec, terms: PrivacyTerms, length: int) -> str:
    """What would make room: a profile, a smaller cohort, a smaller batch, or less noise."""
    larger = _PROFILES[_PROFILES.index(spec.profile) + 1 :]
    for name in larger:
        if _finest(replace(spec, profile=name), terms, length) is not None:
            return f"profile {name} would fit, or a lower n_max"
    best = replace(spec, profile=_PROFILES[-1])
    n_max = spec.n_max
    while n_max > spec.n_min:
        n_max = max(spec.n_min, n_max * 3 // 4)
        if _finest(replace(best, n_max=n_max), terms, length) is not None:
            return f"an n_max of {n_max} with profile {_PROFILES[-1]} would fit" + _or_batch(spec)
    less = _noise_that_fits(best, terms, length)
    if less is None:
        return "take a smaller model or a smaller clip" + _or_batch(spec)
    epsilon = charges.epsilon(less, length, spec.rounds) or math.inf
    rounds = charges.rounds_within(less, length, spec.target_epsilon or math.inf)
    return f"a target_epsilon of {_upwards(epsilon)}, or {rounds} rounds, would fit with profile {_PROFILES[-1]}"


def _or_batch(spec: TaskSpec) -> str:
    return "; a lower sample_rate or units_per_device makes room too" if _of_sums(spec) else ""


def _noise_that_fits(spec: TaskSpec, terms: PrivacyTerms, length: int) -> PrivacyTerms | None:
    for halvings in range(1, 30):
        less = replace(terms, noise_multiplier=terms.noise_multiplier / 2**halvings, step=terms.clip / 1000)
        if spec.target_epsilon and _finest(replace(spec, n_max=spec.n_min), less, length) is not None:
            return replace(less, step=_finest(replace(spec, n_max=spec.n_min), less, length) or less.step)
    return None


def _fits(spec: TaskSpec, terms: PrivacyTerms) -> bool:
    try:
        _check_headroom(spec, terms)
    except SizingRefused:
        return False
    return True


def _check_headroom(spec: TaskSpec, terms: PrivacyTerms) -> None:
    # Rounding will ask for a little more noise than the step was chosen with.
    sigma = charges.sigma_steps(terms) * (1 + ROUNDING)
    check_headroom(profile(spec.profile), spec.n_max, integer_bound(terms.clip, terms.step), sigma)


def headroom(spec: TaskSpec, terms: PrivacyTerms) -> float:
    """Share of half the modulus that the largest cohort can use; below 1."""
    ring, n = profile(spec.profile), spec.n_max
    noise = 6.5 * math.sqrt(n) * math.hypot(4.0, charges.sigma_steps(terms))
    return (n * integer_bound(terms.clip, terms.step) + noise) / (ring.modulus / 2)


def check_sizing(spec: TaskSpec, terms: PrivacyTerms) -> None:
    """SPEC 7.2. Raises TaskRefused, naming a step that would fit."""
    try:
        _check_headroom(spec, terms)
    except SizingRefused as error:
        larger = next(
            (terms.step * 2**k for k in range(1, 40) if _fits(spec, replace(terms, step=terms.step * 2**k))), None
        )
        fits = larger is not None and larger < charges.sensitivity(terms)
        hint = f"a step of {larger:g} would fit" if fits else "take a larger profile or a lower n_max"
        raise TaskRefused(f"the sum could wrap around: {error}", hint, reason="sizing") from error
