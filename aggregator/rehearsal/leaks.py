"""Columns that say the answer: a rehearsal that learns from them promises what a fleet cannot keep. Pure."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from aggregator.rehearsal.understood import Feature, Understood, shell

LEAK: Final = 0.97  # of what a plain guess gets wrong, put right by one column


def leaks(found: Understood) -> list[str]:
    """Columns that alone predict the label almost perfectly: known too late, or made from it."""
    rows, answers = found.rows, found.answers
    if rows < 50:
        return []
    if answers.kind == "number":
        truth = np.argsort(np.argsort(np.array(answers.values, np.float64), kind="stable")) / rows
    else:
        truth = np.unique(np.array(answers.values), return_inverse=True)[1].astype(np.float64)
    halves = np.arange(rows) * 2654435761 % 2**32 < 2**31
    return [
        f"{feature.name!r} alone predicts {answers.name!r} almost perfectly: if it is not known beforehand, "
        f"leave it out with --drop {shell(feature.name)}"
        for feature in found.features
        if feature.role != "text" and _explained(feature, truth, halves, answers.kind == "number") > LEAK
    ]


def _explained(feature: Feature, truth: Any, half: Any, ranked: bool) -> float:
    """Share of what a guess by the commonest (or mean) answer gets wrong that this column puts right, on other rows."""
    bins = _bins(feature)
    first, second = bins[half], bins[~half]
    best = np.zeros(int(bins.max()) + 1)
    for place in np.unique(first):
        values = truth[half][first == place]
        best[place] = values.mean() if ranked else np.bincount(values.astype(np.int64)).argmax()
    known = np.isin(second, first)
    guessed, right = best[second[known]], truth[~half][known]
    if known.mean() < 0.5 or not len(right):
        return 0.0
    if ranked:
        return 1.0 - float(np.mean((guessed - right) ** 2) / max(float(right.var()), 1e-12))
    usual = float(np.bincount(right.astype(np.int64)).max() / len(right))
    return float((np.mean(guessed == right) - usual) / max(1.0 - usual, 1e-12))


def _bins(feature: Feature) -> Any:
    """A column cut into at most 64 parts, int64 [N]."""
    if feature.role == "category":
        return np.unique(np.array([value or "" for value in feature.values]), return_inverse=True)[1]
    values = np.array([np.nan if value is None else value for value in feature.values], np.float64)
    edges = np.unique(np.quantile(values[~np.isnan(values)], np.linspace(0, 1, 63)))
    return np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="left"))
