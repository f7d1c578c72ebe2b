"""One picture for each attack, as a small PNG. Needs matplotlib (extra `demo`); draws without a display."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#2a78d6", "#eb6834", "#1baf7a", "#777777"
STYLE: Final[Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.titlesize": 9,
}
OFF: Final = 11.0  # where "no noise" stands on an axis of claims
Result = dict[str, Any]


def draw(name: str, result: Any, folder: Path) -> Path:
    """attack-NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"attack-{name}.png"
    with mpl.rc_context(STYLE):
        figure: Figure = PICTURES[name](result)
        figure.savefig(path, dpi=96, metadata={"Software": None})
    return path


def _figure(panels: int = 1, width: float = 6.4, height: float = 3.6) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False, sharey=panels > 1)[0]


def _audit(rows: list[Result]) -> Figure:
    figure, (left, right) = _figure(2, 7.2, 3.6)
    colours = {"record": BLUE, "customer": ORANGE, "device": GREEN}
    for axes, methods, title in (
        (left, ("lower_bound_gaussian", "many runs"), "many runs, Gaussian trade-off"),
        (right, ("lower_bound", None), "no assumption: many runs (x), one run (o)"),
    ):
        axes.plot([0, 8.5], [0, 8.5], color=GREY, lw=1, ls="--")
        for row in rows:
            field, only = methods
            value = row[field] if row["claimed"] is not None else row["lower_bound"]
            if value is None or (only and row["method"] != only):
                continue
            shift = {"record": -0.15, "customer": 0.0, "device": 0.15}[row["unit"]]
            marker = "x" if row["method"] == "many runs" else "o"
            place = OFF if row["claimed"] is None else row["claimed"]
            axes.plot(place + shift, value, marker, color=colours[row["unit"]], ms=5, mfc="none")
        axes.set_xticks([1, 2, 4, 8, OFF], ["1", "2", "4", "8", "no noise"])
        axes.set_xlabel("epsilon claimed (delta 1e-5)")
        axes.set_title(title)
    left.set_ylabel("epsilon that the attack proves (95 %)")
    for unit, colour in colours.items():
        left.plot([], [], "s", color=colour, label=unit, ms=5)
    left.plot([], [], color=GREY, ls="--", lw=1, label="claim")
    left.legend(loc="upper left")
    return figure


def _membership(result: Result) -> Figure:
    figure, (axes,) = _figure(1, 4.8, 3.8)
    colours = {"None": ORANGE, "8.0": BLUE, "2.0": GREEN}
    names = {"None": "no privacy", "8.0": "epsilon 8", "2.0": "epsilon 2"}
    for key, (false, true) in result["curves"].items():
        epsilon, attack = key.split("/")
        line = "-" if attack == "LiRA" else ":"
        axes.plot(false, true, line, color=colours[epsilon], lw=1.3, label=f"{names[epsilon]}, {attack}")
    ends = np.array([1e-3, 1.0])
    axes.plot(ends, ends, color=GREY, lw=1, ls="--", label="guessing")
    axes.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-3, 1))
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.legend(loc="lower right", fontsize=7.5)
    return figure


def _inversion(result: Result) -> Figure:
    figure, (axes,) = _figure(1, 7.2, 2.9)
    rows = [row for row in result["texts"] if row["batch"] == 1]
    views = list(dict.fromkeys(row["view"] for row in rows))
    languages = list(dict.fromkeys(row["language"] for row in rows))
    height = 0.8 / len(languages)
    for place, language in enumerate(languages):
        values = {row["view"]: row["picked"] for row in rows if row["language"] == language}
        at = [i + place * height - 0.4 for i in range(len(views))]
        colour = (BLUE, ORANGE, GREEN, GREY)[place % 4]
        axes.barh(at, [values[view] for view in views], height, align="edge", color=colour, label=language)
    axes.set_yticks(range(len(views)), views)
    axes.invert_yaxis()
    axes.axvline(float(np.mean([row["chance"] for row in rows])), color="black", lw=1, ls=":")
    axes.set(xlabel="words recovered (dotted: chance)", xlim=(0, 1.02))
    axes.legend(loc="lower right")
    return figure


def _collusion(result: Result) -> Figure:
    sizes = sorted({row["members"] for row in result["members"]})
    figure, panels = _figure(len(sizes), 7.2, 2.6)
    for axes, size in zip(panels, sizes, strict=True):
        rows = [row for row in result["members"] if row["members"] == size]
        places = [row["colluders"] for row in rows]
        axes.plot(places, [row["recovered"] for row in rows], "o-", color=BLUE, ms=3, label="as it is")
        twice = [row["recovered_if_answering_twice"] for row in rows]
        axes.plot(places, twice, ":", color=ORANGE, label="members answer twice")
        axes.axvline(rows[0]["stated_bound"], color=GREY, ls="--", lw=1, label="stated c")
        axes.set(xlabel=f"colluders of {size} members", ylim=(-0.05, 1.1))
    panels[0].set_ylabel("device recovered")
    panels[-1].legend(loc="center right", fontsize=7.5)
    return figure


def _poisoning(result: Result) -> Figure:
    attacks = list(dict.fromkeys(row["attack"] for row in result["rows"]))
    figure, panels = _figure(len(attacks), 7.6, 2.9)
    colours = {"mean": ORANGE, "median": BLUE, "trimmed_mean": GREEN}
    for axes, attack in zip(panels, attacks, strict=True):
        for rule, colour in colours.items():
            rows = [row for row in result["rows"] if (row["attack"], row["rule"]) == (attack, rule)]
            places = [100 * row["share"] for row in rows]
            axes.plot(places, [row["value"] for row in rows], "o-", ms=3, color=colour, label=rule.replace("_", " "))
            axes.plot(places, [row["released"] for row in rows], ":", color=colour)
        axes.set(xlabel="malicious devices, %", title=attack)
    panels[0].set_ylabel("held-out AUC")
    panels[0].plot([], [], ":", color=GREY, label="released (gate)")
    panels[0].legend(loc="lower left", fontsize=7.5)
    return figure


PICTURES: Final[dict[str, Callable[[Any], Figure]]] = {
    "audit": _audit,
    "membership": _membership,
    "inversion": _inversion,
    "collusion": _collusion,
    "poisoning": _poisoning,
}
