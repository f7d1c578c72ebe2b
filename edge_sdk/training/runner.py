"""The parent's side of training: starts the training process, feeds it one job at a time, ends it. No torch.

Every wait is bounded: a process that is cancelled, silent or dead is killed by its own process id, and the
caller gets TrainingFailed with a reason. The process stays for `idle_s` so that dense rounds pay its start once.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO, Final

import msgspec
import numpy as np

from edge_sdk.training.frames import FrameReader, PipeClosed, WrongFrame, encode
from edge_sdk.training.jobs import (
    Cancel,
    Done,
    Failed,
    Job,
    PersonalDone,
    PersonalJob,
    Progress,
    Reply,
    TrainingFailed,
    TrainResult,
)

OnProgress = Callable[[int, int], None]

_POLL_S: Final = 0.1
_CANCEL_GRACE_S: Final = 2.0
# Importing torch takes seconds and cannot be broken off. Killing it there would have a device that is busy every few
# seconds start for ever and never train.
_START_GRACE_S: Final = 60.0


class _Process:
    """One running training process and its pipes."""

    def __init__(self, command: list[str]) -> None:
        self.stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr)
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.stdin, self.stdout = self.child.stdin, self.child.stdout
        os.set_blocking(self.stdin.fileno(), False)
        self.replies: FrameReader[Reply] = FrameReader(self.stdout.fileno(), msgspec.msgpack.Decoder(Reply))
        self.started = False  # it has answered at least once

    def alive(self) -> bool:
        """Whether it still runs."""
        return self.child.poll() is None

    def last_words(self) -> str:
        """The end of what it printed."""
        size = self.stderr.seek(0, os.SEEK_END)
        self.stderr.seek(max(0, size - 400))
        return self.stderr.read().decode(errors="replace").strip()

    def end(self) -> None:
        """Kill it and wait for it; its memory is back with the system after this."""
        if self.alive():
            self.child.kill()
        self.child.wait()
        for stream in (self.stdin, self.stdout, self.stderr):
            stream.close()


class Trainer:
    """Trains in a process of its own. Used by one thread at a time; a context manager."""

    def __init__(
        self,
        python: str = sys.executable,
        memory_mib: int = 1024,
        idle_s: float = 30.0,
        timeout_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`timeout_s` bounds one job, the start of the process included. Nothing is started yet."""
        self._command = [python, "-m", "edge_sdk.training.worker", f"--memory-mib={memory_mib}", f"--idle-s={idle_s}"]
        self._timeout_s = timeout_s
        self._clock = clock
        self._process: _Process | None = None

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The training process, where one runs."""
        return self._process.child.pid if self._process and self._process.alive() else None

    def close(self) -> None:
        """End the training process, if any."""
        if self._process:
            self._process.end()
            self._process = None

    def train(self, job: Job, on_progress: OnProgress, cancelled: Callable[[], bool]) -> TrainResult:
        """Run one job. Calls `on_progress(step, steps)`; asks `cancelled()` ten times a second.

        Raises TrainingFailed: "cancelled", "timeout", "worker-died", "out-of-memory", "not-finite", "model-run",
        "no-examples", "wrong-shape", "mixed-examples", or the reason of an unsafe model.
        """
        reply = self._tried(job, on_progress, cancelled)
        if not isinstance(reply, Done):
            raise TrainingFailed("worker-died", "the training process answered another question")
        return _result(reply)

    def personalise(self, job: PersonalJob, on_progress: OnProgress, cancelled: Callable[[], bool]) -> PersonalDone:
        """Train a device's own version of a model, for itself alone. Arguments and errors as `train`."""
        reply = self._tried(job, on_progress, cancelled)
        if not isinstance(reply, PersonalDone) or len(reply.vector) % 4:
            raise TrainingFailed("worker-died", "the training process answered another question")
        return reply

    def _tried(
        self, job: Job | PersonalJob, on_progress: OnProgress, cancelled: Callable[[], bool]
    ) -> Done | PersonalDone:
        deadline = self._clock() + self._timeout_s
        reused = self.pid is not None
        try:
            return self._run(job, on_progress, cancelled, deadline)
        except TrainingFailed as error:
            # The idle process may have ended between the look and the write: a fresh one gets one try.
            if not (reused and error.reason == "worker-died"):
                raise
        return self._run(job, on_progress, cancelled, deadline)

    def _run(
        self, job: Job | PersonalJob, on_progress: OnProgress, cancelled: Callable[[], bool], deadline: float
    ) -> Done | PersonalDone:
        process = self._started()
        try:
            self._send(process, encode(job), cancelled, deadline)
            while True:
                reply = process.replies.poll(_POLL_S)
                process.started |= reply is not None
                if isinstance(reply, Done | PersonalDone):
                    return reply
                if isinstance(reply, Failed):
                    raise TrainingFailed(reply.reason, reply.message)
                if isinstance(reply, Progress):
                    on_progress(reply.step, reply.steps)
                self._check(process, cancelled, deadline)
        except (PipeClosed, BrokenPipeError) as error:
            raise self._died(process) from error
        except WrongFrame as error:
            self.close()
            raise TrainingFailed("worker-died", "the training process sent no valid reply and was ended") from error
        except TrainingFailed:
            raise
        except BaseException:
            # A callback of the caller raised: the process is in the middle of a job nobody waits for.
            self.close()
            raise

    def _started(self) -> _Process:
        if self._process and not self._process.alive():
            self.close()
        if self._process is None:
            self._process = _Process(self._command)
        return self._process

    def _send(self, process: _Process, data: bytes, cancelled: Callable[[], bool], deadline: float) -> None:
        rest = memoryview(data)
        fd = process.stdin.fileno()
        while rest:
            _, ready, _ = select.select([], [fd], [], _POLL_S)
            if ready:
                rest = rest[os.write(fd, rest) :]
                continue
            if cancelled() or self._clock() >= deadline:
                self.close()
                raise TrainingFailed("cancelled", "training was cancelled or timed out before it began")

    def _check(self, process: _Process, cancelled: Callable[[], bool], deadline: float) -> None:
        if self._clock() >= deadline:
            self.close()
            raise TrainingFailed("timeout", f"training took longer than {self._timeout_s:g} s and was ended")
        if cancelled():
            self._cancel(process)
            raise TrainingFailed("cancelled", "training was cancelled")

    def _cancel(self, process: _Process) -> None:
        """Ask it to stop between two batches, so that it can be used again; kill it where it does not answer."""
        os.write(process.stdin.fileno(), encode(Cancel()))
        give_up = self._clock() + (_CANCEL_GRACE_S if process.started else _START_GRACE_S)
        while self._clock() < give_up:
            if isinstance(process.replies.poll(_POLL_S), Done | PersonalDone | Failed):
                process.started = True
                return
        self.close()

    def _died(self, process: _Process) -> TrainingFailed:
        code, words = process.child.wait(), process.last_words()
        self.close()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        hint = "out of memory?" if code in (-9, -6, -11) else "see its last words"
        return TrainingFailed(
            "worker-died", f"the training process ended by {how} ({hint}): {words[-300:] or 'silent'}"
        )


def _result(reply: Done) -> TrainResult:
    if len(reply.update) % 4:
        raise TrainingFailed("worker-died", "the training process sent a broken update")
    update = np.frombuffer(reply.update, "<f4").astype(np.float32)
    return TrainResult(update, reply.sampling, reply.loss, reply.records, reply.engine)
