"""A lying aggregator that asks for several groups at once, and shows each member the target in another of them.

G groups X1 ... XG of n_min devices, and the target t beside one of them: each honest member checks its list, finds it
sound and answers once. The sum of all groups is the same in every list, so it has a share from everybody; Xj alone has
one from every member but those that were shown t in it, a fraction 1 - 1/G. With `answers` shares of each, t is the
whole less X1 ... XG. Answering once does not prevent it: it bounds what is told of one set of devices, and an answer of
several groups tells of several. What prevents it is that a device's group is not the aggregator's to choose.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.attacking.masked_round import MaskedRound, Share
from edge_sdk.protocol.errors import OpeningRefused, WrongSum
from edge_sdk.protocol.secagg.groups import groups_of
from edge_sdk.protocol.secagg.shamir import PRIME, recover

VALUES, N_MIN = 256, 3
Row = dict[str, Any]
Lists = list[list[list[int]]]


def lists(session: MaskedRound, groups: int) -> Lists:
    """List i: for each group N_MIN devices that the offer puts there, and the target (device 0) beside those of i."""
    settled = groups_of(session.offer_hash, session.names, groups)
    pools = [[d for d in range(1, len(session.names)) if settled[session.names[d]] == j] for j in range(groups)]
    return [[[0, *pool[:N_MIN]] if i == j else pool[:N_MIN] for j, pool in enumerate(pools)] for i in range(groups)]


def attempt(members: int, groups: int, colluders: int, *, settled: bool = True) -> str:
    """ "recovered", or why not: "answers" (too few shares of a group), or a member's reason to refuse.

    `settled`: members hold to the groups that the offer settles; False removes that defence.
    """
    session = MaskedRound(members, max(members, (N_MIN + 1) * groups), VALUES, N_MIN, groups)
    session.settled = settled
    shown = lists(session, groups)
    vector = np.frombuffer(os.urandom(VALUES), np.int8).astype(np.int64) * 50
    for device in {device for listed in shown for group in listed for device in group}:
        session.upload(device, (vector if device == 0 else 0 * vector).astype(np.int32))
    own = range(members - colluders, members)
    whole: dict[int, Share] = {}
    alone: list[dict[int, Share]] = [{} for _ in range(groups)]
    try:
        for member in range(members):
            for place, listed in enumerate(shown if member in own else [shown[member % groups]]):
                sums = session.answer(member, *listed).sums
                whole[member] = _sum(sums)
                mixed = place if member in own else member % groups
                for j in range(groups):
                    if j != mixed:
                        alone[j][member] = sums[j]
        secret = _secret(session, whole) - sum(_secret(session, shares) for shares in alone)
    except OpeningRefused as error:
        return error.reason
    except WrongSum:
        return "answers"
    return "recovered" if np.abs(session.unmasked(0, secret) - vector).max() <= 32 else "answers"


def _sum(shares: Any) -> Share:
    total: Share = (np.sum([share.astype(np.int64) for share in shares], axis=0) % PRIME).astype(np.uint16)
    return total


def _secret(session: MaskedRound, shares: Mapping[int, Share]) -> npt.NDArray[np.int64]:
    return recover(session.plan, shares).secrets.astype(np.int64)


def run(quick: bool) -> list[Row]:
    """For each committee: lists of 2 to 6 groups, without colluders and with as many as are stated; both ways."""
    rows = []
    for members in (5, 10) if quick else (5, 10, 32):
        session_plan = MaskedRound(members, members, 1).plan
        for colluders in sorted({0, session_plan.corrupt}):
            for groups in range(2, 7):
                row: Row = {"members": members, "colluders": colluders, "groups": groups}
                undefended = attempt(members, groups, colluders, settled=False)
                rows.append(row | {"outcome": attempt(members, groups, colluders), "any_groups": undefended})
    return rows
