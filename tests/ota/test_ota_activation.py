"""From download to service: the probe, the trial, the ways back, and the full disk."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from ota_fleet import KILLED, NOW, RECORD, TASK, Fleet, Link, exit_code_of, model_bytes, new_repository

from edge_sdk.inference import BadModel
from edge_sdk.ota.activation import Activation
from edge_sdk.ota.errors import DiskFull, ModelRefused, UpdateUnavailable
from edge_sdk.ota.probe import ProbeFailed, run_probe
from edge_sdk.ota.slots import Model, Phase


def write_onnx(path: Path, nodes: list[onnx.NodeProto], initializers: dict[str, np.ndarray]) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def endless_loop(path: Path) -> Path:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["again"]),
            helper.make_node("Identity", ["carried"], ["carried_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_out", TensorProto.FLOAT, None),
        ],
    )
    loop = helper.make_node("Loop", ["", "true", "x"], ["logits"], body=body)
    return write_onnx(path, [loop], {"true": np.array(True)})


def test_the_probe_passes_a_sound_model(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(model_bytes(1))
    run_probe(file)


def test_the_probe_names_why_it_refuses(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"no model at all")
    zero = {"zero": np.zeros(1, np.float32)}
    nan = write_onnx(tmp_path / "nan.onnx", [helper.make_node("Div", ["x", "zero"], ["logits"])], zero)
    huge = {"shape": np.array([1 << 34], np.int64)}
    swells = write_onnx(tmp_path / "huge.onnx", [helper.make_node("ConstantOfShape", ["shape"], ["logits"])], huge)
    for file, reason in ((garbage, "no-load"), (nan, "not-finite"), (swells, "no-load")):
        with pytest.raises(ProbeFailed) as caught:
            run_probe(file)
        assert caught.value.reason == reason


def test_a_model_that_swells_past_the_memory_limit_is_refused(tmp_path: Path) -> None:
    shape = {"shape": np.array([1 << 27], np.int64)}  # half a GiB of zeros out of a file of 100 bytes
    file = write_onnx(tmp_path / "swells.onnx", [helper.make_node("ConstantOfShape", ["shape"], ["logits"])], shape)
    with pytest.raises(ProbeFailed):
        run_probe(file, memory_bytes=500 << 20)
    sound = tmp_path / "sound.onnx"
    sound.write_bytes(model_bytes(1))
    run_probe(sound, memory_bytes=500 << 20)


def test_a_model_that_never_answers_is_stopped(tmp_path: Path) -> None:
    file = endless_loop(tmp_path / "loop.onnx")
    with pytest.raises(ProbeFailed) as caught:
        run_probe(file, wall_s=1.5)
    assert caught.value.reason == "timeout"
    with pytest.raises(ProbeFailed) as caught:
        run_probe(file, cpu_s=1)
    assert caught.value.reason == "limit"


def test_a_model_that_fails_its_probe_is_quarantined_and_the_active_one_serves(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.device().update(NOW)
    fleet.publish(2)

    def refuse(file: Path) -> None:
        raise ProbeFailed("not a number", reason="not-finite")

    slots = fleet.slots()
    device = Activation(TASK, fleet.feed(), slots, fleet.serve, probe=refuse)
    device.start()
    with pytest.raises(ModelRefused) as caught:
        device.update(NOW)
    assert caught.value.reason == "probe-not-finite"
    assert fleet.version_serving() == 1
    assert slots.phase is Phase.IDLE
    assert device.check(NOW) is None


def test_a_trial_serves_the_new_model_until_it_is_rolled_back(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.device().update(NOW)
    fleet.publish(2)
    device = fleet.device()
    candidate = device.check(NOW)
    assert candidate is not None
    device.install(candidate, NOW)
    assert fleet.version_serving() == 2
    with pytest.raises(UpdateUnavailable):
        device.install(candidate, NOW)
    device.roll_back("worse on held-out records")
    assert fleet.version_serving() == 1
    assert device.check(NOW) is None


def test_a_first_model_rolled_back_leaves_no_model_rather_than_a_bad_one(fleet: Fleet) -> None:
    fleet.publish(1)
    device = fleet.device()
    candidate = device.check(NOW)
    assert candidate is not None
    device.install(candidate, NOW)
    device.roll_back("worse")
    assert fleet.slots().serving() is None
    with pytest.raises(Exception, match="no model for task"):
        fleet.version_serving()


def test_a_model_that_cannot_be_served_is_rolled_back(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.device().update(NOW)
    fleet.publish(2)

    def serve(model: Model | None) -> None:
        if model is not None and model.version == 2:
            raise BadModel("does not open here")
        fleet.serve(model)

    device = Activation(TASK, fleet.feed(), fleet.slots(), serve)
    device.start()
    with pytest.raises(ModelRefused) as caught:
        device.update(NOW)
    assert caught.value.reason == "not-served"
    assert fleet.version_serving() == 1


def test_the_bundled_model_serves_before_the_first_update(fleet: Fleet) -> None:
    fleet.bundled = fleet.directory / "bundled.onnx"
    fleet.bundled.write_bytes(model_bytes(77))
    device = fleet.device()
    assert fleet.version_serving() == 0
    fleet.publish(1)
    device.update(NOW)
    assert fleet.version_serving() == 1


def full_disk(fleet: Fleet, room: int) -> None:
    device = Activation(TASK, fleet.feed(), fleet.slots(), lambda model: None, probe=lambda file: None)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    with pytest.raises(DiskFull, match="free some space"):
        device.update(NOW)


@pytest.mark.parametrize(("room", "what"), [(0, "metadata"), (8_000, "the model")])
def test_a_full_disk_is_named_and_nothing_is_left_of_the_attempt(tmp_path: Path, room: int, what: str) -> None:
    repository = new_repository(tmp_path / "aggregator", hidden=500)
    fleet = Fleet(tmp_path, repository, Link(repository))
    for version in (1, 2):
        repository.publish(TASK, version, model_bytes(version, hidden=500), {}, NOW)
        if version == 1:
            fleet.device().update(NOW)
    before = fleet.slots().active()
    assert exit_code_of(lambda: full_disk(fleet, room)) == 0, what
    leftovers = [f for end in ("part", "new", "tmp") for f in (fleet.directory / "device").rglob(f"*.{end}")]
    assert leftovers == []
    assert fleet.slots().active() == before
    fleet.device().update(NOW)
    assert fleet.version_serving() == 2


@pytest.mark.slow
def test_kill_9_at_any_file_event_of_an_update_leaves_a_device_that_predicts_and_can_update(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.device().update(NOW)
    version = 1

    def update() -> None:
        device = Activation(TASK, fleet.feed(), fleet.slots(), lambda model: None, probe=lambda file: None)
        device.start()
        device.update(NOW)

    kills = 0
    while True:
        version += 1
        fleet.publish(version)
        if exit_code_of(update, kill_at=kills) != KILLED:
            break
        slots = fleet.slots()
        device = Activation(TASK, fleet.feed(), slots, fleet.serve, probe=lambda file: None)
        device.start()
        assert fleet.version_serving() in (version - 1, version)
        if slots.phase is Phase.TRIAL:
            device.commit()
        device.update(NOW)
        assert fleet.version_serving() == version
        kills += 1
    assert kills > 20
    assert fleet.models.predict(TASK, [RECORD])
