"""recommend_online_retail by country (what goes into the basket next) and recommend_insteval by department (grades).

The subject is the user in both. Online retail: a training row asks for one item of a visit, given the others of that
visit and all earlier ones; the last row of each user, with the item that the training split ends with, is the
validation part, and no other training row holds that item. InstEval: the split has no order, so a row's own grades are
all others of that user in the training rows but for the validation part, and for test rows all in the training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.applying.dataset import Dataset, Rows, every_fifth
from edge_sdk.artifact.recipes import recommendation
from edge_sdk.training.plain import PlainPlan

Table = Any  # a pandas DataFrame; pandas has no types here
Places = npt.NDArray[np.int64]

VISITS: Final = 4  # training rows of a user beside the validation row
UNCLIPPED: Final = 100.0
SEED: Final = 4070  # of which rows: part of the data's split, the same for every seed of a run


def online_retail(folder: Path) -> Dataset:
    """37 countries, nine customers in ten in one of them; 4,070 customers, 2,785 items."""
    tables = folder / "recommend_online_retail"
    items = pd.read_csv(tables / "items.csv.gz", dtype=str)
    country = pd.read_csv(tables / "users.csv.gz").set_index("user").country
    bought = pd.read_csv(tables / "interactions.csv.gz", dtype={"item": str})
    bought = bought.sort_values(["user", "first_bought"], kind="stable")
    train, validation = _visits(bought[bought.split == "train"], country)
    schema = recommendation.schema(list(items.item))
    tastes = recommendation.catalogue([str(text) for text in items.description])
    return Dataset(
        name="recommend_online_retail",
        application="recommendation",
        metric="hit_rate_10",
        higher_is_better=True,
        schema=schema,
        model=lambda seed: recommendation.model(schema, seed, tastes=tastes),
        train=train,
        validation=validation,
        test=_tests(bought, country),
        baseline=0.1629,
        baseline_words="implicit matrix factorisation (ALS), central, blind to the visit; popularity reaches 0.0339",
        unit="customer",
        settings=_settings(
            train,
            {"rounds": 10, "per_customer": 3, "max_grad_norm": 2.0, "learning_rate": 100.0, "server_decay": "cosine"},
            no_privacy={"rounds": 40, "per_customer": 1, "learning_rate": 1.0, "server_optimizer": "adam",
                        "server_learning_rate": 0.06, "server_tau": 1e-6},
            eps8={},
            eps3={"learning_rate": 50.0},
            local={"learning_rate": 10.0, "clip": 1000.0},
        ),
        plan=PlainPlan(learning_rate=0.03, epochs=8, batch_size=512, patience=2),
    )  # fmt: skip


def _visits(bought: Table, country: Table) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """Training rows, and which are for validation: of each user the last."""
    rng = np.random.default_rng(SEED)
    records, answers, users, last = list[dict[str, Any]](), list[str](), list[int](), list[bool]()
    for user, own in bought.groupby("user"):
        items, times = own.item.to_numpy(), own.first_bought.to_numpy()
        end = len(items) - 1
        places = rng.choice(end, min(VISITS, end), replace=False).tolist()
        for place in (*places, end):
            until = items[: end + 1] if place == end else items[:end]
            record = _without(until, times[: len(until)], place)
            if record["history"]:
                records.append(record)
                answers.append(items[place])
                users.append(int(user))
                last.append(place == end)
    subjects = np.array(users, np.int64)
    return Rows(records, answers, [country[user] for user in users], subjects), np.array(last)


def _without(items: Any, times: Any, place: int) -> dict[str, list[str]]:
    """The record just before the item at `place`, as if it were the last of its visit."""
    history = [item for at, item in enumerate(items) if times[at] <= times[place] and at != place]
    then = [time for at, time in enumerate(times) if times[at] <= times[place] and at != place]
    return {"basket": [item for item, time in zip(history, then, strict=True) if time == then[-1]], "history": history}


def _tests(bought: Table, country: Table) -> Rows:
    records, answers, users = [], [], []
    for user, own in bought.groupby("user"):
        known = own[own.split == "train"]
        newest = known[known.first_bought == known.first_bought.iloc[-1]]
        records.append({"basket": newest.item.tolist(), "history": known.item.tolist()})
        answers.append(own[own.split == "test"].item.iloc[0])
        users.append(int(user))
    return Rows(records, answers, [country[user] for user in users], np.array(users, np.int64))


def insteval(folder: Path) -> Dataset:
    """14 departments of 2,520 to 9,528 grades; 2,972 students, 1,128 lecturers."""
    table = pd.read_csv(folder / "recommend_insteval" / "ratings.csv.gz")
    words = {"studage": _words(table.studage), "lectage": _words(table.lectage), "service": ("0", "1")}
    words["department"] = _words(table.client)
    schema = recommendation.rating_schema(_words(table.item), words)
    known = table[table.split == "train"]
    validation = every_fifth(len(known))
    train = _grades(known[~validation], known, own=True)
    settings = {"rounds": 30, "max_grad_norm": 4.0, "learning_rate": 8.0, "server_optimizer": "momentum",
                "server_decay": "linear", "per_customer": 100}  # fmt: skip
    return Dataset(
        name="recommend_insteval",
        application="recommendation",
        metric="rmse",
        higher_is_better=False,
        schema=schema,
        model=lambda seed: recommendation.rating_model(schema, seed),
        train=train,
        validation=validation,
        test=_grades(known, table[table.split == "test"], own=False),
        baseline=1.2021,
        baseline_words="bias of user and item, central; the mean of all grades reaches 1.3334",
        unit="customer",
        settings=_settings(
            train,
            settings,
            no_privacy={"rounds": 40},
            eps8={},
            eps3={"learning_rate": 3.0},
            local={"learning_rate": 1.5, "clip": 20.0},
        ),
        plan=PlainPlan(learning_rate=0.02, epochs=30, batch_size=1024, patience=3),
    )


def _words(column: Table) -> tuple[str, ...]:
    return tuple(str(value) for value in sorted(column.unique()))


def _grades(known: Table, rows: Table, *, own: bool) -> Rows:
    """`own`: known ones may be among the rows; a row's own grade is not part of its history.

    A history is what one department knows: no grade crosses from device to device.
    """
    grades = {key: (group.rating.tolist(), group.index.tolist()) for key, group in known.groupby(["user", "client"])}
    records = []
    for row in rows.itertuples():
        values, places = grades.get((row.user, row.client), ([], []))
        history = [value for value, place in zip(values, places, strict=True) if not own or place != row.Index]
        about = {"studage": row.studage, "lectage": row.lectage, "service": row.service, "department": row.client}
        record = {"own": history, "visitor": str(row.user), "item": row.item, **about}
        records.append({name: value if name == "own" else str(value) for name, value in record.items()})
    return Rows(records, rows.rating.tolist(), rows.client.tolist(), rows.user.to_numpy(np.int64))


def _settings(
    train: Rows,
    both: Mapping[str, Any],
    *,
    no_privacy: Mapping[str, Any],
    eps8: Mapping[str, Any],
    eps3: Mapping[str, Any],
    local: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Every client takes part in every round, each step takes every customer, and no upload is cut.

    `local`: what local noise has of its own: it has the noise of one device where the shared has that of all.
    """
    known = pd.DataFrame({"client": train.clients, "subject": train.subjects}).drop_duplicates()
    customers = known.client.value_counts()
    fleet = {
        "n_min": len(customers),
        "n_max": len(customers),
        "units_per_device": round(customers.mean()),
        "clip": 1.1 * int(customers.max()) * both["max_grad_norm"],
        "sample_rate": 1.0,
        "profile": "P32",
        "placement": "shared",
        **both,
    }
    alone = {"placement": "local", "steps": 1, "accept_little_signal": True, **local}
    return {
        "no_privacy": {**fleet, "max_grad_norm": UNCLIPPED, **no_privacy, "insecure_without_noise": True},
        "eps8_shared": {**fleet, **eps8, "target_epsilon": 8.0},
        "eps3_shared": {**fleet, **eps3, "target_epsilon": 3.0},
        "eps8_local": {**fleet, **eps8, **alone, "target_epsilon": 8.0},
        "eps3_local": {**fleet, **eps3, **alone, "target_epsilon": 3.0},
    }


SETS: Final[Mapping[str, Callable[[Path], Dataset]]] = {
    "recommend_online_retail": online_retail,
    "recommend_insteval": insteval,
}
