"""An aggregator in a process of its own that stops dead at a given phase, so that a test can kill it there.

    python aggregator_process.py HOME PORT PHASE

At PHASE it makes the file HOME/reached and waits; with PHASE `none` it serves until it is killed.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from aggregator.home import Home
from aggregator.service import Service
from edge_sdk.transport.mqtt import MqttSettings, MqttTransport

FLEET = "test-fleet"


def transport(home: Home, port: int, filters: tuple[str, ...]) -> MqttTransport:
    settings = MqttSettings(
        host="127.0.0.1",
        port=port,
        name="aggregator-1",
        ca_file=home.authority / "ca.pem",
        certificate_file=home.authority / "aggregator-1.crt",
        key_file=home.authority / "aggregator-1.key",
        subscriptions=filters,
        window=64,
        backoff_first_s=0.1,
        backoff_last_s=0.5,
    )
    return MqttTransport(settings, rng=random.Random(3))


def main() -> None:
    path, port, wanted = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)

    def hook(phase: str) -> None:
        if phase == wanted:
            (path / "reached").write_text(phase)
            while True:
                time.sleep(60)

    service = Service(
        path,
        SimpleNamespace(fleet=FLEET),
        time.time,
        os.urandom,
        lambda filters: transport(Home(path), port, filters),
        phase_hook=hook,
    )
    service.run(threading.Event())


if __name__ == "__main__":
    main()
