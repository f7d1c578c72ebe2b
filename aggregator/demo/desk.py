"""What a play that answers customers needs to know, and what came of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aggregator.demo.play import Picture, Rows

LANGUAGES: Final = {"en": "English", "zh": "Chinese"}


@dataclass(frozen=True, slots=True)
class Question:
    """A customer's question, its language ("en", "zh") and the intent that it has in truth."""

    text: str
    language: str
    truth: str


@dataclass(frozen=True, slots=True)
class Replied:
    """What a device said to a question. `reason`: why a person takes over, "" where the device answered."""

    question: Question
    text: str
    intent: str
    confidence: float
    reason: str

    @property
    def by_itself(self) -> bool:
        """Answered from the signed list."""
        return not self.reason

    @property
    def recognised(self) -> bool:
        return self.intent == self.question.truth


@dataclass(frozen=True, slots=True)
class Desk:
    """The end of such a play: the operator's list for the released model, what customers ask, how it is shown.

    `answers(model, rows)`: the list as `aggregator answers publish` takes it.
    """

    answers: Callable[[bytes, Rows], dict[str, Any]]
    questions: Callable[[Rows], Sequence[Question]]
    picture: Callable[[Sequence[Replied]], Picture]


def replies_of(questions: Sequence[Question], said: Sequence[dict[str, Any]]) -> list[Replied]:
    """The device's printed replies, in the order of the questions. Raises ValueError where one is missing."""
    return [
        Replied(question, reply["text"], str(reply["intent"]), float(reply["confidence"]), str(reply["reason"]))
        for question, reply in zip(questions, said, strict=True)
    ]


def promises(replies: Sequence[Replied]) -> list[tuple[str, bool]]:
    """Every sentence about the desk, and whether it held."""
    by_itself = [one.question.language for one in replies if one.by_itself]
    languages = sorted({one.question.language for one in replies})
    return [
        *(
            (
                f"with everything else switched off, a device answered customers in {LANGUAGES[each]} from the "
                "operator's signed list",
                each in by_itself,
            )
            for each in languages
        ),
        (
            "it handed questions it was not sure of over to a person",
            any(one.reason == "below-threshold" for one in replies),
        ),
    ]
