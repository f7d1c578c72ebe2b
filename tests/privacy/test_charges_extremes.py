"""Whatever terms a message may carry, a charge is a bound, in bounded time."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import msgpack

from edge_sdk.privacy import charges
from edge_sdk.privacy.accounting import NOTHING, UNBOUNDED
from edge_sdk.protocol.messages import PrivacyTerms

LEAST = math.ulp(0.0)
POSITIVE = st.sampled_from([LEAST, 1e-160, 1e-6, 1.0, 1e12]) | st.floats(LEAST, 1e12)
TERMS = st.builds(
    PrivacyTerms,
    unit=st.sampled_from(["record", "customer", "device"]),
    placement=st.sampled_from(["local", "shared"]),
    noise_multiplier=st.sampled_from([0.0, LEAST, 1e-160, 1e-3, 0.05, 0.299, 0.3, 1e12]) | st.floats(0.0, 1e12),
    max_grad_norm=POSITIVE,
    per_customer=st.just(32),
    sample_rate=st.sampled_from([LEAST, 1e-9, 0.1, 1 - 2.0**-53, 1.0]) | st.floats(LEAST, 1.0),
    steps=st.sampled_from([1, 100_000]),
    learning_rate=POSITIVE,
    delta=st.sampled_from([LEAST, 1e-5, 1 - 2.0**-53]),
    honest=st.sampled_from([1, 65_535]),
    clip=POSITIVE,
    step=POSITIVE,
    insecure_without_noise=st.booleans(),
    expected_batch=st.sampled_from([1, 1_000_000]),
    proximal=st.sampled_from([0.0, 1e12]),
    weight_bound=st.sampled_from([0, 1_000_000]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(terms=TERMS, length=st.sampled_from([1, 1000, 1 << 31]))
def test_no_terms_that_parse_make_a_charge_slow_wrong_or_impossible(terms, length):
    assert msgpack.decode(msgpack.encode(terms), type=PrivacyTerms) == terms, "the schema allows them"
    began = time.process_time()
    spent = charges.spend(terms, length)
    assert time.process_time() - began < 0.2
    assert len(spent) == len(NOTHING)
    assert all(order >= 0 for order in spent), "not a number is not at least 0"
    figure = charges.epsilon(terms, length, 3)
    assert figure is None or figure >= 0


@pytest.mark.parametrize("unit", ["record", "device"])
def test_noise_that_rounds_to_nothing_is_charged_without_bound(unit):
    terms = PrivacyTerms(
        unit=unit, placement="shared", noise_multiplier=1e-9, max_grad_norm=1.0, per_customer=1, sample_rate=0.1,
        steps=1, learning_rate=0.1, delta=1e-5, honest=4, clip=1.0, step=1e-3, insecure_without_noise=False,
        expected_batch=10, proximal=0.0, weight_bound=0,
    )  # fmt: skip
    assert charges.spend(terms, 100) == UNBOUNDED
    assert charges.too_little_noise(terms)
