"""How good answers are: plain functions of scores and truths. Pure; refuses nothing.

`p`: probabilities float64 [B, K]; `truth`: int64 [B], the right class of each record; values and intervals in the
label's own units.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

BINS: Final = 10
TOP: Final = 10
_FLOOR: Final = 1e-12

Floats = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]


def of_classes(p: Floats, ranked: Floats, truth: Classes) -> dict[str, float]:
    """Metrics of binary and classes. `ranked`: `p` with 0 for classes that a record leaves out, for what ranks."""
    rows = np.arange(len(truth))
    named = ranked.argmax(axis=1)
    hits = (named == truth).astype(np.float64)
    binary = p.shape[1] == 2
    metrics = {
        "accuracy": float(hits.mean()),
        "log_loss": float(-np.mean(np.log(np.clip(p[rows, truth], _FLOOR, 1.0)))),
        "brier": brier(p, truth),
        "calibration_error": calibration_error(*((p[:, 1], truth == 1) if binary else (p.max(axis=1), hits))),
        "macro_f1": macro_f1(named, truth),
    }
    if p.shape[1] > TOP:
        ranks = rank(ranked, truth)
        metrics["hit_rate_10"] = float(np.mean(ranks <= TOP))
        metrics["ndcg_10"] = float(np.mean(np.where(ranks <= TOP, 1.0 / np.log2(1.0 + ranks), 0.0)))
    return metrics


def of_numbers(values: Floats, truth: Floats) -> dict[str, float]:
    """rmse, mae, and wape = sum of |error| / sum of |truth|, which is left out where all truths are 0."""
    errors = np.abs(values - truth)
    with np.errstate(over="ignore"):
        metrics = {"rmse": float(np.sqrt(np.mean(errors**2))), "mae": float(np.mean(errors))}
    total = float(np.abs(truth).sum())
    return metrics | ({"wape": float(errors.sum()) / total} if total > 0 else {})


def auc(scores: Floats, truth: Classes) -> float:
    """Probability that a positive scores above a negative, ties half: Mann and Whitney's U from mean ranks."""
    values, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    del values
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    positives = int(truth.sum())
    above = float(ranks[truth == 1].sum()) - positives * (positives + 1) / 2
    return above / (positives * (len(truth) - positives))


def brier(p: Floats, truth: Classes) -> float:
    """Mean squared error of the probability of the positive class; of K classes, summed over them (Brier 1950)."""
    if p.shape[1] == 2:
        return float(np.mean((p[:, 1] - truth) ** 2))
    chosen = p[np.arange(len(truth)), truth]
    return float(np.mean((p**2).sum(axis=1) - 2 * chosen + 1))


def calibration_error(scores: Floats, hits: npt.NDArray[Any]) -> float:
    """Mean |score - share of hits| over 10 bins of equal count, weighted by their counts (Naeini et al. 2015, ECE).

    Equal scores stay in one bin, so that the order of the records does not matter.
    """
    ordered = np.sort(scores)
    bins = np.searchsorted(ordered, scores) * BINS // max(len(scores), 1)
    gaps = np.bincount(bins, weights=scores - hits, minlength=BINS)
    return float(np.abs(gaps).sum() / max(len(scores), 1))


def macro_f1(named: Classes, truth: Classes) -> float:
    """Mean over the classes that occur, as truth or as answer, of the harmonic mean of precision and recall."""
    count = int(max(named.max(), truth.max())) + 1
    both = np.bincount(truth[named == truth], minlength=count)
    either = np.bincount(named, minlength=count) + np.bincount(truth, minlength=count)
    return float(np.mean(2 * both[either > 0] / either[either > 0]))


def rank(scores: Floats, truth: Classes) -> Floats:
    """[B]: place of the right class from 1, equal scores in the order of the classes; infinite where its score is 0."""
    right = scores[np.arange(len(truth)), truth][:, None]
    before = np.arange(scores.shape[1])[None, :] < truth[:, None]
    places = 1.0 + ((scores > right) | ((scores == right) & before)).sum(axis=1)
    return np.where(right[:, 0] > 0, places, np.inf)


def coverage(low: Floats, high: Floats, truth: Floats) -> float:
    """Share of truths within their interval, ends included."""
    return float(np.mean((low <= truth) & (truth <= high)))
