"""The page's style and its words in (English, Chinese). Data only."""

from __future__ import annotations

from typing import Final

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
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.4rem,1fr));gap:.6rem;margin:1rem 0}
.figures div{background:var(--tint);padding:.7rem .8rem;border-radius:.4rem}
.figures b{display:block;font-size:1.35rem;line-height:1.2;overflow-wrap:anywhere}
.figures span{color:var(--soft);font-size:.85rem}
.scroll{overflow-x:auto}.scroll td{white-space:nowrap;padding-right:1.1rem}
table{border-collapse:collapse;width:100%;font-size:.92rem;margin:.5rem 0}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem .35rem 0;border-bottom:1px solid var(--line)}
th{font-weight:600}thead th{color:var(--soft);font-weight:500;white-space:nowrap}
td{font-variant-numeric:tabular-nums}
table.pairs th{width:32%}table.pairs td{overflow-wrap:anywhere}
code{font:.85em/1.4 ui-monospace,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
svg{width:100%;height:auto;display:block;margin:.3rem 0 1rem;font:13px sans-serif}
svg text{fill:var(--soft)}.line{fill:none;stroke:var(--main);stroke-width:2.2}.dot{fill:var(--main)}
.axis{fill:none;stroke:var(--soft)}.grid{stroke:var(--line)}.limit{stroke:var(--bad);stroke-dasharray:5 4}
article{border:1px solid var(--line);border-radius:.4rem;padding:.8rem 1rem;margin:.8rem 0;break-inside:avoid}
article dl{display:grid;grid-template-columns:9rem 1fr;gap:.3rem .9rem;margin:0}
article dt{color:var(--soft);font-size:.9rem}article dd{margin:0;overflow-wrap:anywhere}
@media(max-width:34rem){article dl{grid-template-columns:1fr}article dd{margin-bottom:.4rem}
body{font-size:15px}svg{font-size:19px}}
@media print{body{max-width:none;padding:0;font-size:10.5pt}.figures div,.note{background:none;border:1px solid #999}
h2{break-after:avoid}tr{break-inside:avoid}}
"""

WORDS: Final = {
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
    "questions": ("Questions (analytics)", "统计查询"),
    "questions_said": ("{asked} asked; {charged} of them opened, and charged to the budget like a round of training",
                       "共询问 {asked} 次；其中 {charged} 次的总和被打开，并与训练轮次一样计入预算"),
    "no_questions": ("none was asked", "从未询问"),
    "question": ("question", "查询"),
    "figures_asked": ("asks", "询问内容"),
    "epsilon_alone": ("ε alone", "单独的 ε"),
    "charged": ("charged", "已计入"),
    "ask_moments": ("mean and spread of {of}", "{of}的平均值与离散程度"),
    "ask_histogram": ("how {of} is distributed", "{of}的分布"),
    "ask_words": ("shares of {of}", "{of}的占比"),
    "ask_model": ("how often the model is right", "模型的正确率"),
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
