"""What an idle device costs: resident memory while connected with a model loaded, and the time to import the SDK.

    python benchmarks/footprint.py [--json] [--seconds 8] [--broker auto|mosquitto|nats]

Starts a real broker with mutual TLS and, in a process of its own, a real device with an installed model; waits until
it is connected and idle, and reads VmRSS from the kernel. torch must not be loaded in it. Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from aggregator.broker import Broker  # noqa: E402 # the path above makes a clone work without installation
from aggregator.fleet.authority import create_authority  # noqa: E402 # as above
from edge_sdk.artifact.schema import Label, NumberField, Schema  # noqa: E402 # as above
from edge_sdk.artifact.starter import tabular_classifier  # noqa: E402 # as above
from edge_sdk.identity.keys import DeviceKeys, private_directory, write_private  # noqa: E402 # as above
from edge_sdk.identity.trust import save_bundle  # noqa: E402 # as above
from edge_sdk.testing import FakeAggregator  # noqa: E402 # as above

FLEET, DEVICE, TASK = "bench", "device-1", "churn"
FIELDS = 16
CHILD = """
import json, sys, time
import edge_sdk
with edge_sdk.init(home=sys.argv[1]) as fl:
    record = {f"f{i}": 0.0 for i in range(int(sys.argv[2]))}
    end = time.monotonic() + 60
    while not (fl.status()["connected"] and fl.predict("churn", record).available):
        assert time.monotonic() < end, fl.status()
        time.sleep(0.1)
    time.sleep(float(sys.argv[3]))
    answer = fl.predict("churn", record)
    time.sleep(1.0)
    lines = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    heavy = [name for name in ("torch", "opacus", "onnx") if name in sys.modules]
    threads = int(lines["Threads"])
    print(json.dumps({"rss_kib": int(lines["VmRSS"].split()[0]), "heavy": heavy, "threads": threads,
                      "connected": fl.status()["connected"], "answered": answer.available}))
"""


def prepare(folder: Path, port_of: Broker, authority: object) -> Path:
    """An enrolled device's home with a model in its slot, as an update would have left it."""
    home = folder / "device"
    identity = private_directory(home / "identity")
    keys = DeviceKeys.generate()
    keys.save(identity)
    issued = authority.issue(keys.request(FLEET, DEVICE), now=time.time())  # type: ignore[attr-defined]
    bundle = authority.bundle(  # type: ignore[attr-defined]
        broker_host="localhost", broker_port=port_of.port, tuf_root=""
    )
    save_bundle(identity, bundle)
    write_private(identity / "device.crt", issued.chain_pem.encode())
    schema = Schema(tuple(NumberField(f"f{i}") for i in range(FIELDS)), Label("churn", "binary", ("no", "yes")))
    FakeAggregator(home).install(TASK, tabular_classifier(schema, [32], seed=1))
    return home


def idle(seconds: float, kind: str) -> dict[str, object]:
    """Run the device beside a broker and read its memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = create_authority(folder / "authority", b"bench passphrase", fleet=FLEET, now=time.time())
        broker = Broker(folder / "broker", folder / "authority", fleet=FLEET, kind=kind)  # type: ignore[arg-type]
        broker.start([DEVICE])
        try:
            home = prepare(folder, broker, authority)
            command = [sys.executable, "-c", CHILD, str(home), str(FIELDS), str(seconds)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=180)
        finally:
            broker.stop()
    if done.returncode:
        raise SystemExit(f"the device failed: {done.stderr[-800:]}")
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def import_ms(modules: str) -> float:
    """One fresh interpreter."""
    code = f"import time; a = time.perf_counter(); import {modules}; print(time.perf_counter() - a)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return 1000 * float(run.stdout)


def imports_ms(pairs: int = 9) -> tuple[float, float]:
    """Medians for numpy and for the SDK, in turn, so that a busy moment meets both; the first pair only warms up."""
    runs = [(import_ms("numpy"), import_ms("edge_sdk, edge_sdk.client")) for _ in range(pairs + 1)][1:]
    numpys, ours = zip(*runs, strict=True)
    return statistics.median(numpys), statistics.median(ours)


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and import time of an idle device.")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long the device idles before it is measured")
    parser.add_argument("--broker", default="auto", choices=("auto", "mosquitto", "nats"))
    chosen = parser.parse_args()
    state = idle(chosen.seconds, chosen.broker)
    if state["heavy"] or not state["connected"] or not state["answered"]:
        raise SystemExit(f"the device was not idle as it should be: {state}")
    numpys, ours = imports_ms()
    result = {
        "idle_rss_mib": round(int(str(state["rss_kib"])) / 1024, 1),
        "import_ms_over_numpy": round(ours - numpys, 1),
        "import_ms_numpy": round(numpys, 1),
        "threads": state["threads"],
    }
    if chosen.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:22} {value}")


if __name__ == "__main__":
    main()
