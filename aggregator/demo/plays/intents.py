"""What is the question about? Questions in English and Chinese, from the pip package `chatterbot-corpus`.

Each question has the reply that the corpus stores for it: recognising the topic finds the nearest stored question of
that topic, and its reply is the answer. Below a confidence a person would answer. Needs the extra `demo`.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from aggregator.demo.pictures import confusion, table
from aggregator.demo.play import Picture, Play, Record, Rows, fleet_of
from aggregator.demo.processes import DemoFailed
from aggregator.evaluation import heldout, logits
from edge_sdk.artifact.decide import probabilities
from edge_sdk.artifact.features import features
from edge_sdk.artifact.recipes import service
from edge_sdk.artifact.schema import Label, Schema, TextField

SOURCE: Final = (
    "chatterbot-corpus: about 1,000 different questions to a chat bot in English and Chinese, by topic, with the reply "
    "to each (pip package chatterbot-corpus, BSD-3-Clause). The Chinese ones are translations of some English ones"
)
LANGUAGES: Final = ("english", "chinese")
FEWEST: Final = 20  # questions of a topic, or it is left out
LONGEST: Final = 200
WIDTH: Final = 4096
DESKS: Final = 48  # the questions are dealt to so many desks by hash, the desks to the devices
MOST_LOST: Final = 0.25  # of the questions handed to a person
SHOWN: Final = 6


class Line(NamedTuple):
    """One question of the corpus and its reply."""

    language: str
    topic: str
    question: str
    reply: str


@cache
def corpus() -> list[Line]:
    """Every different question of a topic with enough of them. Raises DemoFailed."""
    package = find_spec("chatterbot_corpus")
    if package is None or not package.submodule_search_locations:
        raise DemoFailed("the package chatterbot-corpus is missing: pip install 'chorale[demo]'")
    folder = Path(package.submodule_search_locations[0]) / "data"
    found: dict[tuple[str, str], Line] = {}
    for language in LANGUAGES:
        for file in sorted((folder / language).glob("*.yml")):
            for question, reply in _pairs(file):
                found.setdefault((language, question.lower()), Line(language, file.stem, question, reply))
    topics = Counter(line.topic for line in found.values())
    return [line for line in found.values() if topics[line.topic] >= FEWEST]


def _pairs(file: Path) -> Iterator[tuple[str, str]]:
    """The first two lines of each conversation: "- - question", "  - reply", which may go on indented."""
    talks: list[list[str]] = []
    for line in file.read_text(encoding="utf-8-sig").splitlines():
        if line.startswith("- - "):
            talks.append([line[4:]])
        elif line.startswith("  - ") and talks:
            talks[-1].append(line[4:])
        elif line.startswith("    ") and talks:
            talks[-1][-1] += " " + line.strip()
    for talk in talks:
        texts = [text.strip().strip("\"'").strip()[:LONGEST] for text in talk[:2]]
        if len(texts) == 2 and texts[0]:
            yield texts[0], texts[1].lstrip("| ").replace("```", " ").strip()


def _number(text: str) -> int:
    return zlib.crc32(text.encode())


def is_chinese(text: str) -> bool:
    """Does the text hold a Chinese character?"""
    return any("\u4e00" <= letter <= "\u9fff" for letter in text)


@cache
def schema() -> Schema:
    """One text; letters in runs of one to three serve both languages, words the English one."""
    topics = tuple(sorted({line.topic for line in corpus()}))
    return Schema((TextField("text", WIDTH, chars=(1, 2, 3), words=(1, 2)),), Label("intent", "classes", topics))


def model() -> bytes:
    """Softmax regression that starts at zero."""
    return service.model(schema(), 0)


def load(devices: int) -> Rows:
    """A question is held out where its CRC-32 divides by five; the others are dealt to desks by hash."""
    desks: dict[str, list[Record]] = {f"desk {number + 1:02}": [] for number in range(DESKS)}
    held_out = []
    for line in corpus():
        record = {"text": line.question, "intent": line.topic}
        if _number(line.question) % 5 == 0:
            held_out.append(record)
        else:
            desks[f"desk {_number('desk ' + line.question) % DESKS + 1:02}"].append(record)
    return Rows(fleet_of(desks, devices), tuple(held_out))


def task(devices: int, rounds: int) -> dict[str, Any]:
    """The recipe's task, for a fleet with so few questions. Step sizes were compared on a fifth of
    the training questions; before that, prototypes were looked at on held-out ones, so its figures are no unbiased
    estimate."""
    questions = round(800 / devices)
    return {
        "unit": "record",
        "placement": "shared",
        "target_epsilon": 8.0,
        "sample_rate": 1.0,
        "units_per_device": questions,
        "max_grad_norm": 1.0,
        "clip": 2.0 * questions,  # of a device's sum: never reached, so that it cuts nobody
        "learning_rate": 1.0,
        "server_optimizer": "adam",
        "server_learning_rate": 2.0 / rounds,
        "metric": "accuracy",
        "profile": "P32",
    }


def pictures(model: bytes, rows: Rows) -> Sequence[Picture]:
    """Which topics are mixed up, and what the stored answers of the recognised topic come to."""
    wanted = schema()
    asked = [{"text": record["text"]} for record in rows.held_out]
    truth = [str(record["intent"]) for record in rows.held_out]
    p = probabilities(wanted.label, logits(model, heldout(wanted, asked, truth).inputs))
    guessed = [wanted.label.names[place] for place in p.argmax(axis=1)]
    right = np.array([guess == true for guess, true in zip(guessed, truth, strict=True)])
    return (
        Picture("Which topics it mixes up", confusion(wanted.label.names, truth, guessed), _by_language(asked, right)),
        _answers(asked, guessed, p.max(axis=1), right),
    )


def _by_language(asked: Sequence[Record], right: Any) -> str:
    chinese = np.array([is_chinese(record["text"]) for record in asked])
    english, other = _share(right[~chinese]), _share(right[chinese])
    return (
        f"Held-out questions; a row adds up to one. Of the {int((~chinese).sum())} English ones {english} are "
        f"recognised, of the {int(chinese.sum())} Chinese ones {other}."
    )


def _share(right: Any) -> str:
    return f"{np.mean(right):.0%}" if len(right) else "none"


def _answers(asked: Sequence[Record], guessed: Sequence[str], sure: Any, right: Any) -> Picture:
    """From the surest to the least sure question of both languages, evenly spaced: its answer, or handed over."""
    stored = [line for line in corpus() if _number(line.question) % 5]
    threshold = float(np.quantile(sure, MOST_LOST))
    kept = sure >= threshold
    ordered = [int(place) for place in np.argsort(-sure)]
    chosen: list[int] = []
    for language in (False, True):
        own = [place for place in ordered if is_chinese(asked[place]["text"]) == language]
        chosen += [own[int(step)] for step in np.linspace(0, len(own) - 1, SHOWN)]
    lines = [
        (
            asked[place]["text"],
            f"{guessed[place]} ({sure[place]:.0%})",
            nearest(asked[place]["text"], guessed[place], stored) if kept[place] else "to a person",
        )
        for place in chosen
    ]
    words = (
        f"Questions that no device had seen. The topic is the model's; the answer is the stored reply to the nearest "
        f"question of that topic. A quarter of the questions, those below {threshold:.0%}, go to a person: of the "
        f"rest {_share(right[kept])} are recognised, of those handed over {_share(right[~kept])} would be."
    )
    return Picture("What it would answer", table(("question", "topic", "answer"), lines), words)


def nearest(question: str, topic: str, stored: Sequence[Line]) -> str:
    """The reply to the stored question of this topic, in the same language, whose n-grams are most alike."""
    language = "chinese" if is_chinese(question) else "english"
    known = [line for line in stored if (line.topic, line.language) == (topic, language)]
    if not known:
        return "to a person: no answer is stored"
    texts = features(schema(), [{"text": text} for text in (question, *(line.question for line in known))])["features"]
    return known[int(np.argmax(texts[1:] @ texts[0]))].reply


PLAY: Final = Play(
    name="intents",
    source=SOURCE,
    records="questions",
    shares="desks",
    words="Accuracy: the share of questions whose topic is recognised",
    schema=schema,
    model=model,
    load=load,
    task=task,
    rounds=30,
    reaches_alone=False,  # twelve devices of 70 questions each pay more for privacy than some gain by pooling
    pictures=pictures,
)
