"""What a person may be told: the notice of a task in plain words, and what is held of one subject. Reads files only.

The notice is written from the signed schema, the newest offer that this device verified and its own settings, so it
cannot promise what the device does not do. Refuses a language that it does not speak.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edge_sdk.config import Config

if TYPE_CHECKING:
    from edge_sdk.artifact.schema import Field, Schema
    from edge_sdk.protocol.messages import Offer

LANGUAGES: Final = ("en", "zh")


class DisclosureError(ValueError):
    """The notice cannot be written; the message names the remedy."""


_WORDS: Final[dict[str, dict[str, str]]] = {
    "en": {
        "title": "How this device learns: {task}",
        "kept": "What is kept on this device: {fields}; and, as what turned out to be right, {label}.",
        "kept_list": "What is kept on this device: {fields}; and what turned out to be right.",
        "kept_none": "Nothing is kept yet: no signed model says which fields may be.",
        "number": "{name} (a number)",
        "category": "{name} (one of {count} words, or 'other')",
        "text": "{name} (numbers computed from the text; the text itself is not kept)",
        "text_kept": "{name} (the text itself)",
        "how": "It is encrypted, each customer's part under a key of its own, and never leaves this device. It is"
        " erased after {days} days, or sooner where more than {most} examples or {mib} MiB are held.",
        "leaves": "What leaves: the change that training makes to the model, as numbers, under a mask. Nobody, the"
        " operator included, can see one device's change; only the sum over at least {devices} devices is opened.",
        "leaves_not": "What leaves: nothing so far; this device has taken part in no round of this task's offers.",
        "private": "How little the sum tells: noise is added so that it tells almost the same with or without any one"
        " {unit}. Of each round: {sentence}. This device takes part no more once it has spent epsilon {budget}.",
        "insecure": "No noise is added to what is learnt. This is set for tests; it protects nobody.",
        "consent": "Only customers who agreed to notice {consent} or a later one are learnt from.",
        "consent_none": "This task does not ask customers for consent; withdrawing works all the same.",
        "off": "Training is switched off on this device: nothing is learnt from what is kept.",
        "withdraw": "How to withdraw: tell us, at this device, at any time. Your examples and their key are erased at"
        " once and nothing of you is learnt from then on; what waits to be sent and may contain it is dropped. What was"
        " summed with other devices before cannot be taken out again. You can also ask for a copy of all that is held.",
        "record": "example", "customer": "customer's examples on this device", "device": "device",
    },
    "zh": {
        "title": "本设备如何学习：{task}",
        "kept": "保存在本设备上的内容：{fields}；以及事后确认的正确结果：{label}。",
        "kept_list": "保存在本设备上的内容：{fields}；以及事后确认的正确结果。",
        "kept_none": "目前没有保存任何内容：尚无已签名的模型说明可以保存哪些字段。",
        "number": "{name}（数值）",
        "category": "{name}（{count} 个固定词语之一，或“其他”）",
        "text": "{name}（由文字计算出的数值；文字本身不保存）",
        "text_kept": "{name}（文字本身）",
        "how": "内容经过加密，每位客户使用各自的密钥，绝不离开本设备。"
        "保存 {days} 天后删除；超过 {most} 条或 {mib} MiB 时更早删除。",
        "leaves": "离开本设备的内容：训练对模型造成的改变，以数值形式并加上掩码。"
        "任何人（包括运营方）都看不到单个设备的改变；"
        "只有至少 {devices} 台设备的总和会被打开。",
        "leaves_not": "离开本设备的内容：目前没有；本设备尚未收到该任务的训练邀请。",
        "private": "总和能透露多少：其中加入了噪声，无论有没有任何一{unit}，结果几乎相同。"
        "每轮：{sentence}。累计达到 ε = {budget} 后，本设备不再参加。",
        "insecure": "学习结果没有加入噪声。这只用于测试，不保护任何人。",
        "consent": "只从同意了第 {consent} 版或更新版告知书的客户学习。",
        "consent_none": "该任务不征求客户同意；但撤回同样有效。",
        "off": "本设备已关闭训练：不会从所保存的内容中学习。",
        "withdraw": "如何撤回：随时在本设备上告诉我们即可。您的数据及其密钥立即删除，此后不再从中学习；"
        "等待发送且可能包含它的内容"
        "会被丢弃。此前已与其他设备相加的部分无法再取出。您也可以索取一份所保存全部内容的副本。",
        "record": "条记录", "customer": "位客户在本设备上的记录", "device": "台设备",
    },
}  # fmt: skip


def notice(config: Config, task: str, language: str = "en") -> str:
    """A notice for customers about one task. Raises DisclosureError for a language that is not in LANGUAGES."""
    if language not in _WORDS:
        raise DisclosureError(f"there is no notice in {language!r}; choose from {', '.join(LANGUAGES)}")
    words, offer = _WORDS[language], _newest_offer(config.home / "device.db", task)
    how = words["how"].format(
        days=f"{config.retention_days:g}", most=f"{config.max_examples:,}", mib=config.max_store_mib
    )
    lines = [
        words["title"].format(task=task),
        _kept(config, task, words),
        how,
        *_leaving(offer, config.max_epsilon, words),
    ]
    if not config.training or (config.home / "training.off").exists():
        lines.append(words["off"])
    return "\n".join([*lines, words["withdraw"]])


def _kept(config: Config, task: str, words: Mapping[str, str]) -> str:
    comma = "、" if words is _WORDS["zh"] else ", "
    schema = _schema(config.home, task)
    if schema is not None:
        fields = comma.join(_field(field, words) for field in schema.fields)
        return words["kept"].format(fields=fields, label=schema.label.name)
    listed = [name for of, _, name in (entry.partition(".") for entry in config.fields) if of == task]
    return words["kept_list"].format(fields=comma.join(listed)) if listed else words["kept_none"]


def _field(field: Field, words: Mapping[str, str]) -> str:
    from edge_sdk.artifact.schema import CategoryField, TextField

    if isinstance(field, CategoryField):
        return words["category"].format(name=field.name, count=len(field.vocabulary))
    if isinstance(field, TextField):
        return words["text_kept" if field.keep else "text"].format(name=field.name)
    return words["number"].format(name=field.name)


def _leaving(offer: Offer | None, budget: float, words: Mapping[str, str]) -> list[str]:
    if offer is None:
        return [words["leaves_not"]]
    terms = offer.privacy
    leaves = words["leaves"].format(devices=offer.secagg.n_min)
    consent = words["consent" if offer.consent else "consent_none"].format(consent=offer.consent)
    if terms.insecure_without_noise:
        return [leaves, words["insecure"], consent]
    from edge_sdk.privacy.statement import state

    sentence = state(terms, offer.length, 1, offer.secagg.n_min).sentence("zh" if words is _WORDS["zh"] else "en")
    private = words["private"].format(unit=words[terms.unit], budget=f"{budget:g}", sentence=sentence)
    return [leaves, private, consent]


def _schema(home: Path, task: str) -> Schema | None:
    from edge_sdk.artifact.names import SCHEMA
    from edge_sdk.artifact.schema import Schema
    from edge_sdk.artifact.weights import metadata
    from edge_sdk.device_status import installed_models

    installed = installed_models(home).get(task)
    if installed is None:
        return None
    return Schema.from_json(metadata(Path(installed["file"]).read_bytes())[SCHEMA])


def _newest_offer(path: Path, task: str) -> Offer | None:
    from edge_sdk.held_offers import HeldOffers

    if not path.exists():
        return None
    connection = sqlite3.connect(path, timeout=2.0)
    try:
        return HeldOffers(connection).newest(task)
    except sqlite3.OperationalError:  # no such table: it never ran
        return None
    finally:
        connection.close()


def rounds_of(path: Path, tasks: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rounds of these tasks that this device uploaded for and that closed after the subject was first seen.

    A subject is not named in a round: his examples may have been drawn for it or not.
    """
    if not path.exists():
        return []
    connection = sqlite3.connect(path, timeout=2.0)
    try:
        return [
            {"task": held["task"], "round": number, "state": state}
            for held in tasks
            for number, state in connection.execute(
                "SELECT round, state FROM outbox WHERE task = ? AND closes_at >= ? ORDER BY round",
                (held["task"], held["first_at"]),
            )
        ]
    finally:
        connection.close()


def plain(value: Any) -> Any:
    """The same as JSON holds it: bytes as base64, times as ISO 8601."""
    return msgspec.json.decode(msgspec.json.encode(value, enc_hook=str))
