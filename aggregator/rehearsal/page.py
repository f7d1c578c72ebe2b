"""The page of a rehearsal: figures, plots and tables in one HTML file that needs no other. Writes nothing."""

from __future__ import annotations

import html
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from aggregator.evaluation import LOWER_IS_BETTER
from aggregator.rehearsal import plots
from aggregator.rehearsal.against import MOST_ALONE
from aggregator.rehearsal.trial import Trial
from aggregator.rehearsal.understood import Understood
from aggregator.rehearsal.words import NAMES, RUNS, figure, promises, shown_runs
from edge_sdk.artifact.decide import in_units, probabilities

TEMPLATE: Final = Path(__file__).with_name("report.html")
MOST_LISTED: Final = 200
MOST_CONFUSED: Final = 12


def page(trial: Trial, found: Understood, data: str, commands: Sequence[str], seconds: float) -> str:
    """The HTML. `commands`: what to run next; `seconds`: what all took."""
    title, plot, words = _quality(trial)
    alone = _device_rows(trial)
    template = string.Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(f"{found.answers.name} in {data}"),
        headline=html.escape(_headline(trial)),
        figures=_figures(trial),
        warnings="".join(f'<p class="warn">{html.escape(one)}</p>' for one in (*trial.advice, *found.warnings)),
        promise=html.escape(" ".join(f"{one[:1].upper()}{one[1:].rstrip('.')}." for one in promises(trial))),
        epsilon_plot=_spent(trial),
        curve_plot=_curve(trial),
        runs=_run_table(trial),
        runs_words=html.escape(_runs_words(trial)),
        device_plot=plots.by_device(alone, NAMES.get(trial.metric, trial.metric)) if alone else "",
        device_words=html.escape(_device_words(trial, alone)),
        devices=_device_table(trial),
        quality_title=title,
        quality_plot=plot,
        quality_words=html.escape(words),
        cost=html.escape(_cost(trial)),
        assumptions=_assumptions(found),
        tried=html.escape("; ".join(_tried(trial))),
        next_words=html.escape(_next_words(trial)),
        commands=html.escape("\n".join(commands)),
        footer=html.escape(_footer(trial, seconds)),
    )


def _headline(trial: Trial) -> str:
    name, fleet = NAMES.get(trial.metric, trial.metric), trial.overall("fleet")
    alone, centre = trial.overall("alone"), trial.overall("central")
    devices = f"{len(trial.names)} devices"
    if fleet is None:
        bare = trial.overall("fleet_no_privacy")
        return (
            f"This task cannot be private as it is (see below). Without privacy {devices} reach {name} {figure(bare)}; "
            f"one centre {figure(centre)}."
        )
    private = "" if trial.spec.insecure_without_noise else " with privacy"
    return (
        f"{devices} together reach {name} {figure(fleet)}{private}; alone they reach {figure(alone)}, and one centre "
        f"that sees every row reaches {figure(centre)}, both without privacy."
    )


def _figures(trial: Trial) -> str:
    name, promised = NAMES.get(trial.metric, trial.metric), trial.statement
    shown = [(figure(trial.overall(run)), f"{name}, {words}") for run, words in shown_runs(trial) if run != "start"]
    if promised is not None and promised.epsilon is not None:
        words = f"epsilon for each {promised.unit}, delta {promised.delta:g}, {promised.placement} noise"
        shown.append((f"{promised.epsilon:.2f}", words))
    return "".join(f"<div><b>{value}</b><span>{html.escape(what)}</span></div>" for value, what in shown)


def _spent(trial: Trial) -> str:
    epsilons = [one.epsilon for one in trial.figures if one.epsilon is not None]
    if not epsilons:
        return ""
    return plots.spent([one.round for one in trial.figures], epsilons, trial.spec.unit)


def _curve(trial: Trial) -> str:
    styles = {
        "central": (plots.CENTRAL, "--"),
        "central_dp": (plots.PRIVATE, "-."),
        "fleet_no_privacy": (plots.FLEET, ":"),
        "alone": (plots.ALONE, "--"),
    }
    level = [
        (RUNS[run], value, *style)
        for run, style in styles.items()
        if (value := trial.overall(run)) is not None and (run, RUNS[run]) in shown_runs(trial)
    ]
    if not level and not trial.curve:
        return ""
    return plots.by_round(
        trial.curve, level, NAMES.get(trial.metric, trial.metric), private=not trial.spec.insecure_without_noise
    )


def _run_table(trial: Trial) -> str:
    metrics = _metrics(trial)
    head = "".join(f'<th class="n">{NAMES.get(one, one.replace("_", " "))}</th>' for one in metrics)
    body = ""
    for run, words in shown_runs(trial):
        scores = trial.scores[run]
        spread = scores.spread(trial.metric)
        low, high = (float(np.quantile(spread, at)) if spread else None for at in (0.1, 0.9))
        middle = f"{figure(scores.mean(trial.metric))} ({figure(low)} to {figure(high)})"
        values = "".join(f'<td class="n">{figure(scores.overall.get(one))}</td>' for one in metrics)
        body += f'<tr><td>{html.escape(words)}</td>{values}<td class="n">{middle}</td></tr>'
    return f'<table><tr><th></th>{head}<th class="n">device mean (10 % to 90 %)</th></tr>{body}</table>'


def _metrics(trial: Trial) -> list[str]:
    others = {
        "binary": ("accuracy", "log_loss", "calibration_error"),
        "classes": ("macro_f1", "log_loss"),
        "number": ("rmse", "mae", "wape"),
    }
    return list(dict.fromkeys((trial.metric, *others[trial.schema.label.kind])))


def _runs_words(trial: Trial) -> str:
    least = ", ".join(NAMES.get(one, one.replace("_", " ")) for one in _metrics(trial) if one in LOWER_IS_BETTER)
    return (
        f"All runs answer the same {int(trial.test.sum()):,} held-out rows, by which nothing was chosen; all train on "
        f"the same {int(trial.train.sum()):,} rows, from the same {trial.choice.candidate.name} model. Less is better "
        f"for {least}. Each device alone: its own rows by its own model.{_sampled(trial)}"
    )


def _sampled(trial: Trial) -> str:
    """Where there are many devices, some stand for all in the runs that train each by itself."""
    able = int(((trial.train > 0) & (trial.test > 0)).sum())
    return f" Alone and personalised are {MOST_ALONE} devices drawn from all." if able > MOST_ALONE else ""


def _device_rows(trial: Trial) -> list[tuple[str, float, float]]:
    if "alone" not in trial.scores or trial.reported not in trial.scores:
        return []
    own, fleet = trial.scores["alone"].by_device, trial.scores[trial.reported].by_device
    return [
        (name, own[name][trial.metric], fleet[name][trial.metric])
        for name in trial.names
        if trial.metric in own.get(name, {}) and trial.metric in fleet.get(name, {})
    ]


def _device_words(trial: Trial, rows: Sequence[tuple[str, float, float]]) -> str:
    if not rows:
        return "No device has enough test rows of its own to be measured alone."
    sign = -1 if trial.metric in LOWER_IS_BETTER else 1
    better = sum(sign * (fleet - own) > 0 for _, own, fleet in rows)
    equal = sum(fleet == own for _, own, fleet in rows)
    who = "The fleet's model" if trial.reported == "fleet" else "The fleet's model without privacy"
    worse = len(rows) - better - equal
    return (
        f"{who} is better than what a device would learn alone on {better} of {len(rows)} devices, as good on {equal} "
        f"and worse on {worse}."
    )


def _device_table(trial: Trial) -> str:
    columns = [run for run in ("alone", "fleet", "fleet_no_privacy", "personalised") if run in trial.scores]
    short = {
        "alone": "alone",
        "fleet": "fleet",
        "fleet_no_privacy": "fleet, no privacy",
        "personalised": "personalised",
    }
    head = "".join(f'<th class="n">{short[run]}</th>' for run in columns)
    body = ""
    for place in np.argsort(-trial.train, kind="stable")[:MOST_LISTED].tolist():
        name = trial.names[place]
        values = (trial.scores[run].by_device.get(name, {}).get(trial.metric) for run in columns)
        cells = "".join(f'<td class="n">{figure(value)}</td>' for value in values)
        counts = f'<td class="n">{trial.train[place]:,}</td><td class="n">{trial.test[place]:,}</td>'
        body += f"<tr><td>{html.escape(name[:80])}</td>{counts}{cells}</tr>"
    more = len(trial.names) - MOST_LISTED
    rest = f"<tr><td>and {more:,} more</td></tr>" if more > 0 else ""
    counted = '<th class="n">training rows</th><th class="n">test rows</th>'
    return f"<table><tr><th>device</th>{counted}{head}</tr>{body}{rest}</table>"


def _quality(trial: Trial) -> tuple[str, str, str]:
    """Title, picture and words: are probabilities right, which classes are mixed up, how far off are numbers?"""
    label, outputs = trial.schema.label, trial.outputs
    whose = "the fleet's model" if trial.reported == "fleet" else "the fleet's model without privacy"
    if outputs is None:
        return "Quality", "", ""
    truth = trial.heldout.targets
    if label.kind == "binary":
        p = probabilities(label, outputs)[:, 1]
        plot = plots.calibration(
            p, truth.astype(np.float64), f"predicted probability of {label.names[1][:30]!r}", "share that is"
        )
        return "Are the probabilities right?", plot, f"Held-out rows by {whose}, in tenths by prediction."
    if label.kind == "number" and trial.heldout.values is not None:
        values = in_units(label, outputs, trial.heldout.level)[:, label.median]
        plot = plots.calibration(values, trial.heldout.values, f"predicted {label.name[:30]}", "mean of the truth")
        return "Are the numbers right?", plot, f"Held-out rows by {whose}, in tenths by prediction."
    return _confused(trial, outputs, whose)


def _confused(trial: Trial, outputs: Any, whose: str) -> tuple[str, str, str]:
    names = trial.schema.label.names
    answered, truth = outputs.argmax(axis=1), trial.heldout.targets.astype(np.int64)
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (truth, answered), 1)
    largest = np.sort(np.argsort(-counts.sum(axis=1), kind="stable")[:MOST_CONFUSED])
    some = f" The {MOST_CONFUSED} most frequent of {len(names)} classes." if len(names) > MOST_CONFUSED else ""
    plot = plots.confusion(counts[np.ix_(largest, largest)], [names[place] for place in largest])
    return "Which classes are mixed up?", plot, f"Shares of each true class among the held-out rows, by {whose}.{some}"


def _cost(trial: Trial) -> str:
    if not trial.figures:
        return "No private round was run."
    seconds = sum(one.seconds for one in trial.figures)
    shares = sum(one.devices for one in trial.figures)
    each, size = seconds / max(1, shares), trial.figures[-1].upload_bytes
    masks = "masking and opening included" if trial.masked else "without masks"
    return (
        f"Each device sends {size:,} bytes a round, {size * len(trial.figures) / 1e6:,.1f} MB in all "
        f"{len(trial.figures)} rounds (masked and with its sealed shares). On this machine a device's round took "
        f"{1000 * each:.1f} ms of computing, {masks}: {shares / seconds:,.0f} devices a second. One plain pass over "
        f"all training rows took {trial.plain_seconds:.2f} s. A real device also takes about 2 s "
        "to start its training process."
    )


def _assumptions(found: Understood) -> str:
    body = "".join(
        f"<tr><td>{html.escape(one.column[:80])}</td><td>{html.escape(one.taken_as)}</td>"
        f"<td>{html.escape(one.why)}</td>"
        f"<td><code>{html.escape(one.override)}</code></td></tr>"
        for one in found.assumptions
    )
    head = "".join(f"<th>{words}</th>" for words in ("column", "taken as", "why", "to change it"))
    return f'<table class="assumed"><tr>{head}</tr>{body}</table>'


def _tried(trial: Trial) -> list[str]:
    """Each model at its best pace."""
    best: dict[str, float] = {}
    for name, _, _, value in trial.choice.tried:
        if np.isfinite(value):
            best[name] = min(value, best.get(name, value))
    return [f"{name} loss {figure(value)}" for name, value in best.items()] or ["too few rows to judge by"]


def _next_words(trial: Trial) -> str:
    if trial.refused is not None:
        return "The task as it was rehearsed would be refused, see above. Once that is put right:"
    extra = " It has no noise: devices refuse it unless their owners allow that." * trial.spec.insecure_without_noise
    return (
        "task.json and model.onnx are the task as it was rehearsed; the model is untrained. A round opens with "
        f"{trial.spec.n_min} devices or more.{extra} To start a fleet:"
    )


def _footer(trial: Trial, seconds: float) -> str:
    return (
        f"{int(trial.train.sum() + trial.test.sum()):,} rows, {len(trial.names):,} virtual devices in one process, "
        f"{'with' if trial.masked else 'without'} masks, {seconds:.0f} s in all."
    )
