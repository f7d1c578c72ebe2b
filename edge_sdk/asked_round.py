"""A query round on the device (SPEC 7.9): statistics of its examples in place of an update. Imports no torch.

Runs the offered checkpoint in this process where the query asks about the model: its graph is the one that the offline
key locked. Draws no randomness: entropy is passed in. Refuses, with QueryRefused, what its records do not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sdk.analytics import contributions, layout
from edge_sdk.artifact.features import features
from edge_sdk.artifact.schema import Schema
from edge_sdk.examples_store import Example
from edge_sdk.inference import OUTPUT, open_session
from edge_sdk.privacy.charges import noise_in_mask, sensitivity
from edge_sdk.protocol.messages import Offer, PrivacyTerms
from edge_sdk.training.noise import Gaussian
from edge_sdk.training.secure_random import SecretStream
from edge_sdk.training.units import Units

Floats = npt.NDArray[np.float32]


def answer(
    offer: Offer,
    model: bytes,
    schema: Schema,
    examples: Sequence[Example],
    subjects: npt.NDArray[np.int64],
    *,
    entropy: Callable[[int], bytes],
) -> Floats:
    """The sum over this device's units, float32 [offer.length]; with local noise in it where it is not in the mask.

    `subjects`, int64 [B]: whose each example is. Raises QueryRefused.
    """
    query, terms = offer.query, offer.privacy
    assert query is not None
    layout.check_fields(query, schema)
    rows, bounds = _drawn(terms, len(examples), subjects, entropy(32))
    records = contributions.Records([examples[i].fields for i in rows], [examples[i].label for i in rows], bounds)
    asked = contributions.Asked(query, schema, sensitivity(terms), _predict(model, schema))
    total = contributions.total(asked, records)
    return total.astype(np.float32) + _noise(terms, len(total), entropy(32))


def _drawn(
    terms: PrivacyTerms, count: int, subjects: npt.NDArray[np.int64], key: bytes
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The examples that count, and where each unit of them begins. A device is one unit and always counts."""
    if terms.unit == "device":
        return np.arange(count), np.array([0, count])
    units = Units(count, subjects if terms.unit == "customer" else None, terms.per_customer)
    drawn = units.draw(SecretStream(key), terms.sample_rate)
    return drawn.rows, drawn.bounds


def _noise(terms: PrivacyTerms, length: int, key: bytes) -> Floats:
    """Gaussian noise of the whole guarantee for local record and customer; the mask brings all other noise."""
    noise = np.zeros(length, np.float32)
    if not noise_in_mask(terms) and not terms.insecure_without_noise:
        Gaussian(SecretStream(key)).fill(noise, terms.noise_multiplier * sensitivity(terms))
    return noise


def _predict(model: bytes, schema: Schema) -> contributions.Predict:
    """Logits by the offered checkpoint; the session is opened when the first are asked for."""
    opened: list[Any] = []

    def predict(records: Sequence[Mapping[str, Any]]) -> npt.NDArray[Any]:
        if not opened:
            opened.append(open_session(model))
        logits: npt.NDArray[Any] = opened[0].run([OUTPUT], features(schema, records))[0]
        return logits

    return predict
