"""A home whose task was learnt by an in-process fleet: rounds, releases, ledgers and log are real, devices are not."""

from __future__ import annotations

from pathlib import Path

import msgspec
from small_fleet import FLEET, SmallFleet

from aggregator.about import About, Words
from aggregator.config import Config, save

STATED = About(
    purpose=Words(
        "Tell early which customers are about to leave, so that somebody calls them.",
        "及早发现即将流失的客户，以便主动联系。",
    ),
    legal_basis="consent",
    controller="Acme <script>alert(1)</script> & Sons",
    contact="privacy@acme.example",
    retention_days=90,
    recipients=("Acme Retail", "Host Ltd"),
)


def trained_home(path: Path, *, rounds: int = 2, devices: int = 6, about: About = STATED, **fields: object) -> Path:
    """The home's path. The fleet's clock stood in 2027 while it ran."""
    fleet = SmallFleet(path, count=devices)
    fleet.task(rounds=rounds, about=msgspec.to_builtins(about), **fields)
    fleet.hello_all()
    fleet.run(lambda: any(row.number == rounds and row.secret is None for row in fleet.rounds()))
    fleet.service._connection.close()
    save(path, Config(fleet=FLEET, host="127.0.0.1", bind="127.0.0.1", port=1, enrol_port=2, broker="auto"))
    return path
