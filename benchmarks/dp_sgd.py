"""What private training costs beside plain SGD: CPU time per epoch at 300,000 weights, one thread.

    python benchmarks/dp_sgd.py [--json] [--turns 15]

Two models, a tabular perceptron and a text model (embedding, convolution), about 2,000 examples, 64 expected a step.
`plain` is torch.optim.SGD on the same rebuilt module; record, customer (1 to 7 examples each, 4 on average) and device
go through edge_sdk.training.dp_sgd.train with sampling, noise and steps; device also clips and noises its update once a
job, as protection does. `opacus_hooks` is Opacus' PrivacyEngine as shipped (fast generator).

A time runs from the end of a job's eighth step to its end. The kinds take turns in random order, one epoch each, and a
ratio is the median over the turns of what a turn took over what plain took in the same turn: on a shared machine, times
of different moments do not compare. A figure without a model's name is the worse model's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edge_sdk.privacy.mechanism import SkellamSampler, clip_l2  # noqa: E402 # the path makes a clone work as it is
from edge_sdk.protocol.secagg.keystream import Keystream  # noqa: E402 # as above
from edge_sdk.training.dp_sgd import train  # noqa: E402 # as above
from edge_sdk.training.jobs import TrainingPlan  # noqa: E402 # as above
from edge_sdk.training.losses import Batches, loss_sum  # noqa: E402 # as above
from edge_sdk.training.module import GraphModule  # noqa: E402 # as above

EXAMPLES, BATCH, EACH = 2048, 64, 4
STEPS = EXAMPLES // BATCH
WARM = 8
RATE, CLIP, NOISE = 0.05, 1.0, 1.0
KEY = bytes(range(32))
Model = tuple[bytes, dict[str, Any], Any]
Stamp = Callable[[], None]
Run = Callable[[Model, int, Stamp], None]


def graph(nodes: list[Any], weights: dict[str, Any], constants: dict[str, Any], kind: int, width: int) -> bytes:
    """ONNX bytes from "features" [B, width] to "logits" [B, 2]."""
    made = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info("features", kind, ["b", width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in {**weights, **constants}.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    names = msgspec.json.encode(list(weights)).decode()
    helper.set_model_props(model, {"fl.trainable": names, "fl.loss": "cross_entropy"})
    data: bytes = model.SerializeToString()
    return data


def tabular(rng: np.random.Generator) -> Model:
    """64 columns, two hidden layers of 512: 296,962 weights."""
    widths = [64, 512, 512, 2]
    nodes, weights, value = [], {}, "features"
    for layer in range(3):
        rows, columns, output = widths[layer + 1], widths[layer], "logits" if layer == 2 else f"h{layer}"
        weights[f"w{layer}"] = (rng.normal(size=(rows, columns)) / np.sqrt(columns)).astype(np.float32)
        weights[f"c{layer}"] = np.zeros(rows, np.float32)
        nodes.append(helper.make_node("Gemm", [value, f"w{layer}", f"c{layer}"], [output], transB=1))
        if layer < 2:
            nodes.append(helper.make_node("Relu", [output], [f"r{layer}"]))
            value = f"r{layer}"
    x = rng.normal(size=(EXAMPLES, 64)).astype(np.float32)
    return graph(nodes, weights, {}, TensorProto.FLOAT, 64), {"features": x}, (x[:, 0] > x[:, 1]).astype(np.int64)


def text(rng: np.random.Generator) -> Model:
    """64 words of 4,500, embedded in 64, a convolution of width 3 to 64 channels, a maximum over time: 300,482."""
    weights = {
        "e": (rng.normal(size=(4500, 64)) * 0.5).astype(np.float32),
        "k": (rng.normal(size=(64, 64, 3)) / 14).astype(np.float32),
        "kb": np.zeros(64, np.float32),
        "w": (rng.normal(size=(2, 64)) / 8).astype(np.float32),
        "c": np.zeros(2, np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["e", "features"], ["g"]),
        helper.make_node("Transpose", ["g"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["t", "k", "kb"], ["h"], kernel_shape=[3], pads=[1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("ReduceMax", ["r", "axis"], ["m"], keepdims=0),
        helper.make_node("Gemm", ["m", "w", "c"], ["logits"], transB=1),
    ]
    x = (4500 * rng.random((EXAMPLES, 64)) ** 2).astype(np.int64)
    constants = {"axis": np.array([2], np.int64)}
    return graph(nodes, weights, constants, TensorProto.INT64, 64), {"features": x}, rng.integers(0, 2, EXAMPLES)


def plain(model: Model, steps: int, stamp: Stamp) -> None:
    """What a device without privacy would run."""
    module, data = GraphModule(model[0]), _batches(model)
    optimizer, rng = torch.optim.SGD(module.parameters(), lr=RATE), np.random.default_rng(1)
    for _ in range(steps):
        features, labels = data.take(rng.integers(0, EXAMPLES, BATCH))
        optimizer.zero_grad()
        loss = loss_sum(module.loss_name, module(features), labels) / BATCH
        loss.backward()  # type: ignore[no-untyped-call] # torch has no annotation here
        optimizer.step()
        stamp()


def ours(unit: str) -> Run:
    """One of our units."""
    owners = np.repeat(np.arange(EXAMPLES), np.resize(np.arange(1, 2 * EACH), EXAMPLES))[:EXAMPLES]
    subjects = owners if unit == "customer" else None
    batch = BATCH // EACH if unit == "customer" else BATCH
    noise = 0.0 if unit == "device" else NOISE

    def run(model: Model, steps: int, stamp: Stamp) -> None:
        plan = TrainingPlan(unit, RATE, steps, batch, CLIP, noise)  # type: ignore[arg-type] # one of the three
        module = GraphModule(model[0])
        result = train(module, model[1], model[2], plan=plan, key=KEY, on_step=lambda *_: stamp(), subjects=subjects)
        if unit == "device":
            update = clip_l2(result.update, CLIP) * 2.0**13
            np.rint(update).astype(np.int32) + SKELLAM.draw(len(update), Keystream(KEY))
            stamp()

    return run


def opacus_hooks(model: Model, steps: int, stamp: Stamp) -> None:
    """Opacus as it ships: its engine, sampler, hooks, optimizer and generator."""
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    module, data = GraphModule(model[0]), _batches(model)
    loader = DataLoader(TensorDataset(data.features["features"], data.labels), batch_size=BATCH)
    private, optimizer, batches = PrivacyEngine(accountant="rdp").make_private(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=RATE),
        data_loader=loader,
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
    )
    done = 0
    while done < steps:
        for x, y in batches:
            optimizer.zero_grad()
            loss = loss_sum(module.loss_name, private({"features": x}), y) / max(1, len(y))
            loss.backward()  # type: ignore[no-untyped-call] # torch has no annotation here
            optimizer.step()
            stamp()
            done += 1
            if done == steps:
                return


def _batches(model: Model) -> Batches:
    return Batches({name: torch.from_numpy(x) for name, x in model[1].items()}, torch.from_numpy(model[2]))


RUNS = {
    "plain": plain,
    "record": ours("record"),
    "customer": ours("customer"),
    "device": ours("device"),
    "opacus_hooks": opacus_hooks,
}
SKELLAM = SkellamSampler(100.0**2)


def epoch_ms(run: Run, model: Model) -> float:
    """CPU milliseconds of one epoch of this process."""
    stamps: list[float] = []
    run(model, STEPS + WARM, lambda: stamps.append(time.process_time()))
    return 1000 * (stamps[-1] - stamps[WARM - 1])


def measure(model: Model, turns: int) -> dict[str, list[float]]:
    """CPU milliseconds per epoch by kind of run and turn. The first turn only warms up; Opacus is slow: three turns."""
    taken: dict[str, list[float]] = {name: [] for name in RUNS}
    order = np.random.default_rng(5)
    for turn in range(turns + 1):
        # In random order: what one kind leaves in heap and caches must not always meet the same other.
        for name in order.permutation(list(RUNS)):
            if name != "opacus_hooks" or turn <= 3:
                taken[name].append(epoch_ms(RUNS[name], model))
    return {name: values[1:] for name, values in taken.items()}


def over_plain(times: dict[str, list[float]], kind: str) -> float:
    """Median over the turns that both took."""
    return round(statistics.median(ours / plain for ours, plain in zip(times[kind], times["plain"])), 2)  # noqa: B905 # fewer turns of Opacus


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time per epoch of private training over plain SGD.")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    parser.add_argument("--turns", type=int, default=15, help="epochs of every kind")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rng = np.random.default_rng(7)
    models = {"tabular": tabular(rng), "text": text(rng)}
    times = {name: measure(model, chosen.turns) for name, model in models.items()}
    ratios = {
        f"{kind}_over_plain": {name: over_plain(value, kind) for name, value in times.items()}
        for kind in RUNS
        if kind != "plain"
    }
    result: dict[str, Any] = {name: max(values.values()) for name, values in ratios.items()}
    result["by_model"] = ratios
    result["ms_per_epoch"] = {
        name: {kind: round(statistics.median(value), 1) for kind, value in values.items()}
        for name, values in times.items()
    }
    result["weights"] = {name: len(GraphModule(model[0]).update_vector()) for name, model in models.items()}
    if chosen.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
