"""The average against plain numpy, on the bytes of a real model."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.averaging import LINEAGE, ROUND, average
from aggregator.errors import ModelRefused
from aggregator.tasks import build_spec, settle
from edge_sdk.artifact.graph_lock import graph_digest
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.weights import metadata, read_vector
from edge_sdk.privacy import charges

SCHEMA = Schema((NumberField("a"), NumberField("b")), Label("y", "binary", ("no", "yes")))
MODEL = tabular_classifier(SCHEMA, (4,), seed=3)
LENGTH = read_vector(MODEL).size


def averaged(total, **changes) -> bytes:
    terms = {"step": 2.0**-10, "devices": 7, "server_learning_rate": 1.0, "metadata": {ROUND: "3"}, **changes}
    return average(MODEL, total, **terms)


@given(st.integers(0, 2**32), st.integers(1, 500), st.sampled_from([0.5, 1.0, 2.0]))
def test_the_model_moves_by_the_mean_update(seed, devices, rate):
    updates = np.random.default_rng(seed).integers(-5000, 5000, (devices, LENGTH))
    new = averaged(updates.sum(axis=0).astype(np.int64), devices=devices, server_learning_rate=rate)
    expected = read_vector(MODEL).astype(np.float64) + rate * (updates * 2.0**-10).mean(axis=0)
    np.testing.assert_allclose(read_vector(new), expected, rtol=1e-6, atol=1e-6)


def test_the_same_sum_gives_the_same_bytes_and_the_same_graph():
    total = np.arange(LENGTH, dtype=np.int64)
    assert averaged(total) == averaged(total)
    assert graph_digest(averaged(total)) == graph_digest(MODEL)


def test_the_new_model_names_its_round_and_its_parent():
    words = metadata(averaged(np.zeros(LENGTH, np.int64)))
    assert words[ROUND] == "3"
    assert words[LINEAGE] == hashlib.sha256(MODEL).hexdigest()


def test_a_sum_of_the_wrong_length_or_beyond_float32_is_refused():
    with pytest.raises(ModelRefused):
        averaged(np.zeros(LENGTH + 1, np.int64))
    with pytest.raises(ModelRefused):
        averaged(np.full(LENGTH, 2**62, np.int64), step=1e30)


def test_an_opened_sum_of_gradients_is_a_step_of_central_training():
    spec = build_spec(name="t", unit="customer", placement="shared", profile="P32", n_max=50, noise_multiplier=1.0)
    terms = settle(spec, LENGTH)
    gradients = np.random.default_rng(4).normal(size=(7, LENGTH))  # of each device's whole batch
    total = np.rint(-gradients / terms.step).astype(np.int64).sum(axis=0)
    new = averaged(total, step=terms.step, server_learning_rate=charges.update_scale(terms))
    expected = read_vector(MODEL) - terms.learning_rate * gradients.sum(axis=0) / (7 * terms.expected_batch)
    np.testing.assert_allclose(read_vector(new), expected, atol=1e-5)
    assert charges.update_scale(settle(build_spec(name="t", noise_multiplier=1.0), LENGTH)) == 1.0
