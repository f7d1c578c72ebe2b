"""The demand sets: kiosks of a bike share, stations of a city's trains, a bank's call centre. One forecast a day ahead.

A record is one day of one site (of one half hour, for the call centre) and knows only what was known the day before:
the window of earlier days, the calendar, and which days are holidays. The validation part is the end of the training
days, as a forecast would meet them. Days before a site has any history are left out of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.tseries.holiday import USFederalHolidayCalendar

from benchmarks.applying.dataset import Dataset, Rows
from edge_sdk.artifact.fields import CategoryField, Field, SeriesField
from edge_sdk.artifact.recipes import demand
from edge_sdk.artifact.schema import Schema
from edge_sdk.training.plain import PlainPlan

WINDOW: Final = 28
HALF_HOURS: Final = "30min"
MOST_BUSINESS_DAYS: Final = 23  # of a month
LOCAL_CLIP: Final = 20.0  # of a change of the weights with its noise, which is several times longer than the change
# Federal holidays on which most offices work.
MINOR: Final = ("Martin Luther King", "Washington", "Columbus", "Veterans")
MINOR_DAYS: Final = ("minor_holiday", *demand.DAYS)

Days = npt.NDArray[np.datetime64]


def _bikeshare(folder: Path) -> Dataset:
    table = _read(folder / "demand_bikeshare" / "daily_by_station.csv.gz", "trips")
    return _dataset(
        "demand_bikeshare",
        table,
        schema=demand.schema(spread=0.5),
        model=demand.model,
        validate_from="2014-09-15",
        baseline=0.3634,
        words="ridge on log lags, pooled; seasonal naive 0.5162; the same ridge per kiosk 0.3782",
        settings=_settings("demand-bikeshare", clients=70, units=308, rounds=100, rate=0.01),
    )


def _stations(folder: Path) -> Dataset:
    table = _read(folder / "demand_cta_stations" / "daily_by_station.csv.gz", "riders")
    return _dataset(
        "demand_cta_stations",
        table,
        schema=demand.schema(calendar=("weekday", "yearday"), days=MINOR_DAYS, spread=0.2),
        model=partial(demand.model, hidden=64),
        validate_from="2015-08-17",
        baseline=0.0598,
        words="gradient boosting, pooled; seasonal naive 0.0804; ridge per station 0.0889",
        settings=_settings("demand-cta-stations", clients=20, units=2601, rounds=300, rate=0.03),
        plan=PlainPlan(learning_rate=0.003, batch_size=1024, epochs=60),
        seeds=10,
    )


def _bank_calls(folder: Path) -> Dataset:
    table = _call_table(folder)
    days = np.sort(table.loc[table["split"] == "train", "day"].unique())
    return _dataset(
        "demand_bank_calls",
        table,
        schema=demand.schema(more=_call_fields(), spread=0.12),
        model=partial(demand.model, season=5, hidden=0),
        validate_from=str(days[-20])[:10],
        baseline=0.0622,
        words="gradient boosting, one site; seasonal naive 0.0994",
        settings={},  # one site alone: there is nobody among whom it could hide
    )


SETS: Final[Mapping[str, Callable[[Path], Dataset]]] = {
    "demand_bikeshare": _bikeshare,
    "demand_cta_stations": _stations,
    "demand_bank_calls": _bank_calls,
}


def _settings(name: str, *, clients: int, units: int, rounds: int, rate: float) -> dict[str, dict[str, Any]]:
    """One step a round over all days of all sites, in all settings. `units`: the most days of one site.

    Two thirds of the steps at epsilon 3 and half under local noise, where a step costs more noise than it brings.
    """
    fleet = {"name": name, "n_min": clients, "n_max": clients, "units_per_device": units}
    every = demand.TASK | fleet | {"rounds": rounds, "server_learning_rate": rate}
    open_task = {key: value for key, value in every.items() if key != "target_epsilon"}
    local = {"placement": "local", "rounds": rounds // 2, "steps": 1, "clip": LOCAL_CLIP}
    return {
        "no_privacy": open_task | {"insecure_without_noise": True, "max_grad_norm": 20.0},
        "eps8_shared": every,
        "eps3_shared": every | {"target_epsilon": 3.0, "rounds": rounds * 2 // 3},
        "eps8_local": every | local,
        "eps3_local": every | local | {"target_epsilon": 3.0},
    }


def _read(file: Path, counts: str) -> pd.DataFrame:
    """Columns client, day, demand, split; sorted, one row a site and day."""
    table = pd.read_csv(file, dtype={"client": str}).rename(columns={counts: "demand"})
    table["day"] = pd.to_datetime(table["date"])
    table["site"] = table["client"]
    minor = file.parent.name == "demand_cta_stations"
    table["kind_of_day"] = kinds_of_day(table["day"].to_numpy(), minor=minor)
    return table.sort_values(["client", "day"], ignore_index=True)


def kinds_of_day(days: Days, *, minor: bool) -> list[str]:
    """ "holiday", the day before or after one, "minor_holiday" where asked for, else "ordinary"."""
    names = USFederalHolidayCalendar().holidays("2003-01-01", "2017-12-31", return_name=True)
    small = np.array([any(word in name for word in MINOR) for name in names])
    major = names.index.to_numpy()[~small]
    kinds = np.full(len(days), "ordinary", object)
    if minor:
        kinds[np.isin(days, names.index.to_numpy()[small])] = "minor_holiday"
    kinds[np.isin(days, major - np.timedelta64(1, "D"))] = "before_holiday"
    kinds[np.isin(days, major + np.timedelta64(1, "D"))] = "after_holiday"
    kinds[np.isin(days, major)] = "holiday"
    return [str(kind) for kind in kinds]


# -- the call centre -------------------------------------------------------------------------------------------------


def _call_table(folder: Path) -> pd.DataFrame:
    """Half hours of business days. What was open is the calendar: a gap of days was a holiday."""
    calls = pd.read_csv(folder / "demand_bank_calls" / "calls_5min.csv.gz", parse_dates=["time"])
    calls["day"], calls["site"] = calls["time"].dt.normalize(), calls["time"].dt.floor(HALF_HOURS).dt.strftime("%H:%M")
    table = calls.groupby(["site", "day"], as_index=False).agg(demand=("calls", "sum"), split=("split", "first"))
    open_days = pd.DataFrame({"day": np.sort(table["day"].unique())})
    open_days["business_day"] = open_days.groupby(open_days["day"].dt.to_period("M")).cumcount() + 1
    open_days["business_day"] = open_days["business_day"].astype(str)
    totals = table.groupby("day")["demand"].sum().to_numpy()
    open_days["whole_days"] = _windows(totals)
    open_days["kind_of_day"] = _around_gaps(open_days["day"])
    table["client"] = "call-centre"
    return table.merge(open_days, on="day").sort_values(["site", "day"], ignore_index=True)


def _call_fields() -> tuple[Field, ...]:
    vocabulary = tuple(str(day) for day in range(1, MOST_BUSINESS_DAYS + 1))
    return SeriesField("whole_days", WINDOW), CategoryField("business_day", vocabulary)


def _around_gaps(days: pd.Series) -> list[str]:
    """After and before a weekday on which the centre was closed; federal holidays are known in advance."""
    dates = days.to_numpy().astype("datetime64[D]")
    holidays = USFederalHolidayCalendar().holidays("2003-01-01", "2003-12-31").to_numpy().astype("datetime64[D]")
    weekdays = np.busday_offset(dates, [[-1], [1]], roll="forward")
    before, after = np.isin(weekdays[1], holidays), ~np.isin(weekdays[0], dates)
    after[0] = False  # nothing is known of the day before the first
    return [
        "after_holiday" if late else "before_holiday" if early else "ordinary"
        for late, early in zip(after, before, strict=True)
    ]


# -- rows ------------------------------------------------------------------------------------------------------------


def _windows(values: npt.NDArray[Any]) -> list[list[float]]:
    """For each place the at most WINDOW values before it, oldest first."""
    listed = [float(value) for value in values]
    return [listed[max(0, place - WINDOW) : place] for place in range(len(listed))]


def _dataset(
    name: str,
    table: pd.DataFrame,
    *,
    schema: Schema,
    model: Callable[[Schema, int], bytes],
    validate_from: str,
    baseline: float,
    words: str,
    settings: Mapping[str, Mapping[str, Any]],
    plan: PlainPlan | None = None,
    seeds: int = 3,
) -> Dataset:
    table["recent"] = [
        window for _, site in table.groupby("site", sort=False) for window in _windows(site["demand"].to_numpy())
    ]
    trained = table[(table["split"] == "train") & (table["recent"].str.len() > 0)]
    tested = table[table["split"] == "test"]
    return Dataset(
        name=name,
        application="demand",
        metric="wape",
        higher_is_better=False,
        schema=schema,
        model=lambda seed: model(schema, seed),
        train=_rows(schema, trained),
        validation=(trained["day"] >= validate_from).to_numpy(dtype=bool),
        test=_rows(schema, tested),
        baseline=baseline,
        baseline_words=words,
        unit="record",
        settings=settings,
        plan=plan,
        seeds=seeds,
    )


def _rows(schema: Schema, table: pd.DataFrame) -> Rows:
    fields = [field.name for field in schema.fields]
    plain = table[[*fields, "site"]].assign(day=table["day"].dt.strftime("%Y-%m-%d"))
    return Rows(plain.to_dict("records"), table["demand"].tolist(), table["client"].tolist())
