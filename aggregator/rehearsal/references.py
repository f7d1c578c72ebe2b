"""What a fleet is measured against: one centre without privacy, one centre with the same privacy.

Each device alone is `local_only`. All start from the same model and see the same rows. Choices (how many passes) are
made on rows held back from those that are given, never on test rows. Refuses a private centre without an epsilon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from aggregator import averaging, optimizers, tasks
from aggregator.errors import TaskRefused
from aggregator.rehearsal.fleet import VirtualFleet
from aggregator.rehearsal.population import Floats, Population
from aggregator.rehearsal.seeds import Seeds
from aggregator.rehearsal.training import pooled_sums
from aggregator.tasks import TaskSpec
from edge_sdk.artifact.weights import read_vector, write_vector
from edge_sdk.privacy import accounting
from edge_sdk.protocol.messages import PrivacyTerms
from edge_sdk.training.module import GraphModule
from edge_sdk.training.noise import Gaussian
from edge_sdk.training.plain import PlainPlan, batches, fit
from edge_sdk.training.secure_random import SecretStream

__all__ = ["PlainPlan", "central", "central_dp", "centre_noise"]

Labels = npt.NDArray[Any]
FEWEST_WATCHED: Final = 5  # rows: a choice by fewer is a draw of lots


def central(
    model: bytes,
    features: Floats,
    labels: Labels,
    *,
    plan: PlainPlan | None = None,
    watched: float | npt.NDArray[np.bool_] = 0.1,
    refit: bool = True,
    seed: int = 0,
) -> bytes:
    """One centre that holds all rows, without privacy: ONNX bytes.

    `watched`: the share of the rows, or bool [N] which of them, by whose loss the number of passes is chosen; 0 for
    none. `refit`: then train anew on all rows for so many passes. Raises TrainingFailed.
    """
    module, rng = GraphModule(model), Seeds(seed).generator("central")
    return write_vector(model, _fitted(module, features, labels, plan or PlainPlan(), watched, refit, rng), {})


def _fitted(  # noqa: PLR0917 - what a reference is made of, once
    module: GraphModule,
    features: Floats,
    labels: Labels,
    plan: PlainPlan,
    watched: float | npt.NDArray[np.bool_],
    refit: bool,
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    start, held = module.update_vector(), _held_back(len(labels), watched, rng)
    if not held.any():
        return fit(module, batches({"features": features}, labels), plan, rng).weights
    first, other = (batches({"features": features[rows]}, labels[rows]) for rows in (~held, held))
    best = fit(module, first, plan, rng, other)
    if not refit or not best.epochs:
        return best.weights
    module.load_vector(start)
    return fit(module, batches({"features": features}, labels), replace(plan, epochs=best.epochs), rng).weights


def _held_back(rows: int, watched: float | npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    if isinstance(watched, np.ndarray):
        return watched
    held, count = np.zeros(rows, np.bool_), int(watched * rows)
    if count >= FEWEST_WATCHED:
        held[rng.permutation(rows)[:count]] = True
    return held


def centre_noise(spec: TaskSpec, terms: PrivacyTerms) -> float:
    """The noise multiplier with which a trusted centre keeps the task's epsilon; 0.0 for a task without noise.

    Subsampled Gaussian steps, as Opacus' RDP accountant counts them: all rounds, all steps of each.
    """
    if terms.insecure_without_noise:
        return 0.0
    if spec.target_epsilon is None:
        raise TaskRefused("a private centre needs an epsilon", "give target_epsilon", reason="privacy")
    steps = spec.rounds * terms.steps
    return accounting.calibrate(
        spec.target_epsilon, spec.delta, lambda z: accounting.subsampled_gaussian(terms.sample_rate, z, steps)
    )


def central_dp(
    model: bytes,
    population: Population,
    spec: TaskSpec,
    *,
    across: bool = False,
    seed: int = 0,
    on_step: Callable[[int, bytes], None] | None = None,
) -> bytes:
    """One trusted centre that holds all rows: DP-SGD as Opacus defines it, at the task's epsilon. ONNX bytes.

    Same unit, sampling rate, clip, number of steps, learning rate, divisor and server optimizer as the fleet's task;
    where that takes n_max of more devices, the rows of as many a round. Gaussian noise of the least multiplier that
    keeps epsilon is added to the clipped sum. `across`: equal subjects on two devices are one customer, who counts and
    is clipped once; the divisor shrinks with their number. Device unit: the fleet's own rounds with the noise of a
    trusted centre (DP-FedAvg, McMahan et al. 2018), no device being taken for corrupt. `on_step(step, model)` runs
    after each step (device unit: not at all). Raises TrainingFailed, TaskRefused.
    """
    if spec.unit == "device":
        return _trusted_fleet(model, population, spec, seed)
    weights = read_vector(model)
    terms = tasks.settle(spec, weights.size)
    sums = pooled_sums(GraphModule(model), population, terms, across=across)
    # The fleet's own divisor, so that a learning rate means the same: its devices times the units expected of each.
    able, most = population.able(terms), spec.buffer or spec.n_max
    divisor = min(len(able), most) * terms.expected_batch * (_people_per_unit(population) if across else 1.0)
    deviation, seeds = centre_noise(spec, terms) * terms.max_grad_norm, Seeds(seed)
    noise, drawn = Gaussian(SecretStream(seeds.key("central-noise"))), np.zeros(weights.size, np.float32)
    steps, here = spec.rounds * terms.steps, np.ones(len(population), np.bool_)
    optimizer, state = optimizers.of(msgspec.structs.replace(spec, rounds=steps)), b""
    stream = SecretStream(seeds.key("central-sample"))
    for step in range(1, steps + 1):
        if len(able) > most and (step - 1) % terms.steps == 0:
            here[:] = False
            here[seeds.generator("central-cohort", step).choice(able, most, replace=False)] = True
        total = sums.sum(read_vector(model), terms.sample_rate, stream, here, np.inf).astype(np.float64)
        if deviation > 0:
            noise.fill(drawn, deviation)
            total += drawn
        model, state = averaging.advance(
            model, total, step=1.0, devices=1, scale=terms.learning_rate / divisor, optimizer=optimizer, state=state,
            metadata={},
        )  # fmt: skip
        if on_step is not None:
            on_step(step, model)
    return model


def _people_per_unit(population: Population) -> float:
    """Customers over the units that devices take them for; 1.0 for records."""
    if population.subjects is None:
        return 1.0
    nobody = int((population.subjects < 0).sum())
    people = len(np.unique(population.subjects[population.subjects >= 0])) + nobody
    return people / max(1, int(population.units(customers=True).sum()))


def _trusted_fleet(model: bytes, population: Population, spec: TaskSpec, seed: int) -> bytes:
    trusted = msgspec.structs.replace(spec, placement="shared", honest_share=1.0, n_min=max(3, len(population)))
    fleet = VirtualFleet(population, model, trusted, seed=seed)
    fleet.run()
    return fleet.model
