"""The rounds that are not over, and how one of them moves: what the state machine decides, made durable.

Draws no randomness; the clock is handed in. Refuses what the state machine refuses, and rounds that are not open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aggregator import tasks
from aggregator.fleet.registry import Registry
from aggregator.grouping import Grouping
from aggregator.releasing import Releases
from aggregator.round_terms import RoundTerms
from aggregator.server_round import FINAL, TAKING, Action, Event, Phase, Round, said_why, step, waiting_for
from aggregator.store import audit_log
from aggregator.store.rows import RoundRow, TaskRow
from aggregator.store.store import Store
from edge_sdk.protocol.errors import UnexpectedMessage
from edge_sdk.protocol.secagg.groups import groups_of


def nothing_more() -> None:
    """Nothing more belongs to this change."""


@dataclass(slots=True)
class LiveRound:
    """A round that is not over, and what it is owed."""

    state: Round
    terms: RoundTerms
    grouping: Grouping
    since: float
    stats: dict[str, Any]
    owed: list[Action] = field(default_factory=list)
    retry_at: float = 0.0
    notified_at: float = 0.0
    offered_at: float = 0.0
    waiting: str = ""
    refused: dict[str, str] = field(default_factory=dict)  # device -> why it does not take part


class LiveRounds:
    """At most one round of each task."""

    def __init__(
        self,
        *,
        store: Store,
        registry: Registry,
        releases: Releases,
        clock: Callable[[], float],
        phase_hook: Callable[[str], None],
    ) -> None:
        """`phase_hook(name)` is called when a phase is durable and before anything that follows from it is done."""
        self._store, self._registry, self._releases = store, registry, releases
        self._clock, self._hook = clock, phase_hook
        self.by_task: dict[str, LiveRound] = {}

    def taking(self) -> list[LiveRound]:
        """Those that take uploads."""
        return [live for live in self.by_task.values() if live.state.phase in TAKING]

    def take_up(self, row: RoundRow) -> LiveRound:
        """The round as its row has it; from now on it is open."""
        assert row.secret is not None
        roster = self._registry.signed_roster(row.epoch)
        assert roster is not None
        terms = RoundTerms.read(row.frame, row.secret, {e.device: e.sign_key for e in roster.entries})
        spec, n_min = self._releases.spec(self.task(row.task)), terms.offer.secagg.n_min
        settled = groups_of(terms.offer_hash, terms.roster, terms.offer.secagg.groups)
        fewest = 1 if terms.offer.query else tasks.fewest_groups(spec)
        grouping = Grouping(settled, fewest, n_min)
        state = Round(
            *terms.name,
            n_min=n_min,
            groups=settled,
            fewest=grouping.fewest,
            buffer=0 if terms.offer.query else spec.buffer,
            yields_at=terms.offer.issued_at + spec.window_s,
            n_max=terms.offer.secagg.n_max,
            closes_at=terms.offer.closes_at,
            invited=frozenset(terms.roster),
            members=terms.plan.m,
            needed=terms.plan.answers,
            phase=Phase(row.phase),
            accepted=frozenset(u.device for u in self._store.uploads(*terms.name, "accepted", "summed")),
            answered=frozenset(self._store.answers(*terms.name)),
            opening_ends_at=row.opening_ends_at,
            reason=row.reason,
        )
        live = self.by_task[row.task] = LiveRound(state, terms, grouping, row.phase_since, dict(row.stats))
        return live

    def task(self, name: str) -> TaskRow:
        """The task of a round; it has one."""
        task = self._store.task(name)
        assert task is not None
        return task

    def step(self, live: LiveRound, event: Event, also: Callable[[], None] = nothing_more) -> None:
        """Let an event move the round: the new phase and `also` in one transaction, what is owed after it."""
        state, owed = step(live.state, event)
        if state == live.state and also is nothing_more:
            return
        moved = state.phase is not live.state.phase
        now = self._clock()
        stats = self._timed(live, now) if moved else live.stats
        with self._store.transaction():
            also()
            if moved or state.reason != live.state.reason:
                self._store.set_round(
                    *live.terms.name,
                    phase=state.phase.value,
                    reason=state.reason,
                    opening_ends_at=state.opening_ends_at,
                    phase_since=now if moved else live.since,
                    stats=stats,
                )
            if moved:
                said: dict[str, Any] = {"phase": state.phase.value, "reason": state.reason}
                self.audit(now, "phase", *live.terms.name, devices=len(state.accepted), **said)
        live.state, live.stats = state, stats
        live.owed.extend(action for action in owed if action not in live.owed)
        if moved:
            live.since = now
            self.moved(live)

    def _timed(self, live: LiveRound, now: float) -> dict[str, Any]:
        seconds = dict(live.stats.get("seconds", {}))
        phase = live.state.phase.value
        seconds[phase] = round(seconds.get(phase, 0.0) + now - live.since, 3)
        return {**live.stats, "seconds": seconds, "devices": len(live.state.accepted)}

    def moved(self, live: LiveRound) -> None:
        """Tell whoever watches that a phase is durable."""
        phase = live.state.phase.value
        self._store.log(
            self._clock(),
            "phase",
            *live.terms.name,
            phase=phase,
            devices=len(live.state.accepted),
            reason=live.state.reason,
        )
        self._hook(phase)

    def audit(self, at: float, kind: str, task: str, number: int, **data: Any) -> None:
        """In the transaction of what it records."""
        audit_log.append(self._store.connection, at, kind, task, number, **data)

    def of(self, task: str, number: int, reason: str) -> LiveRound:
        """The round that a message speaks of. Raises UnexpectedMessage with `reason` where it is not open."""
        live = self.by_task.get(task)
        if live is None or live.state.number != number:
            raise UnexpectedMessage(f"round {number} of {task} is not open", reason=reason)
        return live

    def say_why(self, live: LiveRound, devices: frozenset[str]) -> None:
        """Write down what the round waits for, where that has changed."""
        if live.state.phase in FINAL:
            return
        why = waiting_for(live.state, devices)
        if live.state.phase in TAKING and live.refused:
            why += f"; devices that refuse: {said_why(live.stats['refused'])}"
        if why != live.waiting:
            live.waiting = why
            self._store.set_round(*live.terms.name, waiting=why, stats=live.stats)
