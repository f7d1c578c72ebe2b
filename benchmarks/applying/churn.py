"""churn_mlc by state, churn_telco by payment method (and by service and contract), churn_online_retail by cohort.

A row is a customer, so the record is the unit of privacy. Left out as features: identifiers, the label's own source,
charges that are multiples of minutes, and the column that says which client holds the row, where it is made from one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, Final

import pandas as pd

from benchmarks.applying.dataset import Dataset, Rows, every_fifth
from benchmarks.applying.scaling import number
from edge_sdk.artifact.recipes import churn
from edge_sdk.artifact.schema import NumberField, Schema

Table = Any  # a pandas DataFrame; pandas has no types here
ANSWERS: Final = ("no", "yes")

_MLC_NUMBERS: Final = (
    "account_length", "number_vmail_messages", "total_day_minutes", "total_day_calls", "total_eve_minutes",
    "total_eve_calls", "total_night_minutes", "total_night_calls", "total_intl_minutes", "total_intl_calls",
    "number_customer_service_calls",
)  # fmt: skip
_MLC_WORDS: Final = ("international_plan", "voice_mail_plan", "area_code")
_TELCO_NUMBERS: Final = ("tenure", "MonthlyCharges", "TotalCharges")
_TELCO_OTHER: Final = ("customerID", "Churn", "client", "client9", "split")
_RETAIL_NUMBERS: Final = (
    "recency_days", "tenure_days", "orders", "lines", "items", "units", "spend", "avg_order_value", "returns",
    "orders_90d", "spend_90d", "mean_gap_days", "weekend_share", "hour_mean",
)  # fmt: skip
_RETAIL_STRAIGHT: Final = ("tenure_days", "weekend_share", "hour_mean")


def churn_mlc(folder: Path) -> Dataset:
    """51 states of 52 to 158 rows. Reasons to leave hold together only in pairs, so the model has a hidden layer."""
    table = pd.read_csv(folder / "churn_mlc" / "mlc_churn.csv.gz")
    train = table[table.split == "train"]
    numbers = [number(name, train[name].tolist()) for name in _MLC_NUMBERS]
    schema = churn.schema(numbers, _vocabularies(train, _MLC_WORDS))
    bent = {"rounds": 200, "sample_rate": 1.0}
    return _dataset(
        "churn_mlc",
        _rows(table, schema, "churn", "state"),
        schema,
        churn.bent_model,
        baseline=0.8305,
        baseline_words="logistic regression, central; gradient boosting reaches 0.9321",
        settings=_settings(
            51, 3977,
            no_privacy={**bent, "max_grad_norm": 8.0, "learning_rate": 1.0},
            private={**bent, "rounds": 300, "max_grad_norm": 2.0, "learning_rate": 0.5},
            eps8_local={"rounds": 200, "learning_rate": 0.25},
            eps3_local={"rounds": 100},
        ),
        seeds=10,
    )  # fmt: skip


def churn_telco(folder: Path, client: str = "client") -> Dataset:
    """Four payment methods, or with `client9` nine pairs of service and contract."""
    table = pd.read_csv(folder / "churn_telco" / "telco.csv.gz").astype({"SeniorCitizen": str})
    train = table[table.split == "train"]
    words = [name for name in table.columns if name not in (*_TELCO_NUMBERS, *_TELCO_OTHER)]
    numbers = [
        number("tenure", train.tenure.tolist()),
        number("MonthlyCharges", train.MonthlyCharges.tolist()),
        number("TotalCharges", train.TotalCharges.tolist(), log=True, missing=True),
    ]
    schema = churn.schema(numbers, _vocabularies(train, words))
    same = {"max_grad_norm": 4.0, "learning_rate": 0.5}
    return _dataset(
        "churn_telco" if client == "client" else f"churn_telco_{client}",
        _rows(table, schema, "Churn", client),
        schema,
        churn.model,
        baseline=0.8538,
        baseline_words="logistic regression, central; gradient boosting reaches 0.8565",
        settings=_settings(table[client].nunique(), len(train), no_privacy=same, private=same),
    )


def churn_online_retail(folder: Path) -> Dataset:
    """Nine cohorts of UK customers by the month of their first purchase, and all abroad."""
    table = pd.read_csv(folder / "churn_online_retail" / "customers.csv.gz")
    train = table[table.split == "train"]
    numbers = [_retail_number(name, train[name].tolist()) for name in _RETAIL_NUMBERS]
    schema = churn.schema(numbers, {"country": ["United Kingdom"], **_vocabularies(train, ["first_month"])})
    same = {"max_grad_norm": 4.0, "learning_rate": 0.0375}
    return _dataset(
        "churn_online_retail",
        _rows(table, schema, "churn", "client"),
        schema,
        churn.model,
        baseline=0.7741,
        baseline_words="logistic regression, central; gradient boosting reaches 0.7555",
        settings=_settings(10, len(train), no_privacy=same, private=same),
    )


def _retail_number(name: str, values: list[float]) -> NumberField:
    return number(name, values, log=name not in _RETAIL_STRAIGHT, missing=name == "mean_gap_days")


def _vocabularies(train: Table, names: Any) -> dict[str, list[str]]:
    return {name: sorted(train[name].unique()) for name in names}


def _rows(table: Table, schema: Schema, label: str, client: str) -> tuple[Rows, Rows]:
    """Train and test."""
    fields = [field.name for field in schema.fields]
    parts = [table[table.split == split] for split in ("train", "test")]
    first, second = (
        Rows(
            [{name: None if pd.isna(value) else value for name, value in row.items()} for row in _plain(part[fields])],
            [ANSWERS[int(value)] for value in part[label]],
            part[client].tolist(),
        )
        for part in parts
    )
    return first, second


def _plain(part: Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = part.to_dict("records")
    return rows


def _settings(
    clients: int,
    rows: int,
    *,
    no_privacy: Mapping[str, Any],
    private: Mapping[str, Any],
    **others: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """What all settings of a set share: one step a round over every record, and all its clients in every sum.

    `others`: what a setting, by its name, has of its own.
    """
    fleet = {
        **{
            key: churn.TASK[key]
            for key in ("rounds", "sample_rate", "server_optimizer", "server_decay", "profile", "metric", "delta")
        },
        "unit": "record",
        "n_min": clients,
        "units_per_device": round(rows / clients),
    }
    placed: dict[str, dict[str, Any]] = {
        "shared": {"placement": "shared"},
        "local": {"placement": "local", "steps": 1, "accept_little_signal": True},
    }
    made = {"no_privacy": {**fleet, **placed["shared"], **no_privacy, "insecure_without_noise": True}}
    for epsilon, placement in product((8, 3), placed):
        name = f"eps{epsilon}_{placement}"
        own = others.get(name, {})
        made[name] = {**fleet, **placed[placement], **private, **own, "target_epsilon": float(epsilon)}
    return made


def _dataset(
    name: str,
    rows: tuple[Rows, Rows],
    schema: Schema,
    recipe: Callable[[Schema, int], bytes],
    *,
    baseline: float,
    baseline_words: str,
    settings: Mapping[str, Mapping[str, Any]],
    seeds: int = 3,
) -> Dataset:
    train, test = rows
    return Dataset(
        name=name,
        application="churn",
        metric="auc",
        higher_is_better=True,
        schema=schema,
        model=lambda seed: recipe(schema, seed),
        train=train,
        validation=every_fifth(len(train)),
        test=test,
        baseline=baseline,
        baseline_words=baseline_words,
        unit="record",
        settings=settings,
        seeds=seeds,
    )


SETS: Final[dict[str, Callable[[Path], Dataset]]] = {
    "churn_mlc": churn_mlc,
    "churn_telco": churn_telco,
    "churn_telco_client9": lambda folder: churn_telco(folder, "client9"),
    "churn_online_retail": churn_online_retail,
}
