"""A home whose task was learnt by an in-process fleet: two rounds, two releases, everything real but the devices."""

from __future__ import annotations

from pathlib import Path

from small_fleet import FLEET, SmallFleet

from aggregator.about import About, Words
from aggregator.config import Config, save
from aggregator.tasks import describe_task

STATED = About(
    purpose=Words(
        "Tell early which customers are about to leave, so that somebody calls them.",
        "及早发现即将流失的客户，以便主动联系。",
    ),
    legal_basis="consent",
    controller="Acme <Retail> & Sons",
    contact="privacy@acme.example",
    retention_days=90,
    recipients=("Acme Retail", "Host Ltd"),
)


def trained_home(path: Path, *, rounds: int = 2, devices: int = 6, about: About = STATED, **fields: object) -> Path:
    """The home's path; the fleet's clock stood at 2027 while it ran."""
    fleet = SmallFleet(path, count=devices)
    fleet.task(rounds=rounds, about=about_as_json(about), **fields)
    fleet.hello_all()
    fleet.run(lambda: fleet.phase(rounds) == "released")
    fleet.service._connection.close()
    save(path, Config(fleet=FLEET, host="127.0.0.1", bind="127.0.0.1", port=1, enrol_port=2, broker="auto"))
    return path


def about_as_json(about: About) -> object:
    import msgspec

    return msgspec.to_builtins(about)


__all__ = ["STATED", "describe_task", "trained_home"]
