"""The rehearsal's pictures, as SVG text for the inside of a page. Lines and letters take the page's own colour.

Needs matplotlib (extra `demo`); draws without a display. Letters stay text, so that the reader's fonts draw them.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

FLEET: Final = "#2a78d6"
ALONE: Final = "#eb6834"
CENTRAL: Final = "#1baf7a"
PRIVATE: Final = "#b38bd9"
INK: Final = "#010203"  # a colour of its own, replaced by the page's in the finished text
STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "chorale",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
LEGEND: Final[Any] = {"fontsize": 9, "loc": "upper center", "ncols": 2}
MOST_BARS: Final = 30
LONGEST: Final = 24
Floats = npt.NDArray[np.float64]


def picture(draw: Callable[[Any], None], description: str, height: float = 3.0) -> str:
    """What `draw` puts on one pair of axes."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of glyphs that matplotlib's own font lacks: the reader's has them
        figure = Figure(figsize=(6.4, height), layout="constrained")
        figure.patch.set_alpha(0.0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0.0)
        draw(axes)
        sink = io.StringIO()
        figure.savefig(sink, format="svg", metadata={"Date": None})
    text = sink.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|(<svg )', r"\1\2", text, count=1)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}" ', 1)


def by_round(
    curve: Sequence[tuple[int, float]], lines: Sequence[tuple[str, float, str, str]], metric: str, *, private: bool
) -> str:
    """The metric after each round, and level lines (name, value, colour, dashes)."""

    def draw(axes: Any) -> None:
        if curve:
            axes.plot(
                *zip(*curve, strict=True), color=FLEET, marker="o", ms=3, label="the fleet" + ", private" * private
            )
        for name, value, colour, dashes in lines:
            axes.axhline(value, color=colour, ls=dashes, label=name)
        known = [value for _, value in curve] + [value for _, value, _, _ in lines]
        low, high = min(known), max(known)
        if len(curve) > 3:  # a first round may lie far off: the page is for where it ends
            low, high = (
                min([low_ for _, low_, _, _ in lines] + [np.quantile([v for _, v in curve], 0.02)]),
                max([high_ for _, high_, _, _ in lines] + [np.quantile([v for _, v in curve], 0.98)]),
            )
        room = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="round", ylabel=metric, ylim=(low - room, high + room))
        axes.legend(**LEGEND, bbox_to_anchor=(0.5, -0.18))

    return picture(draw, f"{metric} by round", 3.8)


def by_device(rows: Sequence[tuple[str, float, float]], metric: str) -> str:
    """(device, alone, fleet): a line from one to the other for each device, sorted; few are named."""
    ordered = sorted(rows, key=lambda row: row[2])

    def draw(axes: Any) -> None:
        places = np.arange(len(ordered))
        alone, fleet = (np.array([row[column] for row in ordered]) for column in (1, 2))
        axes.hlines(places, alone, fleet, color=INK, lw=0.6, alpha=0.4)
        size = 5 if len(ordered) <= MOST_BARS else 3
        axes.plot(alone, places, ls="", marker="s", ms=size, color=ALONE, label="the device alone, no privacy")
        axes.plot(fleet, places, ls="", marker="o", ms=size, color=FLEET, label="the fleet's model")
        if len(ordered) <= MOST_BARS:
            axes.set_yticks(places, [_short(row[0]) for row in ordered])
        else:
            axes.set_yticks([])
            axes.set_ylabel(f"{len(ordered)} devices")
        axes.set_xlabel(f"{metric} on the device's own test rows")
        axes.legend(**LEGEND, bbox_to_anchor=(0.5, -0.5 / (height - 1.0)))

    height = 1.8 + 0.22 * min(len(ordered), MOST_BARS)
    return picture(draw, "each device alone against the fleet", height)


def _short(name: str) -> str:
    """Cut, and with spaces in front of wide letters, which matplotlib takes for narrow and a browser leaves out."""
    short = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
    return " " * round(1.5 * sum(letter >= "\u2e80" for letter in short)) + short


def calibration(predicted: Floats, happened: Floats, across: str, up: str) -> str:
    """Means in ten parts of equal size, by prediction; the line is a model that is right on average."""
    order = np.argsort(predicted, kind="stable")
    parts = [one for one in np.array_split(order, min(10, len(order))) if len(one)]
    x = [float(predicted[one].mean()) for one in parts]
    y = [float(happened[one].mean()) for one in parts]

    def draw(axes: Any) -> None:
        ends = [min(x + y), max(x + y)]
        axes.plot(ends, ends, color=INK, lw=0.8, ls=":", label="right on average")
        axes.plot(x, y, color=FLEET, marker="o", ms=5, label="tenths of the test rows")
        axes.set(xlabel=across, ylabel=up)
        axes.legend(fontsize=9, loc="upper left")

    return picture(draw, f"{up} by {across}")


def confusion(counts: npt.NDArray[np.int64], names: Sequence[str]) -> str:
    """Shares of each true class, by row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def draw(axes: Any) -> None:
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1, edgecolors="none")
        for row, column in np.ndindex(*shares.shape):
            if shares[row, column] >= 0.005:
                colour = "#ffffff" if shares[row, column] > 0.55 else "#102030"
                text = f"{shares[row, column]:.2f}".lstrip("0")
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=colour)
        middle = np.arange(len(names)) + 0.5
        axes.set_xticks(middle, [_short(name) for name in names], rotation=35, ha="right")
        axes.set_yticks(middle, [_short(name) for name in names])
        axes.invert_yaxis()
        axes.set(xlabel="answered", ylabel="true")

    return picture(draw, "answers by true class", 1.6 + 0.34 * len(names))


def spent(rounds: Sequence[int], epsilons: Sequence[float], unit: str) -> str:
    """Epsilon after each round."""

    def draw(axes: Any) -> None:
        axes.step([0, *rounds], [0.0, *epsilons], color=FLEET, where="post")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="round", ylabel=f"epsilon, each {unit}", ylim=(0, None))

    return picture(draw, "epsilon by round", 2.2)
