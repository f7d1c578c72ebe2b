"""How much privacy a mechanism spends, in Renyi differential privacy, with `math` alone. Pure.

Runs on idle devices, where Opacus and dp-accounting would cost hundreds of megabytes; the tests compare all
three. A spend is the Renyi divergence at each order of ORDERS; spends of one unit add up (Mironov 2017,
proposition 1). Adjacency is add or remove one unit. Every epsilon here is an upper bound. Refuses the GDP
approximation by having none: it is too small by up to 12 times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

Spend = tuple[float, ...]

# Small orders decide large epsilons and large orders small ones.
ORDERS: Final[tuple[float, ...]] = (
    *(1 + k / 10 for k in range(1, 100)),
    *map(float, (*range(11, 65), 72, 80, 96, 128, 192, 256, 384, 512, 1024)),
)
ACCOUNTANT_VERSION: Final = 1  # of ORDERS and what a stored spend means
NOTHING: Final[Spend] = (0.0,) * len(ORDERS)
UNBOUNDED: Final[Spend] = (math.inf,) * len(ORDERS)
# The orders that Opacus 1.6 and dp-accounting 0.6 both convert from. Further ones would give smaller figures that are
# valid too (below epsilon 0.3), but of two upper bounds the larger is charged.
_BOTH: Final = frozenset(order for order in ORDERS if order < 11 or 12 <= order <= 63)
# Above this epsilon at delta 1e-5 the two begin to differ by more than 2 %, as low orders decide and dp-accounting
# leaves out each fractional one whose series has not settled. From here on `_difference` is charged on top, unless
# whole orders alone, which both have, give less. At a larger delta low orders decide sooner, by the logarithms' ratio.
DIFFER_ABOVE: Final = 16.0
# Noise below which fractional orders are bounded by the chord between whole ones: the integral would take steps of
# z / 4 over a width of order / z.
CHORD_BELOW: Final = 0.3
# Noise below which nothing is counted and nothing promised: one step without sampling has epsilon 500,000.
UNCOUNTED_BELOW: Final = 1e-3


def subsampled_gaussian(q: float, noise_multiplier: float, steps: int) -> Spend:
    """`steps` steps of DP-SGD with Poisson sampling at rate q and noise of `noise_multiplier` times the clip.

    Mironov, Talwar, Zhang 2019 (arXiv 1908.10530), section 3.3: the closed sum at integer orders, and at the
    others their integral (equation 4) by the trapezoidal rule, or a chord above it below CHORD_BELOW. Infinite below
    UNCOUNTED_BELOW. Raises ValueError.
    """
    if not 0 <= q <= 1 or not noise_multiplier >= 0 or steps < 0:
        raise ValueError(f"impossible mechanism: q={q}, noise multiplier={noise_multiplier}, steps={steps}")
    if q == 0 or steps == 0:
        return NOTHING
    if noise_multiplier < UNCOUNTED_BELOW:
        return UNBOUNDED
    return tuple(steps * _sampled_order(q, noise_multiplier, order) for order in ORDERS)


def gaussian(noise_multiplier: float, steps: int = 1) -> Spend:
    """The Gaussian mechanism without sampling: order / (2 z^2) a step (Mironov 2017, corollary 3)."""
    return subsampled_gaussian(1.0, noise_multiplier, steps)


def skellam(l2: float, l1: float, variance: float, steps: int = 1) -> Spend:
    """Symmetric Skellam noise of `variance` a coordinate on integer vectors of sensitivities `l2` and `l1`.

    Agarwal, Kairouz, Liu 2021 (arXiv 2110.04995), theorem 3.5; all three in quantisation steps. Raises ValueError.
    """
    if not (l2 >= 0 and l1 >= 0 and variance >= 0) or steps < 0:
        raise ValueError(f"impossible mechanism: l2={l2}, l1={l1}, variance={variance}, steps={steps}")
    if l2 == 0 or steps == 0:
        return NOTHING
    # An integer vector of norm l2 has an l1 norm of at most l2^2.
    l1 = min(l1, l2 * l2)
    if not _countable(l2, variance):
        return UNBOUNDED
    return tuple(steps * _skellam_order(order, l2, l1, variance) for order in ORDERS)


def subsampled_skellam(q: float, l2: float, l1: float, variance: float, steps: int = 1) -> Spend:
    """Skellam noise on a sum of Poisson-sampled units: each unit is in it with probability q, secretly.

    For neighbours with and without a unit, P and Q are the noise at two integer points. D((1-q)P + qQ || P) at an
    integer order is the binomial sum of Mironov, Talwar, Zhang 2019 (arXiv 1908.10530, equation 3) over the unsampled
    divergences. The other direction is never larger: Skellam noise is symmetric, so a reflection swaps P and Q, which
    is all that their theorem 5 needs (docs/privacy.md has the proof). No factor 3 as for any mechanism (Zhu, Wang
    2019, theorem 6). Between integer orders the chord of (order - 1) * bound. Raises ValueError.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"impossible mechanism: q={q}")
    whole = skellam(l2, l1, variance, steps)
    if q == 0 or not any(whole):
        return NOTHING
    if q == 1 or whole == UNBOUNDED:
        return whole
    noise = (l2, min(l1, l2 * l2), variance)
    return tuple(steps * _chord(order, lambda k: _sampled_skellam_log(q, k, *noise)) for order in ORDERS)


def compose(spends: Iterable[Spend]) -> Spend:
    """The spend of all of them together."""
    total = list(NOTHING)
    for spend in spends:
        total = [a + b for a, b in zip(total, spend, strict=True)]
    return tuple(total)


def epsilon(spend: Spend, delta: float) -> float:
    """The smallest epsilon that holds at `delta`; infinity where there is none.

    Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), proposition 12, over the orders that both reference libraries
    try. Above DIFFER_ABOVE `_difference` times that, or over the whole orders where that is less. Raises ValueError for
    a delta outside (0, 1).
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie between 0 and 1, not {delta}")
    if not any(spend):
        return 0.0
    bounds = {o: _convert(o, rdp, delta) for o, rdp in zip(ORDERS, spend, strict=True) if o in _BOTH and rdp < math.inf}
    least = min(bounds.values(), default=math.inf)
    alike = least * math.log(1e-5) / max(math.log(delta), math.log(1e-5))
    if alike > DIFFER_ABOVE:
        whole = min((bound for order, bound in bounds.items() if order.is_integer()), default=math.inf)
        least = min(whole, _difference(least) * least)
    return max(0.0, least)


def _difference(least: float) -> float:
    """How many times the least figure the larger library may say. Found by random search, not proved; never below 1."""
    return 1.06 + max(0.0, least - 24) / 24


def analytic_gaussian_delta(noise_multiplier: float, epsilon: float, steps: int = 1) -> float:
    """The exact delta of `steps` unsampled Gaussian releases (Balle, Wang 2018, theorem 8)."""
    mu = math.sqrt(steps) / noise_multiplier
    below, above = _log_tail(epsilon / mu - mu / 2), epsilon + _log_tail(epsilon / mu + mu / 2)
    if above >= below:
        return 0.0
    return math.exp(below) * -math.expm1(above - below)


def analytic_gaussian_epsilon(noise_multiplier: float, delta: float, steps: int = 1) -> float:
    """The exact epsilon of `steps` unsampled Gaussian releases; infinity without noise."""
    if noise_multiplier == 0:
        return math.inf
    return _bisect(lambda e: analytic_gaussian_delta(noise_multiplier, e, steps) <= delta, 1.0)


def calibrate(epsilon_target: float, delta: float, mechanism: Callable[[float], Spend]) -> float:
    """The smallest noise multiplier (within 0.01 %) whose `mechanism(noise_multiplier)` stays within the target.

    Raises ValueError where no noise multiplier below 2^40 does.
    """
    if not epsilon_target > 0:
        raise ValueError(f"the target epsilon must be above 0, not {epsilon_target}")
    return _bisect(lambda z: epsilon(mechanism(z), delta) <= epsilon_target, 1.0)


def _bisect(holds: Callable[[float], bool], high: float) -> float:
    """The smallest x, from above and within 0.01 %, for which a monotone condition holds."""
    limit = high * 2.0**40
    while not holds(high):
        high *= 2
        if high > limit:
            raise ValueError("no amount of noise reaches this target: raise epsilon or delta, or spend fewer steps")
    low = 0.0
    while high - low > 1e-4 * high and high > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


@lru_cache(maxsize=1 << 14)
def _sampled_order(q: float, z: float, order: float) -> float:
    if q == 1:
        return order / (2 * z * z)
    if order.is_integer():
        return _sampled_gaussian_log(q, int(order), z) / (order - 1)
    if z < CHORD_BELOW:
        return _chord(order, lambda k: _sampled_gaussian_log(q, k, z))
    return _log_sum(_integral_terms(q, z, order)) / (order - 1)


def _sampled_gaussian_log(q: float, order: int, z: float) -> float:
    """(order - 1) times the divergence at an integer order of at least 2."""
    return _binomial_log(q, order, lambda k: (k * k - k) / (2 * z * z))


def _binomial_log(q: float, order: int, moment: Callable[[int], float]) -> float:
    """log of the expectation of (1 - q + q Q/P)^order under P, where `moment(k)` is that of (Q/P)^k, k >= 2."""
    log_q, log_p = math.log(q), math.log1p(-q)
    return _log_sum(
        [
            choose + k * log_q + (order - k) * log_p + (moment(k) if k >= 2 else 0.0)
            for k, choose in enumerate(_log_binomials(order))
        ]
    )


def _log_sum(terms: list[float]) -> float:
    """The sum is at least 1; rounding must not make a spend negative."""
    top = max(terms)
    if top == math.inf:
        return math.inf
    return max(0.0, top + math.log(math.fsum(math.exp(term - top) for term in terms)))


def _integral_terms(q: float, z: float, order: float) -> list[float]:
    """Logarithms of the trapezoids under phi(t) (1 - q + q exp(t / z - 1 / 2 z^2))^order, t in deviations.

    The integrand is analytic for |Im t| < pi z, so steps of h err by about exp(-2 pi^2 z / h) relatively.
    """
    h = min(1 / 8, z / 4)
    first, last = math.floor(-12 / h), math.ceil((order / z + 12) / h)
    log_q, log_p = math.log(q), math.log1p(-q)
    scale = math.log(h) - math.log(2 * math.pi) / 2
    terms = []
    for k in range(first, last + 1):
        t = k * h
        shifted = log_q + t / z - 1 / (2 * z * z)
        high, low = max(log_p, shifted), min(log_p, shifted)
        terms.append(scale - t * t / 2 + order * (high + math.log1p(math.exp(low - high))))
    return terms


@lru_cache(maxsize=128)
def _log_binomials(order: int) -> tuple[float, ...]:
    """log C(order, k) for k = 0 .. order."""
    whole = math.lgamma(order + 1)
    return tuple(whole - math.lgamma(k + 1) - math.lgamma(order - k + 1) for k in range(order + 1))


@lru_cache(maxsize=1 << 14)
def _sampled_skellam_log(q: float, order: int, l2: float, l1: float, variance: float) -> float:
    """(order - 1) times the divergence at an integer order of at least 2."""
    return _binomial_log(q, order, lambda k: (k - 1) * _skellam_integer(k, l2, l1, variance))


def _chord(order: float, log_at: Callable[[int], float]) -> float:
    """The bound at `order` from (order - 1) * bound at integer orders, which is convex (van Erven, Harremoes 2014).

    A chord lies above a convex function.
    """
    low = math.floor(order)
    at_low = log_at(low) if low > 1 else 0.0
    if order == low:
        return at_low / (order - 1)
    return (at_low + (order - low) * (log_at(low + 1) - at_low)) / (order - 1)


def _skellam_order(order: float, l2: float, l1: float, variance: float) -> float:
    return _chord(order, lambda k: (k - 1) * _skellam_integer(k, l2, l1, variance))


def _countable(l2: float, variance: float) -> bool:
    """Do the formulas stay finite, far from overflow and underflow?"""
    return max(l2, variance) < 1e100 and variance >= l2 * l2 * UNCOUNTED_BELOW**2 and variance > 1e-100


def _skellam_integer(order: int, l2: float, l1: float, variance: float) -> float:
    first = ((2 * order - 1) * l2 * l2 + 6 * l1) / (4 * variance * variance)
    return order * l2 * l2 / (2 * variance) + min(first, 3 * l1 / (2 * variance))


def _convert(order: float, rdp: float, delta: float) -> float:
    return rdp + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


def _log_tail(x: float) -> float:
    """log P(N(0, 1) > x), from the asymptotic series where erfc would underflow."""
    if x < 30:
        return math.log(math.erfc(x / math.sqrt(2)) / 2)
    return -x * x / 2 - math.log(x * math.sqrt(2 * math.pi)) + math.log1p(-1 / (x * x))
