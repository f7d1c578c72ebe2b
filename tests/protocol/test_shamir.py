"""Packed sharing against Lagrange over Python integers; wrong answers found or refused."""

from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_oracle import oracle

from edge_sdk.protocol.errors import LocalProtocolError, WrongSum
from edge_sdk.protocol.secagg.committee import plan
from edge_sdk.protocol.secagg.keystream import Keystream
from edge_sdk.protocol.secagg.shamir import PRIME, _uniform, recover, share

KEY = hashlib.sha256(b"shares").digest()


def secret_of(size: int, seed: int = 0, bound: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(-bound, bound + 1, size)


@pytest.mark.parametrize("m", [5, 6, 10, 32, 64])
def test_shares_are_the_oracle_s(m):
    secret = secret_of(16)
    expected = oracle.shares_of(secret.tolist(), oracle.plan_of(m), KEY)
    assert share(secret, plan(m), Keystream(KEY)).tolist() == expected


@pytest.mark.parametrize("m", [5, 7, 10, 32, 64, 128])
def test_any_sufficient_set_of_members_recovers_the_sum(m):
    committee, rng = plan(m), np.random.default_rng(m)
    secrets = [secret_of(1024, seed) for seed in range(40)]
    stream = Keystream(KEY)
    summed = sum(share(s, committee, stream).astype(np.uint64) for s in secrets) % PRIME
    for _ in range(5):
        members = rng.choice(m, committee.answers, replace=False)
        recovered = recover(committee, {int(i): summed[i].astype(np.uint16) for i in members})
        assert np.array_equal(recovered.secrets, sum(secrets))
        assert recovered.wrong == []


@pytest.mark.parametrize("value", [-32760, 32760, 0, -1])
def test_sums_up_to_half_the_prime_come_back_with_their_sign(value):
    committee = plan(10)
    shares = share(np.full(8, value), committee, Keystream(KEY))
    assert recover(committee, dict(enumerate(shares))).secrets.tolist() == [value] * 8


@given(st.sampled_from([10, 32, 64]), st.data())
@settings(max_examples=30, deadline=None)
def test_wrong_answers_are_found_while_two_to_spare_stand_for_each(m, data):
    committee, secret = plan(m), secret_of(64)
    shares = dict(enumerate(share(secret, committee, Keystream(KEY))))
    heard = committee.answers + data.draw(st.integers(0, m - committee.answers))
    members = data.draw(st.permutations(range(m)))[:heard]
    wrong = members[: data.draw(st.integers(0, (heard - committee.answers) // 2))]
    answers = {i: shares[i].copy() for i in members}
    for i in wrong:
        column = data.draw(st.integers(0, len(shares[i]) - 1))
        answers[i][column] = (int(answers[i][column]) + data.draw(st.integers(1, PRIME - 1))) % PRIME
    recovered = recover(committee, answers)
    assert np.array_equal(recovered.secrets, secret)
    assert recovered.wrong == sorted(wrong)


@pytest.mark.parametrize("pair", list(combinations(range(0, 10, 3), 2)))
def test_two_wrong_answers_with_two_to_spare_are_refused_naming_the_members(pair):
    committee = plan(10)
    shares = share(secret_of(1024), committee, Keystream(KEY))
    for member in pair:
        shares[member] = (shares[member].astype(int) + 1 + member) % PRIME
    with pytest.raises(WrongSum, match="0, 1, 2") as refusal:
        recover(committee, dict(enumerate(shares)))
    assert refusal.value.reason == "wrong-share"


def test_too_few_answers_are_refused():
    committee = plan(10)
    shares = share(secret_of(8), committee, Keystream(KEY))
    with pytest.raises(WrongSum) as refusal:
        recover(committee, dict(enumerate(shares[: committee.answers - 1])))
    assert refusal.value.reason == "too-few-answers"


def test_threshold_shares_tell_nothing_of_the_secret():
    """The shares of any t' members are a bijection of the random ones: every secret fits them equally often."""
    committee = plan(6)
    nodes = [*range(1, committee.threshold + 1), *range(committee.m + 1, committee.m + 1 + committee.packing)]
    for members in combinations(range(committee.m), committee.threshold):
        matrix = [
            [
                oracle.interpolate([(x, int(x == node)) for x in nodes], member + 1)
                for node in nodes[: committee.threshold]
            ]
            for member in members
        ]
        assert determinant(matrix) != 0


def determinant(matrix: list[list[int]]) -> int:
    if len(matrix) == 1:
        return matrix[0][0] % PRIME
    minors = ([row[:j] + row[j + 1 :] for row in matrix[1:]] for j in range(len(matrix)))
    return sum((-1) ** j * matrix[0][j] * determinant(minor) for j, minor in enumerate(minors)) % PRIME


def test_a_single_share_is_spread_over_the_whole_field():
    committee, stream = plan(10), Keystream(KEY)
    seen = np.concatenate([share(np.full(4096, 5), committee, stream)[9] for _ in range(20)])
    counts = np.bincount(seen // 4096, minlength=16)
    expected = np.diff(np.minimum(np.arange(17) * 4096, PRIME)) / PRIME * len(seen)
    assert float(((counts - expected) ** 2 / expected).sum()) < 45  # chi-square, 15 degrees: p of about 10^-4


def test_the_same_secret_has_other_shares_under_another_key():
    committee = plan(10)
    one, other = (share(secret_of(64), committee, Keystream(key)) for key in (KEY, bytes(32)))
    assert not np.array_equal(one, other)


def test_secrets_that_do_not_fill_the_packs_are_refused():
    with pytest.raises(LocalProtocolError):
        share(secret_of(7), plan(10), Keystream(KEY))


def test_random_shares_are_the_stream_s_words_below_the_prime_and_no_others():
    class Words:
        """Words of a stream, as many as it is asked for, from a list."""

        def __init__(self, words):
            self.words = list(words)

        def uint16(self, count):
            taken, self.words = self.words[:count], self.words[count:]
            return np.array(taken, np.uint16)

    words = [PRIME, 7, 65535, PRIME - 1] * 5 + list(range(100))
    expected = [word for word in words if word < PRIME]
    assert _uniform(Words(words), 12).tolist() == expected[:12]
    assert _uniform(Words([PRIME] * 30 + words), 5).tolist() == expected[:5]
