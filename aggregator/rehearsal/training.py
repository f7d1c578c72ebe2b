"""How a rehearsal trains: one torch module for all devices, each device's rows in turn or all in one pass.

Loads torch, by edge_sdk.training. The first device with two examples is trained with every check that a real one makes;
the others skip those that only look.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from aggregator.rehearsal.population import Population
from edge_sdk.artifact.weights import read_vector
from edge_sdk.protocol.messages import PrivacyTerms
from edge_sdk.training.bookkeeping import unsupported_layer
from edge_sdk.training.dp_sgd import train
from edge_sdk.training.jobs import TrainingFailed
from edge_sdk.training.module import GraphModule
from edge_sdk.training.plans import training_plan
from edge_sdk.training.pooled import PooledSums
from edge_sdk.training.secure_random import SecretStream

Vector = npt.NDArray[np.float32]
Whole = npt.NDArray[np.int64]


def pooled_sums(module: GraphModule, devices: Population, terms: PrivacyTerms, *, across: bool = False) -> PooledSums:
    """The clipped sums of all devices' units in one pass. Raises TrainingFailed for a layer without a formula.

    `across`: equal subjects on two devices are one customer, who is clipped once, as by somebody who holds all rows.
    """
    return PooledSums(
        module,
        {"features": devices.features},
        devices.labels,
        owners=devices.owners(),
        subjects=(devices.subjects if across else devices.unit_subjects()) if terms.unit == "customer" else None,
        per_customer=terms.per_customer,
        max_grad_norm=terms.max_grad_norm,
    )


class Training:
    """The devices' half of a round before protection."""

    def __init__(self, population: Population, model: bytes, terms: PrivacyTerms, *, pooled: bool) -> None:
        """`pooled`: allow sums in one pass, where the model's layers do. Raises TrainingFailed, UnsupportedModel."""
        self._population, self._terms = population, terms
        self._module = GraphModule(model)
        self._unit_has_subjects = terms.unit == "customer"
        if self._unit_has_subjects and population.subjects is None:
            what = "the customer unit needs to know whose each example is: give subjects"
            raise TrainingFailed("no-subjects", what)
        self._sums = (
            pooled_sums(self._module, population, terms) if pooled and unsupported_layer(self._module) is None else None
        )
        self._checked = False
        self._loaded: Vector | None = None
        self._of_sums = terms.placement == "shared" and terms.unit != "device"
        if self._sums is not None:
            self._check(read_vector(model))

    @property
    def pooled(self) -> bool:
        """Are sums computed in one pass?"""
        return self._sums is not None

    def _check(self, weights: Vector) -> None:
        several = np.flatnonzero(np.diff(self._population.bounds) >= 2)
        if len(several):
            self.update(int(several[0]), weights, bytes(32))

    def update(self, place: int, weights: Vector, key: bytes) -> Vector:
        """What the device at `place` would hand to protection, float32 [d]. Raises TrainingFailed."""
        device = self._population.device(place)
        # A sum of gradients leaves the module's weights as they are.
        if self._loaded is not weights:
            self._module.load_vector(weights)
        self._loaded = weights if self._of_sums else None
        result = train(
            self._module,
            {"features": device.features},
            device.labels,
            plan=training_plan(self._terms, len(device.labels)),
            key=key,
            on_step=_unwatched,
            subjects=device.subjects if self._unit_has_subjects else None,
            quick=self._checked,
        )
        self._checked = self._checked or len(device.labels) >= 2
        return result.update

    def pooled_update(self, cohort: Whole, weights: Vector, key: bytes) -> Vector:
        """What the updates of these devices add up to, float32 [d]; needs `pooled`. Raises TrainingFailed."""
        assert self._sums is not None, "the caller asks for `pooled` first"
        self._loaded = None
        here = np.zeros(len(self._population), np.bool_)
        here[cohort] = True
        terms = self._terms
        return self._sums.sum(weights, terms.sample_rate, SecretStream(key), here, terms.clip)


def _unwatched(step: int, steps: int) -> None:
    """Nobody waits for a single device's progress."""
