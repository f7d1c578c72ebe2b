"""Malicious devices under the mask: what they do to the model, by the rule that averages groups, and at the gate.

Devices train by the product's code and the sums are added, averaged and gated by the aggregator's. Masks are left out
of the many rounds (they change a sum by the error floor alone, which `through_the_mask` shows on one round of each
attack). Nobody sees one device, so nobody can clip it again: a malicious device sends any integers of the ring.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from aggregator.averaging import average
from aggregator.evaluation import Heldout, evaluate, gate
from aggregator.robust import Rule, combine, trimmed
from benchmarks.attacking.audit import terms
from benchmarks.attacking.bounds import mean_and_spread
from benchmarks.attacking.masked_round import RING, MaskedRound
from benchmarks.attacking.tables import Customers, Table, customers
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.weights import read_vector
from edge_sdk.privacy.protection import quantised
from edge_sdk.protocol.secagg.groups import groups_of
from edge_sdk.protocol.secagg.keystream import Keystream
from edge_sdk.training.dp_sgd import train
from edge_sdk.training.module import GraphModule
from edge_sdk.training.plans import training_plan

DEVICES, N_MIN, SCALE, TRIM, METRIC, HONEST_ROUNDS = 40, 4, 10, 0.3, "auc", 2
RULES: Final[tuple[Rule, ...]] = ("mean", "median", "trimmed_mean")
ATTACKS: Final = ("label flips", "label flips, sent ten times", "random integers")
SHARES: Final = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
TERMS: Final = terms("device", "shared", learning_rate=0.5, steps=10, clip=1.0, step=2.0**-12)
Row = dict[str, Any]
Values = npt.NDArray[np.int32]


class Fleet:
    """Devices of which some are malicious, and the model that they are offered."""

    def __init__(self, found: Customers, attack: str, malicious: set[int]) -> None:
        self.parts, self.attack, self.malicious = found.parts, attack, malicious
        self._model, self._module = b"", GraphModule(tabular_classifier(found.schema, (), 1))

    def values(self, model: bytes, device: int) -> Values:
        """What one device gives to its mask, int32 [d]."""
        bad, part = device in self.malicious, self.parts[device]
        if bad and self.attack == ATTACKS[2]:
            words = Keystream(os.urandom(32)).uint32(len(read_vector(model)))
            return (words.view(np.int32) >> (32 - RING.modulus_bits)).astype(np.int32)
        values = self._trained(model, Table(part.x, 1 - part.y) if bad else part)
        return values * np.int32(SCALE) if bad and self.attack == ATTACKS[1] else values

    def _trained(self, model: bytes, part: Table) -> Values:
        self._module.load_vector(read_vector(model))
        plan = training_plan(msgspec.structs.replace(TERMS, sample_rate=1.0), len(part.y))
        key = os.urandom(32)
        result = train(self._module, {"features": part.x}, part.y, plan=plan, key=key, on_step=lambda *_: None)
        return quantised(TERMS, result.update, Keystream(os.urandom(32)))


def grouped(fleet: Fleet, model: bytes, groups: int, seed: int) -> tuple[list[npt.NDArray[np.int64]], list[int], int]:
    """(opened sums by group, their sizes, how many groups hold a malicious device)."""
    names = [f"d{device}" for device in range(len(fleet.parts))]
    settled = groups_of(seed.to_bytes(32, "big"), names, groups)
    sizes: dict[int, int] = defaultdict(int)
    sums: dict[int, npt.NDArray[np.int64]] = {}
    spoiled = set()
    for device in np.random.default_rng(seed).permutation(len(fleet.parts)).tolist():
        group = settled[names[device]]
        sizes[group] += 1
        sums[group] = sums.get(group, 0) + fleet.values(model, device).astype(np.int64)
        if device in fleet.malicious:
            spoiled.add(group)
    half = RING.modulus // 2
    opened = [(sums[group] + half) % RING.modulus - half for group in sorted(sums)]
    return opened, [sizes[group] for group in sorted(sums)], len(spoiled)


def moved(fleet: Fleet, model: bytes, rule: Rule, groups: int, seed: int) -> tuple[bytes, int]:
    """(the next checkpoint, spoiled groups) of one round."""
    sums, sizes, spoiled = grouped(fleet, model, groups, seed)
    total, divisor = combine(rule, sums, sizes, TRIM)
    return average(model, total, step=TERMS.step, devices=divisor, server_learning_rate=1.0, metadata={}), spoiled


def train_rounds(found: Customers, attack: str, share: float, rule: Rule, *, rounds: int, seed: int) -> Row:
    """Held-out metric of the last checkpoint and of the last release; the first release is of honest rounds."""
    rng = np.random.default_rng(1000 * seed + round(100 * share))
    bad = set(rng.permutation(len(found.parts))[: round(share * len(found.parts))].tolist())
    fleet = Fleet(found, attack, bad)
    held_out = Heldout("binary", {"features": found.held_out.x}, found.held_out.y)
    model = tabular_classifier(found.schema, (), 1)
    groups, spoiled = (1 if rule == "mean" else len(found.parts) // N_MIN), []
    for number in range(HONEST_ROUNDS):
        model, _ = moved(Fleet(found, attack, set()), model, rule, groups, 1000 + number)
    value = released = evaluate(model, held_out)[METRIC]
    for number in range(rounds):
        model, worse = moved(fleet, model, rule, groups, 100 * seed + number)
        metrics = evaluate(model, held_out)
        value = metrics[METRIC]
        released = released if gate(metrics, released, METRIC, 0.0) else value
        spoiled.append(worse / groups)
    return {"value": value, "released": released, "spoiled": float(np.mean(spoiled))}


def through_the_mask(found: Customers) -> list[Row]:
    """One round of each attack, eight devices, protected and opened: how far the opened sum is from the plain one."""
    model, rows = tabular_classifier(found.schema, (), 1), []
    for attack in ATTACKS:
        fleet = Fleet(found, attack, {0, 1})
        sent = [fleet.values(model, device) for device in range(8)]
        session = MaskedRound(8, 8, len(sent[0]), N_MIN)
        for device, values in enumerate(sent):
            session.upload(device, values)
        half = RING.modulus // 2
        plain = (np.sum(sent, axis=0, dtype=np.int64) + half) % RING.modulus - half
        apart = np.abs(session.opened(range(8)) - plain)
        apart = np.minimum(apart, RING.modulus - apart)
        rows.append({"attack": attack, "devices": 8, "apart_steps": int(apart.max()), "largest": int(abs(plain).max())})
    return rows


def run(quick: bool) -> dict[str, Any]:
    """Every attack, rule and share, over a few seeds."""
    shares, rounds, seeds = ((0.0, 0.1, 0.4), 3, 1) if quick else (SHARES, 6, 3)
    found, rows, clean = customers(DEVICES), [], {}
    for rule in RULES:
        clean[rule] = [train_rounds(found, ATTACKS[0], 0.0, rule, rounds=rounds, seed=seed) for seed in range(seeds)]
    for attack in ATTACKS:
        for rule in RULES:
            for share in shares:
                runs = clean[rule] if share == 0 else [
                    train_rounds(found, attack, share, rule, rounds=rounds, seed=seed) for seed in range(seeds)
                ]  # fmt: skip
                rows.append({"attack": attack, "rule": rule, "share": share, **_summary(runs)})
    facts = {
        "source": found.source,
        "devices": DEVICES,
        "n_min": N_MIN,
        "honest_rounds": HONEST_ROUNDS,
        "rounds": rounds,
        "seeds": seeds,
    }
    facts |= {"metric": METRIC, "groups": DEVICES // N_MIN, "trimmed_each_end": trimmed(DEVICES // N_MIN, TRIM)}
    return {"facts": facts, "rows": rows, "through_the_mask": through_the_mask(found)}


def _summary(runs: list[Row]) -> Row:
    value, spread = mean_and_spread([each["value"] for each in runs])
    released, _ = mean_and_spread([each["released"] for each in runs])
    spoiled = float(np.mean([each["spoiled"] for each in runs]))
    row = {"value": value, "spread": 0.0 if math.isnan(spread) else spread, "released": released, "spoiled": spoiled}
    return {name: round(number, 4) for name, number in row.items()}
