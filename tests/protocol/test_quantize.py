"""Clip, unbiased rounding within the stated norm, and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.protocol.errors import LocalProtocolError, SizingRefused
from edge_sdk.protocol.quantize import dequantize, integer_bound, l2_bound, quantize
from edge_sdk.protocol.secagg.keystream import Keystream

KEY = bytes(range(32))


def norm(vector: np.ndarray) -> float:
    return math.sqrt(sum(int(v) ** 2 for v in vector))


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
    st.floats(0.01, 100),
    st.floats(0.001, 10),
    st.binary(min_size=32, max_size=32),
)
@settings(max_examples=200, deadline=None)
def test_no_result_leaves_the_bounds_that_the_accountant_counts_with(values, clip, step, key):
    rounded = quantize(np.array(values, np.float32), clip, step, Keystream(key))
    assert rounded.dtype == np.int32
    assert norm(rounded) <= l2_bound(clip, step, len(values)) * (1 + 1e-12)
    assert np.abs(rounded).max() <= integer_bound(clip, step)


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=60), st.binary(min_size=32, max_size=32))
def test_every_value_is_rounded_to_a_neighbour(values, key):
    vector = np.array(values, np.float32)
    clip, step = 3.0, 0.01
    scaled = vector.astype(float) * min(1.0, clip / (np.linalg.norm(vector.astype(float)) or 1.0)) / step
    assert np.all(np.abs(quantize(vector, clip, step, Keystream(key)) - scaled) < 1 + 1e-9)


def test_rounding_is_unbiased():
    vector = np.array([0.3, -0.3, 0.0, 1.75, -2.5, 0.001], np.float32)
    stream = Keystream(KEY)
    draws = np.array([quantize(vector, 1e3, 1.0, stream) for _ in range(20_000)])
    assert np.abs(draws.mean(axis=0) - vector).max() < 4 * 0.5 / math.sqrt(20_000)


def test_whole_steps_are_exact():
    vector = np.arange(-50, 50, dtype=np.float32)
    assert np.array_equal(quantize(vector, 1e4, 1.0, Keystream(KEY)), vector.astype(int))


def test_a_long_vector_is_scaled_to_the_clip_and_a_short_one_left_alone():
    long = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    rounded = quantize(long, 1.0, 1e-5, Keystream(KEY))
    assert abs(norm(rounded) * 1e-5 - 1) < 1e-3
    cosine = rounded @ long.astype(float) / (norm(rounded) * np.linalg.norm(long))
    assert cosine > 0.999
    assert abs(norm(quantize(long, 1e3, 1e-3, Keystream(KEY))) * 1e-3 - np.linalg.norm(long)) < 0.1


def test_a_draw_beyond_the_bound_is_drawn_again_and_at_last_rounded_toward_zero():
    class AlwaysUp:
        calls = 0

        def uint32(self, count):
            AlwaysUp.calls += 1
            return np.full(count, 2**32 - 1, np.uint32)

    vector = np.full(4000, 0.001, np.float32)
    assert not quantize(vector, 1.0, 1.0, AlwaysUp()).any()
    assert AlwaysUp.calls == 10


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_with_its_place(bad):
    vector = np.zeros(40_000, np.float32)
    vector[33_333] = bad
    with pytest.raises(LocalProtocolError, match=f"{bad} at position 33333") as refusal:
        quantize(vector, 1.0, 0.1, Keystream(KEY))
    assert refusal.value.reason == "not-finite"


@pytest.mark.parametrize(("clip", "step"), [(0, 1), (1, 0), (-1, 1), (math.nan, 1), (1, math.inf), (1e10, 1e-10)])
def test_impossible_clips_and_steps_are_refused(clip, step):
    with pytest.raises(SizingRefused):
        quantize(np.zeros(3, np.float32), clip, step, Keystream(KEY))


def test_the_bound_is_the_published_formula():
    radius, size = 100.0, 10_000
    expected = math.sqrt(min((radius + 100) ** 2, radius**2 + size / 4 + radius + 50))
    assert l2_bound(1.0, 0.01, size) == pytest.approx(expected)
    assert l2_bound(1.0, 0.01, 1) <= 101


def test_the_mean_comes_back():
    total = np.array([10, -20, 0], np.int64)
    assert dequantize(total, 0.5, 4).tolist() == [1.25, -2.5, 0.0]
    assert dequantize(total, 0.5, 4).dtype == np.float32
    with pytest.raises(LocalProtocolError):
        dequantize(total, 0.5, 0)


def test_an_empty_or_zero_vector_passes():
    assert quantize(np.zeros(0, np.float32), 1.0, 0.1, Keystream(KEY)).shape == (0,)
    assert not quantize(np.zeros(9, np.float32), 1.0, 0.1, Keystream(KEY)).any()
