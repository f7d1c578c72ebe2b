"""What an operator does to a home over its life: serve it once, stop and resume tasks, renew, and meet wrong files."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aggregator import cli, renewal
from aggregator.broker import Broker
from aggregator.config import load
from aggregator.errors import HomeRefused
from aggregator.fleet.bootstrap import BootstrapError, BootstrapListener
from aggregator.home import Home
from aggregator.releases.repository import Repository
from aggregator.serving import only_one
from aggregator.status import opened
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier

DAY = 86_400
SCHEMA = Schema((NumberField("age"),), Label("churn", "binary", ("no", "yes")))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    place = tmp_path / "home"
    monkeypatch.setenv("AGGREGATOR_HOME", str(place))
    assert cli.main(["init", str(place), "--fleet", "acme", "--port", "0", "--enrol-port", "0"]) == 0
    capsys.readouterr()
    return place


@pytest.fixture
def task(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The words that would create it."""
    file = tmp_path / "first.onnx"
    file.write_bytes(tabular_classifier(SCHEMA, (), 0))
    return ["task", "create", "churn", "--model", str(file), "--epsilon", "3"]


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    assert cli.main(words) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("aggregator: error: ")
    assert hint.startswith("aggregator: hint: ")
    return error, hint


def test_a_home_is_served_once_and_the_other_is_told_by_whom(home: Path, capsys) -> None:
    hold = "import sys, time; from pathlib import Path; from aggregator.serving import only_one\n"
    hold += "with only_one(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold, str(home)], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "held\n"
            error, hint = complaint(capsys, "serve", "--plain")
            assert f"another aggregator serves this home (pid {child.pid})" in error
            assert "stop that one" in hint
            assert not (home / "broker" / "broker.pid").exists()
        finally:
            child.kill()
    with only_one(home):  # the lock died with its holder
        assert (home / "serve.lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(HomeRefused, match=str(os.getpid())), only_one(home):
            pass


def test_a_taken_enrolment_port_is_named_as_the_setting_is(home: Path) -> None:
    first = BootstrapListener(lambda request: None, credentials=Home(home).authority)
    try:
        with pytest.raises(BootstrapError) as refused:
            BootstrapListener(lambda request: None, credentials=Home(home).authority, port=first.port)
    finally:
        first._server.server_close()
    assert "enrol_port" in refused.value.hint


def test_the_broker_is_started_again_once_the_disk_has_room(home: Path) -> None:
    config = load(home)
    broker = Broker(home / "broker", Home(home).authority, fleet="acme", host="127.0.0.1", port=config.port)
    spawn, failures = broker._spawn, []

    def spawn_on_a_full_disk() -> None:
        if len(failures) < 2:
            failures.append(time.monotonic())
            raise OSError(errno.ENOSPC, "No space left on device")
        spawn()

    from aggregator.fleet.authority import open_authority

    open_authority(Home(home).authority, now=time.time()).write_crl([], now=time.time())
    broker.start([])
    try:
        broker._spawn = spawn_on_a_full_disk
        first = broker.pid
        assert first is not None
        os.kill(first, 9)
        deadline = time.monotonic() + 10
        while not (broker.restarts and broker.healthy()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert len(failures) == 2
        assert failures[1] - failures[0] > 0.3  # it waits longer each time
        assert broker.pid not in (None, first)
    finally:
        broker.stop()


def test_a_task_is_stopped_and_goes_on(home: Path, task: list[str], capsys) -> None:
    assert cli.main(task) == 0
    for action, shown in (("stop", "paused"), ("resume", "active")):
        assert cli.main(["task", action, "churn"]) == 0
        capsys.readouterr()
        assert cli.main(["task", "list", "--json"]) == 0
        listed = json.loads(capsys.readouterr().out)[0]
        assert (listed["status"], listed["reason"]) == (shown, "stopped by the operator" if action == "stop" else "")


def test_a_task_that_is_done_is_not_resumed_beyond_its_budget(home: Path, task: list[str], capsys) -> None:
    assert cli.main(task) == 0
    with opened(home, load(home)) as (store, _):
        store.set_task("churn", status="done")
    capsys.readouterr()
    for action in ("stop", "resume"):
        error, _ = complaint(capsys, "task", action, "churn")
        assert "it is done" in error
    assert "no task 'other'" in complaint(capsys, "task", "resume", "other")[0]


def test_renewal_gives_both_offline_roles_another_life(home: Path, capsys) -> None:
    now = time.time()
    assert renewal.days_left(home, now) in ({"root": 364, "targets": 89}, {"root": 365, "targets": 90})
    later = now + 80 * DAY
    assert renewal.renew(home, home / "offline", None, now=later) == {"root": 364, "targets": 89}
    assert renewal.days_left(home, now + 90 * DAY)["targets"] == 79
    assert cli.main(["renew"]) == 0
    assert capsys.readouterr().out == "signed anew: root for 364 days, targets for 89 days\n"
    assert Repository(Home(home).releases)._root_version() == 3


def test_status_reminds_of_a_renewal_in_the_last_thirty_days_only(home: Path) -> None:
    now = time.time()
    assert renewal.reminder(renewal.days_left(home, now + 59 * DAY)) == ""
    said = renewal.reminder(renewal.days_left(home, now + 61 * DAY))
    assert "targets has 28 days left" in said or "targets has 29 days left" in said
    assert "root" not in said
    assert "targets ran out" in renewal.reminder(renewal.days_left(home, now + 91 * DAY))


def test_renewal_with_one_root_key_changes_nothing(home: Path, capsys) -> None:
    for name in ("root-1", "root-2"):
        (home / "offline" / f"{name}.pem").unlink()
    error, hint = complaint(capsys, "renew")
    assert "two of its three keys" in error
    assert "another medium" in hint
    assert Repository(Home(home).releases)._root_version() == 1


def test_a_wrong_passphrase_names_the_option(home: Path, task: list[str], tmp_path: Path, capsys) -> None:
    (tmp_path / "wrong").write_text("not the passphrase\n")
    for words in (task, ["renew"]):
        error, hint = complaint(capsys, *words, "--passphrase-file", str(tmp_path / "wrong"))
        assert "does not open" in error
        assert "--passphrase-file" in hint


def test_missing_files_of_a_home_are_named(home: Path, task: list[str], capsys) -> None:
    (home / "authority" / "ca.pem").unlink()
    error, hint = complaint(capsys, "enroll-token")
    assert "ca.pem" in error
    assert "Errno" not in error
    assert len(hint) > len("aggregator: hint: ")
    (home / "releases" / "public" / "metadata" / "timestamp.json").unlink()
    error, hint = complaint(capsys, *task)
    assert "no repository" in error
    assert "aggregator init" in hint


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.pem"), "x.pem: No such", "path"),
        (PermissionError(errno.EACCES, "Permission denied", "y"), "y: Permission denied", "owns"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left", "free space"),
        (OSError("something odd"), "something odd", "there"),
    ],
)
def test_errors_of_the_operating_system_have_a_hint(capsys, error: OSError, message: str, hint: str) -> None:
    assert cli._complain(error) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert message in first
    assert hint in second
