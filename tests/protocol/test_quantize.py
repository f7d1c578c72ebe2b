"""Clip, unbiased rounding within the stated norm, sums that stay together, and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.protocol.errors import LocalProtocolError, SizingRefused
from edge_sdk.protocol.quantize import SUM_SCALE, dequantize, integer_bound, l2_bound, quantize, quantize_sum
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


class GivenUniforms:
    """A keystream whose words the test chooses: the same ones every time it is made."""

    def __init__(self, words: np.ndarray) -> None:
        self.words, self.at = words.astype(np.uint32), 0

    def uint32(self, count: int) -> np.ndarray:
        self.at += count
        return self.words[self.at - count : self.at]


# Places where rounding could go wrong: on the grid, a hair beside it, and huge or tiny beside the step.
NEAR = st.sampled_from([0.0, 1e-9, -1e-9, 2.0**-24, -(2.0**-24), 0.5, 1 - 1e-7])
PLACES = st.tuples(st.integers(-3000, 3000), NEAR)
EXTREMES = st.sampled_from([0, 1, 2**31, 2**32 - 2, 2**32 - 1])


@given(
    st.lists(
        st.tuples(PLACES, st.floats(-1, 1), st.one_of(EXTREMES, st.integers(0, 2**32 - 1))), min_size=1, max_size=40
    ),
    st.sampled_from([0.3, 1.0, 5.0, 64.0, 999.5]),
    st.sampled_from([1.0, 3.0, 1e9]),
)
@settings(max_examples=300, deadline=None)
def test_sums_that_differ_by_one_gradient_stay_within_the_charged_bound_for_the_same_uniforms(places, radius, clips):
    step = 1e-3
    gradient_clip, clip = radius * step, radius * step * clips
    scale = step / SUM_SCALE
    before = np.array([(k + e) * scale for (k, e), _, _ in places], np.float32)
    gradient = np.array([g for _, g, _ in places])
    gradient *= gradient_clip / max(np.linalg.norm(gradient), 1e-30)
    after = (before + gradient).astype(np.float32)
    moved = np.linalg.norm(after.astype(float) - before)
    words = np.array([w for _, _, w in places])
    clip = min(clip, 2.0**20 * step)
    one, other = (quantize_sum(v, clip, step, GivenUniforms(words)).astype(int) for v in (before, after))
    # What float32 itself adds to the distance is training's; the room for it is tested below.
    assert norm(one - other) <= max(moved, gradient_clip) / step + math.sqrt(len(places))
    assert max(np.abs(one).max(), np.abs(other).max()) <= integer_bound(clip, step)


def test_a_sum_in_float32_of_64_gradients_keeps_the_bound_though_each_is_at_the_clip():
    rng = np.random.default_rng(7)
    size, clip, step = 50, 1.0, 2.0**-14
    for trial in range(50):
        gradients = rng.normal(size=(64, size)) * (rng.random(size) < 0.2)
        gradients = (gradients * (clip / np.linalg.norm(gradients, axis=1, keepdims=True))).astype(np.float32)
        sums = [np.add.accumulate(rows, dtype=np.float32)[-1] for rows in (gradients, gradients[1:])]
        key = bytes([trial] * 32)
        one, other = (quantize_sum(total, 64.0, step, Keystream(key)).astype(int) for total in sums)
        assert norm(one - other) <= clip / step + math.sqrt(size)


def test_a_sum_is_rounded_without_bias_and_a_long_one_projected():
    vector = np.array([0.3, -0.3, 1.75, -2.5, 0.001], np.float32)
    stream = Keystream(KEY)
    draws = np.array([quantize_sum(vector, 1e3, 1.0, stream) for _ in range(20_000)])
    assert np.abs(draws.mean(axis=0) - SUM_SCALE * vector).max() < 4 * 0.5 / math.sqrt(20_000)
    long = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    assert abs(norm(quantize_sum(long, 1.0, 1e-5, Keystream(KEY))) * 1e-5 - SUM_SCALE) < 1e-3
    with pytest.raises(LocalProtocolError):
        quantize_sum(np.array([np.nan], np.float32), 1.0, 0.1, Keystream(KEY))
