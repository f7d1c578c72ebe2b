"""What authors publish holds exactly the module's weights and trains on a device as it did at home."""

from __future__ import annotations

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from edge_sdk.artifact.graph_lock import graph_digest
from edge_sdk.artifact.publish import PublishRefused, publish
from edge_sdk.artifact.safety import check_model
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.weights import metadata, read_vector
from edge_sdk.training.module import GraphModule

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # torch's exporter warns about itself

SCHEMA = Schema((NumberField("x"),), Label("y", "classes", ("a", "b", "c")))


class TextConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.conv = nn.Embedding(50, 8), nn.Conv1d(8, 6, 3, padding=1)
        self.norm, self.out = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, ids):
        hidden = torch.relu(self.conv(self.embed(ids).transpose(1, 2))).transpose(1, 2)
        return self.out(self.norm(hidden).mean(1))


class TwinNorms(nn.Module):
    """Two fresh norms hold equal numbers, which the exporter would merge into one."""

    def __init__(self):
        super().__init__()
        self.a, self.first, self.second, self.b = nn.Linear(4, 4), nn.LayerNorm(4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.b(self.second(torch.tanh(self.first(self.a(x))))).mean(1)


class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 4, 3, 2, 1), nn.GroupNorm(2, 4), nn.Linear(16, 3)

    def forward(self, x):
        return self.out(nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2).flatten(1))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.norm(self.conv(x)).mean(2))


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.used(x)


CASES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), lambda: torch.randn(3, 5)),
    "text": (TextConv, lambda: torch.randint(0, 50, (3, 7))),
    "twin norms": (TwinNorms, lambda: torch.randn(3, 6, 4)),
    "image": (Image, lambda: torch.randn(3, 1, 8, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_published_model_computes_and_learns_as_the_module_did(name, tmp_path):
    torch.manual_seed(4)
    make, example = CASES[name]
    module, x = make(), example()
    data = publish(module, {"features": x}, SCHEMA, "cross_entropy", tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == data
    check_model(data)
    logits = onnxruntime.InferenceSession(data).run(["logits"], {"features": x.numpy()})[0]
    np.testing.assert_allclose(logits, module(x).detach().numpy(), atol=1e-5)
    twin, target = GraphModule(data), torch.tensor([0, 1, 2])
    for network, output in ((module, module(x)), (twin, twin({"features": x}))):
        network.zero_grad()
        nn.functional.cross_entropy(output, target).backward()
    theirs = np.sort(np.concatenate([parameter.grad.numpy().reshape(-1) for parameter in module.parameters()]))
    np.testing.assert_allclose(np.sort(twin.flatten(lambda parameter: parameter.grad)), theirs, atol=1e-6)
    assert len(read_vector(data)) == sum(parameter.numel() for parameter in module.parameters())


def test_a_second_export_of_other_weights_has_the_same_graph():
    make, example = CASES["mlp"]
    first, second = (publish(make(), {"features": example()}, SCHEMA, "cross_entropy") for _ in range(2))
    assert graph_digest(first) == graph_digest(second)
    assert not np.array_equal(read_vector(first), read_vector(second))
    names = msgspec.json.decode(metadata(first)["fl.trainable"])
    assert names == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert Schema.from_json(metadata(first)["fl.schema"]) == SCHEMA


@pytest.mark.parametrize(
    ("module", "x", "reason"), [(Normed(), torch.randn(3, 3, 9), "changed"), (Idle(), torch.randn(3, 4), "missing")]
)
def test_a_module_whose_parameters_do_not_survive_is_refused(module, x, reason):
    with pytest.raises(PublishRefused) as refusal:
        publish(module, {"features": x}, SCHEMA, "cross_entropy")
    assert refusal.value.reason in (reason, "missing")


def test_an_unknown_loss_is_refused():
    with pytest.raises(PublishRefused, match="hinge"):
        publish(nn.Linear(1, 1), {"features": torch.randn(2, 1)}, SCHEMA, "hinge")
