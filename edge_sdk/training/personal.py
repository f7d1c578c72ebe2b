"""A device's own version of a model, trained on its own rows for itself alone: it never leaves the device.

Only the outer part changes (`edge_sdk.training.outer`). It starts from the fleet's weights, or from these with the
bias shifted to how often each label occurs here, where that is better (`SURE_SHIFT`: one number is chosen, so little
can be fitted to chance). Candidates: the start; weights tuned from it, held near it by pulls of many strengths; weights
learned from these rows alone, the fleet's outer part forgotten; and blends of the last with the start. The one with the
least loss on rows held out of its fit is fitted again to all. Where its gain over the start is not sure (`SURE`
standard errors over held-out units), the start stays; where rows are few, the fleet's weights. Where most labels occur
on other devices alone, the least loss is asked for but roughly (`LEAN`), and the candidate that owes most to these rows
is taken. Where the owner says that these labels occur nowhere else (`apart`), it is what these rows alone say, by how
often it is right, unless that is far less often than the fleet's weights are (`FLATTERED`). No noise and no budget:
nothing of this may be uploaded. Draws nothing but the split, by a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from edge_sdk.training.jobs import TrainingFailed
from edge_sdk.training.module import GraphModule
from edge_sdk.training.outer import Outer, outer
from edge_sdk.training.pulled import Directions, Fit, row_loss

Floats = npt.NDArray[np.float32]
Kind = Literal["fleet", "shifted", "tuned", "own", "blend"]
OnStep = Callable[[int, int], None]

FEWEST: Final = 20  # rows, and FEWEST_UNITS units: a choice by fewer is a draw of lots
FEWEST_UNITS: Final = 5
SURE: Final = 2.0
SURE_SHIFT: Final = 1.0
# Rows whose second best label is right, beside the held-out ones: few rows show no sure answer that is wrong, and it
# will come.
SURPRISES: Final = 0.5
FOLDS: Final = 4
HEAVY: Final = 2e7  # products a pass: above it one held-out part and every second pull have to do
# In units of the rows' mean squared length over 10.
PULLS: Final = (300.0, 60.0, 12.0, 2.5, 0.5, 0.1, 0.02, 0.004)
LEAST: Final = 5.0  # over the rows: pulls below it would let few rows say anything
SHARES: Final = (0.25, 0.5, 0.75)
TAUS: Final = (0.5, 1.0, 2.0)  # times the logarithm of a label's frequency here over that of labels all alike
# Share of loss to give up for what owes more to these rows, where most of the labels are other devices': the fleet has
# learned the rest mostly from these very rows, so on rows held out here it looks better than it is.
LEAN: Final = 0.25
FLATTERED: Final = 0.1  # share of held-out rows that the fleet may be right for only because it learned from them
UNSEEN: Final = 0.5  # rows that each label is taken to have beside its own: one not seen yet stays possible


@dataclass(frozen=True, slots=True)
class Choice:
    """A candidate. `pull`: its place among those tried; `alpha`: the share of what these rows alone say; `tau`: how far
    the bias of its start is shifted.
    """  # fmt: skip

    kind: Kind
    pull: int = -1
    alpha: float = 0.0
    tau: float = 0.0


FLEET: Final = Choice("fleet")


@dataclass(frozen=True, slots=True)
class Personal:
    """A device's own weights, float32 [d] in the order of the update vector; the fleet's where `kind` is "fleet".

    pull: 0.0 where none was used. tau: how far the bias is shifted to these rows' label frequencies.
    loss_fleet, loss_personal: mean loss on rows held out of the fit, NaN where none were. rows: all that were given.
    """

    vector: Floats
    kind: Kind
    alpha: float
    pull: float
    loss_fleet: float
    loss_personal: float
    rows: int
    tau: float = 0.0


def personalise(
    data: bytes,
    features: dict[str, npt.NDArray[Any]],
    labels: npt.NDArray[Any],
    *,
    seed: int = 0,
    subjects: npt.NDArray[np.int64] | None = None,
    sure: float = SURE,
    apart: bool = False,
    on_step: OnStep = lambda _step, _steps: None,
) -> Personal:
    """Train the ONNX file `data` on a device's rows. A negative subject is nobody's: its rows are units of
    their own, equal ones the same. `apart`: the labels that occur here occur on no other device.

    `on_step(step, steps)` is called between fits and may raise to break off. Raises TrainingFailed "not-finite",
    UnsafeModel, UnsupportedModel.
    """
    torch.set_num_threads(1)
    module = GraphModule(data)
    rows, whole = len(labels), module.update_vector()
    units = _units(features, rows, subjects)
    stay = Personal(whole, "fleet", 0.0, 0.0, float("nan"), float("nan"), rows)
    if rows < FEWEST or units.max() + 1 < FEWEST_UNITS:
        return stay
    view = outer(data, module, {name: torch.from_numpy(array) for name, array in features.items()})
    if view is None:
        return stay
    search = _Search(view, torch.from_numpy(labels), module, on_step)
    choice, fleet, best = search.chosen(units, np.random.default_rng(seed), sure, apart)
    if choice == FLEET:
        return Personal(whole, "fleet", 0.0, 0.0, fleet, fleet, rows)
    weights = search.refit(choice)
    if not np.isfinite(weights).all():
        raise TrainingFailed("not-finite", "the personal weights are NaN or infinite: the fleet's stay in service")
    pull = search.pulls[choice.pull] if choice.pull >= 0 else 0.0
    return Personal(view.vector(whole, weights), choice.kind, choice.alpha, pull, fleet, best, rows, choice.tau)


class _Search:
    """All candidates on one device's rows."""

    def __init__(self, view: Outer, labels: torch.Tensor, module: GraphModule, on_step: OnStep) -> None:
        self._view, self._labels, self._on_step = view, labels, on_step
        self._name = module.loss_name
        self._loss = row_loss(module.loss_name, module.quantiles)
        self._smooth = row_loss(module.loss_name, module.quantiles, smooth=True)
        self._offset = torch.from_numpy(view.offset)
        self._fleet = self._offset + torch.from_numpy(view.inputs @ view.weights)
        self._directions = Directions(view.inputs)
        scale = float((view.inputs.astype(np.float64) ** 2).sum(1).mean()) / 10
        self._heavy = self._directions.products * view.weights.shape[1] > HEAVY
        self.pulls = [pull * scale for pull in (PULLS[::2] if self._heavy else PULLS) if pull >= LEAST / len(labels)]

    def chosen(
        self, units: npt.NDArray[np.int64], rng: np.random.Generator, sure: float, apart: bool
    ) -> tuple[Choice, float, float]:
        """The candidate to use, the mean held-out loss of the fleet's weights, and its own."""
        folds = rng.permutation(int(units.max()) + 1)[units] % FOLDS
        parts = [folds == fold for fold in range(1 if self._heavy else FOLDS)]
        held = np.logical_or.reduce(parts)
        found = _Found(held, units)
        for out in parts:
            found.add(FLEET, self._fleet, self, out, len(parts))
        self._shift(parts, found)
        start = found.best(FLEET, SURE_SHIFT)
        for way in range(2):
            self._walk(parts, way, start.tau, found)
        best = found.nearest() if start.tau and self._few_labels() else found.best(start, sure)
        if apart and self._name == "cross_entropy":
            best = found.own() or best
        return best, found.mean(FLEET), found.mean(best)

    def _shift(self, parts: list[npt.NDArray[np.bool_]], found: _Found) -> None:
        """The fleet's weights with their bias shifted, in each part as the other rows' labels say."""
        if self._view.bias is None or self._name not in {"cross_entropy", "binary_cross_entropy"}:
            return
        for tau in TAUS:
            for out in parts:
                found.add(Choice("shifted", tau=tau), self._base(tau, ~out), self, out, len(parts))

    def _few_labels(self) -> bool:
        """Most of the model's labels do not occur here."""
        return 2 * len(np.unique(self._labels.numpy())) < self._fleet.shape[1]

    def _base(self, tau: float, counted: npt.NDArray[np.bool_]) -> torch.Tensor:
        return self._fleet + torch.from_numpy(self._moved(tau, counted)) if tau else self._fleet

    def _moved(self, tau: float, counted: npt.NDArray[np.bool_]) -> Floats:
        """[K], or [1] for two labels: what is added to the bias, by the labels of the counted rows."""
        labels, outputs = self._labels.numpy()[counted].astype(np.int64), self._fleet.shape[1]
        counts = np.bincount(labels, minlength=max(outputs, 2)) + UNSEEN
        shift = np.log(counts / counts.mean())
        moved: Floats = (tau * (shift if outputs > 1 else shift[1:] - shift[:1])).astype(np.float32)
        return moved

    def _walk(self, parts: list[npt.NDArray[np.bool_]], way: int, tau: float, found: _Found) -> None:
        """Held-out losses and surprises of the candidates of one way, until less pull has been worse twice."""
        tuned = way == 0
        bases = [self._base(tau, ~out) for out in parts]
        fits = [self._fit(~out, base if tuned else self._offset) for out, base in zip(parts, bases, strict=True)]
        means: list[float] = []
        for place, pull in enumerate(self.pulls):
            self._on_step(way * len(self.pulls) + place, 2 * len(self.pulls))
            for fit, base, out in zip(fits, bases, parts, strict=True):
                fit.fall(pull)
                for choice, logits in _candidates(place, tuned, tau, base, fit.logits()):
                    found.add(choice, logits, self, out, len(parts))
            means.append(found.mean(Choice("tuned", place, 1.0, tau) if tuned else Choice("own", place, 1.0)))
            if len(means) > 2 and means[-1] > means[-2] > means[-3]:
                break

    def surprise(self, logits: torch.Tensor) -> float:
        """The mean loss where the second best label is the right one; 0.0 for numbers."""
        if self._name == "cross_entropy":
            return float((torch.logsumexp(logits, 1) - logits.topk(2, dim=1).values[:, 1]).mean())
        if self._name == "binary_cross_entropy":
            return float(torch.nn.functional.softplus(logits.abs()).mean())
        return 0.0

    def right(self, logits: torch.Tensor) -> npt.NDArray[np.bool_]:
        """Which rows the best of several labels is right for."""
        right: npt.NDArray[np.bool_] = (logits.argmax(1) == self._labels).numpy()
        return right

    def losses(self, logits: torch.Tensor) -> npt.NDArray[np.float64]:
        losses: npt.NDArray[np.float64] = self._loss(logits, self._labels).numpy().astype(np.float64)
        return losses

    def _fit(self, counted: npt.NDArray[np.bool_], base: torch.Tensor) -> Fit:
        """From the weights whose logits `base` [n, K] is."""
        some = torch.from_numpy(counted.astype(np.float32))
        return Fit(self._directions, base, self._labels, self._smooth, some)

    def refit(self, choice: Choice) -> Floats:
        """The chosen candidate's weights [m, K], fitted to all rows."""
        every = np.ones(len(self._labels), np.bool_)
        start = self._view.weights.copy()
        if choice.tau:
            start[self._view.bias] += self._moved(choice.tau, every)
        if choice.kind == "shifted":
            return start
        fit = self._fit(every, self._base(choice.tau, every) if choice.kind == "tuned" else self._offset)
        for pull in self.pulls[: choice.pull + 1]:
            turned = fit.fall(pull)
        change = self._directions.weights(turned)
        if choice.kind == "tuned":
            return start + change
        return (1 - np.float32(choice.alpha)) * start + np.float32(choice.alpha) * change


@dataclass(frozen=True)
class _Found:
    """What the candidates lose on held-out rows, bool [n], of units int64 [n]."""

    held: npt.NDArray[np.bool_]
    units: npt.NDArray[np.int64]
    losses: dict[Choice, npt.NDArray[np.float64]] = field(default_factory=dict)
    rights: dict[Choice, npt.NDArray[np.bool_]] = field(default_factory=dict)
    surprises: dict[Choice, float] = field(default_factory=dict)

    def add(
        self, choice: Choice, logits: torch.Tensor, search: _Search, out: npt.NDArray[np.bool_], parts: int
    ) -> None:
        """The candidate's logits [n, K] from a fit without the rows `out`, one of `parts`."""
        self.losses.setdefault(choice, np.zeros(len(out)))[out] = search.losses(logits)[out]
        self.rights.setdefault(choice, np.zeros(len(out), np.bool_))[out] = search.right(logits)[out]
        self.surprises[choice] = self.surprises.get(choice, 0.0) + search.surprise(logits) / parts

    def mean(self, choice: Choice) -> float:
        return float(self.losses[choice][self.held].mean())

    def feared(self, choice: Choice) -> float:
        return self.mean(choice) + SURPRISES * self.surprises[choice] / float(self.held.sum())

    def best(self, start: Choice, sure: float) -> Choice:
        """The candidate of least loss where it is better than `start` by so many standard errors, else `start`."""
        feared = {choice: self.feared(choice) for choice in self.losses}
        best = min(feared, key=lambda choice: feared[choice] if np.isfinite(feared[choice]) else np.inf)
        gain = (self.losses[start] - self.losses[best])[self.held]
        gain += feared[start] - feared[best] - gain.mean()
        enough = max(sure * _error(gain, self.units[self.held]), 1e-9)
        return best if best != start and gain.mean() >= enough else start

    def nearest(self) -> Choice:
        """The candidate that owes most to these rows, among those whose loss is nearly the least."""
        feared = {choice: self.feared(choice) for choice in self.losses}
        least = min(value for value in feared.values() if np.isfinite(value))
        close = [choice for choice, value in feared.items() if value <= (1 + LEAN) * least]
        return max(close, key=lambda choice: (choice.alpha, choice.pull, -feared[choice]))

    def own(self) -> Choice | None:
        """What these rows alone say, right most often and held least; None where the fleet is right far more often."""
        shares = {choice: float(right[self.held].mean()) for choice, right in self.rights.items()}
        alone = [choice for choice in shares if choice.kind == "own" and np.isfinite(self.losses[choice]).all()]
        best = max(alone, key=lambda choice: (shares[choice], choice.pull), default=FLEET)
        return best if best != FLEET and shares[best] >= shares[FLEET] - FLATTERED else None


def _candidates(
    place: int, tuned: bool, tau: float, base: torch.Tensor, logits: torch.Tensor
) -> Iterator[tuple[Choice, torch.Tensor]]:
    """The candidates that a fit gives, with their logits [n, K]. `base`: those of the start."""
    yield Choice("tuned", place, 1.0, tau) if tuned else Choice("own", place, 1.0), logits
    for alpha in () if tuned else SHARES:
        yield Choice("blend", place, alpha, tau), base + alpha * (logits - base)


def _units(
    features: dict[str, npt.NDArray[Any]], rows: int, subjects: npt.NDArray[np.int64] | None
) -> npt.NDArray[np.int64]:
    """int64 [n], from 0: equal for the rows of one subject, and for nobody's rows that are equal in their features."""
    # A customer who comes again without a name would be learned by heart in one part, and recognised in another.
    seen = [tuple(features[name][row].tobytes() for name in sorted(features)) for row in range(rows)]
    places = {row: place for place, row in enumerate(dict.fromkeys(seen), start=1)}
    nobody = -np.array([places[row] for row in seen], np.int64)
    apart = nobody if subjects is None else np.where(subjects >= 0, subjects, nobody)
    return np.unique(apart, return_inverse=True)[1].reshape(-1)


def _error(gain: npt.NDArray[np.float64], units: npt.NDArray[np.int64]) -> float:
    """The standard error of the mean gain, units being independent and rows of one unit not."""
    places = np.unique(units, return_inverse=True)[1].reshape(-1)
    count = int(places.max()) + 1
    if count < 2:
        return float("inf")
    sums = np.bincount(places, gain - gain.mean())
    return float(np.sqrt(count / (count - 1) * (sums**2).sum()) / len(gain))
