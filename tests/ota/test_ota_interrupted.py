"""An update that a full disk or a busy machine interrupts is finished by the next one, and blames no sound model."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from ota_fleet import NOW, TASK, Fleet, exit_code_of

from edge_sdk.ota.activation import Activation
from edge_sdk.ota.errors import DiskFull, ModelRefused, OtaError, UpdateUnavailable
from edge_sdk.ota.probe import ProbeFailed
from edge_sdk.ota.slots import Model, Phase, Slots


def failing(times: int, error: Exception) -> Callable[[Path], None]:
    """A probe that fails so often, then passes."""
    left = iter([error] * times)

    def probe(_: Path) -> None:
        for one in left:
            raise one

    return probe


def device_with(fleet: Fleet, probe: Callable[[Path], None]) -> tuple[Activation, Slots]:
    slots = fleet.slots()
    device = Activation(TASK, fleet.feed(), slots, fleet.serve, probe=probe)
    device.start()
    return device, slots


TIMEOUT = ProbeFailed("the model gave no answer in 30 s", reason="timeout")
NO_PROCESS = BlockingIOError(11, "Resource temporarily unavailable")


@pytest.mark.parametrize(("error", "reason"), [(NO_PROCESS, "probe-not-started"), (TIMEOUT, "probe-timeout")])
def test_a_probe_that_the_machine_prevents_is_tried_again_by_the_next_update(fleet, error, reason):
    fleet.publish(1)
    device, slots = device_with(fleet, failing(2, error))
    for _ in range(2):
        with pytest.raises(UpdateUnavailable) as caught:
            device.update(NOW)
        assert caught.value.reason == reason
        assert slots.phase is Phase.STAGED
    fetched = fleet.link.sent
    assert device.update(NOW).version == 1
    assert slots.phase is Phase.IDLE
    assert fleet.version_serving() == 1
    assert slots.quarantine == {}
    assert fleet.link.sent - fetched < 5_000, "the model was fetched again"


def test_a_newer_release_follows_in_the_update_that_finishes_the_old_one(fleet):
    fleet.publish(1)
    device, _ = device_with(fleet, failing(1, NO_PROCESS))
    with pytest.raises(UpdateUnavailable):
        device.update(NOW)
    fleet.publish(2)
    assert device.update(NOW).version == 2
    assert fleet.version_serving() == 2


def test_a_third_timeout_is_the_models_own_fault_whatever_restarts_lie_between(fleet):
    fleet.publish(1)
    fleet.device().update(NOW)
    fleet.publish(2)
    device, slots = device_with(fleet, failing(1, TIMEOUT))
    with pytest.raises(UpdateUnavailable):
        device.update(NOW)
    _, slots = device_with(fleet, failing(1, TIMEOUT))  # the start probes again
    assert slots.phase is Phase.STAGED
    device = Activation(TASK, fleet.feed(), slots, fleet.serve, probe=failing(1, TIMEOUT))
    with pytest.raises(ModelRefused) as caught:
        device.update(NOW)
    assert caught.value.reason == "probe-timeout"
    assert list(slots.quarantine.values()) == ["timeout"]
    assert fleet.version_serving() == 1
    assert device.update(NOW) is None


def test_power_cuts_while_a_staged_model_waits_do_not_blame_it(fleet):
    fleet.publish(1)
    device, slots = device_with(fleet, failing(1, NO_PROCESS))
    with pytest.raises(UpdateUnavailable):
        device.update(NOW)
    for _ in range(4):  # restarts without an end in order, each of which cannot start the probe either
        _, slots = device_with(fleet, failing(1, NO_PROCESS))
        assert slots.phase is Phase.STAGED
    device, slots = device_with(fleet, failing(0, NO_PROCESS))
    assert slots.phase is Phase.TRIAL
    assert device.update(NOW).version == 1


def test_a_model_that_a_full_disk_left_on_trial_is_committed_and_the_next_one_installed(fleet):
    fleet.publish(1)

    def update_on_a_disk_that_fills_up() -> None:
        device, slots = device_with(fleet, lambda file: None)
        serve_it = device._serve

        def serve(model: Model | None) -> None:
            serve_it(model)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # from the trial on, nothing can be written

        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        device._serve = serve
        with pytest.raises(DiskFull):
            device.update(NOW)
        assert slots.phase is Phase.TRIAL
        for _ in range(3):
            with pytest.raises(OtaError):
                device.update(NOW)
        assert fleet.version_serving() == 1
        device._serve = serve_it
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        fleet.publish(2)
        assert device.update(NOW).version == 2
        assert (slots.phase, fleet.version_serving()) == (Phase.IDLE, 2)

    assert exit_code_of(update_on_a_disk_that_fills_up) == 0


def test_a_trial_whose_model_no_longer_opens_is_rolled_back_by_the_next_update(fleet):
    fleet.publish(1)
    fleet.device().update(NOW)
    fleet.publish(2)
    device = fleet.device()
    device.install(device.check(NOW), NOW)

    def serve(model: Model | None) -> None:
        if model is not None and model.version == 2:
            raise OSError("does not open here")
        fleet.serve(model)

    device._serve = serve
    assert device.update(NOW) is None
    assert list(fleet.open_slots.quarantine.values()) == ["not-served"]
