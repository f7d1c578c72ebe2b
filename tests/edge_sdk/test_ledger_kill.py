"""`kill -9` at every point of a release: real processes, real files. Never charged twice, never forgotten."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_sdk import outbox
from edge_sdk.device_db import open_device_db
from edge_sdk.outbox import Outbox, SealedUpload
from edge_sdk.privacy.accounting import compose, subsampled_gaussian
from edge_sdk.privacy.ledger import Ledger
from edge_sdk.protocol.errors import LocalProtocolError
from edge_sdk.protocol.messages import Hello

SPEND = subsampled_gaussian(0.1, 1.0, 10)


def upload(number: int, attempt: int = 0) -> SealedUpload:
    hello = Hello((number + (attempt << 64)).to_bytes(16, "big"), "intent", number, bytes(32), 100, 0, bytes(1120))
    return SealedUpload(hello, 2**33, (bytes(116),))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def release(home: Path, number: int, attempt: int = 0, *, before: bool = False, after: bool = False) -> None:
    """As the work thread does it; dies inside the transaction, before or after the charge, where that is asked for."""
    connection = open_device_db(home / "device.db")
    ledger = Ledger(connection)

    def charge() -> None:
        if before:
            die()
        ledger.charge("intent", "record", number, SPEND)
        if after:
            die()

    Outbox.commit(connection, home / "outbox", upload(number, attempt), charge)
    connection.close()


def killed(action: Callable[[], None]) -> None:
    """Run in a process of its own, which must end by its own kill -9."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def found(home: Path) -> tuple[list[int], list[int], list[str]]:
    """(rounds charged, rounds released, files), as the next start finds them."""
    connection = open_device_db(home / "device.db")
    charged = Ledger(connection).rounds("intent", "record")
    assert Ledger(connection).spent("intent", "record") == pytest.approx(compose([SPEND] * len(charged)))
    Outbox(connection, home / "outbox", lambda message: b"", 5.0)
    released = [number for (number,) in connection.execute("SELECT round FROM outbox ORDER BY round")]
    files = sorted(file.name for file in (home / "outbox").iterdir())
    connection.close()
    return charged, released, files


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "outbox").mkdir()
    release(tmp_path, 1)
    return tmp_path


def file_of(number: int) -> str:
    return f"{upload(number).hello.upload.hex()}.sealed"


def write_half(path: Path, parts: tuple[bytes, ...]) -> None:
    path.write_bytes(parts[0][:50])
    die()


def die_before_the_transaction(home: Path) -> None:
    outbox.transaction = lambda connection: die()  # in a process that ends here
    release(home, 2)


def die_in_the_file(home: Path) -> None:
    outbox._write_durably = write_half
    release(home, 2)


def die_after_the_commit(home: Path) -> None:
    release(home, 2)
    die()


UNDONE: dict[str, Callable[[Path], None]] = {
    "half a file": die_in_the_file,
    "the file, and no transaction": die_before_the_transaction,
    "inside, before the charge": lambda home: release(home, 2, before=True),
    "inside, after the charge": lambda home: release(home, 2, after=True),
}


@pytest.mark.parametrize("point", UNDONE)
def test_a_release_that_was_not_committed_left_nothing_and_costs_nothing_and_is_done_anew(
    home: Path, point: str
) -> None:
    killed(lambda: UNDONE[point](home))
    assert found(home) == ([1], [1], [file_of(1)])
    release(home, 2)
    assert found(home) == ([1, 2], [1, 2], [file_of(1), file_of(2)])


def test_a_release_that_was_committed_is_charged_once_and_not_released_again(home: Path) -> None:
    killed(lambda: die_after_the_commit(home))
    assert found(home) == ([1, 2], [1, 2], [file_of(1), file_of(2)])
    with pytest.raises(LocalProtocolError):
        release(home, 2, attempt=1)
    assert found(home) == ([1, 2], [1, 2], [file_of(1), file_of(2)])


def test_killed_at_any_moment_what_was_released_is_what_was_charged(home: Path) -> None:
    rng = random.Random(3)
    for _ in range(6):
        child = os.fork()
        if child == 0:
            try:
                first = found(home)[1][-1] + 1
                for number in range(first, first + 100_000):
                    release(home, number)
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.02, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        charged, released, files = found(home)
        assert charged == released == list(range(1, len(released) + 1))
        assert files == [file_of(number) for number in released]
    assert len(released) > 1
