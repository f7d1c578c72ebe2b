"""`aggregator audit` from the shell: what an operator does is in the log, and a touched log fails with a remedy."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from aggregator import cli
from aggregator.audit import Audit
from aggregator.config import load
from aggregator.fleet.authority import open_authority
from aggregator.fleet.registry import Registry
from aggregator.home import Home
from aggregator.recording import recorded
from aggregator.store import audit_log
from aggregator.store.schema import open_database
from aggregator.store.store import Store
from edge_sdk.protocol import hashlog


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    place = tmp_path / "home"
    monkeypatch.setenv("AGGREGATOR_HOME", str(place))
    assert cli.main(["init", str(place), "--fleet", "acme", "--port", "0", "--enrol-port", "0"]) == 0
    for _ in range(3):
        assert cli.main(["enroll-token", "--uses", "2"]) == 0
    store = Store(open_database(Home(place).database))
    Audit(store, open_authority(Home(place).authority, now=1.8e9).sign_key, "acme", place).begin(1.8e9)
    store.connection.close()
    capsys.readouterr()
    return place


def touch(home: Path, statement: str) -> None:
    connection = sqlite3.connect(home / "aggregator.db")
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_an_untouched_log_verifies_and_shows_what_was_done_but_no_secret(home, capsys):
    assert cli.main(["audit", "verify"]) == 0
    assert "4 entries hold together; 4 of them" in capsys.readouterr().out
    assert cli.main(["audit", "show", "--kind", "token", "--json"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["data"]["uses"] for entry in shown] == [2, 2, 2]
    assert set(shown[0]["data"]) == {"token", "uses", "kind", "steward", "expires_at"}
    assert cli.main(["audit", "show", "--last", "1"]) == 0
    assert "service-started" in capsys.readouterr().out


def test_a_touched_log_exits_with_one_and_names_the_entry(home, capsys):
    touch(home, "DELETE FROM audit_log WHERE n = 2")
    assert cli.main(["audit", "verify"]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert "entry 2 is missing" in error
    assert "first entry in doubt is 2" in hint
    assert cli.main(["audit", "verify", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["reason"] == "removed"


def test_a_cut_log_is_found_by_a_file_of_witnessed_heads(home, tmp_path, capsys):
    file = tmp_path / "heads.json"
    file.write_bytes((home / "audit.head").read_bytes())
    (home / "audit.head").unlink()
    touch(home, "DELETE FROM audit_log WHERE n > 1")
    touch(home, "DELETE FROM audit_heads")
    assert cli.main(["audit", "verify"]) == 0
    assert cli.main(["audit", "verify", "--witness", str(file)]) == 1
    assert "cut short" in capsys.readouterr().err
    assert cli.main(["audit", "verify", "--witness", str(tmp_path / "none")]) == 2


def test_an_export_holds_all_that_is_needed_and_is_recorded(home, capsys):
    assert cli.main(["audit", "export"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (lines[0]["fleet"], lines[0]["who"], len(lines[0]["key"])) == ("acme", "aggregator", 64)
    entries = [line for line in lines if "n" in line]
    assert [entry["kind"] for entry in entries][-1] == "exported"
    assert [line["size"] for line in lines if "size" in line] == [1, 2, 3, 4]


def resigned(home: Path) -> None:
    """The newest entry written anew by somebody who can write the database and cannot sign."""
    connection = sqlite3.connect(home / "aggregator.db")
    (size, head), (n, entry) = (
        connection.execute(f"SELECT n, {column} FROM audit_log ORDER BY n DESC LIMIT 1 OFFSET {back}").fetchone()
        for column, back in (("head", 1), ("entry", 0))
    )
    said = hashlog.read(entry)
    row = hashlog.following(
        (size, head), at=said.at, kind=said.kind, task=said.task, number=said.round, data={**said.data, "uses": 1}
    )
    connection.execute("UPDATE audit_log SET entry = ?, head = ? WHERE n = ?", (row.entry, row.head, n))
    connection.commit()
    connection.close()


def test_what_an_operator_does_while_the_service_is_down_is_signed_when_the_command_ends(home, capsys):
    assert cli.main(["enroll-token", "--uses", "500"]) == 0
    assert cli.main(["audit", "verify"]) == 0
    assert "5 entries hold together; 5 of them" in capsys.readouterr().out
    resigned(home)
    assert cli.main(["audit", "verify"]) == 1
    assert "written anew" in capsys.readouterr().err


def test_where_the_key_cannot_be_read_what_is_not_signed_is_said(home, capsys):
    key = home / "authority" / "sign.key"
    with contextlib.closing(open_database(home / "aggregator.db")) as connection:
        store = Store(connection)
        Registry(connection, "acme").create_token(
            fingerprint="0" * 64, address="localhost:1", now=1.8e9, entropy=bytes, kind="device"
        )
        assert (audit_log.last(connection)[0], audit_log.unsigned(connection, 4)) == (5, (1, 1_800_000_000))
        key.chmod(0o644)
        with recorded(home, load(home)) as (other, _), other.transaction():
            audit_log.append(other.connection, 1.8e9, "token")
        warned = capsys.readouterr().err
        assert "2 entries of the audit log, the first of 2027-01-15" in warned
        assert "sign.key" in warned
        key.chmod(0o600)
        assert audit_log.newest_head(store.connection).size == 4
    assert cli.main(["audit", "verify"]) == 0
    assert "2 entries of the audit log, the first of 2027-01-15" in capsys.readouterr().out
    assert cli.main(["audit", "verify", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["entries"], said["signed"], said["unsigned"], said["unsigned_since"]) == (6, 4, 2, 1_800_000_000)


def test_a_command_signs_over_no_proof_that_entries_were_lost(home, capsys):
    proof = (home / "audit.head").read_bytes()
    touch(home, "DELETE FROM audit_log WHERE n > 2")
    touch(home, "DELETE FROM audit_heads WHERE size > 2")
    assert cli.main(["enroll-token"]) == 0
    assert (home / "audit.head").read_bytes() == proof
    capsys.readouterr()
    assert cli.main(["status"]) == 0
    assert "ALARM: the audit log lost entries" in capsys.readouterr().out
