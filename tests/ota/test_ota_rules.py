"""What a device installs and what it refuses, end to end over real TUF metadata."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ota_fleet import NOW, PASSPHRASE, TASK, Fleet, Link, model_bytes, new_repository

from aggregator.releases.errors import ReleaseRefused
from aggregator.releases.keys import open_online_keys, open_root_keys, open_targets_key
from aggregator.releases.repository import ONLINE_LIFE, Repository, TargetFile, Targets
from edge_sdk.artifact.graph_lock import graph_digest
from edge_sdk.artifact.weights import read_vector
from edge_sdk.ota.errors import ModelRefused, UpdateRefused, UpdateUnavailable
from edge_sdk.ota.fetcher import Block
from edge_sdk.ota.rules import DAY_S, TimeFloor

DAY = 86_400.0


class StolenOnlineKeys(Repository):
    """An attacker who holds the aggregator's online keys and checks nothing."""

    def _check_graph(self, task: str, model: bytes) -> dict[str, str]:
        lock = self.locked_graph(task)
        return {"graph_digest": lock["graph_digest"] if lock else "0" * 64}

    def sign_rounds(self, path: str, data: bytes) -> None:
        """Put any target at all into the role `rounds`."""
        target = TargetFile.from_data(path, data, ["sha256"])
        self._write_target(target, data)
        rounds = self._load(Targets, "rounds")
        rounds.targets[path] = target
        self._commit({"rounds": (rounds, ONLINE_LIFE, [self._keys.rounds])}, NOW)


def thief(fleet: Fleet) -> StolenOnlineKeys:
    return StolenOnlineKeys(fleet.directory / "aggregator")


def refusal(fleet: Fleet, now: float = NOW) -> str:
    """The reason for which a device does not get as far as a new model in service."""
    with pytest.raises(UpdateRefused) as caught:
        fleet.device().update(now)
    return caught.value.reason


def test_a_new_device_installs_the_newest_release_and_then_has_nothing_to_do(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.publish(2)
    device = fleet.device()
    model = device.update(NOW)
    assert model is not None
    assert model.path.read_bytes() == model_bytes(2)
    assert fleet.version_serving() == 2
    assert device.check(NOW) is None


def test_an_update_carries_what_the_aggregator_signed_about_it(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.device().update(NOW)
    fleet.publish(2)
    candidate = fleet.device().check(NOW)
    assert candidate is not None
    first = fleet.slots().active()
    assert first is not None
    assert candidate.custom["lineage"] == first.sha256
    assert candidate.custom["round"] == "2"
    assert candidate.length == len(model_bytes(2))


def test_a_device_with_nothing_new_asks_for_two_files(fleet: Fleet) -> None:
    fleet.publish(1)
    device = fleet.device()
    device.update(NOW)
    fleet.link.asked.clear()
    assert device.check(NOW) is None
    assert fleet.link.asked == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_an_unknown_task_has_no_candidate(fleet: Fleet) -> None:
    fleet.publish(1)
    assert fleet.feed().check_for_update("intent", 0, NOW) is None


@pytest.mark.parametrize("file", ["timestamp", "snapshot", "rounds", "targets", "onnx", "graphs"])
def test_a_flipped_byte_anywhere_is_refused_and_a_clean_retry_installs(fleet: Fleet, file: str) -> None:
    fleet.publish(1)

    def flip(path: str, block: Block) -> Block:
        middle = len(block.data) // 2
        wrong = bytes([block.data[middle] ^ 1]) if block.data else b""
        data = block.data[:middle] + wrong + block.data[middle + 1 :]
        return Block(block.total, data) if file in path else block

    fleet.link.tamper = flip
    assert refusal(fleet) in ("wrong-hash", "wrong-signature", "malformed")
    fleet.link.tamper = lambda path, block: block
    fleet.device().update(NOW)
    assert fleet.version_serving() == 1
    assert fleet.slots().quarantine == {}, "bytes spoilt on the way must not condemn the real model"


@pytest.mark.parametrize("file", ["timestamp.json", ".onnx"])
def test_endless_data_is_cut_at_the_signed_length(fleet: Fleet, file: str) -> None:
    fleet.publish(1)
    whole = 1 << 40
    fleet.link.tamper = lambda path, block: Block(whole, bytes(512)) if path.endswith(file) else block
    assert refusal(fleet) == "too-long"
    assert fleet.link.sent < 1 << 20
    assert not list((fleet.directory / "device").rglob("*.part"))


def test_an_older_state_of_the_repository_is_a_rollback(fleet: Fleet) -> None:
    fleet.publish(1)
    old = fleet.link.whole("metadata/timestamp.json")
    fleet.publish(2)
    fleet.device().update(NOW)
    fleet.link.instead["metadata/timestamp.json"] = old
    assert refusal(fleet) == "rollback"
    assert fleet.version_serving() == 2


def test_a_frozen_repository_blocks_installing_and_never_the_active_model(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.device().update(NOW)
    frozen = fleet.link.whole("metadata/timestamp.json")
    fleet.publish(2, now=NOW + DAY)
    fleet.link.instead["metadata/timestamp.json"] = frozen
    assert fleet.device().update(NOW + 2 * DAY) is None
    assert refusal(fleet, NOW + 4 * DAY) == "expired"
    assert fleet.version_serving() == 1


def test_a_daily_timestamp_keeps_devices_going_for_a_month(fleet: Fleet) -> None:
    fleet.publish(1)
    for day in range(1, 31):
        fleet.repository.refresh_timestamp(NOW + day * DAY)
    assert fleet.device().update(NOW + 30 * DAY) is not None


def test_files_of_two_states_do_not_mix(fleet: Fleet) -> None:
    fleet.publish(1)
    versions = json.loads(fleet.link.whole("metadata/timestamp.json"))["signed"]["meta"]["snapshot.json"]["version"]
    old = fleet.link.whole(f"metadata/{versions}.snapshot.json")
    fleet.publish(2)
    fleet.link.instead[f"metadata/{versions + 1}.snapshot.json"] = old
    assert refusal(fleet) == "wrong-hash"


def test_a_model_signed_by_another_fleet_is_refused_by_name_and_the_active_model_stays(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.device().update(NOW)
    before = fleet.slots().active()
    foreign = new_repository(fleet.directory / "foreign")
    for version in (1, 2, 3):
        foreign.publish(TASK, version, model_bytes(7 + version), {}, NOW)
    fleet.link.repository = foreign
    device = fleet.device()
    with pytest.raises(UpdateRefused) as caught:
        device.update(NOW)
    assert caught.value.reason == "wrong-signature"
    assert fleet.slots().active() == before
    assert fleet.version_serving() == 1


def test_without_the_rounds_key_the_other_online_keys_ship_nothing(fleet: Fleet) -> None:
    fleet.publish(1)
    new_repository(fleet.directory / "foreign")
    other = open_online_keys(fleet.directory / "foreign" / "online")
    attacker = thief(fleet)
    attacker._keys = replace(attacker._keys, rounds=other.rounds)
    attacker.publish(TASK, 2, model_bytes(2), {}, NOW)
    assert refusal(fleet) == "wrong-signature"


def test_stolen_online_keys_ship_weights_but_no_new_graph(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.device().update(NOW)
    stolen = thief(fleet)
    stolen.publish(TASK, 2, model_bytes(2), {}, NOW)
    fleet.device().update(NOW)
    assert fleet.version_serving() == 2, "weights alone are what the online keys are for"
    stolen.publish(TASK, 3, model_bytes(3, hidden=9), {}, NOW)
    assert refusal(fleet) == "graph-changed"
    assert fleet.version_serving() == 2
    assert list(fleet.slots().quarantine.values()) == ["graph-changed"]


def test_quarantined_bytes_are_not_fetched_again(fleet: Fleet) -> None:
    thief(fleet).publish(TASK, 3, model_bytes(3, hidden=9), {}, NOW)
    assert refusal(fleet) == "graph-changed"
    fleet.link.asked.clear()
    assert fleet.device().update(NOW) is None
    assert not [path for path in fleet.link.asked if path.endswith(".onnx")]


def test_the_online_role_cannot_lock_a_graph_of_its_own(fleet: Fleet) -> None:
    fleet.publish(1)
    stolen = thief(fleet)
    lock = {"graph_digest": graph_digest(model_bytes(3, hidden=9)).hex(), "max_bytes": 1 << 20, "task": TASK}
    stolen.publish(TASK, 2, model_bytes(3, hidden=9), {}, NOW)
    stolen.sign_rounds(f"graphs/{TASK}.json", json.dumps(lock).encode())
    assert refusal(fleet) == "graph-changed"


@pytest.mark.parametrize("forged_lock", [False, True])
def test_a_task_without_an_offline_lock_installs_nothing(fleet: Fleet, forged_lock: bool) -> None:
    stolen = thief(fleet)
    stolen.publish("intent", 1, model_bytes(1), {}, NOW)
    if forged_lock:  # signed by the online role, outside the paths it was given
        lock = {"graph_digest": graph_digest(model_bytes(1)).hex(), "max_bytes": 1 << 20, "task": "intent"}
        stolen.sign_rounds("graphs/intent.json", json.dumps(lock).encode())
    with pytest.raises(UpdateRefused) as caught:
        fleet.feed().check_for_update("intent", 0, NOW)
    assert caught.value.reason == "graph-not-locked"


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_signed_weights_that_are_not_finite_are_refused_and_quarantined(fleet: Fleet, poison: float) -> None:
    fleet.publish(1)
    fleet.device().update(NOW)
    bad = model_bytes(5)
    weights = read_vector(bad)
    spoilt = bad.replace(weights[:8].tobytes(), np.full(8, poison, np.float32).tobytes())
    assert spoilt != bad
    thief(fleet).publish(TASK, 2, spoilt, {}, NOW)
    device = fleet.device()
    with pytest.raises(ModelRefused) as caught:
        device.update(NOW)
    assert caught.value.reason == "unsafe-not-finite"
    assert fleet.version_serving() == 1
    assert "unsafe-not-finite" in fleet.slots().quarantine.values()


def test_a_model_larger_than_the_lock_is_refused_before_a_byte_of_it_is_fetched(fleet: Fleet) -> None:
    thief(fleet).publish(TASK, 1, bytes(1 << 17), {}, NOW)
    assert refusal(fleet) == "too-large"
    assert not [path for path in fleet.link.asked if path.endswith(".onnx")]


def test_silence_is_not_a_refusal_and_later_the_update_goes_on(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.link.cut_after = 0
    with pytest.raises(UpdateUnavailable) as caught:
        fleet.device().update(NOW)
    assert caught.value.reason == "silence"
    fleet.link.cut_after = None
    assert fleet.device().update(NOW) is not None


def test_a_cut_download_goes_on_where_it_stopped(fleet: Fleet) -> None:
    fleet.publish(1)
    device = fleet.device()
    candidate = device.check(NOW)
    assert candidate is not None
    fleet.link.cut_after = fleet.link.sent + len(fleet.link.whole("metadata/timestamp.json")) + 600
    with pytest.raises(UpdateUnavailable):
        device.install(candidate, NOW)
    kept = sum(file.stat().st_size for file in (fleet.directory / "device" / "partial").iterdir())
    assert 0 < kept < candidate.length
    fleet.link.cut_after, fleet.link.sent = None, 0
    fleet.device().update(NOW)
    metadata = len(fleet.link.whole("metadata/timestamp.json"))
    assert fleet.link.sent == candidate.length - kept + 2 * metadata
    assert fleet.version_serving() == 1


def test_a_clock_in_1970_is_reported_and_still_installs_fresh_releases(fleet: Fleet) -> None:
    fleet.publish(1)
    device = fleet.device()
    assert fleet.feed().clock_is_behind(0.0)
    assert device.update(0.0) is not None


def test_a_clock_in_1970_does_not_void_the_protection_against_freezing(fleet: Fleet) -> None:
    fleet.publish(1)
    frozen = dict.fromkeys(["metadata/timestamp.json"], fleet.link.whole("metadata/timestamp.json"))
    fleet.repository.refresh_timestamp(NOW + 10 * DAY)
    assert fleet.device().check(0.0) is not None  # sees a signature of the tenth day
    (fleet.directory / "device" / "metadata" / "timestamp.json").unlink()  # as if the cache were lost
    fleet.link.instead = frozen
    assert refusal(fleet, 0.0) == "expired"


def test_a_clock_far_ahead_refuses_and_says_to_set_it(fleet: Fleet) -> None:
    fleet.publish(1)
    with pytest.raises(UpdateRefused, match="set the clock") as caught:
        fleet.device().update(NOW + 400 * DAY)
    assert caught.value.reason == "expired"


def test_a_stolen_timestamp_key_cannot_push_the_floor_out_of_reach(tmp_path: Path) -> None:
    floor = TimeFloor(tmp_path / "floor", NOW)
    floor.raise_to(NOW + 900 * DAY_S, now=NOW, limit=NOW + 365 * DAY_S)
    assert floor.seconds == NOW + DAY_S
    floor.raise_to(NOW + 900 * DAY_S, now=0.0, limit=NOW + 365 * DAY_S)
    assert floor.seconds == NOW + 365 * DAY_S
    floor.raise_to(NOW, now=NOW, limit=NOW + 365 * DAY_S)
    assert TimeFloor(tmp_path / "floor", 0.0).seconds == NOW + 365 * DAY_S


def test_a_renewed_root_is_followed_and_one_key_alone_cannot_sign_it(fleet: Fleet) -> None:
    fleet.publish(1)
    offline = fleet.directory / "aggregator" / "offline"
    roots, targets = open_root_keys(offline, PASSPHRASE), open_targets_key(offline, PASSPHRASE)
    with pytest.raises(ReleaseRefused):
        fleet.repository.renew(roots[:1], targets, NOW)
    fleet.repository.renew(roots[:2], targets, NOW + 60 * DAY)
    fleet.publish(2, now=NOW + 60 * DAY)
    fleet.device().update(NOW + 60 * DAY)
    assert fleet.version_serving() == 2
    assert (fleet.directory / "device" / "metadata" / "root_history" / "2.root.json").exists()


def test_a_root_signed_by_one_key_is_refused(fleet: Fleet) -> None:
    fleet.publish(1)
    offline = fleet.directory / "aggregator" / "offline"
    roots, targets = open_root_keys(offline, PASSPHRASE), open_targets_key(offline, PASSPHRASE)
    fleet.repository.renew(roots[:2], targets, NOW)
    root = json.loads(fleet.link.whole("metadata/2.root.json"))
    root["signatures"] = root["signatures"][:1]
    fleet.link = Link(fleet.repository, {"metadata/2.root.json": json.dumps(root).encode()})
    assert refusal(fleet) == "wrong-signature"
