"""Rounds under every fault of network and processes: the sum is that of the included devices, or there is none.

Device i contributes the vector that is 1 at place i, so a result names the devices in it.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated_aggregator import TASK
from simulated_wire import AGGREGATOR
from simulated_world import START, Operation, World

from aggregator.tasks import TaskSpec
from edge_sdk.protocol import codec
from edge_sdk.protocol.messages import UP, Share

SPEC = TaskSpec(name=TASK, rounds=1, n_min=4, n_max=8, groups=2, window_s=40, opening_s=40, noise_multiplier=2.0)
SMALL = st.integers(0, 40)


def operations(*names: str) -> st.SearchStrategy[list[Operation]]:
    """Lists in which packets keep flowing, so that the faults meet every phase."""
    some = st.builds(Operation, st.sampled_from(names), SMALL, st.integers(0, 1_000_000))
    flow = st.builds(Operation, st.just("deliver"), st.integers(1, 24), st.integers(0, 6))
    time = st.builds(Operation, st.just("advance"), st.integers(1, 4))
    turns = st.lists(st.tuples(time, flow, some, some), min_size=4, max_size=14)
    return turns.map(lambda listed: [step for turn in listed for step in turn])


FAULTS = ("drop_some", "duplicate", "corrupt", "replay", "crash_device", "crash_aggregator", "crash_in_phase")
QUICK = settings(
    max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@contextmanager
def world(size: int, spec: TaskSpec = SPEC) -> Iterator[World]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        made = World(Path(folder), size, spec)
        try:
            yield made
        finally:
            made.close()


def run(made: World, steps: list[Operation], rounds: int = 1) -> World:
    for step in steps:
        made.do(step)
    made.settle(rounds)
    return made


def indicator(made: World, number: int) -> list[int]:
    counted = made.aggregator.counted(number)
    return [int(name in counted) for name in made.names]


def check_sums(made: World) -> None:
    """Whenever a result exists it is the sum of the included devices, and they are enough."""
    for number, results in made.aggregator.sums.opened.items():
        assert sum(indicator(made, number)) >= SPEC.n_min
        for result in results:
            assert result[: len(made.names)].tolist() == indicator(made, number)
            assert not result[len(made.names) :].any()
    for devices, result in made.aggregator.sums.groups:
        assert len(devices) >= SPEC.n_min
        assert result[: len(made.names)].tolist() == [int(name in devices) for name in made.names]


def check_acknowledged(made: World) -> None:
    """What a device was told is in, is in."""
    for device in made.devices.values():
        for (_, number), state in device.upload_states().items():
            if state == "accepted":
                assert device.name in made.aggregator.included(number)


def answers_on_the_wire(made: World) -> dict[tuple[str, str, int], set[bytes]]:
    said: dict[tuple[str, str, int], set[bytes]] = defaultdict(set)
    for packet in made.wire.history:
        if packet.receiver == AGGREGATOR and packet.topic.endswith("/share"):
            share = codec.unpack(packet.payload[68:], Share)
            said[packet.sender, share.task, share.round].add(share.sealed)
    return said


def check_answers(made: World) -> None:
    """SPEC 7.5: a member answers once per (task, round), and afterwards repeats itself word for word."""
    assert UP[Share.kind] is Share
    assert all(len(answers) == 1 for answers in answers_on_the_wire(made).values())


def check(made: World) -> None:
    check_sums(made)
    check_acknowledged(made)
    check_answers(made)
    assert "internal" not in made.aggregator.refused(), "a message met an error of ours"


@pytest.mark.parametrize("size", [5, 8])
def test_an_undisturbed_round_holds_everybody(size):
    with world(size) as made:
        run(made, [])
        assert made.aggregator.phases() == {1: "released"}
        assert indicator(made, 1) == [1] * size
        assert made.time - START < 30
        assert [len(devices) for devices, _ in made.aggregator.sums.groups] == [4] * (size // 4) or size == 5
        assert not made.aggregator.refused().keys() - {"not-opening"}
        assert [device.upload_states() for device in made.devices.values()] == [{(TASK, 1): "accepted"}] * size
        check(made)


@given(operations(*FAULTS), st.integers(5, 7))
@QUICK
def test_the_sum_is_exactly_the_devices_that_were_included(steps, size):
    with world(size) as made:
        run(made, steps)
        assert made.aggregator.phases()[1] in ("released", "aborted")
        check(made)


@given(operations(*FAULTS, "lie"))
@settings(QUICK, max_examples=12)
def test_an_aggregator_that_lies_in_between_spoils_a_round_and_never_a_sum(steps):
    with world(6) as made:
        run(made, steps)
        check(made)


@given(operations("crash_device", "crash_aggregator", "crash_in_phase"))
@settings(QUICK, max_examples=12)
def test_crashes_alone_cost_time_and_nothing_else(steps):
    with world(6, TaskSpec(**{**fields(SPEC), "window_s": 300, "opening_s": 300})) as made:
        run(made, steps)
        assert made.aggregator.phases()[1] == "released"
        check(made)


def fields(spec: TaskSpec) -> dict[str, object]:
    return {name: getattr(spec, name) for name in spec.__struct_fields__}


@pytest.mark.parametrize("phase", range(8))
def test_a_crash_of_the_aggregator_at_each_step_of_a_round_loses_nothing(phase):
    with world(6) as made:
        run(made, [Operation("crash_in_phase", phase)])
        assert made.aggregator.phases()[1] == "released"
        assert made.aggregator.crash_at in ("", "published")
        assert indicator(made, 1) == [1] * 6
        check(made)


def test_devices_that_vanish_are_not_in_the_sum():
    with world(7) as made:
        made.advance(1)
        for name in ("d1", "d4"):
            made.devices[name].turn = lambda now, passed: None  # type: ignore[method-assign]
            made.devices[name].receive = lambda packet, now: None  # type: ignore[method-assign]
        run(made, [])
        assert indicator(made, 1) == [1, 0, 1, 1, 0, 1, 1]
        assert made.aggregator.phases()[1] == "aborted", "two of seven members are silent, one may be"
        check(made)


def test_two_rounds_follow_each_other():
    with world(5, TaskSpec(**{**fields(SPEC), "rounds": 2})) as made:
        run(made, [], rounds=2)
        assert made.aggregator.phases() == {1: "released", 2: "released"}
        assert set(made.aggregator.sums.opened) == {1, 2}
        check(made)


def test_a_member_whose_answer_was_lost_is_asked_again_and_repeats_itself_word_for_word():
    with world(5) as made:
        for _ in range(30):
            made.advance(1)
            made.wire.waiting = [packet for packet in made.wire.waiting if not packet.topic.endswith("/share")]
            made.deliver(len(made.wire.waiting), 0)
            made.crash_device(int(made.time), 0)
        said = [packet for packet in made.wire.history if packet.topic.endswith("/share")]
        assert len(said) > 2 * len(answers_on_the_wire(made))
        run(made, [])
        assert made.aggregator.phases()[1] == "released"
        check(made)
