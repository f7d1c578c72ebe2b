"""What the demo shows while it runs: a table drawn anew on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Self

from aggregator.demo.plots import metric_name
from aggregator.live_table import LiveTable
from aggregator.status import Status


class Screen:
    """As a context manager. Lines said go above the table and stay."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._stack = ExitStack()
        self._table: LiveTable | None = None
        self._shown: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.still()

    def say(self, line: str) -> None:
        """One line that stays."""
        if self._table is not None:
            self._table.say(line)
        else:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()

    def show(self, status: Status) -> None:
        """The rounds as they are now."""
        if self._terminal:
            if self._table is None:
                self._table = self._stack.enter_context(LiveTable())
            self._table.show(status)
            return
        for task in status["tasks"]:
            for entry in task["rounds"]:
                # Before it is released, a round may still show what the one before it came to.
                told = entry["phase"] == "released" and entry["metric"] is not None
                if told and entry["round"] not in self._shown:
                    self._shown.add(entry["round"])
                    self.say(_line(task, entry))

    def still(self) -> None:
        """Leave the table as it stands; what follows goes below it."""
        self._stack.close()
        self._table = None


def _line(task: Status, entry: Status) -> str:
    took = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in entry["seconds"].items() if seconds is not None)
    metric = f"{metric_name(task['metric_name'])} {entry['metric']:.4f}"
    return (
        f"  round {entry['round']:2}: {entry['devices_in']} devices in, {metric}, "
        f"epsilon {entry['epsilon']:.2f} for each {task['privacy']['unit']} at delta {task['privacy']['delta']:g}, "
        f"{task['privacy']['placement']} noise, upload {entry['upload_bytes']:,} B "
        f"(float32 {entry['float32_bytes']:,} B); seconds: {took}"
    )
