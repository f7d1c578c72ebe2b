"""Ways of learning on one data set, each at a small grid of rates, scored on the validation rows. Prints nothing.

`one_step`: devices send sums of gradients, one step a round, by server rule and decay. `drifting`: devices take ten
steps of their own; FedProx, server rules, bounded weights, late updates. `noisy`: where the noise is placed. Never
looks at the test rows. Refuses what `tasks.settle` refuses.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from aggregator import tasks
from aggregator.errors import AggregatorError
from aggregator.evaluation import logits, measure
from aggregator.rehearsal.fleet import VirtualFleet
from aggregator.rehearsal.training import Training
from benchmarks.applying.running import Bench
from edge_sdk.training.jobs import TrainingFailed

LOCAL_STEPS: Final = 10
SHARE: Final = 0.25  # of a device's rows in one of its own steps
WIDE: Final = 50.0  # a clip of whole updates that cuts nothing
PLAIN: Final = {"server_optimizer": "fedavg", "server_learning_rate": 1.0, "server_decay": "none"}
MU: Final = (0.01, 0.1, 1.0)
BOUNDS: Final = (50, 500)
BEHIND: Final = (1, 4)
DECAYING: Final = ("momentum", "adam")


class Case(NamedTuple):
    """A set and its grids: rates of a step of the sum (momentum takes a third), of Adam, of a device's step."""

    bench: Bench
    plain: Sequence[float]
    adam: Sequence[float]
    local: Sequence[float]


@dataclass(frozen=True)
class Way:
    """One way: its words, its task, whether the devices' sums may be pooled, and by how many rounds half are late."""

    name: str
    fields: Mapping[str, Any]
    pooled: bool = False
    behind: int = 0


@dataclass(frozen=True)
class Found:
    """A way at its best rate: the mean of the metric over the seeds, their spread. `value` NaN: it came to nothing."""

    part: str
    way: str
    epsilon: float | None
    rounds: int
    rate: float
    value: float
    spread: float | None = None
    tried: Mapping[str, float] = field(default_factory=dict)


class LateTraining(Training):
    """Half the devices train on the checkpoint of `behind` rounds ago, and count 1 / sqrt(1 + behind) (SPEC 7.6.1)."""

    def __init__(self, fleet: VirtualFleet, model: bytes, behind: int) -> None:
        super().__init__(fleet.population, model, fleet.terms, pooled=False)
        self._behind, self._past = behind, list[npt.NDArray[np.float32]]()

    def update(self, place: int, weights: npt.NDArray[np.float32], key: bytes) -> npt.NDArray[np.float32]:
        """As Training. `weights` is one array a round."""
        if not self._past or self._past[-1] is not weights:
            self._past = [*self._past, weights][-1 - self._behind :]
        if key[0] % 2 or len(self._past) <= self._behind:
            return super().update(place, weights, key)
        return super().update(place, self._past[0], key) / np.float32(math.sqrt(1 + self._behind))


class LateFleet(VirtualFleet):
    """A buffered fleet of which half the uploads are late."""

    def __init__(self, way: Way, case: Case, spec: tasks.TaskSpec, model: bytes, seed: int) -> None:
        super().__init__(case.bench.population, model, spec, seed=seed)
        self._training = LateTraining(self, model, way.behind)


def run(case: Case, way: Way, rounds: int, seed: int, at: Sequence[int] = ()) -> dict[int, float]:
    """{round: metric on the validation rows} at those rounds and at the end; NaN where the weights left all bounds."""
    name = f"{case.bench.dataset.name}-choosing".replace("_", "-")
    spec = tasks.build_spec(**{"name": name, **way.fields, "rounds": rounds})
    first = case.bench.dataset.first_model("no_privacy", seed)
    if way.behind:
        fleet: VirtualFleet = LateFleet(way, case, spec, first, seed)
    else:
        fleet = VirtualFleet(case.bench.population, first, spec, seed=seed, fast=way.pooled)
    found = dict[int, float]()
    for stop in sorted({*at, rounds}):
        try:
            fleet.run(stop - len(fleet.figures))
        except (AggregatorError, TrainingFailed):
            return found | {left: math.nan for left in (*at, rounds) if left not in found}
        found[stop] = score(case.bench, fleet.model)
    return found


def score(bench: Bench, model: bytes) -> float:
    """The set's own metric over all validation rows."""
    return measure(bench.heldout, logits(model, bench.heldout.inputs))[bench.dataset.metric]


class Comparison:
    """All ways of one set. `rounds`: ascending. `seeds`: of what is drawn; the rate is chosen by the first."""

    def __init__(self, case: Case, rounds: Sequence[int], seeds: Sequence[int] = (0, 1)) -> None:
        self.case, self.rounds, self.seeds = case, tuple(rounds), tuple(seeds)
        self._best = dict[int, float]()  # rounds to the rate of a device's step

    # -- one step a round ------------------------------------------------------------------------------------------

    def one_step(self, epsilon: float | None) -> Iterator[Found]:
        """Sums of gradients, by server rule and decay."""
        grids = {
            "fedavg": self.case.plain,
            "momentum": [rate / 3 for rate in self.case.plain],
            "adam": self.case.adam,
            "yogi": self.case.adam,
        }
        for rule, grid in grids.items():
            for decay in ("none", "linear") if rule in DECAYING else ("none",):
                words = rule if decay == "none" else f"{rule}, rate to zero"
                make = self._summed(words, epsilon, {"server_optimizer": rule, "server_decay": decay})
                for at in self._runs(epsilon, decay):
                    yield from self._searched("one step", make, grid, epsilon, at)

    def _runs(self, epsilon: float | None, decay: str) -> Sequence[Sequence[int]]:
        """Without noise and decay a shorter run is the beginning of the longer one."""
        return [self.rounds] if epsilon is None and decay == "none" else [(rounds,) for rounds in self.rounds]

    def _summed(self, words: str, epsilon: float | None, fields: Mapping[str, Any]) -> Callable[[float], Way]:
        return lambda rate: Way(words, {**self._shared(epsilon), **fields, "server_learning_rate": rate}, pooled=True)

    def _shared(self, epsilon: float | None) -> dict[str, Any]:
        settings = self.case.bench.dataset.settings
        return {**settings["no_privacy" if epsilon is None else "eps8_shared"], **PLAIN, "learning_rate": 1.0}

    # -- where the noise is ----------------------------------------------------------------------------------------

    def noisy(self, epsilon: float) -> Iterator[Found]:
        """Local noise for records or customers, one step and ten; shared noise for whole devices. The fewest rounds."""
        own = {**self.case.bench.dataset.settings["eps8_local"], **PLAIN, "target_epsilon": epsilon}
        own["clip"] = WIDE if "clip" not in own else own["clip"] * math.sqrt(LOCAL_STEPS)
        ways = {
            "local noise, 1 step": {**own, "steps": 1},
            f"local noise, {LOCAL_STEPS} steps": {**own, "steps": LOCAL_STEPS},
            f"device unit, {LOCAL_STEPS} steps": {
                **self._device(0.0), "target_epsilon": epsilon, "insecure_without_noise": False, "clip": 1.0,
                "accept_little_signal": True,
            },
        }  # fmt: skip
        for words, fields in ways.items():
            make, few = self._stepping(words, fields), self.rounds[:1]
            grid = self.case.plain if fields["steps"] == 1 else self.case.local
            yield from self._searched("noise", make, grid, epsilon, few)

    @staticmethod
    def _stepping(words: str, fields: Mapping[str, Any]) -> Callable[[float], Way]:
        return lambda rate: Way(words, {**fields, "learning_rate": rate})

    # -- ten steps of each device's own ----------------------------------------------------------------------------

    def drifting(self) -> Iterator[Found]:
        """Whole updates without noise: FedAvg at its best rate, then changes at that rate for the fewest rounds."""
        for found in self._searched("ten steps", self._local("fedavg", {}), self.case.local, None, self.rounds):
            if found.rounds == self.rounds[0]:
                self._best[found.rounds] = found.rate
            yield found
        for mu in MU:
            yield from self._at_best(f"FedProx, mu {mu:g}", {"proximal": mu})
        for rule, rates in (("momentum", (0.1, 0.3)), ("adam", self.case.adam[:2])):
            options = [{"server_optimizer": rule, "server_learning_rate": rate} for rate in rates]
            yield from self._at_best(f"server {rule}", *options)
        mean = round(len(self.case.bench.population.labels) / len(self.case.bench.population))
        for bound in BOUNDS:
            yield from self._at_best(f"weights to {bound}", {"weight_bound": bound, "units_per_device": max(1, mean)})
        half = max(3, len(self.case.bench.population) // 2)
        buffer = {"buffer": half, "n_min": 3}
        yield from self._at_best("half the devices a round", buffer)
        for behind in BEHIND:
            yield from self._at_best(f"the same, half of them {behind} late", buffer, behind=behind)

    def _device(self, rate: float) -> dict[str, Any]:
        clients = len(self.case.bench.population)
        fields = {"unit": "device", "placement": "shared", "n_min": clients, "n_max": clients, "sample_rate": SHARE}
        fields |= {"steps": LOCAL_STEPS, "clip": WIDE, "profile": "P32", "insecure_without_noise": True}
        return {**fields, **PLAIN, **({"learning_rate": rate} if rate else {})}

    def _local(self, words: str, fields: Mapping[str, Any], behind: int = 0) -> Callable[[float], Way]:
        return lambda rate: Way(words, {**self._device(rate), **fields}, behind=behind)

    def _at_best(self, words: str, *options: Mapping[str, Any], behind: int = 0) -> Iterator[Found]:
        """Each of these changes at FedAvg's rate for that many rounds; the best of them."""
        for rate in dict.fromkeys(self._best.values()):
            stops = [rounds for rounds, best in self._best.items() if best == rate]
            made = [(fields, self._pulled(rate, fields)) for fields in options]
            found = [
                run(self.case, self._local(words, fields, behind)(own), stops[-1], self.seeds[0], stops)
                for fields, own in made
            ]
            for stop in stops:
                place = max(range(len(made)), key=lambda place: _known(found[place][stop]))
                fields, own = made[place]
                shown = fields.get("server_learning_rate", own)
                yield Found("ten steps", words, None, stop, shown, found[place][stop])

    @staticmethod
    def _pulled(rate: float, fields: Mapping[str, Any]) -> float:
        """FedProx refuses a rate at which its pull would overshoot."""
        mu = fields.get("proximal")
        return min(rate, 1 / mu) if mu else rate

    # -- rates -----------------------------------------------------------------------------------------------------

    def _searched(
        self, part: str, make: Callable[[float], Way], grid: Sequence[float], epsilon: float | None, at: Sequence[int]
    ) -> Iterator[Found]:
        """The best rate by the first seed at each of these rounds of one run; other seeds only where noise is drawn."""
        ways = {rate: make(rate) for rate in grid}
        tried = {rate: run(self.case, way, at[-1], self.seeds[0], at) for rate, way in ways.items()}
        for stop in at:
            best = max(tried, key=lambda rate: _known(tried[rate][stop]))
            values = [tried[best][stop]]
            if epsilon is not None:
                values += [run(self.case, ways[best], at[-1], seed, at)[stop] for seed in self.seeds[1:]]
            spread = statistics.stdev(values) if len(values) > 1 else None
            each = {f"{rate:g}": found[stop] for rate, found in tried.items()}
            yield Found(part, ways[best].name, epsilon, stop, best, statistics.fmean(values), spread, each)


def _known(value: float) -> float:
    return -math.inf if math.isnan(value) else value
