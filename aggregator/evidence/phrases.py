"""The collected facts as phrases in English and Chinese, for the articles' placeholders. Pure.

What nobody stated becomes MISSING, one private character, so that every form of the bundle shows it in its own way.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Literal

from aggregator.evidence import gdpr, pipl
from aggregator.evidence.articles import Article

Language = Literal["en", "zh"]
LANGUAGES: Final[tuple[Language, ...]] = ("en", "zh")
MISSING: Final = "\ue000"
NOT_STATED: Final = {"en": "[not stated]", "zh": "[未说明]"}
KEEP_YEARS: Final = 3
ARTICLES: Final = (*gdpr.ARTICLES, *pipl.ARTICLES)
Facts = dict[str, Any]

_BASIS: Final = {
    "consent": ("consent", "个人同意"),
    "contract": ("performance of a contract", "履行合同所必需"),
    "legitimate-interests": ("legitimate interests", "合法利益"),
    "legal-obligation": ("a legal obligation", "履行法定义务"),
    "not-personal": ("the data are stated not to be personal", "声明所处理的数据不属于个人信息"),
}
_KIND: Final = {"number": ("number", "数值"), "category": ("category", "类别"), "text": ("text", "文本")}
_UNIT: Final = {"record": ("record", "条记录"), "customer": ("customer", "位客户"), "device": ("device", "台设备")}
_CHECK: Final = {
    "secure-aggregation-known-answer": ("known-answer test of secure aggregation", "安全聚合已知答案测试"),
    "database-integrity": ("integrity of the database", "数据库完整性"),
    "ledger-adds-up": ("the ledger adds up, round by round", "账本逐轮相符"),
    "releases-are-what-was-signed": ("served releases are what was signed", "所提供的发布与签名一致"),
}


def day(seconds: float | None) -> str:
    """ISO date in UTC; a dash for never."""
    return "–" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def minute(seconds: float) -> str:
    """ISO date and minute in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def figure(value: float | None) -> str:
    """Four digits; a dash for nothing."""
    return "–" if value is None else f"{value:.4g}"


def pick(pair: tuple[str, str], language: Language) -> str:
    """One side of (English, Chinese)."""
    return pair[1] if language == "zh" else pair[0]


def stated(facts: Facts, name: str, language: Language) -> str:
    """What a person stated in this field, else MISSING."""
    value = facts["stated"].get(name)
    if isinstance(value, dict):
        value = value.get(language) or next(iter(value.values()), "")
    if isinstance(value, list):
        value = pick(("; ", "；"), language).join(value) or pick(("nobody", "无"), language)
    return str(value) if value not in (None, "") else MISSING


def check_name(name: str, language: Language) -> str:
    """A self-test in words."""
    return pick(_CHECK.get(name, (name, name)), language)


def field_kind(field: Facts, language: Language) -> str:
    """A field's kind in words."""
    return pick(_KIND[field["kind"]], language)


def phrases(facts: Facts, language: Language) -> dict[str, str]:
    """Every placeholder of the articles."""
    said = {name: stated(facts, name, language) for name in ("controller", "contact", "recipients", "dpia_owner")}
    return {
        **said,
        "purpose": _sentence(stated(facts, "purpose", language), language),
        "cross_border": _sentence(stated(facts, "cross_border", language), language),
        "legal_basis": _legal_basis(facts, language),
        "retention": _retention(facts, language),
        "fields": _fields(facts, language),
        "raw_text": _raw_text(facts, language),
        "consent": _consent(facts, language),
        "n_min": str(facts["rounds"]["n_min"]),
        "offered": str(facts["rounds"]["offered"]),
        "opened": str(facts["rounds"]["opened"]),
        "aborted": str(facts["rounds"]["aborted"]),
        "cohort": cohort(facts, language),
        "privacy": privacy(facts, language),
        "budget": budget(facts, language),
        "device_ledger": device_ledger(facts, language),
        "releases": _releases(facts, language),
        "audit": audit(facts, language),
        "alarms": str(len(facts["audit"]["alarms"])),
        "revoked": str(facts["devices"]["revoked"]),
        "round_keys": _round_keys(facts, language),
        "devices": _devices(facts, language),
        "protections": protections(facts, language),
        "tests": _tests(facts, language),
        "keep_until": _keep_until(facts["made_at"]),
    }


def filled(article: Article, said: dict[str, str], language: Language) -> dict[str, str]:
    """One article in one language, its figures filled in."""
    texts = {"title": article.title, "asks": article.asks, "does": article.does, "remains": article.remains}
    whole = {name: getattr(pair, language).format_map(said).strip() for name, pair in texts.items()}
    return {"law": article.law, "article": article.number, **whole}


def articles(facts: Facts, language: Language) -> list[dict[str, str]]:
    """Every article in one language."""
    said = phrases(facts, language)
    return [filled(article, said, language) for article in ARTICLES]


def _sentence(text: str, language: Language) -> str:
    ends = "。.!?！？"
    return text if text[-1:] in ends else text + pick((".", "。"), language)


def _keep_until(made_at: int) -> str:
    made = datetime.fromtimestamp(made_at, UTC)
    return f"{made.year + KEEP_YEARS}-{made.month:02d}-{min(made.day, 28):02d}"


def _legal_basis(facts: Facts, language: Language) -> str:
    basis = facts["stated"].get("legal_basis")
    if basis is None:
        return MISSING
    note = stated(facts, "legal_basis_note", language)
    said = pick(_BASIS[basis], language)
    return said if note == MISSING else said + pick((f" ({note})", f"（{note}）"), language)


def _retention(facts: Facts, language: Language) -> str:
    days = facts["stated"].get("retention_days")
    return MISSING if days is None else pick((f"{days} days", f"{days} 天"), language)


def _fields(facts: Facts, language: Language) -> str:
    listed = [f"{field['name']} ({field_kind(field, language)})" for field in facts["data"]["fields"]]
    label = facts["data"]["label"]["name"]
    if language == "zh":
        return "、".join(listed) + f"；以及事后确认的结果 {label}"
    return ", ".join(listed) + f"; and what turned out to be right, {label}"


def _raw_text(facts: Facts, language: Language) -> str:
    texts = [field for field in facts["data"]["fields"] if field["kind"] == "text"]
    if not texts:
        return pick(("No field is free text.", "没有自由文本字段。"), language)
    kept = [field["name"] for field in texts if field.get("text_kept")]
    if not kept:
        return pick(("Free text is kept as hashed features only.", "自由文本只以散列特征形式保存。"), language)
    names = ", ".join(kept)
    return pick((f"The raw text is kept of: {names}.", f"以下字段保留原文：{names}。"), language)


def _consent(facts: Facts, language: Language) -> str:
    offered = [one for one in facts["consent"]["offered"] if one["version"]]
    if not offered and not facts["consent"]["required"]:
        return pick(("The task asks nobody for consent.", "该任务不征求同意。"), language)
    if not offered:
        version = facts["consent"]["required"]
        return pick((f"Notice {version} is required; nothing was offered yet.", f"要求同意第 {version} 版告知书；尚未提出任何轮次。"), language)  # fmt: skip # noqa: E501 - the pair stays together
    if language == "zh":
        parts = [f"第 {one['version']} 版自 {day(one['first_offered'])} 起用于 {one['rounds']} 轮" for one in offered]
        return f"仅从同意者学习；告知书版本：{'，'.join(parts)}。"
    parts = [f"version {one['version']} from {day(one['first_offered'])} in {one['rounds']} rounds" for one in offered]
    return f"Only people who agreed are learnt from; notices: {', '.join(parts)}."


def cohort(facts: Facts, language: Language) -> str:
    """Sizes of the opened sums."""
    sizes = facts["rounds"]["cohorts"]
    if not sizes["sums"]:
        return pick(("no sum was opened yet", "尚未打开任何总和"), language)
    low, middle, high = sizes["smallest"], f"{sizes['median']:g}", sizes["largest"]
    return pick(
        (
            f"measured: smallest {low}, median {middle}, largest {high}",
            f"实测：最小 {low}，中位数 {middle}，最大 {high}",
        ),
        language,
    )


def privacy(facts: Facts, language: Language) -> str:
    """The statement's sentence, capitalised, with its stop."""
    said = facts["privacy"]["statement"]
    text = str(said.get("sentence_zh", said["sentence"]) if language == "zh" else said["sentence"])
    return _sentence(text[:1].upper() + text[1:], language)


def budget(facts: Facts, language: Language) -> str:
    """Budget and what is left."""
    of = facts["privacy"]
    if of["budget"] is None:
        return pick(("No budget is set.", "未设预算。"), language)
    whole, left = figure(of["budget"]), figure(of["left"])
    return pick(
        (f"The budget is epsilon {whole}, of which {left} is left; no round may exceed it.",
         f"预算为 ε = {whole}，尚余 {left}；任何一轮均不得超出。"),
        language,
    )  # fmt: skip


def device_ledger(facts: Facts, language: Language) -> str:
    """What devices were charged, without naming any."""
    ledger = facts["devices"]["ledger"]
    if not ledger["devices_charged"]:
        return pick(("No device was charged yet.", "尚无设备被记账。"), language)
    count, high, middle = ledger["devices_charged"], figure(ledger["largest"]), figure(ledger["median"])
    limit, differ = ledger["at_limit"], ledger["differences_standing"]
    return pick(
        (f"{count} devices were charged, at most epsilon {high} each (median {middle}); {limit} could not bear another"
         f" round; {differ} differences between the two sides' ledgers stand.",
         f"{count} 台设备已记账，每台至多 ε = {high}（中位数 {middle}）；{limit} 台无法再承担一轮；"
         f"两端账本之间尚有 {differ} 处差异。"),
        language,
    )  # fmt: skip


def _releases(facts: Facts, language: Language) -> str:
    released = facts["releases"]["all"]
    if not released:
        return pick(("Nothing was released yet.", "尚未发布。"), language)
    last = released[-1]
    return pick(
        (f"{len(released)} releases, the newest version {last['version']} of {day(last['at'])}.",
         f"共发布 {len(released)} 次，最新为 {day(last['at'])} 的第 {last['version']} 版。"),
        language,
    )  # fmt: skip


def audit(facts: Facts, language: Language) -> str:
    """How long the audit log is, and whether it holds."""
    log = facts["audit"]
    if not log["ok"]:
        count = len(log["findings"])
        return pick(
            (f"THE AUDIT LOG DOES NOT VERIFY: {count} findings.", f"审计日志校验失败：{count} 处问题。"), language
        )
    size, signed, seen = log["entries"], log["signed"], log["witnesses"]
    return pick(
        (f"The audit log holds {size} entries, {signed} of them under a signed head, and verifies; {seen} devices"
         " witness it.",
         f"审计日志共 {size} 条，其中 {signed} 条已由签名日志头覆盖，校验通过；{seen} 台设备为其见证。"),
        language,
    )  # fmt: skip


def _round_keys(facts: Facts, language: Language) -> str:
    keys = facts["keys"]["round_keys"]
    return pick(
        (f"Of {keys['ended']} ended rounds the keys of {keys['deleted']} are deleted.",
         f"{keys['ended']} 个已结束轮次中，{keys['deleted']} 个的密钥已删除。"),
        language,
    )  # fmt: skip


def _devices(facts: Facts, language: Language) -> str:
    of = facts["devices"]
    return pick(
        (f"{of['active']} devices are active, {of['revoked']} revoked; certificates live"
         f" {facts['keys']['life_days']['devices']} days.",
         f"{of['active']} 台设备有效，{of['revoked']} 台已吊销；证书有效期"
         f" {facts['keys']['life_days']['devices']} 天。"),
        language,
    )  # fmt: skip


def protections(facts: Facts, language: Language) -> str:
    """Unit, placement of the noise, groups and gates."""
    of = facts["protections"]
    rules = {"mean": ("mean", "平均"), "median": ("median", "中位数"), "trimmed_mean": ("trimmed mean", "截尾平均")}
    rule, unit = pick(rules[of["robust"]], language), pick(_UNIT[of["unit"]], language)
    place = {"local": ("local", "本地"), "shared": ("shared", "分摊"), None: ("default", "默认")}[of["placement"]]
    gate = pick((("on", "off"), ("开启", "关闭"))[language == "zh"], "en" if of["group_gate"] else "zh")
    return pick(
        (f"Protected unit: {unit}; {place[0]} noise; {of['groups']} group(s) a round, combined by {rule}; group gate"
         f" {gate}.",
         f"保护单元：每{unit}；{place[1]}噪声；每轮 {of['groups']} 组，以{rule}合并；分组门槛{gate}。"),
        language,
    )  # fmt: skip


def _tests(facts: Facts, language: Language) -> str:
    checks, suite = facts["tests"]["checks"], facts["tests"]["suite"]
    passed = sum(check["passed"] for check in checks)
    said = pick(
        (f"Self-tests run for this bundle: {passed} of {len(checks)} passed.",
         f"为本材料运行的自检：{len(checks)} 项中 {passed} 项通过。"),
        language,
    )  # fmt: skip
    if suite is None:
        return said
    failed = suite["failures"] + suite["errors"]
    return said + pick(
        (f" Its test suite: {suite['tests']} tests, {failed} failed, {suite['skipped']} skipped.",
         f"测试套件：{suite['tests']} 项，失败 {failed} 项，跳过 {suite['skipped']} 项。"),
        language,
    )  # fmt: skip
