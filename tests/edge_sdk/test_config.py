"""Settings: where they come from, and that a wrong one is named with its remedy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edge_sdk.config import Config, ConfigError, load
from edge_sdk.governor import Governor


def test_arguments_win_over_environment_over_file_over_defaults(tmp_path):
    (tmp_path / "edge.toml").write_text('min_cohort = 7\nmax_epsilon = 2.0\nmin_examples = 9\nunits = ["record"]\n')
    environment = {"EDGE_HOME": str(tmp_path), "EDGE_MAX_EPSILON": "3", "EDGE_MIN_EXAMPLES": "11", "OTHER": "x"}
    config = load(environment, min_examples=13)
    assert (config.min_cohort, config.max_epsilon, config.min_examples) == (7, 3.0, 13)
    assert (config.units, config.heartbeat_s, config.home) == (("record",), 30.0, tmp_path)


def test_text_becomes_the_type_of_the_setting(tmp_path):
    environment = {"EDGE_ACTIVE_HOURS": "20, 6", "EDGE_INSECURE_WITHOUT_NOISE": "no", "EDGE_UNITS": "device"}
    config = load(environment, home=tmp_path)
    assert (config.active_hours, config.insecure_without_noise, config.units) == ((20, 6), False, ("device",))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EDGE_MIN_COHORT", "2"),
        ("EDGE_MIN_COHORT", "many"),
        ("EDGE_MAX_EPSILON", "-1"),
        ("EDGE_MAX_EPSILON", "nan"),
        ("EDGE_UNITS", "household"),
        ("EDGE_ENABLED", "perhaps"),
        ("EDGE_ACTIVE_HOURS", "20"),
        ("EDGE_ACTIVE_HOURS", "20,25"),
        ("EDGE_MAX_EXAMPLES", "0"),
        ("EDGE_EPOCH_KEY_S", "0"),
        ("EDGE_EPOCH_KEY_S", "daily"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, name, value):
    with pytest.raises(ConfigError, match=name.removeprefix("EDGE_").lower()):
        load({name: value}, home=tmp_path)


@pytest.mark.parametrize("text", ["colour = 1\n", "min_cohort = ", "\xff"])
def test_a_file_that_cannot_be_read_or_holds_another_setting_is_refused(tmp_path, text):
    (tmp_path / "edge.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError):
        load({}, home=tmp_path)


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config(home=Path("x")).min_cohort = 3  # type: ignore[misc]


def test_hours_wrap_around_midnight():
    night = Governor((20, 6))
    assert [hour for hour in range(24) if not night.objection(hour)] == [0, 1, 2, 3, 4, 5, 20, 21, 22, 23]
    assert not Governor(None).objection(12)


def test_the_app_has_a_veto_and_a_veto_that_fails_counts():
    governor = Governor(None, lambda: True)
    assert governor.objection(12) == "app-busy"
    governor.veto = lambda: 1 / 0
    assert governor.objection(12) == "veto-failed"
    governor.veto = lambda: 0
    assert governor.objection(12) == ""
