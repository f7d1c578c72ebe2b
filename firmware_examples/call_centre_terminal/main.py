"""A call-centre terminal: predicts while the agent speaks, and learns from what the call turned out to be.

python main.py --home DIR --data calls.csv --task churn [--subject COLUMN] [--every 5] [--json-lines]
"""

from __future__ import annotations

import argparse
import csv
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import edge_sdk

Call = tuple[dict[str, Any], Any, str]


def calls(path: Path, label: str | None, subject: str | None) -> Iterator[Call]:
    """Rows of a CSV table, or of JSON lines, as (fields, outcome, whose); the outcome is the last column or named."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = map(json.loads, file) if path.suffix == ".jsonl" else map(numbers, csv.DictReader(file))
        for number, row in enumerate(rows):
            outcome = row.pop(label or list(row)[-1])
            yield row, outcome, str(row.pop(subject)) if subject else f"caller-{number}"


def numbers(row: dict[str, Any]) -> dict[str, Any]:
    """A table's row with its numbers read."""
    return {key: value(text) for key, text in row.items()}


def value(text: str) -> float | str:
    """A number where the cell holds one."""
    try:
        return float(text)
    except ValueError:
        return text


def line(answer: edge_sdk.Answer) -> str:
    """One call as a line of JSON."""
    return json.dumps(
        {
            "label": answer.label,
            "score": round(answer.score, 6),
            "model_version": answer.model_version,
            "model_sha256": answer.model_sha256,
        }
    )


def note(answer: edge_sdk.Answer) -> str:
    """What the agent sees beside the call."""
    if not answer.available:
        return f"no advice yet: {answer.error}"
    return ", ".join(f"{label} {score:.0%}" for label, score in answer.top(3))


def load_history(fl: edge_sdk.EdgeClient, task: str, history: list[Call]) -> None:
    """Record past calls once; a terminal that is started again has them already."""
    if fl.status().get("examples", {}).get(task):
        return
    for fields, outcome, whose in history:
        fl.record(task, fields, outcome, subject=whose)
    fl.flush(10.0)


def main() -> None:
    parser = argparse.ArgumentParser(description="A call-centre terminal that advises and learns.")
    parser.add_argument("--home", type=Path, help="the enrolled device's directory (default: EDGE_HOME)")
    parser.add_argument("--data", type=Path, required=True, help="past calls: a CSV table, or JSON lines (.jsonl)")
    parser.add_argument("--label", help="the column to predict (default: the last)")
    parser.add_argument("--subject", help="the column that says whose a row is (default: each row another caller)")
    parser.add_argument("--task", required=True)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between calls")
    parser.add_argument("--json-lines", action="store_true")
    chosen = parser.parse_args()

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    history = list(calls(chosen.data, chosen.label, chosen.subject))
    # Before the first signed model is here, this list says what may be kept; then its schema does.
    allowed = tuple(f"{chosen.task}.{name}" for name in history[0][0])
    with edge_sdk.init(home=chosen.home, fields=allowed) as fl:
        load_history(fl, chosen.task, history)
        turn = 0
        while not stop.wait(chosen.every):
            fields, *_ = history[turn % len(history)]
            answer = fl.predict(chosen.task, fields)
            print(line(answer) if chosen.json_lines else note(answer), flush=True)
            turn += 1


if __name__ == "__main__":
    main()
