"""Packed Shamir sharing over F_65521 and recovery with detection of wrong shares. SPEC 7.4.

Refuses answers that do not lie on one polynomial unless the wrong ones can be told apart. Member i (counted from 0)
sits at the point i+1, secret r of a pack at the point m+1+r. Each column of N/rho secrets has its own polynomial of
degree threshold + rho - 1: the shares at points 1 ... threshold are random, the secrets fix the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edge_sdk.protocol.errors import LocalProtocolError, WrongSum
from edge_sdk.protocol.secagg.committee import CommitteePlan
from edge_sdk.protocol.secagg.keystream import Keystream

PRIME: Final = 65521

Field = npt.NDArray[np.float64]
Share = npt.NDArray[np.uint16]


class Recovered(NamedTuple):
    """The secrets, centred modulo PRIME, and the members whose answers were found wrong and left out."""

    secrets: npt.NDArray[np.int32]
    wrong: list[int]

    def __repr__(self) -> str:
        return f"Recovered(..., wrong={self.wrong})"


def _weights(nodes: Sequence[int]) -> list[int]:
    """1 / product of (x_j - x_l) over l != j, modulo p."""
    weights = []
    for node in nodes:
        product = 1
        for other in nodes:
            product = product * (node - other) % PRIME if other != node else product
        weights.append(pow(product, -1, PRIME))
    return weights


@lru_cache(maxsize=64)
def _lagrange(nodes: tuple[int, ...], points: tuple[int, ...]) -> Field:
    """Matrix [points, nodes] over F_p that takes values at the nodes to values at the points (barycentric form)."""
    weights = _weights(nodes)
    matrix = np.empty((len(points), len(nodes)))
    for row, point in enumerate(points):
        whole = 1
        for node in nodes:
            whole = whole * (point - node) % PRIME
        matrix[row] = [whole * w * pow(point - node, -1, PRIME) % PRIME for node, w in zip(nodes, weights, strict=True)]
    matrix.flags.writeable = False
    return matrix


def _times(matrix: Field, values: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.uint16]:
    """Product over F_p. Exact: at most 128 terms below 2^32 add up to less than 2^39."""
    product: npt.NDArray[np.uint16] = np.fmod(matrix @ values.astype(np.float64), PRIME).astype(np.uint16)
    return product


def _uniform(stream: Keystream, count: int) -> Share:
    """Uniform elements of F_p: 16-bit words, those beyond p rejected."""
    words = stream.uint16(count + count // 512 + 16)
    found = words[words < PRIME]
    while len(found) < count:
        more = stream.uint16(64)
        found = np.concatenate([found, more[more < PRIME]])
    return found[:count]


def share(secret: npt.NDArray[np.integer], plan: CommitteePlan, stream: Keystream) -> Share:
    """Shares of integers[N] as uint16[m, N/rho]. Raises LocalProtocolError when rho does not divide N.

    Secret r of column j is secret[r * N/rho + j]. Any `threshold` shares are independent of the secret.
    """
    if secret.ndim != 1 or len(secret) % plan.packing:
        raise LocalProtocolError(f"{len(secret)} secrets do not fill packs of {plan.packing}", reason="packing")
    packed = np.mod(secret.astype(np.int64), PRIME).reshape(plan.packing, -1).astype(np.uint16)
    free = _uniform(stream, plan.threshold * packed.shape[1]).reshape(plan.threshold, -1)
    nodes = (*range(1, plan.threshold + 1), *_secret_points(plan))
    rest = _lagrange(nodes, tuple(range(plan.threshold + 1, plan.m + 1)))
    return np.concatenate([free, _times(rest, np.concatenate([free, packed]))])


def _secret_points(plan: CommitteePlan) -> tuple[int, ...]:
    return tuple(range(plan.m + 1, plan.m + 1 + plan.packing))


def recover(plan: CommitteePlan, answers: Mapping[int, Share]) -> Recovered:
    """The secrets behind the answers of members (counted from 0), each uint16[N/rho] or a sum of such modulo p.

    Every answer beyond `plan.answers` is a check. With at least two to spare per wrong one, the wrong answers are told
    apart and left out. Raises WrongSum: reason "too-few-answers", or "wrong-share" when it cannot tell.
    """
    members = sorted(answers)
    if len(members) < plan.answers:
        raise WrongSum(
            f"{len(members)} answers of {plan.answers} needed; wait for more members", reason="too-few-answers"
        )
    wrong = _find_wrong(plan, answers, members)
    kept = [member for member in members if member not in wrong][: plan.answers]
    matrix = _lagrange(tuple(member + 1 for member in kept), _secret_points(plan))
    values = _times(matrix, np.stack([answers[member] for member in kept])).astype(np.int32).reshape(-1)
    return Recovered(np.where(values > PRIME // 2, values - PRIME, values).astype(np.int32), wrong)


def _find_wrong(plan: CommitteePlan, answers: Mapping[int, Share], members: list[int]) -> list[int]:
    """Decode the answers as a Reed-Solomon word, column by column, until the rest lie on one curve."""
    wrong: list[int] = []
    while True:
        kept = [member for member in members if member not in wrong]
        checks = len(kept) - plan.answers
        if checks < 0 or len(wrong) > (len(members) - plan.answers) // 2:
            raise _cannot_tell(plan, members)
        if checks == 0:
            return wrong
        points = tuple(member + 1 for member in kept)
        syndromes = _times(_parity(points, checks), np.stack([answers[member] for member in kept]))
        bad = np.flatnonzero(syndromes.any(axis=0))
        if not len(bad):
            return wrong
        located = _locate([int(value) for value in syndromes[:, bad[0]]], points)
        if not located:
            raise _cannot_tell(plan, members)
        wrong = sorted({*wrong, *(point - 1 for point in located)})


def _cannot_tell(plan: CommitteePlan, members: list[int]) -> WrongSum:
    return WrongSum(
        f"the answers of members {members} disagree, and {len(members) - plan.answers} to spare do not tell which are "
        "wrong; wait for more answers",
        reason="wrong-share",
    )


@lru_cache(maxsize=64)
def _parity(points: tuple[int, ...], checks: int) -> Field:
    """Parity checks [checks, points] of the code: column weights of the dual code times powers of the point."""
    rows = [_weights(points)]
    for _ in range(1, checks):
        rows.append([value * point % PRIME for value, point in zip(rows[-1], points, strict=True)])
    return np.array(rows, np.float64)


def _locate(syndromes: list[int], points: Sequence[int]) -> list[int]:
    """Points of the wrong values of one column, or none when more are wrong than the syndromes can tell."""
    locator = _shortest_recurrence(syndromes)
    degree = len(locator) - 1
    found = [point for point in points if _value(locator, pow(point, -1, PRIME)) == 0]
    return found if len(found) == degree and 2 * degree <= len(syndromes) else []


def _value(coefficients: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % PRIME
    return value


def _shortest_recurrence(sequence: Sequence[int]) -> list[int]:
    """Berlekamp-Massey over F_p (Massey 1969): the shortest c, c[0] = 1, with sum c[i] s[n-i] = 0."""
    current, previous, length, gap, last = [1], [1], 0, 1, 1
    for position, _ in enumerate(sequence):
        gaps = sum(c * sequence[position - i] for i, c in enumerate(current[: length + 1])) % PRIME
        if gaps == 0:
            gap += 1
            continue
        factor, kept = gaps * pow(last, -1, PRIME) % PRIME, current
        size = max(len(current), len(previous) + gap)
        padded, shifted = current + [0] * size, [0] * gap + previous + [0] * size
        current = [(padded[i] - factor * shifted[i]) % PRIME for i in range(size)]
        if 2 * length <= position:
            length, previous, last, gap = position + 1 - length, kept, gaps, 1
        else:
            gap += 1
    return (current + [0] * (length + 1))[: length + 1]
