"""What the terms of an offer cost each unit, and how much noise a device adds to what it uploads. Pure; SPEC 7.7.

Device and aggregator charge by these functions alone, so their ledgers can be compared.
"""

from __future__ import annotations

import math

from edge_sdk.privacy import accounting
from edge_sdk.protocol.messages import PrivacyTerms
from edge_sdk.protocol.quantize import l2_bound


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


def spend(terms: PrivacyTerms, length: int) -> accounting.Spend:
    """What one round costs each unit, as Renyi divergences.

    Local record and customer: `steps` subsampled Gaussian steps. Otherwise one Skellam mechanism on the opened sum (or,
    local, on the upload); sampled where the unit is. The device unit claims no amplification: every device takes part.
    """
    if not noise_in_mask(terms):
        return accounting.subsampled_gaussian(terms.sample_rate, terms.noise_multiplier, terms.steps)
    l2 = l2_steps(terms, length)
    variance = (terms.noise_multiplier * sensitivity(terms) / terms.step) ** 2
    if terms.unit == "device":
        return accounting.skellam(l2, l2 * math.sqrt(length), variance)
    return accounting.subsampled_skellam(terms.sample_rate, l2, l2 * math.sqrt(length), variance)
