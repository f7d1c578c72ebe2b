"""The aggregator's half of one round (SPEC 7.6). Does no I/O, reads no clock, draws no randomness.

`step(round, event)` gives the next round and what is to be done; the caller makes the round durable first and acts
after. Refuses, with UnexpectedMessage and a reason, whatever a device may not do now; such an event changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final

from edge_sdk.protocol.errors import LocalProtocolError, UnexpectedMessage


class Phase(Enum):
    """Where a round stands. RELEASED and ABORTED are final."""

    OFFERED = "offered"
    COLLECTING = "collecting"
    CLOSED = "closed"
    OPENING = "opening"
    AVERAGED = "averaged"
    RELEASED = "released"
    ABORTED = "aborted"


TRANSITIONS: Final = {
    (Phase.OFFERED, Phase.COLLECTING),
    (Phase.OFFERED, Phase.CLOSED),
    (Phase.COLLECTING, Phase.CLOSED),
    (Phase.OFFERED, Phase.ABORTED),
    (Phase.COLLECTING, Phase.ABORTED),
    (Phase.CLOSED, Phase.OPENING),
    (Phase.OPENING, Phase.AVERAGED),
    (Phase.OPENING, Phase.ABORTED),
    (Phase.AVERAGED, Phase.RELEASED),
}
GRACE_S: Final = 60  # a buffered round that is full waits so long for uploads that were announced: they are charged
FINAL: Final = {Phase.RELEASED, Phase.ABORTED}
TAKING: Final = {Phase.OFFERED, Phase.COLLECTING}


class Action(Enum):
    """What the caller owes the round once it is durable."""

    PREPARE_OPENING = "prepare-opening"  # make the sum and the opening requests durable, then Prepared
    SEND_NOTICES = "send-notices"  # to the members that have not answered
    OPEN_SUM = "open-sum"  # then SumOpened or SumRefused
    RELEASE = "release"  # gates and publication, then Published
    FINISH = "finish"  # forget the round key, start what comes next


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one task. Members are counted from 1; times are seconds.

    `n_min`: uploads that a group needs; `groups`: device -> its group; `fewest`: groups that must fill; `last_try`: the
    opening ends with the next sum. `buffer`: the round closes at so many uploads, whoever is live (0: it does not), and
    ends from `yields_at` on where something waits for it; `granted`: who announced an upload; `full_at`: since when
    there are enough.
    """

    task: str
    number: int
    n_min: int
    n_max: int
    closes_at: int
    invited: frozenset[str]
    members: int
    needed: int
    phase: Phase = Phase.OFFERED
    accepted: frozenset[str] = field(default_factory=frozenset)
    declined: frozenset[str] = field(default_factory=frozenset)
    answered: frozenset[int] = field(default_factory=frozenset)
    opening_ends_at: int = 0
    reason: str = ""
    last_try: bool = False
    groups: Mapping[str, int] = field(default_factory=dict)
    fewest: int = 1
    buffer: int = 0
    yields_at: int = 0
    granted: frozenset[str] = field(default_factory=frozenset)
    full_at: int | None = None

    def size(self, group: int) -> int:
        """Uploads of a group."""
        return sum(self.groups.get(device, 0) == group for device in self.accepted)

    @property
    def filled(self) -> int:
        """How many groups have uploads enough to be opened."""
        sizes = Counter(self.groups.get(device, 0) for device in self.accepted)
        return sum(size >= self.n_min for size in sizes.values())

    @property
    def heard_all(self) -> bool:
        """No further answer comes: what holds by now is all that ever will."""
        return self.last_try or len(self.answered) >= self.members


@dataclass(frozen=True, slots=True)
class Granted:
    """A device announced an upload and may send it."""

    device: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """A device's upload is durable and verified."""

    device: str


@dataclass(frozen=True, slots=True)
class Declined:
    """A device says that it will not take part: nobody waits for it."""

    device: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed. `live`: the devices heard from lately; `waited_for`: a roster or a question waits for the end."""

    now: int
    live: frozenset[str]
    waited_for: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """The running sum and the opening requests are durable."""

    opening_ends_at: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A member's answer to this opening is durable."""

    member: int


@dataclass(frozen=True, slots=True)
class SumOpened:
    """The answers agree, the canaries of at least one group hold and the checkpoint is written."""


@dataclass(frozen=True, slots=True)
class SumRefused:
    """The answers so far do not give a sum that holds."""

    reason: str


@dataclass(frozen=True, slots=True)
class Published:
    """The gates have spoken; `reason` says what they said."""

    reason: str


Event = Granted | Accepted | Declined | Tick | Prepared | Answered | SumOpened | SumRefused | Published
Step = tuple[Round, tuple[Action, ...]]


def step(state: Round, event: Event) -> Step:
    """The next round and the actions owed. Raises UnexpectedMessage (theirs) or LocalProtocolError (ours)."""
    return _HANDLERS[type(event)](state, event)


def resume(state: Round, opening_ends_at: int) -> Step:
    """What a restart owes a round that was read back. The opening's deadline counts from the restart."""
    if state.phase is Phase.OPENING:
        state = replace(state, opening_ends_at=max(state.opening_ends_at, opening_ends_at))
        enough = len(state.answered) >= state.needed
        return state, (Action.OPEN_SUM,) if enough else (Action.SEND_NOTICES,)
    owed = {Phase.CLOSED: Action.PREPARE_OPENING, Phase.AVERAGED: Action.RELEASE}
    if state.phase in FINAL:
        return state, (Action.FINISH,)
    return state, (owed[state.phase],) if state.phase in owed else ()


def waiting_for(state: Round, live: frozenset[str]) -> str:
    """Why the round has not moved on, in one line for the operator."""
    if state.phase in TAKING:
        out = (state.invited & live) - state.accepted - state.declined
        each = f" in each of {state.fewest} groups" if state.fewest > 1 else ""
        needs = f"closes at {state.buffer}" if state.buffer else f"needs {state.n_min}{each}"
        return f"{len(state.accepted)} uploads in ({needs}), {len(out)} live devices still out"
    if state.phase is Phase.OPENING:
        return f"{len(state.answered)} of {state.needed} committee answers" + (state.reason and f" ({state.reason})")
    return state.reason


def said_why(refused: Mapping[str, int]) -> str:
    """Counts of devices by their reason, in a few words."""
    return ", ".join(f"{count} {reason}" for reason, count in refused.items())


def _move(state: Round, phase: Phase, **changes: Any) -> Round:
    if (state.phase, phase) not in TRANSITIONS:
        raise LocalProtocolError(f"a round does not go from {state.phase.value} to {phase.value}", reason="transition")
    return replace(state, phase=phase, **changes)


def _expect(state: Round, phase: Phase) -> None:
    if state.phase is not phase:
        raise LocalProtocolError(f"this belongs to {phase.value}, the round is {state.phase.value}", reason="phase")


def _check_sender(state: Round, device: str) -> None:
    if state.phase not in TAKING:
        raise UnexpectedMessage(f"round {state.number} is {state.phase.value}", reason="closed")
    if device not in state.invited:
        raise UnexpectedMessage(f"{device} is not in the roster of round {state.number}", reason="roster")
    if device in state.accepted:
        raise UnexpectedMessage(f"{device} has an upload in round {state.number}", reason="already-in")
    if len(state.accepted) >= state.n_max and state.size(state.groups.get(device, 0)) >= state.n_max:
        raise UnexpectedMessage(f"the group of {device} is full", reason="closed")


def _granted(state: Round, event: Granted) -> Step:
    _check_sender(state, event.device)
    state = replace(state, declined=state.declined - {event.device}, granted=state.granted | {event.device})
    return (_move(state, Phase.COLLECTING) if state.phase is Phase.OFFERED else state), ()


def _accepted(state: Round, event: Accepted) -> Step:
    _check_sender(state, event.device)
    state = replace(state, accepted=state.accepted | {event.device}, declined=state.declined - {event.device})
    # Where groups still want devices the round goes on: no sum grows beyond n_max, `_check_sender` sees to it.
    full = len(state.accepted) >= state.n_max and state.filled == len({0, *state.groups.values()})
    return _close(state, "n-max") if full else (state, ())


def _declined(state: Round, event: Declined) -> Step:
    if state.phase not in TAKING or event.device not in state.invited - state.accepted:
        return state, ()
    return replace(state, declined=state.declined | {event.device}), ()


def _tick(state: Round, event: Tick) -> Step:
    if state.phase in TAKING:
        return _tick_taking(state, event)
    if state.phase is Phase.OPENING and event.now >= state.opening_ends_at:
        if len(state.answered) >= state.needed and not state.last_try:
            return replace(state, last_try=True), (Action.OPEN_SUM,)  # the groups that hold need not wait for others
        return _abort(state, state.reason or "opening-deadline")
    return state, ()


def _tick_taking(state: Round, event: Tick) -> Step:
    enough = state.filled >= state.fewest
    if event.now >= state.closes_at:
        return _close(state, "deadline") if enough else _abort(state, "n-min")
    if state.buffer:
        return _tick_buffered(state, event, enough=enough)
    if enough and not (state.invited & event.live) - state.accepted - state.declined:
        return _close(state, "all-in")
    return state, ()


def _tick_buffered(state: Round, event: Tick, *, enough: bool) -> Step:
    """Devices come and go: who is live at this moment does not end the round."""
    if event.waited_for and event.now >= state.yields_at:
        return _close(state, "waited-for") if enough else _abort(state, "waited-for")
    out = state.invited - state.accepted - state.declined
    if not enough or (out and len(state.accepted) < state.buffer):
        return state, ()
    since = event.now if state.full_at is None else state.full_at
    if state.granted & out & event.live and event.now < since + GRACE_S:
        return replace(state, full_at=since), ()
    return _close(state, "buffer" if len(state.accepted) >= state.buffer else "all-in")


def _close(state: Round, reason: str) -> Step:
    return _move(state, Phase.CLOSED, reason=reason), (Action.PREPARE_OPENING,)


def _abort(state: Round, reason: str) -> Step:
    return _move(state, Phase.ABORTED, reason=reason), (Action.FINISH,)


def _prepared(state: Round, event: Prepared) -> Step:
    moved = _move(state, Phase.OPENING, opening_ends_at=event.opening_ends_at, reason="")
    return moved, (Action.SEND_NOTICES,)


def _answered(state: Round, event: Answered) -> Step:
    if state.phase is not Phase.OPENING:
        raise UnexpectedMessage(f"round {state.number} is {state.phase.value}, not opening", reason="not-opening")
    if not 1 <= event.member <= state.members:
        raise UnexpectedMessage(f"the committee has no member {event.member}", reason="not-member")
    if event.member in state.answered:
        raise UnexpectedMessage(f"member {event.member} has answered", reason="repeat")
    state = replace(state, answered=state.answered | {event.member})
    return state, (Action.OPEN_SUM,) if len(state.answered) >= state.needed else ()


def _sum_opened(state: Round, event: SumOpened) -> Step:
    del event
    return _move(state, Phase.AVERAGED, reason=""), (Action.RELEASE,)


def _sum_refused(state: Round, event: SumRefused) -> Step:
    _expect(state, Phase.OPENING)
    if state.heard_all:
        return _abort(state, event.reason)
    return replace(state, reason=event.reason), ()  # a further answer may tell which one was wrong


def _published(state: Round, event: Published) -> Step:
    return _move(state, Phase.RELEASED, reason=event.reason), (Action.FINISH,)


_HANDLERS: Final[dict[type, Callable[[Round, Any], Step]]] = {
    Granted: _granted,
    Accepted: _accepted,
    Declined: _declined,
    Tick: _tick,
    Prepared: _prepared,
    Answered: _answered,
    SumOpened: _sum_opened,
    SumRefused: _sum_refused,
    Published: _published,
}
