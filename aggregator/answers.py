"""A question's answer for people: tables on the terminal (rich), and a picture (matplotlib). Refuses nothing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

from aggregator.config import ConfigError

WIDTH: Final = 100
BAR: Final = 24
MOST_LISTED: Final = 24  # parts of a histogram; of more the quantiles alone are printed
Answer = dict[str, Any]
Row = tuple[str, dict[str, float | None]]


def lines(found: Answer) -> list[str]:
    """Everything that was answered, then what it spent."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=io.StringIO(), width=WIDTH)
    for figure in found["figures"]:
        table = Table(title=title(figure), title_justify="left", title_style="bold", box=None, pad_edge=False)
        for head in ("", "value", "95 % interval", ""):
            table.add_column(head, justify="left" if not head else "right")
        for name, estimate in rows(figure):
            table.add_row(name, _number(estimate["value"]), _interval(estimate), _bar(name, estimate))
        console.print(table)
        console.print()
    console.print(
        f"question {found['query']!r}, round {found['round']} of {found['task']}: {found['devices']} devices, one "
        f"{found['unit']} a vote. The intervals are of the noise alone.",
        highlight=False,
    )
    console.print(f"all of the task so far: {found['privacy']}", highlight=False)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def title(figure: Answer) -> str:
    """What the figure is of."""
    of = figure["field"] or "the label"
    return {"model": "the current model", "moments": f"mean of {of}", "words": f"words of {of}"}.get(
        figure["kind"], f"{figure['kind']} of {of}"
    )


def rows(figure: Answer, *, every: bool = False) -> list[Row]:
    """(what, estimate) of each line; `every`: all parts of a fine histogram too."""
    found: list[Row] = [("count", figure["count"])]
    single = ("mean", "deviation", "loss", "mae", "rmse", "accuracy", "auc", "score_minus_truth")
    found += [(name.replace("_", " "), figure[name]) for name in single if name in figure]
    if figure["kind"] == "histogram":
        if every or len(figure["shares"]) <= MOST_LISTED:
            found += [(f"share {low:.6g} to {high:.6g}", share) for low, high, share in _parts(figure)]
        found += [(f"{each['at']:.0%} quantile", each) for each in figure["quantiles"]]
    for word in figure.get("words", []):
        found.append((f"share {word['word'] if word['word'] is not None else '(others)'}", word["share"]))
    for each in figure.get("calibration", []):
        found.append((f"share true, score {each['from']:.2g} to {each['to']:.2g}", each["share"]))
    return found


def _parts(figure: Answer) -> list[tuple[float, float, dict[str, float | None]]]:
    return list(zip(figure["edges"][:-1], figure["edges"][1:], figure["shares"], strict=True))


def _number(value: float | None) -> str:
    return "too noisy" if value is None else f"{value:.4g}"


def _interval(estimate: dict[str, float | None]) -> str:
    return "" if estimate["value"] is None else f"{_number(estimate['low'])} to {_number(estimate['high'])}"


def _bar(name: str, estimate: dict[str, float | None]) -> str:
    value = estimate["value"]
    return "█" * round(BAR * value) if name.startswith("share") and value is not None else ""


def written_plot(found: Answer, path: Path) -> None:
    """One panel for each statistic with error bars. Raises ConfigError where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib", "pip install 'chorale[demo]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = found["figures"]
    columns = min(2, len(panels))
    grid, axes = plt.subplots(
        -(-len(panels) // columns), columns, figsize=(5.2 * columns, 3.3 * -(-len(panels) // columns)), squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, figure in zip(axes.flat, panels, strict=False):
        _panel(axis, figure)
    spent = found["epsilon_of_question"]
    promised = "no noise" if spent is None else f"epsilon {spent:.3g}, delta {found['delta']:g}, each {found['unit']}"
    grid.suptitle(f"{found['task']}, round {found['round']}: {found['devices']} devices, {promised}", fontsize=10)
    grid.tight_layout()
    grid.savefig(path, dpi=110)
    plt.close(grid)


def _panel(axis: Any, figure: Answer) -> None:
    shown = [(name, each) for name, each in rows(figure, every=True) if name.startswith("share")]
    if not shown:
        shown = [(name, each) for name, each in rows(figure) if name != "count"]
    known = [(name.removeprefix("share "), each) for name, each in shown if each["value"] is not None]
    places = range(len(known))
    values = [each["value"] or 0.0 for _, each in known]
    errors = [[abs((each["value"] or 0.0) - (each[side] or 0.0)) for _, each in known] for side in ("low", "high")]
    axis.bar(places, values, color="#4878a8", width=0.85)
    axis.errorbar(places, values, yerr=errors, fmt="none", ecolor="#222222", elinewidth=1, capsize=2)
    every = max(1, len(known) // 12)
    axis.set_xticks(list(places)[::every], [name for name, _ in known][::every], rotation=35, ha="right", fontsize=7)
    axis.set_title(title(figure), fontsize=9)
