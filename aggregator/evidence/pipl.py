"""The articles of the PIPL (China, 2021) that an assessment of federated learning touches. Pure."""

from __future__ import annotations

from typing import Final

from aggregator.evidence.articles import Article, Pair

ARTICLES: Final[tuple[Article, ...]] = (
    Article(
        "PIPL",
        "6",
        Pair("Purpose and minimisation", "目的明确与最小必要"),
        Pair(
            "Have a clear and reasonable purpose, stay with it, and collect the least that it needs.",
            "处理个人信息应当目的明确、合理，与目的直接相关，并限于实现目的的最小范围。",
        ),
        Pair(
            "Stated purpose: {purpose} Fields: {fields}. {raw_text} Any other field is dropped before it reaches the"
            " disk.",
            "已说明的目的：{purpose}字段：{fields}。{raw_text}其他字段在写入磁盘之前即被丢弃。",
        ),
        Pair("Why each field is necessary.", "各字段的必要性。"),
    ),
    Article(
        "PIPL",
        "7",
        Pair("Openness", "公开透明"),
        Pair(
            "Publish the rules, purpose, manner and scope of processing.", "公开处理规则，明示处理的目的、方式和范围。"
        ),
        Pair(
            "The device's notice is written from what is signed, so it cannot promise what is not done; the"
            " signed model"
            " card goes with every release. {releases}",
            "设备上的告知书依据已签名的内容生成，不会承诺未做之事；每次发布均附签名的模型卡。{releases}",
        ),
        Pair("Where the rules are published.", "处理规则在何处公开。"),
    ),
    Article(
        "PIPL",
        "13",
        Pair("Legal basis", "合法性基础"),
        Pair("Have consent or another of the listed grounds.", "取得个人同意或符合法律所列其他情形之一。"),
        Pair("Stated basis: {legal_basis}. {consent}", "已说明的依据：{legal_basis}。{consent}"),
        Pair(
            "Why it applies. Legitimate interests are no ground under this law.",
            "适用理由。请注意“合法利益”不是本法规定的依据。",
        ),
    ),
    Article(
        "PIPL",
        "14",
        Pair("Valid consent", "有效同意"),
        Pair(
            "Consent is informed, free and explicit; ask again when purpose, manner or kind of data changes.",
            "同意应由个人在充分知情的前提下自愿、明确作出；目的、方式或种类变更的，应当重新取得同意。",
        ),
        Pair(
            "{consent} A higher notice version in the task makes every device leave out whoever has not agreed to it.",
            "{consent}任务提高告知书版本后，设备会自动排除尚未同意新版本的人。",
        ),
        Pair(
            "The notices themselves, and separate consent where the law wants it.",
            "告知书文本，以及依法需要的单独同意。",
        ),
    ),
    Article(
        "PIPL",
        "15, 16",
        Pair("Withdrawal, and no refusal of service", "撤回同意与不得拒绝服务"),
        Pair(
            "Make withdrawal convenient; do not refuse a service because somebody does not agree or withdraws.",
            "提供便捷的撤回方式；不得以个人不同意或者撤回同意为由拒绝提供产品或者服务。",
        ),
        Pair(
            "One call withdraws, at once and also offline; prediction goes on as before for everybody.",
            "一次调用即可撤回，立即生效，离线亦可；对所有人，预测服务照常。",
        ),
        Pair("That the service around it does the same.", "相关业务同样不因此拒绝服务。"),
    ),
    Article(
        "PIPL",
        "17",
        Pair("Notification", "告知义务"),
        Pair(
            "Tell people truly and plainly: name and contact, purpose, manner, kinds, retention, and how to use"
            " rights.",
            "真实、准确、完整地以清晰易懂的语言告知：名称和联系方式，处理目的、方式、种类、保存期限，及行使权利的方式。",
        ),
        Pair(
            "Stated: {controller}; contact {contact}; retention {retention}. `edge-sdk explain --language zh`"
            " writes the"
            " rest.",
            "已说明：{controller}；联系方式 {contact}；保存期限 {retention}。其余由 `edge-sdk explain --language"
            " zh` 生成。",
        ),
        Pair("Where the notice is shown.", "告知书的展示地点。"),
    ),
    Article(
        "PIPL",
        "24",
        Pair("Automated decision-making", "自动化决策"),
        Pair(
            "Keep it transparent and fair, without unreasonable differences in price; explain decisions of weight.",
            "保证决策透明和结果公平、公正，不得在交易价格等方面实行不合理的差别待遇；重大影响的决定应予说明。",
        ),
        Pair(
            "Every answer names its model's version and hash; the signed card states data, measured quality and limits."
            " Fairness between groups is not measured by the system.",
            "每个答案均标明模型版本和散列；签名的模型卡载明数据、实测质量和局限。系统不测量群体之间的公平性。",
        ),
        Pair(
            "What is decided, how it is explained, and a check for unfair differences.",
            "决定何事、如何说明，以及对不合理差别的检查。",
        ),
    ),
    Article(
        "PIPL",
        "38–40",
        Pair("Providing data abroad", "跨境提供"),
        Pair(
            "Before personal information goes abroad: assessment, certification or standard contract, separate consent,"
            " and storage at home where thresholds are met.",
            "向境外提供个人信息须通过安全评估、认证或订立标准合同，取得单独同意；达到规定数量的应在境内存储。",
        ),
        Pair(
            "Examples stay on the device. What travels to the aggregator is masked; what is opened is noised sums and"
            " models. Stated: {cross_border}",
            "样本留在设备上。传往聚合方的内容加有掩码；被打开的是加噪的总和与模型。已说明：{cross_border}",
        ),
        Pair(
            "In which country aggregator, broker and devices stand, and whether what travels counts as personal"
            " information.",
            "聚合方、消息代理和设备位于何国，以及所传内容是否属于个人信息。",
        ),
    ),
    Article(
        "PIPL",
        "44–47",
        Pair("Rights of individuals: to know, copy, correct, delete", "个人权利：知情、查阅复制、更正、删除"),
        Pair(
            "Let people know and decide, have copies and transfers, correct, and have data deleted, also when"
            " consent is"
            " withdrawn or the retention is over.",
            "个人有权知情、决定、查阅、复制、转移、更正、补充和要求删除；撤回同意或保存期限届满时应主动删除。",
        ),
        Pair(
            "On the device: explain, export as JSON, withdraw, forget; retention is swept hourly. Stated retention:"
            " {retention}. A wrong example is erased and recorded anew.",
            "在设备上：说明、以 JSON 导出、撤回、删除；每小时清理到期数据。已说明的保存期限：{retention}。"
            "错误的样本删除后重新记录。",
        ),
        Pair("Who answers requests, and within which time.", "由谁在多长时间内答复请求。"),
    ),
    Article(
        "PIPL",
        "51",
        Pair("Internal management and security", "内部管理与安全措施"),
        Pair(
            "Have rules, classification, encryption and de-identification, access rights, training and incident plans.",
            "制定制度和规程，分类管理，采取加密、去标识化等措施，确定操作权限，开展培训并制定应急预案。",
        ),
        Pair("{round_keys} {devices} {protections} {tests}", "{round_keys}{devices}{protections}{tests}"),
        Pair("Rules, training and the incident plan of the organisation.", "本组织的制度、培训和应急预案。"),
    ),
    Article(
        "PIPL",
        "54",
        Pair("Compliance audits", "合规审计"),
        Pair("Audit regularly whether processing follows the law.", "定期对处理活动的合规情况进行审计。"),
        Pair(
            "{audit} Heads of the log are witnessed by the devices, so that it cannot be cut or rewritten unnoticed.",
            "{audit}日志头由各设备见证，因此无法在不被察觉的情况下截断或改写。",
        ),
        Pair("Who audits, and when last.", "由谁审计，上次审计的时间。"),
    ),
    Article(
        "PIPL",
        "55",
        Pair("When an impact assessment is due", "应当进行影响评估的情形"),
        Pair(
            "Assess beforehand: sensitive information, automated decisions, entrusting others, transfers abroad, other"
            " weighty effects.",
            "处理敏感个人信息、自动化决策、委托处理或对外提供、跨境提供及其他有重大影响的，应事前评估并记录。",
        ),
        Pair("Stated owner of the assessment: {dpia_owner}.", "已说明的评估负责人：{dpia_owner}。"),
        Pair("Which of the cases applies here.", "本处理属于何种情形。"),
    ),
    Article(
        "PIPL",
        "56",
        Pair("Content of the assessment, kept three years", "评估内容与三年保存"),
        Pair(
            "Cover lawfulness and need, effects and risks, and whether measures are fit; keep the report at least three"
            " years.",
            "评估应包括合法性与必要性、对个人权益的影响及安全风险、保护措施是否有效；报告和记录至少保存三年。",
        ),
        Pair(
            "{privacy} {device_ledger} This bundle is signed; keep it with the report until at least {keep_until}.",
            "{privacy}{device_ledger}本材料已签名；请与评估报告一并至少保存至 {keep_until}。",
        ),
        Pair("The assessment's judgement.", "评估结论。"),
    ),
    Article(
        "PIPL",
        "57",
        Pair("Leaks and remedies", "泄露事件的补救与通知"),
        Pair(
            "On a leak: remedy at once, and tell the authority and the people concerned what, why and what to do.",
            "发生或可能发生泄露的，应立即补救，并通知监管部门和个人。",
        ),
        Pair(
            "Alarms in the audit log: {alarms}. Devices revoked: {revoked}.",
            "审计日志中的警报：{alarms}。已吊销设备数：{revoked}。",
        ),
        Pair("Who watches the alarms, and who notifies.", "由谁监看警报，由谁通知。"),
    ),
)
