"""The report's pictures, as SVG text to be put inside a page. Lines and letters take the page's own colour.

Needs matplotlib (extra `demo`); draws without a display.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from aggregator.demo.outcome import Outcome, wire_bytes
from aggregator.rehearsal.plots import ALONE, CENTRAL, FLEET, INK, STYLE

PHASES: Final = {
    "training": "#2a78d6",
    "collecting": "#7fb0ea",
    "opening": "#eb6834",
    "averaging": "#1baf7a",
    "evaluating": "#b38bd9",
    "releasing": "#c9a227",
}
MOST_TICKS: Final = 15


def metric_name(name: str) -> str:
    """As a person writes it: AUC, RMSE, "accuracy", "hit rate 10"."""
    return name.upper() if len(name) <= 4 else name.replace("_", " ")


def _axes(width: float = 6.4, height: float = 3.0) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    return figure, axes


def _svg(figure: Figure, description: str) -> str:
    sink = io.StringIO()
    figure.savefig(sink, format="svg", metadata={"Date": None})
    text = sink.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|(<svg )', r"\1\2", text, count=1)
    return text.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)


def drawn(draw: Any, outcome: Any, description: str, **size: float) -> str:
    """The SVG that `draw(axes, outcome)` makes; `description` is for those who cannot see it."""
    with mpl.rc_context(STYLE):
        figure, axes = _axes(**size)
        draw(axes, outcome)
        return _svg(figure, description)


def metric_by_round(outcome: Outcome) -> str:
    """The fleet's metric after each round, with lines for a device alone and for a centre."""
    return drawn(_metric, outcome, "held-out metric by round", height=3.4)


def _metric(axes: Any, outcome: Outcome) -> None:
    rounds = [entry["round"] for entry in outcome.rounds_shown]
    axes.plot(rounds, [e["metric"] for e in outcome.rounds_shown], color=FLEET, marker="o", ms=4, label="the fleet")
    if outcome.compared:
        axes.axhline(
            outcome.central, color=CENTRAL, ls="--", label=f"one centre with all {outcome.play.records}, no privacy"
        )
        axes.axhline(outcome.central_private, color=CENTRAL, ls=":", label="one centre, same privacy")
        axes.axhline(outcome.local_mean, color=ALONE, ls="--", label="a device alone, no privacy (mean)")
        axes.axhline(
            outcome.local_private_mean,
            color=ALONE,
            ls=":",
            label=f"a device alone, same privacy (mean {outcome.local_private_mean:.3f})",
        )
        if outcome.lower_is_better:  # a device that noise drowns has an error beyond any scale
            axes.set_ylim(top=1.1 * max([outcome.local_mean, *(e["metric"] for e in outcome.rounds_shown)]))
    axes.set(xlabel="round", ylabel=metric_name(outcome.task["metric_name"]))
    _whole_rounds(axes, rounds)
    axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def _whole_rounds(axes: Any, rounds: Sequence[int]) -> None:
    axes.set_xticks(rounds[:: -(-len(rounds) // MOST_TICKS)])
    axes.set_xlim(min(rounds) - 0.5, max(rounds) + 0.5)


def epsilon_by_round(outcome: Outcome) -> str:
    """What has been spent after each round."""
    return drawn(_epsilon, outcome, "epsilon by round", height=2.4)


def _epsilon(axes: Any, outcome: Outcome) -> None:
    rounds = [entry["round"] for entry in outcome.rounds_shown]
    axes.step(rounds, [entry["epsilon"] or 0.0 for entry in outcome.rounds_shown], color=FLEET, where="mid")
    axes.set(xlabel="round", ylabel=f"epsilon, each {outcome.task['privacy']['unit']}", ylim=(0, None))
    _whole_rounds(axes, rounds)


def device_by_device(outcome: Outcome) -> str:
    """Each device alone, with and without privacy, beside the fleet's model on the same records."""
    return drawn(_devices, outcome, "each device alone against the fleet", height=0.6 + 0.34 * len(outcome.alone))


def _devices(axes: Any, outcome: Outcome) -> None:
    ordered = sorted(outcome.alone, key=lambda one: one.without_privacy, reverse=outcome.lower_is_better)
    places = range(len(ordered))
    free, private = [one.without_privacy for one in ordered], [one.with_privacy for one in ordered]
    shown = [*free, *private, outcome.fleet_metric, outcome.central]
    most = max(*free, outcome.fleet_metric) if outcome.lower_is_better else max(shown)
    beyond = f" ({sum(one > most for one in private)} beyond the scale)" if max(private) > most else ""
    axes.plot(free, places, ls="", marker="o", ms=8, color=ALONE, label="alone, no privacy")
    axes.plot(private, places, ls="", marker="|", ms=11, mew=2, color=INK, label=f"alone, same privacy{beyond}")
    axes.axvline(outcome.fleet_metric, color=FLEET, lw=2, label="the fleet's model")
    axes.axvline(outcome.central, color=CENTRAL, ls="--", label="one centre, no privacy")
    axes.set_yticks(list(places), [f"{one.device} ({one.records})" for one in ordered])
    space = 0.05 * (most - min(shown)) or 0.01
    axes.set(xlim=(min(shown) - space, most + space), xlabel=metric_name(outcome.task["metric_name"]))
    axes.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)


def upload_bytes(outcome: Outcome) -> str:
    """What one upload weighs beside the same update as plain float32, everything counted."""
    return drawn(_upload, outcome, "upload size against float32", height=2.2)


def _upload(axes: Any, outcome: Outcome) -> None:
    last = outcome.rounds_shown[-1]
    plain_large = 4 * 100_000
    names = ["this model, float32", "this model, upload", "100,000 weights, float32", "100,000 weights, upload"]
    sizes = [
        last["float32_bytes"],
        wire_bytes(last["upload_bytes"]),
        plain_large,
        plain_large * outcome.upload_ratio_100k,
    ]
    axes.barh(names, sizes, 0.6, color=[ALONE, FLEET, ALONE, FLEET])
    axes.set(xlabel="bytes", xlim=(0, max(sizes) * 1.15))
    for place, size in enumerate(sizes):
        axes.text(size + max(sizes) * 0.01, place, f"{size:,.0f}", va="center", fontsize=9)
    axes.invert_yaxis()


def seconds_by_phase(outcome: Outcome) -> str:
    """Where each round's time went."""
    return drawn(_seconds, outcome, "seconds by phase", height=2.8)


def _seconds(axes: Any, outcome: Outcome) -> None:
    rounds = [entry["round"] for entry in outcome.rounds_shown]
    floor = [0.0] * len(rounds)
    for phase, colour in PHASES.items():
        heights = [entry["seconds"][phase] or 0.0 for entry in outcome.rounds_shown]
        axes.bar(rounds, heights, 0.7, bottom=floor, color=colour, label=phase)
        floor = [low + height for low, height in zip(floor, heights, strict=True)]
    axes.set(xlabel="round", ylabel="seconds")
    _whole_rounds(axes, rounds)
    axes.legend(fontsize=9, ncols=6, loc="upper center", bbox_to_anchor=(0.5, -0.2), columnspacing=1.0)
