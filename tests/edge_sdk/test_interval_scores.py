"""Intervals that follow what came: the rule by itself, then what the device keeps of it, and what takes that away."""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
from datetime import date, timedelta
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.artifact.features import decide, intervals, scores
from edge_sdk.artifact.recipes import demand
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.cli import main
from edge_sdk.config import load
from edge_sdk.examples_store import ExamplesStore
from edge_sdk.interval_scores import FEWEST, KEPT, IntervalScores, threshold
from edge_sdk.recorder import Recorder, open_examples
from edge_sdk.surroundings import Live
from edge_sdk.testing import FakeAggregator
from edge_sdk.windows import Windows

SCHEMA = demand.schema(window=7, days=(), spread=0.5)
MODEL = demand.model(SCHEMA, 0)  # says that tomorrow is as today, with an interval of no width
RAIN = Schema((NumberField("rain"),), Label("visitors", "number", mean=100.0, scale=10.0, quantiles=(0.1, 0.5, 0.9)))
NOW = 1_800_000_000  # the clock of `FakeAggregator`, in January 2027


def record(n: int, site: str = "hall") -> dict[str, object]:
    return {"recent": [100.0] * 7, "day": (date(2026, 1, 1) + timedelta(n)).isoformat(), "site": site}


# -- the rule --------------------------------------------------------------------------------------------------------


SCORES = st.lists(st.floats(-100, 100), min_size=FEWEST, max_size=KEPT)


@given(SCORES, st.sampled_from([0.5, 0.6, 0.7, 0.8, 0.9]))
def test_the_threshold_is_the_least_score_that_enough_of_all_and_the_next_lie_under(came, share):
    wanted = Fraction(str(share)) * (len(came) + 1)
    assert threshold(came, share) == min(q for q in came if sum(score <= q for score in came) >= wanted)


def test_a_share_that_is_no_whole_number_of_tenths_in_binary_takes_the_same_place():
    assert 0.8 - 0.1 > 0.7
    assert threshold([float(n) for n in range(1, 20)], 0.8 - 0.1) == 14.0


def test_a_promise_that_few_scores_cannot_keep_is_kept_to_the_largest():
    assert threshold([3.0, 1.0, 2.0] * 5, 0.95) == 3.0
    assert threshold([float(n) for n in range(19)], 0.95) == 18.0
    assert threshold([float(n) for n in range(39)], 0.95) == 37.0


@given(SCORES, st.integers(-8, 8))
def test_scores_of_another_scale_have_a_threshold_of_that_scale(came, power):
    assert threshold([2.0**power * score for score in came], 0.8) == 2.0**power * threshold(came, 0.8)


def lives(came: list[float]) -> list[float]:
    """What a device moves the interval of each day by that it calibrates, the first after FEWEST days."""
    kept, moved = IntervalScores(Windows()), []
    for n, score in enumerate(came):
        moved.append(kept.widening("demand", SCHEMA, record(n)))
        kept.add("demand", SCHEMA, record(n), None, score, now=0, at=n)
    assert moved[:FEWEST] == [None] * FEWEST
    return [by for by in moved if by is not None]


@pytest.mark.parametrize("spread", [1.0, 0.05, 0.01, 0.003])
def test_where_the_models_own_interval_is_exact_the_fitted_one_is_as_wide_and_holds_its_share(spread):
    errors = np.random.default_rng(0).normal(0, spread, 1200)
    own = 1.2815515655 * spread
    came = np.abs(errors) - own
    moved = lives(came.tolist())
    assert np.mean(came[FEWEST:] <= moved) == pytest.approx(0.8, abs=0.03)
    assert np.mean(1 + np.array(moved) / own) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("off", [2.0, 20.0, 1000.0])
def test_a_model_that_is_far_off_for_ever_is_followed(off):
    came = off + np.random.default_rng(0).normal(0, 0.3, 1200)
    assert np.mean(came[FEWEST:] <= lives(came.tolist())) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("calm", [-1.0, -20.0])
def test_after_a_change_of_level_a_fifth_of_the_kept_days_is_missed_and_none_after(calm):
    moved = lives([calm] * 150 + [0.0] * 100)[150 - FEWEST :]
    assert [by < 0.0 for by in moved] == [True] * 12 + [False] * 88
    better = lives([0.0] * 150 + [calm] * 100)[150 - FEWEST :]
    assert better == [0.0] * 49 + [calm] * 51


def test_a_label_that_was_mistyped_moves_the_threshold_by_one_rank():
    came = np.random.default_rng(0).normal(size=49).tolist()
    ranked = sorted(came)
    assert lives([*came, 0.0])[-1] == ranked[39]
    assert lives([*came[:20], 1e9, *came[20:], 0.0])[-1] == ranked[40]


def test_a_score_is_how_far_a_label_lay_outside_in_the_labels_scale():
    logits = np.array([[-1.0, 0.0, 2.0]] * 3)
    found = scores(RAIN, logits, [85.0, 100.0, 150.0], [{"rain": 0.0}] * 3)
    assert found == pytest.approx([0.5, -1.0, 3.0])


def test_a_small_site_and_a_large_one_have_the_same_score_for_the_same_share_more():
    logits, records = np.zeros((2, 3)), [{**record(1), "recent": [size] * 7} for size in (99.0, 9999.0)]
    assert scores(SCHEMA, logits, [199.0, 19999.0], records) == pytest.approx([math.log(2) / 0.5] * 2, rel=1e-5)


def test_both_ends_move_outwards_and_inwards_no_further_than_the_prediction():
    logits = np.array([[-1.0, 0.0, 2.0]] * 3)
    moved = intervals(RAIN, logits, None, [0.5, -0.5, -1.5])
    assert moved == [pytest.approx((85, 125)), pytest.approx((95, 115)), pytest.approx((100, 105))]
    assert intervals(RAIN, logits) == [(90.0, 120.0)] * 3
    above = Schema(RAIN.fields, Label("visitors", "number", mean=100.0, scale=10.0, quantiles=(0.5, 0.9)))
    assert intervals(above, logits[:, 1:], None, [0.5, -0.5, -2.5]) == [(95.0, 125.0), (100.0, 115.0), (100.0, 100.0)]
    assert logits[0].tolist() == [-1.0, 0.0, 2.0]


def ends(schema: Schema, logits: list[float], field: object) -> tuple[float, float]:
    ((low, high),) = intervals(schema, np.array([logits]), [field], [1.0])
    return round(low, 6), round(high, 6)


def test_a_count_is_never_below_zero_and_a_number_that_may_be_is():
    quiet = {**record(1), "recent": [0.0] * 7}
    assert ends(SCHEMA, [-1.0, 0.0, 1.0], quiet) == (0.0, pytest.approx(math.e - 1))
    assert ends(SCHEMA, [-9.0, -6.0, -3.0], quiet) == (0.0, 0.0)
    assert decide(SCHEMA, np.array([[-9.0, -6.0, -3.0]]), [quiet]) == [[("demand", 0.0)]]
    amount, balance = (
        Schema(RAIN.fields, Label("amount", "number", log=log, quantiles=(0.1, 0.5, 0.9))) for log in (True, False)
    )
    dry = {"rain": 0.0}
    assert ends(amount, [-1.0, 0.0, 1.0], dry) == (0.0, pytest.approx(math.exp(2) - 1))
    assert ends(amount, [-2.0, -1.0, 0.0], dry) == (pytest.approx(1 - math.exp(3)), pytest.approx(math.e - 1))
    assert decide(amount, np.array([[-2.0, -1.0, 0.0]])) == [[("amount", pytest.approx(1 - math.e))]]
    assert ends(balance, [-1.0, 0.0, 1.0], dry) == (-2.0, 2.0)


# -- what is kept ----------------------------------------------------------------------------------------------------


def add(kept: IntervalScores, days, score=1.0, site="hall", subject=None) -> None:
    for n in days:
        kept.add("demand", SCHEMA, record(n, site), subject, score, now=NOW, at=n)


def after(came: list[float]):
    """The threshold of the interval of eight days in ten."""
    return pytest.approx(threshold(came, 0.8))


def test_too_few_scores_leave_the_models_own_interval():
    kept = IntervalScores(Windows())
    add(kept, range(FEWEST - 1))
    assert kept.widening("demand", SCHEMA, record(50)) is None
    add(kept, [FEWEST])
    assert kept.widening("demand", SCHEMA, record(50)) == after([1.0] * FEWEST)


def test_each_key_has_its_own_threshold_and_all_subjects_share_it():
    kept = IntervalScores(Windows())
    add(kept, range(20), -1.0, site="hall")
    for n in range(20):
        kept.add("demand", SCHEMA, record(n, "yard"), f"customer {n % 2}", float(n), now=NOW, at=n)
    assert kept.widening("demand", SCHEMA, record(50)) == after([-1.0] * 20)
    assert kept.widening("demand", SCHEMA, record(50, "yard")) == after([float(n) for n in range(20)])
    assert kept.widening("demand", SCHEMA, record(50, "attic")) is None
    assert kept.widening("other", SCHEMA, record(50)) is None


def test_a_history_given_late_is_history_also_of_another_subject():
    kept = IntervalScores(Windows())
    add(kept, range(100, 100 + KEPT), -1.0, subject="ann")
    kept.add("demand", SCHEMA, record(99 + KEPT), "bob", -1.0, now=NOW, at=0)
    for n in range(90):
        kept.add("demand", SCHEMA, record(n), "bob" if n % 2 else "ann", 7.0, now=NOW, at=1000 + n)
    assert kept.widening("demand", SCHEMA, record(300)) == -1.0


def test_without_a_time_the_order_of_recording_counts_over_all_subjects():
    kept = IntervalScores(Windows())
    for n in range(150):  # ann's running numbers are higher than bob's
        kept.add("demand", RAIN, {"rain": 1.0}, "ann", 7.0, now=NOW, at=n)
    for n in range(KEPT):
        kept.add("demand", RAIN, {"rain": 1.0}, "bob", -1.0, now=NOW, at=150 + n)
    assert kept.widening("demand", RAIN, {"rain": 1.0}) == -1.0


def test_the_same_day_again_takes_the_place_of_its_score():
    kept = IntervalScores(Windows())
    add(kept, range(FEWEST), -1.0)
    add(kept, range(4), 5.0)
    assert kept.widening("demand", SCHEMA, record(50)) == 5.0
    add(kept, range(4), -1.0)
    assert kept.widening("demand", SCHEMA, record(50)) == -1.0


def test_a_day_that_is_still_to_come_is_left_out():
    kept = IntervalScores(Windows())
    add(kept, range(20), -1.0)
    add(kept, range(800, 1000), 5.0)
    assert kept.widening("demand", SCHEMA, record(50)) == after([-1.0] * 20)


def test_the_newest_scores_are_kept_and_no_more():
    kept = IntervalScores(windows := Windows())
    add(kept, range(KEPT + 30), 1.0)
    add(kept, range(KEPT + 30, KEPT + 60), 2.0, subject="ann")
    add(kept, range(KEPT + 60, KEPT + 77), 0.0, subject="ann")
    assert [len(entries) for _, entries in windows.take_changed()] == [KEPT, 47]
    assert kept.widening("demand", SCHEMA, record(500)) == after([1.0] * 13 + [2.0] * 30 + [0.0] * 17)


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf"), "7", None, True, [1.0]])
def test_what_is_no_score_is_passed_over(spoilt):
    kept = IntervalScores(windows := Windows())
    add(kept, range(20))
    ((window, entries),) = windows.take_changed()
    windows.load([(window, [(0, spoilt, 0), *entries, (10**10, spoilt, 10**10)])], lambda text: (text or "").encode())
    assert windows.newest(window[:3], KEPT, dated=True)[-1] is spoilt
    assert kept.widening("demand", SCHEMA, record(50)) == after([1.0] * 20)


def test_another_scale_or_another_promise_begins_anew_and_other_weights_do_not():
    kept = IntervalScores(Windows())
    add(kept, range(20))
    wider = demand.schema(window=7, days=(), spread=0.4)
    other = demand.schema(window=7, days=(), spread=0.5, quantiles=(0.05, 0.5, 0.95))
    more = demand.schema(window=7, days=(), spread=0.5, more=(NumberField("rain"),))
    assert kept.widening("demand", wider, record(50)) is None
    assert kept.widening("demand", other, record(50)) is None
    assert kept.widening("demand", more, record(50)) == kept.widening("demand", SCHEMA, record(50))


def test_a_number_without_quantiles_and_a_record_without_a_key_are_no_trouble():
    kept = IntervalScores(Windows())
    plain = Schema((NumberField("rain"),), Label("visitors", "number"))
    assert kept.widening("demand", plain, {"rain": 1.0}) is None
    for n in range(20):
        kept.add("demand", RAIN, {"rain": 1.0}, None, float(n), now=NOW, at=n)
        kept.add("kiosk", SCHEMA, {"recent": [], "site": 7, "day": "soon"}, None, 1.0, now=NOW, at=n)
    assert kept.widening("demand", RAIN, {"rain": 2.0}) == after([float(n) for n in range(20)])
    assert kept.widening("kiosk", SCHEMA, {"recent": []}) == after([1.0] * 20)


# -- in an app -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path):
    with FakeAggregator(tmp_path) as made:
        made.install("demand", MODEL)
        yield made


def lived(fl, days, label=150.0, site="hall", subject=None) -> None:
    for n in days:
        fl.record("demand", record(n, site), label, subject)
    assert fl.flush(5.0)


def bounds(fl, site="hall", n=90) -> tuple[bool, tuple[float, float]]:
    answer = fl.predict("demand", record(n, site))
    return answer.calibrated, tuple(round(end, 3) for end in answer.interval)


OWN = (False, (100.0, 100.0))


def test_an_interval_follows_the_recorded_days_through_a_restart_and_a_new_release(fake, capsys):
    with fake.client() as fl:
        lived(fl, range(FEWEST - 1))
        assert bounds(fl) == OWN
        lived(fl, range(FEWEST - 1, 40))
        calibrated, (low, high) = bounds(fl)
        assert calibrated
        assert (low, high) == pytest.approx((101 * 101 / 151 - 1, 150), abs=0.01)  # as far as the days were
        assert bounds(fl, "yard") == OWN
        assert fl.status()["examples"] == {"demand": 40}
        asked = ["predict", "demand", "--json-record", json.dumps(record(90)), "--home", str(fl.config.home)]
        assert main([*asked, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["calibrated"], [round(end, 3) for end in told["interval"]]) == (True, [low, high])
        assert main(asked) == 0
        assert f"between  {low:.3f} and {high:.3f}\n" in capsys.readouterr().out
    with fake.client() as fl:
        assert bounds(fl) == (True, (low, high))
    fake.install("demand", demand.model(SCHEMA, 1), 2)
    with fake.client() as fl:
        assert bounds(fl) == (True, (low, high))
    fake.install("demand", demand.model(demand.schema(window=7, days=(), spread=0.4), 1), 3)
    with fake.client() as fl:
        assert bounds(fl) == OWN


def test_days_that_lay_well_inside_narrow_the_interval(fake):
    with fake.client() as fl:
        lived(fl, range(20), 200.0)
        _, wide = bounds(fl)
        lived(fl, range(20, 80), 100.0)
        calibrated, narrow = bounds(fl)
        assert calibrated
        assert wide[0] < narrow[0] <= 100 <= narrow[1] < wide[1]


def test_what_was_learned_of_a_subject_is_forgotten_with_it_and_stays_for_others(fake):
    with fake.client() as fl:
        lived(fl, range(20), subject="ann")
        lived(fl, range(20), 60.0, site="yard")
        others = bounds(fl, "yard")
        assert bounds(fl)[0]
        assert [len(each["labels"]) for each in fl.export("ann")["windows"]] == [20]
        fl.forget("ann")
        assert fl.flush(5.0)
        assert fl.export("ann")["windows"] == []
        assert bounds(fl) == OWN
        assert bounds(fl, "yard") == others
    with fake.client() as fl:
        assert bounds(fl) == OWN


def test_a_withdrawal_forgets_it_and_keeps_what_comes_later_out(fake):
    with fake.client() as fl:
        lived(fl, range(20), subject="ann")
        fl.consent.withdraw("ann", ["demand"])
        lived(fl, range(20, 60), subject="ann")
        assert bounds(fl) == OWN
        assert fl.export("ann")["windows"] == []


def test_rows_that_are_rubbish_give_the_models_own_interval_and_new_days_begin_anew(fake):
    with fake.client() as fl:
        lived(fl, range(20))
        config = fl.config
    with contextlib.closing(open_examples(load({}, home=config.home), os.urandom)) as store:
        assert store._db.execute("UPDATE windows SET sealed = X'00112233'").rowcount == 1
    with fake.client() as fl:
        assert bounds(fl) == OWN
        lived(fl, range(20, 40))
        assert bounds(fl)[0]


def test_scores_touch_the_disk_sealed_alone(fake):
    with fake.client() as fl:
        lived(fl, range(20))
        with contextlib.closing(open_examples(fl.config, os.urandom)) as store:
            ((window, entries),) = store.windows.read()
            (sealed,) = store._db.execute("SELECT sealed FROM windows").fetchone()
    assert entries[0][1] == pytest.approx(math.log(151 / 101) / 0.5, rel=1e-5)
    assert b"hall" not in window.key
    assert struct.pack(">d", entries[0][1]) not in sealed


class NoFields:
    fields = ()


def test_an_example_is_kept_where_its_interval_cannot_be_judged(tmp_path):
    def fails(*_: object) -> float:
        raise RuntimeError("no")

    store = ExamplesStore(tmp_path / "examples.db", tmp_path / "examples.key", 100, os.urandom)
    recorder = Recorder(NoFields(), store, lambda: {"demand": SCHEMA}, live := Live(), score=fails)
    recorder.take([("demand", record(1), 7.0, None, 0)], NOW)
    assert (store.counts(), store.windows.read(), live.dropped) == ({"demand": 1}, [], {})


@pytest.mark.parametrize(("language", "said"), [("en", "demand will lie"), ("zh", "给出 demand 的预测区间")])
def test_the_notice_says_that_it_is_kept_where_there_is_an_interval(fake, language, said):
    fake.install("visits", demand.model(demand.schema(window=7, days=(), quantiles=()), 0))
    with fake.client() as fl:
        assert said in fl.explain("demand", language)
        assert said not in fl.explain("visits", language)
