"""The demo's attacks do what they claim, and leave the repository as they found it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from tuf.api.exceptions import RepositoryError
from tuf.ngclient import Updater

from aggregator.demo import forgery
from aggregator.demo.plays import churn
from aggregator.evaluation import logits
from aggregator.releases.errors import ReleaseRefused
from aggregator.releases.keys import open_targets_key
from aggregator.releases.repository import Repository
from edge_sdk.artifact.features import features
from edge_sdk.artifact.graph_lock import graph_digest
from edge_sdk.artifact.safety import check_model
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.weights import read_vector, write_vector

PASSPHRASE = b"a passphrase for tests"


@pytest.fixture
def model() -> bytes:
    start = tabular_classifier(churn.schema(), (), 0)
    return write_vector(start, np.linspace(-1, 1, read_vector(start).size, dtype=np.float32))


@pytest.fixture
def repository(tmp_path: Path, model: bytes) -> Path:
    now = time.time()
    made = Repository.create(tmp_path / "releases", tmp_path / "offline", PASSPHRASE, now)
    key = open_targets_key(tmp_path / "offline", PASSPHRASE)
    made.lock_graph("churn", graph_digest(model).hex(), 100_000, key, now)
    made.publish("churn", 1, model, {}, now)
    return tmp_path / "releases"


def refreshed(repository: Path, scratch: Path) -> Updater:
    """python-tuf's own client over the repository's files."""
    scratch.mkdir(exist_ok=True)
    root = repository / "public" / "metadata" / "1.root.json"
    base = (repository / "public").as_uri()
    updater = Updater(
        str(scratch), f"{base}/metadata/", str(scratch), f"{base}/targets/", _Files(), bootstrap=root.read_bytes()
    )
    updater.refresh()
    return updater


class _Files:
    """A fetcher for file URLs."""

    def download_bytes(self, url: str, max_length: int) -> bytes:
        path = Path(url.removeprefix("file://"))
        if not path.exists():
            from tuf.api.exceptions import DownloadHTTPError

            raise DownloadHTTPError("absent", 404)
        return path.read_bytes()[: max_length + 1]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_stranger_is_refused_by_tuf_and_every_file_is_put_back(
    repository: Path, model: bytes, tmp_path: Path
) -> None:
    refreshed(repository, tmp_path / "before")
    before = tree(repository / "public")
    with forgery.offered_by_a_stranger(repository, "churn", forgery.changed_weights(model), time.time()) as version:
        assert version == 2
        with pytest.raises(RepositoryError, match="timestamp"):
            refreshed(repository, tmp_path / "during")
    assert tree(repository / "public") == before
    refreshed(repository, tmp_path / "before")


def test_a_thief_of_the_online_keys_passes_tuf_but_not_the_graph_lock(
    repository: Path, model: bytes, tmp_path: Path
) -> None:
    other = forgery.new_graph(model)
    check_model(other)
    version = forgery.offer_with_stolen_keys(repository, "churn", other, time.time())
    target = refreshed(repository, tmp_path / "client").get_targetinfo(f"models/churn/{version}.onnx")
    assert target is not None
    assert target.length == len(other)
    assert graph_digest(other) != graph_digest(model)


def test_withdrawing_goes_on_with_newer_metadata(repository: Path, model: bytes, tmp_path: Path) -> None:
    version = forgery.offer_with_stolen_keys(repository, "churn", forgery.new_graph(model), time.time())
    refreshed(repository, tmp_path / "client")
    forgery.withdraw(repository, "churn", version, time.time())
    assert refreshed(repository, tmp_path / "client").get_targetinfo(f"models/churn/{version}.onnx") is None
    assert [release.version for release in Repository(repository).releases("churn")] == [1]


def test_the_aggregator_itself_would_refuse_to_publish_the_new_graph(repository: Path, model: bytes) -> None:
    with pytest.raises(ReleaseRefused, match="not the locked one"):
        Repository(repository).publish("churn", 2, forgery.new_graph(model), {}, time.time())


def test_the_forged_models_really_answer_otherwise(model: bytes) -> None:
    record = {name: mean + scale for name, (mean, scale) in churn.NUMBERS.items()} | dict.fromkeys(churn.PLANS, "no")
    inputs = features(churn.schema(), [record])
    honest = logits(model, inputs)
    assert np.allclose(logits(forgery.changed_weights(model), inputs), -honest)
    assert np.allclose(logits(forgery.new_graph(model), inputs), 2 * honest)
    assert abs(float(honest[0, 0])) > 0.1
