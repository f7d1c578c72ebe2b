"""Every task's round, from the offer to the release: what the state machine decides is made durable, then done.

Owns no clock, entropy or connection; they are handed in. What could not be done (a full disk) stays owed and is tried
again each second. Refuses what the state machine, the uploads and the openings refuse, by their own errors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from aggregator import analytics, tasks
from aggregator.errors import ModelRefused, TaskRefused
from aggregator.fleet.registry import Registry
from aggregator.ingest import Ingest
from aggregator.ledger import Ledger
from aggregator.live_rounds import LiveRound, LiveRounds, nothing_more
from aggregator.offering import Offering
from aggregator.opening_requests import OpenedGroup
from aggregator.openings import Openings
from aggregator.post import Post
from aggregator.releasing import Releases, Verdict
from aggregator.round_messages import RoundMessages
from aggregator.round_terms import RoundTerms
from aggregator.server_round import (
    TAKING,
    Action,
    Declined,
    Event,
    Phase,
    Prepared,
    Published,
    SumOpened,
    SumRefused,
    Tick,
    resume,
)
from aggregator.store.rows import TaskRow
from aggregator.store.store import Store
from edge_sdk.protocol.codec import EVERYBODY
from edge_sdk.protocol.errors import LocalProtocolError
from edge_sdk.protocol.messages import ModelHint

log = logging.getLogger(__name__)
NOTICE_S: Final = 3.0
OFFER_S: Final = 15.0
RETRY_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0

Outcome = tuple[Event, Callable[[], None]]


def _offered(terms: RoundTerms) -> dict[str, Any]:
    """What the audit log says of an offer. The hash binds all of it; the rest is for the reader."""
    offer = terms.offer
    said: dict[str, Any] = {"offer": terms.offer_hash.hex(), "model": offer.models[0].hex(), "consent": offer.consent}
    if offer.query is not None:
        said["query"] = offer.query.name
    privacy = {name: getattr(offer.privacy, name) for name in ("unit", "placement", "noise_multiplier")}
    return {**said, **privacy, "n_min": offer.secagg.n_min, "epoch": offer.secagg.epoch}


def _released(sha256: str, verdict: Verdict) -> dict[str, Any]:
    """What the audit log says of a verdict: what was released under which keys, or why it was not."""
    if verdict.version is None:
        return {"sha256": sha256, "refused": verdict.reason[:300]}
    return {"sha256": sha256, "version": verdict.version, "keys": list(verdict.keys)}


def _goes_on(task: TaskRow, asked: set[str]) -> bool:
    """Is there a round to offer: of training, or for a question, which may outlast the training?"""
    return task.status == "active" or (task.name in asked and task.status in ("done", "spent"))


def _attempt(act: Callable[[], None]) -> Exception | None:
    """Run it; what goes wrong with one task must not hold up another."""
    try:
        act()
    except Exception as error:
        return error
    return None


class Rounds:
    """All open rounds, at most one of each task."""

    def __init__(
        self,
        *,
        store: Store,
        registry: Registry,
        ingest: Ingest,
        offering: Offering,
        releases: Releases,
        post: Post,
        clock: Callable[[], float],
        phase_hook: Callable[[str], None],
    ) -> None:
        """`phase_hook(name)` is called when a phase is durable and before anything that follows from it is done."""
        self._store, self._registry, self._ingest = store, registry, ingest
        self._offering, self._releases, self._post = offering, releases, post
        self._clock, self._hook = clock, phase_hook
        self.ledger, self._questions = Ledger(store.connection), analytics.Questions(store)
        self._openings = Openings(store, ingest)
        self._live = LiveRounds(store=store, registry=registry, releases=releases, clock=clock, phase_hook=phase_hook)
        self._open = self._live.by_task
        self._roster_due = self._was_due = False  # a task waits for a roster that open rounds hold up
        self.messages = RoundMessages(
            self._live, store=store, ingest=ingest, ledger=self.ledger, openings=self._openings, clock=clock
        )

    # -- starting and going on

    def restore(self, now: float) -> None:
        """Take up every unfinished round where the tables say it stood."""
        with self._store.transaction():
            self.ledger.catch_up()
        for row in self._store.unfinished_rounds():
            live = self._live.take_up(row)
            if live.state.phase in TAKING | {Phase.CLOSED, Phase.OPENING}:
                self._ingest.open_round(live.terms, live.grouping, now)
            if live.state.phase is Phase.OPENING:
                self._ingest.close_round(row.task, row.number)
            task = self._live.task(row.task)
            live.state, owed = resume(live.state, int(now) + self._releases.spec(task).opening_s)
            live.owed.extend(owed)
            self._store.log(now, "restored", row.task, row.number, phase=row.phase)
        self._ingest.sweep()

    def tick(self, now: float, live: frozenset[str]) -> None:
        """Let time pass: retries, windows, notices, and the next round of each task that has none."""
        active = {device.device for device in self._registry.active()}
        self._was_due, self._roster_due = self._roster_due, False
        acts = [partial(self._tick, round_, now, live, active) for round_ in self._open.values()]
        asked = self._questions.tasks()
        due = [task for task in self._store.tasks() if now >= task.not_before and _goes_on(task, asked)]
        acts += [partial(self._begin, task, now, live) for task in due if task.name not in self._open]
        failed = [error for error in map(_attempt, acts) if error is not None]
        if failed:
            raise failed[0]

    def _tick(self, live: LiveRound, now: float, devices: frozenset[str], active: set[str]) -> None:
        if live.owed:
            if now < live.retry_at:
                return
            live.retry_at = now + RETRY_S
            self._settle(live)
        for device in live.state.invited - active - live.state.accepted - live.state.declined:
            self._live.step(live, Declined(device))
        self._live.step(live, Tick(int(now), devices, self._waited_for(live, now)))
        self._settle(live)
        if live.state.phase in TAKING and now - live.offered_at >= OFFER_S:
            self._publish_offer(live, now)
        if live.state.phase is Phase.OPENING and now - live.notified_at >= NOTICE_S:
            self._send_notices(live, now)
        self._live.say_why(live, devices)

    def _waited_for(self, live: LiveRound, now: float) -> bool:
        """Does a round that has no end of its own keep something waiting?"""
        if not live.state.buffer or now < live.state.yields_at:
            return False
        asked = self._questions.next(live.state.task) is not None
        return asked or self._was_due or self._offering.members_changed()

    def _begin(self, task: TaskRow, now: float, devices: frozenset[str]) -> None:
        spec = self._releases.spec(task)
        number = self._store.last_number(task.name) + 1
        if number == 1 and self._store.value(f"first-release:{task.name}") is None:
            self._release_first(task, now)
        row = self._questions.next(task.name)
        if row is None and tasks.rounds_done(self._store, spec) >= spec.rounds:
            self._store.set_task(task.name, status="done")
            return
        question, taking = row.question if row else None, bool(self._live.taking())
        try:
            offer, secret, roster = self._offering.offer(
                task, number, now, devices, may_issue=not taking, question=question
            )
            self.ledger.check_budget(task.name, offer.privacy, offer.length, tasks.budget(spec), offer.secagg.n_min)
        except TaskRefused as error:
            self._roster_due = self._roster_due or error.reason == "roster-due"
            if row is not None and error.reason in ("spent", "question"):
                self._questions.refuse(row, f"{error}; {error.hint}", now)
            elif error.reason == "spent":
                self._stop_spent(task, number, now, error)
            else:
                self._set_reason(task, str(error))
            return
        self._set_reason(task, "")
        frame = self._post.frame(offer, EVERYBODY)
        terms = RoundTerms.read(frame, secret, {e.device: e.sign_key for e in roster.entries})
        first = terms.first_row(secret, now)
        with self._store.transaction():
            self._store.add_round(first)
            if row is not None:
                self._questions.asked(row, number)
            self.ledger.offered(*terms.name, offer.privacy, offer.length, offer.issued_at)
            self._live.audit(now, "offer", task.name, number, **_offered(terms))
        live = self._live.take_up(first)
        self._ingest.open_round(terms, live.grouping, now)
        self._live.moved(live)
        self._publish_offer(live, now)

    def _stop_spent(self, task: TaskRow, number: int, now: float, error: TaskRefused) -> None:
        """The round that is not offered would take the task over its budget: it ends here, and says so."""
        why = f"{error}; {error.hint}"
        with self._store.transaction():
            self._store.set_task(task.name, status="spent", reason=why)
            self._live.audit(now, "task-spent", task.name, number, reason=str(error))
            self._store.log(now, "spent", task.name, number, reason=why)
        log.warning("task %s ends: %s", task.name, why)

    def _set_reason(self, task: TaskRow, reason: str) -> None:
        if reason != task.reason:
            self._store.set_task(task.name, reason=reason)

    def _release_first(self, task: TaskRow, now: float) -> None:
        """Release the task's own model, so that devices can predict before anything is learned."""
        verdict = self._releases.release(task, 0, task.checkpoint, {})
        with self._store.transaction():
            self._releases.record(task, 0, task.checkpoint, verdict)
            self._store.set_value(f"first-release:{task.name}", verdict.reason)
            self._live.audit(now, "release", task.name, 0, **_released(task.checkpoint, verdict))
            self._store.log(now, "release", task.name, 0, version=verdict.version, reason=verdict.reason)
        if verdict.version is not None:
            self._post.announce(ModelHint(task.name))

    def _publish_offer(self, live: LiveRound, now: float) -> None:
        live.offered_at = now
        self._post.publish("offer", live.terms.frame)

    def republish(self, now: float) -> None:
        """After a reconnect: every open offer again. Devices know a repeat."""
        for live in self._live.taking():
            self._publish_offer(live, now)

    # -- what the state machine owes

    def _settle(self, live: LiveRound) -> None:
        """Do what is owed. What raises stays owed."""
        while live.owed:
            outcome = self._perform(live, live.owed[0])
            if outcome is not None:
                self._live.step(live, *outcome)
            del live.owed[0]

    def _perform(self, live: LiveRound, action: Action) -> Outcome | None:
        if action is Action.PREPARE_OPENING:
            return self._prepare(live)
        if action is Action.OPEN_SUM:
            return self._open_sum(live)
        if action is Action.RELEASE:
            return self._release(live)
        if action is Action.SEND_NOTICES:
            self._send_notices(live, self._clock())
        else:
            self._finish(live)
        return None

    def _prepare(self, live: LiveRound) -> Outcome:
        count = sum(self._ingest.close_round(*live.terms.name).sizes.values())
        if count != len(live.state.accepted):
            what = f"the sums hold {count} uploads, {len(live.state.accepted)} were accepted"
            raise LocalProtocolError(what, reason="count")
        spec = self._releases.spec(self._live.task(live.state.task))
        return Prepared(int(self._clock()) + spec.opening_s), nothing_more

    def _open_sum(self, live: LiveRound) -> Outcome:
        began = self._clock()
        opened, wait = self._openings.open(live.terms, live.grouping, live.state)
        if wait:
            return SumRefused(wait), partial(self._charge_unused, live, wait)
        if live.terms.offer.query is not None:
            return self._answered(live, opened)
        try:
            sha256, facts = self._releases.average(self._live.task(live.state.task), live.terms, opened)
        except ModelRefused as error:
            return SumRefused(error.reason), partial(self._charge_unused, live, error.reason)
        self._openings.say_wrong(live.terms, opened, [group["reason"] for group in facts["groups"]], began)
        self._hook("averaging")
        live.stats = {**live.stats, **facts, "sha256": sha256}
        live.stats["seconds"] = {**live.stats["seconds"], "averaging": round(self._clock() - began, 3)}
        return SumOpened(), lambda: self._commit(live, sha256, facts["parent"])

    def _charge_unused(self, live: LiveRound, reason: str) -> None:
        """Enough answers were put together to read the sum: it is spent, whatever becomes of the round."""
        task, number = live.terms.name
        if self.ledger.opened(task, number, self._clock()):
            self._live.audit(self._clock(), "sum-refused", task, number, reason=reason[:300])

    def _answered(self, live: LiveRound, opened: list[OpenedGroup]) -> Outcome:
        """A query's sum: figures in place of a checkpoint."""
        found = analytics.answered(self._store, live.terms, opened)
        self._hook("answering")
        spent = {name: found[name] for name in ("query", "devices", "unit", "epsilon", "delta")}
        live.stats = {**live.stats, **spent, "groups": [{"devices": found["devices"], "reason": ""}]}

        def also() -> None:
            (task, number), now = live.terms.name, self._clock()
            self._questions.answer(task, number, found)
            self.ledger.opened(task, number, now)
            self._live.audit(now, "query-answered", task, number, **spent)

        return SumOpened(), also

    def _commit(self, live: LiveRound, sha256: str, parent: str) -> None:
        task, number = live.terms.name
        self._store.add_checkpoint(sha256, task=task, number=number, parent=parent, metrics={}, at=self._clock())
        self._store.set_task(task, checkpoint=sha256)
        self.ledger.opened(task, number, self._clock())
        spent = {name: live.stats.get(name) for name in ("devices", "unit", "epsilon", "delta", "rounds")}
        self._live.audit(self._clock(), "sum-opened", task, number, sha256=sha256, parent=parent, **spent)

    def _release(self, live: LiveRound) -> Outcome:
        name, number = live.terms.name
        if live.terms.offer.query is not None:
            return Published("answered"), nothing_more
        task, sha256 = self._live.task(name), live.stats["sha256"]
        verdict = self._releases.release(task, number, sha256, {"epsilon": live.stats["epsilon"]})
        self._hook("published")
        live.stats = {**live.stats, "metrics": verdict.metrics, "version": verdict.version}
        live.stats["seconds"] = {**live.stats["seconds"], **{k: round(v, 3) for k, v in verdict.seconds.items()}}

        def also() -> None:
            self._releases.record(task, number, sha256, verdict)
            self._live.audit(self._clock(), "release", name, number, **_released(sha256, verdict))
            if not verdict.usable:
                self._store.set_task(name, checkpoint=live.stats["parent"])

        return Published(verdict.reason), also

    def _finish(self, live: LiveRound) -> None:
        """Forget the round key and all that was sent; say when the task goes on."""
        (name, number), now = live.terms.name, self._clock()
        self._ingest.forget_round(name, number)
        spec = self._releases.spec(self._live.task(name))
        # Only this is written: a `task stop` may have come since the row was read.
        trained = live.terms.offer.query is None
        ends = {"status": "done"} if trained and tasks.rounds_done(self._store, spec) >= spec.rounds else {}
        pause = spec.pause_s if live.state.phase is Phase.RELEASED else self._pause(name)
        with self._store.transaction():
            self._store.forget_uploads(name, number)
            self._store.set_round(name, number, secret=None, waiting="")
            self._store.set_task(name, not_before=now + pause, **ends)
            if live.state.phase is Phase.ABORTED and not trained:
                charged = self.ledger.is_opened(name, number)
                self._questions.ended(name, number, live.state.reason, charged=charged)
            if ends:
                self._live.audit(now, "task-done", name, number, rounds=spec.rounds)
            self._store.log(now, "round", name, number, phase=live.state.phase.value, **live.stats)
        self._store.truncate_log()
        del self._open[name]
        self._openings.forget((name, number))
        if live.stats.get("version") is not None:
            self._post.announce(ModelHint(name))

    def _pause(self, task: str) -> float:
        """After aborted rounds in a row: twice as long each time."""
        aborted = 0
        for row in reversed(self._store.rounds(task, last=8)):
            if row.phase != Phase.ABORTED.value:
                break
            aborted += 1
        return min(LONGEST_PAUSE_S, 2.0 ** (aborted - 1))

    def drop_device(self, device: str) -> None:
        """The device is revoked: what it was sending goes."""
        self._ingest.drop_device(device)

    def _send_notices(self, live: LiveRound, now: float) -> None:
        live.notified_at = now
        active = {device.device for device in self._registry.active()}
        for index, device in enumerate(live.terms.offer.secagg.committee):
            if index + 1 not in live.state.answered and device in active:
                self._post.send(device, self._openings.asked(live.terms, live.grouping).notices[index])
