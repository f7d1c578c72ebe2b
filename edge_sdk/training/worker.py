"""The training process: `python -m edge_sdk.training.worker`. The only place where torch lives on a device.

Reads jobs from stdin and writes replies to stdout (frames); stays for a next job until stdin closes or the
idle time has passed, and then its memory goes back to the system. Low priority, capped memory. A print by
any library goes to stderr and cannot corrupt the pipe. Never raises at its parent: a failure is a reply.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys

import msgspec

from edge_sdk.artifact.errors import ArtifactError
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
    Request,
    TrainingFailed,
)

Requests = FrameReader[Request]


class Cancelled(Exception):
    """The parent wants no result any more."""


def main() -> int:
    """Serve jobs until the parent closes the pipe or the idle time has passed."""
    parser = argparse.ArgumentParser(description="training process of the SDK")
    parser.add_argument("--memory-mib", type=int, required=True, help="limit on private memory")
    parser.add_argument("--idle-s", type=float, required=True, help="end after so long without a job")
    arguments = parser.parse_args()
    replies = _take_stdout()
    os.nice(10)
    limit_memory(arguments.memory_mib)
    requests: Requests = FrameReader(sys.stdin.fileno(), msgspec.msgpack.Decoder(Request))
    try:
        while True:
            request = requests.poll(arguments.idle_s)
            if request is None:
                return 0
            if isinstance(request, Job | PersonalJob):
                _write(replies, _answer(request, requests, replies))
    except (PipeClosed, BrokenPipeError):
        return 0
    except WrongFrame as error:
        sys.stderr.write(f"training: error: {error}\n")
        return 2


def _take_stdout() -> int:
    """Keep the pipe for replies, and send everything else that is printed to stderr."""
    replies = os.dup(1)
    os.dup2(2, 1)
    return replies


def limit_memory(mib: int) -> None:
    """Cap private writable memory. RLIMIT_AS would count torch's mapped but unused libraries too."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = mib << 20
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _write(fd: int, reply: Reply) -> None:
    data = memoryview(encode(reply))
    while data:
        data = data[os.write(fd, data) :]


def _answer(job: Job | PersonalJob, requests: Requests, replies: int) -> Reply:
    """The border at which every foreign exception becomes a typed reply."""
    try:
        return _personalise(job, requests, replies) if isinstance(job, PersonalJob) else _train(job, requests, replies)
    except Cancelled:
        return Failed("cancelled", "training was cancelled")
    except (TrainingFailed, ArtifactError) as error:
        return Failed(error.reason, str(error))
    except MemoryError:
        return Failed("out-of-memory", "training needs more memory than it may use: raise memory_mib")
    except (PipeClosed, BrokenPipeError, WrongFrame):
        raise
    except Exception as error:  # torch raises RuntimeError, IndexError and more for a model or data that does not fit
        text = f"{type(error).__name__}: {error}"[:500]
        if "allocate memory" in text or "MemoryError" in text:
            return Failed("out-of-memory", f"training needs more memory than it may use: raise memory_mib ({text})")
        return Failed("model-run", f"the model does not run on these examples: {text}")


def _train(job: Job, requests: Requests, replies: int) -> Reply:
    from edge_sdk.training.dp_sgd import train
    from edge_sdk.training.module import GraphModule

    def on_step(step: int, steps: int) -> None:
        _report(step, steps, requests, replies)

    module = GraphModule(job.model)
    features = {name: tensor.array() for name, tensor in job.features.items()}
    subjects = None if job.subjects is None else job.subjects.array()
    result = train(module, features, job.labels.array(), plan=job.plan, key=job.key, on_step=on_step, subjects=subjects)
    if result.engine == "hooks":
        sys.stderr.write("training: this model has a layer that only Opacus' hooks can clip: slow\n")
    return Done(result.update.astype("<f4").tobytes(), result.sampling, result.loss, result.records, result.engine)


def _report(step: int, steps: int, requests: Requests, replies: int) -> None:
    if isinstance(requests.poll(0), Cancel):
        raise Cancelled
    _write(replies, Progress(step, steps))


def _personalise(job: PersonalJob, requests: Requests, replies: int) -> Reply:
    from edge_sdk.training.personal import personalise

    def on_step(step: int, steps: int) -> None:
        _report(step, steps, requests, replies)

    features = {name: tensor.array() for name, tensor in job.features.items()}
    labels, subjects = job.labels.array(), job.subjects.array()
    own = personalise(job.model, features, labels, seed=job.seed, subjects=subjects, apart=job.apart, on_step=on_step)
    vector = b"" if own.kind == "fleet" else own.vector.astype("<f4").tobytes()
    measured = own.loss_fleet == own.loss_fleet  # NaN where no rows were held out
    losses = (own.loss_fleet, own.loss_personal) if measured else (None, None)
    return PersonalDone(vector, own.kind, own.alpha, own.rows, *losses)


if __name__ == "__main__":
    # Not sys.exit: torch's threads and finalizers have nothing left to do, and the parent is waiting.
    code = main()
    sys.stderr.flush()
    os._exit(code)
