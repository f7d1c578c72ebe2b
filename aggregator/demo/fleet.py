"""The demo's fleet: one aggregator process and one process a device, started and asked by the product's own commands.

Reads what they say (status, the devices' printed lines, the aggregator's log); reaches into none of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from aggregator import config as settings
from aggregator import status
from aggregator.demo.play import Part, Play, write_lines
from aggregator.demo.processes import Children, DemoFailed, json_lines
from aggregator.status import Status

PROGRAMS: Final = Path(__file__).resolve().parents[2] / "firmware_examples"
PROGRAM_OF_KIND: Final = {"kiosk": "kiosk", "call-centre": "call_centre_terminal"}
DESK: Final = "service_desk"
COMMAND_S: Final = 60.0
POLL_S: Final = 0.1
# A device looks for a release at every hint and this often besides: the forged ones are announced by nobody.
UPDATE_CHECK_S: Final = 4
# Seconds between two customers. A kiosk is in use for a fifth of them and does not train then; the pause must leave
# time for a dozen training processes to start at once on two cores.
ANSWER_EVERY_S: Final = {"kiosk": 8.0, "call-centre": 1.5}
TRAINER_IDLE_S: Final = 600  # rounds are dense: the training process stays
Clock = Callable[[], float]


class Fleet:
    """Everything that runs. `folder` holds the aggregator's home, the devices' homes and their data."""

    def __init__(self, folder: Path, children: Children, play: Play) -> None:
        self.folder, self._children, self._play = folder, children, play
        self.home = folder / "aggregator"
        self.devices: dict[str, Part] = {}

    # -- starting

    def init(self, broker: str) -> None:
        """`aggregator init`: every key of a new fleet."""
        ports = ["--port", "0", "--enrol-port", "0"]
        self._aggregator("init", str(self.home), "--fleet", "demo", *ports, "--broker", broker)

    def serve(self) -> str:
        """`aggregator serve` as a process of its own; returns the broker's kind once it is connected."""
        self._children.start("aggregator", [*_module("aggregator.cli"), "serve", "--plain", "--home", str(self.home)])
        self.until(self._connected, 30.0, "the aggregator to reach its broker")
        return next(kind for kind in ("mosquitto", "nats") if (self.home / "broker" / f"{kind}.conf").exists())

    def _connected(self) -> bool:
        self._children.require("aggregator")
        with status.opened(self.home, settings.load(self.home)) as (store, _):
            service = store.value("service")
        return bool(service and service["connected"])

    def enrol(self, parts: Sequence[Part]) -> None:
        """A token for each kind, then `edge-sdk enroll` for each device, two at a time."""
        for kind in sorted({part.kind for part in parts}):
            members = [part for part in parts if part.kind == kind]
            made = self._aggregator(
                "enroll-token", "--uses", str(len(members)), "--ttl", "1h", "--kind", kind, "--json"
            )
            self._enrol_kind(members, json.loads(made)["token"])

    def _enrol_kind(self, parts: Sequence[Part], token: str) -> None:
        for part in parts:
            home = self.device_home(part.device)
            home.parent.mkdir(parents=True, exist_ok=True)
            command = ["enroll", token, "--home", str(home), "--device", part.device]
            _run([*_module("edge_sdk.cli"), *command], f"enrol {part.device}")
            write_lines(self._data_of(part.device), part.records)
            self.devices[part.device] = part

    def start_devices(self) -> None:
        """Each device's program, and wait until the aggregator has heard from all."""
        for device, part in self.devices.items():
            program = _program(PROGRAM_OF_KIND[part.kind])
            options = ["--home", str(self.device_home(device)), "--task", self._play.name, "--json-lines"]
            options += ["--data", str(self._data_of(device)), "--every", str(ANSWER_EVERY_S[part.kind])]
            options += ["--subject", self._play.subject] if self._play.subject else []
            self._children.start(device, [sys.executable, str(program), *options], _device_environment())
        self.until(self._all_live, 60.0, "every device to connect")

    def _all_live(self) -> bool:
        for device in self.devices:
            self._children.require(device)
        return bool(self.status()["devices"]["live"] == len(self.devices))

    def create_task(self, model: Path, held_out: Path, spec: Path) -> None:
        """`aggregator task create`."""
        files = ["--spec", str(spec), "--model", str(model), "--held-out", str(held_out)]
        self._aggregator("task", "create", self._play.name, *files)

    def publish_answers(self, file: Path) -> int:
        """`aggregator answers publish`; the version that was signed."""
        return int(
            json.loads(self._aggregator("answers", "publish", str(file), "--task", self._play.name, "--json"))[
                "version"
            ]
        )

    # -- asking

    def status(self) -> Status:
        """What `aggregator status --json` says."""
        with status.opened(self.home, settings.load(self.home)) as (store, registry):
            return status.gather(self.home, store, registry, time.time())

    def task(self) -> Status:
        """The demo's task within the status."""
        found: Status = self.status()["tasks"][0]
        return found

    def device_home(self, device: str) -> Path:
        return self.folder / "devices" / device

    def _data_of(self, device: str) -> Path:
        return self.folder / "data" / f"{device}.jsonl"

    def living(self) -> list[str]:
        return [device for device in self.devices if self._children.alive(device)]

    def answering_with(self) -> dict[str, str]:
        """Living device -> SHA-256 (hex) of the model that gave its last printed answer; "" where there is none."""
        return {device: self._last_model(device) for device in self.living()}

    def _last_model(self, device: str) -> str:
        answers = [line for line in json_lines(self._children.output(device)) if line.get("model_sha256")]
        return str(answers[-1]["model_sha256"]) if answers else ""

    def answered_again(self, timeout_s: float) -> None:
        """Wait until every living device has printed one more answer."""
        printed = {device: self._children.output(device).stat().st_size for device in self.living()}

        def all_have() -> bool:
            return all(self._children.output(device).stat().st_size > size for device, size in printed.items())

        self.until(all_have, timeout_s, "one more answer from every device")

    def holds_answers(self, device: str) -> bool:
        """Has the device fetched a signed list? Asked by `edge-sdk answer`, beside its running program."""
        words = ["answer", "?", "--task", self._play.name, "--home", str(self.device_home(device)), "--json"]
        return bool(json.loads(_run([*_module("edge_sdk.cli"), *words], "edge-sdk answer"))["reason"] != "no-list")

    def ask(self, device: str, questions: Sequence[str]) -> list[dict[str, Any]]:
        """What the service desk says to each on this device, whose own program must have ended."""
        options = ["--home", str(self.device_home(device)), "--task", self._play.name, "--json-lines"]
        command = [sys.executable, str(_program(DESK)), *options]
        said = _run(command, "the service desk", _device_environment(), "".join(f"{each}\n" for each in questions))
        return [json.loads(line) for line in said.splitlines()]

    def last_event(self) -> int:
        """The id of the newest event."""
        return max((event[0] for event in self._events(0)), default=0)

    def refused_update(self, since: int) -> tuple[str, str] | None:
        """The first device that reported a refused update after the event `since`, and its words."""
        for _, _, kind, _, _, said in self._events(since):
            if kind == "report" and said["event"] == "update-refused":
                return said["device"], f"{said['reason']}: {said['detail']}"
        return None

    def _events(self, after: int) -> list[tuple[int, float, str, str, int, dict[str, Any]]]:
        with status.opened(self.home, settings.load(self.home)) as (store, _):
            return store.events(after)

    # -- waiting and killing

    def until(self, condition: Callable[[], Any], timeout_s: float, what: str, every_s: float = POLL_S) -> Any:
        """Poll until `condition` gives something true, and return that. Raises DemoFailed after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise DemoFailed(f"waited {timeout_s:.0f} s in vain for {what}")
            time.sleep(every_s)
        return found

    def kill(self, device: str) -> None:
        """kill -9 to the device's process."""
        self._children.kill(device)

    def switch_off(self) -> None:
        """End every process: devices, aggregator, broker."""
        self._children.stop_all()
        stop_orphaned_broker(self.home)

    def _aggregator(self, *words: str) -> str:
        return _run(
            [*_module("aggregator.cli"), *words], f"aggregator {words[0]}", {settings.HOME_VARIABLE: str(self.home)}
        )


def _program(name: str) -> Path:
    program = PROGRAMS / name / "main.py"
    if not program.exists():
        raise DemoFailed(f"{program} is missing: run the demo from a clone of the repository")
    return program


def _device_environment() -> dict[str, str]:
    """Settings of every device. The clone is on its path even where nothing is installed."""
    paths = [str(PROGRAMS.parent), os.environ.get("PYTHONPATH", "")]
    return {
        "EDGE_UPDATE_CHECK_S": str(UPDATE_CHECK_S),
        "EDGE_TRAINER_IDLE_S": str(TRAINER_IDLE_S),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def _module(name: str) -> list[str]:
    """The command of this module's console script, by the Python that runs us: it need not be on the path."""
    return [sys.executable, "-c", f"import sys; from {name} import main; sys.exit(main())"]


def _run(command: Sequence[str], what: str, environment: dict[str, str] | None = None, typed: str = "") -> str:
    """One command to its end, given what is typed; its output. Raises DemoFailed with what it complained of."""
    done = subprocess.run(
        command,
        input=typed,
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_S,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        raise DemoFailed(f"{what} failed: {done.stderr.strip()[-400:]}")
    return done.stdout


def stop_orphaned_broker(home: Path) -> None:
    """End a broker that an aggregator, itself ended by force, left behind. It is ours if it names our home."""
    pid_file = home / "broker" / "broker.pid"
    try:
        pid = int(pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return
    if str(home).encode() in command:
        os.kill(pid, 9)
