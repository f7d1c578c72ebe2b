"""What to do about what a rehearsal found. Pure words; every figure comes from the trial. Refuses nothing."""

from __future__ import annotations

import math
from typing import Any, Final

from aggregator.rehearsal.trial import Trial
from aggregator.task_warnings import warnings as task_warnings
from edge_sdk.artifact.weights import read_vector
from edge_sdk.privacy import charges

NOISY: Final = 5.0  # noise over signal from which the advice names it


def advise(trial: Trial) -> list[str]:
    """What the user should know and can do, the gravest first."""
    said = []
    if trial.refused is not None:
        said.append(f"The private task was refused: {trial.refused}. Remedy: {trial.refused.hint}.")
    said += _roaming(trial)
    if trial.terms is not None:
        length = read_vector(trial.model).size
        ratio = charges.noise_over_signal(trial.terms, length, trial.spec.rounds, trial.spec.n_min)
        if ratio > NOISY:
            said.append(
                f"The noise is {ratio:.1f} times the most that the rounds could learn: more devices or rows, a larger "
                "epsilon, fewer columns or (for records) placement shared would help."
            )
        said += task_warnings(trial.spec, trial.terms, length, trial.schema)
    able = int((trial.train > 0).sum())
    if trial.spec.n_max < able:
        said.append(
            f"{trial.spec.n_max:,} of {able:,} devices a round, drawn anew each time; the centre with the same epsilon "
            "is given as many devices' rows a step. --task with a larger n_max and n_min in it takes more, and longer."
        )
    without = len(trial.train) - able
    if without:
        said.append(f"{without} of {len(trial.names)} devices have no training rows and take no part.")
    return said


def roaming(trial: Trial) -> dict[str, Any] | None:
    """Customers on several devices, and what they pay; None where nobody is, or the unit is another."""
    found = trial.roaming
    if found is None or not found.several:
        return None
    return {
        "customers": found.people,
        "on_several_devices": found.several,
        "share": found.several / found.people,
        "most_devices": found.most,
        "epsilon_on_two": _epsilon(trial, 2),
        "epsilon_on_most": _epsilon(trial, found.most),
    }


def _epsilon(trial: Trial, devices: int) -> float | None:
    """None: no noise, a refused task, or no bound."""
    if trial.terms is None or trial.terms.insecure_without_noise:
        return None
    length = read_vector(trial.model).size
    value = charges.epsilon_on_devices(trial.terms, length, trial.spec.rounds, devices)
    return value if value is not None and math.isfinite(value) else None


def _roaming(trial: Trial) -> list[str]:
    found = roaming(trial)
    if found is None or trial.spec.insecure_without_noise:
        return []
    most, two, worst = found["most_devices"], found["epsilon_on_two"], found["epsilon_on_most"]
    price = ""
    if trial.terms is not None:
        promised = f"epsilon {two:.3g} on two devices" if two is not None else "no bound on two devices"
        if most > 2:
            promised += f", {worst:.3g} on {most}" if worst is not None else f", no bound on {most}"
        shared = trial.terms.placement == "shared"
        why = "all they add goes into one sum" if shared else "the spends of their devices add up"
        price = f" They are promised less: {promised}, because {why}."
    return [
        f"{found['on_several_devices']:,} of {found['customers']:,} customers ({found['share']:.1%}) have training "
        f"rows on more than one device, at most on {most}. Each device counts them by itself.{price} Remedy: --by a "
        "column that keeps a customer on one device, or --by the column of --subject with --devices N to group whole "
        "customers, or --placement local."
    ]
