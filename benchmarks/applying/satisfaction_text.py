"""satisfaction_airline_tweets by airline, satisfaction_zh_shopping by product category. A text is the unit of privacy.

`reason` of a tweet is filled for negative ones only: no feature. So is `created`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from benchmarks.applying import texts
from benchmarks.applying.dataset import Dataset, every_fifth
from edge_sdk.artifact.recipes import satisfaction_text
from edge_sdk.artifact.schema import Schema

_REVIEWS: Final = ("negative", "positive")


def satisfaction_airline_tweets(folder: Path) -> Dataset:
    """Six airlines, three answers, 11,525 training tweets."""
    table = pd.read_csv(folder / "satisfaction_airline_tweets" / "tweets.csv.gz", keep_default_na=False)
    schema = satisfaction_text.schema(("negative", "neutral", "positive"), language="en")
    return _dataset(
        "satisfaction_airline_tweets",
        table,
        table.label.tolist(),
        schema,
        baseline=0.8132,
        no_privacy={"server_learning_rate": 0.17, "max_grad_norm": 4.5},
        eps8={},
        eps3={"server_learning_rate": 0.033},
    )


def satisfaction_zh_shopping(folder: Path) -> Dataset:
    """Ten product categories, 17,725 training reviews."""
    table = pd.read_csv(folder / "satisfaction_zh_shopping" / "reviews.csv.gz", keep_default_na=False)
    return _dataset(
        "satisfaction_zh_shopping",
        table,
        [_REVIEWS[int(value)] for value in table.label],
        satisfaction_text.schema(_REVIEWS, language="zh"),
        baseline=0.9272,
        no_privacy={"server_learning_rate": 0.33, "max_grad_norm": 4.5},
        eps8={},
        eps3={"server_learning_rate": 0.033},
    )


def _dataset(
    name: str,
    table: Any,
    answers: Sequence[str],
    schema: Schema,
    *,
    baseline: float,
    no_privacy: Mapping[str, Any],
    eps8: Mapping[str, Any],
    eps3: Mapping[str, Any],
) -> Dataset:
    table = table.assign(answer=answers)
    learned, asked = table[table.split == "train"], table[table.split == "test"]
    train = texts.rows(learned, learned.answer)
    length = (schema.width + 1) * schema.label.outputs
    return Dataset(
        name=name,
        application="satisfaction",
        metric="accuracy",
        higher_is_better=True,
        schema=schema,
        model=lambda seed: satisfaction_text.model(schema, seed),
        train=train,
        validation=every_fifth(len(train)),
        test=texts.rows(asked, asked.answer),
        baseline=baseline,
        baseline_words="logistic regression on TF-IDF, central",
        unit="record",
        settings=texts.settings(
            satisfaction_text.TASK, train, length=length, no_privacy=no_privacy, eps8=eps8, eps3=eps3
        ),
    )


SETS: Final[dict[str, Callable[[Path], Dataset]]] = {
    "satisfaction_airline_tweets": satisfaction_airline_tweets,
    "satisfaction_zh_shopping": satisfaction_zh_shopping,
}
