"""What of a task is allowed and yet promises less than it seems to, or is refused by devices as they are set. Pure.

Refuses nothing: what owners have set, and whom a record is about, is unknown to the aggregator.
"""

from __future__ import annotations

import math
from typing import Final

from aggregator.tasks import TaskSpec
from edge_sdk.artifact.schema import Schema
from edge_sdk.privacy import charges
from edge_sdk.protocol.messages import PrivacyTerms

# The settings of a device that its owner has not changed: edge_sdk.config, which the aggregator does not import.
MIN_COHORT: Final = 5
MAX_DELTA: Final = 1e-4
MAX_EPSILON: Final = 8.0
MAX_HONEST_SHARE: Final = 0.8


def warnings(spec: TaskSpec, terms: PrivacyTerms, length: int, schema: Schema) -> list[str]:
    """One sentence for what its noise does not cover, and for each default of a device that refuses its offers.

    `schema`: the task's records. An offer may be refused in this size, or at the task's end.
    """
    found = _windows(terms, schema)
    if spec.n_min < MIN_COHORT:
        found.append(_said(f"n_min is {spec.n_min}", f"cohorts of at least {MIN_COHORT}", "min_cohort"))
    if terms.delta > MAX_DELTA:
        found.append(_said(f"delta is {terms.delta:g}", f"at most {MAX_DELTA:g}", "max_delta"))
    honest = max(1, math.floor(MAX_HONEST_SHARE * spec.n_min))
    if terms.placement == "shared" and terms.honest > honest:
        counted = f"the noise counts on {terms.honest} honest devices of {spec.n_min}"
        found.append(_said(counted, f"at most {honest} ({MAX_HONEST_SHARE:g} of n_min)", "max_honest_share"))
    return [*found, *_budget(spec, terms, length)]


def _windows(terms: PrivacyTerms, schema: Schema) -> list[str]:
    """A label in the windows of later examples is charged as one record and stands in many."""
    most = schema.reach_of_label
    if terms.unit != "record" or terms.insecure_without_noise or not most:
        return []
    label = f"one {schema.label.name!r} may be in up to {most + 1}, its own and the windows of {most} later ones"
    return [
        f"the unit is the record: the guarantee covers one example, and {label}; "
        "where a single one is a secret take --unit device, or customer with a subject in each record"
    ]


def _budget(spec: TaskSpec, terms: PrivacyTerms, length: int) -> list[str]:
    spent = charges.epsilon(terms, length, spec.rounds)
    if spent is None:
        return [_said("the task has no noise", "noise", "insecure_without_noise")]
    if spent <= MAX_EPSILON:
        return []
    fits = charges.rounds_within(terms, length, MAX_EPSILON)
    which = f"every offer after the first {fits}" if fits else "every offer of this task"
    said = f"{spec.rounds} rounds spend epsilon {spent:.4g}"
    return [_said(said, f"at most {MAX_EPSILON:g} a task", "max_epsilon", which)]


def _said(what: str, asked: str, setting: str, which: str = "every offer of this task") -> str:
    return (
        f"{what}, and devices ask for {asked} unless their owners have set {setting} otherwise: "
        f"until then they refuse {which}"
    )
