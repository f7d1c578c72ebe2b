"""The release repository: what it signs, what it refuses, what it serves, and what a crash leaves."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tuf.api.metadata import Metadata, Root

from aggregator.releases.errors import ReleaseError, ReleaseNotFound, ReleaseRefused, WrongPassphrase
from aggregator.releases.keys import open_targets_key
from aggregator.releases.repository import KEPT_RELEASES, Repository
from edge_sdk.artifact.errors import UnsafeModel
from edge_sdk.artifact.graph_lock import graph_digest
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.weights import read_vector, write_vector

NOW = 1_800_000_000.0
DAY = 86_400.0
PASSPHRASE = b"a passphrase"
SCHEMA = Schema((NumberField("calls"),), Label("churn", "binary", ("stays", "leaves")))
KILLED = 137


def model_bytes(seed: int, hidden: int = 4) -> bytes:
    start = tabular_classifier(SCHEMA, [hidden], 0)
    return write_vector(start, np.random.default_rng(seed).normal(size=read_vector(start).size).astype(np.float32))


def lock(repository: Repository, directory: Path, hidden: int = 4, max_bytes: int = 10_000) -> None:
    key = open_targets_key(directory / "offline", PASSPHRASE)
    repository.lock_graph("churn", graph_digest(model_bytes(1, hidden)).hex(), max_bytes, key, NOW)


def state(directory: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(directory.rglob("*")) if file.is_file()}


def check_public_files(repository: Repository) -> None:
    """Everything the timestamp leads to is there and hashes to what was signed."""
    pin = repository._load_timestamp().snapshot_meta
    pin.verify_length_and_hashes(repository.read(f"metadata/{pin.version}.snapshot.json", 0, 1 << 18)[1])
    for name, meta in repository._load_snapshot().meta.items():
        meta.verify_length_and_hashes(repository.read(f"metadata/{meta.version}.{name}", 0, 1 << 18)[1])
    for release in repository.releases("churn"):
        total, data = repository.read(f"targets/models/churn/{release.sha256}.{release.version}.onnx", 0, 1 << 18)
        assert total == len(data) == release.length
        assert data == model_bytes(release.version)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository.create(tmp_path, tmp_path / "offline", PASSPHRASE, NOW)
    lock(repository, tmp_path)
    return repository


def test_root_wants_two_of_three_keys_and_metadata_expires_as_promised(repository: Repository) -> None:
    root = Metadata[Root].from_bytes(repository.trusted_root()).signed
    assert (root.roles["root"].threshold, len(root.roles["root"].keyids)) == (2, 3)
    assert root.consistent_snapshot
    days = {
        "root": root.expires,
        "targets": Metadata.from_bytes(repository.read("metadata/2.targets.json", 0, 1 << 18)[1]).signed.expires,
        "snapshot": repository._load_snapshot().expires,
        "timestamp": repository._load_timestamp().expires,
    }
    assert {name: (at.timestamp() - NOW) / DAY for name, at in days.items()} == {
        "root": 365,
        "targets": 90,
        "snapshot": 14,
        "timestamp": 3,
    }


def test_keys_are_private_files_and_offline_keys_are_encrypted(repository: Repository, tmp_path: Path) -> None:
    keys = [*(tmp_path / "offline").glob("*.pem"), *(tmp_path / "online").glob("*.pem")]
    assert len(keys) == 7
    for file in keys:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert (b"ENCRYPTED" in file.read_bytes()) == (file.parent.name == "offline")
    with pytest.raises(WrongPassphrase, match="check the passphrase"):
        open_targets_key(tmp_path / "offline", b"wrong")
    with pytest.raises(ReleaseError, match="mount the medium"):
        open_targets_key(tmp_path / "elsewhere", PASSPHRASE)
    assert "..." in repr(repository._keys)


def test_an_empty_passphrase_and_a_second_creation_are_refused(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(ReleaseRefused, match="passphrase is empty"):
        Repository.create(tmp_path / "other", tmp_path / "other" / "offline", b"", NOW)
    with pytest.raises(ReleaseRefused, match="open it instead"):
        Repository.create(tmp_path, tmp_path / "offline", PASSPHRASE, NOW)


def test_a_release_names_its_round_lineage_graph_and_epsilon(repository: Repository) -> None:
    first = repository.publish("churn", 1, model_bytes(1), {"round": "4", "epsilon": "2.1"}, NOW)
    second = repository.publish("churn", 2, model_bytes(2), {"round": "5", "epsilon": "2.4"}, NOW)
    assert second.custom == {
        "version": "2",
        "round": "5",
        "epsilon": "2.4",
        "lineage": first.sha256,
        "graph_digest": graph_digest(model_bytes(1)).hex(),
    }
    assert repository.latest("churn") == second
    check_public_files(repository)


def test_publishing_the_same_again_changes_no_byte(repository: Repository, tmp_path: Path) -> None:
    first = repository.publish("churn", 1, model_bytes(1), {}, NOW)
    before = state(tmp_path)
    assert repository.publish("churn", 1, model_bytes(1), {}, NOW + DAY) == first
    lock(repository, tmp_path)
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    ("version", "model", "reason"),
    [
        (2, model_bytes(9), "conflict"),
        (1, model_bytes(1), "old"),
        (3, model_bytes(3, hidden=5), "graph"),
        (3, bytes(10_001), "too-large"),
    ],
)
def test_what_no_device_would_take_is_refused(
    repository: Repository, tmp_path: Path, version: int, model: bytes, reason: str
) -> None:
    repository.publish("churn", 2, model_bytes(2), {}, NOW)
    before = state(tmp_path)
    with pytest.raises(ReleaseRefused) as caught:
        repository.publish("churn", version, model, {}, NOW)
    assert caught.value.reason == reason
    assert state(tmp_path) == before


def test_an_unlocked_task_a_bad_name_and_an_unsafe_file_are_refused(repository: Repository) -> None:
    with pytest.raises(ReleaseRefused, match="lock it with the offline key"):
        repository.publish("intent", 1, model_bytes(1), {}, NOW)
    with pytest.raises(ReleaseRefused, match="no task name"):
        repository.publish("../churn", 1, model_bytes(1), {}, NOW)
    with pytest.raises(UnsafeModel):
        repository.publish("churn", 1, b"rubbish", {}, NOW)


def test_the_last_twenty_releases_are_kept_and_the_files_of_the_others_removed(
    repository: Repository, tmp_path: Path
) -> None:
    for version in range(1, KEPT_RELEASES + 6):
        repository.publish("churn", version, model_bytes(version), {}, NOW)
    kept = [release.version for release in repository.releases("churn")]
    assert kept == list(range(6, 26))
    assert len(list((tmp_path / "public" / "targets" / "models" / "churn").iterdir())) == KEPT_RELEASES
    assert len(list((tmp_path / "public" / "metadata").glob("*.rounds.json"))) <= 8
    check_public_files(repository)


def test_a_refreshed_timestamp_signs_online_roles_again_before_they_expire(repository: Repository) -> None:
    for day in range(1, 40):
        repository.refresh_timestamp(NOW + day * DAY)
        soonest = min(repository._load_timestamp().expires, repository._load_snapshot().expires)
        assert soonest.timestamp() > NOW + (day + 2) * DAY
    assert repository._load_snapshot().version < 12, "signed weekly, not daily"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/etc/passwd",
        "../online/timestamp.pem",
        "metadata/../../online/timestamp.pem",
        "online/timestamp.pem",
        "metadata",
        "metadata/",
        "metadata//timestamp.json",
        "metadata/.hidden",
        "metadata/timestamp.json\x00",
        "metadata/link.json",
        "metadata/half.json.tmp",
        "targets/models/churn",
        "metadata/9.root.json",
    ],
)
def test_only_public_files_are_served(repository: Repository, tmp_path: Path, path: str) -> None:
    (tmp_path / "public" / "metadata" / "link.json").symlink_to(tmp_path / "online" / "timestamp.pem")
    (tmp_path / "public" / "metadata" / "half.json.tmp").write_bytes(b"half")
    (tmp_path / "public" / "metadata" / ".hidden").write_bytes(b"hidden")
    with pytest.raises(ReleaseNotFound):
        repository.read(path, 0, 10)


def test_ranges_are_what_was_asked_for_and_absurd_ones_are_refused(repository: Repository) -> None:
    total, whole = repository.read("metadata/timestamp.json", 0, 1 << 30)
    assert total == len(whole)
    assert repository.read("metadata/timestamp.json", 7, 5) == (total, whole[7:12])
    assert repository.read("metadata/timestamp.json", total, 5) == (total, b"")
    for offset, length in ((-1, 5), (0, 0), (0, -5)):
        with pytest.raises(ReleaseNotFound):
            repository.read("metadata/timestamp.json", offset, length)


def killed(action: Callable[[], object], at: int) -> bool:
    """Run in a child that dies, as by kill -9, before its n-th event on a file; False when it got to its end."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, KILLED)
        return code == KILLED
    left = at

    def hook(event: str, _: object) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.remove"):
            left -= 1
            if left < 0:
                os._exit(KILLED)

    sys.addaudithook(hook)
    try:
        action()
    except BaseException:
        os._exit(1)
    os._exit(0)


def test_kill_9_at_any_file_event_of_a_publish_leaves_a_whole_repository_and_a_retry_succeeds(
    repository: Repository, tmp_path: Path
) -> None:
    version, kills = 1, 0
    while killed(lambda: repository.publish("churn", version, model_bytes(version), {}, NOW), kills):  # noqa: B023 - runs at once
        check_public_files(repository)
        reopened = Repository(tmp_path)
        release = reopened.publish("churn", version, model_bytes(version), {}, NOW)
        assert reopened.latest("churn") == release
        check_public_files(reopened)
        version, kills = version + 1, kills + 1
    assert kills > 30
    check_public_files(repository)


def test_an_interrupted_creation_can_be_repeated(tmp_path: Path) -> None:
    kills = 0
    while True:
        directory = tmp_path / str(kills)
        if not killed(lambda: Repository.create(directory, directory / "offline", PASSPHRASE, NOW), kills):  # noqa: B023 - runs at once
            break
        try:
            made = Repository.create(directory, directory / "offline", PASSPHRASE, NOW)
        except ReleaseRefused:
            made = Repository(directory)  # it was complete already
        lock(made, directory)
        made.publish("churn", 1, model_bytes(1), {}, NOW)
        check_public_files(made)
        kills += 1
    assert kills > 30
