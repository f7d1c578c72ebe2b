"""Figures from noised sums: unbiased, with intervals that hold as often as they say, beside numpy on the records."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from aggregator import asking, scales
from aggregator.analytics import Question, settle
from aggregator.errors import TaskRefused
from aggregator.estimates import deviation, figures
from aggregator.evaluation import auc
from aggregator.tasks import TaskSpec
from edge_sdk.analytics import layout
from edge_sdk.artifact.schema import CategoryField, Label, NumberField, Schema
from edge_sdk.privacy.charges import sensitivity
from edge_sdk.privacy.protection import noise_share, quantised
from edge_sdk.protocol.messages import Query, Statistic
from edge_sdk.protocol.secagg.keystream import Keystream, binomial

DEVICES, N = 8, 8000
SCHEMA = Schema(
    (NumberField("age", 40.0, 10.0), NumberField("fee:total", 0.0, 1.0), CategoryField("plan", ("basic", "gold"))),
    Label("left", "binary", ("no", "yes")),
)
QUERY = Query(
    "q",
    (
        Statistic("moments", "age", 0.0, 100.0, 0, ()), Statistic("histogram", "age", 0.0, 100.0, 50, ()),
        Statistic("words", "plan", 0.0, 0.0, 0, ("basic", "gold")), Statistic("model", "", 0.0, 4.0, 20, ()),
    ),
)  # fmt: skip
SPEC = TaskSpec(name="t", unit="record", placement="shared", n_min=8, n_max=20, target_epsilon=4.0)
RNG = np.random.default_rng(3)
AGE = np.clip(RNG.normal(45, 12, N), 0, 100)
GOLD = RNG.random(N) < 0.3
TRUE = RNG.random(N) < 0.4
SCORE = np.clip(RNG.normal(np.where(TRUE, 0.6, 0.4), 0.15), 0.001, 0.999)


def exact() -> np.ndarray:
    """The sum of every record's vector, one statistic after the other, not weighed."""
    x = AGE / 50 - 1
    parts = np.histogram(AGE, 50, (0, 100))[0]
    loss = np.minimum(-np.log(np.where(TRUE, SCORE, 1 - SCORE)), 4.0) / 4.0
    right = (SCORE > 0.5) == TRUE
    by_score = [np.histogram(SCORE[chosen], 20, (0, 1))[0] for chosen in (~TRUE, TRUE)]
    model = [N, loss.sum(), right.sum(), *by_score[0], *by_score[1]]
    return np.concatenate([[N, x.sum(), (x * x).sum()], parts, [(~GOLD).sum(), GOLD.sum(), 0], model]).astype(float)


def weighed(values: np.ndarray, terms) -> np.ndarray:
    out = values.copy()
    for part in layout.parts(QUERY, sensitivity(terms)):
        out[part.columns] *= part.weight
    return out


def opened(terms, key: int) -> np.ndarray:
    """What eight devices with equal parts of the records open: rounding, noise and error floors included."""
    total = np.zeros(layout.length(QUERY), np.int64)
    for device in range(DEVICES):
        keys = [Keystream(bytes([key, device, use, *bytes(29)])) for use in range(3)]
        values = (weighed(exact(), terms) / DEVICES).astype(np.float32)
        noise = noise_share(terms, len(values), keys[1])
        total += quantised(terms, values, keys[0]) + (0 if noise is None else noise) + binomial(keys[2], len(values))
    return total


def all_estimates(found: list[dict]) -> list[tuple[dict, float]]:
    moments, parts, words, model = found
    shares = np.histogram(AGE, 50, (0, 100))[0] / N
    return [
        (moments["count"], N), (moments["mean"], AGE.mean()), (moments["deviation"], AGE.std()),
        *zip(parts["shares"], shares, strict=True), (words["words"][1]["share"], GOLD.mean()),
        (model["accuracy"], ((SCORE > 0.5) == TRUE).mean()),
        (model["auc"], auc(np.floor(SCORE * 20), TRUE.astype(int))),
        (model["loss"], np.minimum(-np.log(np.where(TRUE, SCORE, 1 - SCORE)), 4.0).mean()),
        (model["score_minus_truth"], ((np.floor(SCORE * 20) + 0.5) / 20).mean() - TRUE.mean()),
    ]  # fmt: skip


def test_intervals_hold_as_often_as_they_say_and_no_wider():
    _, terms = settle(SPEC, Question(query=QUERY, epsilon=1.0))
    held, scores = [], []
    for key in range(30):
        for estimate, truth in all_estimates(figures(QUERY, terms, opened(terms, key), DEVICES)):
            held.append(estimate["low"] <= truth <= estimate["high"])
            if truth > 0.02:  # nearer to 0 an interval ends there and is not even to both sides
                scores.append((estimate["value"] - truth) / (estimate["high"] - estimate["low"]))
    assert 0.92 <= np.mean(held) <= 0.99
    assert abs(np.mean(scores)) < 0.03


def test_the_noise_of_an_opened_sum_is_what_the_terms_say():
    for epsilon in (0.5, 4.0):
        _, terms = settle(SPEC, Question(query=QUERY, epsilon=epsilon))
        errors = [opened(terms, key) * terms.step - weighed(exact(), terms) for key in range(6)]
        assert np.std(errors) == pytest.approx(deviation(terms, DEVICES), rel=0.1)
        alone = terms.noise_multiplier * terms.max_grad_norm * np.sqrt(DEVICES / terms.honest)
        assert deviation(terms, DEVICES) == pytest.approx(
            alone, rel=0.05
        )  # the floors and rounding are next to nothing


def test_quantiles_ascend_and_their_intervals_hold_the_truth():
    _, terms = settle(SPEC, Question(query=QUERY, epsilon=1.0))
    quantiles = figures(QUERY, terms, opened(terms, 1), DEVICES)[1]["quantiles"]
    values = [each["value"] for each in quantiles]
    assert values == sorted(values)
    assert all(each["low"] - 2 <= np.quantile(AGE, each["at"]) <= each["high"] + 2 for each in quantiles)
    assert abs(values[3] - np.median(AGE)) < 2.0


def test_a_count_that_is_not_clear_of_its_noise_gives_no_figure():
    _, terms = settle(SPEC, Question(query=QUERY, epsilon=1.0))
    found = figures(QUERY, terms, np.zeros(layout.length(QUERY), np.int64), DEVICES)
    assert found[0]["mean"]["value"] is None
    assert found[1]["quantiles"][0]["value"] is None
    assert found[3]["auc"]["value"] is None


def test_a_question_in_words_becomes_statistics_with_the_bounds_of_the_schema():
    asked = asking.query(["mean:age", "histogram:fee:total:0:8:4", "words:plan", "labels", "model"], SCHEMA)
    age, fee, plan, labels, model = asked.statistics
    assert (age.kind, age.low, age.high) == ("moments", 0.0, 80.0)
    assert (fee.field, fee.low, fee.high, fee.bins) == ("fee:total", 0.0, 8.0, 4)
    assert plan.words == ("basic", "gold")
    assert (labels.field, labels.words) == ("", ("no", "yes"))
    assert (model.kind, model.bins) == ("model", 10)


@pytest.mark.parametrize(
    "ask", ["mean:height", "mean:plan:0:1", "words:age", "mean:age:9:1", "sum:age", "mean:age:x:y"]
)
def test_a_question_that_no_record_answers_is_refused_with_what_to_write(ask):
    with pytest.raises(TaskRefused) as refused:
        asking.query([ask], SCHEMA)
    assert refused.value.hint


def test_scales_are_learned_and_a_crowded_end_is_told():
    asked = scales.question(SCHEMA, {"fee:total": (0.0, 8.0)})
    _, terms = settle(
        msgspec.structs.replace(SPEC, insecure_without_noise=True, target_epsilon=None),
        Question(query=asked, epsilon=None),
    )
    fees = np.minimum(RNG.exponential(6.0, N), 8.0)
    found = []
    for part in layout.parts(asked, 1.0):
        low, high = part.statistic.low, part.statistic.high
        values = AGE if part.statistic.field == "age" else fees
        x = np.clip((values - low) / (high - low), 0, 1) * 2 - 1
        sums = [N, x.sum(), (x * x).sum()] if part.statistic.kind == "moments" else np.histogram(x, 32, (-1, 1))[0]
        found.append(np.array(sums) * part.weight / terms.step)
    made, notes = scales.learned(SCHEMA, figures(asked, terms, np.concatenate(found).round().astype(np.int64), 8), 4)
    age, fee = made.fields[:2]
    inside = np.clip(AGE, 0, 80)
    assert age.mean == pytest.approx(inside.mean(), abs=0.1)
    assert age.scale == pytest.approx(inside.std(), abs=0.1)
    assert len(age.edges) == 3
    assert all(abs(edge - np.quantile(AGE, q)) < 3 for edge, q in zip(age.edges, (0.25, 0.5, 0.75), strict=True))
    assert fee.mean == pytest.approx(fees.mean(), abs=0.05)
    assert [note.split(":")[0] for note in notes] == ["fee"]
    assert "at 8" in notes[0]
