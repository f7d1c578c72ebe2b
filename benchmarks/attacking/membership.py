"""Was this customer in the training data? From a released model alone, with and without differential privacy.

The attacker has the model, the records in question with their labels, other records of the same kind, and trains
shadow models of his own in the same way (LiRA: Carlini et al. 2022, "Membership Inference Attacks From First
Principles", online, with one variance for all records). Models are trained by the product's code: rounds of a few
devices, whose updates are averaged.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from aggregator.averaging import average
from aggregator.evaluation import auc, logits
from benchmarks.attacking.audit import terms
from benchmarks.attacking.tables import Table, customers
from edge_sdk.artifact.schema import Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.weights import read_vector
from edge_sdk.privacy import charges
from edge_sdk.privacy.protection import quantised
from edge_sdk.protocol.messages import PrivacyTerms
from edge_sdk.protocol.secagg.keystream import Keystream
from edge_sdk.training.dp_sgd import train
from edge_sdk.training.module import GraphModule
from edge_sdk.training.plans import training_plan

DEVICES, HIDDEN, ROUNDS = 4, (64,), 10
POOL = 800  # records in question; each model learns from half of them
EPSILONS = (None, 8.0, 2.0)
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Row = dict[str, Any]


def offer(epsilon: float | None, length: int) -> PrivacyTerms:
    """Plain training, or local noise on records for `epsilon` after all rounds."""
    if epsilon is None:
        return terms("device", "local", learning_rate=1.0, steps=100, clip=64.0, step=2.0**-16)
    plain = terms("record", "local", learning_rate=1.0, steps=2, expected_batch=POOL // 2 // DEVICES)
    on = msgspec.structs.replace(plain, insecure_without_noise=False, clip=64.0, step=2.0**-12)
    return msgspec.structs.replace(on, noise_multiplier=charges.calibrate(on, length, ROUNDS, epsilon))


class Trainer:
    """Federated training of one model, again and again."""

    def __init__(self, schema: Schema, epsilon: float | None) -> None:
        self._first = tabular_classifier(schema, HIDDEN, 5)
        self._module = GraphModule(self._first)
        self.length = len(read_vector(self._first))
        self.terms = offer(epsilon, self.length)

    def released(self, pool: Table, members: Flags) -> bytes:
        """The model after all rounds on the members, dealt out to the devices."""
        model, places = self._first, np.flatnonzero(members)
        parts = [Table(pool.x[places[d::DEVICES]], pool.y[places[d::DEVICES]]) for d in range(DEVICES)]
        for _ in range(ROUNDS):
            total = np.zeros(self.length, np.int64)
            for part in parts:
                total += self._update(model, part)
            model = average(model, total, step=self.terms.step, devices=DEVICES, server_learning_rate=1.0, metadata={})
        return model

    def _update(self, model: bytes, part: Table) -> npt.NDArray[np.int32]:
        self._module.load_vector(read_vector(model))
        plan, key = training_plan(self.terms, len(part.y)), os.urandom(32)
        result = train(self._module, {"features": part.x}, part.y, plan=plan, key=key, on_step=lambda *_: None)
        return quantised(self.terms, result.update, Keystream(os.urandom(32)))


def confidence(model: bytes, table: Table) -> Floats:
    """log(p / (1 - p)) of each record's own label, float64 [B]."""
    margin: Floats = logits(model, {"features": table.x})[:, 0] * (2 * table.y.astype(np.float64) - 1)
    return margin


def likelihood_ratios(scores: Floats, members: Flags) -> Floats:
    """[models, records]: how much likelier a score is under models that learnt the record than under the others.

    Each model is judged by all the others. Carlini et al. 2022, algorithm 1, with one variance.
    """
    found = np.empty_like(scores)
    for target in range(len(scores)):
        others, inside = np.delete(scores, target, 0), np.delete(members, target, 0)
        means = [np.where(side, others, 0).sum(0) / np.maximum(side.sum(0), 1) for side in (inside, ~inside)]
        spreads = [
            np.sqrt((((others - mean) ** 2)[side]).mean()) + 1e-9
            for side, mean in zip((inside, ~inside), means, strict=True)
        ]
        densities = [
            -((scores[target] - m) ** 2) / (2 * s * s) - np.log(s) for m, s in zip(means, spreads, strict=True)
        ]
        found[target] = densities[0] - densities[1]
    return found


def curve(scores: Floats, members: Flags) -> tuple[Floats, Floats]:
    """(false positive rates, true positive rates) from the highest score down."""
    order = np.argsort(-scores.reshape(-1), kind="stable")
    hits = members.reshape(-1)[order]
    return np.cumsum(~hits) / (~hits).sum(), np.cumsum(hits) / hits.sum()


def true_at(scores: Floats, members: Flags, false: float) -> float:
    """The true positive rate at that false positive rate."""
    x, y = curve(scores, members)
    below = np.searchsorted(x, false, side="right")
    return float(y[below - 1]) if below else 0.0


def judged(scores: Floats, members: Flags) -> Row:
    """AUC and the true positive rate at 1 %, with 95 % bounds by drawing models again (200 bootstraps)."""
    rng, drawn = np.random.default_rng(1), []
    for _ in range(200):
        rows = rng.integers(0, len(scores), len(scores))
        drawn.append((_auc(scores[rows], members[rows]), true_at(scores[rows], members[rows], 0.01)))
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return {
        "auc": round(_auc(scores, members), 4),
        "auc_bounds": [round(float(low[0]), 4), round(float(high[0]), 4)],
        "true_at_1_percent": round(true_at(scores, members, 0.01), 4),
        "true_at_1_percent_bounds": [round(float(low[1]), 4), round(float(high[1]), 4)],
    }


def _auc(scores: Floats, members: Flags) -> float:
    return auc(scores.reshape(-1), members.reshape(-1).astype(np.int64))


def run(quick: bool) -> dict[str, Any]:
    """Without privacy, and with epsilon 8 and 2 for each record after all rounds."""
    found = customers(40)
    rng = np.random.default_rng(2)
    everybody = Table(np.concatenate([p.x for p in found.parts]), np.concatenate([p.y for p in found.parts]))
    places = rng.permutation(len(everybody.y))[:POOL]
    pool = Table(everybody.x[places], everybody.y[places])
    models = 8 if quick else 32
    members = np.stack([rng.permutation(POOL) < POOL // 2 for _ in range(models)])
    rows, curves = [], {}
    for epsilon in (None, 2.0) if quick else EPSILONS:
        trainer = Trainer(found.schema, epsilon)
        made = [trainer.released(pool, inside) for inside in members]
        scores = np.stack([confidence(model, pool) for model in made])
        held = np.mean([auc(logits(m, {"features": found.held_out.x})[:, 0], _whole(found.held_out.y)) for m in made])
        claimed = charges.epsilon(trainer.terms, trainer.length, ROUNDS)
        for attack, values in (("loss threshold", scores), ("LiRA", likelihood_ratios(scores, members))):
            row: Row = {"epsilon": claimed and round(claimed, 3), "attack": attack, **judged(values, members)}
            rows.append(row | {"held_out_auc": round(float(held), 4)})
            curves[f"{epsilon}/{attack}"] = curve(values, members)
    facts = {
        "source": found.source,
        "models": models,
        "records": POOL,
        "devices": DEVICES,
        "rounds": ROUNDS,
        "hidden": HIDDEN[0],
    }
    return {"facts": facts, "rows": rows, "curves": curves}


def _whole(labels: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    return labels.astype(np.int64)
