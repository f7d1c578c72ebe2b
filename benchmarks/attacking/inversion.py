"""Reading a customer's words out of one update: from what training gives, and from what leaves the device.

The model embeds the words, lays them end to end and has one linear layer. The gradient of that layer's row k is (the
error of class k) times the layer's input, and the bias's gradient is the error itself: their quotient is the input,
exactly (Geiping et al. 2020, proposition 3.1). Each stretch of it is the embedding of one word, which the model tells
everybody. Without a quotient, the rows of the embedding table that moved most are the words.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.attacking.audit import terms
from benchmarks.attacking.masked_round import MaskedRound
from benchmarks.attacking.models import text as text_model
from benchmarks.attacking.sentences import ENGLISH, LONGEST, VOCABULARY, Vocabulary, built_in, read
from edge_sdk.artifact.features import features
from edge_sdk.artifact.schema import Label, Schema, TextField
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.text import hashed
from edge_sdk.privacy import charges
from edge_sdk.privacy.mechanism import SkellamSampler
from edge_sdk.privacy.protection import quantised
from edge_sdk.protocol.messages import PrivacyTerms
from edge_sdk.protocol.secagg.keystream import Keystream
from edge_sdk.training.dp_sgd import train
from edge_sdk.training.module import GraphModule
from edge_sdk.training.plans import training_plan

WIDTH, CLASSES, EPSILON, COHORT, HASHED = 16, 4, 8.0, 5, 1024
EMBEDDING, LAYER = VOCABULARY * WIDTH, CLASSES * LONGEST * WIDTH
LENGTH = EMBEDDING + LAYER + CLASSES
Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]
Row = dict[str, Any]


def read_back(update: Floats, table: Floats) -> Numbers:
    """The words of one example, in order, int64 [LONGEST], by the quotient; `table` [VOCABULARY, WIDTH] is public."""
    layer = update[EMBEDDING : EMBEDDING + LAYER].reshape(CLASSES, LONGEST * WIDTH)
    errors = update[EMBEDDING + LAYER :]
    best = int(np.abs(errors).argmax())
    inputs = layer[best] / (errors[best] if errors[best] else 1.0)
    apart = (table**2).sum(1)[None, :] - 2 * inputs.reshape(LONGEST, WIDTH) @ table.T
    return np.asarray(apart.argmin(axis=1), np.int64)


def rows_moved(update: Floats, count: int) -> set[int]:
    """The `count` rows of the embedding table that moved most, padding left out."""
    norms = np.linalg.norm(update[:EMBEDDING].reshape(VOCABULARY, WIDTH), axis=1)
    return set((np.argsort(-norms[1:], kind="stable")[:count] + 1).tolist())


class Victim:
    """A device with a text model: what it trains and what it sends, for examples int64 [B, LONGEST]."""

    def __init__(self) -> None:
        model = text_model(VOCABULARY, LONGEST, WIDTH, CLASSES, seed=3)
        self._module = GraphModule(model)
        self._start = self._module.update_vector()
        self.table = self._start[:EMBEDDING].reshape(VOCABULARY, WIDTH).astype(np.float64)
        self._samplers: dict[float, SkellamSampler] = {}

    def update(self, told: PrivacyTerms, words: Numbers) -> npt.NDArray[np.float32]:
        """By the product's plan and training."""
        self._module.load_vector(self._start)
        labels = np.arange(len(words), dtype=np.int64) % CLASSES
        plan = training_plan(told, len(words))
        run = train(
            self._module, {"features": words}, labels, plan=plan, key=os.urandom(32), on_step=lambda *_: None
        )  # fmt: skip
        return run.update

    def steps(self, told: PrivacyTerms, update: npt.NDArray[np.float32]) -> tuple[Any, Any]:
        """(values, noise or None), both int32 [LENGTH]: what protection masks."""
        sigma = charges.sigma_steps(told)
        if sigma and sigma not in self._samplers:
            self._samplers[sigma] = SkellamSampler(sigma**2)
        noise = self._samplers[sigma].draw(LENGTH, Keystream(os.urandom(32))) if sigma else None
        return quantised(told, update, Keystream(os.urandom(32))), noise


def offers() -> dict[str, PrivacyTerms]:
    """Device unit without noise; record unit, clipped alone; with the noise of epsilon 8 a round, local and shared."""
    plain = terms("device", "shared", learning_rate=0.5, clip=16.0, step=2.0**-10)
    clipped = terms("record", "local", learning_rate=0.5, expected_batch=1, clip=16.0, step=2.0**-12)
    local = msgspec.structs.replace(clipped, insecure_without_noise=False, clip=4000.0, step=2.0**-6)
    shared = terms("record", "shared", insecure_without_noise=False, expected_batch=1, clip=16.0, step=2.0**-10)
    return {
        "plain": plain,
        "clipped": clipped,
        "local": _at(local),
        "shared": _at(shared),
    }


def _at(told: PrivacyTerms) -> PrivacyTerms:
    return msgspec.structs.replace(told, noise_multiplier=charges.calibrate(told, LENGTH, 1, EPSILON))


class Views:
    """What an attacker may look at when a device learns from one batch."""

    def __init__(self) -> None:
        self.victim, self._offers = Victim(), offers()

    def of(self, words: Numbers) -> dict[str, Floats]:
        """Name of the view to an update, float64 [LENGTH]."""
        seen: dict[str, Floats] = {}
        for name, told in self._offers.items():
            values, noise = self.victim.steps(told, self.victim.update(told, words))
            if name == "shared":
                seen |= self._through_the_mask(told, values, noise)
            else:
                seen[name] = values.astype(np.float64) * told.step
        return {
            "an update of plain training": seen["plain"],
            "the same, each record clipped": seen["clipped"],
            f"clipped, local noise of epsilon {EPSILON:g}": seen["local"],
            "what leaves the device: the masked upload": seen["masked"],
            f"the opened sum of {COHORT} devices, shared noise of epsilon {EPSILON:g}": seen["opened"],
        }

    def _through_the_mask(self, told: PrivacyTerms, values: Any, noise: Any) -> dict[str, Floats]:
        """The other devices send nothing but noise: of the sum, all the words are the victim's."""
        session = MaskedRound(COHORT, COHORT, LENGTH)
        session.upload(0, values, noise)
        for device in range(1, COHORT):
            zero, other = self.victim.steps(told, np.zeros(LENGTH, np.float32))
            session.upload(device, zero, other)
        seen, opened = session.seen(0), session.opened(range(COHORT))
        return {"masked": np.float64(told.step) * seen, "opened": np.float64(told.step) * opened}


def attack(texts: list[list[str]], views: Views, batch: int) -> dict[str, dict[str, Any]]:
    """By view: the fraction of words read in their places (a batch of one) and picked out at all; the first text."""
    vocabulary = Vocabulary(texts)
    numbers = np.stack([vocabulary.numbers(text) for text in texts])
    found: dict[str, dict[str, Any]] = {}
    for start in range(0, len(numbers) - batch + 1, batch):
        words = numbers[start : start + batch]
        there = set(words[words > 0].tolist())
        for name, update in views.of(words).items():
            row = found.setdefault(name, {"in_place": [], "picked": [], "chance": [], "reads": ""})
            row["picked"].append(len(rows_moved(update, len(there)) & there) / len(there))
            if batch == 1:
                guess = read_back(update, views.victim.table)[: int((words > 0).sum())]
                row["in_place"].append(float((guess == words[words > 0]).mean()))
                row["reads"] = row["reads"] or " ".join(vocabulary.words(guess))
            row["chance"].append(len(there) / (VOCABULARY - 1))
    return found


def hashed_words(quick: bool) -> list[Row]:
    """The product's own text features are hashed n-grams: what one plain update of a linear model tells of them.

    The quotient gives the features; a word of a dictionary is taken to be there where all its n-grams are.
    """
    schema = Schema((TextField("message", HASHED),), Label("urgent", "binary", ("no", "yes")))
    module = GraphModule(tabular_classifier(schema, (), 1))
    dictionary = sorted({word for line in ENGLISH for word in line.split() if len(word) > 3})
    buckets = {word: {bucket for bucket, _ in hashed(word, HASHED)} for word in dictionary}
    start, counts = module.update_vector(), {"said": 0, "found": 0, "right": 0}
    for line in ENGLISH[: 3 if quick else None]:
        module.load_vector(start)
        told = terms("device", "shared", clip=16.0, step=2.0**-16)
        inputs = features(schema, [{"message": line}])
        plan = training_plan(told, 1)
        result = train(module, inputs, np.ones(1, np.float32), plan=plan, key=os.urandom(32), on_step=lambda *_: None)
        sent = quantised(told, result.update, Keystream(os.urandom(32)))
        moved = set(np.flatnonzero(np.abs(sent[:HASHED]) > np.abs(sent[HASHED]) / 100).tolist())
        found = {word for word in dictionary if buckets[word] <= moved}
        said = {word for word in line.split() if len(word) > 3}
        for name, words in (("said", said), ("found", found), ("right", said & found)):
            counts[name] += len(words)
    return [{"dictionary": len(dictionary), "features": HASHED, **counts}]


def run(quick: bool, data: Path | None = None) -> list[Row]:
    """Every language, one example and eight at a time."""
    texts = built_in() | (read(data, 4 if quick else 16) if data else {})
    views, rows = Views(), []
    for language, lines in texts.items():
        for batch in (1, 8):
            for name, row in attack(lines[: 2 if quick and batch == 1 else 16], views, batch).items():
                known: Row = {
                    "language": language,
                    "batch": batch,
                    "view": name,
                    "chance": round(float(np.mean(row["chance"])), 4),
                }
                known["picked"] = round(float(np.mean(row["picked"])), 4)
                if batch == 1:
                    known |= {"in_place": round(float(np.mean(row["in_place"])), 4), "reads": row["reads"]}
                rows.append(known)
    return rows
