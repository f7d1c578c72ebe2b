"""Settings of one device: environment, then edge.toml, then defaults. Reads one file; refuses what it does not know.

The policy part (cohort, epsilon, delta, units, placements, noise) is the device's own word: no offer of an aggregator
can widen it.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

COHORT_FLOOR: Final = 3
UNITS: Final = ("record", "customer", "device")
PLACEMENTS: Final = ("local", "shared")
IDENTITY: Final = "identity"  # folder in the home: the keys and certificates
_PREFIX: Final = "EDGE_"
_POSITIVE: Final = (
    *("max_epsilon", "max_delta", "trainer_timeout_s"),
    *("retention_days", "heartbeat_s", "silence_s", "update_check_s", "epoch_key_s"),
)


class ConfigError(Exception):
    """The only error `init` raises for a wrong setting; the message names the setting and the remedy."""


def default_home() -> Path:
    """Where a device lives when nothing says otherwise."""
    return Path.home() / ".chorale-edge"


@dataclass(frozen=True, slots=True)
class Config:
    """Typed, frozen settings. Times in seconds, sizes in MiB; every field may be set as EDGE_<NAME> or in edge.toml."""

    home: Path = field(default_factory=default_home)
    enabled: bool = True
    # Policy: what this device agrees to.
    min_cohort: int = 5
    max_epsilon: float = 8.0
    max_delta: float = 1e-4
    units: tuple[str, ...] = UNITS
    placements: tuple[str, ...] = PLACEMENTS  # ("local",): what leaves is private by itself, whoever else is honest
    insecure_without_noise: bool = False
    max_honest_share: float = 0.8  # of the smallest cohort: shared noise may count on no more
    min_examples: int = 20
    training: bool = True  # False: this device predicts and updates, and learns nothing (also `edge-sdk training off`)
    analytics: bool = True  # False: this device answers no query (sums of statistics in place of an update)
    # True: this device also trains a version of each model for itself alone, without noise, which never leaves it. Off
    # until its owner says so: what one customer taught such a version may show in its answers to the next.
    personalise: bool = False
    labels_apart: bool = False  # with it: the labels that are recorded here occur on no other device of the fleet
    # Fields that may be kept before a signed schema says so, as "task.field"; afterwards the schema alone decides.
    fields: tuple[str, ...] = ()
    retention_days: float = 90.0
    # Resources.
    max_examples: int = 20_000
    max_store_mib: int = 64
    trainer_memory_mib: int = 4096
    trainer_idle_s: float = 60.0
    trainer_timeout_s: float = 900.0
    max_model_mib: int = 256
    active_hours: tuple[int, int] | None = None
    # Conversation.
    heartbeat_s: float = 30.0
    silence_s: float = 5.0
    update_check_s: float = 3600.0
    # Age at which the epoch key is changed. Shorter: a thief of the disk opens less of the past; every change costs one
    # small message and a place in a new roster, which every device then fetches. Rosters for keys come at most hourly,
    # so below 3600 nothing is gained.
    epoch_key_s: float = 86_400.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "home", Path(self.home).expanduser())
        if self.min_cohort < COHORT_FLOOR:
            raise ConfigError(f"min_cohort is {self.min_cohort}; a sum over fewer than {COHORT_FLOOR} is never safe")
        if not 0 < self.max_honest_share <= 1:
            raise ConfigError(f"max_honest_share is {self.max_honest_share}; set a part above 0, at most 1")
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; set a positive number")
        for name in ("min_examples", "max_examples", "max_store_mib", "trainer_memory_mib", "max_model_mib"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; set at least 1")
        if not self.units or set(self.units) - set(UNITS):
            raise ConfigError(f"units is {self.units}; choose from {', '.join(UNITS)}")
        if not self.placements or set(self.placements) - set(PLACEMENTS):
            raise ConfigError(f"placements is {self.placements}; choose from {', '.join(PLACEMENTS)}")
        if wrong := [entry for entry in self.fields if not all(entry.partition("."))]:
            raise ConfigError(f"fields holds {wrong[0]!r}; write each as task.field, such as churn.minutes")
        if self.active_hours is not None and not all(0 <= hour <= 24 for hour in self.active_hours):
            raise ConfigError(f"active_hours is {self.active_hours}; give two hours from 0 to 24, such as 20,6")


_FIELDS: Final = {f.name: f for f in dataclasses.fields(Config)}


def load(environment: Mapping[str, str] | None = None, **overrides: object) -> Config:
    """Overrides, then EDGE_* variables, then edge.toml in the home, then defaults. Raises ConfigError."""
    environment = os.environ if environment is None else environment
    given: dict[str, object] = dict(_from_environment(environment))
    given.update({name: value for name, value in overrides.items() if value is not None})
    home = Path(str(given.get("home", default_home()))).expanduser()
    merged = {**_from_file(home / "edge.toml"), **given, "home": home}
    unknown = sorted(set(merged) - set(_FIELDS))
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is not a setting; the settings are {', '.join(_FIELDS)}")
    hints = typing.get_type_hints(Config)
    return Config(**{name: _convert(name, value, hints[name]) for name, value in merged.items()})


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    names = {_PREFIX + name.upper(): name for name in _FIELDS}
    return {names[key]: value for key, value in environment.items() if key in names}


def _from_file(path: Path) -> dict[str, object]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}; correct the file or remove it") from error


def _convert(name: str, value: object, hint: Any) -> Any:
    try:
        return _converted(value, hint)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} is {value!r}; expected {getattr(hint, '__name__', hint)}") from error


def _converted(value: object, hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return None if value in (None, "") else _converted(value, typing.get_args(hint)[0])
    if typing.get_origin(hint) is tuple:
        parts = value.split(",") if isinstance(value, str) else list(typing.cast("list[object]", value))
        kinds = typing.get_args(hint)
        if kinds[-1] is not Ellipsis and len(parts) != len(kinds):
            raise ValueError
        return tuple(_converted(part.strip() if isinstance(part, str) else part, kinds[0]) for part in parts)
    if hint is bool:
        return _truth(value)
    if hint is int and isinstance(value, float):
        raise TypeError
    return hint(value)


def _truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    return words[str(value).lower()] if str(value).lower() in words else _not_a_truth()


def _not_a_truth() -> bool:
    raise ValueError
