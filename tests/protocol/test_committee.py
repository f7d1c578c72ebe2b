"""The committee table, the draw and the sizing checks."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.protocol.errors import CommitteeRefused, SizingRefused
from edge_sdk.protocol.secagg.committee import CommitteePlan, check_headroom, draw, members_for, plan
from edge_sdk.protocol.secagg.ring import profile

TABLE = {
    10: CommitteePlan(10, 2, 2, 6, 2, 8),
    32: CommitteePlan(32, 8, 8, 20, 4, 24),
    64: CommitteePlan(64, 16, 16, 40, 8, 48),
    128: CommitteePlan(128, 32, 32, 80, 16, 96),
}


@pytest.mark.parametrize("m", sorted(TABLE))
def test_plans_are_those_of_the_published_table(m):
    assert plan(m) == TABLE[m]


@pytest.mark.parametrize("m", range(5, 129))
def test_no_plan_can_answer_for_two_sets(m):
    found = plan(m)
    honest = m - found.corrupt
    assert 2 * (found.threshold + 1 - found.corrupt) > honest
    assert found.answers <= m - found.silent
    assert found.corrupt <= found.threshold


@pytest.mark.parametrize("m", [-1, 0, 1, 4, 129])
def test_too_few_or_too_many_members_are_refused(m):
    with pytest.raises(CommitteeRefused):
        plan(m)


def test_counting_to_the_answers_instead_of_the_threshold_is_refused():
    # R = 7 > (10 + 2) / 2, yet 2 (5 + 1 - 2) = 8 honest answers suffice for two sets.
    with pytest.raises(CommitteeRefused) as refusal:
        CommitteePlan(10, 2, 2, 5, 2, 7)
    assert refusal.value.reason == "two-sets"


@pytest.mark.parametrize(
    ("eligible", "members"),
    [(5, 5), (32, 32), (33, 32), (511, 32), (512, 64), (1499, 64), (1500, 128), (100_000, 128)],
)
def test_committee_size_by_fleet(eligible, members):
    assert members_for(eligible) == members


def names(count: int) -> list[str]:
    return [f"d{i}" for i in range(count)]


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 60), st.data())
def test_a_draw_is_a_sorted_subset_that_depends_on_nothing_but_seed_and_set(seed, size, data):
    m = data.draw(st.integers(1, size))
    drawn = draw(seed, names(size), m)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == m
    assert set(drawn) <= set(names(size))
    assert drawn == draw(seed, names(size)[::-1], m)


def test_every_device_is_drawn_equally_often():
    drawn = Counter(name for i in range(4000) for name in draw(i.to_bytes(32, "big"), names(13), 5))
    expected = 4000 * 5 / 13
    assert sum((drawn[name] - expected) ** 2 / expected for name in names(13)) < 40  # 12 degrees of freedom


def test_another_seed_draws_another_committee():
    assert draw(bytes(32), names(100), 32) != draw(bytes([1] * 32), names(100), 32)


def test_repeated_names_and_impossible_sizes_are_refused():
    for eligible, m in ((["a", "a", "b"], 2), (["a", "b"], 3), (["a", "b"], 0), ([], 1)):
        with pytest.raises(CommitteeRefused):
            draw(bytes(32), eligible, m)


@pytest.mark.parametrize(
    ("name", "largest_bits"),
    [("P16", (12, 9, 5, 4)), ("P24", (20, 17, 14, 13)), ("P32", (28, 25, 22, 21))],
)
def test_sizing_is_that_of_the_published_table(name, largest_bits):
    for devices, bits in zip((10, 100, 1000, 2000), largest_bits, strict=True):
        check_headroom(profile(name), devices, 1 << (bits - 1), 0.0)
        with pytest.raises(SizingRefused):
            check_headroom(profile(name), devices, 1 << bits, 0.0)


def test_noise_counts_against_the_headroom():
    check_headroom(profile("P16"), 100, 300, 0.0)
    with pytest.raises(SizingRefused) as refusal:
        check_headroom(profile("P16"), 100, 300, 60.0)
    assert refusal.value.reason == "headroom"


def test_a_fleet_whose_secrets_overflow_the_share_field_is_refused():
    check_headroom(profile("P32"), 1_500_000, 1, 0.0)
    with pytest.raises(SizingRefused) as refusal:
        check_headroom(profile("P32"), 1_600_000, 1, 0.0)
    assert refusal.value.reason == "share-headroom"


def test_rubbish_sizes_are_refused():
    for devices, bound in ((0, 1), (-1, 1), (10, -1)):
        with pytest.raises(SizingRefused):
            check_headroom(profile("P24"), devices, bound, 0.0)
    with pytest.raises(SizingRefused):
        check_headroom(profile("P24"), 10, 1, float("nan"))
