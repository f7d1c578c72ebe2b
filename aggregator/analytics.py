"""Questions to the fleet: queued, settled into the terms of one round, answered from its opened sum (SPEC 7.9).

A question is a round of its task: same numbers, masks and ledgers. Reads no clock. Refuses, with TaskRefused, a
question in weaker terms than its task's, one that nothing fits and one that the task's budget does not pay for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from aggregator import task_terms, tasks
from aggregator.errors import TaskRefused
from aggregator.estimates import figures
from aggregator.ledger import Ledger
from aggregator.opening_requests import OpenedGroup
from aggregator.round_terms import RoundTerms
from aggregator.store import audit_log
from aggregator.store.store import Store
from edge_sdk.analytics import layout
from edge_sdk.privacy import accounting, statement
from edge_sdk.privacy.curves import at_most
from edge_sdk.protocol.messages import Placement, Positive, PrivacyTerms, Query

MOST_UNITS: Final = 16_384  # of one device, before its sum is cut short
ATTEMPTS: Final = 3  # rounds that did not open before a question is given up
FINEST: Final = -12  # a step is no smaller than the clip of one unit times 2^-12
PROFILE: Final = "P32"  # a vector of statistics is short: room for every unit of every device costs nothing
ENDED: Final = ("done", "failed")
_ROW: Final = "id, task, asked, status, number, attempts, reason, created_at, answer"


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the operator asks. `epsilon` None: without noise, for a task that has none.

    `units_per_device`: a device with more than these counts for less; not given, as many as fit.
    """

    query: Query
    epsilon: Positive | None
    placement: Placement | None = None
    units_per_device: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None


class QuestionRow(NamedTuple):
    """A question as it is kept. `status`: queued, asked, done or failed; `number`: its newest round, 0 for none."""

    id: int
    task: str
    asked: bytes
    status: str
    number: int
    attempts: int
    reason: str
    created_at: float
    answer: str

    @property
    def question(self) -> Question:
        return msgspec.json.decode(self.asked, type=Question)


def settle(spec: tasks.TaskSpec, question: Question) -> tuple[int, PrivacyTerms]:
    """(the vector's length, the terms of the round's offer). Raises TaskRefused, always for the reason "question"."""
    try:
        layout.check(question.query)
        _check_against(spec, question)
        length = layout.length(question.query)
        return length, _fitting(spec, question, length)
    except layout.QueryRefused as error:
        raise TaskRefused(str(error), "change what is asked", reason="question") from error
    except TaskRefused as error:
        raise TaskRefused(str(error), error.hint, reason="question") from error


def _check_against(spec: tasks.TaskSpec, question: Question) -> None:
    if spec.insecure_without_noise != (question.epsilon is None):
        what = (
            "has no noise, so an epsilon promises nothing" if question.epsilon else "is private: an epsilon is needed"
        )
        raise TaskRefused(f"the task {what}", "leave it out" if question.epsilon else "give one with --epsilon")
    if question.placement == "shared" and task_terms.placement_of(spec) == "local":
        what = f"task {spec.name} adds its noise locally, against everyone; shared noise would promise less"
        raise TaskRefused(what, "ask with --placement local, or through a task of its own with shared noise")


def _fitting(spec: tasks.TaskSpec, question: Question, length: int) -> PrivacyTerms:
    """Terms with room for as many units of a device as the ring holds."""
    units = question.units_per_device or max(MOST_UNITS, spec.units_per_device)
    while True:
        try:
            return _settled(spec, question, length, units)
        except TaskRefused as error:
            if error.reason != "sizing" or question.units_per_device or units <= spec.units_per_device:
                raise
            units = max(spec.units_per_device, units // 2)


def _settled(spec: tasks.TaskSpec, question: Question, length: int, units: int) -> PrivacyTerms:
    placement = question.placement or task_terms.placement_of(spec)
    wanted = tasks.TaskSpec(
        name=spec.name, unit=spec.unit, placement=placement, per_customer=spec.per_customer, rounds=1,
        n_min=spec.n_min, n_max=spec.n_max, profile=PROFILE, target_epsilon=question.epsilon, delta=spec.delta,
        max_grad_norm=1.0, sample_rate=1.0, steps=1, honest_share=spec.honest_share, units_per_device=units,
        insecure_without_noise=spec.insecure_without_noise, accept_little_signal=True,
    )  # fmt: skip
    if spec.unit == "device" or placement == "shared":
        return tasks.settle(wanted, length)
    # What leaves with local noise is bounded by what the units and their noise can reach.
    noise = tasks.settle(wanted, length).noise_multiplier
    reach = units + noise * (length**0.5 + 6.0)
    return _finest(msgspec.structs.replace(wanted, clip=reach), length)


def _finest(wanted: tasks.TaskSpec, length: int) -> PrivacyTerms:
    """With the smallest step that fits: beside a coarse one the error floors of the masks would be heard."""
    for exponent in range(FINEST, 0):
        with suppress(TaskRefused):
            return tasks.settle(msgspec.structs.replace(wanted, step=2.0**exponent), length)
    return tasks.settle(wanted, length)


def check_budget(store: Store, spec: tasks.TaskSpec, terms: PrivacyTerms, length: int) -> None:
    """Raise TaskRefused "spent" where the task's budget does not pay for it, with what it would pay for."""
    ledger, budget = Ledger(store.connection), tasks.budget(spec)
    try:
        ledger.check_budget(spec.name, terms, length, budget, spec.n_min)
    except TaskRefused as error:
        left = max(0.0, (budget or 0.0) - ledger.epsilon(spec.name))
        hint = (
            f"about {left:.2g} is left: ask with a smaller --epsilon, or less; a task that should have room for "
            "questions is created with a --max-epsilon above its --epsilon"
        )
        raise TaskRefused(str(error), hint, reason=error.reason) from error


def rounds_left(store: Store, spec: tasks.TaskSpec, question: accounting.Spend, training: accounting.Spend) -> int:
    """How many of the training rounds still to come the budget pays for after this question; each costs `training`."""
    coming, budget = max(0, spec.rounds - tasks.rounds_done(store, spec)), tasks.budget(spec)
    if budget is None:
        return coming
    spent = Ledger(store.connection).model(spec.name)
    start = accounting.compose([spent.spend if spent else accounting.NOTHING, question])

    def pays_for(count: int) -> bool:
        rounds = tuple(count * order for order in training)
        return at_most(accounting.epsilon(accounting.compose([start, rounds]), spec.delta), budget)

    fits, beyond = 0, coming + 1
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        fits, beyond = (middle, beyond) if pays_for(middle) else (fits, middle)
    return fits


def answered(store: Store, terms: RoundTerms, opened: Sequence[OpenedGroup]) -> dict[str, Any]:
    """The figures of an opened sum, with all that an epsilon means nothing without."""
    offer, group = terms.offer, opened[0]
    assert offer.query is not None
    assert group.total is not None
    task, number = terms.name
    rounds, epsilon = Ledger(store.connection).epsilon_with(task, offer.privacy, offer.length, number)
    alone = statement.state(offer.privacy, offer.length, 1, offer.secagg.n_min)
    promised = statement.charged(offer.privacy, epsilon, rounds, offer.secagg.n_min)
    return {
        "task": task,
        "round": number,
        "query": offer.query.name,
        "model": offer.models[0].hex(),
        "devices": len(group.devices),
        "unit": offer.privacy.unit,
        "epsilon_of_question": alone.epsilon,
        "epsilon": promised.epsilon,
        "delta": offer.privacy.delta,
        "privacy": promised.sentence(),
        "figures": figures(offer.query, offer.privacy, group.total, len(group.devices)),
    }


class Questions:
    """The questions of every task, over a store whose transactions they take part in."""

    def __init__(self, store: Store) -> None:
        self._store, self._db = store, store.connection

    def add(self, task: str, question: Question, now: float) -> int:
        """Queue a question; its number. The audit log says what it asks."""
        with self._store.transaction():
            row = (task, msgspec.json.encode(question), now)
            insert = "INSERT INTO questions (task, asked, created_at) VALUES (?, ?, ?)"
            number = int(self._db.execute(insert, row).lastrowid or 0)
            asks = [f"{each.kind} {each.field or '(label)'}".strip() for each in question.query.statistics]
            audit_log.append(
                self._db, now, "query-queued", task, 0,
                question=number, query=question.query.name, epsilon=question.epsilon, asks=asks,
            )  # fmt: skip
        return number

    def tasks(self) -> set[str]:
        """The tasks with a question that no round asks yet."""
        return {task for (task,) in self._db.execute("SELECT DISTINCT task FROM questions WHERE status = 'queued'")}

    def next(self, task: str) -> QuestionRow | None:
        """The oldest that waits."""
        return next((row for row in self.all(task) if row.status == "queued"), None)

    def all(self, task: str | None = None) -> list[QuestionRow]:
        """Every question, of one task or of all, oldest first."""
        found = f"SELECT {_ROW} FROM questions WHERE ?1 IS NULL OR task = ?1 ORDER BY id"
        return [QuestionRow(*row) for row in self._db.execute(found, (task,))]

    def get(self, number: int) -> QuestionRow | None:
        """The question of this number."""
        return next((row for row in self.all() if row.id == number), None)

    def asked(self, row: QuestionRow, number: int) -> None:
        """A round asks it; in the transaction that makes the round."""
        change = "UPDATE questions SET status = 'asked', number = ?, attempts = attempts + 1, reason = '' WHERE id = ?"
        self._db.execute(change, (number, row.id))

    def answer(self, task: str, number: int, found: dict[str, Any]) -> None:
        """Its figures are there; in the transaction that charges them."""
        change = "UPDATE questions SET status = 'done', answer = ?, reason = '' WHERE task = ? AND number = ?"
        self._db.execute(change, (json.dumps(found), task, number))

    def ended(self, task: str, number: int, reason: str, *, charged: bool) -> None:
        """Its round was aborted: asked again, unless the sum was read and paid for, or three rounds came to nothing."""
        change = (
            "UPDATE questions SET reason = ?, status = CASE WHEN ? OR attempts >= ? THEN 'failed' ELSE 'queued' END"
            " WHERE task = ? AND number = ? AND status = 'asked'"
        )
        self._db.execute(change, (reason, charged, ATTEMPTS, task, number))

    def refuse(self, row: QuestionRow, reason: str, now: float) -> None:
        """No round will ask it."""
        with self._store.transaction():
            self._db.execute("UPDATE questions SET status = 'failed', reason = ? WHERE id = ?", (reason, row.id))
            audit_log.append(self._db, now, "query-refused", row.task, question=row.id, reason=reason[:300])
