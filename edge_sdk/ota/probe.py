"""First load of a new model, in a process of its own: `python -m edge_sdk.ota.probe FILE MEMORY_BYTES CPU_SECONDS`.

onnxruntime is no trust boundary, so a file that hangs, swells or crashes takes this process with it and nothing else.
It may open no new file for writing. Exit code 0 and `ok` on the output mean: it loaded, and a batch of zeros gave
finite numbers. Anything else is a refusal.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

PASSED = b"chorale-probe ok"
MEMORY_BYTES = 1 << 30
CPU_S = 20
WALL_S = 30.0


class ProbeFailed(Exception):
    """The model did not pass; `reason` is a stable word."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def run_probe(
    file: Path, *, memory_bytes: int = MEMORY_BYTES, cpu_s: int = CPU_S, wall_s: float = WALL_S, python: str = ""
) -> None:
    """Probe a model file in a child under limits. Raises ProbeFailed: timeout, limit, not-finite, or no-load."""
    root = str(Path(__file__).resolve().parents[2])
    command = [python or sys.executable, "-P", "-m", "edge_sdk.ota.probe", str(file), str(memory_bytes), str(cpu_s)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=wall_s,
            check=False,
            stdin=subprocess.DEVNULL,
            env={"PYTHONPATH": root},
        )
    except subprocess.TimeoutExpired:
        raise ProbeFailed(f"the model gave no answer in {wall_s:g} s", reason="timeout") from None
    if done.returncode == 0 and done.stdout.strip() == PASSED:
        return
    reason = {3: "not-finite", 4: "no-load", -9: "limit", -24: "limit"}.get(done.returncode, "crashed")
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    raise ProbeFailed(f"the probe refused the model ({reason}): {' '.join(last)[:200]}", reason=reason)


def main(arguments: list[str]) -> int:
    """The child: take the limits, load, run zeros, judge."""
    file, memory_bytes, cpu_s = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    _limit(memory_bytes, cpu_s)
    import numpy as np

    try:
        outputs = _run_zeros(file)
    except Exception as error:  # whatever a hostile file raises is a refusal
        sys.stderr.write(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}\n")
        return 4
    if not outputs or not all(np.isfinite(output).all() for output in outputs):
        sys.stderr.write("the outputs are not finite\n")
        return 3
    sys.stdout.write(PASSED.decode())
    return 0


def _limit(memory_bytes: int, cpu_s: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _run_zeros(file: Path) -> list[Any]:
    import numpy as np

    from edge_sdk.inference import open_session

    session = open_session(file.read_bytes())
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
    feed = {
        wanted.name: np.zeros([d if isinstance(d, int) else 2 for d in wanted.shape], kinds[wanted.type])
        for wanted in session.get_inputs()
    }
    outputs: list[Any] = session.run(None, feed)
    return outputs


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
