"""A key that is damaged costs the examples it sealed, which are set aside and told; the device goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_sdk.cli import main
from edge_sdk.examples_store import Example, ExamplesStore, ExamplesUnreadable
from edge_sdk.testing import FakeAggregator


def opened(home: Path) -> ExamplesStore:
    return ExamplesStore(home / "examples.db", home / "examples.key", 100, os.urandom)


DAMAGED = {"empty": b"", "short": b"x" * 31, "long": b"x" * 33, "of another device": b"x" * 32}


@pytest.mark.parametrize("key", DAMAGED.values(), ids=list(DAMAGED))
@pytest.mark.parametrize("closed", [True, False])
def test_a_damaged_key_sets_its_examples_aside_and_new_ones_are_kept(tmp_path, key, closed):
    store = opened(tmp_path)
    right = (tmp_path / "examples.key").read_bytes()
    store.add("churn", {"n": 1}, "x")
    if closed:
        store.close()
    (tmp_path / "examples.key").write_bytes(key)
    after = opened(tmp_path)
    assert isinstance(after.damage, ExamplesUnreadable)
    assert "from a copy" in str(after.damage)
    assert after.add("churn", {"n": 2}, "x")
    after.close()
    again = opened(tmp_path)
    assert again.damage is None
    assert again.read("churn") == [Example({"n": 2}, "x")]
    again.close()
    (tmp_path / "restored.key").write_bytes(right)
    aside = ExamplesStore(tmp_path / "examples.db.unreadable", tmp_path / "restored.key", 100, os.urandom)
    assert aside.read("churn") == [Example({"n": 1}, "x")]


def test_a_key_that_is_gone_sets_its_examples_aside_too(tmp_path):
    opened(tmp_path).add("churn", {"n": 1}, "x")
    (tmp_path / "examples.key").unlink()
    assert opened(tmp_path).damage is not None
    assert opened(tmp_path).damage is None


def test_a_key_that_cannot_be_written_whole_is_not_written(tmp_path):
    def stop(_: int) -> bytes:
        raise OSError("no entropy")

    with pytest.raises(OSError, match="no entropy"):
        ExamplesStore(tmp_path / "examples.db", tmp_path / "examples.key", 100, stop)
    assert not (tmp_path / "examples.key").exists()
    assert opened(tmp_path).damage is None
    assert (tmp_path / "examples.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.filterwarnings("ignore")
def test_a_client_with_a_damaged_key_tells_it_and_goes_on(tmp_path, capsys):
    told: list[BaseException] = []
    with FakeAggregator(tmp_path) as fake:
        with fake.client(fields=("churn.n",)) as fl:
            fl.record("churn", {"n": 1}, "x")
        (tmp_path / "examples.key").write_bytes(b"")
        with fake.client(on_error=told.append, fields=("churn.n",)) as fl:
            fl.record("churn", {"n": 2}, "x")
            assert fl.flush(5.0)
            assert fl.status()["phase"] != "failed"
            assert fl.status()["examples"] == {"churn": 1}
            assert fl.status()["examples_set_aside"] is True
            assert fake.wait_for(lambda: fl.status()["connected"])
    assert [type(error) for error in told] == [ExamplesUnreadable]
    assert main(["status", "--home", str(tmp_path)]) == 0
    assert "examples.db.unreadable" in capsys.readouterr().out
