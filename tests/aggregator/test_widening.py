"""Label lists that grow: the wider model says what the old one said, and the fleet goes on with it under one ledger."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from small_fleet import FLEET, PASSPHRASE, SmallFleet

from aggregator import tasks
from aggregator.config import ConfigError
from aggregator.errors import ModelRefused, TaskRefused
from aggregator.evaluation import logits
from aggregator.releases.keys import open_targets_key
from aggregator.releases.repository import Repository
from aggregator.store import audit_log
from aggregator.store.schema import open_database
from aggregator.store.store import Store
from aggregator.widening import MARGIN, widened
from aggregator.widening_command import widen
from edge_sdk.artifact.graph_lock import graph_digest
from edge_sdk.artifact.names import SCHEMA as SCHEMA_KEY
from edge_sdk.artifact.schema import Label, NumberField, Schema, SequenceField
from edge_sdk.artifact.starter import serialise, tabular_classifier
from edge_sdk.artifact.weights import metadata, read_vector, trainable, write_vector
from edge_sdk.field_rules import FieldRules, UnfitValue

FIELDS = tuple(NumberField(f"f{i}") for i in range(4))
SCHEMA = Schema(FIELDS, Label("intent", "classes", ("a", "b", "c")))


def random_model(hidden: tuple[int, ...] = (), seed: int = 0) -> bytes:
    model = tabular_classifier(SCHEMA, hidden, seed)
    drawn = np.random.default_rng(seed).standard_normal(read_vector(model).size) * 3
    return write_vector(model, drawn.astype(np.float32), {"fl.round": "7"})


def rows(count: int = 500) -> dict[str, np.ndarray]:
    return {"features": (np.random.default_rng(1).standard_normal((count, 4)) * 10).astype(np.float32)}


@pytest.mark.parametrize("hidden", [(), (6,)])
def test_old_labels_keep_their_logits_and_no_new_one_is_best(hidden):
    model = random_model(hidden)
    wider = widened(model, ["d", "e"])
    before, after = logits(model, rows()), logits(wider, rows())
    assert np.allclose(after[:, :3], before, atol=1e-4)
    assert np.allclose(after[:, 3:], before.mean(axis=1, keepdims=True) - MARGIN, atol=1e-3)
    assert (after.argmax(axis=1) == before.argmax(axis=1)).all()


def test_names_are_added_at_the_end_and_all_other_words_stay():
    model = random_model()
    wider = widened(model, ["d"])
    assert Schema.from_json(metadata(wider)[SCHEMA_KEY]).label.names == ("a", "b", "c", "d")
    assert metadata(wider)["fl.round"] == "7"
    assert [name for name, _ in trainable(wider)] == [name for name, _ in trainable(model)]
    assert graph_digest(wider) != graph_digest(model)
    assert widened(model, ["d"]) == wider
    assert graph_digest(widened(random_model(seed=9), ["d"])) == graph_digest(wider), "a lock is of no weights"


@pytest.mark.parametrize(
    ("model", "labels", "reason"),
    [
        (random_model(), ["b"], "known-label"),
        (random_model(), ["d", "d"], "not-wider"),
        (random_model(), [], "no-label"),
        (random_model(), ["d", " "], "no-label"),
        (tabular_classifier(Schema(FIELDS, Label("y", "binary", ("no", "yes"))), (), 0), ["d"], "not-wider"),
        (tabular_classifier(Schema(FIELDS, Label("y", "number")), (), 0), ["d"], "not-wider"),
    ],
    ids=["known", "twice", "none", "empty", "binary", "number"],
)
def test_what_cannot_grow_is_refused(model, labels, reason):
    with pytest.raises(ModelRefused) as refused:
        widened(model, labels)
    assert refused.value.reason == reason


def test_a_catalogue_that_is_also_read_does_not_grow():
    items = ("a", "b", "c")
    fields = (SequenceField("history", items),)
    model = tabular_classifier(Schema(fields, Label("next", "classes", items, unseen_of="history")), (), 0)
    with pytest.raises(ModelRefused, match="sequence"):
        widened(model, ["d"])


def test_outputs_that_bend_after_the_last_layer_are_refused():
    from edge_sdk.artifact.starter import gemm, node

    weights = {"w": np.zeros((3, 4), np.float32), "b": np.zeros(3, np.float32)}
    nodes = [gemm("features", "w", "b", "sum"), node("Relu", ["sum"], "logits")]
    with pytest.raises(ModelRefused, match="'logits' is not a layer"):
        widened(serialise(SCHEMA, nodes, weights, ["w", "b"]), ["d"])


def test_a_sum_of_layers_grows_in_each_of_them():
    from edge_sdk.artifact.starter import gemm, node

    rng = np.random.default_rng(2)
    weights = {name: rng.standard_normal((3, 4)).astype(np.float32) for name in ("w", "fixed")}
    weights["b"] = rng.standard_normal(3).astype(np.float32)
    nodes = [
        gemm("features", "w", "b", "one"),
        gemm("features", "fixed", "", "two"),
        node("Add", ["one", "two"], "logits"),
    ]
    model = serialise(SCHEMA, nodes, weights, ["w", "b"])
    before, after = logits(model, rows()), logits(widened(model, ["d"]), rows())
    assert np.allclose(after, np.append(before, before.mean(axis=1, keepdims=True) - MARGIN, axis=1), atol=1e-3)


def test_a_device_refuses_the_new_label_until_the_wider_schema_is_signed_and_keeps_its_old_examples():
    model = random_model()
    old, new = (FieldRules.of_schema(Schema.from_json(metadata(m)[SCHEMA_KEY])) for m in (model, widened(model, ["d"])))
    with pytest.raises(UnfitValue):
        old.label("d")
    assert new.label("d") == "d"
    fields = {field.name: 1.0 for field in FIELDS}
    assert new.narrowed(fields, "a") == old.narrowed(fields, "a") is not None


def test_the_new_label_is_learned_by_one_devices_private_steps():
    pytest.importorskip("torch")
    from edge_sdk.training.module import GraphModule
    from edge_sdk.training.plain import PlainPlan, batches, fit

    wider = widened(random_model(), ["d"])
    records = rows(300)
    labels = np.where(records["features"][:, 0] > 5, 3, logits(random_model(), records).argmax(axis=1))
    assert 20 < (labels == 3).sum() < 150
    module = GraphModule(wider)
    weights = fit(module, batches(records, labels), PlainPlan(epochs=40, learning_rate=0.1), np.random.default_rng(0))
    named = logits(write_vector(wider, weights.weights, {}), records).argmax(axis=1)
    assert (named == 3)[labels == 3].mean() > 0.8
    assert (named == labels).mean() > 0.85


# -- a fleet ---------------------------------------------------------------------------------------------------------


class Intents(SmallFleet):
    """The small fleet, whose task is one of three intents."""

    def begin(self, **fields) -> bytes:
        model = tabular_classifier(SCHEMA, (), 1)
        repository = Repository(self.home.releases)
        repository.lock_graph("churn", graph_digest(model).hex(), 1 << 20, self.key(), self.now)
        given = {"name": "churn", "n_min": 3, "n_max": 20, "rounds": 3, "window_s": 60, "opening_s": 30}
        given |= {"noise_multiplier": 1.0, "min_improvement": -1.0, "accept_little_signal": True, "metric": "accuracy"}
        file = self.home.path / "given.jsonl"
        drawn = np.random.default_rng(5).normal(size=(40, 4))
        records = [
            {**{f"f{i}": float(v) for i, v in enumerate(row)}, "intent": "abc"[n % 3]} for n, row in enumerate(drawn)
        ]
        file.write_text("\n".join(json.dumps(record) for record in records))
        connection = open_database(self.home.database)
        spec = tasks.build_spec(**{**given, **fields})
        tasks.create_task(Store(connection), self.home, spec, model=model, heldout=file, now=self.now)
        connection.close()
        return model

    def key(self):
        return open_targets_key(self.home.path / "offline", PASSPHRASE)

    def widen(self, *labels: str, turns: bool = True) -> dict:
        def pause(seconds: float) -> None:
            for _ in range(20 if turns else 0):
                self.turn()

        return widen(
            self.home.path, SimpleNamespace(fleet=FLEET), "churn", list(labels), self.key(),
            wait_s=60.0 if turns else 1.0, clock=lambda: self.now, pause=pause,
        )  # fmt: skip

    def now_training(self) -> bytes:
        return self.home.checkpoint_file(self.service.store.task("churn").checkpoint).read_bytes()

    def labels(self) -> tuple[str, ...]:
        return Schema.from_json(metadata(self.now_training())[SCHEMA_KEY]).label.names


@pytest.fixture
def fleet(tmp_path):
    fleet = Intents(tmp_path / "home")
    fleet.hello_all()
    return fleet


def test_a_task_grows_between_two_rounds_and_goes_on_with_the_same_ledger(fleet):
    fleet.begin(server_optimizer="momentum")
    fleet.run(lambda: fleet.phase(1) == "released")
    fleet.run(lambda: fleet.phase(2) != "none")
    done = fleet.widen("d")
    store = fleet.service.store
    assert fleet.phase(2) == "released", "the open round ended first"
    assert done["labels"] == 4
    assert done["optimizer_dropped"]
    assert fleet.labels() == ("a", "b", "c", "d")
    released = store.last_release("churn")
    assert released[0] == done["version"] == 4
    assert released[2] == done["sha256"] == store.task("churn").checkpoint
    repository = Repository(fleet.home.releases)
    assert repository.latest("churn").sha256 == done["sha256"]
    assert repository.locked_graph("churn")["graph_digest"] == graph_digest(fleet.now_training()).hex()
    fleet.run(lambda: fleet.phase(3) == "released")
    offers = {device.offers["churn", 3][0].length for device in fleet.devices if ("churn", 3) in device.offers}
    assert offers == {4 * 4 + 4}
    assert tasks.rounds_spent(store, "churn") == 3
    fleet.run(lambda: store.task("churn").status == "done")
    assert fleet.labels() == ("a", "b", "c", "d")
    assert sum(b"task-widened" in bytes(entry) for _, entry, _ in audit_log.rows(store.connection)) == 1


def test_late_updates_of_the_shorter_model_are_not_offered_beside_the_longer(fleet):
    fleet.begin(accept_models=3)
    fleet.run(lambda: fleet.phase(2) == "released")
    fleet.widen("d")
    fleet.run(lambda: fleet.phase(3) == "released")
    offer = next(device.offers["churn", 3][0] for device in fleet.devices if ("churn", 3) in device.offers)
    assert len(offer.models) == 1


def test_a_round_that_does_not_end_keeps_the_task_as_it_was(fleet):
    fleet.begin()
    fleet.run(lambda: fleet.phase(1) == "collecting")
    before = fleet.service.store.task("churn")
    with pytest.raises(TaskRefused, match="still open"):
        fleet.widen("d", turns=False)
    after = fleet.service.store.task("churn")
    assert (after.checkpoint, after.status) == (before.checkpoint, "active")
    fleet.run(lambda: fleet.phase(1) == "released")


def test_a_task_that_has_ended_and_one_that_is_not_there_do_not_grow(fleet):
    fleet.begin(rounds=1)
    fleet.run(lambda: fleet.service.store.task("churn").status == "done")
    with pytest.raises(ConfigError, match="has ended"):
        fleet.widen("d")


def test_a_command_that_was_broken_off_after_the_lock_is_ended_by_the_next(fleet, monkeypatch):
    fleet.begin()
    fleet.run(lambda: fleet.phase(1) == "released")
    appended = audit_log.append
    monkeypatch.setattr(audit_log, "append", None)  # the process dies after everything was signed
    with pytest.raises(TypeError):
        fleet.widen("d")
    monkeypatch.setattr(audit_log, "append", appended)
    assert fleet.labels() == ("a", "b", "c")
    version = Repository(fleet.home.releases).latest("churn").version
    assert fleet.widen("d")["version"] == version
    assert fleet.labels() == ("a", "b", "c", "d")
