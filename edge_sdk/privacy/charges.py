"""What the terms of an offer cost each unit, and how much noise a device adds to what it uploads. Pure; SPEC 7.7.

Device and aggregator charge by these functions alone, so their ledgers can be compared.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import msgspec

from edge_sdk.privacy import accounting
from edge_sdk.protocol.messages import PrivacyTerms
from edge_sdk.protocol.quantize import l2_bound

COUNTED_STEPS: Final = 2.0**31 - 1  # of a clip; 32 bits hold no more, so finer rounding is charged without bound
# Offers with less noise are refused on both sides: one step without sampling has epsilon above 200 at any useful delta.
LEAST_NOISE: Final = 0.05


def too_little_noise(terms: PrivacyTerms) -> bool:
    """Is there noise, and so little that it protects nobody? Terms without any noise say so themselves."""
    return 0 < terms.noise_multiplier < LEAST_NOISE


def noise_in_mask(terms: PrivacyTerms) -> bool:
    """True where integer noise is added to the upload: shared noise, and the device unit always."""
    return (terms.placement == "shared" or terms.unit == "device") and not terms.insecure_without_noise


def sensitivity(terms: PrivacyTerms) -> float:
    """How far one unit can move what is noised, before rounding: the clip of the update or of one unit's gradient."""
    return terms.clip if terms.unit == "device" else terms.max_grad_norm


def sigma_steps(terms: PrivacyTerms) -> float:
    """Standard deviation, in quantisation steps, of the noise one device adds to its upload; 0.0 for none (SPEC 7.2).

    Shared: `honest` such shares carry noise_multiplier times the sensitivity. Local: one device carries it alone.
    """
    if not noise_in_mask(terms):
        return 0.0
    shares = terms.honest if terms.placement == "shared" else 1
    return terms.noise_multiplier * sensitivity(terms) / (terms.step * math.sqrt(shares))


def l2_steps(terms: PrivacyTerms, length: int) -> float:
    """L2 sensitivity, in steps, of the rounded upload of `length` coordinates: what integer noise is charged against.

    Device unit: quantize.l2_bound. Record and customer: two sums that differ by one clipped gradient, rounded with the
    same random numbers, differ in a coordinate by less than one step more than before: clip / step + sqrt(length).
    """
    if terms.unit == "device":
        return l2_bound(terms.clip, terms.step, length)
    return terms.max_grad_norm / terms.step + math.sqrt(length)


def update_scale(terms: PrivacyTerms) -> float:
    """What the mean of the opened sum is multiplied by to become a change of the weights, but for the server's rate.

    Shared record and customer: devices upload minus the sum of clipped gradients, so a step of size `learning_rate`
    over `expected_batch` units a device. Otherwise the upload is a change of the weights already: 1.
    """
    if terms.placement == "shared" and terms.unit != "device":
        return terms.learning_rate / terms.expected_batch
    return 1.0


@lru_cache(maxsize=64)
def spend(terms: PrivacyTerms, length: int) -> accounting.Spend:
    """What one round costs each unit, as Renyi divergences.

    Local record and customer: `steps` subsampled Gaussian steps. Otherwise one Skellam mechanism on the opened sum (or,
    local, on the upload); sampled where the unit is. The device unit claims no amplification: every device takes part.
    """
    if not noise_in_mask(terms):
        return accounting.subsampled_gaussian(terms.sample_rate, terms.noise_multiplier, terms.steps)
    if not sensitivity(terms) / terms.step < COUNTED_STEPS:
        return accounting.UNBOUNDED
    l2 = l2_steps(terms, length)
    deviation = terms.noise_multiplier * sensitivity(terms) / terms.step
    variance = deviation * deviation  # not a power: infinity is an answer here, an exception is not
    if terms.unit == "device":
        return accounting.skellam(l2, l2 * math.sqrt(length), variance)
    return accounting.subsampled_skellam(terms.sample_rate, l2, l2 * math.sqrt(length), variance)


def spend_of(terms: PrivacyTerms, length: int, rounds: int) -> accounting.Spend:
    """The spend of so many rounds of the same terms."""
    return tuple(rounds * order for order in spend(terms, length)) if rounds else accounting.NOTHING


def epsilon(terms: PrivacyTerms, length: int, rounds: int) -> float | None:
    """Epsilon at the terms' delta after so many rounds; None without noise."""
    if not terms.noise_multiplier:
        return None
    return accounting.epsilon(spend_of(terms, length, rounds), terms.delta)


def epsilon_on_devices(terms: PrivacyTerms, length: int, rounds: int, devices: int) -> float | None:
    """Epsilon of a person whom so many devices hold, each of which counts him as one unit; None without noise.

    Local noise: the spends of his devices add up. Shared noise: all that he adds goes into one sum, whose sensitivity
    is `devices` times that of one unit (group privacy), so it costs what `devices` times less noise would. The noise
    is that of the `honest` devices alone; where units are drawn, his devices are taken to draw him together.
    """
    if terms.placement == "shared":
        less = terms.noise_multiplier / devices
        return epsilon(msgspec.structs.replace(terms, noise_multiplier=less), length, rounds)
    return epsilon(terms, length, rounds * devices)


def calibrate(terms: PrivacyTerms, length: int, rounds: int, target: float) -> float:
    """The least noise multiplier (within 0.01 %) that keeps `rounds` rounds within epsilon `target`, rounding included.

    Everything else as in `terms`, whose own noise multiplier is not read. Raises ValueError where none does.
    """
    return accounting.calibrate(
        target, terms.delta, lambda z: spend_of(msgspec.structs.replace(terms, noise_multiplier=z), length, rounds)
    )


def rounds_within(terms: PrivacyTerms, length: int, target: float) -> int:
    """How many rounds of these terms stay within epsilon `target`; 0 where one is too many, at most 2^20."""
    if not terms.noise_multiplier:
        return 0
    fits, beyond = 0, 1
    while beyond < 1 << 20 and (epsilon(terms, length, beyond) or 0.0) <= target:
        fits, beyond = beyond, 2 * beyond
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        fits, beyond = (middle, beyond) if (epsilon(terms, length, middle) or 0.0) <= target else (fits, middle)
    return fits


def noise_over_signal(terms: PrivacyTerms, length: int, rounds: int, devices: int) -> float:
    """Norm of all noise that reaches the model over the largest movement that data could make of it, after `rounds`.

    Noise of independent steps adds up by squares, movements at best in one line. A movement is largest where every unit
    has a gradient (or a device an update) of the clip's norm and all point one way.
    """
    units = devices if terms.unit == "device" else devices * terms.expected_batch
    steps = rounds if terms.unit == "device" else rounds * terms.steps
    shares = math.sqrt(devices / terms.honest)  # each of `devices` adds its share, `honest` of them carry the whole
    return terms.noise_multiplier * shares * math.sqrt(length) / (units * math.sqrt(steps))
