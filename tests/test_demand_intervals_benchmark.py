"""The count of days inside an interval: what is counted, in which order, and by whose rule."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.applying.dataset import Dataset, Rows
from benchmarks.demand_intervals import (
    RULES,
    Forecasts,
    adaptive,
    by_rule,
    by_the_sdk,
    fading,
    figures,
    split,
    tracking,
)
from edge_sdk.artifact.recipes import demand
from edge_sdk.interval_scores import FEWEST

SCHEMA = demand.schema(window=7, days=(), spread=0.5)


def days(scores: dict[str, list[float]], start: str = "2014-01-01") -> Forecasts:
    """An interval of -1 to 1 around 0, in halves of a log unit over 9, and labels that lie above it by these scores."""
    listed = sorted((n, site) for site, each in scores.items() for n in range(len(each)))
    dates = [str(np.datetime64(start) + n) for n, _ in listed]
    records = [{"recent": [9.0] * 7, "day": day, "site": site} for day, (_, site) in zip(dates, listed, strict=True)]
    score = np.array([scores[site][n] for n, site in listed])
    rows = Rows(records, (10 * np.exp((1.0 + score) / 2) - 1).tolist(), ["all"] * len(records))
    nobody = rows.take(np.zeros(len(rows), bool))
    dataset = Dataset(
        name="made", application="demand", metric="wape", higher_is_better=False, schema=SCHEMA, model=lambda _: b"",
        train=nobody, validation=np.zeros(0, bool), test=rows, baseline=0.0, baseline_words="", unit="record",
        settings={},
    )  # fmt: skip
    return Forecasts(dataset, rows, np.tile([-1.0, 0.0, 1.0], (len(rows), 1)), score)


def drawn(seed: int, count: int) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    return {site: rng.normal(size=count).tolist() for site in ("hall", "yard")}


def test_the_sdk_counts_as_the_rule_that_was_chosen_with_and_without_a_past():
    past, now = days(drawn(1, 20)), days(drawn(2, 90), "2014-02-01")
    rule = RULES["split conformal, last 60"]
    for before in (past, None):
        assert by_the_sdk(before, now) == pytest.approx(by_rule(rule, before, now), nan_ok=True)


def test_a_day_is_judged_by_what_was_known_before_it():
    first, now = days({"hall": [5.0] * 40}), days({"hall": [5.0] * 39 + [-5.0]})
    assert by_the_sdk(None, now) == pytest.approx(by_the_sdk(None, first), nan_ok=True)
    assert np.isnan(by_the_sdk(None, now)).sum() == FEWEST


def test_figures_are_those_of_the_interval_that_is_shown():
    now = days({"hall": [0.5, -0.5], "yard": [-1.5, 2.0]})
    own = figures(now, np.full(4, np.nan))
    assert (own["inside"], own["least"], own["most"], own["calibrated"]) == (0.5, 0.5, 0.5, 0.0)
    assert own["width"] == pytest.approx(2 * 0.5)
    assert own["interval_score"] == pytest.approx((2 + 10 * (0.5 + 2.0) / 4) * 0.5)
    assert figures(now, np.full(4, 0.6))["inside"] == 0.75
    closed = figures(now, np.full(4, -3.0))
    assert (closed["inside"], closed["width"]) == (0.0, 0.0)


def test_a_split_takes_the_quantile_of_a_finite_sample():
    known = list(range(1, 11))
    assert split(60, known) == 9  # the ceiling of 11 times 0.8
    assert split(4, known) == 10
    assert adaptive(0.0, 100, known * 3) == split(100, known * 3)
    assert fading(1.0, known * 3) == split(100, known * 3)
    assert fading(0.5, known) == 10  # three days weigh nearly all: no more than the largest


def test_steps_are_in_deviations_of_the_scores():
    known = [0.0] * 5 + [2.0] * 5 + [9.0]
    assert tracking(0.5, 0.1, known) == pytest.approx(2.0 + 0.5 * 0.8 * np.std(known))
    assert tracking(0.5, 0.7, known) == pytest.approx(2.0 + 0.7 * 0.8 * np.std(known))
    assert adaptive(0.5, 100, [1.0] * 10 + [2.0] * 10) >= split(100, [1.0] * 10 + [2.0] * 10)


def test_an_interval_is_no_wider_than_what_is_shown_of_it():
    now = days({"hall": [-0.5] * 4})
    below_zero = figures(now, np.full(4, 9.0))
    assert below_zero["width"] == pytest.approx(np.log1p(9.0) + 0.5 * (1.0 + 9.0))
