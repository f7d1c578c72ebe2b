"""A device's own version of a model, trained on its own rows for itself alone: it never leaves the device.

Only the outer part changes (`edge_sdk.training.outer`). Candidates: the fleet's weights; weights tuned from them, held
near them by pulls of many strengths; weights learned from these rows alone, the fleet's outer part forgotten; and
blends of the last with the fleet's. The one with the least loss on rows held out of its fit is fitted again to all.
Where that gain over the fleet's weights is not sure (`SURE` standard errors over held-out units), or rows are few, the
fleet's weights stay. No noise and no budget: nothing of this may be uploaded. Draws nothing but the split, by a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from edge_sdk.training.jobs import TrainingFailed
from edge_sdk.training.module import GraphModule
from edge_sdk.training.outer import Outer, outer
from edge_sdk.training.pulled import Directions, Fit, row_loss

Floats = npt.NDArray[np.float32]
Kind = Literal["fleet", "tuned", "own", "blend"]
Losses = dict["Choice", npt.NDArray[np.float64]]
OnStep = Callable[[int, int], None]

FEWEST: Final = 20  # rows, and FEWEST_UNITS units: a choice by fewer is a draw of lots
FEWEST_UNITS: Final = 5
SURE: Final = 2.0
# Rows whose second best label is right, beside the held-out ones: few rows show no sure answer that is wrong, and it
# will come.
SURPRISES: Final = 0.5
FOLDS: Final = 4
HEAVY: Final = 2e7  # products a pass: above it one held-out part and every second pull have to do
# In units of the rows' mean squared length over 10.
PULLS: Final = (300.0, 60.0, 12.0, 2.5, 0.5, 0.1, 0.02, 0.004)
LEAST: Final = 5.0  # over the rows: pulls below it would let few rows say anything
SHARES: Final = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Choice:
    """A candidate. `pull`: its place among those tried; `alpha`: the share of what these rows alone say."""

    kind: Kind
    pull: int = -1
    alpha: float = 0.0


FLEET: Final = Choice("fleet")


@dataclass(frozen=True, slots=True)
class Personal:
    """A device's own weights, float32 [d] in the order of the update vector; the fleet's where `kind` is "fleet".

    loss_fleet, loss_personal: mean loss on rows held out of the fit, NaN where none were. rows: all that were given.
    """

    vector: Floats
    kind: Kind
    alpha: float
    pull: float
    loss_fleet: float
    loss_personal: float
    rows: int


def personalise(
    data: bytes,
    features: dict[str, npt.NDArray[Any]],
    labels: npt.NDArray[Any],
    *,
    seed: int = 0,
    subjects: npt.NDArray[np.int64] | None = None,
    sure: float = SURE,
    on_step: OnStep = lambda _step, _steps: None,
) -> Personal:
    """Train the ONNX file `data` on a device's rows. A negative subject is nobody's: its row is a unit of its own.

    `on_step(step, steps)` is called between fits and may raise to break off. Raises TrainingFailed "not-finite",
    UnsafeModel, UnsupportedModel.
    """
    torch.set_num_threads(1)
    module = GraphModule(data)
    rows, whole = len(labels), module.update_vector()
    units = _units(rows, subjects)
    stay = Personal(whole, "fleet", 0.0, 0.0, float("nan"), float("nan"), rows)
    if rows < FEWEST or units.max() + 1 < FEWEST_UNITS:
        return stay
    view = outer(data, module, {name: torch.from_numpy(array) for name, array in features.items()})
    if view is None:
        return stay
    search = _Search(view, torch.from_numpy(labels), module, on_step)
    choice, fleet, best = search.chosen(units, np.random.default_rng(seed), sure)
    if choice == FLEET:
        return Personal(whole, "fleet", 0.0, 0.0, fleet, fleet, rows)
    weights = search.refit(choice)
    if not np.isfinite(weights).all():
        raise TrainingFailed("not-finite", "the personal weights are NaN or infinite: the fleet's stay in service")
    pull = search.pulls[choice.pull]
    return Personal(view.vector(whole, weights), choice.kind, choice.alpha, pull, fleet, best, rows)


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
        self, units: npt.NDArray[np.int64], rng: np.random.Generator, sure: float
    ) -> tuple[Choice, float, float]:
        """The candidate to use, the mean held-out loss of the fleet's weights, and its own."""
        folds = rng.permutation(int(units.max()) + 1)[units] % FOLDS
        parts = [folds == fold for fold in range(1 if self._heavy else FOLDS)]
        held = np.logical_or.reduce(parts)
        losses = {FLEET: self._losses(self._fleet)}
        surprises = {FLEET: self._surprise(self._fleet)}
        for way, kind in enumerate(("tuned", "own")):
            self._walk(parts, kind == "tuned", way * len(self.pulls), losses, surprises)
        means = {choice: float(found[held].mean()) for choice, found in losses.items()}
        feared = {choice: means[choice] + SURPRISES * surprises[choice] / held.sum() for choice in means}
        best = min(means, key=lambda choice: feared[choice] if np.isfinite(feared[choice]) else np.inf)
        gain = (losses[FLEET] - losses[best])[held] - (feared[best] - means[best] - feared[FLEET] + means[FLEET])
        if best != FLEET and gain.mean() < max(sure * _error(gain, units[held]), 1e-9):
            best = FLEET
        return best, means[FLEET], means[best]

    def _walk(
        self, parts: list[npt.NDArray[np.bool_]], tuned: bool, done: int, losses: Losses, surprises: dict[Choice, float]
    ) -> None:
        """Held-out losses [n] and surprises of the candidates of one way, until less pull has been worse twice."""
        fits = [self._fit(~out, tuned) for out in parts]
        means: list[float] = []
        for place, pull in enumerate(self.pulls):
            self._on_step(done + place, 2 * len(self.pulls))
            for fit, out in zip(fits, parts, strict=True):
                fit.fall(pull)
                for choice, logits in self._candidates(place, tuned, fit.logits()):
                    losses.setdefault(choice, np.zeros(len(out)))[out] = self._losses(logits)[out]
                    surprises[choice] = surprises.get(choice, 0.0) + self._surprise(logits) / len(parts)
            means.append(float(losses[Choice("tuned" if tuned else "own", place, 1.0)].sum()))
            if len(means) > 2 and means[-1] > means[-2] > means[-3]:
                break

    def _surprise(self, logits: torch.Tensor) -> float:
        """The mean loss where the second best label is the right one; 0.0 for numbers."""
        if self._name == "cross_entropy":
            return float((torch.logsumexp(logits, 1) - logits.topk(2, dim=1).values[:, 1]).mean())
        if self._name == "binary_cross_entropy":
            return float(torch.nn.functional.softplus(logits.abs()).mean())
        return 0.0

    def _losses(self, logits: torch.Tensor) -> npt.NDArray[np.float64]:
        losses: npt.NDArray[np.float64] = self._loss(logits, self._labels).numpy().astype(np.float64)
        return losses

    def _fit(self, counted: npt.NDArray[np.bool_], tuned: bool) -> Fit:
        """From the fleet's weights, or from none."""
        some = torch.from_numpy(counted.astype(np.float32))
        return Fit(self._directions, self._fleet if tuned else self._offset, self._labels, self._smooth, some)

    def _candidates(self, place: int, tuned: bool, logits: torch.Tensor) -> Iterator[tuple[Choice, torch.Tensor]]:
        """The candidates that a fit gives, with their logits."""
        yield Choice("tuned" if tuned else "own", place, 1.0), logits
        for alpha in () if tuned else SHARES:
            yield Choice("blend", place, alpha), self._fleet + alpha * (logits - self._fleet)

    def refit(self, choice: Choice) -> Floats:
        """The chosen candidate's weights [m, K], fitted to all rows."""
        fit = self._fit(np.ones(len(self._labels), np.bool_), choice.kind == "tuned")
        for pull in self.pulls[: choice.pull + 1]:
            turned = fit.fall(pull)
        change = self._directions.weights(turned)
        if choice.kind == "tuned":
            return self._view.weights + change
        return (1 - np.float32(choice.alpha)) * self._view.weights + np.float32(choice.alpha) * change


def _units(rows: int, subjects: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
    """int64 [n], from 0: equal for the rows of one subject."""
    if subjects is None:
        return np.arange(rows)
    apart = np.where(subjects >= 0, subjects, -1 - np.arange(rows))
    return np.unique(apart, return_inverse=True)[1].reshape(-1)


def _error(gain: npt.NDArray[np.float64], units: npt.NDArray[np.int64]) -> float:
    """The standard error of the mean gain, units being independent and rows of one unit not."""
    places = np.unique(units, return_inverse=True)[1].reshape(-1)
    count = int(places.max()) + 1
    if count < 2:
        return float("inf")
    sums = np.bincount(places, gain - gain.mean())
    return float(np.sqrt(count / (count - 1) * (sums**2).sum()) / len(gain))
