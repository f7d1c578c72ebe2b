"""Which group an upload joins, and which groups are opened: against every size of round."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.errors import TaskRefused
from aggregator.grouping import Grouping, grouping_key, most_groups
from aggregator.tasks import build_spec, settle
from edge_sdk.protocol import codec
from edge_sdk.protocol.codec import MAX_FRAME_BYTES
from edge_sdk.protocol.messages import Share, ShareBody
from edge_sdk.protocol.sealing import ROUND_SECRET_BYTES, RoundKey, seal_to_round
from edge_sdk.protocol.secagg.committee import plan
from edge_sdk.protocol.secagg.ring import profile


def filled(grouping: Grouping, devices: int) -> Counter[int]:
    """Group sizes once so many devices have come."""
    sizes: Counter[int] = Counter()
    for index in range(devices):
        sizes[grouping.group_for(f"device-{index}", sizes)] += 1
    return sizes


ROUNDS = st.tuples(st.integers(1, 64), st.sampled_from([1, 3]), st.integers(3, 12), st.integers(1, 200))


@settings(deadline=None, max_examples=60)
@given(ROUNDS)
def test_as_many_groups_are_opened_as_the_uploads_fill_and_none_is_below_the_minimum(drawn):
    wanted, fewest, n_min, devices = drawn
    wanted = max(wanted, fewest)
    grouping = Grouping(wanted, fewest, n_min, b"key")
    sizes = filled(grouping, devices)
    opened = grouping.together(sizes)
    assert all(sum(sizes[group] for group in groups) >= n_min for groups in opened)
    if devices >= n_min * fewest:
        assert len(opened) == min(wanted, devices // n_min)
        assert sorted(group for groups in opened for group in groups) == sorted(sizes)
    elif devices < n_min:
        assert opened == []


@settings(deadline=None, max_examples=60)
@given(ROUNDS)
def test_full_groups_differ_by_one_device(drawn):
    wanted, _, n_min, devices = drawn
    sizes = filled(Grouping(wanted, 1, n_min, b"key"), devices)
    if devices >= wanted * n_min:
        assert max(sizes.values()) - min(sizes.values()) <= 1


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.integers(0, 63), st.integers(0, 9), max_size=64), st.integers(3, 12))
def test_whatever_the_sizes_no_device_is_opened_twice_or_in_a_group_below_the_minimum(sizes, n_min):
    opened = Grouping(64, 1, n_min, b"key").together(sizes)
    groups = [group for part in opened for group in part]
    assert len(set(groups)) == len(groups)
    assert all(sum(sizes[group] for group in part) >= n_min for part in opened)
    if sum(sizes.values()) >= n_min:
        assert sum(sizes[group] for group in groups) == sum(sizes.values())


def test_who_meets_whom_follows_from_the_rounds_secret_alone():
    def places(secret: bytes) -> list[int]:
        grouping = Grouping(8, 8, 3, grouping_key(secret))
        return [grouping.group_for(f"device-{index}", {}) for index in range(40)]

    assert places(b"one") == places(b"one")
    assert places(b"one") != places(b"two")
    assert len(set(places(b"one"))) == 8


@pytest.mark.parametrize("ring", ["P16", "P24", "P32"])
@pytest.mark.parametrize("members", [5, 10, 32, 128])
def test_the_answer_for_the_most_groups_fits_a_frame(ring, members):
    rules = plan(members)
    groups = most_groups(profile(ring), rules)
    assert groups >= 14
    sums = (b"\xff" * (2 * (profile(ring).degree // rules.packing)),) * groups
    body = codec.pack(ShareBody(b"h" * 32, b"s" * 32, 128, sums))
    key = RoundKey(b"k" * ROUND_SECRET_BYTES)
    share = Share("t" * 48, 2**31 - 1, seal_to_round(body, key.public_bytes(), b"info"))
    frame = codec.encode(share, fleet="f" * 48, sender="d" * 48, recipient=codec.AGGREGATOR, sign=lambda _: bytes(64))
    assert len(frame) <= MAX_FRAME_BYTES


@pytest.mark.parametrize(
    ("fields", "length", "said"),
    [
        ({"groups": 2, "robust": "median"}, 100, "is not robust"),
        ({"groups": 1, "robust": "trimmed_mean"}, 100, "is not robust"),
        ({"groups": 5, "n_max": 24}, 100, "do not fill 5 groups of 5"),
        ({"groups": 64}, 4_000_000, "do not fit into memory"),
    ],
)
def test_a_task_whose_groups_cannot_be_is_refused_with_the_remedy(fields, length, said):
    with pytest.raises(TaskRefused, match=said) as refused:
        settle(build_spec(name="t", noise_multiplier=1.0, **fields), length)
    assert refused.value.reason == "groups"
    assert "groups" in refused.value.hint


def test_three_groups_are_enough_for_a_median():
    settle(build_spec(name="t", noise_multiplier=1.0, groups=3, robust="median"), 100)
