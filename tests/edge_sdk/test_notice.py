"""The notice for customers is written from what the device verified: it cannot promise a privacy that is not given."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from fleet_of_eight import TASK, FleetOfEight

from edge_sdk.config import Config, ConfigError
from edge_sdk.device_db import open_device_db
from edge_sdk.disclosure import LANGUAGES, notice
from edge_sdk.held_offers import HeldOffers
from edge_sdk.privacy.statement import state
from edge_sdk.protocol import codec
from edge_sdk.protocol.messages import Offer

EVERY = [(unit, placement) for unit in ("record", "customer", "device") for placement in ("local", "shared")]


def offered(
    home: Path, consent: int = 0, number: int = 1, took_part: bool = True, n_min: int = 5, **privacy: object
) -> Offer:
    """A device that has verified an offer with these terms, and uploaded for it or not."""
    fleet = FleetOfEight()
    offer = msgspec.structs.replace(fleet.offer(number, steps=1, **privacy), consent=consent)
    secagg = msgspec.structs.replace(offer.secagg, n_min=n_min, n_max=max(n_min, 8))
    offer = msgspec.structs.replace(offer, secagg=secagg)
    database = open_device_db(home / "device.db")
    HeldOffers(database).hold(fleet.frame(offer), offer, b"roster")
    if took_part:
        database.execute(
            "INSERT INTO outbox (upload, task, round, offer_hash, size, sealed_key, closes_at, state)"
            " VALUES (?, ?, ?, ?, 1, x'', 0, 'accepted')",
            (bytes([number]), TASK, number, codec.offer_hash(fleet.frame(offer))),
        )
    database.close()
    return offer


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("unit", "placement"), EVERY)
def test_it_states_epsilon_with_all_that_belongs_to_it(tmp_path, unit, placement, language):
    offer = offered(tmp_path, consent=7, unit=unit, placement=placement)
    text = notice(Config(home=tmp_path, max_epsilon=6.5), TASK, language)
    promised = state(offer.privacy, offer.length, 1, offer.secagg.n_min)
    assert promised.epsilon is not None
    assert promised.sentence(language) in text
    assert "6.5" in text
    assert "7" in text.replace("6.5", "")
    assert "{" not in text


@pytest.mark.parametrize("language", LANGUAGES)
def test_without_noise_it_promises_nothing(tmp_path, language):
    offered(tmp_path, insecure_without_noise=True, noise_multiplier=0.0)
    text = notice(Config(home=tmp_path), TASK, language)
    assert {"en": "protects nobody", "zh": "不保护任何人"}[language] in text
    assert "epsilon" not in text
    assert "ε" not in text


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_offer_that_was_only_held_changes_no_promise(tmp_path, language):
    offered(tmp_path)
    before = notice(Config(home=tmp_path), TASK, language)
    offered(tmp_path, number=2, took_part=False, n_min=5000, noise_multiplier=900.0)
    offered(tmp_path, number=3, took_part=False, insecure_without_noise=True, noise_multiplier=0.0)
    assert notice(Config(home=tmp_path), TASK, language) == before


def test_of_the_rounds_taken_part_in_the_worst_terms_are_told(tmp_path):
    weak = offered(tmp_path, number=1, noise_multiplier=2.0, n_min=5)
    offered(tmp_path, number=2, noise_multiplier=8.0, n_min=50, consent=4)
    local = offered(tmp_path, number=3, noise_multiplier=3.0, n_min=20, unit="record", placement="local")
    text = notice(Config(home=tmp_path), TASK)
    for offer in (weak, local):
        assert state(offer.privacy, offer.length, 1, offer.secagg.n_min).sentence() in text
    assert "at least 5 devices is opened" in text
    assert "no more than 1 of the 8 devices that open sums together collude" in text
    assert "notice 4" not in text
    offered(tmp_path, number=4, insecure_without_noise=True, noise_multiplier=0.0)
    assert "protects nobody" in notice(Config(home=tmp_path), TASK)


def test_before_the_first_round_the_newest_offer_that_it_may_take_is_told_as_such(tmp_path):
    offered(tmp_path, number=1, took_part=False, n_min=6)
    offered(tmp_path, number=2, took_part=False, n_min=7, insecure_without_noise=True, noise_multiplier=0.0)
    text = notice(Config(home=tmp_path), TASK)
    assert "taken part in no round yet" in text
    assert "at least 6 devices" in text
    assert "at least 7 devices" in notice(Config(home=tmp_path, insecure_without_noise=True), TASK)


@pytest.mark.parametrize(("training", "said"), [(True, False), (False, True)])
def test_it_says_when_training_is_off(tmp_path, training, said):
    assert ("switched off" in notice(Config(home=tmp_path, training=training), TASK)) is said


def test_before_a_model_it_names_the_owners_list_and_no_other_tasks(tmp_path):
    config = Config(home=tmp_path, fields=("churn.minutes", "intent.words"))
    assert "minutes" in notice(config, "churn")
    assert "words" not in notice(config, "churn")
    assert "Nothing is kept" in notice(config, "third")


@pytest.mark.parametrize("entry", ["minutes", ".minutes", "churn.", ""])
def test_a_field_that_names_no_task_is_refused_with_the_remedy(tmp_path, entry):
    with pytest.raises(ConfigError, match=r"task\.field"):
        Config(home=tmp_path, fields=(entry,))
