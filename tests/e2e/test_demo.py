"""The whole demo, small, on each broker: what `make demo` runs, with its own exit code and its own figures.

The comparison knows nothing of the broker and takes most of the time, so it is made once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from aggregator.broker import find_program

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "rounds",
    "devices",
    "metric_name",
    "metric_fleet",
    "metric_local_mean",
    "metric_central",
    "epsilon",
    "delta",
    "privacy_unit",
    "upload_ratio_float32",
    "devices_on_new_model",
    "devices_alive",
    "forged_model_refused",
    "seconds_per_round",
    "data_source",
}


@pytest.fixture(params=["mosquitto", "nats"])
def broker(request: pytest.FixtureRequest) -> str:
    if find_program(request.param) is None and not os.environ.get("CI"):
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


def command(report: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "aggregator.cli", "demo", "--report", str(report), "--devices", "8", *options]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def processes_of(folder: Path) -> list[str]:
    """Command lines of living processes that name the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


class Outside(HTMLParser):
    """Collects whatever a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe"):
            self.loads.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href") and value and value[0] != "#"]


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_the_demo_keeps_every_promise_and_leaves_no_process(tmp_path: Path, broker: str) -> None:
    report, compared = tmp_path / "report", broker == "mosquitto"
    rounds = 3 if compared else 2
    words = ["--rounds", str(rounds), "--broker", broker, *(() if compared else ("--no-comparison",))]
    done = subprocess.run(
        command(report, *words),
        env=environment(), capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = json.loads((report / "summary.json").read_text())
    assert set(figures) >= KEYS
    assert figures["ok"]
    assert (figures["rounds"], figures["devices"], figures["broker"]) == (rounds, 8, broker)
    if compared:
        assert figures["metric_fleet"] > figures["metric_local_mean"] > 0.5
    assert figures["metric_fleet"] > 0.5
    assert (figures["metric_central"] is not None) == compared
    assert 0 < figures["epsilon"] < 8
    assert (figures["privacy_unit"], figures["delta"]) == ("record", 1e-5)
    assert figures["devices_on_new_model"] == figures["devices_alive"] == 6
    assert figures["forged_model_refused"] is True
    assert ["signature" in figures["forged_reasons"][0], "graph" in figures["forged_reasons"][1]] == [True, True]
    assert "artificial" in figures["data_source"]
    assert figures["model_sha256"] in done.stdout
    page = Outside()
    page.feed((report / "report.html").read_text())
    assert page.loads == []
    assert processes_of(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_device_answers_from_the_signed_list_with_all_else_switched_off(tmp_path: Path) -> None:
    report = tmp_path / "report"
    done = subprocess.run(
        [sys.executable, "-m", "aggregator.cli", "demo", "intents", "--report", str(report), "--devices", "8",
         "--rounds", "6", "--no-comparison"],
        env=environment(), capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    figures = json.loads((report / "summary.json").read_text()) if done.returncode in (0, 1) else {}
    assert figures, done.stdout[-3000:] + done.stderr[-3000:]
    held = {sentence for sentence, good in figures["checks"].items() if good}
    # After six rounds it may be sure of no Chinese question; all rounds make it sure of some.
    assert {sentence for sentence in figures["checks"] if "Chinese" not in sentence} <= held
    assert 0 < figures["questions_answered_by_device"] < figures["questions_asked"]
    assert "What a device answered by itself" in (report / "report.html").read_text()
    assert processes_of(tmp_path) == []


@pytest.mark.slow
def test_stopping_the_demo_half_way_stops_everything_it_started(tmp_path: Path) -> None:
    report = tmp_path / "report"
    with subprocess.Popen(
        command(report), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as demo:
        devices = report / "run" / "devices"
        deadline = time.monotonic() + 60
        while len(processes_of(devices)) < 8 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(processes_of(devices)) >= 8
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130
    assert processes_of(tmp_path) == []


def test_the_demo_does_not_empty_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    precious = tmp_path / "run" / "precious"
    precious.parent.mkdir()
    precious.write_text("mine")
    done = subprocess.run(command(tmp_path), env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "not a demo's" in done.stderr
    assert precious.read_text() == "mine"
