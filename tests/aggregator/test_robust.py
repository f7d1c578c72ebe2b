"""The robust averages against schoolbook ones, and against groups that lie."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator import robust
from aggregator.robust import combine, trimmed


@st.composite
def groups_of_sums(draw):
    count, length = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    sizes = draw(st.lists(st.integers(2, 40), min_size=count, max_size=count))
    rows = st.lists(st.integers(-(2**40), 2**40), min_size=length, max_size=length)
    sums = [np.array(draw(rows), np.int64) for _ in range(count)]
    return sums, sizes


def schoolbook(rule: str, sums, sizes, trim: float) -> list[float]:
    """One coordinate at a time, in fractions."""
    answer = []
    for coordinate in zip(*(each.tolist() for each in sums), strict=True):
        means = sorted(Fraction(value, size) for value, size in zip(coordinate, sizes, strict=True))
        while rule == "median" and len(means) > 2:
            means = means[1:-1]
        if rule == "trimmed_mean":
            cut = trimmed(len(means), trim)
            means = means[cut : len(means) - cut]
        answer.append(float(sum(means) / len(means)))
    return answer


@settings(deadline=None, max_examples=60)
@given(groups_of_sums(), st.sampled_from(["median", "trimmed_mean"]), st.sampled_from([0.1, 0.2, 0.34, 0.49]))
def test_each_coordinate_is_the_schoolbook_one(drawn, rule, trim):
    sums, sizes = drawn
    total, divisor = combine(rule, sums, sizes, trim)
    assert divisor == 1
    np.testing.assert_allclose(total, schoolbook(rule, sums, sizes, trim), rtol=1e-9, atol=1e-3)


@settings(deadline=None, max_examples=60)
@given(groups_of_sums())
def test_the_mean_is_the_exact_sum_over_all_devices(drawn):
    sums, sizes = drawn
    total, divisor = combine("mean", sums, sizes, 0.2)
    assert (total.dtype, divisor) == (np.int64, sum(sizes))
    assert total.tolist() == [sum(values) for values in zip(*(each.tolist() for each in sums), strict=True)]


def test_slabs_join_without_a_seam(monkeypatch):
    sums = list(np.random.default_rng(1).integers(-1000, 1000, (5, 100)))
    whole = [combine(rule, sums, [3] * 5, 0.2)[0] for rule in ("median", "trimmed_mean")]
    monkeypatch.setattr(robust, "_SLAB", 7)
    for rule, expected in zip(("median", "trimmed_mean"), whole, strict=True):
        np.testing.assert_array_equal(combine(rule, sums, [3] * 5, 0.2)[0], expected)


@pytest.mark.parametrize(("groups", "trim", "cut"), [(3, 0.2, 1), (5, 0.2, 1), (6, 0.2, 2), (10, 0.49, 4), (1, 0.2, 0)])
def test_at_least_one_group_goes_at_either_end_and_one_is_left(groups, trim, cut):
    assert trimmed(groups, trim) == cut


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), lies=st.lists(st.integers(-(2**50), 2**50), min_size=2, max_size=2))
def test_liars_never_carry_it_out_of_the_range_of_the_honest(rule, seed, lies):
    """Two of seven: below half for the median, no more than are cut off for the trimmed mean."""
    honest = np.random.default_rng(seed).integers(-5000, 5000, (5, 20))
    total, _ = combine(rule, [*honest, *(np.full(20, lie, np.int64) for lie in lies)], [4] * 7, 0.25)
    assert (total >= honest.min(axis=0) / 4).all()
    assert (total <= honest.max(axis=0) / 4).all()
