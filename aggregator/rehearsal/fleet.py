"""Many virtual devices in one process, through the code that real ones run. Reads and writes nothing.

A round: terms as `tasks.settle` settles them, every device trains, rounds, adds its noise and is masked; the committee
opens the sum; the model moves. Without masks only masking and opening are left out, and the model is the same to the
byte. With `fast` the clipped sums of a round of shared noise are computed in one pass and their noise is drawn once, of
the same distribution: other numbers, the same mechanism.

THE NOISE OF A REHEARSAL CAN BE DRAWN AGAIN BY ANYBODY WHO KNOWS THE SEED: a model that was rehearsed on personal data
is personal data, and must not leave the place where that data is. Refuses what `tasks.settle` refuses, groups that are
judged by held-out records, and a fleet in which too few devices have enough examples.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aggregator import averaging, optimizers, robust, task_terms, tasks
from aggregator.errors import TaskRefused
from aggregator.rehearsal.masked import MOST_MEMBERS, MaskedSums, PlainSums, RoundPlan, Sums, VirtualRoster, device_name
from aggregator.rehearsal.population import Population, VirtualDevice
from aggregator.rehearsal.seeds import Seeds
from aggregator.rehearsal.training import Training
from aggregator.tasks import TaskSpec
from edge_sdk.artifact.weights import read_vector
from edge_sdk.privacy import charges
from edge_sdk.privacy.protection import noise_share, quantised
from edge_sdk.protocol.quantize import SUM_SCALE
from edge_sdk.protocol.secagg.client import masked_length, upload_bytes
from edge_sdk.protocol.secagg.committee import SMALLEST, members_for, plan
from edge_sdk.protocol.secagg.groups import groups_of
from edge_sdk.protocol.secagg.keystream import Keystream
from edge_sdk.protocol.secagg.ring import profile

__all__ = ["Figures", "Population", "VirtualDevice", "VirtualFleet"]

FLOOR_BITS: Final = 64  # each residue's floor is the popcount of so many bits, less half
LARGE_VARIANCE: Final = 1e8
Whole = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Figures:
    """What one round took and gave. `seconds` of the whole round, `upload_bytes` of one device, unsealed.

    `epsilon`: after this round, at the task's delta; None without noise. `moved`: L2 distance the weights went.
    """

    round: int
    devices: int
    seconds: float
    upload_bytes: int
    epsilon: float | None
    moved: float

    def as_dict(self) -> dict[str, Any]:
        """For a report."""
        return asdict(self)


class VirtualFleet:
    """A task and its devices. `model` is the current checkpoint, `terms` what was settled."""

    def __init__(
        self,
        devices: Sequence[VirtualDevice] | Population,
        model: bytes,
        spec: TaskSpec,
        *,
        masks: bool = False,
        seed: int = 0,
        fast: bool = False,
        min_examples: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`min_examples`: a device with fewer units, or too few for one to be drawn a step, stays out, as real ones do.

        `fast`: pooled sums, for shared noise of records or customers without masks or robust averages; else ignored.
        Raises TaskRefused.
        """
        self.population = devices if isinstance(devices, Population) else Population.of(devices)
        self.model, self.spec, self.figures = model, spec, list[Figures]()
        self._length = int(read_vector(model).size)
        self.terms = tasks.settle(spec, self._length)
        self.scale = task_terms.update_scale(spec, self.terms)
        self._optimizer, self._state = optimizers.of(spec), b""
        self._seeds, self._clock = Seeds(seed), clock
        self._ring = profile(spec.profile)
        self._able = self._able_devices(min_examples)
        if spec.group_gate:
            raise TaskRefused("a rehearsal has no group_gate", "leave group_gate out", reason="groups")
        self._roster = VirtualRoster(self._seeds, len(self.population)) if masks else None
        self._training = Training(self.population, model, self.terms, pooled=self._may_pool(fast, masks))

    def _able_devices(self, min_examples: int) -> Whole:
        able = self.population.able(self.terms, min_examples)
        if len(able) < self.spec.n_min:
            raise TaskRefused(
                f"{len(able)} of {len(self.population)} devices have enough examples, a sum needs {self.spec.n_min}",
                "lower n_min, or raise sample_rate so that every device has one unit to draw",
                reason="cohort",
            )
        return able

    def _may_pool(self, fast: bool, masks: bool) -> bool:
        of_sums = self.terms.placement == "shared" and self.terms.unit != "device"
        return fast and of_sums and not masks and self.spec.robust == "mean"

    def run(self, rounds: int | None = None, on_round: Callable[[Figures], None] | None = None) -> list[Figures]:
        """So many more rounds (not given: all that the task has left); their figures.

        Raises TrainingFailed, ModelRefused, and TaskRefused where every group is below n_min.
        """
        left = self.spec.rounds - len(self.figures) if rounds is None else rounds
        before = len(self.figures)
        for _ in range(left):
            self.figures.append(self._round(len(self.figures) + 1))
            if on_round is not None:
                on_round(self.figures[-1])
        return self.figures[before:]

    def _round(self, number: int) -> Figures:
        began, weights = self._clock(), read_vector(self.model)
        cohort = self._cohort(number)
        if self._training.pooled:
            opened = [(self._pooled(number, weights, cohort), len(cohort))]
        else:
            opened = self._opened(number, weights, cohort)
        self._advance(number, opened)
        return Figures(
            number,
            len(cohort),
            self._clock() - began,
            self.upload_bytes,
            charges.epsilon(self.terms, self._length, number),
            float(np.linalg.norm(read_vector(self.model).astype(np.float64) - weights)),
        )

    @property
    def upload_bytes(self) -> int:
        """What one device sends in a round, masked, with its sealed shares."""
        members = min(MOST_MEMBERS, members_for(max(SMALLEST, len(self.population))))
        return upload_bytes(self._ring, plan(members), masked_length(self._length))

    def _cohort(self, number: int) -> Whole:
        """Who takes part: everybody who can, or as many at random as the round takes."""
        most = self.spec.buffer or self.spec.n_max
        if len(self._able) <= most:
            return self._able
        return np.sort(self._seeds.generator("cohort", number).choice(self._able, most, replace=False))

    # -- device by device ------------------------------------------------------------------------------------------

    def _opened(self, number: int, weights: npt.NDArray[np.float32], cohort: Whole) -> list[tuple[Whole, int]]:
        sums = self._sums(number)
        for place in cohort:
            update = self._training.update(int(place), weights, self._seeds.key("train", number, place))
            values = quantised(self.terms, update, Keystream(self._seeds.key("round", number, place)))
            noise = noise_share(self.terms, self._length, Keystream(self._seeds.key("noise", number, place)))
            sums.add(int(place), values, noise)
        return sums.opened()

    def _sums(self, number: int) -> Sums:
        spec, names = self.spec, map(device_name, range(len(self.population)))
        words = f"rehearsal of {spec.name}, round {number}".encode() + hashlib.sha256(self.model).digest()
        digest = hashlib.sha256(words).digest()
        settled = groups_of(digest, names, spec.groups)
        round_plan = RoundPlan(number, digest, self._length, spec.n_min, spec.groups, settled)
        if self._roster is None:
            return PlainSums(self._seeds, round_plan)
        return MaskedSums(self._seeds, round_plan, self._ring, self._roster)

    # -- pooled ----------------------------------------------------------------------------------------------------

    def _pooled(self, number: int, weights: npt.NDArray[np.float32], cohort: Whole) -> Whole:
        """One opened sum, int64 [d]: the devices' clipped sums and noise, rounded once."""
        key, rng = self._seeds.key("train", number), self._seeds.generator("round", number)
        total = self._training.pooled_update(cohort, weights, key).astype(np.float64)
        rounded = np.floor(total * (SUM_SCALE / self.terms.step) + rng.random(self._length)).astype(np.int64)
        floor = rng.binomial(FLOOR_BITS * len(cohort), 0.5, self._length) - FLOOR_BITS // 2 * len(cohort)
        return rounded + floor + self._pooled_noise(len(cohort), rng)

    def _pooled_noise(self, devices: int, rng: np.random.Generator) -> Whole:
        """The devices' Skellam shares added up: difference of two Poissons, or its limit where it cannot be told apart.

        numpy's Poisson is exact up to float64; a Skellam variable of deviation above 10^4 differs from a rounded
        normal one by less than 10^-8 in total variation (its excess kurtosis is 1 / variance).
        """
        variance = devices * charges.sigma_steps(self.terms) ** 2
        if variance > LARGE_VARIANCE:
            return np.rint(rng.normal(0.0, math.sqrt(variance), self._length)).astype(np.int64)
        return rng.poisson(variance / 2, self._length) - rng.poisson(variance / 2, self._length)

    def _advance(self, number: int, opened: Sequence[tuple[Whole, int]]) -> None:
        if len(opened) < tasks.fewest_groups(self.spec):
            raise TaskRefused(
                f"round {number} filled {len(opened)} groups of {self.spec.n_min} devices",
                "lower n_min or groups",
                reason="cohort",
            )
        total, divisor = robust.combine(
            self.spec.robust, [total for total, _ in opened], [count for _, count in opened], self.spec.trim
        )
        self.model, self._state = averaging.advance(
            self.model,
            total,
            step=self.terms.step,
            devices=divisor,
            scale=self.scale,
            optimizer=self._optimizer,
            state=self._state,
            metadata={averaging.TASK: self.spec.name, averaging.ROUND: str(number)},
        )
