"""satisfaction_sfo: the passenger survey of San Francisco airport by boarding area. An answer is the unit of privacy.

`overall` is what the label was made from, and `year` was left out of the baseline: neither is a feature.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pandas as pd

from benchmarks.applying.dataset import Dataset, Rows, every_fifth
from edge_sdk.artifact.recipes import satisfaction

_RATINGS: Final = (
    "art", "food", "shops", "signs", "walkways", "screens", "info_arr", "info_dep", "wifi", "roads", "parking",
    "airtrain", "lt_parking", "rental", "clean_boarding", "clean_airtrain", "clean_rental", "clean_food",
    "clean_restroom", "safe", "ease_getting", "ease_find", "ease_security",
)  # fmt: skip
_CODES: Final = ("strata", "peak", "destgeo", "lang", "flights", "bags", "problem")
_ANSWERS: Final = ("no", "yes")
_SAME: Final = {
    **{key: value for key, value in satisfaction.TASK.items() if key not in ("name", "placement", "target_epsilon")},
    "n_min": 7,
    "units_per_device": 1715,
}


def satisfaction_sfo(folder: Path) -> Dataset:
    """Seven boarding areas of 516 to 3,228 answers, 12,007 of them for training."""
    table = pd.read_csv(folder / "satisfaction_sfo" / "survey.csv.gz")
    learnt = table[table.split == "train"]  # a code that only test rows hold is "other", as it would be on a device
    codes = {name: sorted({str(int(value)) for value in learnt[name].dropna()}) for name in _CODES}
    schema = satisfaction.schema(_RATINGS, codes)
    train, test = (_rows(table[table.split == split]) for split in ("train", "test"))
    local = {"placement": "local", "steps": 1, "accept_little_signal": True}
    return Dataset(
        name="satisfaction_sfo",
        application="satisfaction",
        metric="auc",
        higher_is_better=True,
        schema=schema,
        model=lambda seed: satisfaction.model(schema, seed),
        train=train,
        validation=every_fifth(len(train)),
        test=test,
        baseline=0.9174,
        baseline_words="logistic regression, central; gradient boosting reaches 0.9196",
        unit="record",
        settings={
            "no_privacy": {**_SAME, "placement": "shared", "insecure_without_noise": True},
            "eps8_shared": {**_SAME, "placement": "shared", "target_epsilon": 8.0},
            "eps8_local": {**_SAME, **local, "target_epsilon": 8.0},
            "eps3_shared": {**_SAME, "placement": "shared", "target_epsilon": 3.0},
            "eps3_local": {**_SAME, **local, "target_epsilon": 3.0},
        },
    )


def _rows(part: Any) -> Rows:
    numbers, codes = part[list(_RATINGS)].to_dict("records"), part[list(_CODES)].to_dict("records")
    records = [
        {
            **{name: None if pd.isna(value) else value for name, value in ratings.items()},
            **{name: _code(value) for name, value in words.items()},
        }
        for ratings, words in zip(numbers, codes, strict=True)
    ]
    return Rows(records, [_ANSWERS[int(value)] for value in part.satisfied], part.client.tolist())


def _code(value: float) -> str | None:
    """The survey's codes are names, not amounts."""
    return None if pd.isna(value) else str(int(value))


SETS: Final[dict[str, Callable[[Path], Dataset]]] = {"satisfaction_sfo": satisfaction_sfo}
