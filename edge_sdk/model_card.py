"""The model card on the device: what was signed with the installed model, for people. Reads files only.

The card was verified with the model and lies beside its slot. Refuses to show one for other bytes: a card is found by
the hash of the model in service, and by nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOT_STATED = "not stated"


def read_card(home: Path, task: str) -> dict[str, Any] | None:
    """The card of the model in service, None where there is none or it is about other bytes."""
    from edge_sdk.device_status import installed_models
    from edge_sdk.ota.slots import card_name

    installed = installed_models(home).get(task)
    if installed is None:
        return None
    file = Path(installed["file"]).with_name(card_name(installed["sha256"]))
    try:
        card = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    about = card.get("model") if isinstance(card, dict) else None
    return card if isinstance(about, dict) and about.get("sha256") == installed["sha256"] else None


def lines(card: Mapping[str, Any]) -> list[str]:
    """The card for people, a line each."""
    model, cohorts, said = card["model"], card.get("cohorts", {}), card.get("stated", {})
    fields = ", ".join(_field(field) for field in card["data"]["fields"])
    metrics = card.get("evaluation", {}).get("metrics", {})
    measured = ", ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()))
    text = [
        f"model     {model['task']}: version {model['version']}, round {model['round']}, sha256 {model['sha256']}",
        f"before    {model['lineage'] or 'nothing: the first release'}",
        f"purpose   {_text(said.get('purpose'))}",
        f"answers   {_text(said.get('controller'))}; contact: {_text(said.get('contact'))}",
        f"learns    {card['data']['label']['name']} from {fields}",
        f"privacy   {card['privacy']['sentence']}",
        *(f"          {line}" for line in card["privacy"].get("assumptions", [])),
        f"sums      {cohorts.get('sums')} opened, the smallest of {cohorts.get('smallest')} devices, "
        f"median {cohorts.get('median')}; never fewer than {cohorts.get('n_min')}",
        f"measured  {measured or 'nothing: there were no held-out records'}",
    ]
    return [*text, *(f"limits    {line}" for line in card.get("limits", []))]


def _field(field: Mapping[str, Any]) -> str:
    kept = ", its text kept" if field.get("text_kept") else ""
    return f"{field['name']} ({field['kind']}{kept})"


def _text(said: Any) -> str:
    if isinstance(said, Mapping):
        return " / ".join(str(value) for value in said.values() if value) or NOT_STATED
    return str(said) if said else NOT_STATED
