"""What a task's devices were asked in rounds of analytics, and what it cost, for the evidence. Reads only."""

from __future__ import annotations

import math
from typing import Any

from aggregator import model_card
from aggregator.store.rows import RoundRow
from aggregator.store.store import Store
from edge_sdk.privacy import charges

Facts = dict[str, Any]


def asked(store: Store, task: str, rounds: list[RoundRow]) -> Facts:
    """Rounds that asked a query: how many, how many of their sums were opened and so charged, and each one.

    `epsilon` of a question is its own, None where it has no noise; `field` is "" for the label.
    """
    opened = {row.number for row in model_card.opened(store, task)}
    found = [_one(row, opened) for row in rounds if model_card.offer_of(row).query is not None]
    return {"asked": len(found), "charged": sum(one["charged"] for one in found), "all": found}


def _one(row: RoundRow, opened: set[int]) -> Facts:
    offer = model_card.offer_of(row)
    assert offer.query is not None
    epsilon = charges.epsilon(offer.privacy, offer.length, 1)
    return {
        "round": row.number,
        "name": offer.query.name,
        "statistics": [{"kind": each.kind, "field": each.field} for each in offer.query.statistics],
        "epsilon": epsilon if epsilon is not None and math.isfinite(epsilon) else None,
        "charged": row.number in opened,
    }
