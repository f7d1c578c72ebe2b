"""Each kind of field against a slow definition of its columns, one record and one value at a time."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.artifact.errors import RecordError
from edge_sdk.artifact.features import column_spans, decide, features, intervals, labels
from edge_sdk.artifact.schema import CategoryField, Label, NumberField, Schema, SequenceField, SeriesField, TextField
from edge_sdk.artifact.text import hashed

LABEL = Label("y", "binary", ("no", "yes"))
NUMBERS = st.floats(-1e9, 1e9) | st.integers(-(10**9), 10**9)
WORDS = st.sampled_from(["tea", "茶", "coffee", "x", ""])
GAP = st.none() | st.just(math.nan)


def rows(field, values, **others):
    schema = Schema((field,), LABEL)
    return features(schema, [{field.name: value, **others} for value in values])["features"]


def digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


@given(
    values=st.lists(NUMBERS | GAP, max_size=5),
    log=st.booleans(),
    edges=st.lists(st.integers(-5, 5), unique=True, max_size=4).map(sorted),
)
def test_a_number_is_its_value_then_whether_it_is_missing_then_its_interval(values, log, edges):
    field = NumberField("n", 0.5, 2.0, log=log, missing=True, edges=tuple(map(float, edges)))
    for row, value in zip(rows(field, values), values, strict=True):
        slow = [0.0] * field.width
        if value is None or math.isnan(value):
            slow[1] = 1.0
        else:
            t = math.copysign(math.log1p(abs(value)), value) if log else value
            slow[0] = min(max((t - 0.5) / 2.0, -1e6), 1e6)
            if edges:
                slow[2 + sum(edge <= value for edge in edges)] = 1.0
        np.testing.assert_allclose(row, slow, rtol=1e-6)


@given(values=st.lists(WORDS | st.none(), max_size=5), hash_them=st.booleans())
def test_a_word_is_one_column_and_a_missing_one_the_last(values, hash_them):
    field = (
        CategoryField("c", buckets=7, missing=True) if hash_them else CategoryField("c", ("tea", "茶"), missing=True)
    )
    for row, value in zip(rows(field, values), values, strict=True):
        slow = [0.0] * field.width
        known = digest(value) % 7 if value is not None and hash_them else {"tea": 0, "茶": 1}.get(value, 2)
        slow[-1 if value is None else known] = 1.0
        assert row.tolist() == slow


def slow_text(text, width, chars, words):
    plain = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    found = re.findall(r"[^\W_]+", plain)
    grams = [plain[i : i + n] for n in chars for i in range(len(plain) - n + 1)]
    grams += ["\x1f" + " ".join(found[i : i + n]) for n in words for i in range(len(found) - n + 1)]
    columns = np.zeros(width)
    for gram in set(grams):
        code = digest(gram)
        columns[code % width] += math.sqrt(grams.count(gram)) * (1.0 if code >> 63 else -1.0)
    length = np.linalg.norm(columns)
    return columns / length if length > 1e-9 else columns


LETTERS = st.text(st.sampled_from("aAbｂ 卡被ー😀１_.é"), max_size=25)


@given(
    texts=st.lists(LETTERS, max_size=4),
    chars=st.lists(st.integers(1, 5), unique=True, max_size=3),
    words=st.lists(st.integers(1, 3), unique=True, max_size=2),
)
def test_a_text_is_the_signed_roots_of_its_grams_counts(texts, chars, words):
    if not chars and not words:
        return
    field = TextField("t", 4096, chars=tuple(chars), words=tuple(words))
    found = rows(field, texts)
    for row, text in zip(found, texts, strict=True):
        np.testing.assert_allclose(row, slow_text(text, 4096, chars, words), atol=1e-6)


SENTENCES = [
    "我的卡被自动取款机吞了，怎么办？",
    "请问 ＡＴＭ 在哪里😀",
    "快递还没到！！！",
    "My card was swallowed at 9:30",
    "",
]


def test_a_text_has_the_same_features_alone_among_others_and_from_what_is_kept():
    field = TextField("t", 64, words=(1, 2), missing=True)
    together = rows(field, [*SENTENCES, None, "卡" * 9000])
    alone = [rows(field, [text])[0] for text in SENTENCES]
    assert np.array_equal(together[:5], alone)
    kept = [[list(pair) for pair in hashed(text, 64, words=(1, 2))] for text in SENTENCES]
    assert np.array_equal(rows(field, kept), alone)
    assert not together[5].any()
    assert np.array_equal(together[6], rows(field, ["卡" * 2000])[0])
    assert not np.array_equal(rows(TextField("t", 64), SENTENCES[3:4]), alone[3:4])


def test_the_hash_is_the_same_for_ever():
    pairs = hashed("卡 a", 64, words=(1,))
    assert [bucket for bucket, _ in pairs] == [2, 10, 15, 30, 36, 47, 60]
    assert [value * math.sqrt(10) for _, value in pairs] == pytest.approx([-2, 1, 1, -1, -1, -1, -1])
    assert rows(CategoryField("c", buckets=1000), ["北京南站"])[0].argmax() == 679


@settings(max_examples=60)
@given(window=st.lists(st.floats(-50, 1e6) | GAP, max_size=6), log=st.booleans())
def test_a_series_is_relative_to_its_own_level(window, log):
    field = SeriesField("s", 6, log=log)
    ts = [None if x is None or math.isnan(x) else (math.log1p(max(x, 0.0)) if log else x) for x in window]
    ts = [None] * (6 - len(ts)) + ts
    known = [t for t in ts if t is not None]
    base = math.fsum(known) / len(known) if known else 0.0
    spread = 1.0
    if not log and len(set(known)) > 1:
        spread = max(math.sqrt(math.fsum((t - base) ** 2 for t in known) / len(known)), 1e-6)
    level = base / 5 if log else math.copysign(math.log1p(abs(base)), base) / 5
    slow = [0.0 if t is None else (t - base) / spread for t in ts] + [level, (6 - len(known)) / 6]
    np.testing.assert_allclose(rows(field, [window])[0], slow, rtol=1e-4, atol=1e-4)


@given(st.dates(date(1990, 1, 1), date(2060, 12, 31)), st.integers(0, 23))
def test_the_calendar_is_that_of_the_date(day, hour):
    field = SeriesField("s", 1, time="at", calendar=("weekday", "month", "hour", "yearday"))
    row = rows(field, [[1.0]], at=f"{day.isoformat()}T{hour:02}:30")[0][3:]
    assert row[:7].tolist() == [float(k == day.weekday()) for k in range(7)]
    assert row[7:19].tolist() == [float(k == day.month) for k in range(1, 13)]
    assert row[19:43].tolist() == [float(k == hour) for k in range(24)]
    turn = 2 * math.pi * ((day - date(day.year, 1, 1)) / timedelta(1)) / 365.25
    np.testing.assert_allclose(row[43:], [f(k * turn) for k in (1, 2) for f in (math.sin, math.cos)], atol=1e-6)


@given(st.lists(WORDS, max_size=8), st.integers(1, 5), st.sampled_from([1.0, 0.5]), st.booleans())
def test_a_sequence_is_its_last_words_by_age(words, last, decay, hash_them):
    field = SequenceField("h", *((), 5) if hash_them else (("tea", "茶"), 0), last=last, decay=decay)
    slow = np.zeros(field.width)
    for age, word in enumerate(reversed(words[-last:])):
        place = digest(word) % 5 if hash_them else {"tea": 0, "茶": 1}.get(word, 2)
        slow[place] = max(slow[place], decay**age)
    slow /= np.linalg.norm(slow) or 1.0
    np.testing.assert_allclose(rows(field, [words])[0], slow, atol=1e-6)


def test_columns_stand_in_the_order_of_the_fields():
    fields = (NumberField("n", missing=True, edges=(1.0,)), SequenceField("h", ("a",)), SeriesField("s", 3))
    assert column_spans(Schema(fields, LABEL)) == {"n": slice(0, 4), "h": slice(4, 6), "s": slice(6, 11)}


DATED = SeriesField("s", 2, key="who", time="at", calendar=("hour",))
BAD = [
    (NumberField("n"), {}, "missing-field", "'n' is missing: give a finite number"),
    (NumberField("n"), {"n": None}, "wrong-type", "'n' must be a finite number, not None"),
    (NumberField("n", missing=True), {"n": math.inf}, "not-finite", "'n' must be a finite number or None"),
    (CategoryField("c", buckets=3), {"c": 3}, "wrong-type", "'c' must be a text"),
    (CategoryField("c", ("a",)), {"c": 0}, "wrong-type", "'c' must be a text such as a"),
    (CategoryField("c", ("a",)), {"c": None}, "wrong-type", "'c'"),
    (TextField("t"), {"t": None}, "wrong-type", "'t' must be a text"),
    (DATED, {"s": [1, 2, 3], "at": "2024-05-31"}, "too-long", "'s' must be a list of at most 2 numbers.* not 3"),
    (DATED, {"s": 5, "at": "2024-05-31"}, "wrong-type", "'s' must be a list"),
    (DATED, {"s": ["5"], "at": "2024-05-31"}, "wrong-type", "'s'.* not '5'"),
    (DATED, {"s": [math.inf], "at": "2024-05-31"}, "not-finite", "'s'"),
    (DATED, {"s": [1]}, "missing-field", "'at' is missing: give an ISO date"),
    (DATED, {"s": [1], "at": "31.5.2024"}, "bad-date", "'at' must be an ISO date such as 2024-05-31"),
    (DATED, {"s": [1], "at": "2024-05-31", "who": 7}, "wrong-type", "'who' must be a text, not 7"),
    (SequenceField("h", ("a",)), {"h": "a"}, "wrong-type", "'h' must be a list of texts such as a"),
    (SequenceField("h", ("a",)), {"h": [None]}, "wrong-type", "'h'"),
    (SequenceField("h", ("a",), last=1), {"h": [3, "a"]}, "wrong-type", "'h'"),
    (SequenceField("h", ("a",)), {"h": ["a"] * (2**16 + 1)}, "too-long", "'h'"),
]


@pytest.mark.parametrize(("field", "record", "reason", "words"), BAD)
def test_a_value_of_another_kind_is_refused_by_name(field, record, reason, words):
    with pytest.raises(RecordError, match=words) as refused:
        features(Schema((field,), LABEL), [record])
    assert refused.value.reason == reason


def test_what_may_be_missing_can_be_left_out_and_whose_series_it_is_too():
    schema = Schema((NumberField("n", missing=True), TextField("t", 8, missing=True), DATED), LABEL)
    full = {"n": None, "t": None, "s": np.array([1.0, np.nan]), "at": "2024-05-31T09", "who": "k1"}
    left = {"s": (1, None), "at": "2024-05-31T09"}
    one, other = features(schema, [full, left])["features"]
    assert np.array_equal(one, other)


SERIES = (SeriesField("s", 4), SeriesField("p", 4, log=False))


@given(
    st.lists(st.floats(0, 1e5), min_size=1, max_size=4), st.floats(0, 1e5), st.sampled_from(["", "s", "p"]),
    st.booleans(),
)  # fmt: skip
def test_a_number_that_was_learnt_comes_back_in_its_own_units(window, y, relative, spread_out):
    log = relative == "s" or (not relative and spread_out)
    label = Label("y", "number", (), 0.25, 2.0, log=log, relative_to=relative, quantiles=(0.1, 0.5, 0.9))
    schema = Schema(SERIES, label)
    records = [{"s": window, "p": window}]
    target = float(labels(schema, [y], records)[0])
    if relative == "p" and np.ptp(window) < 1e-3 * (1 + y + max(window)):
        return  # far outside its window: the target ends at a million
    logits = np.array([[target - 1, target, target + 1]])
    ((_, value),) = decide(schema, logits, records)[0:1][0]
    assert value == pytest.approx(y, rel=1e-3, abs=1e-2)
    ((low, high),) = intervals(schema, logits, records)
    assert low <= value <= high


def test_intervals_hold_the_prediction_where_quantiles_cross_and_are_none_without_quantiles():
    crossed = Schema((NumberField("a"),), Label("y", "number", quantiles=(0.1, 0.5, 0.9)))
    assert intervals(crossed, np.array([[3.0, 2.0, 1.0]])) == [(1.0, 3.0)]
    assert intervals(Schema((NumberField("a"),), Label("y", "number")), np.array([[3.0]])) is None


def test_what_was_seen_is_not_ranked_unless_all_was():
    names = ("a", "b", "c")
    schema = Schema((SequenceField("h", names, last=1),), Label("y", "classes", names, unseen_of="h"))
    logits = np.array([[3.0, 2.0, 1.0]] * 3)
    seen = [{"h": ["a", "zzz", "b"]}, {"h": []}, {"h": ["c", "b", "a"]}]
    ranked = decide(schema, logits, seen)
    assert ranked[0] == [("c", 1.0)]
    assert [name for name, _ in ranked[1]] == [name for name, _ in ranked[2]] == ["a", "b", "c"]
    assert sum(score for _, score in ranked[1]) == pytest.approx(1)
    with pytest.raises(RecordError, match="give the records"):
        decide(schema, logits)


def test_a_relative_label_needs_its_records():
    schema = Schema(SERIES, Label("y", "number", log=True, relative_to="s"))
    for call in (lambda: labels(schema, [1.0]), lambda: decide(schema, np.zeros((1, 1)))):
        with pytest.raises(RecordError, match="relative to a series"):
            call()
