"""What all sets of texts share: rows from a table, one step a round over all units, each client in every sum."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.applying.dataset import Rows, subject_numbers

Table = Any  # a pandas DataFrame; pandas has no types here
_SHARED: Final = (
    "delta", "rounds", "sample_rate", "max_grad_norm", "learning_rate", "server_optimizer", "server_learning_rate",
    "metric", "profile",
)  # fmt: skip
_MOST_NOISE: Final = 13.0  # above the noise multiplier of every setting here


def rows(table: Table, answers: Sequence[str], subject: str = "") -> Rows:
    """Records {"text"}; `answers` as the schema names them; `subject`: the column that says whose a row is."""
    return Rows(
        [{"text": text} for text in table.text],
        list(answers),
        table.client.astype(str).tolist(),
        subject_numbers(table[subject].astype(str).tolist()) if subject else None,
    )


def fifth_of_subjects(table: Table, subject: str) -> npt.NDArray[np.bool_]:
    """Whole subjects: those whose name hashes to 0 modulo 5, but never a client's first, so that each still trains."""
    firsts = set(table.drop_duplicates("client")[subject])
    return np.array(
        [zlib.crc32(str(name).encode()) % 5 == 0 and name not in firsts for name in table[subject]], np.bool_
    )


def settings(
    task: Mapping[str, Any],
    train: Rows,
    *,
    length: int,
    unit: str = "record",
    no_privacy: Mapping[str, Any],
    eps8: Mapping[str, Any],
    eps3: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """The recipe's task with the cohort and divisor of these rows, for a model of `length` weights.

    Every client is taken to add its share of the noise, as a trusted centre is taken to add all of it. Clips are so
    wide that no device's sum, or step with its noise, is ever cut. The local placement has the noise of one device
    where the shared has that of all, so it takes the rates of epsilon 3 at epsilon 8, and half of them at 3.
    """
    clients = np.unique(np.array(train.clients), return_inverse=True)[1]
    owners = clients
    if unit == "customer" and train.subjects is not None:
        owners = clients[np.unique(train.subjects, return_index=True)[1]]
    units = np.bincount(owners)
    fleet = {
        **{key: task[key] for key in _SHARED},
        "unit": unit,
        "n_min": len(units),
        "n_max": len(units),
        "units_per_device": max(1, round(float(units.mean()))),
    }

    def local(own: Mapping[str, Any]) -> dict[str, Any]:
        clip = own.get("max_grad_norm", task["max_grad_norm"])
        longest = clip * (float(units.max()) + _MOST_NOISE * math.sqrt(length)) / float(units.mean())
        clip = 1.1 * task["learning_rate"] * longest
        return {"placement": "local", "steps": 1, "accept_little_signal": True, "clip": clip, **own}

    def shared(own: Mapping[str, Any]) -> dict[str, Any]:
        clip = own.get("max_grad_norm", task["max_grad_norm"])
        return {"placement": "shared", "clip": 1.1 * clip * float(units.max()), **own}

    return {
        "no_privacy": {**fleet, **shared(no_privacy), "insecure_without_noise": True},
        "eps8_shared": {**fleet, **shared(eps8), "target_epsilon": 8.0},
        "eps8_local": {**fleet, **local(eps3), "target_epsilon": 8.0},
        "eps3_shared": {**fleet, **shared(eps3), "target_epsilon": 3.0},
        "eps3_local": {
            **fleet,
            **local({**eps3, "server_learning_rate": eps3["server_learning_rate"] / 2}),
            "target_epsilon": 3.0,
        },
    }
