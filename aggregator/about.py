"""What only a person can say of a task: why it learns, on what legal ground, who answers for it. Pure but for reading.

Nothing here is ever made up: what nobody stated stays empty, and whoever shows it says "not stated". Refuses
(TaskRefused) a file with a field that it does not know, naming the field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from aggregator.config import ConfigError
from aggregator.errors import TaskRefused

Line = Annotated[str, Meta(max_length=300)]
Prose = Annotated[str, Meta(max_length=4000)]
LegalBasis = Literal["consent", "contract", "legitimate-interests", "legal-obligation", "not-personal"]


class Words(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same said in English and in Chinese; either may be missing."""

    en: Prose = ""
    zh: Prose = ""


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A person's statements about one task. A text is in one language or, as {"en": ..., "zh": ...}, in both.

    `retention_days`: how long examples stay on devices, as their customers were told. `cross_border`: to which
    countries anything goes and on what ground, or that nothing does. `dpia_owner`: who answers for the assessment.
    """

    purpose: Prose | Words = ""
    legal_basis: LegalBasis | None = None
    legal_basis_note: Prose | Words = ""
    controller: Line | Words = ""
    contact: Line = ""
    retention_days: Annotated[int, Meta(ge=1, le=36_500)] | None = None
    recipients: Annotated[tuple[Line, ...], Meta(max_length=64)] | None = None
    cross_border: Prose | Words = ""
    dpia_owner: Line = ""
    limits: Prose | Words = ""


NAMES = About.__struct_fields__


def in_language(text: str | Words, language: Literal["en", "zh"]) -> str:
    """The text in this language, else in the other: said in a foreign language is still said."""
    if isinstance(text, str):
        return text
    first, second = (text.zh, text.en) if language == "zh" else (text.en, text.zh)
    return first or second


def stated(about: About) -> dict[str, Any]:
    """What was stated, as plain values for JSON, by field."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(about))
    return {name: value for name, value in plain.items() if not is_missing(value)}


def is_missing(value: Any) -> bool:
    """Nothing was said: no value, an empty text, or empty in both languages."""
    return value in (None, "") or (isinstance(value, dict) and not any(value.values()))


def missing(about: About) -> list[str]:
    """The fields that nobody stated."""
    said = stated(about)
    return [name for name in NAMES if name not in said and not name.endswith("_note") and name != "limits"]


def read_about(path: Path) -> About:
    """Read a file of statements, JSON. Raises ConfigError for no file, TaskRefused naming the field."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=About, strict=True)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "name a JSON file with --about") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        hint = f"correct that field; known are {', '.join(NAMES)}"
        raise TaskRefused(f"{path.name} does not parse: {error}", hint, reason="about") from error
