"""A lying aggregator with c colluding members of the committee against one device, over the protocol's own functions.

It shows some honest members a list with the device and the others the same list without it, and pools what its
colluders' keys open. Each honest member checks its list and answers once (SPEC 7.5). From too few answers it guesses:
secrets are small, so a packed sum that is short of an equation is searched. With the device's secret its mask is off.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.attacking import moving_target
from benchmarks.attacking.masked_round import MaskedRound, Share, Steps
from edge_sdk.protocol.secagg.committee import CommitteePlan
from edge_sdk.protocol.secagg.shamir import PRIME

COMMITTEES = (5, 10, 32)
VALUES, N_MIN = 256, 3
SIGMA = 4.0  # of one coefficient of a secret
_MOST_GUESSES = 40_000  # tuples of small secrets tried a column
Row = dict[str, Any]
Field = npt.NDArray[np.int64]


def lagrange(nodes: Sequence[int], points: Sequence[int]) -> Field:
    """Matrix [points, nodes] over F_p from values at the nodes to values at the points (schoolbook)."""
    rows = []
    for point in points:
        row = []
        for node in nodes:
            others = [other for other in nodes if other != node]
            above, below = 1, 1
            for other in others:
                above, below = above * (point - other) % PRIME, below * (node - other) % PRIME
            row.append(above * pow(below, -1, PRIME) % PRIME)
        rows.append(row)
    return np.array(rows, np.int64).reshape(len(points), len(nodes))


def candidates(plan: CommitteePlan, answers: Mapping[int, Share], devices: int) -> list[Field] | None:
    """For each column the sums of `devices` secrets, int64 [K, packing], that these answers allow; None for too many.

    Answers of one member more than the threshold give one equation for each `packing` secrets, and so on; what is left
    open is searched among small numbers.
    """
    members = sorted(answers)[: plan.answers]
    missing = plan.answers - len(members)
    secrets = [plan.m + 1 + r for r in range(plan.packing)]
    reach = int(5 * SIGMA * np.sqrt(devices))
    if missing >= plan.packing or (2 * reach + 1) ** missing > _MOST_GUESSES:
        return None
    matrix = lagrange([member + 1 for member in members] + secrets[:missing], secrets[missing:])
    known = np.stack([answers[member].astype(np.int64) for member in members])
    tuples = list(itertools.product(range(-reach, reach + 1), repeat=missing))
    guesses = np.array(tuples, np.int64).reshape(len(tuples), missing)
    # At most 40 terms below 2^32: far from 2^63.
    fixed, moved = matrix[:, : len(members)] @ known % PRIME, guesses @ matrix[:, len(members) :].T % PRIME
    return [_fitting(guesses, moved + fixed[:, k], reach) for k in range(known.shape[1])]


def _fitting(guesses: Field, rest: Field, reach: int) -> Field:
    rest = (rest + PRIME // 2) % PRIME - PRIME // 2
    fits = (np.abs(rest) <= reach).all(axis=1)
    return np.concatenate([guesses[fits], rest[fits]], axis=1)


def likeliest(candidates: Sequence[Field]) -> Field | None:
    """One device's secret, int64 [N], from its own candidates by column: the smallest of each."""
    if not all(map(len, candidates)):
        return None
    return np.stack([each[(each**2).sum(axis=1).argmin()] for each in candidates], axis=1).reshape(-1)


def likeliest_difference(more: Sequence[Field], fewer: Sequence[Field], others: int) -> Field | None:
    """The secret by which two sums differ, from the candidates of both: it is small, and so is the lesser sum."""
    if not (all(map(len, more)) and all(map(len, fewer))):
        return None
    columns = []
    for high, low in zip(more, fewer, strict=True):
        apart = high[:, None, :] - low[None, :, :]
        unlikely = (apart**2).sum(axis=2) + (low**2).sum(axis=1)[None, :] / others
        columns.append(apart[np.unravel_index(unlikely.argmin(), unlikely.shape)])
    return np.stack(columns, axis=1).reshape(-1)


class Attack:
    """One round of `members` devices, all on the committee; the attacker wants one device's vector."""

    def __init__(self, members: int, rng: random.Random) -> None:
        self.session = MaskedRound(members, members, VALUES, N_MIN)
        self.plan, self._rng = self.session.plan, rng
        chosen = rng.sample(range(members), N_MIN + 1)
        self.target, self.others = chosen[0], chosen[1:]
        self.vector: Steps = np.frombuffer(os.urandom(VALUES), np.int8).astype(np.int64) * 50
        for device in chosen:
            values = self.vector if device == self.target else np.zeros(VALUES)
            self.session.upload(device, values.astype(np.int32))
        self._answers: dict[tuple[int, bool], Share] = {}

    def attempt(self, colluders: int, *, answer_once: bool = True) -> bool:
        """Is the vector recovered, with so many members (never the target) on the attacker's side?"""
        members = [member for member in range(self.plan.m) if member != self.target]
        own = self._rng.sample(members, min(colluders, len(members)))
        honest = [member for member in range(self.plan.m) if member not in own]
        self._rng.shuffle(honest)
        half = len(honest) // 2
        asked = (honest[:half], honest[half:]) if answer_once else (honest, honest)
        lists = ([self.target, *self.others], self.others)
        sums = [self._gather(own, asked[place], lists[place]) for place in (0, 1)]
        alone = candidates(self.plan, {member: self.session.share_of(member, self.target) for member in own}, 1)
        more, fewer = (candidates(self.plan, each, len(listed)) for each, listed in zip(sums, lists, strict=True))
        found = None if more is None or fewer is None else likeliest_difference(more, fewer, len(self.others))
        return self._opens(likeliest(alone) if alone else None) or self._opens(found)

    def _gather(self, own: Sequence[int], honest: Sequence[int], listed: Sequence[int]) -> dict[int, Share]:
        answers = {member: self._honest(member, listed) for member in honest}
        for member in own:
            total = sum(self.session.share_of(member, device).astype(np.int64) for device in listed)
            answers[member] = (np.asarray(total) % PRIME).astype(np.uint16)
        return answers

    def _honest(self, member: int, listed: Sequence[int]) -> Share:
        """Computed once for each list and kept: every attempt is to be taken as a round of its own."""
        key = (member, self.target in listed)
        if key not in self._answers:
            self._answers[key] = self.session.answer(member, listed).sums[0]
        return self._answers[key]

    def _opens(self, secret: Field | None) -> bool:
        """With the right secret only the error floor is left (at most 32)."""
        if secret is None:
            return False
        return bool(np.abs(self.session.unmasked(self.target, secret) - self.vector).max() <= 32)


def run_committee(members: int, rounds: int, attempts: int, step: int = 1) -> list[Row]:
    """The fraction of attempts that succeed, for every number of colluders."""
    rng, rows = random.Random(members), []
    attacks = [Attack(members, rng) for _ in range(rounds)]
    plan = attacks[0].plan
    for colluders in sorted({*range(0, members, step), plan.corrupt, 2 * (plan.threshold + 1) - members}):
        won = [attack.attempt(colluders) for attack in attacks for _ in range(attempts)]
        twice = [attack.attempt(colluders, answer_once=False) for attack in attacks[:1]]
        row: Row = {"members": members, "colluders": colluders, "stated_bound": plan.corrupt, "attempts": len(won)}
        rows.append(row | {"recovered": sum(won) / len(won), "recovered_if_answering_twice": sum(twice) / len(twice)})
    return rows


def devices_in_the_list(n_min: int) -> list[Row]:
    """Colluding devices, not members: the smallest list with one honest device, for 0 ... n_min - 1 on the liar's side.

    Nothing is broken: what such devices sent is subtracted from an opened sum, and what the others sent is left.
    """
    session, rows = MaskedRound(10, 10, VALUES, n_min), []
    vectors = np.frombuffer(os.urandom(VALUES * n_min), np.int8).astype(np.int64).reshape(n_min, VALUES) * 50
    for device in range(n_min):
        session.upload(device, vectors[device].astype(np.int32))
    total = session.opened(range(n_min))
    for own in range(n_min):
        left = total - vectors[1 : 1 + own].sum(axis=0)
        rows.append({"n_min": n_min, "devices": own, "recovered": float(np.abs(left - vectors[0]).max() <= 32 * n_min)})
    return rows


def run(quick: bool) -> dict[str, list[Row]]:
    """Committees of 5, 10 and 32."""
    size = (1, 1) if quick else (5, 8)
    rows = [row for members in COMMITTEES for row in run_committee(members, *size, 8 if quick and members > 10 else 1)]
    return {"members": rows, "devices": devices_in_the_list(5), "groups": moving_target.run(quick)}
