"""What a person may be told: the notice of a task in plain words, and what is held of one subject. Reads files only.

The notice is written from the signed schema, the device's own settings and the offers that it took part in, by the
worst terms of those; before the first, from the newest offer that its settings allow. So it cannot promise what the
device does not do, and no offer that nobody answered changes it. Refuses a language that it does not speak.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edge_sdk.config import Config

if TYPE_CHECKING:
    from edge_sdk.artifact.schema import Field, Schema
    from edge_sdk.privacy.statement import Language, PrivacyStatement
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
        "hashed": "{name} (a number computed from the word; the word itself is not kept)",
        "series": "{name} (the last {count} values)",
        "sequence": "{name} (the last {count}, of {words} words or 'other')",
        "sequence_hashed": "{name} (the last {count}, as numbers computed from the words)",
        "date": "{name} (the date)", "hour": "{name} (the date and the hour)",
        "text": "{name} (numbers computed from the text; the text itself is not kept)",
        "text_kept": "{name} (the text itself)",
        "windows": "To compare with what was before, the last results of each series are kept too, with their times;"
        " each is erased {days} days after it was recorded.",
        "intervals": "To say between which bounds {label} will lie, how far the last results lay from earlier bounds is"
        " kept too; each is erased {days} days after it was recorded.",
        "how": "It is encrypted, each customer's part under a key of its own, and never leaves this device. It is"
        " erased after {days} days, or sooner where more than {most} examples or {mib} MiB are held.",
        "leaves": "What leaves: the change that training makes to the model, as numbers, under a mask. Nobody, the"
        " operator included, can see one device's change; only the sum over at least {devices} devices is opened, as"
        " long as no more than {corrupt} of the {members} devices that open sums together collude.",
        "leaves_not": "What leaves: nothing so far; this device has taken part in no round of this task's offers.",
        "not_yet": "This device has taken part in no round yet; what follows are the terms of the newest one offered.",
        "private": "How little the sum tells: noise is added so that it tells almost the same with or without any one"
        " {unit}. Of each round: {sentence}. This device takes part no more once it has spent epsilon {budget}.",
        "insecure": "No noise is added to what is learnt. This is set for tests; it protects nobody.",
        "consent": "Only customers who agreed to notice {consent} or a later one are learnt from.",
        "consent_none": "This task does not ask customers for consent; withdrawing works all the same.",
        "asked": "Some rounds ask for figures in place of learning: sums over the examples of many devices, under the"
        " same mask and with noise added alike. Asked so far: {figures}.",
        "asked_off": "Figures are not asked of this device: its owner has switched that off.",
        "moments": "mean and spread of {of}", "histogram": "how {of} is distributed", "words": "shares of {of}",
        "model": "how often the model is right", "label": "what turned out to be right",
        "off": "Training is switched off on this device: nothing is learnt from what is kept.",
        "personal": "This device also adapts the model to what is kept here, for itself alone and without noise. That"
        " never leaves it and is deleted at once when anybody it was learnt from withdraws, but it may show in the"
        " answers that this device gives to others.",
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
        "hashed": "{name}（由词语计算出的数值；词语本身不保存）",
        "series": "{name}（最近 {count} 个数值）",
        "sequence": "{name}（最近 {count} 项，取自 {words} 个固定词语或“其他”）",
        "sequence_hashed": "{name}（最近 {count} 项，由词语计算出的数值）",
        "date": "{name}（日期）", "hour": "{name}（日期和小时）",
        "text": "{name}（由文字计算出的数值；文字本身不保存）",
        "text_kept": "{name}（文字本身）",
        "windows": "为了与以往相比较，每个序列最近的结果及其时间也一并保存；每个结果记录满 {days} 天后删除。",
        "intervals": "为了给出 {label} 的预测区间，最近的结果与以往区间相差多少也一并保存；"
        "每项记录满 {days} 天后删除。",
        "how": "内容经过加密，每位客户使用各自的密钥，绝不离开本设备。"
        "保存 {days} 天后删除；超过 {most} 条或 {mib} MiB 时更早删除。",
        "leaves": "离开本设备的内容：训练对模型造成的改变，以数值形式并加上掩码。"
        "任何人（包括运营方）都看不到单个设备的改变；"
        "只有至少 {devices} 台设备的总和会被打开；"
        "前提是共同打开总和的 {members} 台设备中，串通的不超过 {corrupt} 台。",
        "leaves_not": "离开本设备的内容：目前没有；本设备尚未参加该任务的任何一轮训练。",
        "not_yet": "本设备尚未参加任何一轮训练；以下为最新一轮邀请的条款。",
        "private": "总和能透露多少：其中加入了噪声，无论有没有任何一{unit}，结果几乎相同。"
        "每轮：{sentence}。累计达到 ε = {budget} 后，本设备不再参加。",
        "insecure": "学习结果没有加入噪声。这只用于测试，不保护任何人。",
        "consent": "只从同意了第 {consent} 版或更新版告知书的客户学习。",
        "consent_none": "该任务不征求客户同意；但撤回同样有效。",
        "asked": "有些轮次不学习，而是询问统计数字：即多台设备全部记录的总和，同样加上掩码和噪声。"
        "迄今询问过：{figures}。",
        "asked_off": "本设备的所有者已关闭统计查询：本设备不回答。",
        "moments": "{of}的平均值与离散程度", "histogram": "{of}的分布", "words": "{of}的占比",
        "model": "模型的正确率", "label": "事后确认的正确结果",
        "off": "本设备已关闭训练：不会从所保存的内容中学习。",
        "personal": "本设备还会利用此处保存的数据调整模型，仅供本设备自己使用，不加噪声。调整结果绝不离开本设备；"
        "只要其中任何一位客户撤回，即刻删除；但它可能体现在本设备给其他人的回答中。",
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
    words = _WORDS[language]
    offers, took_part = _offers(config, task)
    how = words["how"].format(
        days=f"{config.retention_days:g}", most=f"{config.max_examples:,}", mib=config.max_store_mib
    )
    lines = [
        words["title"].format(task=task),
        _kept(config, task, words),
        *_windows(config, task, words),
        how,
        *_leaving(offers, took_part, config.max_epsilon, words),
        *_asked(offers if took_part else [], words),
    ]
    if not config.analytics:
        lines.append(words["asked_off"])
    if not config.training or (config.home / "training.off").exists():
        lines.append(words["off"])
    elif config.personalise:
        lines.append(words["personal"])
    return "\n".join([*lines, words["withdraw"]])


def _kept(config: Config, task: str, words: Mapping[str, str]) -> str:
    comma = "、" if words is _WORDS["zh"] else ", "
    schema = _schema(config.home, task)
    if schema is not None:
        dates = [words["hour" if hour else "date"].format(name=name) for name, hour in schema.times.items()]
        fields = comma.join([*(_field(field, words) for field in schema.fields), *dates])
        return words["kept"].format(fields=fields, label=schema.label.name)
    listed = [name for of, _, name in (entry.partition(".") for entry in config.fields) if of == task]
    return words["kept_list"].format(fields=comma.join(listed)) if listed else words["kept_none"]


def _windows(config: Config, task: str, words: Mapping[str, str]) -> list[str]:
    """Said where the SDK may fill a series from the labels that it sees, or fits an interval to them."""
    from edge_sdk.windows import own_fields

    schema = _schema(config.home, task)
    if schema is None:
        return []
    names = ["windows"] if own_fields(schema) else []
    names += ["intervals"] if len(schema.label.quantiles) >= 2 else []
    return [words[name].format(days=f"{config.retention_days:g}", label=schema.label.name) for name in names]


def _field(field: Field, words: Mapping[str, str]) -> str:
    from edge_sdk.artifact.schema import CategoryField, NumberField, SeriesField, TextField

    if isinstance(field, NumberField):
        return words["number"].format(name=field.name)
    if isinstance(field, CategoryField):
        return words["hashed" if field.buckets else "category"].format(name=field.name, count=len(field.vocabulary))
    if isinstance(field, TextField):
        return words["text_kept" if field.keep else "text"].format(name=field.name)
    if isinstance(field, SeriesField):
        return words["series"].format(name=field.name, count=field.window)
    kind = "sequence_hashed" if field.buckets else "sequence"
    return words[kind].format(name=field.name, count=field.last, words=len(field.vocabulary))


def _leaving(offers: list[Offer], took_part: bool, budget: float, words: Mapping[str, str]) -> list[str]:
    """What leaves and how little it tells, by the worst of these offers."""
    if not offers:
        return [words["leaves_not"]]
    corrupt, members = min(_may_collude(offer) for offer in offers)
    devices, consent = min(offer.secagg.n_min for offer in offers), min(offer.consent for offer in offers)
    leaves = words["leaves"].format(devices=devices, corrupt=corrupt, members=members)
    asked = words["consent" if consent else "consent_none"].format(consent=consent)
    before = [] if took_part else [words["not_yet"]]
    return [*before, leaves, *_protected(offers, budget, words), asked]


def _asked(offers: Iterable[Offer], words: Mapping[str, str]) -> list[str]:
    """What the queries that were answered asked for, each thing once."""
    said = [
        words[statistic.kind].format(of=statistic.field or words["label"])
        for offer in offers
        if offer.query is not None
        for statistic in offer.query.statistics
    ]
    comma = "、" if words is _WORDS["zh"] else ", "
    return [words["asked"].format(figures=comma.join(dict.fromkeys(said)))] if said else []


def _may_collude(offer: Offer) -> tuple[int, int]:
    """How many members of the committee may collude, and of how many (SPEC 7.3)."""
    from edge_sdk.protocol.secagg import committee

    plan = committee.plan(len(offer.secagg.committee))
    return plan.corrupt, plan.m


def _protected(offers: list[Offer], budget: float, words: Mapping[str, str]) -> list[str]:
    """A line for each unit and placement, which nobody can rank, with the largest epsilon; one without noise is all."""
    from edge_sdk.privacy.statement import state

    terms = {(offer.privacy, offer.length, offer.secagg.n_min) for offer in offers}
    worst: dict[tuple[str, str], PrivacyStatement] = {}
    for stated in (state(privacy, length, 1, n_min) for privacy, length, n_min in terms):
        if stated.epsilon is None:
            return [words["insecure"]]
        kind = (stated.unit, stated.placement)
        known = worst.get(kind)
        if known is None or known.epsilon is None or (stated.epsilon, stated.against) > (known.epsilon, known.against):
            worst[kind] = stated
    language: Language = "zh" if words is _WORDS["zh"] else "en"
    return [
        words["private"].format(
            unit=words[unit], budget=f"{budget:g}", sentence=worst[unit, placement].sentence(language)
        )
        for unit, placement in sorted(worst)
    ]


def _schema(home: Path, task: str) -> Schema | None:
    from edge_sdk.artifact.names import SCHEMA
    from edge_sdk.artifact.schema import Schema
    from edge_sdk.artifact.weights import metadata
    from edge_sdk.device_status import installed_models

    installed = installed_models(home).get(task)
    if installed is None:
        return None
    return Schema.from_json(metadata(Path(installed["file"]).read_bytes())[SCHEMA])


def _offers(config: Config, task: str) -> tuple[list[Offer], bool]:
    """Those still held of rounds that this device uploaded for, and True; else the newest it may take, and False."""
    from edge_sdk.device_round import check_privacy
    from edge_sdk.held_offers import HeldOffers
    from edge_sdk.protocol.errors import OfferRefused

    path = config.home / "device.db"
    if not path.exists():
        return [], False
    connection = sqlite3.connect(path, timeout=2.0)
    try:
        uploaded = "SELECT round FROM uploaded WHERE task = ? UNION SELECT round FROM outbox WHERE task = ?"
        took_part = {number for (number,) in connection.execute(uploaded, (task, task))}
        rounds = connection.execute("SELECT round FROM offers WHERE task = ? ORDER BY round DESC", (task,)).fetchall()
        held = [found.offer for (number,) in rounds if (found := HeldOffers(connection).of_round(task, number))]
    except sqlite3.OperationalError:  # no such table: it never ran
        return [], False
    finally:
        connection.close()
    if mine := [offer for offer in held if offer.round in took_part]:
        return mine, True
    for offer in held:
        with contextlib.suppress(OfferRefused):
            check_privacy(offer, config)
            return [offer], bool(took_part)  # rounds so long ago that their offers are gone count, too
    return [], False


def rounds_of(path: Path, tasks: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rounds of these tasks that this device uploaded for and that closed after the subject was first seen.

    A subject is not named in a round: his examples may have been drawn for it or not. Of a round that asked for figures
    in place of learning `asked` says which, where its offer is still held.
    """
    if not path.exists():
        return []
    connection = sqlite3.connect(path, timeout=2.0)
    try:
        return [
            {"task": held["task"], "round": number, "state": state, **_query_of(connection, held["task"], number)}
            for held in tasks
            for number, state in connection.execute(
                "SELECT round, state FROM outbox WHERE task = ? AND closes_at >= ? ORDER BY round",
                (held["task"], held["first_at"]),
            )
        ]
    finally:
        connection.close()


def _query_of(connection: sqlite3.Connection, task: str, number: int) -> dict[str, Any]:
    from edge_sdk.held_offers import HeldOffers

    held = HeldOffers(connection).of_round(task, number)
    if held is None or held.offer.query is None:
        return {}
    words, statistics = _WORDS["en"], held.offer.query.statistics
    return {"asked": [words[each.kind].format(of=each.field or words["label"]) for each in statistics]}


def plain(value: Any) -> Any:
    """The same as JSON holds it: bytes as base64, times as ISO 8601."""
    return msgspec.json.decode(msgspec.json.encode(value, enc_hook=str))
