"""What the aggregator opens: pooled training with noise off, the accountant's noise with noise on, no more of one unit.

Through the device's own functions and the real mask. The noise is that of the smallest cohort with the corrupt share
gone: exactly as many devices add noise as the terms count on.
"""

from __future__ import annotations

import hashlib
import math
import os

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scipy import special, stats

from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.privacy.charges import l2_steps, sensitivity
from edge_sdk.privacy.protection import noise_share, quantised
from edge_sdk.protocol.messages import PrivacyTerms
from edge_sdk.protocol.quantize import SUM_SCALE, integer_bound
from edge_sdk.protocol.secagg import client, committee, member
from edge_sdk.protocol.secagg.keystream import Keystream, binomial
from edge_sdk.protocol.secagg.residues import RunningSum
from edge_sdk.protocol.secagg.ring import CLIENT_BOUND, PublicTimes, profile, public_seed
from edge_sdk.protocol.secagg.server import Opening, share_proofs
from edge_sdk.training.plans import training_plan

P24, PLAN = profile("P24"), committee.plan(5)
DEVICES = [f"device-{i}" for i in range(5)]
DIGEST = hashlib.sha256(b"offer").digest()
FLOOR_VARIANCE = 16.0  # of one device's error floor (SPEC 7.4)
SCHEMA = Schema(tuple(NumberField(name) for name in "abc"), Label("y", "binary", ("no", "yes")))
MODEL = tabular_classifier(SCHEMA, (6,), seed=1)
TERMS = PrivacyTerms(
    unit="record", placement="shared", noise_multiplier=2.0, max_grad_norm=0.7, per_customer=3, sample_rate=1.0,
    steps=1, learning_rate=0.3, delta=1e-5, honest=4, clip=12.0, step=2e-5, insecure_without_noise=False,
    expected_batch=12, proximal=0.0, weight_bound=0,
)  # fmt: skip


def terms(unit: str, placement: str = "shared", **changes: object) -> PrivacyTerms:
    return msgspec.structs.replace(TERMS, unit=unit, placement=placement, **changes)


def opening(length: int) -> Opening:
    survivors = member.survivors_hash(DIGEST, [DEVICES])
    return Opening(
        profile=P24, plan=PLAN, offer_hash=DIGEST, survivors_hash=survivors, device_count=5,
        length=client.masked_length(length),
    )  # fmt: skip


def open_sum(vectors: list[np.ndarray]) -> np.ndarray:
    """int64[d]: five devices mask their integer vectors, five members answer, the sum is opened."""
    sign = {d: Ed25519PrivateKey.generate() for d in DEVICES}
    keys = {d: X25519PrivateKey.generate() for d in DEVICES}
    members = [client.Member(d, keys[d].public_key().public_bytes_raw()) for d in DEVICES]
    roster = {d: key.public_key().public_bytes_raw() for d, key in sign.items()}
    total, uploads = RunningSum(P24, client.masked_length(len(vectors[0]))), {}
    for device, vector in zip(DEVICES, vectors, strict=True):
        uploads[device] = client.protect(
            profile=P24, plan=PLAN, offer_hash=DIGEST, device=device, members=members, values=vector, noise=None,
            sign=sign[device].sign, entropy=os.urandom,
        )  # fmt: skip
        total.add(uploads[device].residues)
    opened = opening(len(vectors[0]))
    for index, name in enumerate(DEVICES):
        shares = [
            member.SealedShare(d, u.signature, bytes(u.sealed_shares[index]), share_proofs(u.sealed_shares)[index])
            for d, u in uploads.items()
        ]
        answer = member.answer(
            profile=P24, plan=PLAN, offer_hash=DIGEST, member=name, index=index, secret=keys[name], n_min=5,
            roster=roster, groups=[shares], group_count=1,
        )  # fmt: skip
        opened.receive(index, answer)
    return opened.open(total)


class ShortOpening:
    """The same mask and the same unmasking, the secrets added up in the clear instead of by shares: much faster."""

    def __init__(self, length: int) -> None:
        self._opening, self._length = opening(length), length

    def open(self, vectors: list[np.ndarray], noises: list[np.ndarray | None]) -> np.ndarray:
        total, secrets = RunningSum(P24, client.masked_length(self._length)), np.zeros(P24.degree, np.int32)
        for values, noise in zip(vectors, noises, strict=True):
            secret = binomial(Keystream(os.urandom(32)), P24.degree)
            product = PublicTimes(P24, public_seed(DIGEST), secret, CLIENT_BOUND)
            total.add(client._mask(P24, product, values, noise, Keystream(os.urandom(32))))
            secrets += secret
        return self._opening._unmask(total, secrets)[: self._length]


# -- training ------------------------------------------------------------------------------------------------------


class Data:
    """Random examples of three customers a device, and one who is alone."""

    def __init__(self, seed: int, examples: int = 12) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(examples, 3)).astype(np.float32)
        self.y = (rng.random(examples) < 0.5).astype(np.float32)
        self.subjects = np.arange(examples) % 4

    def take(self, rows: np.ndarray) -> Data:
        some = Data.__new__(Data)
        some.x, some.y, some.subjects = self.x[rows], self.y[rows], self.subjects[rows]
        return some


def module():
    from edge_sdk.training.module import GraphModule

    made = GraphModule(MODEL)
    start = made.update_vector()
    made.load_vector(start + np.random.default_rng(3).normal(size=start.shape).astype(np.float32))
    return made


def update(given: PrivacyTerms, data: Data) -> np.ndarray:
    """What the device's training returns for these terms."""
    from edge_sdk.training.dp_sgd import train

    subjects = {"subjects": data.subjects} if given.unit == "customer" else {}
    return train(
        module(), {"features": data.x}, data.y, plan=training_plan(given, len(data.y)), key=bytes(32),
        on_step=lambda step, steps: None, **subjects,
    ).update  # fmt: skip


def gradient_sum(given: PrivacyTerms, data: Data) -> np.ndarray:
    """The slow oracle of pooled training: one example at a time, added up by unit, clipped, added up."""
    import torch

    from edge_sdk.training.dp_sgd import loss_sum

    net, units = module(), {}
    for row in range(len(data.y)):
        net.zero_grad()
        loss_sum(
            net.loss_name,
            net({"features": torch.from_numpy(data.x[row : row + 1])}),
            torch.from_numpy(data.y[row : row + 1]),
        ).backward()
        gradient = net.flatten(lambda parameter: parameter.grad).astype(np.float64)
        unit = int(data.subjects[row]) if given.unit == "customer" else -1 - row
        units[unit] = units.get(unit, 0) + gradient
    clip = given.max_grad_norm
    return sum(gradient * min(1.0, clip / np.linalg.norm(gradient)) for gradient in units.values())


@pytest.mark.parametrize("unit", ["record", "customer"])
def test_without_noise_the_opened_sum_is_a_step_of_clipped_training_on_the_pooled_data(unit):
    given = terms(unit, noise_multiplier=0.0, insecure_without_noise=True, per_customer=32)
    data = [Data(seed) for seed in range(5)]
    vectors = [quantised(given, update(given, own), Keystream(os.urandom(32))) for own in data]
    assert all(noise_share(given, 3, Keystream(bytes(32))) is None for _ in data)
    opened = open_sum(vectors)
    for place, own in enumerate(data):
        own.subjects = own.subjects + 100 * place  # a customer of one device is nobody on another
    pooled = Data(0).take(np.arange(0))
    pooled.x, pooled.y = np.concatenate([d.x for d in data]), np.concatenate([d.y for d in data])
    pooled.subjects = np.concatenate([d.subjects for d in data])
    error = opened * given.step + SUM_SCALE * gradient_sum(given, pooled)
    # Rounding moves each device's value by less than a step; the floor has 16 steps squared a device.
    deviation = math.sqrt(5 * (FLOOR_VARIANCE + 1 / 4)) * given.step
    training = 2e-6 * given.max_grad_norm * len(pooled.y)  # float32
    assert np.abs(error).max() < 6 * deviation + training
    assert math.sqrt(np.mean(error**2)) < 1.6 * deviation + training
    assert np.abs(opened * given.step).max() > 100 * deviation
    central = terms(
        unit, "local", noise_multiplier=0.0, insecure_without_noise=True, expected_batch=5 * 12, per_customer=32
    )
    applied = given.learning_rate * opened * given.step / (5 * given.expected_batch)
    assert (
        np.abs(applied - SUM_SCALE * update(central, pooled)).max()
        < given.learning_rate * (6 * deviation + training) / 60
    )


# -- noise ---------------------------------------------------------------------------------------------------------

SUMS, WIDTH = 2_000, 200


def residuals(given: PrivacyTerms, honest: int, sums: int = SUMS) -> tuple[np.ndarray, np.ndarray]:
    """Of opened sums of five devices, `honest` of which add noise: [sums, WIDTH] opened less integers, less truth.

    The first is integer, of noise and floor alone; the second, in steps, has the rounding too.
    """
    rng = np.random.default_rng(17)
    truth = (rng.normal(size=(5, WIDTH)) * given.clip / 40).astype(np.float32)
    noise = [noise_share(given, sums * WIDTH, Keystream(os.urandom(32))).reshape(sums, WIDTH) for _ in range(honest)]
    scale = 1.0 if given.unit == "device" else SUM_SCALE
    exact = scale * truth.astype(np.float64).sum(axis=0) / given.step
    way, integer, real = ShortOpening(WIDTH), np.empty((sums, WIDTH), np.int64), np.empty((sums, WIDTH))
    for row in range(sums):
        values = [quantised(given, vector, Keystream(os.urandom(32))) for vector in truth]
        opened = way.open(values, [*(own[row] for own in noise), *[None] * (5 - honest)])
        integer[row], real[row] = opened - sum(v.astype(np.int64) for v in values), opened - exact
    return integer, real


def fits(integer: np.ndarray, variance: float) -> float:
    """p of a chi-square test: Skellam of `variance` plus five devices' binomial floor, the exact distribution."""
    reach = math.ceil(8 * math.sqrt(variance + 5 * FLOOR_VARIANCE)) + 200
    skellam = special.ive(np.abs(np.arange(-reach, reach + 1)), variance)
    floor = stats.binom(5 * 64, 0.5).pmf(np.arange(5 * 64 + 1))
    cumulative = np.cumsum(np.convolve(skellam, floor))
    support = np.arange(-reach - 160, reach + 161)
    cuts = np.unique(np.searchsorted(cumulative, np.linspace(0.005, 0.995, 60)))
    probabilities = np.diff(np.concatenate([[0.0], cumulative[cuts], [1.0]]))
    counts = np.bincount(np.searchsorted(support[cuts], integer.reshape(-1)), minlength=len(cuts) + 1)
    return float(stats.chisquare(counts, probabilities * integer.size).pvalue)


def too_little(real: np.ndarray, variance: float) -> bool:
    """The sample variance lies below `variance` beyond chance (one in ten million), for noise near normal."""
    return real.var() / variance < stats.chi2(real.size - 1).ppf(1e-7) / (real.size - 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unit", "placement"), [("record", "shared"), ("customer", "shared"), ("device", "shared"), ("device", "local")]
)
def test_thousands_of_opened_sums_carry_the_noise_that_is_charged_at_the_smallest_honest_cohort(unit, placement):
    given = terms(unit, placement)
    given = msgspec.structs.replace(given, step=given.noise_multiplier * sensitivity(given) / 400)
    # The variance that charges.spend hands to the accountant: of the whole, in squared steps.
    charged = (given.noise_multiplier * sensitivity(given) / given.step) ** 2
    honest = 4 if placement == "shared" else 1
    integer, real = residuals(given, honest)
    assert abs(real.mean()) < 5 * math.sqrt(charged / real.size)
    assert fits(integer, charged) > 1e-6
    assert not too_little(real, charged)
    rounding = 5 / 4  # at most a quarter of a step squared a device
    assert real.var() < (charged + 5 * FLOOR_VARIANCE + rounding) * (1 + 6 * math.sqrt(2 / real.size))
    # Both tests can fail: with one device's share less they do, and with a tenth of the variance missing.
    assert fits(integer, charged / 0.9) < 1e-9
    assert too_little(real, charged / 0.9)
    if placement == "shared":
        integer, real = residuals(given, honest - 1, 300)
        assert fits(integer, charged) < 1e-9
        assert too_little(real, charged)


def test_the_short_opening_opens_what_the_whole_protocol_opens():
    rng = np.random.default_rng(4)
    vectors = [rng.integers(-(10**5), 10**5, 3000).astype(np.int32) for _ in DEVICES]
    exact = sum(v.astype(np.int64) for v in vectors)
    for opened in (open_sum(vectors), ShortOpening(3000).open(vectors, [None] * 5)):
        assert abs((opened - exact).var() / (5 * FLOOR_VARIANCE) - 1) < 6 * math.sqrt(2 / 3000)


# -- sensitivity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [12.0, 1.0], ids=["the sum is whole", "the sum is projected"])
@pytest.mark.parametrize("unit", ["record", "customer"])
def test_leaving_one_unit_out_moves_the_upload_no_further_than_is_charged(unit, clip):
    given = terms(unit, clip=clip, step=1e-3, max_grad_norm=0.05)
    furthest = 0.0
    for seed in range(8):
        data = Data(seed)
        whole, key = update(given, data), os.urandom(32)
        for gone in range(4):
            left = np.flatnonzero(data.subjects != gone) if unit == "customer" else np.delete(np.arange(12), gone)
            pair = [quantised(given, v, Keystream(key)).astype(int) for v in (whole, update(given, data.take(left)))]
            furthest = max(furthest, float(np.linalg.norm(pair[0] - pair[1])))
    assert furthest <= l2_steps(given, len(whole))
    assert furthest > 0.5 * given.max_grad_norm / given.step


def test_an_upload_of_the_device_unit_is_no_longer_than_is_charged():
    given = terms("device", clip=0.05, step=1e-3, steps=20, sample_rate=0.5)
    for seed in range(8):
        values = quantised(given, update(given, Data(seed)), Keystream(os.urandom(32))).astype(int)
        assert 0.5 * given.clip / given.step < np.linalg.norm(values) <= l2_steps(given, len(values))
        assert np.abs(values).max() <= integer_bound(given.clip, given.step)
