"""Every task's round, from the offer to the release: what the state machine decides is made durable, then done.

Owns no clock, entropy or connection; they are handed in. What could not be done (a full disk) stays owed and is tried
again each second. Refuses what the state machine, the uploads and the openings refuse, by their own errors.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from aggregator import tasks
from aggregator.errors import ModelRefused, TaskRefused
from aggregator.fleet.registry import Registry
from aggregator.grouping import Grouping, grouping_key, most_groups
from aggregator.ingest import Ingest
from aggregator.ledger import Ledger
from aggregator.offering import Offering
from aggregator.openings import Openings
from aggregator.post import Post
from aggregator.releasing import Releases, Verdict
from aggregator.round_terms import RoundTerms
from aggregator.server_round import (
    FINAL,
    TAKING,
    Accepted,
    Action,
    Answered,
    Declined,
    Event,
    Granted,
    Phase,
    Prepared,
    Published,
    Round,
    SumOpened,
    SumRefused,
    Tick,
    resume,
    said_why,
    step,
    waiting_for,
)
from aggregator.store import audit_log
from aggregator.store.rows import RoundRow, TaskRow
from aggregator.store.store import Store
from edge_sdk.protocol.codec import EVERYBODY
from edge_sdk.protocol.errors import LocalProtocolError, RemoteProtocolError, UnexpectedMessage
from edge_sdk.protocol.messages import (
    Ack,
    Done,
    Grant,
    Hello,
    ModelHint,
    OpeningNotice,
    Receipt,
    Report,
    Share,
    Withdraw,
)

log = logging.getLogger(__name__)
NOTICE_S: Final = 3.0
OFFER_S: Final = 15.0
RETRY_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
MOST_REASONS: Final = 8  # devices choose the words
DECLINES: Final = {"offer-refused", "training-failed", "round-failed"}  # words of the device's reports

Outcome = tuple[Event, Callable[[], None]]


def _nothing() -> None:
    """Nothing more belongs to this change."""


def _offered(terms: RoundTerms) -> dict[str, Any]:
    """What the audit log says of an offer. The hash binds all of it; the rest is for the reader."""
    offer = terms.offer
    said = {"offer": terms.offer_hash.hex(), "model": offer.models[0].hex(), "consent": offer.consent}
    privacy = {name: getattr(offer.privacy, name) for name in ("unit", "placement", "noise_multiplier")}
    return {**said, **privacy, "n_min": offer.secagg.n_min, "epoch": offer.secagg.epoch}


def _released(sha256: str, verdict: Verdict) -> dict[str, Any]:
    """What the audit log says of a verdict: what was released under which keys, or why it was not."""
    if verdict.version is None:
        return {"sha256": sha256, "refused": verdict.reason[:300]}
    return {"sha256": sha256, "version": verdict.version, "keys": list(verdict.keys)}


def _attempt(act: Callable[[], None]) -> Exception | None:
    """Run it; what goes wrong with one task must not hold up another."""
    try:
        act()
    except Exception as error:
        return error
    return None


@dataclass(slots=True)
class _Live:
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
        self.ledger = Ledger(store.connection)
        self._open: dict[str, _Live] = {}
        self._openings = Openings(store, ingest)

    # -- starting and going on

    def restore(self, now: float) -> None:
        """Take up every unfinished round where the tables say it stood."""
        with self._store.transaction():
            self.ledger.catch_up()
        for row in self._store.unfinished_rounds():
            live = self._read(row)
            self._open[row.task] = live
            if live.state.phase in TAKING | {Phase.CLOSED, Phase.OPENING}:
                self._ingest.open_round(live.terms, live.grouping, now)
            if live.state.phase is Phase.OPENING:
                self._ingest.close_round(row.task, row.number)
            task = self._task(row.task)
            live.state, owed = resume(live.state, int(now) + self._releases.spec(task).opening_s)
            live.owed.extend(owed)
            self._store.log(now, "restored", row.task, row.number, phase=row.phase)
        self._ingest.sweep()

    def _read(self, row: RoundRow) -> _Live:
        assert row.secret is not None
        roster = self._registry.signed_roster(row.epoch)
        assert roster is not None
        terms = RoundTerms.read(row.frame, row.secret, {e.device: e.sign_key for e in roster.entries})
        spec, n_min = self._releases.spec(self._task(row.task)), terms.offer.secagg.n_min
        wanted = min(spec.groups, most_groups(terms.profile, terms.plan))
        grouping = Grouping(wanted, tasks.fewest_groups(spec), n_min, grouping_key(row.secret))
        state = Round(
            *terms.name,
            n_min=n_min * grouping.fewest,
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
        return _Live(state, terms, grouping, row.phase_since, dict(row.stats))

    def _task(self, name: str) -> TaskRow:
        task = self._store.task(name)
        assert task is not None
        return task

    def tick(self, now: float, live: frozenset[str]) -> None:
        """Let time pass: retries, windows, notices, and the next round of each task that has none."""
        active = {device.device for device in self._registry.active()}
        acts = [partial(self._tick, round_, now, live, active) for round_ in self._open.values()]
        due = [task for task in self._store.tasks() if task.status == "active" and now >= task.not_before]
        acts += [partial(self._begin, task, now, live) for task in due if task.name not in self._open]
        failed = [error for error in map(_attempt, acts) if error is not None]
        if failed:
            raise failed[0]

    def _tick(self, live: _Live, now: float, devices: frozenset[str], active: set[str]) -> None:
        if live.owed:
            if now < live.retry_at:
                return
            live.retry_at = now + RETRY_S
            self._settle(live)
        for device in live.state.invited - active - live.state.accepted - live.state.declined:
            self._step(live, Declined(device))
        self._step(live, Tick(int(now), devices))
        self._settle(live)
        if live.state.phase in TAKING and now - live.offered_at >= OFFER_S:
            self._publish_offer(live, now)
        if live.state.phase is Phase.OPENING and now - live.notified_at >= NOTICE_S:
            self._send_notices(live, now)
        self._say_why(live, devices)

    def _say_why(self, live: _Live, devices: frozenset[str]) -> None:
        if live.state.phase in FINAL:
            return
        why = waiting_for(live.state, devices)
        if live.state.phase in TAKING and live.refused:
            why += f"; devices that refuse: {said_why(live.stats['refused'])}"
        if why != live.waiting:
            live.waiting = why
            self._store.set_round(*live.terms.name, waiting=why, stats=live.stats)

    def _begin(self, task: TaskRow, now: float, devices: frozenset[str]) -> None:
        spec = self._releases.spec(task)
        if tasks.rounds_done(self._store, spec) >= spec.rounds:
            self._store.set_task(task.name, status="done")
            return
        number = self._store.last_number(task.name) + 1
        if number == 1 and self._store.value(f"first-release:{task.name}") is None:
            self._release_first(task, now)
        taking = any(live.state.phase in TAKING for live in self._open.values())
        try:
            offer, secret, roster = self._offering.offer(task, number, now, devices, may_issue=not taking)
            self.ledger.check_budget(task.name, offer.privacy, offer.length, tasks.budget(spec))
        except TaskRefused as error:
            if error.reason == "spent":
                self._stop_spent(task, number, now, error)
            else:
                self._set_reason(task, str(error))
            return
        self._set_reason(task, "")
        frame = self._post.frame(offer, EVERYBODY)
        terms = RoundTerms.read(frame, secret, {e.device: e.sign_key for e in roster.entries})
        row = terms.first_row(secret, now)
        with self._store.transaction():
            self._store.add_round(row)
            self.ledger.offered(*terms.name, offer.privacy, offer.length, offer.issued_at)
            self._audit(now, "offer", task.name, number, **_offered(terms))
        live = self._read(row)
        self._open[task.name] = live
        self._ingest.open_round(terms, live.grouping, now)
        self._moved(live)
        self._publish_offer(live, now)

    def _stop_spent(self, task: TaskRow, number: int, now: float, error: TaskRefused) -> None:
        """The round that is not offered would take the task over its budget: it ends here, and says so."""
        why = f"{error}; {error.hint}"
        with self._store.transaction():
            self._store.set_task(task.name, status="spent", reason=why)
            self._audit(now, "task-spent", task.name, number, reason=str(error))
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
            self._audit(now, "release", task.name, 0, **_released(task.checkpoint, verdict))
            self._store.log(now, "release", task.name, 0, version=verdict.version, reason=verdict.reason)
        if verdict.version is not None:
            self._post.announce(ModelHint(task.name))

    def _publish_offer(self, live: _Live, now: float) -> None:
        live.offered_at = now
        self._post.publish("offer", live.terms.frame)

    def republish(self, now: float) -> None:
        """After a reconnect: every open offer again. Devices know a repeat."""
        for live in self._open.values():
            if live.state.phase in TAKING:
                self._publish_offer(live, now)

    # -- the state machine, made durable

    def _step(self, live: _Live, event: Event, also: Callable[[], None] = _nothing) -> None:
        state, owed = step(live.state, event)
        if state == live.state and also is _nothing:
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
                self._audit(now, "phase", *live.terms.name, devices=len(state.accepted), **said)
        live.state, live.stats = state, stats
        live.owed.extend(action for action in owed if action not in live.owed)
        if moved:
            live.since = now
            self._moved(live)

    def _timed(self, live: _Live, now: float) -> dict[str, Any]:
        seconds = dict(live.stats.get("seconds", {}))
        phase = live.state.phase.value
        seconds[phase] = round(seconds.get(phase, 0.0) + now - live.since, 3)
        return {**live.stats, "seconds": seconds, "devices": len(live.state.accepted)}

    def _moved(self, live: _Live) -> None:
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

    def _settle(self, live: _Live) -> None:
        """Do what is owed. What raises stays owed."""
        while live.owed:
            outcome = self._perform(live, live.owed[0])
            if outcome is not None:
                self._step(live, *outcome)
            del live.owed[0]

    def _perform(self, live: _Live, action: Action) -> Outcome | None:
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

    def _prepare(self, live: _Live) -> Outcome:
        count = sum(self._ingest.close_round(*live.terms.name).sizes.values())
        if count != len(live.state.accepted):
            what = f"the sums hold {count} uploads, {len(live.state.accepted)} were accepted"
            raise LocalProtocolError(what, reason="count")
        spec = self._releases.spec(self._task(live.state.task))
        return Prepared(int(self._clock()) + spec.opening_s), _nothing

    def _open_sum(self, live: _Live) -> Outcome:
        began = self._clock()
        opened, wait = self._openings.open(live.terms, live.grouping, live.state)
        if wait:
            return SumRefused(wait), _nothing
        try:
            sha256, facts = self._releases.average(self._task(live.state.task), live.terms, opened)
        except ModelRefused as error:
            return SumRefused(error.reason), _nothing
        self._openings.say_wrong(live.terms, opened, [group["reason"] for group in facts["groups"]], began)
        self._hook("averaging")
        live.stats = {**live.stats, **facts, "sha256": sha256}
        live.stats["seconds"] = {**live.stats["seconds"], "averaging": round(self._clock() - began, 3)}
        return SumOpened(), lambda: self._commit(live, sha256, facts["parent"])

    def _commit(self, live: _Live, sha256: str, parent: str) -> None:
        task, number = live.terms.name
        self._store.add_checkpoint(sha256, task=task, number=number, parent=parent, metrics={}, at=self._clock())
        self._store.set_task(task, checkpoint=sha256)
        self.ledger.opened(task, number, self._clock())
        spent = {name: live.stats.get(name) for name in ("devices", "unit", "epsilon", "delta", "rounds")}
        self._audit(self._clock(), "sum-opened", task, number, sha256=sha256, parent=parent, **spent)

    def _audit(self, at: float, kind: str, task: str, number: int, **data: Any) -> None:
        """In the transaction of what it records."""
        audit_log.append(self._store.connection, at, kind, task, number, **data)

    def _release(self, live: _Live) -> Outcome:
        name, number = live.terms.name
        task, sha256 = self._task(name), live.stats["sha256"]
        verdict = self._releases.release(task, number, sha256, {"epsilon": live.stats["epsilon"]})
        self._hook("published")
        live.stats = {**live.stats, "metrics": verdict.metrics, "version": verdict.version}
        live.stats["seconds"] = {**live.stats["seconds"], **{k: round(v, 3) for k, v in verdict.seconds.items()}}

        def also() -> None:
            self._releases.record(task, number, sha256, verdict)
            self._audit(self._clock(), "release", name, number, **_released(sha256, verdict))
            if not verdict.usable:
                self._store.set_task(name, checkpoint=live.stats["parent"])

        return Published(verdict.reason), also

    def _finish(self, live: _Live) -> None:
        """Forget the round key and all that was sent; say when the task goes on."""
        (name, number), now = live.terms.name, self._clock()
        self._ingest.forget_round(name, number)
        spec = self._releases.spec(self._task(name))
        # Only this is written: a `task stop` may have come since the row was read.
        ends = {"status": "done"} if tasks.rounds_done(self._store, spec) >= spec.rounds else {}
        pause = spec.pause_s if live.state.phase is Phase.RELEASED else self._pause(name)
        with self._store.transaction():
            self._store.forget_uploads(name, number)
            self._store.set_round(name, number, secret=None, waiting="")
            self._store.set_task(name, not_before=now + pause, **ends)
            if ends:
                self._audit(now, "task-done", name, number, rounds=spec.rounds)
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

    # -- messages

    def _live(self, task: str, number: int, reason: str) -> _Live:
        live = self._open.get(task)
        if live is None or live.state.number != number:
            raise UnexpectedMessage(f"round {number} of {task} is not open", reason=reason)
        return live

    def hello(self, device: str, hello: Hello, now: float) -> Grant | Receipt:
        """A grant, or the receipt of an upload that has one already. Raises RemoteProtocolError, DiskFull."""
        receipt = self._ingest.receipt_for(device, hello.upload)
        if receipt is not None:
            return receipt
        live = self._live(hello.task, hello.round, "closed")
        if hello.consent < live.terms.offer.consent:
            asked = f"the offer asks for notice {live.terms.offer.consent}"
            raise UnexpectedMessage(f"consent to notice {hello.consent} only; {asked}", reason="consent")
        step(live.state, Granted(device))
        grant = self._ingest.hello(device, hello, now)
        self._step(live, Granted(device))
        return grant

    def done(self, device: str, done: Done, now: float) -> Ack | Receipt:
        """The receipt, or what is still missing. Raises RemoteProtocolError "unknown-upload", DiskFull."""
        receipt = self._ingest.receipt_for(device, done.upload)
        if receipt is not None:
            return receipt
        missing = self._ingest.incomplete(device, done.upload)
        if missing is not None:
            return missing
        live = self._live(*self._ingest.round_of(done.upload), "closed")
        try:
            verified = self._ingest.verify(done.upload)
        except RemoteProtocolError as error:
            self._store.count_refusals({("upload", error.reason): 1})
            self._step(live, Declined(device))  # the receipt is final: nobody waits for this device
            return Receipt(done.upload, False, error.reason)

        def accept() -> None:
            self._ingest.accept(done.upload, verified.shares)
            self.ledger.accepted(device, *live.terms.name)
            facts: dict[str, Any] = {"device": device, "upload": done.upload.hex(), "bytes": len(verified.residues)}
            self._audit(now, "upload", *live.terms.name, **facts)

        self._step(live, Accepted(device), accept)
        self._ingest.add(done.upload, verified.residues, now)
        self._store.log(now, "upload", *live.terms.name, device=device, devices=len(live.state.accepted))
        live.retry_at = now  # a round that is full closes at the next tick, after this receipt
        return Receipt(done.upload, True, "")

    def withdraw(self, device: str, withdraw: Withdraw, now: float) -> None:
        """Drop what is withdrawn and not yet in a sum; nobody waits for the device then. Raises DiskFull."""
        dropped = self._ingest.withdraw(device, withdraw.task, withdraw.uploads, now)
        if not dropped:
            return
        live = self._open.get(withdraw.task)
        number = 0 if live is None else live.state.number
        with self._store.transaction():
            self._store.log(now, "withdrawn", withdraw.task, number, device=device, uploads=dropped)
            self._audit(now, "withdrawn", withdraw.task, number, device=device, uploads=dropped)
        if live is not None:
            self._step(live, Declined(device))

    def share(self, device: str, share: Share) -> None:
        """A member's answer. Raises RemoteProtocolError, DiskFull."""
        live = self._live(share.task, share.round, "not-opening")
        if live.state.phase is not Phase.OPENING:
            raise UnexpectedMessage(f"round {share.round} is {live.state.phase.value}", reason="not-opening")
        if live.terms.member(device) in live.state.answered:
            return
        member, body = self._openings.read_answer(live.terms, live.grouping, device, share)
        self._step(live, Answered(member), lambda: self._store.add_answer(*live.terms.name, member, body))
        self._store.log(self._clock(), "answer", *live.terms.name, device=device, answers=len(live.state.answered))

    def report(self, device: str, report: Report) -> None:
        """A device that will not take part is not waited for, and the operator is told why it will not."""
        live = self._open.get(report.task)
        if live is None or live.state.number != report.round or report.event not in DECLINES:
            return
        if live.state.phase in TAKING and device in live.state.invited - live.state.accepted:
            live.refused[device] = report.reason or report.event
            counts = Counter(live.refused.values()).most_common(MOST_REASONS)
            live.stats = {**live.stats, "refused": dict(counts)}
        self._step(live, Declined(device))

    def note(self, device: str, report: Report, now: float) -> None:
        """Keep what a device says of itself among the events, for whoever watches."""
        said = {"event": report.event, "reason": report.reason, "detail": report.detail}
        self._store.log(now, "report", report.task, report.round, device=device, **said)

    def drop_device(self, device: str) -> None:
        """The device is revoked: what it was sending goes."""
        self._ingest.drop_device(device)

    # -- what devices may ask for

    def offers(self) -> list[bytes]:
        """The frames of every round that takes uploads."""
        return [live.terms.frame for live in self._open.values() if live.state.phase in TAKING]

    def openings(self, device: str) -> list[OpeningNotice]:
        """What the device still owes as a committee member."""
        owing = self._owing(device)
        return [self._openings.asked(live.terms, live.grouping).notices[member - 1] for live, member in owing]

    def _owing(self, device: str) -> list[tuple[_Live, int]]:
        opening = [live for live in self._open.values() if live.state.phase is Phase.OPENING]
        found = [(live, live.terms.member(device)) for live in opening]
        return [(live, member) for live, member in found if member and member not in live.state.answered]

    def opening_blob(self, device: str, task: str, number: int) -> bytes | None:
        """The opening request of this member; None for everybody else and for other rounds."""
        live = self._open.get(task)
        if live is None or live.state.number != number or live.state.phase is not Phase.OPENING:
            return None
        member = live.terms.member(device)
        return self._openings.asked(live.terms, live.grouping).blobs[member - 1] if member else None

    def _send_notices(self, live: _Live, now: float) -> None:
        live.notified_at = now
        active = {device.device for device in self._registry.active()}
        for index, device in enumerate(live.terms.offer.secagg.committee):
            if index + 1 not in live.state.answered and device in active:
                self._post.send(device, self._openings.asked(live.terms, live.grouping).notices[index])
