"""The round's state machine against SPEC 7.6 and against every order of events."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.server_round import (
    FINAL,
    TRANSITIONS,
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
    step,
)
from edge_sdk.protocol.errors import LocalProtocolError, ProtocolError, UnexpectedMessage

DEVICES = [f"d{i}" for i in range(8)]
SPEC = Path(__file__).parents[2] / "edge_sdk" / "protocol" / "SPEC.md"


def fresh() -> Round:
    return Round("churn", 1, 3, 6, 1000, frozenset(DEVICES), members=5, needed=4)


def run(*events: Event, state: Round | None = None) -> Round:
    state = state or fresh()
    for event in events:
        state, _ = step(state, event)
    return state


def with_uploads(*devices: str) -> Round:
    return run(*[e for d in devices for e in (Granted(d), Accepted(d))])


def test_the_transitions_are_those_of_the_specification():
    section = SPEC.read_text().split("### 7.6", 1)[1].split("\n### ", 1)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    stated = {(Phase(a.strip()), Phase(row[1].strip())) for row in rows for a in row[0].split(",")}
    assert stated == TRANSITIONS


def test_the_first_grant_starts_collecting():
    assert fresh().phase is Phase.OFFERED
    assert run(Granted("d1")).phase is Phase.COLLECTING


@pytest.mark.parametrize(
    ("event", "reason"),
    [(Granted("stranger"), "roster"), (Accepted("d0"), "already-in"), (Granted("d0"), "already-in")],
)
def test_a_device_that_may_not_send_is_refused_with_the_reason(event, reason):
    with pytest.raises(UnexpectedMessage) as refused:
        step(with_uploads("d0"), event)
    assert refused.value.reason == reason


def test_the_window_closes_the_round_with_enough_and_aborts_it_without():
    late = Tick(1000, frozenset(DEVICES))
    assert run(late, state=with_uploads("d0", "d1", "d2")).phase is Phase.CLOSED
    aborted = run(late, state=with_uploads("d0", "d1"))
    assert (aborted.phase, aborted.reason) == (Phase.ABORTED, "n-min")


def test_the_round_closes_early_when_every_live_device_is_in_or_declined():
    state = with_uploads("d0", "d1", "d2")
    live = frozenset({"d0", "d1", "d2", "d3"})
    assert run(Tick(5, live), state=state).phase is Phase.COLLECTING
    assert run(Declined("d3"), Tick(5, live), state=state).phase is Phase.CLOSED
    assert run(Tick(5, live - {"d3"}), state=state).reason == "all-in"


def test_nobody_is_waited_for_below_the_smallest_cohort():
    assert run(Tick(5, frozenset()), state=with_uploads("d0", "d1")).phase is Phase.COLLECTING


def test_n_max_uploads_close_the_round():
    assert with_uploads(*DEVICES[:6]).reason == "n-max"


def test_an_answer_that_spoils_the_sum_waits_for_more_until_all_have_answered():
    state = run(*map(Answered, (1, 2, 3, 4)), state=opening())
    waiting = run(SumRefused("canaries"), state=state)
    assert waiting.phase is Phase.OPENING
    assert run(Answered(5), SumRefused("canaries"), state=waiting).phase is Phase.ABORTED


def opening() -> Round:
    return run(Tick(1000, frozenset()), Prepared(1100), state=with_uploads("d0", "d1", "d2"))


def test_the_opening_is_bounded():
    assert run(Tick(1099, frozenset()), state=opening()).phase is Phase.OPENING
    assert run(Tick(1100, frozenset()), state=opening()).reason == "opening-deadline"


def test_at_the_deadline_what_holds_by_then_is_taken_once():
    spoiled = run(*map(Answered, (1, 2, 3, 4)), SumRefused("canaries"), state=opening())
    last, owed = step(spoiled, Tick(1100, frozenset()))
    assert (last.phase, owed) == (Phase.OPENING, (Action.OPEN_SUM,))
    assert run(SumOpened(), state=last).phase is Phase.AVERAGED
    assert run(SumRefused("canaries"), state=last).phase is Phase.ABORTED
    assert run(Tick(1101, frozenset()), state=last).reason == "canaries"


def test_a_restart_owes_what_the_phase_owes():
    assert resume(fresh(), 2000)[1] == ()
    state, owed = resume(opening(), 2000)
    assert owed == (Action.SEND_NOTICES,)
    assert state.opening_ends_at == 2000
    assert resume(run(*map(Answered, (1, 2, 3, 4)), state=state), 2000)[1] == (Action.OPEN_SUM,)


EVENTS = st.one_of(
    st.builds(Granted, st.sampled_from([*DEVICES, "stranger"])),
    st.builds(Accepted, st.sampled_from([*DEVICES, "stranger"])),
    st.builds(Declined, st.sampled_from([*DEVICES, "stranger"])),
    st.builds(Tick, st.integers(0, 1300), st.frozensets(st.sampled_from(DEVICES))),
    st.builds(Prepared, st.just(1200)),
    st.builds(Answered, st.integers(0, 7)),
    st.just(SumOpened()),
    st.builds(SumRefused, st.just("canaries")),
    st.builds(Published, st.just("better")),
)


@given(st.lists(EVENTS, max_size=60))
def test_any_order_of_events_keeps_the_rules_of_the_round(events):
    state = fresh()
    for event in events:
        before = state
        try:
            state, owed = step(state, event)
        except ProtocolError:
            continue
        assert before.phase is state.phase or (before.phase, state.phase) in TRANSITIONS
        assert state.accepted >= before.accepted
        assert state.accepted <= state.invited
        assert len(state.accepted) <= state.n_max
        if state.phase not in {Phase.OFFERED, Phase.COLLECTING, Phase.ABORTED}:
            assert len(state.accepted) >= state.n_min
            assert state.accepted == before.accepted or before.phase is Phase.COLLECTING
        if state.phase is Phase.AVERAGED:
            assert Action.OPEN_SUM not in owed
        if before.phase in FINAL:
            assert state.phase is before.phase


def test_our_own_events_out_of_turn_are_bugs():
    for event in (Prepared(1), SumOpened(), SumRefused("x"), Published("x")):
        with pytest.raises(LocalProtocolError):
            step(fresh(), event)


def in_two_groups(*devices: str, n_max: int = 4) -> Round:
    places = {device: index % 2 for index, device in enumerate(DEVICES)}  # d0, d2, d4, d6 in one, the others in two
    state = Round(
        "churn", 1, 2, n_max, 1000, frozenset(DEVICES), members=5, needed=4, groups=places, fewest=2
    )  # fmt: skip
    return run(*[e for d in devices for e in (Granted(d), Accepted(d))], state=state)


def test_at_n_max_a_round_goes_on_while_a_group_wants_devices_and_closes_when_none_does():
    assert in_two_groups("d0", "d2", "d4", "d1").phase is Phase.COLLECTING
    assert in_two_groups("d0", "d2", "d4", "d1", "d3").phase is Phase.CLOSED
    assert in_two_groups("d0", "d1", "d2", "d3").reason == "n-max"


def test_no_group_grows_beyond_n_max():
    short = in_two_groups("d0", "d2", "d4", n_max=3)
    with pytest.raises(UnexpectedMessage) as refused:
        step(short, Granted("d6"))
    assert refused.value.reason == "closed"
    assert run(Granted("d1"), Accepted("d1"), state=short).phase is Phase.COLLECTING


def test_what_counts_at_the_end_is_how_many_groups_are_full():
    assert run(Tick(1000, frozenset()), state=in_two_groups("d0", "d2", "d4")).phase is Phase.ABORTED
    assert run(Tick(1000, frozenset()), state=in_two_groups("d0", "d2", "d1", "d3", n_max=9)).phase is Phase.CLOSED


def buffered(*devices: str, buffer: int = 4, **changes) -> Round:
    """A round that closes at so many uploads, with some in."""
    state = replace(fresh(), buffer=buffer, yields_at=500, **changes)
    return run(*[e for d in devices for e in (Granted(d), Accepted(d))], state=state)


EVERYBODY = frozenset(DEVICES)


def test_a_buffered_round_waits_for_its_uploads_whoever_is_live():
    assert run(Tick(900, frozenset()), state=buffered("d0", "d1", "d2")).phase is Phase.COLLECTING
    assert run(Tick(1, EVERYBODY), state=buffered("d0", "d1", "d2", "d3")).reason == "buffer"
    assert run(Tick(1, frozenset()), state=buffered("d0", "d1", "d2", n_min=5, buffer=3)).phase is Phase.COLLECTING


def test_a_full_buffered_round_waits_a_minute_for_uploads_that_were_announced():
    state = run(Granted("d4"), Granted("d5"), state=buffered("d0", "d1", "d2", "d3"))
    waiting = run(Tick(10, EVERYBODY), Tick(69, EVERYBODY), state=state)
    assert waiting.phase is Phase.COLLECTING
    assert run(Tick(70, EVERYBODY), state=waiting).phase is Phase.CLOSED
    assert run(Tick(11, EVERYBODY - {"d4", "d5"}), state=waiting).phase is Phase.CLOSED
    assert run(Accepted("d4"), Declined("d5"), Tick(11, EVERYBODY), state=waiting).phase is Phase.CLOSED
    assert run(Accepted("d4"), Accepted("d5"), state=waiting).reason == "n-max"


def test_a_buffered_round_ends_when_nobody_is_left_and_with_its_days():
    left = [Declined(device) for device in DEVICES[3:]]
    assert run(*left, Tick(1, frozenset()), state=buffered("d0", "d1", "d2")).reason == "all-in"
    assert run(Tick(1000, EVERYBODY), state=buffered("d0", "d1", "d2")).reason == "deadline"
    assert run(Tick(1000, EVERYBODY), state=buffered("d0", "d1")).phase is Phase.ABORTED


def test_a_buffered_round_gives_way_after_its_window_to_what_waits_for_it():
    three = buffered("d0", "d1", "d2")
    assert run(Tick(499, EVERYBODY, True), state=three).phase is Phase.COLLECTING
    assert run(Tick(500, EVERYBODY, True), state=three).phase is Phase.CLOSED
    assert run(Tick(500, EVERYBODY, True), state=buffered("d0")).reason == "waited-for"
    assert run(Tick(500, EVERYBODY, True), state=with_uploads("d0", "d1", "d2")).phase is Phase.COLLECTING
