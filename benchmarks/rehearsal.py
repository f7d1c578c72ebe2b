"""How fast a fleet is rehearsed in one process, and in how much memory, beside plain training of the same examples.

    python benchmarks/rehearsal.py [--devices 10000] [--records 10] [--unit record|customer|device] [--quick] [--json]

Rounds of at most 5,000 devices, as many as train every device once, shared noise, a model of 10,201 weights. Each way
(without masks, with masks, pooled) runs in a process of its own, which first takes one step of plain SGD (torch.nn,
torch.optim) on every device's records: `ratio` is the time of the rounds over that time. Times are CPU seconds of the
process, which has one thread. `peak_rss_mib` is the kernel's, torch and all data included. Masks: the committee has 16
members. `--quick`: 200 devices. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

WIDTH, HIDDEN = 100, 100
COHORT = 5000  # the sum of more would not fit the widest profile: the task would be refused
WAYS: dict[str, dict[str, Any]] = {"without masks": {}, "with masks": {"masks": True}, "pooled": {"fast": True}}


def population(devices: int, records: int) -> Any:
    """Random records, in one array."""
    from aggregator.rehearsal.population import Population

    rng = np.random.default_rng(7)
    x = rng.standard_normal((devices * records, WIDTH), np.float32)
    y = (x[:, 0] + x[:, 1] > 0).astype(np.float32)
    bounds = np.arange(devices + 1, dtype=np.int64) * records
    subjects = np.arange(devices * records, dtype=np.int64) // 2
    return Population([f"device {place}" for place in range(devices)], bounds, x, y, subjects)


def plain_seconds(people: Any) -> float:
    """One step of SGD on each device's records, one after the other, on one model."""
    import torch

    torch.set_num_threads(1)
    net = torch.nn.Sequential(torch.nn.Linear(WIDTH, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 1))
    optimizer, loss = torch.optim.SGD(net.parameters(), lr=0.1), torch.nn.BCEWithLogitsLoss()
    x, y = torch.from_numpy(people.features), torch.from_numpy(people.labels)
    began = time.process_time()
    for start, end in zip(people.bounds[:-1], people.bounds[1:], strict=True):
        optimizer.zero_grad()
        loss(net(x[start:end]).view(-1), y[start:end]).backward()
        optimizer.step()
    return time.process_time() - began


def measure(way: str, devices: int, records: int, unit: str) -> dict[str, Any]:
    """One way of rehearsing, in this process."""
    from aggregator.rehearsal.fleet import VirtualFleet
    from aggregator.tasks import build_spec
    from edge_sdk.artifact.schema import Label, NumberField, Schema
    from edge_sdk.artifact.starter import tabular_classifier

    people = population(devices, records)
    plain = plain_seconds(people)
    schema = Schema(tuple(NumberField(f"x{i}") for i in range(WIDTH)), Label("y", "binary", ("no", "yes")))
    spec = build_spec(
        name="rehearsal", unit=unit, placement="shared", profile="P32", rounds=10, n_min=min(devices, COHORT),
        n_max=COHORT, target_epsilon=8.0, sample_rate=1.0, units_per_device=records, steps=1, accept_little_signal=True,
    )  # fmt: skip
    began = time.process_time()
    fleet = VirtualFleet(
        people, tabular_classifier(schema, (HIDDEN,), 0), spec, seed=1, clock=time.process_time, **WAYS[way]
    )
    prepared = time.process_time() - began
    figures = fleet.run(-(-devices // COHORT))
    trained, seconds = sum(one.devices for one in figures), sum(one.seconds for one in figures)
    return {
        "way": way,
        "unit": unit,
        "devices": devices,
        "records": records,
        "weights": WIDTH * HIDDEN + 2 * HIDDEN + 1,
        "devices_per_second": round(trained / seconds, 1),
        "plain_devices_per_second": round(devices / plain, 1),
        "ratio": round(seconds / plain * devices / trained, 2),
        "prepare_seconds": round(prepared, 2),
        "upload_bytes": fleet.upload_bytes,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def apart(way: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """The same in a new process, so that its peak of memory is its own."""
    command = [sys.executable, __file__, "--way", way, "--unit", chosen.unit]
    command += ["--devices", str(chosen.devices), "--records", str(chosen.records)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"rehearsal: error: {way}: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    """Measure each way and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--records", type=int, default=10, help="of one device")
    parser.add_argument("--unit", choices=("record", "customer", "device"), default="record")
    parser.add_argument("--quick", action="store_true", help="200 devices")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    os.nice(10)
    if chosen.way:
        print(json.dumps(measure(chosen.way, chosen.devices, chosen.records, chosen.unit)))
        return
    chosen.devices = 200 if chosen.quick else chosen.devices
    ways = [way for way in WAYS if chosen.unit != "device" or way != "pooled"]
    results = [apart(way, chosen) for way in ways]
    if chosen.json:
        print(json.dumps(results, indent=2))
        return
    print(f"{chosen.devices} devices of {chosen.records} records, {chosen.unit} unit, {results[0]['weights']} weights")
    for one in results:
        print(
            f"{one['way']:>14}: {one['devices_per_second']:8.0f} devices/s, {one['ratio']:6.1f} times plain SGD "
            f"({one['plain_devices_per_second']:.0f}/s), {one['peak_rss_mib']} MiB at most, "
            f"{one['upload_bytes']} bytes a device"
        )


if __name__ == "__main__":
    main()
