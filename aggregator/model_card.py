"""The card that goes with a release: what the model is, what it learned from, what it cost, what it is for. Reads only.

Signed as a TUF target beside the model, so that a device verifies both together. Every figure is the store's or the
ledger's; what a person did not state is listed as not stated. A model trained without noise bears the ugly name.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from aggregator import about, tasks
from aggregator.errors import TaskRefused
from aggregator.ledger import Ledger
from aggregator.store.rows import RoundRow, TaskRow
from aggregator.store.store import Store
from edge_sdk.artifact.errors import ArtifactError
from edge_sdk.artifact.graph_lock import graph_digest
from edge_sdk.artifact.names import SCHEMA
from edge_sdk.artifact.schema import Schema, TextField
from edge_sdk.artifact.weights import metadata, read_vector
from edge_sdk.privacy import statement
from edge_sdk.privacy.statement import PrivacyStatement
from edge_sdk.protocol.codec import PREFIX_BYTES, SIGNATURE_BYTES, unpack
from edge_sdk.protocol.messages import Offer, PrivacyTerms

FORMAT: Final = 1
LOOKED_AT: Final = 200  # newest rounds, of which the last that trained says what the terms are
OPENED: Final = ("averaged", "released")
Card = dict[str, Any]
LIMITS: Final = (
    "Trained on what customers of this fleet did on its devices; nothing is known of how well it does elsewhere.",
    "The metrics are of the held-out records that the operator gave, where there are any; fairness between groups of "
    "people was not measured.",
    "Privacy is bounded for each unit named under `privacy` and against whom is named there; it says nothing of what "
    "a prediction tells about the person it is made for.",
)


def offer_of(row: RoundRow) -> Offer:
    """The offer of a round, as it was signed."""
    return unpack(row.frame[PREFIX_BYTES + SIGNATURE_BYTES :], Offer)


def newest_offer(rows: Sequence[RoundRow]) -> Offer:
    """Of at least one round: the newest that trained; where none did, the newest, which asked."""
    offers = (offer_of(row) for row in reversed(rows))
    return next((offer for offer in offers if offer.query is None), offer_of(rows[-1]))


def promised(store: Store, spec: tasks.TaskSpec, model: bytes) -> PrivacyStatement | None:
    """What the ledger says of the task, by the terms of its newest offer; by its own where none was offered yet.

    None where no terms can be settled any more.
    """
    spent, newest = Ledger(store.connection).model(spec.name), store.rounds(spec.name, last=LOOKED_AT)
    rounds = spent.rounds if spent else 0
    terms: PrivacyTerms
    try:
        terms = newest_offer(newest).privacy if newest else tasks.settle(spec, int(read_vector(model).size))
    except (ArtifactError, TaskRefused):
        return None
    return statement.charged(terms, spent.epsilon if spent else 0.0, rounds, spec.n_min)


def fields(model: bytes) -> Card:
    """Fields and label by the model's signed schema; `text_kept`: may the raw text stay on the device's disk?"""
    schema = Schema.from_json(metadata(model)[SCHEMA])
    listed = []
    for field in schema.fields:
        kind = str(field.__struct_config__.tag)
        entry: Card = {"name": field.name, "kind": kind, "columns": field.width}
        listed.append(entry | ({"text_kept": field.keep} if isinstance(field, TextField) else {}))
    label = schema.label
    return {"fields": listed, "label": {"name": label.name, "kind": label.kind, "names": list(label.names)}}


def opened(store: Store, task: str) -> list[RoundRow]:
    """Every round whose sum was read, oldest first: those that the ledger charges, refused afterwards or not."""
    charged = {number for number, _, _ in Ledger(store.connection).by_round(task)}
    return [row for row in store.rounds(task) if row.phase in OPENED or row.number in charged]


def cohorts(store: Store, task: str) -> list[dict[str, Any]]:
    """Every opened sum's size, oldest first: {"round", "devices"}; of a round with groups one entry for each sum."""
    return [{"round": row.number, "devices": size} for row in opened(store, task) for size in _sizes(store, row)]


def _sizes(store: Store, row: RoundRow) -> list[int]:
    """Devices in each sum of an opened round: as recorded, else (the sums were refused) as they were accepted."""
    if recorded := [group["devices"] for group in row.stats.get("groups", [])]:
        return recorded
    accepted, fewest = Counter(store.members(row.task, row.number).values()), offer_of(row).secagg.n_min
    return [accepted[group] for group in sorted(accepted) if accepted[group] >= fewest]


def spread(sizes: list[int]) -> dict[str, Any]:
    """Smallest, median and largest; None for each where there is nothing."""
    if not sizes:
        return {"sums": 0, "smallest": None, "median": None, "largest": None}
    return {"sums": len(sizes), "smallest": min(sizes), "median": statistics.median(sizes), "largest": max(sizes)}


def privacy(store: Store, spec: tasks.TaskSpec, model: bytes) -> Card:
    """The statement as plain values; without noise under the ugly name."""
    said = promised(store, spec, model)
    plain = said.to_dict() if said is not None else {"epsilon": None, "sentence": "the terms cannot be settled"}
    return {"insecure_without_noise": True, **plain} if spec.insecure_without_noise else plain


def card(
    store: Store, task: TaskRow, model: bytes, *, version: int, sha256: str, number: int, metrics: Card, now: float
) -> Card:
    """The card of one release. `number`: the round whose checkpoint it is (0: the model that the task began with)."""
    spec = tasks.parse_spec(task.spec)
    last = store.last_release(task.name)
    sizes = [entry["devices"] for entry in cohorts(store, task.name)]
    stated = about.stated(spec.about)
    return {
        "card": FORMAT,
        "model": {
            "task": task.name,
            "version": version,
            "sha256": sha256,
            "round": number,
            "lineage": last[2] if last else "",
            "graph_digest": graph_digest(model).hex(),
            "bytes": len(model),
            "coordinates": int(read_vector(model).size),
        },
        "data": fields(model),
        "privacy": privacy(store, spec, model),
        "cohorts": {"n_min": spec.n_min, **spread(sizes)},
        "evaluation": {"metric": spec.metric, "held_out": bool(task.heldout), "metrics": metrics},
        "intended_use": stated.get("purpose"),
        "stated": stated,
        "not_stated": about.missing(spec.about),
        "limits": [*LIMITS],
        "made_at": int(now),
    }


def encoded(made: Card) -> bytes:
    """The bytes that are signed: JSON with sorted keys."""
    return json.dumps(made, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
