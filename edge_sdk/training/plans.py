"""From the terms of an offer to one device's plan of training. Imports no torch."""

from __future__ import annotations

from edge_sdk.protocol.messages import PrivacyTerms
from edge_sdk.training.jobs import TrainingPlan


def training_plan(terms: PrivacyTerms, examples: int) -> TrainingPlan:
    """How this round trains on this device's examples.

    Record and customer: rate and divisor are the offer's own, so that the update does not betray how many there are.
    Noise is added in training for them alone, and only where it is placed locally; all other noise is in the mask.
    """
    sampled = terms.unit != "device"
    here = sampled and terms.placement == "local" and not terms.insecure_without_noise
    return TrainingPlan(
        unit=terms.unit,
        learning_rate=terms.learning_rate,
        steps=terms.steps,
        batch_size=terms.expected_batch if sampled else max(1, int(terms.sample_rate * examples)),
        max_grad_norm=terms.max_grad_norm,
        noise_multiplier=terms.noise_multiplier if here else 0.0,
        # The whole update of the device unit is trained alike, wherever its noise is placed.
        placement=terms.placement if sampled else "local",
        per_customer=terms.per_customer,
        insecure_without_noise=terms.insecure_without_noise,
        sample_rate=terms.sample_rate if sampled else None,
        proximal=0.0 if sampled and terms.placement == "shared" else terms.proximal,
        weight=min(examples, terms.weight_bound) / terms.weight_bound if terms.weight_bound else 1.0,
    )
