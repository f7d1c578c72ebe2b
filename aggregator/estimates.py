"""From the opened sum of a query to figures with 95 % intervals (SPEC 7.9). Pure numpy.

An interval covers the noise that the devices added, the error floors of their masks and their rounding, by the delta
method; not that other customers might have come. Refuses nothing: a figure whose count is not clear of the noise is
None, and what noise pushed out of its range is put back to the border.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_sdk.analytics.layout import COUNT, LOSS, RIGHT, SCORES, Part, parts
from edge_sdk.privacy import charges
from edge_sdk.protocol.messages import PrivacyTerms, Query
from edge_sdk.protocol.quantize import SUM_SCALE

Z95: Final = 1.96
CLEAR: Final = 3.0  # a count below so many standard deviations of its noise is no count
FLOOR: Final = 16.0  # variance, in squared steps, of a mask's error floor (SPEC 7.4)
ROUNDING: Final = 0.25  # the largest variance of rounding once, in squared steps
QUANTILES: Final = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)

Floats = npt.NDArray[np.float64]
Figure = dict[str, float | None]


class Opened(NamedTuple):
    """A query's opened sum in units, float64 [d], and the standard deviation of a value before it is weighed."""

    values: Floats
    deviation: float


def deviation(terms: PrivacyTerms, devices: int) -> float:
    """Standard deviation of each value of the opened sum of so many devices, in the values' own measure."""
    in_training = 0.0
    if not charges.noise_in_mask(terms) and not terms.insecure_without_noise:
        in_training = terms.noise_multiplier * charges.sensitivity(terms) / terms.step
    each = charges.sigma_steps(terms) ** 2 + in_training**2 + FLOOR + ROUNDING
    return terms.step * math.sqrt(devices * each)


def figures(query: Query, terms: PrivacyTerms, total: npt.NDArray[np.int64], devices: int) -> list[dict[str, Any]]:
    """One entry for each statistic, in order. `total`: int64 [d] in steps, the opened sum of `devices` devices."""
    of_sum = terms.placement == "shared" and terms.unit != "device"
    rate = 1.0 if terms.unit == "device" else terms.sample_rate
    scale = terms.step / (rate * (SUM_SCALE if of_sum else 1.0))
    noise = deviation(terms, devices) * scale / terms.step
    found = []
    for part in parts(query, charges.sensitivity(terms)):
        values: Floats = total[part.columns].astype(np.float64) * (scale / part.weight)
        opened = Opened(values, noise / part.weight)
        statistic = part.statistic
        head = {"kind": statistic.kind, "field": statistic.field, "low": statistic.low, "high": statistic.high}
        found.append({**head, **_BY_KIND[statistic.kind](part, opened)})
    return found


def _figure(value: float, gradient: Floats, opened: Opened, low: float, high: float) -> Figure:
    """A value and its interval, both kept within what is possible."""
    half = Z95 * opened.deviation * float(np.linalg.norm(gradient))
    kept = [min(max(each, low), high) for each in (value, value - half, value + half)]
    return {"value": kept[0], "low": kept[1], "high": kept[2]}


NONE: Final[Figure] = {"value": None, "low": None, "high": None}


def _clear(count: float, gradient: Floats, opened: Opened) -> bool:
    return count > CLEAR * opened.deviation * float(np.linalg.norm(gradient)) and count > 0


def _count(opened: Opened, gradient: Floats) -> Figure:
    return _figure(float(opened.values @ gradient), gradient, opened, 0.0, math.inf)


def _ratio(opened: Opened, top: Floats, bottom: Floats, low: float = 0.0, high: float = 1.0) -> Figure:
    """(values . top) / (values . bottom)."""
    below = float(opened.values @ bottom)
    if not _clear(below, bottom, opened):
        return NONE
    value = float(opened.values @ top) / below
    return _figure(value, (top - value * bottom) / below, opened, low, high)


def _scaled(figure: Figure, factor: float, shift: float = 0.0) -> Figure:
    return {name: None if value is None else shift + factor * value for name, value in figure.items()}


def _moments(part: Part, opened: Opened) -> dict[str, Any]:
    low, high = part.statistic.low, part.statistic.high
    half = (high - low) / 2
    count, first = np.eye(3)[:2]
    mean = _ratio(opened, first, count, -1.0, 1.0)
    found = {"count": _count(opened, count), "mean": _scaled(mean, half, low + half), "deviation": NONE}
    if mean["value"] is None:
        return found
    s0, m, q = opened.values[0], opened.values[1] / opened.values[0], opened.values[2] / opened.values[0]
    variance = float(q - m * m)
    spread = math.sqrt(max(variance, 1e-12))
    gradient = np.array([2 * m * m - q, -2 * m, 1.0]) / (s0 * 2 * spread)
    return {**found, "deviation": _scaled(_figure(spread, gradient, opened, 0.0, 1.0), half)}


def _shares(opened: Opened) -> list[Figure]:
    everything = np.ones(len(opened.values))
    return [_ratio(opened, one, everything) for one in np.eye(len(opened.values))]


def _histogram(part: Part, opened: Opened) -> dict[str, Any]:
    edges = np.linspace(part.statistic.low, part.statistic.high, part.width + 1)
    return {
        "edges": [float(edge) for edge in edges],
        "count": _count(opened, np.ones(part.width)),
        "shares": _shares(opened),
        "quantiles": [{"at": at, **_quantile(at, edges, opened)} for at in QUANTILES],
    }


def _quantile(at: float, edges: Floats, opened: Opened) -> Figure:
    """Where so much lies below, by the shares added up and made monotone; the interval ends at edges of bins.

    Noise of the share below each edge widens it; where in a bin the values lie nobody knows.
    """
    everything = np.ones(len(opened.values))
    if not _clear(float(opened.values.sum()), everything, opened):
        return NONE
    below = np.cumsum(opened.values)[:-1]
    figures_ = [
        _ratio(opened, (np.arange(len(opened.values)) <= i).astype(np.float64), everything) for i in range(len(below))
    ]
    value = float(np.interp(at, _ascending([f["value"] or 0.0 for f in figures_]), edges))
    least = _ascending([f["low"] or 0.0 for f in figures_])
    most = _ascending([f["high"] or 0.0 for f in figures_])
    # Surely above every edge below which less than `at` lies even at most, surely below one where at least `at` does.
    low = float(edges[max(0, int(np.searchsorted(most, at, side="left")) - 1)])
    high = float(edges[min(len(edges) - 1, int(np.searchsorted(least, at, side="left")))])
    return {"value": value, "low": min(low, value), "high": max(high, value)}


def _ascending(inner: list[float]) -> Floats:
    """0, the nearest ascending numbers in the sense of least squares, 1: pool adjacent violators."""
    pools: list[tuple[float, int]] = []
    for value in inner:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (right, more), (left, some) = pools.pop(), pools.pop()
            pools.append(((left * some + right * more) / (some + more), some + more))
    flat = [value for value, count in pools for _ in range(count)]
    ascending: Floats = np.clip(np.array([0.0, *flat, 1.0], np.float64), 0.0, 1.0)
    return ascending


def _words(part: Part, opened: Opened) -> dict[str, Any]:
    words = [*part.statistic.words, None]  # None: every other word
    counts = [_count(opened, one) for one in np.eye(part.width)]
    entries = zip(words, counts, _shares(opened), strict=True)
    listed = [{"word": word, "count": count, "share": share} for word, count, share in entries]
    return {"count": _count(opened, np.ones(part.width)), "words": listed}


def _model(part: Part, opened: Opened) -> dict[str, Any]:
    """Loss, right answers and how scores come true; for a number its mean absolute and root mean square error."""
    one = np.eye(part.width)
    high = part.statistic.high
    found: dict[str, Any] = {"count": _count(opened, one[COUNT])}
    if not part.statistic.bins:
        square = _ratio(opened, one[RIGHT], one[COUNT])
        root = {name: None if value is None else high * math.sqrt(value) for name, value in square.items()}
        return {**found, "mae": _scaled(_ratio(opened, one[LOSS], one[COUNT]), high), "rmse": root}
    found |= {
        "loss": _scaled(_ratio(opened, one[LOSS], one[COUNT]), high),
        "accuracy": _ratio(opened, one[RIGHT], one[COUNT]),
    }
    return {**found, **_scores(part, opened)}


def _scores(part: Part, opened: Opened) -> dict[str, Any]:
    """AUC by score bins (ties within one count half) and the share that came true in each."""
    bins, one = part.statistic.bins, np.eye(part.width)
    false, true = slice(SCORES, SCORES + bins), slice(SCORES + bins, SCORES + 2 * bins)
    came = [
        {"from": b / bins, "to": (b + 1) / bins, "share": _came_true(opened, one[SCORES + b], one[SCORES + bins + b])}
        for b in range(bins)
    ]
    auc = _auc(opened, false, true)
    middles = (np.arange(bins) + 0.5) / bins
    both = one[false].sum(axis=0) + one[true].sum(axis=0)
    scored = middles @ (one[false] + one[true])
    bias = _ratio(opened, scored - one[true].sum(axis=0), both, -1.0, 1.0)
    return {"auc": auc, "score_minus_truth": bias, "calibration": came}


def _came_true(opened: Opened, false: Floats, true: Floats) -> Figure:
    return _ratio(opened, true, true + false)


def _auc(opened: Opened, false: slice, true: slice) -> Figure:
    negatives, positives = opened.values[false], opened.values[true]
    n, p = float(negatives.sum()), float(positives.sum())
    needed = CLEAR * opened.deviation * math.sqrt(len(negatives))
    if n <= needed or p <= needed:
        return NONE
    above = (np.cumsum(negatives) - negatives / 2) / n  # for each bin: the share of negatives below it
    below = (p - np.cumsum(positives) + positives / 2) / p  # for each bin: the share of positives above it
    value = float(positives @ above) / p
    gradient = np.zeros(len(opened.values))
    gradient[true], gradient[false] = (above - value) / p, (below - value) / n
    return _figure(value, gradient, opened, 0.0, 1.0)


_BY_KIND: Final[dict[str, Callable[[Part, Opened], dict[str, Any]]]] = {
    "moments": _moments,
    "histogram": _histogram,
    "words": _words,
    "model": _model,
}
