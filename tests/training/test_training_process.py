"""The training process: its memory comes back, it can be cancelled and killed, and every failure has a name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.weights import read_vector
from edge_sdk.training.frames import FrameReader, PipeClosed, WrongFrame, encode
from edge_sdk.training.jobs import Cancel, Reply, TrainingFailed, TrainingPlan, job
from edge_sdk.training.runner import Trainer

SCHEMA = Schema((NumberField("a"), NumberField("b")), Label("y", "binary", ("no", "yes")))
MODEL = tabular_classifier(SCHEMA, (8,), seed=1)
RNG = np.random.default_rng(2)
X = RNG.normal(size=(200, 2)).astype(np.float32)
Y = (X[:, 0] > X[:, 1]).astype(np.float32)
PLAN = TrainingPlan("device", 0.3, 10, 20)
ENDLESS = TrainingPlan("device", 0.01, 1_000_000, 20)
KEY = bytes(32)


def make_job(plan=PLAN, model=MODEL, x=X, y=Y):
    return job(model, {"features": x}, y, plan, KEY)


def ignore(step, steps):
    pass


def never():
    return False


def resident_mib(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture(scope="module")
def trainer():
    with Trainer(idle_s=60, timeout_s=120) as shared:
        yield shared


def test_a_job_gives_an_update_and_reports_every_step(trainer):
    steps = []
    result = trainer.train(make_job(), lambda step, of: steps.append((step, of)), never)
    assert steps == [(k, 10) for k in range(1, 11)]
    assert result.update.shape == read_vector(MODEL).shape
    assert result.update.dtype == np.float32
    assert np.linalg.norm(result.update) > 0
    assert result.loss == pytest.approx(np.log(2))
    assert result.records == 200


def test_the_process_is_used_again_for_the_next_job_and_gives_the_same_result(trainer):
    first = trainer.train(make_job(), ignore, never)
    pid = trainer.pid
    second = trainer.train(make_job(), ignore, never)
    assert trainer.pid == pid
    np.testing.assert_array_equal(first.update, second.update)


@pytest.mark.parametrize(("unit", "rate"), [("record", 0.1), ("customer", 0.5)])
def test_the_private_units_run_in_the_process(trainer, unit, rate):
    plan, subjects = TrainingPlan(unit, 0.3, 5, 20, 1.0, 1.0), np.arange(200) // 5 if unit == "customer" else None
    result = trainer.train(job(MODEL, {"features": X}, Y, plan, KEY, subjects=subjects), ignore, never)
    assert (result.sampling.q, result.sampling.noise_multiplier, result.sampling.steps) == (rate, 1.0, 5)
    assert np.linalg.norm(result.update) > 0
    assert result.engine == "bookkeeping"


def test_the_parent_never_loads_torch_and_the_memory_comes_back():
    program = """
import sys, numpy as np
from pathlib import Path
from edge_sdk.training.jobs import TrainingPlan, job
from edge_sdk.training.runner import Trainer
def resident(pid="self"): return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20
model = sys.stdin.buffer.read()
x = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
work = job(model, {"features": x}, (x[:, 0] > 0).astype(np.float32), TrainingPlan("device", 0.1, 20, 20), bytes(32))
before = resident()
with Trainer() as trainer:
    trainer.train(work, lambda step, steps: None, lambda: False)
    child, pid = resident(trainer.pid), trainer.pid
print(resident() - before, child, Path(f"/proc/{pid}").exists(), "torch" in sys.modules, "opacus" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], input=MODEL, capture_output=True, check=True, timeout=120)
    grown, child, exists, torch, opacus = done.stdout.decode().split()
    assert float(grown) < 4
    assert float(child) > 100
    assert (exists, torch, opacus) == ("False", "False", "False")


@pytest.mark.slow
def test_a_veto_while_the_process_still_starts_does_not_cost_the_start():
    with Trainer() as fresh:
        with pytest.raises(TrainingFailed) as failure:
            fresh.train(make_job(), ignore, lambda: True)
        assert failure.value.reason == "cancelled"
        started = fresh.pid
        assert started is not None
        fresh.train(make_job(), ignore, never)
        assert fresh.pid == started


def test_a_job_is_cancelled_between_batches_and_the_process_stays_useful(trainer):
    seen = []
    began = time.monotonic()
    with pytest.raises(TrainingFailed) as failure:
        trainer.train(make_job(ENDLESS), lambda step, steps: seen.append(step), lambda: len(seen) > 3)
    assert failure.value.reason == "cancelled"
    assert time.monotonic() - began < 30
    pid = trainer.pid
    assert pid is not None
    assert trainer.train(make_job(), ignore, never).records == 200
    assert trainer.pid == pid


@pytest.mark.slow
def test_a_killed_process_is_a_clear_error_and_the_next_job_works(trainer):
    trainer.train(make_job(), ignore, never)

    fresh = Trainer(idle_s=60)
    with fresh, pytest.raises(TrainingFailed, match="signal 9") as failure:
        fresh.train(make_job(ENDLESS), lambda step, steps: os.kill(fresh.pid, signal.SIGKILL), never)
    assert failure.value.reason == "worker-died"
    os.kill(trainer.pid, signal.SIGKILL)
    assert trainer.train(make_job(), ignore, never).records == 200


@pytest.mark.slow
def test_a_stopped_process_times_out_and_is_ended():
    trainer = Trainer(timeout_s=20)
    stopped = []

    def stop(step, steps):
        if not stopped:
            stopped.append(trainer.pid)
            os.kill(trainer.pid, signal.SIGSTOP)

    with trainer, pytest.raises(TrainingFailed, match="20 s") as failure:
        trainer.train(make_job(ENDLESS), stop, never)
    assert failure.value.reason == "timeout"
    assert not Path(f"/proc/{stopped[0]}").exists()


def test_a_process_that_cannot_start_is_a_clear_error():
    with Trainer(python="/bin/false") as trainer, pytest.raises(TrainingFailed, match="exit code 1") as failure:
        trainer.train(make_job(), ignore, never)
    assert failure.value.reason == "worker-died"


def test_too_little_memory_is_a_clear_error():
    wide = tabular_classifier(SCHEMA, (4000, 4000), seed=1)
    with Trainer(memory_mib=420) as trainer, pytest.raises(TrainingFailed) as failure:
        trainer.train(make_job(TrainingPlan("record", 0.1, 1, 100, 1.0, 1.0), wide), ignore, never)
    assert failure.value.reason == "out-of-memory"


@pytest.mark.parametrize(
    ("model", "x", "reason"),
    [
        (MODEL[:-40], X, "truncated"),
        (b"not a model", X, None),
        (MODEL, X[:, :1], "model-run"),
        (MODEL, np.where(X > 1, np.nan, X).astype(np.float32), "not-finite"),
    ],
)
def test_a_bad_model_or_data_is_a_named_failure_and_the_process_lives_on(trainer, model, x, reason):
    trainer.train(make_job(), ignore, never)
    pid = trainer.pid
    with pytest.raises(TrainingFailed) as failure:
        trainer.train(make_job(model=model, x=x), ignore, never)
    assert reason in (None, failure.value.reason)
    assert trainer.pid == pid


def test_no_examples_and_uneven_examples_are_refused_before_a_process_starts():
    with pytest.raises(TrainingFailed, match="no examples"):
        make_job(x=X[:0], y=Y[:0])
    with pytest.raises(TrainingFailed, match="199 rows"):
        make_job(x=X[:199])


def test_the_process_ends_by_itself_when_idle_and_when_its_parent_goes():
    command = [sys.executable, "-m", "edge_sdk.training.worker", "--memory-mib=512"]
    idle = subprocess.Popen([*command, "--idle-s=0.2"], stdin=subprocess.PIPE)
    assert idle.wait(20) == 0
    idle.stdin.close()
    orphan = subprocess.Popen([*command, "--idle-s=60"], stdin=subprocess.PIPE)
    orphan.stdin.close()
    assert orphan.wait(20) == 0


@pytest.mark.slow
def test_a_process_that_ended_when_idle_is_started_again():
    with Trainer(idle_s=0.3) as trainer:
        trainer.train(make_job(), ignore, never)
        deadline = time.monotonic() + 20
        while trainer.pid is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert trainer.pid is None
        assert trainer.train(make_job(), ignore, never).records == 200


def test_a_callback_that_raises_ends_the_process_it_left_behind():
    def broken(step, steps):
        raise ValueError("mine")

    with Trainer() as trainer:
        with pytest.raises(ValueError, match="mine"):
            trainer.train(make_job(ENDLESS), broken, never)
        assert trainer.pid is None


def test_what_a_library_prints_does_not_reach_the_pipe():
    program = (
        "import os; from edge_sdk.training import worker; pipe = worker._take_stdout()\n"
        "print('stray', flush=True); os.system('echo stray'); os.write(pipe, b'frame')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"frame"
    assert done.stderr.split() == [b"stray", b"stray"]


def test_frames_arrive_whole_however_they_are_cut():
    reading, writing = os.pipe()
    frames = FrameReader(reading, msgspec.msgpack.Decoder(Reply | Cancel))
    data = encode(Cancel()) * 2

    def write():
        for byte in data:
            os.write(writing, bytes([byte]))
        os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    assert [frames.poll(5), frames.poll(5)] == [Cancel(), Cancel()]
    thread.join()
    with pytest.raises(PipeClosed):
        frames.poll(5)
    os.close(reading)


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x01\x00\x00\x00\xc1", b"\x02\x00\x00\x00\x81\xa1"])
def test_a_frame_that_is_none_is_refused(data):
    reading, writing = os.pipe()
    os.write(writing, data)
    with pytest.raises(WrongFrame):
        FrameReader(reading, msgspec.msgpack.Decoder(Reply)).poll(1)
    os.close(reading)
    os.close(writing)


def test_a_job_hides_its_key_and_its_data():
    assert "features" not in repr(make_job())
    assert "\\x00" not in repr(make_job())
