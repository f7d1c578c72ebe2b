"""The aggregator lies, and wants one device: each attack fails, and succeeds once the defence it targets is taken away.

Ten devices, all on the committee: t' = 6, R = 8; two of them belong to the liar. Device i sends the vector that is 1
at place i, so to open a device is to see its vector. Each attack runs twice: `defended` with the product as it is,
then with exactly one function weakened, named in the test; the attack's own code is the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lying_rounds
import msgspec
import numpy as np
import pytest
from lying_aggregator import RING, VALUES, Liar, Make, minus
from lying_rounds import COLLUDERS, EVERY_DEFENCE, TARGET, asked, forget_answers, honest_round, judge, without
from simulated_device import DeviceKeysOf
from simulated_wire import seeded_entropy

from edge_sdk import device_round
from edge_sdk.protocol import merkle
from edge_sdk.protocol.errors import CommitteeRefused, OpeningRefused, WrongSum
from edge_sdk.protocol.messages import SealedShareEntry
from edge_sdk.protocol.secagg import client, committee, member
from edge_sdk.protocol.secagg.committee import CommitteePlan
from edge_sdk.protocol.secagg.groups import groups_of
from edge_sdk.protocol.secagg.keystream import Keystream
from edge_sdk.protocol.secagg.shamir import PRIME, recover, share

liar, liar_with = lying_rounds.liar, lying_rounds.liar_with  # fixtures


@EVERY_DEFENCE
def test_two_sets_are_not_answered_by_one_member(liar, monkeypatch, defended):
    """Removed: `member_duty.stored_answer`, the journal of answers."""
    if not defended:
        forget_answers(monkeypatch)
    digest = honest_round(liar)
    everybody = asked(liar, digest, liar.names)
    others = asked(liar, digest, without(liar, TARGET))
    judge(liar, liar.unmask(digest, minus(everybody, others), [TARGET]), defended, "answered")


def target_moved_between(liar: Liar, digest: bytes, pools: list[list[str]]) -> np.ndarray | None:
    """What the target sent, as five lists give it that hide it in another one for each fifth of the members."""
    alone: list[dict[int, np.ndarray]] = [{} for _ in pools]
    whole: dict[int, np.ndarray] = {}
    for moved in range(5):
        shown = [[TARGET, *pool] if place == moved else pool for place, pool in enumerate(pools)]
        answers = liar.ask(digest, shown, members=[place for place in liar.members(digest) if place % 5 == moved])
        for point in answers[0]:
            whole[point] = (sum(part[point].astype(np.int64) for part in answers) % PRIME).astype(np.uint16)
            for place in {*range(5)} - {moved}:
                alone[place][point] = answers[place][point]
    everybody = liar.unmask(digest, whole, [TARGET, *(name for pool in pools for name in pool)])
    others = [liar.unmask(digest, shares, pool) for shares, pool in zip(alone, pools, strict=True)]
    found = [each for each in (everybody, *others) if each is not None]
    return everybody - sum(others) if len(found) == 6 else None


@EVERY_DEFENCE
def test_a_target_moved_between_groups_for_each_member_is_not_opened(liar_with, monkeypatch, defended):
    """Removed: `member.check_groups`. Nobody colludes, everybody answers once, every group is large enough.

    The sum of all groups has a share from every member, each group without the target from four fifths of them.
    """
    if not defended:
        monkeypatch.setattr(member, "check_groups", lambda listed, settled: None)
    liar = liar_with(21, (), n_min=3)
    stated = liar.state_roster()
    offer = liar.offer(stated)
    secagg = msgspec.structs.replace(offer.secagg, groups=5)
    digest = liar.publish(msgspec.structs.replace(offer, secagg=secagg), stated)
    settled = groups_of(digest, liar.names, 5)
    pools = [[name for name in without(liar, TARGET) if settled[name] == group][:3] for group in range(5)]
    judge(liar, target_moved_between(liar, digest, pools), defended, "wrong-group")


def any_lists_of_one_group(listed: Sequence[Sequence[str]], settled: Mapping[str, int]) -> None:
    """`groups.check_groups` without `found & seen`: a settled group may be listed in parts."""
    for group in listed:
        if len({settled[device] for device in group}) != 1:
            raise OpeningRefused("the groups are not those that the offer settles", reason="wrong-group")


@EVERY_DEFENCE
def test_a_settled_group_listed_in_parts_is_not_opened_part_by_part(liar_with, monkeypatch, defended):
    """Removed: `found & seen` of `groups.check_groups`. A round of one group, of which each member is shown five lists.

    Every list is of the one settled group; the target is moved between them as in the attack above.
    """
    if not defended:
        monkeypatch.setattr(member, "check_groups", any_lists_of_one_group)
    liar = liar_with(21, (), n_min=3)
    digest = honest_round(liar)
    names = without(liar, TARGET)
    pools = [names[3 * place : 3 * place + 3] for place in range(5)]
    judge(liar, target_moved_between(liar, digest, pools), defended, "wrong-group")


class AnyPlan(CommitteePlan):
    """A plan that nobody checked."""

    def __post_init__(self) -> None:
        """No check."""


def weak_plan(m: int) -> CommitteePlan:
    """R is counted, but t' is lower than what keeps two sets apart: six answers open a set."""
    return AnyPlan(m, corrupt=2, silent=2, threshold=4, packing=2, answers=6)


@EVERY_DEFENCE
def test_two_sets_to_different_members_are_not_both_opened(liar, monkeypatch, defended):
    """Removed: the threshold of `committee.plan`. Every member keeps its word; there are just too few answers."""
    if not defended:
        monkeypatch.setattr(committee, "plan", weak_plan)
    digest = honest_round(liar)
    honest = liar.members(digest)
    everybody = asked(liar, digest, liar.names, members=honest[:4])
    others = asked(liar, digest, without(liar, TARGET), members=honest[4:])
    # Both sets were answered by all that could be: four honest members each, and the two that are the liar's own.
    assert [len(everybody), len(others)] == [6, 6]
    whole = liar.unmask(digest, everybody, liar.names)
    rest = liar.unmask(digest, others, without(liar, TARGET))
    if defended:
        assert liar.plan(digest).threshold == 6
        assert whole is None
        assert rest is None
    else:
        judge(liar, whole - rest, defended, "")


@pytest.mark.parametrize("m", [*range(5, 33), 64, 128])
def test_the_threshold_leaves_no_committee_enough_answers_for_two_sets(m):
    """Beyond t' answers something is learnt: c of them may be bought, every other member answers one set only."""
    plan = committee.plan(m)
    honest_answers_a_set_needs = plan.threshold + 1 - plan.corrupt
    assert 2 * honest_answers_a_set_needs > m - plan.corrupt
    lower = plan.threshold
    while 2 * (lower + 1 - plan.corrupt) > m - plan.corrupt:
        lower -= 1
    with pytest.raises(CommitteeRefused) as refusal:
        dataclasses.replace(plan, threshold=lower, answers=lower + plan.packing)
    assert refusal.value.reason == "two-sets"


def lagrange(points: dict[int, np.ndarray], at: int) -> np.ndarray:
    """Value at `at` of the polynomials through the points, column by column, by Lagrange's formula."""
    total = np.zeros(len(next(iter(points.values()))), np.int64)
    for x, row in points.items():
        top = bottom = 1
        for other in points:
            if other != x:
                top, bottom = top * (at - other) % PRIME, bottom * (x - other) % PRIME
        total = (total + row.astype(np.int64) * (top * pow(bottom, -1, PRIME) % PRIME)) % PRIME
    return total


def fits_every_secret(plan: CommitteePlan, seen: dict[int, np.ndarray], secret: np.ndarray) -> bool:
    """Is there a polynomial through the shares that were seen (member's place, from 0 -> share) and this secret?"""
    columns = len(secret) // plan.packing
    points = {i + 1: row for i, row in seen.items()}
    points |= {plan.m + 1 + r: secret[r * columns : (r + 1) * columns] % PRIME for r in range(plan.packing)}
    whole = {i: lagrange(points, i + 1).astype(np.uint16) for i in range(plan.m)}
    agrees = all(np.array_equal(whole[i], row) for i, row in seen.items())
    return agrees and np.array_equal(recover(plan, whole).secrets, secret)


def test_as_many_shares_as_the_threshold_fit_every_secret_and_one_more_does_not():
    plan = committee.plan(10)
    secret = np.arange(16) - 8
    rows = share(secret, plan, Keystream(bytes(range(32))))
    another = np.arange(16)[::-1] - 3
    seen = {i: rows[i] for i in range(plan.threshold)}
    assert fits_every_secret(plan, seen, secret)
    assert fits_every_secret(plan, seen, another)
    seen[plan.threshold] = rows[plan.threshold]
    assert fits_every_secret(plan, seen, secret)
    with pytest.raises(WrongSum):
        fits_every_secret(plan, seen, another)


def test_colluding_members_with_honest_rest_get_nothing_of_one_device(liar):
    digest = honest_round(liar)
    sums = asked(liar, digest, liar.names)
    assert liar.unmask(digest, sums, liar.names).tolist() == liar.one_hot(*liar.names)
    mine = liar.collude(digest, [TARGET])
    assert len(mine) == liar.plan(digest).corrupt
    assert liar.unmask(digest, mine, [TARGET]) is None
    for guess in range(3):
        secret = np.random.default_rng(guess).integers(-20, 20, RING.degree)
        assert fits_every_secret(liar.plan(digest), mine, secret)


# -- what a list may hold --------------------------------------------------------------------------------------------


def with_terms(patch: pytest.MonkeyPatch, **terms: Any) -> None:
    """A member that answers under other terms than those it checked."""
    honest = member.answer
    patch.setattr(member, "answer", lambda **given: honest(**{**given, **terms}))


@EVERY_DEFENCE
def test_a_set_below_the_minimum_is_not_opened(liar, monkeypatch, defended):
    """Removed: `n_min` of `member.answer`. The list is the target and a device whose vector the liar knows."""
    if not defended:
        with_terms(monkeypatch, n_min=1)
    digest = honest_round(liar)
    pair = [TARGET, COLLUDERS[0]]
    seen = liar.unmask(digest, asked(liar, digest, pair), pair)
    if seen is not None:
        seen = seen - np.array(liar.one_hot(COLLUDERS[0]))
    judge(liar, seen, defended, "below-minimum")


@EVERY_DEFENCE
def test_an_offer_with_a_lower_minimum_is_not_taken(liar, monkeypatch, defended):
    """Removed: the device's own minimum in `device_round.check_terms`. Three devices, two of them the liar's own."""
    if not defended:
        honest = device_round.check_terms
        lenient = lambda *args, **given: honest(*args, **{**given, "min_cohort": 3})  # noqa: E731  # one line is enough
        monkeypatch.setattr(device_round, "check_terms", lenient)
    stated = liar.state_roster()
    liar.n_min = 3
    digest = liar.publish(liar.offer(stated), stated)
    group, seen = [TARGET, *COLLUDERS], None
    if (TARGET, digest) in liar.uploads:
        seen = liar.unmask(digest, asked(liar, digest, group), group) - np.array(liar.one_hot(*COLLUDERS))
    judge(liar, seen, defended, "cohort")


def allow_repeats(patch: pytest.MonkeyPatch) -> None:
    """A member that counts entries, not devices."""
    honest = member._check_groups

    def lenient(groups: Any, n_min: int, known: Any) -> None:
        numbered = [[f"{device}/{i}/{j}" for j, device in enumerate(group)] for i, group in enumerate(groups)]
        honest(numbered, n_min, {name for group in numbered for name in group})

    patch.setattr(member, "_check_groups", lenient)
    patch.setattr(member, "check_groups", lambda listed, settled: None)  # each is another defence of these


@EVERY_DEFENCE
def test_a_device_listed_five_times_is_not_a_set_of_five(liar, monkeypatch, defended):
    """Removed: the repeats in `member._check_groups`."""
    if not defended:
        allow_repeats(monkeypatch)
    digest = honest_round(liar)
    five = [TARGET] * 5
    seen = liar.unmask(digest, asked(liar, digest, five), five)
    judge(liar, None if seen is None else seen // 5, defended, "repeated-device")


@EVERY_DEFENCE
def test_groups_that_share_devices_are_not_opened_together(liar, monkeypatch, defended):
    """Removed: the repeats in `member._check_groups`, across groups."""
    if not defended:
        allow_repeats(monkeypatch)
    digest = honest_round(liar)
    groups = [liar.names, without(liar, TARGET)]
    answers = liar.ask(digest, groups)
    both = [answer | liar.collude(digest, group) for answer, group in zip(answers, groups, strict=True)]
    judge(liar, liar.unmask(digest, minus(*both), [TARGET]), defended, "repeated-device")


@EVERY_DEFENCE
def test_strangers_do_not_fill_a_set(liar, monkeypatch, defended):
    """Removed: the roster of `member.answer`, which takes the strangers' keys from the liar."""
    digest = honest_round(liar)
    strangers = [f"s{i}" for i in range(4)]
    keys = {name: DeviceKeysOf(name) for name in strangers}
    if not defended:
        known = {name: DeviceKeysOf(name).sign_public for name in [*liar.names, *strangers]}
        with_terms(monkeypatch, roster=known)
    for name in strangers:
        liar.uploads[name, digest] = forged_upload(liar, digest, name, keys[name].sign_key.sign)
    group = [TARGET, *strangers]
    judge(liar, liar.unmask(digest, asked(liar, digest, group), group), defended, "unknown-device")


def forged_upload(liar: Liar, digest: bytes, name: str, sign: Callable[[bytes], bytes]) -> client.MaskedUpload:
    """An upload of zeros in somebody's name, as its shares go to the committee."""
    names = [f"d{i}" for i in range(liar.plan(digest).m)]
    members = [client.Member(each, DeviceKeysOf(each).epoch_public) for each in names]
    return client.protect(
        profile=RING, plan=liar.plan(digest), offer_hash=digest, device=name, members=members,
        values=np.zeros(VALUES, np.int32), noise=None, sign=sign, entropy=seeded_entropy("forged", name),
    )  # fmt: skip


@EVERY_DEFENCE
def test_shares_of_the_liar_s_own_making_do_not_pass_for_a_device_s(liar, monkeypatch, defended):
    """Removed: `merkle.root_from_proof`, which ties a share to the signature over all of a device's shares.

    Anybody can seal to a member. The liar seals shares that it knows in the names of four honest devices and shows
    them with these devices' true signatures: the sum would be the target's and the liar's own.
    """
    digest = honest_round(liar)
    others = ["d1", "d2", "d4", "d5"]
    true, forged = liar.genuine(digest), {}
    for name in others:
        forged[name] = forged_upload(liar, digest, name, lambda _: bytes(64))
    roots = {
        tuple(true(name, i).proof): liar.uploads[name, digest].shares_root for name in liar.names for i in range(10)
    }
    if not defended:
        monkeypatch.setattr(merkle, "root_from_proof", lambda leaf, index, size, path: roots[tuple(path)])

    def show(device: str, index: int) -> SealedShareEntry:
        entry = true(device, index)
        if device in forged:
            entry = msgspec.structs.replace(entry, sealed=bytes(forged[device].sealed_shares[index]))
        return entry

    group = [TARGET, *others]
    answers = asked(liar, digest, group, make=show)
    for name in others:
        liar.uploads[name, digest] = forged[name]
    judge(liar, liar.unmask(digest, answers, group), defended, "wrong-signature")


# -- uploads that are functions of others' uploads -------------------------------------------------------------------


def loose_share_info(offer_hash: bytes, device: str, member_name: str, index: int) -> bytes:
    """Binds a sealed share to round and member, and to no device."""
    return client.prefixed(member_name) + offer_hash


def as_own(liar: Liar, digest: bytes, copies: dict[str, str], change: Callable[[bytes], bytes]) -> Make:
    """Entries in which a colluder signs another device's sealed shares, changed or not, as its own."""
    true = liar.genuine(digest)
    made: dict[str, tuple[bytes, list[bytes]]] = {}
    for thief, victim in copies.items():
        sealed = [change(bytes(each)) for each in liar.uploads[victim, digest].sealed_shares]
        statement = client.upload_statement(digest, thief, merkle.root(sealed))
        made[thief] = DeviceKeysOf(thief).sign_key.sign(statement), sealed

    def show(device: str, index: int) -> SealedShareEntry:
        if device not in made:
            return true(device, index)
        signature, sealed = made[device]
        return SealedShareEntry(device, signature, sealed[index], tuple(merkle.proof(sealed, index)))

    return show


@EVERY_DEFENCE
def test_an_upload_is_not_repeated_under_another_name(liar, monkeypatch, defended):
    """Removed: the device in `client.share_info`. Two colluders repeat the target's upload: it counts three times.

    That alone opens nobody, but the noise was made for devices that count once.
    """
    if not defended:
        monkeypatch.setattr(client, "share_info", loose_share_info)
        monkeypatch.setattr(member, "share_info", loose_share_info)
    digest = honest_round(liar)
    show = as_own(liar, digest, dict.fromkeys(COLLUDERS, TARGET), lambda sealed: sealed)
    group = [TARGET, *COLLUDERS, "d1", "d2"]
    answers = liar.ask(digest, [group], make=show)[0]
    seen = liar.unmask(digest, answers, [TARGET, TARGET, TARGET, "d1", "d2"])
    if defended:
        assert seen is None
        assert "wrong-seal" in liar.refusals(["d1"])
    else:
        assert seen[:3].tolist() == [3, 1, 1]


def malleable_seal(plaintext: bytes, member_key: bytes, info: bytes) -> bytes:
    """A sign, then the share under a pad: anybody can turn the sign. As long as the real seal."""
    pad = np.frombuffer(seeded_entropy(member_key)(len(plaintext)), "<u2").astype(np.int64)
    hidden = (np.frombuffer(plaintext, "<u2") + pad) % PRIME
    return bytes(48) + hidden.astype("<u2").tobytes()


def malleable_open(sealed: bytes, secret: Any, info: bytes) -> bytes:
    key = secret.public_key().public_bytes_raw()
    pad = np.frombuffer(seeded_entropy(key)(len(sealed) - 48), "<u2").astype(np.int64)
    share_sum = (np.frombuffer(sealed[48:], "<u2") - pad) * (-1 if sealed[0] else 1)
    return (share_sum % PRIME).astype("<u2").tobytes()


@EVERY_DEFENCE
def test_an_upload_is_not_negated_to_cancel_another(liar, monkeypatch, defended):
    """Removed: the sealing of shares, replaced by a cipher that anybody can negate and that binds no device.

    The list holds five devices: the target, two others, and two colluders that send the negative of those two.
    """
    if not defended:
        monkeypatch.setattr(client, "seal_share", malleable_seal)
        monkeypatch.setattr(member, "open_share", malleable_open)
    digest = honest_round(liar)
    negated = {COLLUDERS[0]: "d1", COLLUDERS[1]: "d2"}
    show = as_own(liar, digest, negated, lambda sealed: b"\x01" + sealed[1:])
    answers = liar.ask(digest, [[TARGET, "d1", "d2", *COLLUDERS]], make=show)[0]
    judge(liar, liar.unmask(digest, answers, [TARGET]), defended, "wrong-seal")


def test_an_honest_opening_still_works_for_the_liar(liar):
    """What the tests above lean on: played by the rules, the sum of all opens, and nobody refuses anything."""
    digest = honest_round(liar)
    seen = liar.unmask(digest, liar.ask(digest, [liar.names])[0], liar.names)
    assert seen.tolist() == liar.one_hot(*liar.names)
    assert liar.refusals() == set()
