"""Pictures that several applications share, as HTML that needs no other file: tables and SVG. Everything is escaped."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aggregator.demo.plots import drawn
from aggregator.rehearsal.plots import ALONE, FLEET, INK


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """An HTML table."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<table class="shown"><tr>{top}</tr>{rows}</table>'


def confusion(names: Sequence[str], truth: Sequence[str], guessed: Sequence[str]) -> str:
    """SVG: a row for each true name, with the share of each guess; every row adds up to one."""
    places = {name: place for place, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, ([places[name] for name in truth], [places[name] for name in guessed]), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    labels = [f"{name} ({int(count)})" for name, count in zip(names, counts.sum(axis=1), strict=True)]

    def draw(axes: Any, _: object) -> None:
        for row, column in zip(*np.nonzero(shares), strict=True):
            strength = float(shares[row, column])
            # A rectangle a share, not an image: it stays a picture of lines that any page size draws sharply.
            axes.fill(
                [column, column + 1, column + 1, column], [row, row, row + 1, row + 1], FLEET, alpha=strength, lw=0
            )
            if strength >= 0.1:
                axes.text(column + 0.5, row + 0.5, f"{strength:.0%}", ha="center", va="center", fontsize=7, color=INK)
        middles = np.arange(len(names)) + 0.5
        axes.set_xticks(middles, names, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(middles, labels, fontsize=8)
        axes.set(xlim=(0, len(names)), ylim=(len(names), 0), xlabel="recognised as", ylabel="true topic")

    return drawn(draw, None, "confusion of topics", height=1.6 + 0.3 * len(names))


Series = tuple[str, Sequence[str], Any, Any, Any, Any]


def forecasts(sites: Sequence[Series], unit: str) -> str:
    """SVG: for each (site, ISO days, truth, forecast, low, high) what came, the forecast and its band."""
    from datetime import date

    def draw_one(series: Series) -> str:
        site, days, truth, middle, low, high = series

        def draw(axes: Any, _: object) -> None:
            when = [date.fromisoformat(day) for day in days]
            axes.fill_between(when, low, high, color=FLEET, alpha=0.2, lw=0, label="80 % band")
            axes.plot(when, truth, color=INK, lw=1, label="what came")
            axes.plot(when, middle, color=FLEET, lw=1.5, label="forecast")
            axes.set(title=site.replace("_", " "), ylabel=unit, ylim=(0, None))
            axes.tick_params(axis="x", rotation=30, labelsize=8)
            axes.legend(fontsize=9, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.25))

        return drawn(draw, None, f"forecasts for {site}", height=3.2)

    return "".join(draw_one(series) for series in sites)


def histogram(title: str, groups: Mapping[str, Any], label: str) -> str:
    """SVG: how the probabilities of each group spread over 0 to 1."""

    def draw(axes: Any, _: object) -> None:
        names, values = list(groups), list(groups.values())
        axes.hist(values, bins=20, range=(0, 1), color=[FLEET, ALONE][: len(names)], label=names)
        axes.set(title=title, xlabel=label, ylabel="held-out records", xlim=(0, 1))
        axes.legend(fontsize=9)

    return drawn(draw, None, title, height=2.6)
