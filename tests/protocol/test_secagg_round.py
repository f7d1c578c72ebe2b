"""Whole rounds: the opened sum is exactly that of the devices that arrived, and of nobody alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_fleet import Fleet

from edge_sdk.privacy.mechanism import SkellamSampler
from edge_sdk.protocol import merkle
from edge_sdk.protocol.errors import (
    LocalProtocolError,
    MalformedMessage,
    OpeningRefused,
    UnexpectedMessage,
    WrongSignature,
    WrongSum,
)
from edge_sdk.protocol.secagg import client, committee
from edge_sdk.protocol.secagg.client import CANARIES, MaskedUpload, verify_upload
from edge_sdk.protocol.secagg.keystream import Keystream
from edge_sdk.protocol.secagg.member import Answer, survivors_hash
from edge_sdk.protocol.secagg.residues import RunningSum, encode_residues
from edge_sdk.protocol.secagg.ring import SERVER_BOUND, PublicTimes, profile, public_seed
from edge_sdk.protocol.secagg.server import Opening, share_proofs
from edge_sdk.protocol.secagg.shamir import PRIME, share

ONE = 400


def one_hot(fleet: Fleet, device: str) -> np.ndarray:
    values = np.zeros(fleet.values, np.int32)
    values[fleet.devices.index(device)] = ONE
    return values


def run(fleet: Fleet, silent_devices: int, silent_members: int) -> tuple[list[str], np.ndarray]:
    survivors = fleet.devices[silent_devices:]
    for device in survivors:
        fleet.upload(device, one_hot(fleet, device))
    opening = fleet.opening([survivors])
    for index in range(silent_members, fleet.plan.m):
        opening.receive(index, fleet.answer(index, [survivors]))
    return survivors, opening.open(fleet.total)


def indicator(fleet: Fleet, survivors: list[str]) -> np.ndarray:
    expected = np.zeros(fleet.values, int)
    expected[[fleet.devices.index(device) for device in survivors]] = ONE
    return expected


@pytest.mark.parametrize("size", [5, 8, 10, 32, 40])
@pytest.mark.parametrize("name", ["P16", "P24", "P32"])
def test_the_sum_is_that_of_the_devices_that_arrived(name, size):
    fleet = Fleet(size, name)
    survivors, opened = run(fleet, size // 4, fleet.plan.silent)
    floor = opened - indicator(fleet, survivors)
    assert opened.shape == (fleet.values,)
    assert np.abs(floor).max() < 6.5 * 4 * len(survivors) ** 0.5
    assert abs(floor.std() / (4 * len(survivors) ** 0.5) - 1) < 0.25


def test_the_sum_is_exact_to_the_last_step_beside_the_floor():
    """The floor is known to this test as the devices' randomness is: take it off and nothing remains."""
    fleet = Fleet(8)
    survivors, opened = run(fleet, 0, 0)
    from secagg_fleet import seeded_entropy

    from edge_sdk.protocol.secagg.keystream import binomial

    for device in survivors:
        entropy = seeded_entropy("mask", device, fleet.offer_hash)
        floor_key = [entropy(32) for _ in range(3)][2]
        opened = opened - binomial(Keystream(floor_key), fleet.length)[: fleet.values]
    assert np.array_equal(opened, indicator(fleet, survivors))


@pytest.mark.parametrize("extreme", [1, -1])
def test_the_largest_inputs_that_sizing_allows_do_not_wrap(extreme):
    fleet = Fleet(5, "P24", values=2000)
    bound = (2**23 - 300) // 5
    for device in fleet.devices:
        fleet.upload(device, np.full(fleet.values, extreme * bound, np.int32))
    opening = fleet.opening([fleet.devices])
    for index in range(5):
        opening.receive(index, fleet.answer(index, [fleet.devices]))
    assert np.abs(opening.open(fleet.total) - extreme * 5 * bound).max() < 300


def test_privacy_noise_adds_up_in_the_sum():
    fleet, sampler = Fleet(8, values=20_000), SkellamSampler(400.0)
    zero = np.zeros(fleet.values, np.int32)
    for i, device in enumerate(fleet.devices):
        fleet.upload(device, zero, sampler.draw(fleet.values, Keystream(bytes([i] * 32))))
    opening = fleet.opening([fleet.devices])
    for index in range(8):
        opening.receive(index, fleet.answer(index, [fleet.devices]))
    opened = opening.open(fleet.total)
    assert abs(opened.var() / (8 * (400 + 16)) - 1) < 0.05
    assert abs(opened.mean()) < 4 * (8 * 416 / 20_000) ** 0.5


def test_disjoint_groups_are_opened_in_one_reply():
    fleet = Fleet(10, group_count=2)
    groups = [fleet.settled()[1][:4], fleet.settled()[0]]  # one device has not come
    totals = []
    for group in groups:
        fleet.total = RunningSum(fleet.profile, fleet.length)
        for device in group:
            fleet.upload(device, one_hot(fleet, device))
        totals.append(fleet.total)
    openings = [fleet.opening(groups, i) for i in range(2)]
    for index in range(10):
        answer = fleet.answer(index, groups)
        for opening in openings:
            opening.receive(index, answer)
    for group, opening, total in zip(groups, openings, totals, strict=True):
        assert np.abs(opening.open(total) - indicator(fleet, group)).max() < 6.5 * 4 * len(group) ** 0.5


def test_a_masked_vector_alone_looks_uniform():
    fleet = Fleet(5, values=40_000)
    upload = fleet.protect(fleet.devices[0], np.zeros(fleet.values, np.int32))
    counts = np.bincount(np.frombuffer(upload.residues, np.uint8), minlength=256)
    expected = counts.sum() / 256
    assert ((counts - expected) ** 2 / expected).sum() < 350  # 255 degrees of freedom


@pytest.fixture(scope="module")
def finished() -> Fleet:
    fleet = Fleet(10)
    for device in fleet.devices[:8]:
        fleet.upload(device, one_hot(fleet, device))
    return fleet


def opening_with(fleet: Fleet, members: range):
    group = [fleet.devices[:8]]
    opening = fleet.opening(group)
    for index in members:
        opening.receive(index, fleet.answer(index, group))
    return opening


def test_an_opening_waits_for_enough_answers(finished):
    opening = opening_with(finished, range(7))
    assert not opening.ready
    with pytest.raises(WrongSum) as refusal:
        opening.open(finished.total)
    assert refusal.value.reason == "too-few-answers"
    opening.receive(7, finished.answer(7, [finished.devices[:8]]))
    assert opening.ready
    assert opening.answered == list(range(8))


def test_a_lying_member_is_found_and_left_out(finished):
    opening = opening_with(finished, range(9))
    honest = finished.answer(9, [finished.devices[:8]])
    opening.receive(9, dataclasses.replace(honest, sums=[(honest.sums[0] + np.uint16(1)) % np.uint16(PRIME)]))
    opened = opening.open(finished.total)
    assert opening.wrong_members == [9]
    assert np.abs(opened - indicator(finished, finished.devices[:8])).max() < 80


def test_a_lie_without_answers_to_spare_is_caught_by_the_canaries(finished):
    opening = opening_with(finished, range(7))
    honest = finished.answer(7, [finished.devices[:8]])
    opening.receive(7, dataclasses.replace(honest, sums=[(honest.sums[0] + np.uint16(1)) % np.uint16(PRIME)]))
    with pytest.raises(WrongSum) as refusal:
        opening.open(finished.total)
    assert refusal.value.reason == "canaries"


def test_a_sum_with_a_foreign_upload_is_caught_by_the_canaries(finished):
    total = RunningSum.restore(finished.profile, finished.length, finished.total.snapshot(), 7)
    total.add(encode_residues(finished.profile, np.arange(finished.length, dtype=np.uint32) * np.uint32(70_001)))
    with pytest.raises(WrongSum) as refusal:
        opening_with(finished, range(10)).open(total)
    assert refusal.value.reason == "canaries"


def test_a_running_sum_of_another_count_or_shape_is_not_opened(finished):
    opening = opening_with(finished, range(8))
    for total in (
        RunningSum(finished.profile, finished.length),
        RunningSum(finished.profile, finished.length + 1),
    ):
        with pytest.raises(LocalProtocolError) as refusal:
            opening.open(total)
        assert refusal.value.reason == "sum-mismatch"


def test_repeats_and_strays_change_nothing_and_are_counted(finished):
    opening = opening_with(finished, range(8))
    before = opening.open(finished.total)
    answer = finished.answer(0, [finished.devices[:8]])
    opening.receive(0, answer)
    other = dataclasses.replace(answer, sums=[answer.sums[0][::-1].copy()])
    strays: list[tuple[int, Answer, type[Exception]]] = [
        (0, other, UnexpectedMessage),
        (8, dataclasses.replace(answer, survivors_hash=bytes(32)), UnexpectedMessage),
        (10, answer, MalformedMessage),
        (-1, answer, MalformedMessage),
        (8, dataclasses.replace(answer, sums=[]), MalformedMessage),
        (8, dataclasses.replace(answer, sums=[answer.sums[0][:-1]]), MalformedMessage),
        (8, dataclasses.replace(answer, sums=[np.full_like(answer.sums[0], PRIME)]), MalformedMessage),
    ]
    for index, stray, error in strays:
        with pytest.raises(error):
            opening.receive(index, stray)
    assert opening.refused == {"answered-twice": 1, "other-survivors": 1, "unknown-member": 2, "wrong-share": 3}
    assert np.array_equal(opening.open(finished.total), before)


def test_the_survivors_hash_ignores_order_within_a_group_and_nothing_else():
    offer = bytes(32)
    assert survivors_hash(offer, [["a", "b"]]) == survivors_hash(offer, [["b", "a"]])
    others = [[["a"], ["b"]], [["a", "b", "c"]], [["ab"]], [["b", "a"], []]]
    seen = {survivors_hash(offer, groups) for groups in others} | {survivors_hash(bytes([1] * 32), [["a", "b"]])}
    assert survivors_hash(offer, [["a", "b"]]) not in seen
    assert len(seen) == 5


def test_an_answer_below_the_minimum_is_refused_even_for_one_device_allowed(finished):
    lenient = dataclasses.replace(finished, n_min=1)
    lenient.uploads = finished.uploads
    with pytest.raises(OpeningRefused) as refusal:
        lenient.answer(0, [[finished.devices[0]]])
    assert refusal.value.reason == "below-minimum"


def test_a_share_swapped_by_the_aggregator_is_refused(finished):
    """Shares of the aggregator's own making in place of a device's would open everyone else's sum."""
    fleet = Fleet(10)
    fleet.uploads = dict(finished.uploads)
    device = fleet.devices[0]
    forged = Fleet(10, offer_hash=finished.offer_hash)
    forged.sign_keys[device] = finished.sign_keys[fleet.devices[1]]
    fleet.uploads[device] = forged.protect(device, one_hot(fleet, device))
    with pytest.raises(OpeningRefused) as refusal:
        fleet.answer(0, [fleet.devices[:8]])
    assert refusal.value.reason == "wrong-signature"


@pytest.mark.parametrize("size", [1, 2, 5, 7, 8, 31, 32, 64])
def test_the_proofs_of_one_tree_are_those_of_the_merkle_module(size):
    leaves = [bytes([i]) * 3 for i in range(size)]
    assert share_proofs(leaves) == [merkle.proof(leaves, i) for i in range(size)]


def test_an_upload_comes_back_as_views_of_what_was_received(finished):
    upload = finished.protect(finished.devices[0], one_hot(finished, finished.devices[0]))
    wire = upload.encode()
    back = MaskedUpload.decode(wire, profile=finished.profile, plan=finished.plan, length=finished.length)
    assert isinstance(back.residues, memoryview)
    assert back.residues.obj is wire
    assert (back.signature, back.shares_root) == (upload.signature, upload.shares_root)
    assert bytes(back.residues) == bytes(upload.residues)
    with pytest.raises(WrongSignature):
        verify_upload(back, finished.offer_hash, finished.devices[1], finished.roster[finished.devices[0]])
    with pytest.raises(WrongSignature):
        verify_upload(back, bytes(32), finished.devices[0], finished.roster[finished.devices[0]])


def test_vectors_that_do_not_fit_are_refused(finished):
    device = finished.devices[0]
    with pytest.raises(LocalProtocolError):
        finished.protect(device, np.zeros((3, 3), np.int32))
    with pytest.raises(LocalProtocolError):
        finished.protect(device, np.zeros(5, np.int32), np.zeros(6, np.int32))
    short = Fleet(10)
    short.committee = short.committee[:-1]
    with pytest.raises(LocalProtocolError):
        short.protect(device, np.zeros(5, np.int32))


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31), b"short"])
def test_a_member_key_that_is_none_is_refused_by_name(key):
    fleet = Fleet(5)
    bad = [client.Member("device-000", key), *fleet.members()[1:]]
    fleet.members = lambda: bad
    with pytest.raises(MalformedMessage, match="device-000") as refusal:
        fleet.protect("device-001", np.zeros(5, np.int32))
    assert refusal.value.reason == "member-key"


@pytest.mark.parametrize("name", ["P16", "P24", "P32"])
def test_the_opening_is_exact_for_the_largest_sum_of_secrets(name):
    """Secrets of +-32760 as no honest fleet has them: what the canaries and values show is still exact."""
    ring, committee_plan, offer = profile(name), committee.plan(5), bytes(range(32))
    secret = np.where(np.arange(ring.degree) % 3, 32760, -32760)
    length = 3 * ring.degree + CANARIES
    mask = PublicTimes(ring, public_seed(offer), secret, SERVER_BOUND).blocks(0, 4).reshape(-1)[:length]
    values = np.concatenate([np.arange(3 * ring.degree) - 99, np.zeros(CANARIES, int)])
    total = RunningSum(ring, length)
    total.add(encode_residues(ring, mask + values.astype(np.uint32)))
    survivors = survivors_hash(offer, [["a"]])
    opening = Opening(
        profile=ring, plan=committee_plan, offer_hash=offer, survivors_hash=survivors, device_count=1, length=length
    )
    for index, row in enumerate(share(secret, committee_plan, Keystream(bytes(32)))):
        opening.receive(index, Answer(survivors, [row]))
    assert np.array_equal(opening.open(total), values[:-CANARIES])


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_whoever_arrives_and_whoever_answers_the_sum_is_theirs(finished_uploads, data):
    fleet = finished_uploads
    survivors = data.draw(st.lists(st.sampled_from(fleet.devices), min_size=3, unique=True))
    answering = data.draw(st.permutations(range(fleet.plan.m)))[: data.draw(st.integers(0, fleet.plan.m))]
    total = RunningSum(fleet.profile, fleet.length)
    for device in survivors:
        total.add(fleet.uploads[device].residues)
    opening = fleet.opening([survivors])
    for index in answering:
        opening.receive(index, fleet.answer(index, [survivors[::-1]]))
    if len(answering) < fleet.plan.answers:
        with pytest.raises(WrongSum):
            opening.open(total)
    else:
        opened = opening.open(total)
        assert np.array_equal(np.rint(opened / ONE), indicator(fleet, survivors) // ONE)


@pytest.fixture(scope="module")
def finished_uploads() -> Fleet:
    fleet = Fleet(7)
    for device in fleet.devices:
        fleet.upload(device, one_hot(fleet, device))
    return fleet


def test_nothing_secret_shows_when_printed(finished):
    upload = finished.protect(finished.devices[0], one_hot(finished, finished.devices[0]))
    answer = finished.answer(0, [finished.devices[:8]])
    assert len(repr(upload)) < 80
    assert len(repr(answer)) < 80
    assert upload.signature.hex() not in repr(upload)


def test_canaries_follow_the_values_and_carry_no_privacy_noise():
    fleet = Fleet(5, values=100)
    loud = np.full(100, 5000, np.int32)
    for device in fleet.devices:
        fleet.upload(device, np.zeros(100, np.int32), loud)
    opening = fleet.opening([fleet.devices])
    for index in range(5):
        opening.receive(index, fleet.answer(index, [fleet.devices]))
    opened = opening.open(fleet.total)
    assert fleet.length == 100 + CANARIES
    assert np.abs(opened - 25_000).max() < 80


def test_a_share_that_cannot_be_read_costs_its_own_group_and_alone_the_whole_answer():
    """Its device sealed it to a key that is not the member's, and signed that."""
    fleet = Fleet(9, group_count=3)
    honest, liar = fleet.members(), fleet.devices[8]
    groups = sorted(fleet.settled(), key=lambda group: liar in group)
    away = fleet.epoch_keys[liar].public_key().public_bytes_raw()
    for device in fleet.devices:
        if device == liar:
            fleet.members = lambda: [client.Member(member.name, away) for member in honest]
        fleet.upload(device, np.zeros(fleet.values, np.int32))
    index = next(i for i, member in enumerate(fleet.committee) if member != liar)
    found = fleet.answer(index, groups)
    assert [len(part) for part in found.sums] == [fleet.profile.degree // fleet.plan.packing] * 2 + [0]
    for part, group in zip(found.sums[:2], groups[:2], strict=True):
        np.testing.assert_array_equal(part, fleet.answer(index, [group]).sums[0])
    with pytest.raises(OpeningRefused) as refusal:
        fleet.answer(index, [groups[2]])
    assert refusal.value.reason == "wrong-seal"
