"""Settings of one aggregator: AGGREGATOR_* variables, then aggregator.toml in its home, then defaults.

Refuses a setting that it does not know, a value of the wrong kind, and a home that `aggregator init` did not make.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aggregator.errors import AggregatorError
from aggregator.fleet.files import write_private
from edge_sdk.protocol import topics

FILE: Final = "aggregator.toml"
HOME_VARIABLE: Final = "AGGREGATOR_HOME"
PREFIX: Final = "AGGREGATOR_"
DEFAULT_HOME: Final = "aggregator-home"
BROKERS: Final = ("auto", "mosquitto", "nats")
LARGEST_PORT: Final = 65_535


class ConfigError(AggregatorError):
    """A setting is missing, unknown or wrong."""


@dataclass(frozen=True, slots=True)
class Config:
    """Typed, frozen settings. `host` is what devices connect to; `bind` the address that the listeners take.

    Ports are TCP ports; the broker listens on `port`, enrolment on `enrol_port`.
    """

    fleet: str
    host: str = "127.0.0.1"
    bind: str = "127.0.0.1"
    port: int = 8883
    enrol_port: int = 8884
    broker: str = "auto"

    def __post_init__(self) -> None:
        if not topics.is_name(self.fleet):
            raise ConfigError(f"fleet {self.fleet!r} is not a name", "use 1 to 48 of a-z, 0-9 and '-'")
        for name in ("port", "enrol_port"):
            if not 1 <= getattr(self, name) <= LARGEST_PORT:
                raise ConfigError(f"{name} is {getattr(self, name)}", f"give a port from 1 to {LARGEST_PORT}")
        if self.port == self.enrol_port:
            raise ConfigError(f"port and enrol_port are both {self.port}", "give two different ports")
        if self.broker not in BROKERS:
            raise ConfigError(f"broker is {self.broker!r}", f"choose from {', '.join(BROKERS)}")


_FIELDS: Final = {field.name: field for field in dataclasses.fields(Config)}


def home_directory(given: str | None, environment: Mapping[str, str] = os.environ) -> Path:
    """The home: what was given, else AGGREGATOR_HOME, else ./aggregator-home."""
    return Path(given or environment.get(HOME_VARIABLE) or DEFAULT_HOME).expanduser().absolute()


def load(home: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """Read the settings of a home. Raises ConfigError."""
    names = {PREFIX + name.upper(): name for name in _FIELDS}
    given: dict[str, Any] = {names[key]: value for key, value in environment.items() if key in names}
    merged = _from_file(home / FILE) | given
    unknown = sorted(set(merged) - set(_FIELDS))
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is not a setting", f"the settings are {', '.join(_FIELDS)}")
    if "fleet" not in merged:
        raise ConfigError(f"{home / FILE} names no fleet", 'add the line: fleet = "…"')
    return Config(**{name: _convert(name, value) for name, value in merged.items()})


def save(home: Path, config: Config) -> None:
    """Write aggregator.toml. A JSON string or number is a TOML one too."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in dataclasses.asdict(config).items()]
    write_private(home / FILE, ("\n".join(lines) + "\n").encode())


def _from_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = f"run `aggregator init {path.parent}`, or name another home with --home or {HOME_VARIABLE}"
        raise ConfigError(f"{path.parent} is no aggregator's home", hint) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", "correct the file") from error


def _convert(name: str, value: Any) -> Any:
    if _FIELDS[name].type != "int":
        return str(value)
    try:
        return int(str(value))
    except ValueError:
        raise ConfigError(f"{name} is {value!r}", "give a whole number") from None
