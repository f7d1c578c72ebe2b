"""Which libraries each side needs: shown in environments that hold nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

AVERAGES_AND_EVALUATES = """
import importlib.util, json, pathlib, sys
import numpy as np
for module in ("torch", "opacus"):
    assert importlib.util.find_spec(module) is None, f"{module} is installed here"

import aggregator.cli, aggregator.service
from aggregator.averaging import average
from aggregator.evaluation import evaluate, read_heldout
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.weights import read_vector

schema = Schema(fields=(NumberField("calls"),), label=Label("churn", "binary", ("no", "yes")))
model = tabular_classifier(schema, (), seed=0)
total = np.array([4000, -1000], np.int64)
moved = average(model, total, step=0.001, devices=4, server_learning_rate=1.0, metadata={"fl.round": "1"})
np.testing.assert_allclose(read_vector(moved), [1.0, -0.25], atol=1e-6)

rows = [{"calls": float(x), "churn": "yes" if x > 0.25 else "no"} for x in range(-3, 4)]
file = pathlib.Path(sys.argv[1])
file.write_text("".join(json.dumps(row) + "\\n" for row in rows))
print(json.dumps(evaluate(moved, read_heldout(moved, file))))
assert "torch" not in sys.modules
"""


@pytest.mark.slow
def test_the_aggregator_averages_and_evaluates_where_torch_is_not_installed(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    python = str(tmp_path / "env" / "bin" / "python")
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["aggregator"]]
    constraints = str(ROOT / "constraints.txt")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--constraint", constraints]
    subprocess.run([*install, *wanted], check=True)
    done = subprocess.run(
        [python, "-c", AVERAGES_AND_EVALUATES, str(tmp_path / "rows.jsonl")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"auc": 1.0' in done.stdout


def test_importing_the_sdk_loads_no_heavy_module() -> None:
    heavy = ["torch", "opacus", "onnx", "onnxruntime", "numpy", "paho", "cryptography", "tuf"]
    code = f"import edge_sdk, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
