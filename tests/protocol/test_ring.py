"""Ring products against Python integers, the public blocks, the wire planes and the running sum."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_oracle import oracle

from edge_sdk.protocol.errors import LocalProtocolError, MalformedMessage, SizingRefused
from edge_sdk.protocol.secagg import selftest
from edge_sdk.protocol.secagg.keystream import Keystream, binomial
from edge_sdk.protocol.secagg.residues import RunningSum, decode_residues, encode_residues, residue_bytes
from edge_sdk.protocol.secagg.ring import (
    CLIENT_BOUND,
    PROFILES,
    SERVER_BOUND,
    Profile,
    PublicTimes,
    _limb,
    _limb_bits,
    limb_count,
    profile,
    public_blocks,
    public_seed,
    rounding_error,
)

SEED = hashlib.sha256(b"seed").digest()
NAMES = sorted(PROFILES)


def low_bits(ring: Profile, values: object) -> np.ndarray:
    return np.asarray(values, dtype=object) % ring.modulus


def exact_product(ring: Profile, public: np.ndarray, secret: np.ndarray) -> np.ndarray:
    return low_bits(ring, oracle.product([int(v) for v in public], [int(v) for v in secret]))


def test_the_fast_oracle_is_the_schoolbook_product():
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-(2**31), 2**31, 64).tolist() for _ in range(2))
    assert oracle.product(a, b) == oracle.schoolbook(a, b)


def test_pair_order_means_x_to_the_half_degree_squares_to_minus_one():
    x_half = [0, 1] + [0] * 14
    assert oracle.schoolbook(x_half, x_half) == [-1] + [0] * 15


@pytest.mark.parametrize("bound", [CLIENT_BOUND, SERVER_BOUND])
@pytest.mark.parametrize("name", NAMES)
def test_products_are_exact_for_random_secrets(name, bound):
    ring = profile(name)
    secret = np.random.default_rng(2).integers(-bound, bound + 1, ring.degree)
    product = PublicTimes(ring, SEED, secret, bound).blocks(5, 2)
    for row, public in zip(product, public_blocks(SEED, ring, 5, 2), strict=True):
        assert np.array_equal(low_bits(ring, row), exact_product(ring, public, secret))


@pytest.mark.parametrize("bound", [CLIENT_BOUND, SERVER_BOUND])
@pytest.mark.parametrize("pattern", ["all largest", "signs that add up at the top", "random signs"])
@pytest.mark.parametrize("name", NAMES)
def test_products_are_exact_at_the_extremes(name, bound, pattern, monkeypatch):
    ring = profile(name)
    lowest, highest = -(ring.modulus // 2), ring.modulus // 2 - 1
    signs = np.random.default_rng(3).choice([-1, 1], ring.degree)
    secret = np.full(ring.degree, bound)
    public = np.full((1, ring.degree), lowest)
    if pattern == "signs that add up at the top":
        # Coefficient N-1 of the product meets every pair (i, N-1-i): give each the same sign.
        naturally = signs.copy()
        secret = bound * np.array(oracle.pair_order(naturally.tolist()))
        mirrored = np.array(oracle.pair_order(naturally[::-1].tolist()))
        public = np.where(mirrored < 0, lowest, highest)[None, :]
    elif pattern == "random signs":
        secret, public = bound * signs, np.where(signs[::-1] < 0, lowest, highest)[None, :]
    monkeypatch.setattr("edge_sdk.protocol.secagg.ring.public_blocks", lambda *_: public.astype(np.int32))
    product = PublicTimes(ring, SEED, secret, bound).blocks(0, 1)[0]
    assert np.array_equal(low_bits(ring, product), exact_product(ring, public[0], secret))


@pytest.mark.parametrize("bound", [CLIENT_BOUND, SERVER_BOUND])
@pytest.mark.parametrize("name", NAMES)
def test_the_bound_holds_and_is_below_a_quarter_with_the_limbs_chosen(name, bound):
    ring = profile(name)
    count = limb_count(ring, bound)
    left = 1 << (_limb_bits(ring, count) - 1)
    stated = rounding_error(ring.degree, left, bound)
    assert stated < 0.25
    assert count == 1 or rounding_error(ring.degree, 1 << (_limb_bits(ring, count - 1) - 1), bound) >= 0.25
    half = ring.degree // 2
    twist = np.exp(1j * np.pi * np.arange(half) / ring.degree)
    pair = np.full(half, left * (1 + 1j)), np.full(half, bound * (1 + 1j))
    product = np.fft.ifft(np.fft.fft(pair[0] * twist) * np.fft.fft(pair[1] * twist)) * np.conj(twist)
    distance = np.abs(product.view(float) - np.rint(product.view(float))).max()
    assert distance < stated


def test_the_limbs_are_those_of_the_table_in_the_docstring():
    counts = {
        name: (limb_count(profile(name), CLIENT_BOUND), limb_count(profile(name), SERVER_BOUND)) for name in NAMES
    }
    assert counts == {"P16": (1, 1), "P24": (1, 2), "P32": (2, 2)}


@settings(deadline=None)
@given(st.integers(-(2**31), 2**31 - 1), st.sampled_from([("P24", 2), ("P32", 2), ("P32", 4), ("P24", 3)]))
def test_limbs_add_up_modulo_q(value, shape):
    ring, count = profile(shape[0]), shape[1]
    bits = _limb_bits(ring, count)
    value = oracle.signed(value % ring.modulus, ring.modulus_bits)
    public = np.array([[value]], np.int32)
    digits = [int(_limb(public, shift, bits)[0, 0]) for shift in range(0, bits * count, bits)]
    assert sum(d << (bits * i) for i, d in enumerate(digits)) % ring.modulus == value % ring.modulus
    assert all(-(1 << (bits - 1)) <= d < 1 << (bits - 1) for d in digits)


@pytest.mark.parametrize("name", NAMES)
def test_a_block_is_the_same_from_any_offset(name):
    ring = profile(name)
    together = public_blocks(SEED, ring, 0, 6)
    assert np.array_equal(public_blocks(SEED, ring, 4, 1)[0], together[4])
    assert together[4].tolist() == oracle.block(name, SEED, 4)
    assert together.min() >= -(ring.modulus // 2)
    assert together.max() < ring.modulus // 2


def test_another_offer_gives_other_blocks():
    assert public_seed(b"a" * 32) == hashlib.sha256(b"A" + b"a" * 32).digest()
    assert public_seed(b"a" * 32) != public_seed(b"b" * 32)


@pytest.mark.parametrize(("degree", "bits"), [(1024, 32), (1024, 25), (512, 16), (2048, 40), (4096, 32)])
def test_a_weak_or_unknown_ring_is_refused(degree, bits):
    with pytest.raises(SizingRefused) as refusal:
        Profile("weak", degree, bits, bits // 8)
    assert refusal.value.reason == "weak-profile"


def test_an_unknown_profile_is_refused_by_name():
    with pytest.raises(SizingRefused, match="P16, P24, P32"):
        profile("P48")


def test_a_secret_out_of_range_or_of_another_length_is_refused():
    ring = profile("P24")
    for secret in (np.full(ring.degree, 33), np.zeros(ring.degree - 1, int)):
        with pytest.raises(LocalProtocolError):
            PublicTimes(ring, SEED, secret, CLIENT_BOUND)


def test_binomial_draws_are_the_oracle_s_and_have_sigma_four():
    drawn = binomial(Keystream(SEED), 200_000)
    assert drawn[:500].tolist() == oracle.binomial(SEED, 500)
    assert abs(drawn.mean()) < 4 * 4 / 200_000**0.5
    assert abs(drawn.astype(float).var() - 16) < 4 * 16 * (2 / 200_000) ** 0.5


def test_binomial_reaches_its_bounds_and_no_further():
    class Words:
        def uint64(self, count):
            return np.array([0, 2**64 - 1], np.uint64)

    assert binomial(Words(), 2).tolist() == [-32, 32]


def test_a_keystream_goes_on_where_it_stopped_and_hides_itself():
    stream = Keystream(SEED)
    parts = stream.take(5) + stream.take(100) + stream.uint16(10).tobytes() + stream.uint64(40_000).tobytes()
    assert parts == oracle.stream(SEED, 105 + 20 + 320_000)
    assert Keystream(SEED, 64).take(16) == oracle.stream(SEED, 80)[64:]
    assert SEED.hex() not in repr(stream)
    for key, offset in ((b"short", 0), (SEED, 8), (SEED, -16)):
        with pytest.raises(LocalProtocolError):
            Keystream(key, offset)


@pytest.mark.parametrize("name", NAMES)
@given(values=st.lists(st.integers(0, 2**32 - 1), max_size=50))
@settings(max_examples=30, deadline=None)
def test_wire_form_matches_the_oracle_and_comes_back(name, values):
    ring = profile(name)
    wire = encode_residues(ring, np.array(values, np.uint32))
    assert wire == oracle.wire(name, values)
    assert len(wire) == residue_bytes(ring, len(values))
    assert decode_residues(ring, wire).tolist() == [v % ring.modulus for v in values]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [1, 77, 262_144, 300_001])
def test_a_running_sum_is_the_sum_modulo_q(name, length):
    ring, rng = profile(name), np.random.default_rng(4)
    vectors = rng.integers(0, ring.modulus, (7, length), dtype=np.uint32)
    vectors[:3] = ring.modulus - 1  # every carry there is
    left, right = RunningSum(ring, length), RunningSum(ring, length)
    for vector in vectors[:4]:
        left.add(encode_residues(ring, vector))
    for vector in vectors[4:]:
        right.add(bytearray(encode_residues(ring, vector)))
    again = RunningSum.restore(ring, length, left.snapshot(), left.count)
    again.merge(right)
    expected = vectors.astype(np.uint64).sum(axis=0) % ring.modulus
    assert again.count == 7
    assert np.array_equal(again.residues(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_payload_of_another_length_changes_nothing(name):
    ring = profile(name)
    total = RunningSum(ring, 10)
    for size in (0, residue_bytes(ring, 10) - 1, residue_bytes(ring, 10) + 1, residue_bytes(ring, 11)):
        with pytest.raises(MalformedMessage):
            total.add(bytes([1]) * size)
    assert (total.count, total.residues().tolist()) == (0, [0] * 10)


def test_sums_of_different_shapes_do_not_merge():
    with pytest.raises(LocalProtocolError):
        RunningSum(profile("P24"), 10).merge(RunningSum(profile("P24"), 11))


def test_the_known_answers_are_the_oracle_s_and_the_test_is_quick():
    assert {name: list(pair) for name, pair in selftest.EXPECTED.items()} == oracle.self_test_digests()
    began = time.process_time()
    selftest.known_answer_test()
    assert time.process_time() - began < 0.05


@pytest.mark.parametrize("broken", ["_ROUNDING", "EXPECTED"])
def test_the_known_answer_test_fails_on_wrong_arithmetic(broken, monkeypatch):
    if broken == "_ROUNDING":
        monkeypatch.setattr("edge_sdk.protocol.secagg.ring._ROUNDING", 6755399441055744.0 + 1)
    else:
        monkeypatch.setattr(selftest, "EXPECTED", {"P24": ("00", "00")})
    with pytest.raises(selftest.SelfTestFailed) as failure:
        selftest.known_answer_test()
    assert failure.value.reason == "ring-product"
