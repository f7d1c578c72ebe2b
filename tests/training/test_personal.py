"""A device's own version of a model: better where its rows say so surely, the fleet's where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.weights import read_vector, write_vector
from edge_sdk.training.outer import outer
from edge_sdk.training.personal import FEWEST, personalise
from edge_sdk.training.pulled import Directions, Fit, row_loss

torch = pytest.importorskip("torch")
from edge_sdk.training.module import GraphModule  # noqa: E402 - after torch is known to be there

FIELDS = tuple(NumberField(f"x{i}") for i in range(5))
BINARY = Schema(FIELDS, Label("y", "binary", ("no", "yes")))
CLASSES = Schema(FIELDS, Label("y", "classes", ("a", "b", "c")))
NUMBER = Schema(FIELDS, Label("y", "number", quantiles=(0.1, 0.5, 0.9)))


def model(schema: Schema, hidden: list[int], seed: int = 0) -> bytes:
    """With random weights everywhere."""
    data = tabular_classifier(schema, hidden, seed)
    drawn = np.random.default_rng(seed).standard_normal(len(read_vector(data))).astype(np.float32)
    return write_vector(data, drawn, {})


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"features": np.random.default_rng(seed).standard_normal((count, 5)).astype(np.float32)}


def outputs(data: bytes, vector: np.ndarray, features: dict[str, np.ndarray]) -> np.ndarray:
    module = GraphModule(data)
    module.load_vector(vector)
    with torch.no_grad():
        return module({name: torch.from_numpy(array) for name, array in features.items()}).numpy()


@pytest.mark.parametrize("schema", [BINARY, CLASSES, NUMBER], ids=lambda schema: schema.label.kind)
@pytest.mark.parametrize("hidden", [[], [7]])
def test_the_outer_part_is_what_the_outputs_are_a_straight_line_of(schema: Schema, hidden: list[int]):
    data, features = model(schema, hidden), rows(9)
    module = GraphModule(data)
    view = outer(data, module, {name: torch.from_numpy(array) for name, array in features.items()})
    assert view is not None
    assert view.inputs.shape == (9, (hidden or [5])[0] + 1)
    whole, other = module.update_vector(), (view.weights * 2 + 1).astype(np.float32)
    assert np.array_equal(view.vector(whole, view.weights), whole)
    found = outputs(data, view.vector(whole, other), features)
    assert np.allclose(found, view.offset + view.inputs @ other, atol=1e-4)


@pytest.mark.parametrize(("count", "width"), [(40, 6), (30, 90)])
def test_a_fit_is_the_ridge_regression_of_its_rows(count: int, width: int):
    rng = np.random.default_rng(3)
    wide, target = rng.standard_normal((count, width)), rng.standard_normal(count)
    directions = Directions(wide.astype(np.float32))
    fit = Fit(
        directions, torch.zeros(count, 1), torch.from_numpy(target), row_loss("mse", None), torch.ones(count)
    )  # fmt: skip
    for _ in range(5):
        turned = fit.fall(4.0)
    exact = np.linalg.solve(2 * wide.T @ wide + 4.0 * np.eye(width), 2 * wide.T @ target)
    assert np.allclose(directions.weights(turned)[:, 0], exact, atol=2e-3)


def one_hot_rows(count: int, width: int, used: int) -> np.ndarray:
    rng = np.random.default_rng(5)
    made, words = np.zeros((count, width), np.float32), rng.choice(width, used, replace=False)
    made[np.arange(count), words[rng.integers(0, used, count)]] = 1.0
    return made


def test_words_that_a_device_never_saw_do_not_keep_it_from_a_version_of_its_own():
    """Columns of zeros by the hundred: the directions of their singles do not converge."""
    wide = one_hot_rows(4000, 1200, 60)
    wide[:, 0], wide[:, 5] = np.random.default_rng(2).normal(size=4000), 1.0
    directions = Directions(wide)
    assert directions.turned is not directions._rows
    weights = np.random.default_rng(1).normal(size=(1200, 2)).astype(np.float32)
    turned = directions._back(torch.from_numpy(weights))  # any weights of directions are weights of rows
    np.testing.assert_allclose(directions.turned @ torch.from_numpy(weights), wide @ turned.numpy(), atol=1e-4)


def test_rows_whose_directions_cannot_be_found_are_fitted_as_they_are(monkeypatch):
    def lost(*_):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", lost)
    for count, width in ((30, 8), (8, 30)):
        made = one_hot_rows(count, width, 4)
        directions, weights = Directions(made), torch.ones(width, 1)
        np.testing.assert_array_equal(directions.turned, made)
        np.testing.assert_array_equal(directions.weights(weights), weights)


def losses(data: bytes, vector: np.ndarray, features: dict[str, np.ndarray], labels: np.ndarray) -> float:
    logits = outputs(data, vector, features)[:, 0]
    return float(np.mean(np.logaddexp(0, logits) - labels * logits))


def asked(weights: np.ndarray, features: dict[str, np.ndarray], seed: int) -> np.ndarray:
    chance = 1 / (1 + np.exp(-features["features"] @ weights))
    return (np.random.default_rng(seed).random(len(chance)) < chance).astype(np.float32)


def test_a_device_that_differs_from_the_fleet_gets_a_better_version():
    data, truth = tabular_classifier(BINARY, [], 0), np.array([3.0, -2.0, 0, 0, 1.0])
    features, later = rows(300, 1), rows(2000, 2)
    found = personalise(data, features, asked(truth, features, 1))
    assert found.kind != "fleet"
    assert found.loss_personal < found.loss_fleet
    labels = asked(truth, later, 2)
    assert losses(data, found.vector, later, labels) < 0.7 * losses(data, read_vector(data), later, labels)


def test_a_device_like_the_fleet_keeps_the_fleets_weights():
    truth = np.array([3.0, -2.0, 0, 0, 1.0])
    blank = tabular_classifier(BINARY, [], 0)
    data = write_vector(blank, np.append(truth, 0.0).astype(np.float32), {})
    kept = 0
    for seed in range(8):
        features = rows(80, seed)
        found = personalise(data, features, asked(truth, features, seed), seed=seed)
        kept += found.kind == "fleet" and bool(np.array_equal(found.vector, read_vector(data)))
    assert kept >= 7


@pytest.mark.parametrize("count", [0, 1, FEWEST - 1])
def test_few_rows_change_nothing(count: int):
    data = model(BINARY, [])
    features = rows(count)
    found = personalise(data, features, np.ones(count, np.float32))
    assert (found.kind, found.rows) == ("fleet", count)
    assert np.array_equal(found.vector, read_vector(data))


def test_rows_of_few_customers_say_nothing_sure():
    """Two hundred rows of four customers are four units: the same rows of two hundred customers change the weights."""
    data, features = tabular_classifier(BINARY, [], 0), rows(200, 1)
    labels = asked(np.array([3.0, -2.0, 0, 0, 1.0]), features, 1)
    of_few, of_many = np.arange(200) % 4, np.arange(200)
    assert personalise(data, features, labels, subjects=of_few).kind == "fleet"
    assert personalise(data, features, labels, subjects=of_many).kind != "fleet"


def test_one_seed_gives_one_result():
    data, features = tabular_classifier(CLASSES, [4], 0), rows(120, 1)
    labels = (features["features"][:, 0] > 0).astype(np.int64)
    first, second = (personalise(data, features, labels, seed=7) for _ in range(2))
    assert np.array_equal(first.vector, second.vector)
    assert first.kind != "fleet"


def test_layers_beneath_the_outer_part_stay_the_fleets():
    data, features = tabular_classifier(CLASSES, [4], 0), rows(120, 1)
    labels = (features["features"][:, 0] > 0).astype(np.int64)
    found = personalise(data, features, labels).vector
    beneath = 5 * 4 + 4
    assert np.array_equal(found[:beneath], read_vector(data)[:beneath])
    assert not np.array_equal(found[beneath:], read_vector(data)[beneath:])


def test_a_desk_that_sees_three_of_twelve_labels_knows_which_and_keeps_what_the_fleet_knows_of_them():
    """The fleet's model is the best there is for all labels alike; the desk's best is the same over its own labels."""
    rng = np.random.default_rng(8)
    schema = Schema(FIELDS, Label("y", "classes", tuple(f"label{i}" for i in range(12))))
    centres = rng.standard_normal((12, 5))
    weights = np.concatenate([centres.reshape(-1), -(centres**2).sum(1) / 2])
    data = write_vector(tabular_classifier(schema, [], 0), weights.astype(np.float32), {})

    def asked_here(count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        labels = rng.integers(0, 3, count)
        noise = rng.standard_normal((count, 5))
        return {"features": (centres[labels] + noise).astype(np.float32)}, labels.astype(np.int64)

    def right(vector: np.ndarray, some: int = 12) -> float:
        return float((outputs(data, vector, later)[:, :some].argmax(1) == truth).mean())

    features, labels = asked_here(60)
    later, truth = asked_here(4000)
    fleet, found = read_vector(data), personalise(data, features, labels)
    assert found.tau > 0
    assert right(found.vector) > right(fleet) + 0.15
    assert right(found.vector) > right(fleet, some=3) - 0.005, "the best there is for the desk's three labels"


def two_desks(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Six labels, of which the desk has the first two."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 200)
    centres = np.random.default_rng(1).standard_normal((6, 5))
    return {"features": (1.5 * centres[labels] + rng.standard_normal((200, 5))).astype(np.float32)}, labels


SIX = Schema(FIELDS, Label("y", "classes", tuple(f"label{i}" for i in range(6))))


def test_labels_that_occur_nowhere_else_are_learned_from_these_rows_alone():
    """A fleet that leans towards the rows that it saw here looks good on them; its owner knows better."""
    features, labels = two_desks(2)
    start = tabular_classifier(SIX, [], 0)
    flattered = personalise(start, features, labels, apart=True).vector * np.float32(0.9)
    data = write_vector(start, flattered, {})
    found = personalise(data, features, labels, apart=True)
    assert (found.kind, found.alpha, found.tau) == ("own", 1.0, 0.0)
    assert personalise(data, features, labels).kind != "own"


def test_what_these_rows_alone_say_is_not_taken_where_the_fleet_is_right_far_more_often():
    rng = np.random.default_rng(6)
    features = {"features": rng.standard_normal((40, 5)).astype(np.float32)}
    rule = rng.standard_normal((6, 5)) * 4
    labels = (features["features"] @ rule.T).argmax(1).astype(np.int64)
    data = write_vector(tabular_classifier(SIX, [], 0), np.append(rule, np.zeros(6)).astype(np.float32), {})
    assert personalise(data, features, labels, apart=True).kind != "own"


def test_a_shifted_bias_changes_nothing_but_the_bias():
    """Two labels of features that say nothing: only how often each occurs can be learned."""
    data, features = tabular_classifier(BINARY, [], 0), rows(200, 1)
    labels = (np.arange(200) % 10 == 0).astype(np.float32)
    found = personalise(data, features, labels)
    assert (found.kind, found.tau) == ("shifted", 1.0)
    moved = found.vector - read_vector(data)
    assert np.allclose(moved, [0, 0, 0, 0, 0, np.log(20.5 / 180.5)], atol=1e-5)


def test_a_nameless_customer_who_comes_again_is_not_both_learned_from_and_held_out():
    """40 rows of chance, five times each: whoever holds out one of the five finds the other four learned by heart."""
    data = tabular_classifier(BINARY, [], 0)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        features = {"features": np.repeat(rows(40, seed)["features"], 5, axis=0)}
        labels = np.repeat(rng.integers(0, 2, 40), 5).astype(np.float32)
        once = personalise(data, features, labels, seed=seed)
        named = personalise(data, features, labels, seed=seed, subjects=np.repeat(np.arange(40), 5))
        assert once.kind == named.kind, seed
