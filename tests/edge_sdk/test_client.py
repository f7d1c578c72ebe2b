"""The client as an app sees it: answers always, raises never, keeps what it was told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import edge_sdk
from edge_sdk.artifact.schema import CategoryField, Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.protocol.messages import Ask, Heartbeat
from edge_sdk.testing import FakeAggregator

SCHEMA = Schema(
    (NumberField("minutes", 100.0, 50.0), CategoryField("plan", ("gold", "silver"))),
    Label("churn", "binary", ("stays", "leaves")),
)
MODEL = tabular_classifier(SCHEMA, [4], seed=1)
RECORD = {"minutes": 120.0, "plan": "gold"}
FIELDS = ("churn.minutes", "churn.plan")


@pytest.fixture
def fake(tmp_path: Path):
    with FakeAggregator(tmp_path) as made:
        yield made


def test_a_prediction_comes_from_the_model_on_the_disk_without_any_connection(fake):
    sha256 = fake.install("churn", MODEL, version=3)
    fake.cut()
    with fake.client() as fl:
        answer = fl.predict("churn", RECORD)
        assert answer.available
        assert answer.label in ("stays", "leaves")
        assert (answer.model_version, answer.model_sha256) == (3, sha256)
        assert sum(score for _, score in answer.top(9)) == pytest.approx(1.0)
        assert answer.top(1) == [(answer.label, answer.score)]


def test_feedback_becomes_an_example_that_survives_a_restart(fake):
    fake.install("churn", MODEL)
    with fake.client() as fl:
        fl.predict("churn", RECORD).feedback("leaves", subject="customer-7")
        fl.record("churn", RECORD, "stays", subject="customer-8")
        assert fl.flush(5.0)
        assert fl.status()["examples"] == {"churn": 2}
    with fake.client() as fl:
        fl.forget("customer-7")
        assert fl.flush(5.0)
        assert fl.status()["examples"] == {"churn": 1}


def test_what_was_recorded_just_before_the_end_is_kept(fake):
    with fake.client(fields=FIELDS) as fl:
        for _ in range(500):
            fl.record("churn", RECORD, "stays")
    with fake.client(fields=FIELDS) as fl:
        fl.flush(5.0)
        assert fl.status()["examples"] == {"churn": 500}


def test_without_a_model_the_answer_says_so(fake):
    with fake.client() as fl:
        answer = fl.predict("churn", RECORD)
        assert not answer.available
        assert answer.label is None
        assert "no model" in answer.error
        answer.feedback("stays")


def test_the_device_asks_and_beats_and_is_connected(fake):
    with fake.client() as fl:
        assert fake.wait_for(lambda: fl.status()["connected"])
        assert fake.wait_for(lambda: {Ask, Heartbeat} <= {type(m) for m in fake.received})
    phases = lambda: [m.phase for m in fake.received if isinstance(m, Heartbeat)]  # noqa: E731  # one line is enough
    assert fake.wait_for(lambda: phases()[-1] == "gone"), phases()


def test_heartbeat_counters_grow_over_restarts(fake):
    for _ in range(3):
        seen = len(fake.received)
        with fake.client():
            assert fake.wait_for(lambda seen=seen: len(fake.received) > seen + 1)
    counters = [m.counter for m in fake.received if isinstance(m, Heartbeat)]
    assert counters == sorted(set(counters))


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_identity_is_told_and_the_last_good_model_still_answers(tmp_path):
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity" / "device.crt").write_text("not a certificate")
    (tmp_path / "identity" / "device.crt").chmod(0o600)
    FakeAggregator(tmp_path).install("churn", MODEL)
    told: list[BaseException] = []
    with edge_sdk.init(home=tmp_path, on_error=told.append) as fl:
        assert fl.predict("churn", RECORD).available
        fl.record("churn", RECORD, "stays")
        assert fl.flush(5.0)
        assert fl.status()["phase"] == "failed"
        assert fl.status()["examples"] == {"churn": 1}
    assert "enrol again" in str(told[0])


@pytest.mark.slow
def test_silence_of_the_aggregator_builds_the_connection_anew(fake):
    with fake.client(heartbeat_s=0.2) as fl:
        assert fake.wait_for(lambda: fl.status()["connected"])
        fake.silent = True
        assert fake.wait_for(lambda: fl.status()["rebuilt_connections"] > 0, timeout_s=20)
        fake.silent = False
        assert fake.wait_for(lambda: fl.status()["connected"])


RUBBISH = [None, 7, "x", b"\xff", [], {}, object(), {"minutes": object()}, {"minutes": float("nan"), "plan": "gold"}]


@pytest.mark.filterwarnings("ignore")
def test_nothing_raises_into_the_app_whatever_it_passes(fake):
    fake.install("churn", MODEL)
    errors: list[BaseException] = []
    with fake.client(on_error=errors.append) as fl:
        for task in ("churn", "../../etc", None, 7, object(), "x" * 10_000, "a\x00b"):
            for thing in RUBBISH:
                assert fl.predict(task, thing).top(3) is not None
                fl.record(task, thing, thing, subject=thing)
                fl.predict(task, thing).feedback(thing, thing)
        for thing in RUBBISH:
            fl.forget(thing)
            fl.busy(thing)
            assert fl.flush(thing) in (True, False)
        assert isinstance(fl.status(), dict)
        assert fl.predict("churn", RECORD).available
    fl.record("churn", RECORD, "stays")
    assert not fl.predict("other", RECORD).available
    assert fl.status()["phase"] == "disabled"
    assert fl.flush() is True
    fl.close()
    assert errors


def test_an_on_error_hook_that_fails_does_no_harm(fake):
    def fail(_: BaseException) -> None:
        raise RuntimeError("the app's own mistake")

    with fake.client(on_error=fail) as fl:
        fl.record(None, None, None)  # type: ignore[arg-type]
        assert fl.status()["dropped"] == {"record-invalid": 1}


def test_a_flood_of_records_is_bounded_and_counted(fake):
    with fake.client(fields=FIELDS) as fl:
        begin = time.monotonic()
        for _ in range(20_000):
            fl.record("churn", RECORD, "stays")
        assert time.monotonic() - begin < 5.0
        fl.flush(10.0)
        kept = fl.status()["examples"]["churn"]
        assert kept + fl.status()["dropped"].get("record", 0) == 20_000


def test_at_most_two_threads_are_ours_and_all_end(fake):
    before = threading.active_count()
    with fake.client() as fl:
        fake.wait_for(lambda: fl.status()["connected"])
        assert threading.active_count() - before <= 2
    assert threading.active_count() == before


def test_a_client_that_is_switched_off_does_nothing(tmp_path):
    fl = edge_sdk.init(home=tmp_path, enabled=False)
    fl.record("churn", RECORD, "stays")
    assert not fl.predict("churn", RECORD).available
    assert fl.status()["phase"] == "disabled"
    assert list(tmp_path.iterdir()) == []


def test_init_says_what_to_do_where_nothing_is_enrolled(tmp_path):
    with pytest.raises(edge_sdk.ConfigError, match="edge-sdk enroll"):
        edge_sdk.init(home=tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore")
def test_a_forked_child_gets_a_client_that_does_nothing_until_init(fake):
    fake.install("churn", MODEL)
    with fake.client() as fl:
        fake.wait_for(lambda: fl.status()["connected"])
        child = os.fork()
        if child == 0:
            code = 1
            try:
                fl.record("churn", RECORD, "stays")
                code = 0 if fl.flush(0.1) and fl.status()["phase"] == "disabled" else 1
            finally:
                os._exit(code)
        assert ended(child, 20.0) == 0
        assert fl.predict("churn", RECORD).available


def ended(child: int, within_s: float) -> int | None:
    """The child's exit code; None, and it is killed, where it hangs."""
    for _ in range(int(within_s / 0.05)):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def fresh(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    return result.stdout.strip()


def test_importing_the_package_loads_nothing_heavy():
    heavy = "torch opacus onnx onnxruntime numpy paho cryptography tuf msgspec"
    use = "import sys, edge_sdk; edge_sdk.init; edge_sdk.Config"
    code = f"{use}; print([m for m in '{heavy}'.split() if m in sys.modules])"
    assert fresh(code) == "[]"


def test_importing_costs_at_most_60_ms_more_than_numpy():
    code = "import time; a = time.perf_counter(); import {}; print(time.perf_counter() - a)"
    ours = min(float(fresh(code.format("edge_sdk, edge_sdk.client"))) for _ in range(3))
    numpys = min(float(fresh(code.format("numpy"))) for _ in range(3))
    assert ours < numpys + 0.060


def test_a_name_that_is_not_public_is_not_there():
    assert set(edge_sdk.__all__) == set(dir(edge_sdk))
    with pytest.raises(AttributeError, match="its names are"):
        _ = edge_sdk.nothing
