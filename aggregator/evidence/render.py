"""The bundle as one page of HTML a language: no script, nothing fetched, fit for print and for a phone. Pure.

Every word that comes from outside is escaped; what nobody stated is shown in red.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

from aggregator.evidence import phrases as say
from aggregator.evidence import plots
from aggregator.evidence.articles import DISCLAIMER, MEASURES, THREATS
from aggregator.evidence.phrases import MISSING, Facts, Language, day, figure, minute, pick

ROUNDS_SHOWN: Final = 60
STYLE: Final = """
:root{--ink:#1c2430;--soft:#5b6777;--line:#d9dee6;--tint:#f4f6f9;--main:#1f5fbf;--bad:#b3261e;--good:#1b7a4b}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:60rem;color:var(--ink);background:#fff;
font:16px/1.55 system-ui,"Noto Sans","Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif}
h1{font-size:1.7rem;line-height:1.25;margin:.2rem 0 .4rem}
h2{font-size:1.2rem;margin:2.4rem 0 .6rem;padding-top:.8rem;border-top:2px solid var(--ink)}
h3{font-size:1.02rem;margin:0 0 .35rem}
p{margin:.4rem 0}.soft{color:var(--soft);font-size:.9rem}
.note{background:var(--tint);border-left:4px solid var(--main);padding:.7rem 1rem;margin:1rem 0}
.missing{color:var(--bad);font-style:normal;font-weight:600}
.bad{color:var(--bad);font-weight:600}.good{color:var(--good);font-weight:600}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.6rem;margin:1rem 0}
.figures div{background:var(--tint);padding:.7rem .8rem;border-radius:.4rem}
.figures b{display:block;font-size:1.35rem;line-height:1.2;overflow-wrap:anywhere}
.figures span{color:var(--soft);font-size:.85rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem;margin:.5rem 0}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem .35rem 0;border-bottom:1px solid var(--line)}
th{font-weight:600}thead th{color:var(--soft);font-weight:500;white-space:nowrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
table.pairs th{width:32%}
code{font:.85em/1.4 ui-monospace,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
svg{width:100%;height:auto;display:block;margin:.3rem 0 1rem;font:12px sans-serif}
svg text{fill:var(--soft)}.line{fill:none;stroke:var(--main);stroke-width:2.2}.dot{fill:var(--main)}
.axis{fill:none;stroke:var(--soft)}.grid{stroke:var(--line)}.limit{stroke:var(--bad);stroke-dasharray:5 4}
article{border:1px solid var(--line);border-radius:.4rem;padding:.8rem 1rem;margin:.8rem 0;break-inside:avoid}
article dl{display:grid;grid-template-columns:9rem 1fr;gap:.3rem .9rem;margin:0}
article dt{color:var(--soft);font-size:.9rem}article dd{margin:0;overflow-wrap:anywhere}
@media(max-width:34rem){article dl{grid-template-columns:1fr}article dd{margin-bottom:.4rem}body{font-size:15px}}
@media print{body{max-width:none;padding:0;font-size:10.5pt}.figures div,.note{background:none;border:1px solid #999}
h2{break-after:avoid}tr{break-inside:avoid}}
"""

_WORDS: Final = {
    "title": ("Evidence for the assessment of task {task}", "任务 {task} 的评估材料"),
    "made": ("Fleet {fleet}, made {at}, Chorale {version}", "设备群 {fleet}，生成于 {at}，Chorale {version}"),
    "stated": ("Stated by a person", "由人员说明"),
    "purpose": ("Purpose", "目的"),
    "legal_basis": ("Legal basis", "合法性依据"),
    "controller": ("Controller", "控制者（个人信息处理者）"),
    "contact": ("Contact", "联系方式"),
    "retention": ("Retention on devices", "设备上的保存期限"),
    "recipients": ("Recipients", "接收方"),
    "cross_border": ("Transfers abroad", "跨境提供"),
    "dpia_owner": ("Owner of the assessment", "评估负责人"),
    "limits": ("Known limits", "已知局限"),
    "data": ("Data", "数据"),
    "field": ("Field", "字段"),
    "kind": ("Kind", "种类"),
    "raw": ("Raw text kept", "保留原文"),
    "yes": ("yes", "是"),
    "no": ("no", "否"),
    "label": ("What is learnt", "学习目标"),
    "privacy": ("Privacy spent", "已消耗的隐私预算"),
    "assumptions": ("This rests on:", "前提："),
    "round": ("round", "轮次"),
    "rounds": ("Rounds and cohorts", "轮次与参与规模"),
    "devices": ("devices", "设备数"),
    "budget": ("budget", "预算"),
    "fewest": ("fewest allowed", "允许的最少数量"),
    "opened": ("sums opened", "已打开的轮次"),
    "aborted": ("aborted", "中止"),
    "smallest": ("smallest sum, devices", "最小总和（设备数）"),
    "median": ("median sum, devices", "总和中位数（设备数）"),
    "epsilon": ("epsilon spent", "已消耗 ε"),
    "left": ("epsilon left", "剩余 ε"),
    "audit": ("audit log", "审计日志"),
    "verifies": ("verifies", "校验通过"),
    "broken": ("does not verify", "校验失败"),
    "opened_at": ("opened", "打开日期"),
    "shown_last": ("The newest {n} are shown; all are in evidence.json.", "仅列出最近 {n} 条；全部见 evidence.json。"),
    "releases": ("Releases and who approved", "发布与批准"),
    "version": ("Version", "版本"),
    "when": ("When", "时间"),
    "signed_by": ("Signed by key", "签名密钥"),
    "graph": ("The graph is locked under {digest} by the offline targets key(s) {keys}.",
              "计算图 {digest} 由离线目标密钥 {keys} 锁定。"),
    "no_graph": ("No graph is locked.", "尚未锁定计算图。"),
    "none": ("Nothing yet.", "暂无。"),
    "keys": ("Keys and their life", "密钥及其期限"),
    "role": ("Role", "角色"),
    "needed": ("Signatures needed", "所需签名数"),
    "until": ("Until", "有效期至"),
    "authority": ("Authority (root certificate)", "证书机构（根证书）"),
    "issuing": ("Issuing certificate", "签发证书"),
    "service": ("Certificate of {name}", "{name} 的证书"),
    "aggregator_key": ("Aggregator's signing key", "聚合方签名密钥"),
    "roster_key": ("Authority's roster key", "名册签名密钥"),
    "epoch": ("Committee keys", "委员会密钥"),
    "epoch_said": ("roster epoch {epoch}; changes in the audit log: {changes}; last on {last}",
                   "名册纪元 {epoch}；审计日志中的更换次数：{changes}；最近一次：{last}"),
    "certs": ("Device certificates", "设备证书"),
    "certs_said": ("{active} active devices, the first runs out on {first}; run out: {out}",
                   "有效设备 {active} 台，最早到期 {first}；已到期 {out} 台"),
    "tests": ("Tests of the running version", "运行版本的测试"),
    "passed": ("passed", "通过"),
    "failed": ("FAILED", "失败"),
    "suite": ("Test suite", "测试套件"),
    "suite_said": ("{tests} tests, {failures} failures, {errors} errors, {skipped} skipped; {at}; file {sha256}",
                   "{tests} 项，失败 {failures}，错误 {errors}，跳过 {skipped}；{at}；文件 {sha256}"),
    "suite_missing": ("no result file was given", "未提供结果文件"),
    "log_head": ("Head of the log", "日志头"),
    "alarms": ("Alarms", "警报"),
    "measures": ("Measures", "安全措施"),
    "threats": ("Threats, and what is not covered", "威胁与未涵盖的事项"),
    "articles": ("Article by article", "逐条对照"),
    "asks": ("Asks", "要求"),
    "does": ("Here", "现状"),
    "remains": ("For a person to state", "须由人员说明"),
    "signature": (
        "Signed: see manifest.json and signature.json; `aggregator evidence verify DIR` checks every byte.",
        "已签名：见 manifest.json 与 signature.json；`aggregator evidence verify DIR` 逐字节校验。",
    ),
    "insecure": ("This task runs insecure_without_noise: there is no differential privacy.",
                 "该任务以 insecure_without_noise 方式运行：没有差分隐私。"),
    "GDPR": ("GDPR (EU) 2016/679", "《通用数据保护条例》（欧盟 2016/679）"),
    "PIPL": ("PIPL (China, 2021)", "《中华人民共和国个人信息保护法》"),
    "art": ("Art. {n}", "第 {n} 条"),
}  # fmt: skip


def page(facts: Facts, language: Language) -> str:
    """The whole page."""
    return _Page(facts, language).text()


class _Page:
    def __init__(self, facts: Facts, language: Language) -> None:
        self.facts, self.language = facts, language
        self.said = say.phrases(facts, language)

    def text(self) -> str:
        facts = self.facts
        title = self.word("title", task=facts["task"])
        version = facts["software"]["version"] or facts["software"]["source_sha256"][:16]
        made = self.word("made", fleet=facts["fleet"], at=minute(facts["made_at"]), version=version)
        tag = {"en": "en", "zh": "zh-CN"}[self.language]
        parts = [
            f'<!doctype html>\n<html lang="{tag}"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{self.safe(title)}</title><style>{STYLE}</style></head><body>",
            f'<p class="soft">{self.safe(made)}</p><h1>{self.safe(title)}</h1>',
            f'<p class="note">{self.safe(getattr(DISCLAIMER, self.language))}</p>',
            self._figures(), self._stated(), self._data(), self._privacy(), self._rounds(), self._releases(),
            self._keys(), self._tests(), self._list("measures", MEASURES), self._list("threats", THREATS),
            self._articles(), f'<p class="soft">{self.safe(self.word("signature"))}</p></body></html>\n',
        ]  # fmt: skip
        return "\n".join(parts)

    # -- words

    def word(self, name: str, /, **values: Any) -> str:
        text = pick(_WORDS[name], self.language)
        return text.format(**values) if values else text

    def safe(self, text: Any) -> str:
        """Escaped; what nobody stated in red."""
        missing = escape(say.NOT_STATED[self.language].strip("[]"))
        return escape(str(text)).replace(MISSING, f'<em class="missing">{missing}</em>')

    def heading(self, name: str) -> str:
        return f"<h2>{self.safe(self.word(name))}</h2>"

    def pairs(self, rows: Iterable[tuple[str, Any]]) -> str:
        body = "".join(f"<tr><th>{self.safe(name)}</th><td>{self.safe(value)}</td></tr>" for name, value in rows)
        return f'<table class="pairs">{body}</table>'

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
        """A table; numbers to the right."""
        listed = [list(row) for row in rows]
        kinds = [isinstance(value, int | float) for value in listed[0]] if listed else [False] * len(heads)
        cells = zip(heads, kinds, strict=True)
        head = "".join(f"<th{' class=n' if n else ''}>{self.safe(name)}</th>" for name, n in cells)
        body = "".join(f"<tr>{''.join(self._cell(value) for value in row)}</tr>" for row in listed)
        return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

    def _cell(self, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, int | float):
            text = self.safe(value)
            long = len(str(value)) >= 32 and str(value).isalnum()
            return f"<td>{f'<code>{text}</code>' if long else text}</td>"
        return f'<td class="n">{value:g}</td>' if isinstance(value, float) else f'<td class="n">{value:,}</td>'

    # -- parts

    def _figures(self) -> str:
        rounds, of, ok = self.facts["rounds"], self.facts["privacy"], self.facts["audit"]["ok"]
        epsilon = "–" if of["insecure_without_noise"] else figure(of["spent"])
        shown = [
            (epsilon, "epsilon"), (figure(of["left"]), "left"), (rounds["opened"], "opened"),
            (rounds["aborted"], "aborted"), (figure(rounds["cohorts"]["smallest"]), "smallest"),
            (self.word("verifies" if ok else "broken"), "audit"),
        ]  # fmt: skip
        boxes = "".join(
            f"<div><b>{self.safe(value)}</b><span>{self.safe(self.word(name))}</span></div>" for value, name in shown
        )
        return f'<div class="figures">{boxes}</div>'

    def _stated(self) -> str:
        names = ("purpose", "legal_basis", "controller", "contact", "retention", "recipients", "cross_border")
        rows = [(self.word(name), self.said[name].removesuffix("。" if MISSING in self.said[name] else "\0")
                 .removesuffix("." if MISSING in self.said[name] else "\0"))
                for name in (*names, "dpia_owner")]  # fmt: skip
        if "limits" in self.facts["stated"]:
            rows.append((self.word("limits"), say.stated(self.facts, "limits", self.language)))
        return self.heading("stated") + self.pairs(rows)

    def _data(self) -> str:
        data, yes, no = self.facts["data"], self.word("yes"), self.word("no")
        rows = [
            (field["name"], say.field_kind(field, self.language), yes if field.get("text_kept") else no)
            for field in data["fields"]
        ]
        label = self.pairs([(self.word("label"), f"{data['label']['name']} ({', '.join(data['label']['names'])})")])
        heads = [self.word(name) for name in ("field", "kind", "raw")]
        return self.heading("data") + self.table(heads, rows) + label + self._paragraph(self.said["consent"])

    def _privacy(self) -> str:
        of = self.facts["privacy"]
        if of["insecure_without_noise"]:
            return self.heading("privacy") + f'<p class="bad">{self.safe(self.word("insecure"))}</p>'
        said = of["statement"]
        listed = said.get("assumptions_zh" if self.language == "zh" else "assumptions", [])
        assumptions = "".join(f"<li>{self.safe(line)}</li>" for line in listed)
        points = [(entry["round"], entry["epsilon"]) for entry in of["by_round"]]
        plot = plots.spent(points, of["budget"], (self.word("round"), "ε", self.word("budget")))
        text = "".join(self._paragraph(self.said[name]) for name in ("privacy", "budget", "device_ledger"))
        because = f"<p>{self.safe(self.word('assumptions'))}</p><ul>{assumptions}</ul>" if listed else ""
        return self.heading("privacy") + text + plot + because

    def _rounds(self) -> str:
        rounds, spent = self.facts["rounds"], {e["round"]: e for e in self.facts["privacy"]["by_round"]}
        sums = rounds["cohorts"]["by_sum"]
        points = [(entry["round"], entry["devices"]) for entry in sums]
        plot = plots.sizes(points, rounds["n_min"], (self.word("round"), self.word("devices"), self.word("fewest")))
        none = {"opened_at": None, "epsilon": None}
        rows = [
            (entry["round"], entry["devices"], day(charge["opened_at"]), figure(charge["epsilon"]))
            for entry in sums[-ROUNDS_SHOWN:]
            for charge in [spent.get(entry["round"], none)]
        ]
        heads = [self.word("round"), self.word("devices"), self.word("opened_at"), "ε"]
        note = self._paragraph(self.word("shown_last", n=ROUNDS_SHOWN)) if len(sums) > ROUNDS_SHOWN else ""
        why = ", ".join(f"{reason} ({count})" for reason, count in rounds["aborted_why"].items())
        aborted = self.pairs([(self.word("aborted"), why)]) if why else ""
        table = self.table(heads, rows) if rows else self._paragraph(self.word("none"))
        protections = self._paragraph(self.said["protections"])
        return self.heading("rounds") + protections + plot + table + note + aborted

    def _releases(self) -> str:
        of = self.facts["releases"]
        graph = self.word("no_graph")
        if of["graph"] is not None:
            keys = ", ".join(key[:16] for key in of["graph_locked_by"])
            graph = self.word("graph", digest=of["graph"]["digest"][:16], keys=keys)
        rows = [
            (one["version"], one["round"], minute(one["at"]), figure(one["metric"]), one["sha256"][:16],
             ", ".join(key[:16] for key in one["signed_by"] or ["–"]))
            for one in of["all"]
        ]  # fmt: skip
        heads = [
            self.word("version"),
            self.word("round"),
            self.word("when"),
            of["metric"],
            "SHA-256",
            self.word("signed_by"),
        ]
        table = self.table(heads, rows) if rows else self._paragraph(self.word("none"))
        return self.heading("releases") + table + self._paragraph(graph)

    def _keys(self) -> str:
        keys, devices = self.facts["keys"], self.facts["devices"]
        heads = [self.word("role"), self.word("needed"), self.word("until"), "TUF"]
        roles = [
            (name, f"{role['threshold']} / {len(role['keys'])}", day(role["expires"]), f"v{role['version']}")
            for name, role in keys["releases"].items()
        ]
        epoch, first = keys["epoch_keys"], devices["certificates_run_out_from"]
        out = devices["certificates_run_out"]
        epochs = {"epoch": epoch["roster_epoch"] or "–", "changes": epoch["changes_logged"]}
        rows = [
            (self.word("authority"), f"{keys['authority']['sha256'][:16]}, {day(keys['authority']['until'])}"),
            (self.word("issuing"), day(keys["authority"]["issuing_until"])),
            *((self.word("service", name=name), day(until)) for name, until in keys["services_until"].items()),
            (self.word("aggregator_key"), keys["aggregator_key"]),
            (self.word("roster_key"), keys["roster_key"]),
            (self.word("certs"), self.word("certs_said", active=devices["active"], first=day(first), out=out)),
            (self.word("epoch"), self.word("epoch_said", **epochs, last=day(epoch["last_change"]))),
        ]
        round_keys = self._paragraph(self.said["round_keys"])
        return self.heading("keys") + self.table(heads, roles) + self.pairs(rows) + round_keys

    def _tests(self) -> str:
        tests, log = self.facts["tests"], self.facts["audit"]
        rows = "".join(
            f"<tr><th>{self.safe(say.check_name(check['check'], self.language))}</th>"
            f"<td class={'good' if check['passed'] else 'bad'}>"
            f"{self.safe(self.word('passed' if check['passed'] else 'failed'))}</td></tr>"
            for check in tests["checks"]
        )
        suite = tests["suite"]
        said = (
            self.word("suite_missing")
            if suite is None
            else self.word("suite_said", **{**suite, "at": suite["at"] or "–"})
        )
        alarms = "; ".join(f"{minute(alarm['at'])} {alarm['reason']}" for alarm in log["alarms"][-10:]) or self.word(
            "none"
        )
        more = self.pairs(
            [(self.word("suite"), said), (self.word("log_head"), log["head"]), (self.word("alarms"), alarms)]
        )
        found = "".join(f'<p class="bad">{self.safe(finding)}</p>' for finding in log["findings"][:10])
        table = f'<table class="pairs">{rows}</table>'
        return self.heading("tests") + table + more + self._paragraph(self.said["audit"]) + found

    def _list(self, name: str, pairs: Sequence[Any]) -> str:
        items = "".join(f"<li>{self.safe(getattr(pair, self.language))}</li>" for pair in pairs)
        return f"{self.heading(name)}<ul>{items}</ul>"

    def _articles(self) -> str:
        text, law = self.heading("articles"), ""
        for entry in say.articles(self.facts, self.language):
            if entry["law"] != law:
                law = entry["law"]
                text += f"<p><b>{self.safe(self.word(law))}</b></p>"
            number = self.word("art", n=entry["article"])
            rows = "".join(
                f"<dt>{self.safe(self.word(part))}</dt><dd>{self.safe(entry[part])}</dd>"
                for part in ("asks", "does", "remains")
            )
            text += f"<article><h3>{self.safe(number)} · {self.safe(entry['title'])}</h3><dl>{rows}</dl></article>"
        return text

    def _paragraph(self, text: str) -> str:
        return f"<p>{self.safe(text)}</p>"
