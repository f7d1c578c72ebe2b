"""What trials prove about epsilon, with 95 % confidence. `math` and numpy alone; draws nothing.

Every function gives a lower bound: a mechanism that is (epsilon, delta)-private exceeds it once in twenty times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sdk.privacy.accounting import analytic_gaussian_epsilon

CONFIDENCE = 0.95
Floats = npt.NDArray[np.float64]


def binomial(count: int, rate: float) -> Floats:
    """Probabilities of 0 ... count successes at `rate`."""
    if rate in (0.0, 1.0):
        point = np.zeros(count + 1)
        point[0 if rate == 0.0 else count] = 1.0
        return point
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    ways = logs[-1] - logs - logs[::-1]
    hits = np.arange(count + 1)
    return np.asarray(np.exp(ways + hits * math.log(rate) + (count - hits) * math.log1p(-rate)))


def lowest_rate(hits: int, trials: int, error: float) -> float:
    """Clopper and Pearson 1934: the rate below which so many hits or more have a probability of at most `error`."""
    if hits == 0:
        return 0.0
    return _least(lambda rate: binomial(trials, rate)[hits:].sum() > error)


def highest_rate(hits: int, trials: int, error: float) -> float:
    """The same from the other side."""
    return 1.0 - lowest_rate(trials - hits, trials, error)


def _least(holds: Any) -> float:
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return low


def rates(absent: Floats, present: Floats, threshold: float, error: float) -> tuple[float, float]:
    """(true positives at least, false positives at most) of "present where above the threshold"."""
    true = lowest_rate(int((present > threshold).sum()), len(present), error / 2)
    false = highest_rate(int((absent > threshold).sum()), len(absent), error / 2)
    return true, false


def guessed_rates(absent: Floats, present: Floats, threshold: float) -> tuple[float, float]:
    """The same without a guarantee and a thousand times as fast (Agresti and Coull 1998): to choose a threshold by."""
    ends = []
    for scores, sign in ((present, -1), (absent, 1)):
        count = len(scores) + 4
        rate = (float((scores > threshold).sum()) + 2) / count
        ends.append(min(max(rate + sign * 2.2 * math.sqrt(rate * (1 - rate) / count), 1e-9), 1 - 1e-9))
    return ends[0], ends[1]


def from_threshold(absent: Floats, present: Floats, delta: float) -> tuple[float, float]:
    """(for any mechanism, for one with a Gaussian trade-off) from scores [n] without and with the canary.

    The threshold is chosen on the first quarter of the trials and judged on the others. Any: (true - delta) / false is
    at most e^epsilon, and the same from the other side (Jagielski, Ullman, Oprea 2020). Gaussian: mu is at least
    Phi^-1(true) - Phi^-1(false), and epsilon that of mu at delta (Nasr et al. 2023, section 4); valid only where the
    noise of the mechanism is normal or nearly so, and not sampled.
    """
    quarter = len(absent) // 4
    first, rest = (absent[:quarter], present[:quarter]), (absent[quarter:], present[quarter:])
    candidates = np.unique(np.quantile(np.concatenate(first), np.linspace(0.002, 0.998, 250)))
    proved = []
    for judge in (_any_mechanism, _gaussian):
        best = max(candidates, key=lambda t: judge(*guessed_rates(*first, t), delta))  # used at once
        proved.append(judge(*rates(*rest, float(best), 1 - CONFIDENCE), delta))
    return proved[0], proved[1]


def _any_mechanism(true: float, false: float, delta: float) -> float:
    return max(_ratio(true, false, delta), _ratio(1 - false, 1 - true, delta))


def _gaussian(true: float, false: float, delta: float) -> float:
    if not (0 < true < 1 and 0 < false < 1):
        return 0.0
    mu = NormalDist().inv_cdf(true) - NormalDist().inv_cdf(false)
    return analytic_gaussian_epsilon(1 / mu, delta) if mu > 0 else 0.0


def _ratio(true: float, false: float, delta: float) -> float:
    return max(0.0, math.log((true - delta) / false)) if true > delta and false > 0 else 0.0


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The most likely that an (epsilon, delta)-private mechanism lets so many of the guesses be right.

    Steinke, Nasr, Jagielski 2023 (arXiv 2305.08846), theorem 5.2: `canaries` units, each put in by a fair coin of its
    own; of them `guesses` are guessed in or out. With W binomial(guesses, e^epsilon / (1 + e^epsilon)) it is
    P[W >= correct] + canaries delta max over i of (2 / i) P[correct > W >= correct - i].
    """
    chances = binomial(guesses, 1 / (1 + math.exp(-epsilon)))
    below = np.cumsum(chances[:correct][::-1])
    alpha = float((below / np.arange(1, correct + 1)).max()) if correct else 0.0
    return min(1.0, float(chances[correct:].sum()) + 2 * canaries * delta * alpha)


def from_one_run(scores: Floats, included: npt.NDArray[np.bool_], delta: float) -> float:
    """The bound from one run: the highest scores are guessed in, the lowest out, the others left open.

    How many are guessed is chosen among five numbers after the fact, so each has a fifth of the error.
    """
    order, shares = np.argsort(scores), (1.0, 0.5, 0.2, 0.1, 0.04)
    error = (1 - CONFIDENCE) / len(shares)
    best = 0.0
    for share in shares:
        side = max(1, int(len(scores) * share / 2))
        correct = int((~included[order[:side]]).sum() + included[order[-side:]].sum())
        best = max(best, _one_run_bound(len(scores), 2 * side, correct, delta, error))
    return best


def _one_run_bound(canaries: int, guesses: int, correct: int, delta: float, error: float) -> float:
    low, high = 0.0, 20.0
    if one_run_p_value(canaries, guesses, correct, low, delta) > error:
        return 0.0
    for _ in range(30):
        middle = (low + high) / 2
        refuted = one_run_p_value(canaries, guesses, correct, middle, delta) <= error
        low, high = (middle, high) if refuted else (low, middle)
    return low


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and 1.96 standard errors of it."""
    array = np.array(values)
    return float(array.mean()), float(1.96 * array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else 0.0
