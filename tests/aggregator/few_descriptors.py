"""A fleet whose aggregator may open hardly any file: run as a process of its own, prints what it found as JSON."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from small_fleet import SmallFleet
from test_service_rounds import ended, raised, start

COUNT = 20
SPARE = 6  # descriptors beyond those that the process holds already


def main(home: Path) -> None:
    fleet = SmallFleet(home, count=COUNT, hidden=(3000,))
    for device in fleet.devices:
        device.progress = lambda *args, **kwargs: None  # type: ignore[method-assign] # announces and sends nothing
    start(fleet, n_max=COUNT, window_s=3600, rounds=1)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + SPARE, hard))
    fleet.run(lambda: len(fleet.service._ingest._arriving) == COUNT, limit=200)
    fleet.restart()
    arriving = len(fleet.service._ingest._arriving)
    for device in fleet.devices:
        del device.progress
    fleet.run(ended(fleet))
    print(json.dumps({"arriving": arriving, "raised": raised(fleet), "internal": fleet.refused("hello", "internal")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
