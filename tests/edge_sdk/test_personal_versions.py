"""A device's own version of a model: served offline, gone with what it was learned from, and never sent."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.cli import main
from edge_sdk.client import EdgeClient
from edge_sdk.examples_store import ExamplesStore
from edge_sdk.inference import Models
from edge_sdk.personal import Kept, Personalisation, PersonalWeights, Train, holds, version
from edge_sdk.testing import FakeAggregator
from edge_sdk.training.jobs import PersonalDone, PersonalJob, TrainingFailed

SCHEMA = Schema((NumberField("minutes"), NumberField("calls")), Label("churn", "binary", ("no", "yes")))
MODEL = tabular_classifier(SCHEMA, [], seed=1)
ASKED = {"minutes": 1.0, "calls": 0.0}
NOW = 1_800_000_000
WAIT_S = 90.0


def record(fl: EdgeClient, count: int) -> None:
    """Here everybody with many minutes leaves; the fleet's model says so of nobody."""
    for i in range(count):
        minutes = math.sin(i)
        fl.record("churn", {"minutes": minutes, "calls": 0.0}, "yes" if minutes > 0 else "no", f"customer-{i % 50}")
    assert fl.flush(10.0)


def personal(fl: EdgeClient) -> bool:
    return fl.predict("churn", ASKED).personal


def test_a_device_learns_for_itself_serves_it_after_a_restart_and_forgets_it_with_a_customer(tmp_path: Path):
    file = tmp_path / "personal" / "churn.weights"
    with FakeAggregator(tmp_path) as fake:
        sha256 = fake.install("churn", MODEL)
        with fake.client(personalise=True) as fl:
            assert fl.predict("churn", ASKED).score == pytest.approx(0.5)
            record(fl, 200)
            assert fake.wait_for(lambda: personal(fl), WAIT_S), fl.status()
            answer = fl.predict("churn", ASKED)
            assert (answer.label, answer.model_sha256) == ("yes", sha256)
            assert answer.score > 0.9
            assert fl.status()["models"]["churn"] == {"version": 1, "sha256": sha256, "personal": True}
            assert fl.status()["personal"]["churn"]["rows"] == 200
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        with fake.client(personalise=True, training=False) as fl:
            assert fake.wait_for(lambda: personal(fl)), "it serves again without training"
            fl.forget("customer-7")
            assert fake.wait_for(lambda: not file.exists() and not personal(fl))
            assert fl.predict("churn", ASKED).score == pytest.approx(0.5)
        assert not fake.uploads
        assert not fl.status()["privacy"]


def test_without_the_owners_word_nothing_is_personal_and_what_was_is_deleted(tmp_path: Path):
    weights = PersonalWeights(tmp_path)
    weights.keep("churn", kept())
    with FakeAggregator(tmp_path) as fake:
        fake.install("churn", MODEL)
        with fake.client() as fl:
            assert fake.wait_for(lambda: weights.find("churn") is None)
            assert not personal(fl)


def kept(**changed: object) -> Kept:
    import hashlib

    vector = bytes(4 * 3)
    told = {
        "release": hashlib.sha256(MODEL).hexdigest(), "erasures": 2, "newest": 9, "trained_at": NOW, "kind": "tuned",
        "alpha": 1.0, "rows": 30, "loss_fleet": 0.7, "loss_personal": 0.2, "vector": vector,
    }  # fmt: skip
    return Kept(**{**told, **changed})  # type: ignore[arg-type] # a test's shorthand


@pytest.mark.parametrize(
    ("release", "erasures", "at", "held"),
    [
        ("same", 2, NOW + 60, True),
        ("other", 2, NOW + 60, False),
        ("same", 3, NOW + 60, False),
        ("same", 2, NOW + 8 * 86_400, False),
        ("same", 2, NOW - 60, False),
    ],
)
def test_it_holds_for_one_release_one_state_of_the_examples_and_one_week(release, erasures, at, held):
    one = kept()
    assert holds(one, one.release if release == "same" else release, erasures, at) is held


def test_weights_of_another_length_or_release_are_not_served():
    from edge_sdk.artifact.errors import ArtifactError

    assert version(MODEL, kept()) is not None
    assert version(MODEL, kept(release="0" * 64)) is None
    assert version(MODEL, kept(vector=b"")) is None
    with pytest.raises(ArtifactError):
        version(MODEL, kept(vector=bytes(4 * 2)))
    with pytest.raises(ArtifactError):
        version(MODEL, kept(vector=b"\xff" * 12))


def test_a_damaged_file_is_no_version(tmp_path: Path):
    weights = PersonalWeights(tmp_path)
    weights.keep("churn", kept())
    (tmp_path / "personal" / "churn.weights").write_bytes(b"\x00not this")
    assert weights.find("churn") is None


def test_a_half_written_version_goes_with_a_no_of_the_owner(tmp_path: Path):
    half = tmp_path / "personal" / ".churn.weights.77.part"
    half.parent.mkdir()
    half.write_bytes(b"half")
    PersonalWeights(tmp_path).forget_all()
    assert not half.exists()


def test_what_is_kept_of_a_task_that_has_no_model_any_more_goes_with_its_week(tmp_path: Path):
    weights, now = PersonalWeights(tmp_path), NOW + 8 * 86_400
    weights.keep("retired", kept())
    weights.keep("lately", kept(trained_at=now - 60))
    weights.keep("ahead", kept(trained_at=now + 60))
    (tmp_path / "personal" / "damaged.weights").write_bytes(b"\x00not this")
    (tmp_path / "personal" / ".dead.weights.77.part").write_bytes(b"half")
    looked_after(tmp_path, lambda *_: pytest.fail("nothing is due")).look(now, lambda: True, lambda: False)
    assert [file.name for file in (tmp_path / "personal").iterdir()] == ["lately.weights"]


def test_a_running_device_deletes_what_it_learned_for_a_task_that_ended(tmp_path: Path):
    with FakeAggregator(tmp_path) as fake:
        fake.install("churn", MODEL)
        PersonalWeights(tmp_path).keep("retired", kept(trained_at=int(fake.clock()) - 8 * 86_400))
        with fake.client(personalise=True):
            assert fake.wait_for(lambda: not (tmp_path / "personal" / "retired.weights").exists())


@pytest.mark.parametrize("apart", [False, True])
def test_the_owners_word_on_labels_reaches_the_training(tmp_path: Path, apart: bool):
    asked = list[PersonalJob]()

    def train(job: PersonalJob, _cancelled: object) -> PersonalDone:
        asked.append(job)
        raise TrainingFailed("cancelled", "seen enough")

    with pytest.raises(TrainingFailed, match="seen enough"):
        looked_after(tmp_path, train, stored(tmp_path, 40), apart=apart).look(NOW, lambda: True, lambda: False)
    assert [job.apart for job in asked] == [apart]


def looked_after(
    home: Path, train: Train, examples: ExamplesStore | None = None, *, apart: bool = False
) -> Personalisation:
    """A device's own versions, trained by `train`; served with the release where there are examples."""
    models = Models()
    if examples is not None:
        models.load("churn", MODEL, 1)
    store = examples or stored(home)
    return Personalisation(
        home, models, store, release=lambda _: MODEL, train=train, least=20, entropy=os.urandom, apart=apart
    )


def stored(home: Path, count: int = 0) -> ExamplesStore:
    store = ExamplesStore(home / "examples.db", home / "examples.key", 100, os.urandom)
    for i in range(count):
        store.add("churn", ASKED, "yes" if i % 2 else "no", f"customer-{i % 5}", now=NOW)
    return store


ERASURES = {
    "nobody leaves": lambda store: None,
    "forget": lambda store: store.forget("customer-1"),
    "withdrawal": lambda store: store.consent_withdrawn("customer-1", ("churn",), NOW),
}


@pytest.mark.parametrize("how", ERASURES)
def test_a_version_is_void_where_a_customer_left_while_it_was_trained_or_put_into_service(tmp_path: Path, how: str):
    store = stored(tmp_path, 40)
    asked: list[bool] = []

    def train(_: PersonalJob, cancelled: Callable[[], bool]) -> PersonalDone:
        before = cancelled()
        ERASURES[how](store)
        asked.extend((before, cancelled()))
        return PersonalDone(bytes(4 * 3), "tuned", 1.0, 40, 0.7, 0.2)  # the last step was over already

    own = looked_after(tmp_path, train, store)
    own.look(NOW, lambda: True, lambda: False)
    void = how != "nobody leaves"
    assert asked == [False, void]
    assert own._models.current("churn").personal is not void
    assert (tmp_path / "personal" / "churn.weights").exists() is not void


def test_forgetting_from_the_command_line_takes_the_version_with_it(tmp_path: Path):
    with FakeAggregator(tmp_path) as fake:
        fake.install("churn", MODEL)
        with fake.client() as fl:
            record(fl, 1)
    weights = PersonalWeights(tmp_path)
    weights.keep("churn", kept())
    assert main(["forget", "customer-0", "--home", str(tmp_path)]) == 0
    assert weights.find("churn") is None
