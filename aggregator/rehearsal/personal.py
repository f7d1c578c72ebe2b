"""Each virtual device's own version of a fleet's model, as devices train it for themselves. Reads nothing.

The same code as on a device (`edge_sdk.training.personal`), and like there nothing of it goes to the fleet.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from aggregator.rehearsal.population import Population
from aggregator.rehearsal.seeds import Seeds
from edge_sdk.artifact.features import INPUT
from edge_sdk.artifact.weights import write_vector
from edge_sdk.training.personal import SURE, Personal
from edge_sdk.training.personal import personalise as of_device


def trained(
    model: bytes, population: Population, *, seed: int = 0, sure: float = SURE, apart: bool = False
) -> Iterator[tuple[int, Personal]]:
    """Each device that has rows: its place, and what it would serve. `apart`: no label occurs on two devices.

    Raises TrainingFailed.
    """
    for place in np.flatnonzero(np.diff(population.bounds)):
        own, rng = population.device(int(place)), Seeds(seed).generator("personal", int(place))
        drawn = int(rng.integers(2**31))
        yield (
            int(place),
            of_device(
                model, {INPUT: own.features}, own.labels, seed=drawn, subjects=own.subjects, sure=sure, apart=apart
            ),
        )


def personalise(
    model: bytes, population: Population, *, seed: int = 0, sure: float = SURE, apart: bool = False
) -> Iterator[tuple[int, bytes]]:
    """The same as ONNX bytes, as `references.alone` gives them. Raises TrainingFailed."""
    for place, found in trained(model, population, seed=seed, sure=sure, apart=apart):
        yield place, write_vector(model, found.vector, {})
