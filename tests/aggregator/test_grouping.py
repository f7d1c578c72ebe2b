"""Which group an upload joins, and which groups are opened: against every size of round."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.errors import TaskRefused
from aggregator.grouping import Grouping, how_many, most_groups
from aggregator.tasks import build_spec, settle
from edge_sdk.protocol import codec
from edge_sdk.protocol.codec import MAX_FRAME_BYTES
from edge_sdk.protocol.messages import Share, ShareBody
from edge_sdk.protocol.sealing import ROUND_SECRET_BYTES, RoundKey, seal_to_round
from edge_sdk.protocol.secagg.committee import plan
from edge_sdk.protocol.secagg.groups import groups_of
from edge_sdk.protocol.secagg.ring import profile

DEVICES = [f"device-{index}" for index in range(40)]


@settings(deadline=None, max_examples=60)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 64), st.integers(1, 200))
def test_every_device_is_in_one_group_and_groups_differ_by_one_device(offer_hash, groups, count):
    settled = groups_of(offer_hash, [f"d{index}" for index in range(count)], groups)
    sizes = [list(settled.values()).count(group) for group in range(groups)]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1


def test_who_meets_whom_follows_from_the_offer_and_the_roster_alone():
    one, two = (groups_of(hashlib.sha256(name).digest(), DEVICES, 8) for name in (b"one", b"two"))
    assert one == groups_of(hashlib.sha256(b"one").digest(), DEVICES[::-1], 8)
    assert one != two


def test_a_group_below_the_minimum_is_left_out_and_joins_no_other():
    assert Grouping({}, 1, 3).opened({0: 3, 1: 2, 2: 0, 5: 7}) == [0, 5]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 64), st.sampled_from([1, 3]), st.integers(3, 12), st.integers(1, 300), st.integers(14, 64))
def test_no_more_groups_are_offered_than_live_devices_can_fill(wanted, fewest, n_min, live, most):
    groups = how_many(max(wanted, fewest), fewest, n_min, live, most)
    assert fewest <= groups <= max(wanted, fewest)
    assert groups <= most
    if live >= fewest * n_min:
        assert groups * n_min <= live


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
