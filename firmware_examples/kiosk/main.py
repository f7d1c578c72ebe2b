"""A self-service kiosk: while a customer stands at it, it answers and never trains; in between it learns.

python main.py --home DIR --data customers.csv --task churn [--subject COLUMN] [--every 5] [--json-lines]
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import signal
import threading
from pathlib import Path
from typing import Any

import edge_sdk

Known = list[tuple[dict[str, Any], Any, str]]


def customers(path: Path, label: str | None, subject: str | None) -> Known:
    """Rows of a CSV table, or of JSON lines, as (fields, label, whose); the label is the last column unless named."""
    with path.open(newline="", encoding="utf-8") as file:
        table = ({key: value(text) for key, text in row.items()} for row in csv.DictReader(file))
        rows = [json.loads(line) for line in file] if path.suffix == ".jsonl" else list(table)
    name = label or list(rows[0])[-1]
    whose = [str(row.pop(subject)) if subject else f"customer-{number}" for number, row in enumerate(rows)]
    return [(row, row.pop(name), who) for row, who in zip(rows, whose, strict=True)]


def value(text: str) -> float | str:
    """A number where the cell holds one."""
    with contextlib.suppress(ValueError):
        return float(text)
    return text


class Kiosk:
    """One screen. `in_use` is what the SDK asks before and while it trains."""

    def __init__(self, fl: edge_sdk.EdgeClient, task: str, json_lines: bool) -> None:
        self.fl, self.task, self.json_lines, self.in_use = fl, task, json_lines, False

    def learn_from(self, known: Known) -> None:
        """Record the past customers, once in the life of this kiosk."""
        if self.fl.status().get("examples", {}).get(self.task):
            return
        for fields, label, who in known:
            self.fl.record(self.task, fields, label, subject=who)
        self.fl.flush(10.0)

    def serve(self, fields: dict[str, Any], stop: threading.Event, seconds: float) -> None:
        """A customer stands here for a moment and gets an answer at once."""
        self.in_use = True
        self.show(self.fl.predict(self.task, fields))
        stop.wait(seconds)
        self.in_use = False

    def show(self, answer: edge_sdk.Answer) -> None:
        seen = {"label": answer.label, "score": round(answer.score, 6), "model_version": answer.model_version}
        said = f"{answer.label} ({answer.score:.0%}, model {answer.model_version})"
        if self.json_lines:
            print(json.dumps({**seen, "model_sha256": answer.model_sha256}), flush=True)
        else:
            print(said if answer.available else f"no answer yet: {answer.error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="A kiosk that predicts and learns.")
    parser.add_argument("--home", type=Path, help="the enrolled device's directory (default: EDGE_HOME)")
    parser.add_argument("--data", type=Path, required=True, help="past customers: a CSV table, or JSON lines (.jsonl)")
    parser.add_argument("--label", help="the column to predict (default: the last)")
    parser.add_argument("--subject", help="the column that says whose a row is (default: each row another customer)")
    parser.add_argument("--task", required=True)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between customers")
    parser.add_argument("--json-lines", action="store_true")
    chosen, stop = parser.parse_args(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    known = customers(chosen.data, chosen.label, chosen.subject)
    # Before the first signed model is here, this list says what may be kept; then its schema does.
    allowed = tuple(f"{chosen.task}.{name}" for name in known[0][0])
    with edge_sdk.init(home=chosen.home, fields=allowed) as fl:
        kiosk = Kiosk(fl, chosen.task, chosen.json_lines)

        @fl.busy
        def busy() -> bool:
            return kiosk.in_use

        kiosk.learn_from(known)
        for fields, *_ in itertools.cycle(known):
            if stop.wait(0.8 * chosen.every):
                break
            kiosk.serve(fields, stop, 0.2 * chosen.every)


if __name__ == "__main__":
    main()
