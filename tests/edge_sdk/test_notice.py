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

EVERY = [(unit, placement) for unit in ("record", "customer", "device") for placement in ("local", "shared")]


def offered(home: Path, consent: int = 0, **privacy: object):
    """A device that has verified one offer with these terms."""
    fleet = FleetOfEight()
    offer = msgspec.structs.replace(fleet.offer(steps=1, **privacy), consent=consent)
    database = open_device_db(home / "device.db")
    HeldOffers(database).hold(fleet.frame(offer), offer, b"roster")
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
