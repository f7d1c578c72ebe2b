"""The integer noise is Skellam to within the distance stated, and clipping clips."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import special, stats

from edge_sdk.privacy.mechanism import SkellamSampler, _alias_table, _weights, clip_l2
from edge_sdk.protocol.errors import LocalProtocolError
from edge_sdk.protocol.secagg.keystream import Keystream

KEY = bytes(range(32))


@pytest.mark.parametrize("variance", [0.01, 0.5, 16.0, 126.0**2])
def test_the_probabilities_are_those_of_bessel_functions(variance):
    weights = _weights(Fraction(variance))
    reach = len(weights) // 2
    expected = special.ive(np.abs(np.arange(-reach, reach + 1)), variance)
    assert sum(weights) == 2**64
    assert weights == weights[::-1]
    assert np.allclose(np.array(weights, float) / 2**64, expected, rtol=1e-9, atol=2.0**-60)


@pytest.mark.parametrize("variance", [0.3, 40.0, 5000.0])
def test_the_alias_table_holds_exactly_the_weights(variance):
    weights = _weights(Fraction(variance))
    bits = (len(weights) - 1).bit_length()
    threshold, alias = _alias_table(list(weights), bits)
    held = [0] * (1 << bits)
    for cell, (limit, other) in enumerate(zip(threshold, alias, strict=True)):
        held[cell] += limit
        held[other] += (1 << (64 - bits)) - limit
    assert held == weights + [0] * (len(held) - len(weights))


@pytest.mark.parametrize("variance", [0.5, 16.0, 126.0**2, 5000.0**2])
def test_draws_have_the_moments_of_skellam(variance):
    count = 200_000
    drawn = SkellamSampler(variance).draw(count, Keystream(KEY)).astype(float)
    assert abs(drawn.mean()) < 4.5 * math.sqrt(variance / count)
    assert abs(drawn.var() / variance - 1) < 4.5 * math.sqrt((2 + 1 / variance) / count)
    assert abs(stats.kurtosis(drawn) - 1 / variance) < 4.5 * math.sqrt(24 / count) * (1 + 4 / variance)


@pytest.mark.parametrize("sigma", [2.0, 30.0])
def test_sums_of_draws_are_skellam_by_chi_square(sigma):
    devices, count = 8, 100_000
    sampler = SkellamSampler(sigma**2)
    total = sum(sampler.draw(count, Keystream(bytes([i] * 32))) for i in range(devices))
    exact = stats.skellam(devices * sigma**2 / 2, devices * sigma**2 / 2)
    edges = np.unique(exact.ppf(np.linspace(0.02, 0.98, 25)))
    probabilities = np.diff(np.concatenate([[0.0], exact.cdf(edges), [1.0]]))
    counts = np.bincount(np.searchsorted(edges, total), minlength=len(edges) + 1)
    assert stats.chisquare(counts, probabilities * count).pvalue > 1e-4


def test_draws_follow_the_keystream_and_nothing_else():
    sampler = SkellamSampler(100.0)
    first = sampler.draw(20_000, Keystream(KEY))
    assert np.array_equal(first, sampler.draw(20_000, Keystream(KEY)))
    assert not np.array_equal(first, sampler.draw(20_000, Keystream(bytes(32))))
    assert sampler.draw(0, Keystream(KEY)).shape == (0,)


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan, math.inf])
def test_noise_without_variance_is_refused(variance):
    with pytest.raises(LocalProtocolError):
        SkellamSampler(variance)


def test_clipping_keeps_the_direction_and_refuses_what_is_not_finite():
    vector = np.array([3.0, 4.0], np.float32)
    assert np.allclose(clip_l2(vector, 1.0), [0.6, 0.8])
    assert np.array_equal(clip_l2(vector, 5.0), vector)
    with pytest.raises(LocalProtocolError):
        clip_l2(np.array([np.nan], np.float32), 1.0)


def test_a_word_below_its_cell_s_threshold_takes_the_cell_and_any_other_the_alias():
    sampler, weights = SkellamSampler(40.0), _weights(Fraction(40))
    bits, reach = (len(weights) - 1).bit_length(), len(weights) // 2
    threshold, alias = _alias_table(list(weights), bits)
    full = (1 << (64 - bits)) - 1
    for cell in range(1 << bits):
        limit = threshold[cell]
        for above in (word for word in (0, limit - 1, limit, full) if 0 <= word <= full):

            class Word:
                def uint64(self, count, word=above << bits | cell):
                    return np.full(count, word, np.uint64)

            assert sampler.draw(1, Word())[0] == (cell if above < limit else alias[cell]) - reach
