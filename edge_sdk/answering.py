"""From a recognised intent to what is said: the best stored answer, or a person. Pure; refuses nothing, hands over.

Of several answers to one intent the one is chosen whose words are nearest to the question: the cosine of the same
hashed n-grams that the model reads, so it works for Chinese and English alike. An answer in another language than the
one asked for is never given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from edge_sdk.answer_list import AnswerList, StoredAnswer
    from edge_sdk.artifact.schema import Schema, TextField

ALTERNATIVES: Final = 3
REMEMBERED: Final = 256  # vectors of answers
SHOWN_FIELDS: Final = 8
HANDOVER: Final = {
    "en": "One moment, please: I am passing you on to a colleague.",
    "zh": "请稍候，我为您转接人工客服。",
}
Ranked = Sequence[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Reply:
    """What to say. `reason`, where `handed_over`: below-threshold, out-of-scope, no-answer, no-list or unavailable.

    `intent` and `confidence` are the model's best guess even then; `alternatives` are the next (label, confidence).
    `error` says why nothing was recognised.
    """

    text: str
    intent: str | None = None
    confidence: float = 0.0
    handed_over: bool = True
    reason: str = "unavailable"
    alternatives: tuple[tuple[str, float], ...] = ()
    error: str = ""


class Answers:
    """One version of a task's list, ready to be asked. Immutable but for what it remembers of its texts."""

    def __init__(self, listed: AnswerList) -> None:
        self.version, self._listed = listed.version, listed
        self._of_intent: dict[str, list[StoredAnswer]] = {}
        for answer in listed.answers:
            self._of_intent.setdefault(answer.intent, []).append(answer)
        self._vectors: dict[tuple[object, ...], dict[int, float]] = {}

    def __repr__(self) -> str:
        return f"Answers(version={self.version})"

    def reply(self, schema: Schema, fields: Mapping[str, Any], ranked: Ranked, language: str) -> Reply:
        """What to say to a record whose intents are `ranked`, best first."""
        (intent, confidence), others = ranked[0], tuple(ranked[1 : 1 + ALTERNATIVES])
        found = [each for each in self._of_intent.get(intent, ()) if _same(each.language, language)]
        # The country's own answers before those of the language.
        found = [each for each in found if each.language.lower() == language.lower()] or found
        reason = (
            "out-of-scope" if intent in self._listed.refuse
            else "below-threshold" if not confidence >= self._listed.threshold
            else "" if found else "no-answer"
        )  # fmt: skip
        text = self.handover(language) if reason else self._nearest(schema, fields, found).text
        return Reply(text, intent, confidence, bool(reason), reason, others)

    def handover(self, language: str) -> str:
        """What is said when a person takes over, in this language where the list or the SDK has it."""
        return handover(language, self._listed.handover)

    def _nearest(self, schema: Schema, fields: Mapping[str, Any], found: list[StoredAnswer]) -> StoredAnswer:
        """By cosine, over all texts of the record; the first of the list where none is nearer."""
        if len(found) == 1:
            return found[0]
        texts = [(each, fields[each.name]) for each in _texts(schema) if isinstance(fields.get(each.name), str)]
        scores = [sum(self._cosine(field, text, each) for field, text in texts) for each in found]
        return found[scores.index(max(scores))]

    def _cosine(self, field: TextField, text: str, answer: StoredAnswer) -> float:
        words = (answer.title, answer.text, *answer.tags)
        place = (field.name, field.width, field.chars, field.words, words)
        vector = self._vectors.get(place)
        if vector is None:
            if len(self._vectors) >= REMEMBERED:
                self._vectors.clear()
            vector = self._vectors[place] = _vector(field, "\n".join(words))
        return sum(value * vector.get(bucket, 0.0) for bucket, value in _vector(field, text).items())


def reply(answers: Answers | None, schema: Schema, fields: Mapping[str, Any], ranked: Ranked, language: str) -> Reply:
    """`Answers.reply`; without a list a person takes over."""
    if answers is not None:
        return answers.reply(schema, fields, ranked, language)
    (intent, confidence), others = ranked[0], tuple(ranked[1 : 1 + ALTERNATIVES])
    return Reply(handover(language, {}), intent, confidence, reason="no-list", alternatives=others)


def failed(answers: Answers | None, language: object, error: str) -> Reply:
    """Nothing was recognised: a person takes over."""
    wanted = language if isinstance(language, str) else "en"
    return Reply(handover(wanted, {}) if answers is None else answers.handover(wanted), error=error)


def handover(language: str, said: Mapping[str, str]) -> str:
    """What is said when a person takes over: the operator's words in this language, ours, or theirs in another."""
    for words in (said, HANDOVER):
        for wanted in (language, language.split("-", maxsplit=1)[0]):
            for known, text in words.items():
                if known.lower() == wanted.lower():
                    return text
    return said.get("en") or next(iter(said.values()), HANDOVER["en"])


def record_of(schema: Schema, asked: Any) -> dict[str, Any]:
    """The record that was asked about; a plain text goes into the schema's one text field.

    Raises ValueError, RecordError.
    """
    if isinstance(asked, Mapping):
        return dict(asked)
    if not isinstance(asked, str):
        from edge_sdk.artifact.errors import RecordError
        from edge_sdk.artifact.values import shown

        names = ", ".join(repr(field.name) for field in schema.fields[:SHOWN_FIELDS])
        more = ", ..." if len(schema.fields) > SHOWN_FIELDS else ""
        what = f"a record must be a mapping of field names to values ({names}{more}), not {shown(asked)}"
        raise RecordError("wrong-type", what)
    texts = _texts(schema)
    if len(texts) != 1:
        raise ValueError(f"the task reads {len(texts)} texts; give the fields of the record by their names")
    return {texts[0].name: asked}


def _same(known: str, wanted: str) -> bool:
    """zh-CN is asked and zh is there, or the other way round."""
    return known.split("-", maxsplit=1)[0].lower() == wanted.split("-", maxsplit=1)[0].lower()


def _texts(schema: Schema) -> list[TextField]:
    from edge_sdk.artifact.schema import TextField

    return [field for field in schema.fields if isinstance(field, TextField)]


def _vector(field: TextField, text: str) -> dict[int, float]:
    from edge_sdk.artifact.text import hashed

    return dict(hashed(text, field.width, field.chars, field.words))
