"""A release goes with its card: signed beside the model, verified with it, kept by its slot, shown on the device."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from small_fleet import PASSPHRASE, START
from tuf.api.metadata import Targets

from aggregator import about
from aggregator.config import load
from aggregator.ledger import Ledger
from aggregator.model_card import encoded
from aggregator.releases.errors import ReleaseNotFound, ReleaseRefused
from aggregator.releases.keys import open_targets_key
from aggregator.releases.repository import TARGETS_LIFE, Release, Repository
from aggregator.status import opened
from edge_sdk import cli
from edge_sdk.model_card import lines, read_card
from edge_sdk.ota.activation import Activation
from edge_sdk.ota.errors import OtaError, UpdateRefused
from edge_sdk.ota.fetcher import Block, NotFound
from edge_sdk.ota.rules import ReleaseFeed
from edge_sdk.ota.slots import Slots

TASK = "churn"


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "home"))


class Device:
    """Slots and feed of one device over a repository, as `edge-sdk run` lays them out. `instead` replaces files."""

    def __init__(self, home: Path, repository: Repository) -> None:
        self.home, self.repository, self.instead = home, repository, dict[str, bytes]()
        self.slots = Slots(home / "models" / TASK)
        feed = ReleaseFeed(home / "tuf", repository.read("metadata/1.root.json", 0, 1 << 20)[1], self.request)
        self.activation = Activation(TASK, feed, self.slots, lambda model: None, probe=lambda path: None)

    def request(self, path: str, offset: int, length: int) -> Block:
        for part, data in self.instead.items():
            if part in path:
                return Block(len(data), data[offset : offset + length])
        try:
            return Block(*self.repository.read(path, offset, length))
        except ReleaseNotFound:
            raise NotFound from None

    def cards(self) -> list[str]:
        return sorted(file.name for file in (self.home / "models" / TASK).glob("*.card.json"))


def model_of(home: Path, release: Release) -> bytes:
    """The bytes of a release, from the repository's folder."""
    folder = home / "releases" / "public" / "targets" / "models" / TASK
    return (folder / f"{release.sha256}.{release.version}.onnx").read_bytes()


def device_of(home: Path) -> Device:
    return Device(home.parent / "device", Repository(home / "releases"))


def test_every_release_has_a_card_that_the_device_verifies_and_shows(home: Path, capsys) -> None:
    device = device_of(home)
    model = device.activation.update(START)
    assert model is not None
    card = read_card(device.home, TASK)
    assert card is not None
    assert card["model"]["sha256"] == model.sha256
    assert card["model"]["version"] == model.version == 3
    assert card["stated"]["purpose"]["en"].startswith("Tell early")
    assert cli.main(["card", "--task", TASK, "--home", str(device.home)]) == 0
    shown = capsys.readouterr().out
    assert f"sha256 {model.sha256}" in shown
    assert "against everyone, the aggregator included" in shown
    assert cli.main(["card", "--task", TASK, "--home", str(device.home), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == card
    assert cli.main(["card", "--task", "other", "--home", str(device.home)]) == 2


def test_the_cards_figures_are_the_ledgers_and_its_hash_stands_beside_the_models(home: Path) -> None:
    repository = Repository(home / "releases")
    found = [repository.card(release) for release in repository.releases(TASK)]
    cards = [json.loads(data) for data in found]
    with opened(home, load(home)) as (store, _):
        spent = Ledger(store.connection).by_round(TASK)
    assert [card["privacy"]["epsilon"] for card in cards] == [0.0, *(round(epsilon, 4) for _, _, epsilon in spent)]
    assert [card["cohorts"]["sums"] for card in cards] == [0, 1, 2]
    assert cards[-1]["cohorts"]["smallest"] == 6
    assert [card["model"]["lineage"] for card in cards] == ["", *(card["model"]["sha256"] for card in cards[:-1])]
    for release, data in zip(repository.releases(TASK), found, strict=True):
        assert release.custom["card_sha256"] == hashlib.sha256(data).hexdigest()
        assert json.loads(data)["model"]["graph_digest"] == release.custom["graph_digest"]


def test_a_changed_card_keeps_the_model_out(home: Path) -> None:
    device = device_of(home)
    card = device.repository.card(device.repository.latest(TASK))
    device.instead["cards/"] = card.replace(b"Tell early", b"Tell later")
    with pytest.raises(OtaError):
        device.activation.update(START)
    assert device.slots.active() is None
    assert device.cards() == []
    device.instead.clear()
    assert device.activation.update(START) is not None


def test_a_card_about_another_model_is_refused_though_it_is_signed(home: Path) -> None:
    device = device_of(home)
    repository, newest = device.repository, device.repository.latest(TASK)
    repository.publish(TASK, 9, model_of(home, newest), {}, START, card=repository.card(newest))
    with pytest.raises(UpdateRefused, match="another model"):
        device.activation.update(START)


def test_only_cards_of_models_in_the_slots_are_kept(home: Path) -> None:
    device = device_of(home)
    first = device.activation.update(START)
    repository, newest = device.repository, device.repository.latest(TASK)
    for version, release in enumerate(repository.releases(TASK)[:2], 11):
        data = model_of(home, release)
        sha256 = hashlib.sha256(data).hexdigest()
        card = encoded({"model": {"task": TASK, "version": version, "sha256": sha256}})
        repository.publish(TASK, version, data, {}, START, card=card)
        device.activation.update(START)
    assert first.sha256 == newest.sha256
    assert device.cards() == sorted(f"{release.sha256}.card.json" for release in repository.releases(TASK)[:2])


def test_an_older_repository_releases_without_cards_until_the_offline_key_signs(tmp_path: Path, home: Path) -> None:
    repository = Repository(home / "releases")
    targets = repository._load(Targets, "targets")
    targets.delegations.roles["rounds"].paths = ["models/*/*.onnx"]
    key = open_targets_key(home / "offline", PASSPHRASE)
    repository._commit({"targets": (targets, TARGETS_LIFE, [key])}, START)
    model = model_of(home, repository.latest(TASK))
    old = repository.publish(TASK, 20, model, {}, START, card=b"{}")
    assert repository.card(old) is None
    assert "card_sha256" in old.custom
    device = Device(tmp_path / "device", repository)
    assert device.activation.update(START) is not None
    assert device.cards() == []
    lock = repository.locked_graph(TASK)
    repository.lock_graph("another", lock["graph_digest"], 1 << 20, key, START)
    new = repository.publish(TASK, 21, model, {}, START, card=b"{}")
    assert repository.card(new) == b"{}"


def test_a_card_that_is_too_large_is_not_signed(home: Path) -> None:
    repository = Repository(home / "releases")
    model = model_of(home, repository.latest(TASK))
    with pytest.raises(ReleaseRefused, match="card of"):
        repository.publish(TASK, 30, model, {}, START, card=b" " * 70_000)


def test_a_card_of_other_bytes_is_not_shown_and_what_is_not_stated_is_said(home: Path) -> None:
    device = device_of(home)
    model = device.activation.update(START)
    file = device.slots.card_file(model.sha256)
    card = json.loads(file.read_bytes())
    said = "\n".join(lines({**card, "stated": {}}))
    assert "purpose   not stated" in said
    file.write_bytes(encoded({**card, "model": {**card["model"], "sha256": "0" * 64}}))
    assert read_card(device.home, TASK) is None
    assert about.missing(about.About())
