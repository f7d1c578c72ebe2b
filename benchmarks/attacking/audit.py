"""Is epsilon what it is claimed to be? Canaries against the product's own training, rounding and noise.

The attacker knows the model, all other data and the canary, and sees what a unit's guarantee is about: the device's
upload before the mask (local noise), or the opened sum with the noise of exactly `honest` devices (shared noise).
The canary's gradient has the full norm and a direction of its own, which is the worst case (Nasr et al. 2021, 2023).
Training noise comes from the operating system, so every run differs.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.attacking.bounds import from_one_run, from_threshold
from benchmarks.attacking.masked_round import MaskedRound
from benchmarks.attacking.models import linear
from edge_sdk.privacy import charges
from edge_sdk.privacy.mechanism import SkellamSampler
from edge_sdk.privacy.protection import quantised
from edge_sdk.privacy.statement import state
from edge_sdk.protocol.messages import Placement, PrivacyTerms, Unit
from edge_sdk.protocol.secagg.keystream import Keystream
from edge_sdk.training.dp_sgd import train
from edge_sdk.training.module import GraphModule
from edge_sdk.training.plans import training_plan

DELTA, HONEST, BATCH, RATE = 1e-5, 3, 8, 0.1
WIDTH = 64  # canaries of one of many runs, each with a column of its own
FAR = 1000.0  # a target so far away that every gradient is longer than the clip, whatever was learnt
EACH = 4  # examples of a customer
CASES: tuple[tuple[Unit, Placement], ...] = (
    ("record", "local"), ("record", "shared"), ("customer", "local"),
    ("customer", "shared"), ("device", "local"), ("device", "shared"),
)  # fmt: skip
SAMPLED: dict[str, Any] = {"steps": 10, "sample_rate": 0.25}
Floats = npt.NDArray[np.float64]
PEOPLE: tuple[Unit, ...] = ("record", "customer")
Row = dict[str, Any]


def terms(unit: Unit, placement: Placement, **changes: Any) -> PrivacyTerms:
    """An offer's terms for one step of everybody, without noise until told."""
    shared = placement == "shared"
    whole = unit == "device"
    plain = PrivacyTerms(
        unit=unit,
        placement=placement,
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        per_customer=EACH,
        sample_rate=1.0,
        steps=1,
        learning_rate=RATE,
        delta=DELTA,
        honest=HONEST if shared else 1,
        clip=1.0 if whole else 64.0 if shared else 4.0,
        # About 500 steps to the sensitivity, except where the noise of every column must fit the clip.
        step=2.0**-9 if whole or shared else 2.0**-14,
        insecure_without_noise=True,
        expected_batch=BATCH,
        proximal=0.0,
        weight_bound=0,
    )
    return msgspec.structs.replace(plain, **changes)


def noised(plain: PrivacyTerms, length: int, epsilon: float | None) -> PrivacyTerms:
    """The same with the least noise that one round's claim of `epsilon` allows; None leaves it off."""
    if epsilon is None:
        return plain
    on = msgspec.structs.replace(plain, insecure_without_noise=False)
    return msgspec.structs.replace(on, noise_multiplier=charges.calibrate(on, length, 1, epsilon))


@dataclass(frozen=True)
class Data:
    """features float32 [B, F], labels float32 [B], subjects int64 [B]."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.float32]
    subjects: npt.NDArray[np.int64]


def data_of(columns: npt.NDArray[np.int64], width: int, each: int) -> Data:
    """`each` examples of each of these units; unit k has a column of its own."""
    x = np.repeat(np.eye(width, dtype=np.float32)[columns], each, axis=0)
    return Data(x, np.full(len(x), FAR, np.float32), np.repeat(columns, each))


class Watched:
    """One offer's terms, run again and again with and without the canary."""

    def __init__(self, told: PrivacyTerms, width: int) -> None:
        self.terms, self._module = told, GraphModule(linear(width))
        self._start = np.zeros(width, np.float32)
        sigma = charges.sigma_steps(told)
        self._sampler = SkellamSampler(sigma**2) if sigma else None

    def update(self, data: Data) -> npt.NDArray[np.float32]:
        """What training gives, by the product's plan for these terms, float32 [F]."""
        self._module.load_vector(self._start)
        plan = training_plan(self.terms, len(data.y))
        subjects = data.subjects if plan.unit == "customer" else None
        result = train(
            self._module, {"features": data.x}, data.y, plan=plan, key=os.urandom(32), on_step=lambda *_: None,
            subjects=subjects,
        )  # fmt: skip
        return result.update

    def uploaded(self, update: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Integers that the attacker sees: rounded as they leave, with the noise of all that must be honest."""
        whole = quantised(self.terms, update, Keystream(os.urandom(32))).astype(np.int64)
        for _ in range(self.terms.honest if self._sampler else 0):
            assert self._sampler is not None
            whole += self._sampler.draw(len(whole), Keystream(os.urandom(32)))
        return whole

    def trials(self, runs: int) -> tuple[Floats, Floats]:
        """Scores without and with a canary; every column of a run is a trial, its canary in by a coin of its own.

        The trials of one run are independent as far as the noise of different columns is.
        """
        width, each, scores, coins = len(self._start), EACH if self.terms.unit == "customer" else 1, [], []
        for _ in range(runs):
            coin = np.frombuffer(os.urandom(width), np.uint8) < 128
            coin[0] |= not coin.any()  # a device without examples does not train
            scores.append(self.uploaded(self.update(data_of(np.flatnonzero(coin), width, each))))
            coins.append(coin)
        table, there = np.concatenate(scores).astype(np.float64), np.concatenate(coins)
        return table[~there], table[there]

    def device_trials(self, runs: int) -> tuple[Floats, Floats]:
        """For the device unit a canary is a whole update: nothing, or the clip along the first column. One a run."""
        zero, canary = np.zeros_like(self._start), self.update(data_of(np.zeros(1, np.int64), len(self._start), 1))
        absent, present = ([self.uploaded(update)[0] for _ in range(runs)] for update in (zero, canary))
        return np.array(absent, np.float64), np.array(present, np.float64)


def many_runs(unit: Unit, placement: Placement, claimed: float | None, runs: int, **changes: Any) -> Row:
    """`runs` rounds of WIDTH canaries each (device: of one), and what they prove; `changes` to the terms."""
    watched = Watched(noised(terms(unit, placement, **changes), WIDTH, claimed), WIDTH)
    absent, present = watched.device_trials(runs * WIDTH // 2) if unit == "device" else watched.trials(runs)
    count = min(len(absent), len(present))
    jitter = np.random.default_rng(1).uniform(0, 1e-3, 2 * count)  # ties, without noise
    any_bound, gaussian = from_threshold(absent[:count] + jitter[:count], present[:count] + jitter[count:], DELTA)
    said = state(watched.terms, WIDTH, 1, HONEST + 1).epsilon
    row: Row = {"unit": unit, "placement": placement, "method": "many runs", "trials": 2 * count}
    row |= {"claimed": said and round(said, 4), "lower_bound": round(any_bound, 3)}
    # Sampling makes a mixture of what is seen: no Gaussian trade-off.
    sampled = watched.terms.sample_rate < 1
    row["lower_bound_gaussian"] = None if said is None or sampled else round(gaussian, 3)
    return row | ({"placement": "local, 10 steps, q 0.25"} if sampled else {})


def one_run(unit: Unit, claimed: float | None, canaries: int) -> Row:
    """One training run of ten sampled steps (device: one opened sum), half of the canaries in it, each by a coin."""
    included = np.random.default_rng(int.from_bytes(os.urandom(8), "big")).random(canaries) < 0.5
    scores, said = (_opened if unit == "device" else _trained)(unit, claimed, included)
    placement = "shared, through the mask" if unit == "device" else "local, 10 steps, q 0.25"
    bound = from_one_run(scores, included, DELTA)
    row: Row = {"unit": unit, "placement": placement, "method": "one run", "trials": canaries}
    return row | {"claimed": said and round(said, 4), "lower_bound": round(bound, 3), "lower_bound_gaussian": None}


def _trained(unit: Unit, claimed: float | None, included: npt.NDArray[np.bool_]) -> tuple[Floats, float | None]:
    width, each = len(included), EACH if unit == "customer" else 1
    plain = terms(unit, "local", **SAMPLED, expected_batch=max(1, width // 8))
    watched = Watched(noised(plain, width, claimed), width)
    scores = watched.update(data_of(np.flatnonzero(included), width, each)).astype(np.float64)
    return scores, state(watched.terms, width, 1, 1).epsilon


def _opened(unit: Unit, claimed: float | None, included: npt.NDArray[np.bool_]) -> tuple[Floats, float | None]:
    """Canary devices send their clip along an axis of their own and no noise: `honest` others carry all of it."""
    width = len(included)
    told = noised(terms(unit, "shared"), width, claimed)
    sigma = charges.sigma_steps(told)
    columns = np.flatnonzero(included)
    session = MaskedRound(members=10, devices=10 + len(columns), values=width)
    for device in range(HONEST):
        noise = SkellamSampler(sigma**2).draw(width, Keystream(os.urandom(32))) if sigma else None
        session.upload(device, np.zeros(width, np.int32), noise)
    for place, column in enumerate(columns):
        update = np.eye(width, dtype=np.float32)[column] * told.clip
        session.upload(HONEST + place, quantised(told, update, Keystream(os.urandom(32))))
    opened = session.opened(range(HONEST + len(columns)))
    return opened.astype(np.float64), state(told, width, 1, HONEST + 1).epsilon


def run(quick: bool) -> list[Row]:
    """Every unit and placement; claims 1, 2, 4 and 8, and noise switched off."""
    claims = (2.0, None) if quick else (1.0, 2.0, 4.0, 8.0, None)
    runs, canaries = (20, 300) if quick else (500, 1000)
    rows = [many_runs(*case, claim, runs) for case in CASES for claim in claims]
    rows += [many_runs(unit, "local", claim, runs // 2, **SAMPLED) for unit in PEOPLE for claim in claims]
    rows += [one_run(unit, claim, canaries) for unit in PEOPLE for claim in claims]
    rows += [one_run("device", claim, canaries // 3) for claim in claims]
    return rows


def refuted(rows: list[Row]) -> list[Row]:
    """Rows whose claim the attack has refuted: there should be none."""
    return [row for row in rows if row["claimed"] is not None and row["lower_bound"] > row["claimed"]]


def blind(rows: list[Row]) -> list[Row]:
    """Rows without noise in which the attack saw nothing: there should be none, or it is no attack."""
    return [
        row
        for row in rows
        if row["claimed"] is None and not (row["lower_bound"] > 0 and math.isfinite(row["lower_bound"]))
    ]
