"""Predictions before, during and after an update."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from ota_fleet import RECORD, SCHEMA, TASK, model_bytes

from edge_sdk.artifact.errors import RecordError
from edge_sdk.artifact.features import features
from edge_sdk.artifact.weights import read_vector
from edge_sdk.inference import BadModel, Models, NoModel


def slow_probability(data: bytes) -> float:
    """The perceptron by hand: sigmoid(w2 . relu(W1 x + b1) + b2)."""
    x = features(SCHEMA, [RECORD])["features"][0].astype(float)
    vector = read_vector(data).astype(float)
    rows = 8
    w1, rest = vector[: rows * x.size].reshape(rows, x.size), vector[rows * x.size :]
    hidden = [max(0.0, float(np.dot(w1[k], x)) + rest[k]) for k in range(rows)]
    logit = sum(h * w for h, w in zip(hidden, rest[rows : 2 * rows], strict=True)) + rest[2 * rows]
    return float(1 / (1 + np.exp(-logit)))


@pytest.mark.parametrize("seed", range(5))
def test_the_answer_is_the_network_computed_by_hand(seed: int) -> None:
    models = Models()
    served = models.load(TASK, model_bytes(seed), version=3)
    (answer,) = models.predict(TASK, [RECORD])
    expected = slow_probability(model_bytes(seed))
    assert dict(answer.top(2))["leaves"] == pytest.approx(expected, abs=1e-5)
    assert answer.label == ("leaves" if expected > 0.5 else "stays")
    assert answer.score == pytest.approx(max(expected, 1 - expected), abs=1e-5)
    assert answer.top(1) == [(answer.label, answer.score)]
    assert (answer.model_version, answer.model_sha256) == (3, served.sha256)


def test_without_a_model_the_error_names_the_remedy() -> None:
    with pytest.raises(NoModel, match="bundle one with the app"):
        Models().predict(TASK, [RECORD])


def test_a_file_that_cannot_be_served_leaves_the_old_model_in_service() -> None:
    models = Models()
    models.load(TASK, model_bytes(1), 1)
    for bad in (b"", b"garbage", model_bytes(2).replace(b"fl.schema", b"fl.schemx")):
        with pytest.raises(BadModel):
            models.load(TASK, bad, 2)
    assert models.predict(TASK, [RECORD])[0].model_version == 1


def test_a_record_that_does_not_fit_is_named_and_no_records_give_no_answers() -> None:
    models = Models()
    models.load(TASK, model_bytes(1), 1)
    assert models.predict(TASK, []) == []
    with pytest.raises(RecordError, match="calls"):
        models.predict(TASK, [{"plan": "a"}])


def test_predictions_in_threads_never_fail_while_models_are_swapped() -> None:
    models = Models()
    data = {version: model_bytes(version) for version in range(1, 6)}
    right = {version: slow_probability(model) for version, model in data.items()}
    models.load(TASK, data[1], 1)
    stop = threading.Event()
    wrong: list[object] = []
    seen: set[int] = set()

    def predict() -> None:
        while not stop.is_set():
            try:
                for answer in models.predict(TASK, [RECORD] * 3):
                    seen.add(answer.model_version)
                    if abs(dict(answer.ranked)["leaves"] - right[answer.model_version]) > 1e-5:
                        wrong.append(answer)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=predict) for _ in range(4)]
    for thread in threads:
        thread.start()
    for swap in range(60):
        version = 1 + swap % 5
        models.load(TASK, data[version], version)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(seen) > 1


def test_importing_inference_and_the_slots_loads_no_runtime_and_no_torch() -> None:
    code = (
        "import sys, edge_sdk.inference, edge_sdk.ota.slots, edge_sdk.ota.probe;"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'tuf') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
