"""The operator's list of answers: what it may hold, and how it is read. One form for who signs it and who serves it.

Pure. Refuses (AnswersRefused, which names what and where) a list that is too large, not this form, without an answer,
or whose texts hold what cannot be shown. That the intents are the model's is checked by `check_intents`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

MAX_BYTES: Final = 2**20
OUT_OF_SCOPE: Final = "oos"
NAMED: Final = 5  # of what is wrong, in one message

Word = Annotated[str, Meta(min_length=1, max_length=200)]
Text = Annotated[str, Meta(min_length=1, max_length=4000)]
Language = Annotated[str, Meta(pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}$", max_length=35)]


T = TypeVar("T", bound="Written")


class AnswersRefused(ValueError):
    """The list cannot be taken. `remedy` names what to do; `reason` is a stable word."""

    def __init__(self, message: str, remedy: str, *, reason: str = "answers") -> None:
        super().__init__(message)
        self.remedy = remedy
        self.hint = remedy
        self.reason = reason


class StoredAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One answer to one intent, in one language. `title` and `tags` help to find the nearest; `text` is shown."""

    intent: Word
    text: Text
    language: Language = "en"
    title: Annotated[str, Meta(max_length=200)] = ""
    tags: Annotated[tuple[Word, ...], Meta(max_length=32)] = ()


class Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the operator writes. `threshold`: a confidence below it hands over; `refuse`: labels that always do.

    `handover`: what is said then, by language.
    """

    answers: Annotated[tuple[StoredAnswer, ...], Meta(min_length=1, max_length=5000)]
    threshold: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.6
    handover: Annotated[dict[Language, Text], Meta(max_length=64)] = {}  # msgspec copies an empty default
    refuse: Annotated[tuple[Word, ...], Meta(max_length=1000)] = (OUT_OF_SCOPE,)


class AnswerList(Written, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is signed: the same, and of which task and which version it is."""

    task: Word
    version: Annotated[int, Meta(ge=1, le=10**15)]


def read_written(data: bytes) -> Written:
    """The operator's file. Raises AnswersRefused."""
    return _read(data, Written)


def read_signed(data: bytes, task: str, version: int) -> AnswerList:
    """A signed list, which must say of itself what the repository says of it. Raises AnswersRefused."""
    read = _read(data, AnswerList)
    if (read.task, read.version) != (task, version):
        raise AnswersRefused(f"the list is version {read.version} of {read.task!r}", "publish it again")
    return read


def sealed(written: Written, task: str, version: int) -> bytes:
    """The bytes to sign. Raises AnswersRefused where they are too many."""
    parts = {name: getattr(written, name) for name in Written.__struct_fields__}
    data = msgspec.json.encode(AnswerList(task=task, version=version, **parts))
    _check_size(data)
    return data


def check_intents(written: Written, labels: Collection[str]) -> None:
    """Every intent is a label of the task's model, and none is both answered and refused. Raises AnswersRefused."""
    intents = dict.fromkeys(answer.intent for answer in written.answers)
    unknown = [name for name in (*intents, *written.refuse) if name not in labels and name != OUT_OF_SCOPE]
    if unknown:
        raise AnswersRefused(
            f"no labels of the task's model: {_named(unknown)}", f"use its labels: {_named(sorted(labels), 40)}"
        )
    if both := [name for name in intents if name in written.refuse or name not in labels]:
        raise AnswersRefused(
            f"answered and yet refused: {_named(both)}", "take them out of `refuse`, or take their answers out"
        )


def unanswered(written: Written, labels: Collection[str]) -> dict[str, list[str]]:
    """By language of the list: labels that have no answer in it and are handed over."""
    languages = sorted({answer.language for answer in written.answers})
    there = {(answer.intent, answer.language) for answer in written.answers}
    wanted = [label for label in labels if label not in written.refuse]
    return {each: [label for label in wanted if (label, each) not in there] for each in languages}


def _read(data: bytes, kind: type[T]) -> T:
    _check_size(data)
    try:
        read = msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise AnswersRefused(
            f"the list of answers is not what it should be: {error}", "see docs/embedding.md for its form"
        ) from error
    for place, answer in enumerate(read.answers):
        if not answer.text.strip():
            raise AnswersRefused(f"answer {place} of intent {answer.intent!r} is empty", "write it, or take it out")
    return read


def _check_size(data: bytes) -> None:
    if len(data) > MAX_BYTES:
        raise AnswersRefused(f"the list has {len(data)} bytes; {MAX_BYTES} are possible", "shorten its texts")


def _named(words: Collection[str], most: int = NAMED) -> str:
    shown = [word[:80] for word in list(words)[:most]]
    return ", ".join(shown) + (f" and {len(words) - most} more" if len(words) > most else "")
