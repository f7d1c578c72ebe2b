"""Understood columns to a record schema, by the training rows alone. Pure.

Refuses, with DataRefused, a label without a scale.

Means, scales, vocabularies and intervals are read from the file. On a fleet nobody has such a file: there
`aggregator analytics --scales` learns them privately.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aggregator.rehearsal.tables import DataRefused
from aggregator.rehearsal.understood import Answers, Feature, Understood
from edge_sdk.artifact.encoding import transform
from edge_sdk.artifact.schema import CategoryField, Field, Label, NumberField, Schema, TextField

Whole = npt.NDArray[np.int64]
MOST_WORDS: Final = 64  # of a vocabulary
COVERED: Final = 0.8  # of the values, by so many words; else they are hashed
INTERVALS: Final = 8
FEW_VALUES: Final = 12  # so many whole numbers have a column each
MOST_CELLS: Final = 1.5e8  # of the encoded table: 600 MB
MOST_WEIGHTS: Final = 2**16
HEAVY: Final = 2.0  # skewness above which logarithms are tried


def schema_of(found: Understood, rows: Whole, *, intervals: bool) -> Schema:
    """Fields and label, fitted on `rows`. `intervals`: cut every number into intervals with a weight each."""
    label = _label(found.answers, rows)
    room = min(MOST_CELLS / max(1, found.rows), MOST_WEIGHTS / label.outputs)
    texts = sum(feature.role == "text" for feature in found.features)
    fields = [_field(feature, rows, room / max(1, texts), intervals=intervals) for feature in found.features]
    return Schema(tuple(fields), label)


def records_of(features: Sequence[Feature], rows: Whole) -> list[Mapping[str, Any]]:
    """Records as an app would give them."""
    names = [feature.name for feature in features]
    columns = [[feature.values[row] for row in rows.tolist()] for feature in features]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _field(feature: Feature, rows: Whole, room: float, *, intervals: bool) -> Field:
    values = [feature.values[row] for row in rows.tolist()]
    known = [value for value in values if value is not None]
    missing = any(value is None for value in feature.values)
    if feature.role == "number":
        return _number(feature, np.array(known or [0.0], np.float64), missing, intervals=intervals)
    if feature.role == "category":
        return _category(feature.name, known, missing)
    chinese = sum(any("\u3040" <= letter <= "\uffef" for letter in text) for text in known[:1000]) > 0.3 * len(
        known[:1000]
    )
    wanted = 8192 if chinese else 4096
    width = int(max(256, min(wanted, 2 ** np.floor(np.log2(max(room, 256))))))
    chars, words = ((1, 2), ()) if chinese else ((3, 4), (1, 2))
    return TextField(feature.name, width, chars=chars, words=words, missing=missing)


def _number(feature: Feature, known: npt.NDArray[np.float64], missing: bool, *, intervals: bool) -> NumberField:
    log = heavy(known)
    values = transform(known, log)
    distinct = np.unique(known)
    edges: tuple[float, ...] = ()
    if feature.whole and 2 < len(distinct) <= FEW_VALUES:
        edges = tuple(((distinct[1:] + distinct[:-1]) / 2).tolist())
    elif intervals and len(distinct) > FEW_VALUES:
        edges = tuple(np.unique(np.quantile(known, np.linspace(0, 1, INTERVALS + 1)[1:-1])).tolist())
    mean, scale = _moments(values)
    sound = np.isfinite([mean, scale]).all() and scale > 0
    return NumberField(
        feature.name, round_to(mean) if sound else 0.0, round_to(scale) if sound else 1.0, log, missing, edges
    )


def _moments(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(values.mean()), float(values.std())


def boundless(found: Understood, rows: Whole) -> list[str]:
    """A warning for each column of numbers so large that they have no scale: next to nothing is learnt from it."""
    said = []
    for feature in found.features:
        if feature.role != "number":
            continue
        known = np.array([feature.values[row] for row in rows.tolist() if feature.values[row] is not None] or [0.0])
        if not np.isfinite(_moments(transform(known, heavy(known)))).all():
            said.append(
                f"{feature.name!r} holds numbers up to {np.abs(known).max():.2g}, of which no mean or scale can be "
                f"computed: it is taken as it is and says next to nothing; correct them, or --drop {feature.name}"
            )
    return said


def round_to(value: float) -> float:
    """Six digits: a schema is read by people."""
    return float(f"{value:.6g}")


def heavy(values: npt.NDArray[np.float64], above: float = HEAVY) -> bool:
    """Do a few values lie so far out that logarithms describe them better?"""
    before, after = abs(_skewness(values)), abs(_skewness(transform(values, log=True)))
    return bool(before > above and after < before / 2)


def _skewness(values: npt.NDArray[np.float64]) -> float:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        apart = values - values.mean()
        spread = values.std()
        return float(np.mean((apart / spread) ** 3)) if np.isfinite(spread) and spread > 0 else 0.0


def _category(name: str, known: Sequence[str], missing: bool) -> CategoryField:
    counts = Counter(word for word in known if len(word) <= 200)
    least = max(2, len(known) // 1000)
    usual = [word for word, count in counts.most_common(MOST_WORDS) if count >= least]
    covered = sum(counts[word] for word in usual) / max(1, len(known))
    if usual and covered >= COVERED:
        return CategoryField(name, tuple(sorted(usual)), missing=missing)
    return CategoryField(name, buckets=min(256, max(16, 2 ** int(np.ceil(np.log2(len(counts) + 1))))), missing=missing)


def _label(answers: Answers, rows: Whole) -> Label:
    if answers.kind != "number":
        return Label(answers.name, answers.kind, answers.names)
    values = np.array([answers.values[row] for row in rows.tolist()], np.float64)
    log = bool(values.min() >= 0 and heavy(values, 1.0))
    mean, scale = _moments(transform(values, log))
    if not np.isfinite([mean, scale]).all():
        raise DataRefused(
            f"{answers.name!r} holds numbers up to {np.abs(values).max():.2g}, which have no mean or scale",
            "correct those rows, or give --kind classes",
        )
    return Label(answers.name, "number", mean=round_to(mean), scale=round_to(scale) or 1.0, log=log)
