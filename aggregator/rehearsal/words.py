"""A rehearsal in words: the outcome for a terminal, and what a page and a terminal call the same thing. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from aggregator.evaluation import LOWER_IS_BETTER
from aggregator.rehearsal.trial import Trial
from edge_sdk.privacy.statement import OFF

RUNS: Final = {
    "start": "always the same answer (the model before round 1)",
    "alone": "each device alone, no privacy",
    "fleet": "the fleet",
    "personalised": "the fleet without privacy, personalised on each device",
    "central_dp": "one trusted centre, same epsilon",
    "fleet_no_privacy": "the fleet without privacy",
    "central": "one centre with all rows, no privacy",
}
NAMES: Final = {"auc": "AUC", "rmse": "RMSE", "mae": "MAE", "log_loss": "log loss", "accuracy": "accuracy"}


def lines(trial: Trial, folder: Path, commands: Sequence[str]) -> list[str]:
    """The outcome for a terminal."""
    name = NAMES.get(trial.metric, trial.metric)
    less = " (less is better)" if trial.metric in LOWER_IS_BETTER else ""
    shown = [f"{name} on the held-out rows{less}:"]
    shown += [f"  {figure(trial.overall(run)):>9}  {words}" for run, words in shown_runs(trial)]
    shown += _device_means(trial)
    shown += promises(trial)[:1] if trial.refused is None else []
    shown += [f"advice: {one}" for one in trial.advice]
    return [*shown, f"report: {folder / 'report.html'}", "next:", *(f"  {one}" for one in commands)]


def _device_means(trial: Trial) -> list[str]:
    """Models of their own may rank worse against each other, pooled, where each ranks its own device's rows better."""
    runs = [run for run in ("fleet_no_privacy", "personalised", "alone") if run in trial.scores]
    if "personalised" not in runs:
        return []
    said = ", ".join(f"{run.replace('_', ' ')} {figure(trial.scores[run].mean(trial.metric))}" for run in runs)
    return [f"mean over devices: {said}"]


def shown_runs(trial: Trial) -> list[tuple[str, str]]:
    """Each run that was and its words; a task without noise is one run, not two."""
    same = trial.spec.insecure_without_noise and "fleet" in trial.scores
    return [
        (run, words) for run, words in RUNS.items() if run in trial.scores and not (same and run == "fleet_no_privacy")
    ]


def figure(value: float | None) -> str:
    """Four digits behind the point, or one of what is large; a dash for what there is not."""
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def promises(trial: Trial) -> list[str]:
    """The statement of what the task promises, or why it cannot."""
    if trial.refused is not None:
        return [f"The private task was refused: {trial.refused}. {trial.refused.hint}."]
    said = trial.statement
    if said is None or said.epsilon is None:
        return [f"{OFF['en']}. What devices send under it gives away their records."]
    return said.lines()
