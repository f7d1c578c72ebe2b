"""Lists of answers over real TUF metadata: what a device takes into service, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from ota_fleet import NOW, RECORD, TASK, Fleet, model_bytes

from aggregator.releases.errors import ReleaseNotFound, ReleaseRefused
from aggregator.releases.repository import ONLINE_LIFE, Repository, Targets
from edge_sdk.answer_list import read_written, sealed
from edge_sdk.blobs import BlobAbsent
from edge_sdk.inference import Models
from edge_sdk.ota.errors import OtaError, UpdateRefused
from edge_sdk.ota.fetcher import NotFound
from edge_sdk.task_models import TUF_PREFIX, TaskModels
from edge_sdk.testing import FakeAggregator, ManualClock


def answers(version: int, text: str = "Stay with us.") -> bytes:
    written = {
        "answers": [{"intent": "leaves", "text": text}, {"intent": "leaves", "language": "zh", "text": "请留下。"}]
    }
    return sealed(read_written(json.dumps(written).encode()), TASK, version)


def device(fleet: Fleet, models: Models | None = None) -> TaskModels:
    """A device as a fresh process would start it."""

    def fetch(ranges: Sequence[tuple[str, int, int]]) -> list[tuple[bytes, int]]:
        try:
            blocks = [fleet.link(path.removeprefix(TUF_PREFIX), offset, length) for path, offset, length in ranges]
        except NotFound as error:
            raise BlobAbsent("absent", reason="absent") from error
        return [(block.data, block.total) for block in blocks]

    made = TaskModels(fleet.directory / "home", fleet.repository_root, models or fleet.models, fetch)
    (fleet.directory / "home").mkdir(exist_ok=True)
    made.open()
    return made


def says(models: Models, language: str = "en") -> str:
    model = models.current(TASK)
    return models.answers[TASK].reply(model.schema, RECORD, [("leaves", 0.9)], language).text


class StolenKeys(Repository):
    """An attacker with the online keys, who checks nothing."""

    def sign(self, version: int, data: bytes) -> None:
        rounds = self._load(Targets, "rounds")
        rounds.targets = {path: one for path, one in rounds.targets.items() if not path.startswith("answers/")}
        self._commit({"rounds": (rounds, ONLINE_LIFE, [self._keys.rounds])}, NOW)
        self.publish_answers(TASK, version, data, NOW)


def test_a_list_is_taken_with_the_update_and_serves_offline_after_a_restart(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.repository.publish_answers(TASK, 1, answers(1), NOW)
    first = device(fleet)
    assert first.update(TASK, NOW) is not None
    assert first.update_answers(TASK, NOW) == 1
    assert first.update_answers(TASK, NOW) is None
    assert (says(fleet.models), says(fleet.models, "zh")) == ("Stay with us.", "请留下。")
    first.close()
    fleet.link.cut_after = 0
    again = Models()
    second = device(fleet, again)
    assert says(again) == "Stay with us."
    with pytest.raises(OtaError):
        second.update_answers(TASK, NOW)
    assert says(again) == "Stay with us."


def test_a_newer_list_takes_the_place_of_the_older_one(fleet: Fleet) -> None:
    fleet.publish(1)
    made = device(fleet)
    made.update(TASK, NOW)
    for version in (1, 2, 7):
        fleet.repository.publish_answers(TASK, version, answers(version, f"Answer {version}."), NOW)
        assert made.update_answers(TASK, NOW) == version
        assert says(fleet.models) == f"Answer {version}."


def test_the_repository_signs_no_older_list_and_keeps_five(fleet: Fleet) -> None:
    for version in range(1, 8):
        fleet.repository.publish_answers(TASK, version, answers(version), NOW)
    fleet.repository.publish_answers(TASK, 7, answers(7), NOW)
    assert list(fleet.repository.answers(TASK)) == [3, 4, 5, 6, 7]
    for version, data in ((6, answers(6, "another")), (7, answers(7, "another"))):
        with pytest.raises(ReleaseRefused):
            fleet.repository.publish_answers(TASK, version, data, NOW)
    fleet.publish(1)  # a release leaves them where they are
    assert fleet.repository.answers(TASK)[7] == answers(7)


def test_bytes_that_are_not_what_was_signed_are_refused_and_the_old_list_serves(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.repository.publish_answers(TASK, 1, answers(1), NOW)
    made = device(fleet)
    made.update(TASK, NOW)
    made.update_answers(TASK, NOW)
    fleet.repository.publish_answers(TASK, 2, answers(2, "Stay with us for ever."), NOW)
    fleet.link.tamper = lambda path, block: (
        replace(block, data=block.data.replace(b"for ever", b"for evil")) if "answers" in path else block
    )
    with pytest.raises(UpdateRefused) as caught:
        made.update_answers(TASK, NOW)
    assert caught.value.reason == "wrong-hash"
    assert says(fleet.models) == "Stay with us."
    fleet.link.tamper = lambda _, block: block
    assert made.update_answers(TASK, NOW) == 2


def test_a_thief_of_the_online_keys_cannot_bring_an_older_list_back(fleet: Fleet) -> None:
    fleet.publish(1)
    fleet.repository.publish_answers(TASK, 5, answers(5), NOW)
    made = device(fleet)
    made.update(TASK, NOW)
    made.update_answers(TASK, NOW)
    StolenKeys(fleet.directory / "aggregator").sign(3, answers(3, "an old promise"))
    with pytest.raises(UpdateRefused) as caught:
        made.update_answers(TASK, NOW)
    assert caught.value.reason == "rollback"
    assert says(fleet.models) == "Stay with us."


@pytest.mark.parametrize("data", [b"{}", b"\xff", answers(9), answers(2).replace(b"churn", b"other")])
def test_signed_bytes_that_are_no_list_of_this_task_and_version_are_refused(fleet: Fleet, data: bytes) -> None:
    fleet.publish(1)
    made = device(fleet)
    made.update(TASK, NOW)
    fleet.repository.publish_answers(TASK, 2, data, NOW)
    with pytest.raises(UpdateRefused) as caught:
        made.update_answers(TASK, NOW)
    assert caught.value.reason == "answers-malformed"
    assert TASK not in fleet.models.answers


def served_by(fleet: Fleet, forge: bool) -> Callable[[str], bytes | None]:
    """The repository's files as blobs, with every list of answers forged or not."""

    def blob(path: str) -> bytes | None:
        try:
            data = fleet.link.whole(path.removeprefix(TUF_PREFIX))
        except ReleaseNotFound:
            return None
        return data.replace(b"Stay", b"Slay") if forge and "/answers/" in path else data

    return blob


@pytest.mark.parametrize("forge", [False, True])
def test_a_client_takes_the_signed_list_over_the_wire_and_reports_a_forged_one(fleet: Fleet, forge: bool) -> None:
    fleet.repository.publish(TASK, 1, model_bytes(1), {}, NOW)
    fleet.repository.publish_answers(TASK, 1, answers(1), NOW)
    root = fleet.repository_root.decode()
    (fleet.directory / "home").mkdir()
    with FakeAggregator(fleet.directory / "home", tuf_root=root, clock=ManualClock(NOW)) as fake:
        fake.blobs = served_by(fleet, forge)
        with fake.client() as fl:
            assert fake.wait_for(lambda: bool(fl.status()["connected"]))
            fake.hint(TASK)
            assert fake.wait_for(lambda: {each.event for each in fake.reports()} >= {"installed"})
            assert fake.wait_for(lambda: len(fake.reports()) >= 2)
            last = fake.reports()[-1]
            expected = ("update-refused", "ota-wrong-hash") if forge else ("answers", "")
            assert (last.event, last.reason) == expected
            assert fl.predict(TASK, RECORD).available
            reply = fl.answer(TASK, RECORD)
            assert reply.reason in ({"no-list"} if forge else {"", "below-threshold", "no-answer"})
