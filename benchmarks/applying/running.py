"""The runs of one data set with one seed: a fleet, what it is held against, and what privacy costs it. Prints nothing.

A figure is the metric over all scored rows together. Where every client has a model of its own (local, personalised)
each of its rows is answered by it. The same runs score the validation part (`validating`), which is how every setting
was chosen, or the test rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aggregator import tasks
from aggregator.evaluation import Heldout, heldout, logits, measure
from aggregator.rehearsal.fleet import VirtualDevice, VirtualFleet
from aggregator.rehearsal.local_only import alone
from aggregator.rehearsal.personal import personalise
from aggregator.rehearsal.population import Population
from aggregator.rehearsal.references import central, central_dp
from aggregator.rehearsal.scores import part
from benchmarks.applying.dataset import Dataset, Rows
from edge_sdk.artifact.features import INPUT, features, labels

Outputs = npt.NDArray[np.float64]

# Name of a run: the setting that it trains by, and who trains.
FLEETS: Final = {
    "fleet": "no_privacy",
    "shared_eps8": "eps8_shared",
    "shared_eps3": "eps3_shared",
    "local_noise_eps8": "eps8_local",
    "local_noise_eps3": "eps3_local",
}
CENTRES: Final = {"central_dp_eps8": "eps8_shared", "central_dp_eps3": "eps3_shared"}
OWN: Final = ("local_mean", "personalised")
RUNS: Final = ("central", "local_mean", "fleet", "personalised", *CENTRES, *list(FLEETS)[1:])


class Bench:
    """A data set, encoded once: its training rows by client, and the rows that are scored."""

    def __init__(self, dataset: Dataset, *, validating: bool = False, honest_share: float = 1.0) -> None:
        """`validating`: train without the validation part and score it; the test rows are not looked at.

        `honest_share`: the part of the clients that is taken to add its share of shared noise. With 1 nobody is trusted
        less than the trusted centre of the comparison is; the product's default, 0.8, adds an eighth to the noise.
        """
        self.dataset, self.honest_share = dataset, honest_share
        train = dataset.train.take(~dataset.validation) if validating else dataset.train
        self.scored = dataset.train.take(dataset.validation) if validating else dataset.test
        self.heldout: Heldout = heldout(dataset.schema, self.scored.records, self.scored.answers)
        self.population = population(dataset, train)
        self._held = None if validating else _by_client(train, dataset.validation)
        self._fleets: dict[tuple[str, int], bytes] = {}

    def run(self, name: str, seed: int) -> dict[str, float] | None:
        """{"": the metric, "by_client": its mean over clients}; None where the set has no such setting.

        Raises what training raises.
        """
        if name in FLEETS:
            return self._fleet(name, FLEETS[name], seed)
        if name in CENTRES:
            return self._centre(CENTRES[name], seed)
        first = self.dataset.first_model("no_privacy", seed)
        if name == "central":
            people = self.population
            watched: Any = 0.1 if self._held is None else self._held
            plan = self.dataset.plan
            return self._of(central(first, people.features, people.labels, plan=plan, watched=watched, seed=seed))
        if name == "local_mean":
            return self._of_own(alone(first, self.population, plan=self.dataset.plan, seed=seed))
        return self._personalised(seed)

    def _fleet(self, name: str, setting: str, seed: int) -> dict[str, float] | None:
        if setting not in self.dataset.settings:
            return None
        if (name, seed) not in self._fleets:
            model, spec = self.dataset.first_model(setting, seed), self.spec(setting)
            fleet = VirtualFleet(self.population, model, spec, seed=seed, fast=spec.placement == "shared")
            fleet.run()
            self._fleets[name, seed] = fleet.model
        return self._of(self._fleets[name, seed])

    def _centre(self, setting: str, seed: int) -> dict[str, float] | None:
        if setting not in self.dataset.settings:
            return None
        model = self.dataset.first_model(setting, seed)
        return self._of(central_dp(model, self.population, self.spec(setting), seed=seed))

    def _personalised(self, seed: int) -> dict[str, float] | None:
        if self._fleet("fleet", "no_privacy", seed) is None:
            return None
        return self._of_own(
            personalise(self._fleets["fleet", seed], self.population, seed=seed, apart=self.dataset.apart)
        )

    def spec(self, setting: str) -> tasks.TaskSpec:
        """The task of one of the set's settings."""
        name = f"{self.dataset.name}-{setting}".replace("_", "-")
        given = {"name": name, "unit": self.dataset.unit, **self.dataset.settings[setting]}
        if given.get("placement") == "shared":
            given["honest_share"] = self.honest_share
        return tasks.build_spec(**given)

    def _of(self, model: bytes) -> dict[str, float]:
        return self._figures(logits(model, self.heldout.inputs))

    def _of_own(self, models: Iterable[tuple[int, bytes]]) -> dict[str, float]:
        """Each client's rows by its own model; rows of a client without one are left out of both figures."""
        clients, places = np.array(self.scored.clients), dict(models)
        outputs = np.full((len(self.scored), self.dataset.schema.label.outputs), np.nan)
        for place, model in places.items():
            rows = clients == self.population.names[place]
            if rows.any():
                outputs[rows] = logits(model, {INPUT: self.heldout.inputs[INPUT][rows]})
        return self._figures(outputs)

    def _figures(self, outputs: Outputs) -> dict[str, float]:
        known = np.array(np.isfinite(outputs).all(axis=1), np.bool_)
        each = [self._metric(outputs, rows) for rows in _of_clients(self.scored.clients, known)]
        whole = self._metric(outputs, known)
        return {"": float("nan") if whole is None else whole, "by_client": _mean(each)}

    def _metric(self, outputs: Outputs, rows: npt.NDArray[np.bool_]) -> float | None:
        """None where these rows do not give it: an AUC needs both classes."""
        if self.dataset.score is not None:
            return self.dataset.score(outputs[rows], self.scored.take(rows))
        return measure(part(self.heldout, rows), outputs[rows]).get(self.dataset.metric)


def population(dataset: Dataset, rows: Rows) -> Population:
    """The clients as virtual devices, by name."""
    matrix = features(dataset.schema, rows.records)[INPUT]
    targets = labels(dataset.schema, rows.answers, rows.records)
    clients = np.array(rows.clients)
    devices = []
    for client in sorted(set(rows.clients)):
        own = clients == client
        devices.append(
            VirtualDevice(client, matrix[own], targets[own], None if rows.subjects is None else rows.subjects[own])
        )
    return Population.of(devices)


def _by_client(rows: Rows, places: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """`places` in the order in which `population` puts the rows."""
    return places[np.argsort(np.array(rows.clients), kind="stable")]


def _of_clients(clients: Sequence[str], known: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[np.bool_]]:
    """Each client's known rows, bool [B], where it has any."""
    places = np.unique(np.array(clients), return_inverse=True)[1]
    for place in range(places.max() + 1):
        rows = np.logical_and(places == place, known)
        if rows.any():
            yield rows


def _mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")
