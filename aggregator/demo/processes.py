"""The demo's child processes: each started in a session of its own, logged to a file, and stopped by its own pid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

STOP_S: Final = 8.0
TAIL_BYTES: Final = 16_384


class DemoFailed(Exception):
    """A step of the demo did not come about. The message says which, and where to look."""

    hint = "the logs of every process lie beside the report, in logs/"


class Children:
    """Processes by name, as a context manager that leaves none behind."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start `command`; its output goes to `name`.out and `name`.err."""
        with self.output(name).open("ab") as out, self.errors(name).open("ab") as err:
            self._running[name] = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # Ctrl-C is for the demo, which stops them in order
            )

    def output(self, name: str) -> Path:
        return self._logs / f"{name}.out"

    def errors(self, name: str) -> Path:
        return self._logs / f"{name}.err"

    def alive(self, name: str) -> bool:
        process = self._running.get(name)
        return process is not None and process.poll() is None

    def require(self, name: str) -> None:
        """Raise DemoFailed, with the end of its log, where a process has ended by itself."""
        if not self.alive(name):
            raise DemoFailed(f"{name} ended: {self.errors(name).read_text(errors='replace')[-400:].strip()}")

    def kill(self, name: str) -> None:
        """kill -9."""
        self._running[name].kill()
        self._running[name].wait()

    def stop_all(self) -> None:
        """SIGTERM to each, newest first, so that the aggregator goes last; SIGKILL to what is left."""
        names = list(reversed(self._running))
        devices, aggregator = [n for n in names if n != "aggregator"], [n for n in names if n == "aggregator"]
        for group in (devices, aggregator):
            self._stop(group)

    def _stop(self, names: Sequence[str]) -> None:
        for name in names:
            if self.alive(name):
                self._running[name].send_signal(signal.SIGTERM)
        for name in names:
            try:
                self._running[name].wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._running[name].kill()
                self._running[name].wait()


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole JSON lines at the end of a log, oldest first; a line still being written is left out."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    for line in text.split("\n")[:-1]:
        if line.startswith("{"):
            try:
                yield json.loads(line)
            except ValueError:
                continue
