"""What a rehearsal leaves behind: report.html, summary.json, and a task that can be created from it.

The page needs no other file. Refuses nothing but what the disk refuses. `held_out.jsonl` holds rows of the data: the
folder is readable by its owner alone.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from aggregator.rehearsal import encoding
from aggregator.rehearsal.page import page
from aggregator.rehearsal.splits import Split
from aggregator.rehearsal.summary import summary
from aggregator.rehearsal.trial import Trial
from aggregator.rehearsal.understood import Understood
from aggregator.rehearsal.words import lines

MOST_HELDOUT: Final = 2000


def write_report(  # noqa: PLR0917 - what a report is made of, once
    folder: Path, trial: Trial, found: Understood, cut: Split, data: str, seconds: float
) -> dict[str, Any]:
    """Write the folder; what was found, with the lines to print."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(trial.model)
    task = {key: value for key, value in msgspec.to_builtins(trial.spec).items() if value != _defaults().get(key)}
    (folder / "task.json").write_text(json.dumps(task, indent=2) + "\n", encoding="utf-8")
    _write_heldout(folder / "held_out.jsonl", found, cut)
    commands = next_commands(folder, trial)
    whole = summary(trial, found) | {"data": Path(data).name, "seconds": seconds, "next": commands}
    whole["lines"] = lines(trial, folder, commands)
    (folder / "summary.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False), encoding="utf-8")
    text = page(trial, found, Path(data).name, commands, seconds)
    (folder / "report.html").write_text(text, encoding="utf-8")
    return whole


def _defaults() -> dict[str, Any]:
    from aggregator.tasks import TaskSpec

    return {one.name: one.default for one in msgspec.structs.fields(TaskSpec)} | {"about": {}}


def _write_heldout(path: Path, found: Understood, cut: Split) -> None:
    rows = cut.order[cut.test]
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_HELDOUT)).astype(np.int64)]
    answers = found.answers
    with path.open("w", encoding="utf-8") as file:
        path.chmod(0o600)
        for record, row in zip(encoding.records_of(found.features, rows), rows.tolist(), strict=True):
            file.write(json.dumps({**record, answers.name: answers.values[row]}, ensure_ascii=False) + "\n")


def next_commands(folder: Path, trial: Trial) -> list[str]:
    """What to run next, as it is typed."""
    files = [shlex.quote(str(folder / name)) for name in ("task.json", "model.onnx", "held_out.jsonl")]
    return [
        "aggregator init fleet-home",
        f"aggregator task create {trial.spec.name} --home fleet-home \\\n    --spec {files[0]} \\\n"
        f"    --model {files[1]} \\\n    --held-out {files[2]}",
        "aggregator serve --home fleet-home",
    ]
