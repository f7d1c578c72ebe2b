"""What devices say of a round, and what they may ask for of it.

Refuses, by RemoteProtocolError with a reason, what the round, the uploads and the openings refuse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from aggregator.ingest import Ingest
from aggregator.ledger import Ledger
from aggregator.live_rounds import LiveRound, LiveRounds
from aggregator.openings import Openings
from aggregator.server_round import TAKING, Accepted, Answered, Declined, Granted, Phase, step
from aggregator.store.store import Store
from edge_sdk.protocol.errors import RemoteProtocolError, UnexpectedMessage
from edge_sdk.protocol.messages import Ack, Done, Grant, Hello, OpeningNotice, Receipt, Report, Share, Withdraw

MOST_REASONS: Final = 8  # devices choose the words
DECLINES: Final = {"offer-refused", "training-failed", "round-failed"}  # words of the device's reports


class RoundMessages:
    """The devices' side of all rounds that are not over."""

    def __init__(
        self,
        live: LiveRounds,
        *,
        store: Store,
        ingest: Ingest,
        ledger: Ledger,
        openings: Openings,
        clock: Callable[[], float],
    ) -> None:
        self._live, self._store, self._ingest, self._ledger = live, store, ingest, ledger
        self._openings, self._clock = openings, clock

    def hello(self, device: str, hello: Hello, now: float) -> Grant | Receipt:
        """A grant, or the receipt of an upload that has one already. Raises RemoteProtocolError, DiskFull."""
        receipt = self._ingest.receipt_for(device, hello.upload)
        if receipt is not None:
            return receipt
        live = self._live.of(hello.task, hello.round, "closed")
        if hello.consent < live.terms.offer.consent:
            asked = f"the offer asks for notice {live.terms.offer.consent}"
            raise UnexpectedMessage(f"consent to notice {hello.consent} only; {asked}", reason="consent")
        step(live.state, Granted(device))
        grant = self._ingest.hello(device, hello, now)
        self._live.step(live, Granted(device))
        return grant

    def done(self, device: str, done: Done, now: float) -> Ack | Receipt:
        """The receipt, or what is still missing. Raises RemoteProtocolError "unknown-upload", DiskFull."""
        receipt = self._ingest.receipt_for(device, done.upload)
        if receipt is not None:
            return receipt
        missing = self._ingest.incomplete(device, done.upload)
        if missing is not None:
            return missing
        live = self._live.of(*self._ingest.round_of(done.upload), "closed")
        try:
            verified = self._ingest.verify(done.upload)
        except RemoteProtocolError as error:
            self._store.count_refusals({("upload", error.reason): 1})
            self._live.step(live, Declined(device))  # the receipt is final: nobody waits for this device
            return Receipt(done.upload, False, error.reason)

        def accept() -> None:
            self._ingest.accept(done.upload, verified.shares)
            self._ledger.accepted(device, *live.terms.name)
            facts: dict[str, Any] = {"device": device, "upload": done.upload.hex(), "bytes": len(verified.residues)}
            self._live.audit(now, "upload", *live.terms.name, **facts)

        self._live.step(live, Accepted(device), accept)
        self._ingest.add(done.upload, verified.residues, now)
        self._store.log(now, "upload", *live.terms.name, device=device, devices=len(live.state.accepted))
        live.retry_at = now  # a round that is full closes at the next tick, after this receipt
        return Receipt(done.upload, True, "")

    def withdraw(self, device: str, withdraw: Withdraw, now: float) -> None:
        """Drop what is withdrawn and not yet in a sum; nobody waits for the device then. Raises DiskFull."""
        dropped = self._ingest.withdraw(device, withdraw.task, withdraw.uploads, now)
        if not dropped:
            return
        live = self._live.by_task.get(withdraw.task)
        number = 0 if live is None else live.state.number
        with self._store.transaction():
            self._store.log(now, "withdrawn", withdraw.task, number, device=device, uploads=dropped)
            self._live.audit(now, "withdrawn", withdraw.task, number, device=device, uploads=dropped)
        if live is not None:
            self._live.step(live, Declined(device))

    def share(self, device: str, share: Share) -> None:
        """A member's answer. Raises RemoteProtocolError, DiskFull."""
        live = self._live.of(share.task, share.round, "not-opening")
        if live.state.phase is not Phase.OPENING:
            raise UnexpectedMessage(f"round {share.round} is {live.state.phase.value}", reason="not-opening")
        if live.terms.member(device) in live.state.answered:
            return
        member, body = self._openings.read_answer(live.terms, live.grouping, device, share)
        self._live.step(live, Answered(member), lambda: self._store.add_answer(*live.terms.name, member, body))
        self._store.log(self._clock(), "answer", *live.terms.name, device=device, answers=len(live.state.answered))

    def report(self, device: str, report: Report) -> None:
        """A device that will not take part is not waited for, and the operator is told why it will not."""
        live = self._live.by_task.get(report.task)
        if live is None or live.state.number != report.round or report.event not in DECLINES:
            return
        if live.state.phase in TAKING and device in live.state.invited - live.state.accepted:
            live.refused[device] = report.reason or report.event
            counts = Counter(live.refused.values()).most_common(MOST_REASONS)
            live.stats = {**live.stats, "refused": dict(counts)}
        self._live.step(live, Declined(device))

    def note(self, device: str, report: Report, now: float) -> None:
        """Keep what a device says of itself among the events, for whoever watches."""
        said = {"event": report.event, "reason": report.reason, "detail": report.detail}
        self._store.log(now, "report", report.task, report.round, device=device, **said)

    # -- what devices may ask for

    def offers(self) -> list[bytes]:
        """The frames of every round that takes uploads."""
        return [live.terms.frame for live in self._live.taking()]

    def openings(self, device: str) -> list[OpeningNotice]:
        """What the device still owes as a committee member."""
        owing = self._owing(device)
        return [self._openings.asked(live.terms, live.grouping).notices[member - 1] for live, member in owing]

    def _owing(self, device: str) -> list[tuple[LiveRound, int]]:
        opening = [live for live in self._live.by_task.values() if live.state.phase is Phase.OPENING]
        found = [(live, live.terms.member(device)) for live in opening]
        return [(live, member) for live, member in found if member and member not in live.state.answered]

    def opening_blob(self, device: str, task: str, number: int) -> bytes | None:
        """The opening request of this member; None for everybody else and for other rounds."""
        live = self._live.by_task.get(task)
        if live is None or live.state.number != number or live.state.phase is not Phase.OPENING:
            return None
        member = live.terms.member(device)
        return self._openings.asked(live.terms, live.grouping).blobs[member - 1] if member else None
