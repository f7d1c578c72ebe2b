"""intents_banking77 by desk, intents_clinc150 by domain, intents_multidogo by industry, intents_crosswoz_zh by worker.

Conversations of multidogo and dialogues of crosswoz are the customers; elsewhere a text is the unit of privacy. Texts
of clinc150 that are out of scope are in `clinc150_foreign`: `benchmarks/refusals.py` measures them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd

from benchmarks.applying import texts
from benchmarks.applying.dataset import Dataset, Rows, every_fifth
from edge_sdk.artifact.recipes import service
from edge_sdk.artifact.recipes.texts import Language
from edge_sdk.protocol.messages import Unit

_FREE: Final = {"server_learning_rate": 0.33, "max_grad_norm": 4.5}  # no text's gradient is longer
_FREE_CUSTOMERS: Final = {**_FREE, "max_grad_norm": 90.0}


def intents_banking77(folder: Path) -> Dataset:
    """Seven desks whose intents do not overlap, 10,003 training texts."""
    return _dataset(
        "intents_banking77",
        pd.read_csv(folder / "intents_banking77" / "banking77.csv.gz", keep_default_na=False),
        baseline=0.8906,
        no_privacy=_FREE,
        eps8={},
        eps3={"server_learning_rate": 0.067},
        apart=True,
    )


def intents_clinc150(folder: Path) -> Dataset:
    """The 150 intents in scope, ten domains of 15 each, 18,000 training texts."""
    table = _clinc(folder)
    return _dataset(
        "intents_clinc150",
        table[table.client != "oos"],
        baseline=0.916,
        no_privacy=_FREE,
        eps8={},
        eps3={"server_learning_rate": 0.067},
        apart=True,
    )


def clinc150_foreign(folder: Path) -> tuple[list[str], list[str]]:
    """Texts out of scope: those of the training split (for a threshold), and the test's."""
    table = _clinc(folder)
    parts = [table[(table.client == "oos") & (table.split == split)] for split in ("train", "test")]
    return parts[0].text.tolist(), parts[1].text.tolist()


def intents_multidogo(folder: Path) -> Dataset:
    """Three industries, 28 intents, 38,727 training turns of 5,632 conversations."""
    return _dataset(
        "intents_multidogo",
        _dogo(folder),
        subject="conversation",
        baseline=0.8971,
        no_privacy=_FREE_CUSTOMERS,
        eps8={},
        eps3={"server_learning_rate": 0.033},
    )


def intents_multidogo_unseen(folder: Path) -> Dataset:
    """The same, scored on the test texts that no training row has."""
    table = _dogo(folder)
    seen = set(table[table.split == "train"].text)
    return _dataset(
        "intents_multidogo_unseen",
        table[(table.split == "train") | ~table.text.isin(seen)],
        subject="conversation",
        baseline=0.8504,
        no_privacy=_FREE_CUSTOMERS,
        eps8={},
        eps3={"server_learning_rate": 0.033},
    )


def intents_crosswoz_zh(folder: Path) -> Dataset:
    """57 workers with 399 training dialogues between them: so few units that noise weighs heavily."""
    return _dataset(
        "intents_crosswoz_zh",
        pd.read_csv(folder / "intents_crosswoz_zh" / "crosswoz.csv.gz", keep_default_na=False),
        language="zh",
        subject="dialogue",
        baseline=0.8768,
        no_privacy=_FREE_CUSTOMERS,
        eps8={"server_learning_rate": 0.033, "rounds": 30, "max_grad_norm": 1.5},
        eps3={"server_learning_rate": 0.033, "rounds": 30, "max_grad_norm": 1.5},
    )


def _clinc(folder: Path) -> Any:
    return pd.read_csv(folder / "intents_clinc150" / "clinc150.csv.gz", keep_default_na=False)


def _dogo(folder: Path) -> Any:
    return pd.read_csv(folder / "intents_multidogo" / "multidogo.csv.gz", keep_default_na=False)


def _dataset(
    name: str,
    table: Any,
    *,
    baseline: float,
    no_privacy: Mapping[str, Any],
    eps8: Mapping[str, Any],
    eps3: Mapping[str, Any],
    language: Language = "en",
    subject: str = "",
    apart: bool = False,
) -> Dataset:
    learned, asked = table[table.split == "train"], table[table.split == "test"]
    schema = service.schema(sorted(set(learned.label)), language=language)
    train: Rows = texts.rows(learned, learned.label, subject)
    length = (schema.width + 1) * schema.label.outputs
    unit: Unit = "customer" if subject else "record"
    return Dataset(
        name=name,
        application="service",
        metric="accuracy",
        higher_is_better=True,
        schema=schema,
        model=lambda seed: service.model(schema, seed),
        train=train,
        validation=texts.fifth_of_subjects(learned, subject) if subject else every_fifth(len(train)),
        test=texts.rows(asked, asked.label, subject),
        baseline=baseline,
        baseline_words="logistic regression on TF-IDF, central",
        unit=unit,
        settings=texts.settings(
            service.TASK, train, length=length, unit=unit, no_privacy=no_privacy, eps8=eps8, eps3=eps3
        ),
        apart=apart,
    )


SETS: Final[dict[str, Callable[[Path], Dataset]]] = {
    "intents_banking77": intents_banking77,
    "intents_clinc150": intents_clinc150,
    "intents_multidogo": intents_multidogo,
    "intents_multidogo_unseen": intents_multidogo_unseen,
    "intents_crosswoz_zh": intents_crosswoz_zh,
}
