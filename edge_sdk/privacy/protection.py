"""From what training gave to the integers that a device masks: rounding, and its share of the noise. SPEC 7.4, 7.7.

Draws no randomness of its own: each function takes a keystream. Refuses NaN, infinity and more than one dimension.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from edge_sdk.privacy.charges import sigma_steps
from edge_sdk.privacy.mechanism import SkellamSampler
from edge_sdk.protocol.messages import PrivacyTerms
from edge_sdk.protocol.quantize import quantize, quantize_sum
from edge_sdk.protocol.secagg.keystream import Keystream


def quantised(terms: PrivacyTerms, update: npt.NDArray[np.float32], keystream: Keystream) -> npt.NDArray[np.int32]:
    """What training gave, in steps, int32[d]: rounded as the bound that is charged presumes (charges.l2_steps).

    A sum of gradients for shared noise is rounded once. All else is a whole update: the device unit's, whose norm is
    its sensitivity, or one that local noise has made private already.
    """
    of_sum = terms.unit != "device" and terms.placement == "shared"
    return (quantize_sum if of_sum else quantize)(update, terms.clip, terms.step, keystream)


def noise_share(terms: PrivacyTerms, length: int, keystream: Keystream) -> npt.NDArray[np.int32] | None:
    """This device's Skellam noise, int32[length] in steps; None where none is added in the mask."""
    sigma = sigma_steps(terms)
    return _sampler(sigma**2).draw(length, keystream) if sigma > 0 else None


@lru_cache(maxsize=4)
def _sampler(variance: float) -> SkellamSampler:
    """The sampler, kept: its table takes longer to make than thousands of draws take."""
    return SkellamSampler(variance)
