"""Questions that no intent fits: how many a fleet's intent model hands to a person, and how many others with them.

    python benchmarks/refusals.py [--setting no_privacy]... [--most-lost 0.1] [--json]

intents_clinc150: the fleet trains on the training rows less their validation part. The threshold on the best score is
the highest that hands over at most --most-lost of the validation part; no out-of-scope text is needed for it. On the
test rows: `caught`, the share of the 1,000 out-of-scope texts below it; `lost`, the share of the 4,500 in scope below
it; `right`, the accuracy of those that are answered; `accuracy`, of all in scope had none been handed over.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from aggregator import tasks  # noqa: E402 # the path makes a clone work as it is
from aggregator.evaluation import logits  # noqa: E402 # as above
from aggregator.rehearsal.fleet import VirtualFleet  # noqa: E402 # as above
from benchmarks.applying.dataset import Dataset, data_directory  # noqa: E402 # as above
from benchmarks.applying.running import population  # noqa: E402 # as above
from benchmarks.applying.service import clinc150_foreign, intents_clinc150  # noqa: E402 # as above
from edge_sdk.artifact.features import decide, features  # noqa: E402 # as above
from edge_sdk.artifact.recipes.service import refusal  # noqa: E402 # as above

SHARED: Final = ("no_privacy", "eps8_shared", "eps3_shared")


def trained(dataset: Dataset, setting: str) -> bytes:
    """The fleet's model without the validation part."""
    spec = tasks.build_spec(name="refusals", **dataset.settings[setting])
    people = population(dataset, dataset.train.take(~dataset.validation))
    fleet = VirtualFleet(people, dataset.first_model(setting, 0), spec, fast=True)
    fleet.run(on_round=lambda figures: print(f"\r{setting} round {figures.round}", end="", file=sys.stderr))
    print(file=sys.stderr)
    return fleet.model


def best(dataset: Dataset, model: bytes, texts: list[str]) -> tuple[list[str], npt.NDArray[np.float64]]:
    """The intent of each text, and its score."""
    ranked = decide(dataset.schema, logits(model, features(dataset.schema, [{"text": text} for text in texts])))
    return [pairs[0][0] for pairs in ranked], np.array([pairs[0][1] for pairs in ranked])


def measure(dataset: Dataset, foreign: tuple[list[str], list[str]], setting: str, most_lost: float) -> dict[str, Any]:
    """The figures of one setting; see above."""
    model = trained(dataset, setting)
    held = [record["text"] for record in dataset.train.take(dataset.validation).records]
    chosen = refusal(best(dataset, model, held)[1], best(dataset, model, foreign[0])[1], most_lost)
    answers, scores = best(dataset, model, [record["text"] for record in dataset.test.records])
    right = np.array([answer == truth for answer, truth in zip(answers, dataset.test.answers, strict=True)])
    answered = scores >= chosen.threshold
    return {
        "setting": setting,
        "threshold": chosen.threshold,
        "caught_in_training": chosen.caught,
        "caught": float(np.mean(best(dataset, model, foreign[1])[1] < chosen.threshold)),
        "lost": float(np.mean(~answered)),
        "right": float(np.mean(right[answered])),
        "accuracy": float(np.mean(right)),
    }


def main() -> int:
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    made.add_argument("--setting", action="append", choices=SHARED, help="only this one; may be repeated")
    made.add_argument("--most-lost", type=float, default=0.1)
    made.add_argument("--json", action="store_true", help="one JSON object a line")
    given, folder = made.parse_args(), data_directory()
    if folder is None:
        print("refusals: error: there is no data\nrefusals: hint: set CHORALE_DATA", file=sys.stderr)
        return 1
    dataset, foreign = intents_clinc150(folder), clinc150_foreign(folder)
    for setting in given.setting or SHARED:
        found = measure(dataset, foreign, setting, given.most_lost)
        shown = " ".join(f"{key} {value:.3f}" for key, value in found.items() if key != "setting")
        print(json.dumps(found) if given.json else f"{setting}: {shown}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
