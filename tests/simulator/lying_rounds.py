"""What the lying aggregator's attacks share: ten devices, two of them its own, an honest round, and the verdict."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lying_aggregator import Liar

from edge_sdk import member_duty

TARGET = "d0"
COLLUDERS = ("d3", "d7")
EVERY_DEFENCE = pytest.mark.parametrize("defended", [True, False], ids=["defended", "defence removed"])
MakeLiar = Callable[..., Liar]


@pytest.fixture
def liar_with() -> Iterator[MakeLiar]:
    memory, made = Path("/dev/shm"), []
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:

        def make(size: int = 10, colluders: Sequence[str] = COLLUDERS, **options: Any) -> Liar:
            made.append(Liar(Path(folder), size, colluders, **options))
            return made[-1]

        yield make
        for liar in made:
            liar.close()


@pytest.fixture
def liar(liar_with: MakeLiar) -> Liar:
    return liar_with()


def judge(liar: Liar, seen: np.ndarray | None, defended: bool, reason: str, who: Sequence[str] = ()) -> None:
    """The attack failed, for the reason it was to fail for; without the defence it has the device's very vector."""
    if defended:
        assert seen is None or seen.tolist() != liar.one_hot(TARGET)
        assert reason in liar.refusals(who)
    else:
        assert seen is not None
        assert seen.tolist() == liar.one_hot(TARGET)


def honest_round(liar: Liar) -> bytes:
    stated = liar.state_roster()
    return liar.publish(liar.offer(stated), stated)


def without(liar: Liar, *devices: str) -> list[str]:
    return [name for name in liar.names if name not in devices]


def asked(liar: Liar, digest: bytes, group: list[str], **how: Any) -> dict[int, np.ndarray]:
    """Answers of the honest members, and those of the liar's own."""
    return liar.ask(digest, [group], **how)[0] | liar.collude(digest, group, make=how.get("make"))


# -- two sets of survivors -------------------------------------------------------------------------------------------


def forget_answers(patch: pytest.MonkeyPatch) -> None:
    """A member without its journal: it answers whatever it is asked, as often as it is asked."""

    def forget(connection: Any, notice: Any) -> None:
        connection.execute("DELETE FROM answers")

    patch.setattr(member_duty, "stored_answer", forget)
