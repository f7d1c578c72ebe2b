"""The authoring kit: the script in the documents runs, is short, and its file predicts and trains."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from edge_sdk.artifact.features import decide, features, labels
from edge_sdk.artifact.kit import save
from edge_sdk.artifact.names import SCHEMA
from edge_sdk.artifact.publish import PublishRefused
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.weights import metadata
from edge_sdk.training.dp_sgd import train
from edge_sdk.training.jobs import TrainingPlan
from edge_sdk.training.module import GraphModule

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's exporter warns about itself
DOCUMENT = Path(__file__).parents[2] / "docs" / "authoring.md"
PAIR = Schema((NumberField("a"), NumberField("b")), Label("y", "number", quantiles=(0.1, 0.5, 0.9)))


@pytest.mark.slow
def test_the_documented_script_is_short_and_its_file_predicts_and_trains(tmp_path, monkeypatch):
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(script.strip().splitlines()) <= 30
    monkeypatch.chdir(tmp_path)
    exec(script, {"__name__": "authoring"})
    data = (tmp_path / "intent.onnx").read_bytes()
    schema = Schema.from_json(metadata(data)[SCHEMA])
    records = [
        {"minutes": 12, "plan": "gold", "shop": "Hall 4", "asked": "I lost my card"},
        {"plan": "none", "shop": "北京南站", "asked": "我的卡丢了"},
        {"minutes": None, "plan": "basic", "shop": "", "asked": ""},
    ]
    inputs, answers = features(schema, records), labels(schema, ["card_lost", "card_lost", "refund"])
    (logits,) = onnxruntime.InferenceSession(data).run(None, inputs)
    assert [len(ranked) for ranked in decide(schema, logits)] == [3, 3, 3]
    plan = TrainingPlan(unit="record", learning_rate=0.5, steps=3, batch_size=3, sample_rate=1.0, noise_multiplier=0.1)
    result = train(GraphModule(data), inputs, answers, plan=plan, key=bytes(32), on_step=lambda *_: None)
    assert result.engine == "bookkeeping"
    assert np.linalg.norm(result.update) > 0


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 3)

    def forward(self, features):
        return self.head(features - features.mean(0))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Linear(5, 3), "features of 2 columns"),
        (nn.Linear(2, 1), "'y' needs 3 outputs"),
        (Normed(), "one example moves another"),
    ],
)
def test_a_module_that_does_not_fit_its_schema_is_refused(module, words):
    with pytest.raises(PublishRefused, match=words):
        save(module, PAIR)


def test_the_loss_follows_the_label_and_the_module_stays_as_it_was(tmp_path):
    module = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    data = save(module, PAIR, tmp_path / "pair.onnx")
    assert metadata(data)["fl.loss"] == "pinball"
    assert module.training
    assert torch.equal(GraphModule(data).quantiles, torch.tensor([0.1, 0.5, 0.9]))


def test_the_artefact_room_loads_no_torch():
    code = "import sys, edge_sdk.artifact.features, edge_sdk.artifact.starter; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert shown.stdout.strip() == "False"
