"""The operator's list of answers on this device's disk, beside the model's slots: the newest and the one before.

What is stored was verified by TUF just before. Refuses (UpdateRefused) signed bytes that are no such list; a file that
cannot be read any more gives way to the one before, and is fetched again.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import msgspec

from edge_sdk.answer_list import AnswerList, AnswersRefused, read_signed
from edge_sdk.ota.durable import write_durably
from edge_sdk.ota.errors import UpdateRefused

NEWEST: Final = "answers.json"
BEFORE: Final = "answers.before.json"


def store(home: Path, task: str, version: int, data: bytes) -> AnswerList:
    """Keep a verified list; a crash leaves the old one or the new one. Raises UpdateRefused, DiskFull, OSError."""
    try:
        listed = read_signed(data, task, version)
    except AnswersRefused as error:
        raise UpdateRefused(f"signed answers of {task}: {error}", reason="answers-malformed") from error
    folder = home / "models" / task
    folder.mkdir(parents=True, exist_ok=True)
    if load(home, task) is not None:
        with contextlib.suppress(FileNotFoundError):
            write_durably(folder / BEFORE, (folder / NEWEST).read_bytes())
    write_durably(folder / NEWEST, data)
    return listed


def load(home: Path, task: str) -> AnswerList | None:
    """The newest list that can be read, None without one."""
    for name in (NEWEST, BEFORE):
        with contextlib.suppress(OSError, msgspec.MsgspecError, AnswersRefused):
            data = (home / "models" / task / name).read_bytes()
            about = msgspec.json.decode(data, type=_About)
            return read_signed(data, task, about.version)
    return None


class _About(msgspec.Struct, frozen=True):
    version: int
