"""The rounds of every task as a table that is drawn anew in place. Needs rich; shows what `status` gathered."""

from __future__ import annotations

from typing import Any, Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aggregator.status import Status, privacy_line

SHOWN: Final = 14


class LiveTable:
    """A table on the terminal, as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._live = Live(console=console or Console(), auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """One line above the table, which stays."""
        self._live.console.print(line, highlight=False, markup=False)

    def show(self, status: Status, *notes: str) -> None:
        """Draw `status`, and notes below it."""
        self._live.update(picture(status, *notes), refresh=True)


def picture(status: Status, *notes: str) -> Group:
    """Everything to be drawn."""
    devices = status["devices"]
    head = f"fleet {status['fleet']}: {devices['live']} of {devices['active']} devices live"
    parts: list[Any] = [Text(head, style="bold")]
    for task in status["tasks"]:
        parts += [rounds_table(task), Text(f"{task['name']}: {task_line(task)}"), Text(privacy_line(task["privacy"]))]
    return Group(*parts, *(Text(note) for note in notes))


def task_line(task: Status) -> str:
    """Where the task stands and what it waits for."""
    why = task["reason"] or task["waiting"]
    return f"{task['rounds_done']} of {task['rounds_wanted']} rounds, {task['phase']}" + (f" ({why})" if why else "")


def rounds_table(task: Status) -> Table:
    """Round, devices in, metric, epsilon with its unit, upload against float32, seconds by phase."""
    table = Table()
    unit = task["privacy"].get("unit", "")
    for name in ("round", "phase", "in", task["metric_name"], f"epsilon/{unit}", "upload", "float32"):
        table.add_column(name, justify="left" if name == "phase" else "right", no_wrap=True)
    table.add_column("seconds: train collect open average evaluate release", justify="right", no_wrap=True)
    for entry in task["rounds"][-SHOWN:]:
        table.add_row(*_cells(entry))
    return table


def _cells(entry: Status) -> list[str]:
    return [
        str(entry["round"]),
        entry["phase"],
        str(entry["devices_in"]),
        _number(entry["metric"], ".4f"),
        _number(entry["epsilon"], ".2f"),
        _number(entry["upload_bytes"], ",d"),
        _number(entry["float32_bytes"], ",d"),
        " ".join(_number(seconds, "5.2f") for seconds in entry["seconds"].values()),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
