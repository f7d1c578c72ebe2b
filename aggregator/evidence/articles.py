"""What the law asks, article by article, beside what this system does: our own words, in English and in Chinese. Pure.

A help for an assessment, not legal advice. `does` is filled with measured figures (`aggregator.evidence.phrases`);
what a person has to state is in `remains` and is never answered here.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Law = Literal["GDPR", "PIPL"]


class Pair(NamedTuple):
    """The same in both languages, with the same placeholders."""

    en: str
    zh: str


class Article(NamedTuple):
    """One article: what it asks, what the system does about it and measured, what is left to a person."""

    law: Law
    number: str
    title: Pair
    asks: Pair
    does: Pair
    remains: Pair


DISCLAIMER: Final = Pair(
    "This bundle helps whoever writes an assessment. It is not legal advice, and it does not say that the processing is"
    " lawful. Figures are measured by the system itself at the time above; statements in the words of a person are"
    " marked as stated, and what nobody stated is shown in red.",
    "本材料供撰写评估报告的人员参考，不构成法律意见，也不表明有关处理活动合法。"
    "数字由系统在上述时间自行测得；由人员作出的说明均注明为“已说明”，无人说明之处以红色标出。",
)

ARTICLES: Final[tuple[Article, ...]] = (
    Article(
        "GDPR", "5",
        Pair("Principles", "处理原则"),
        Pair(
            "Use data lawfully and openly, for stated purposes, as little as possible, correct, no longer than needed,"
            " securely, and be able to show it.",
            "合法、透明地处理数据，目的明确，数据最少、准确，保存不超过必要期限，确保安全，并能够予以证明。",
        ),
        Pair(
            "Stated purpose: {purpose} Only these fields may be stored on a device, by a schema signed offline: {fields}."
            " {raw_text} Examples never leave the device; what is opened is a sum over at least {n_min} devices"
            " ({cohort}). {audit}",
            "已说明的目的：{purpose}设备只能保存离线签名的模式所列字段：{fields}。{raw_text}"
            "样本从不离开设备；被打开的只是至少 {n_min} 台设备的总和（{cohort}）。{audit}",
        ),
        Pair(
            "Why each field is needed for the purpose, and whether the records are accurate.",
            "每个字段为何对该目的必要，以及记录是否准确。",
        ),
    ),
    Article(
        "GDPR", "6",
        Pair("Lawfulness", "处理的合法性"),
        Pair("Have one of six legal bases for the processing.", "处理须具备六种合法性基础之一。"),
        Pair("Stated basis: {legal_basis}. {consent}", "已说明的依据：{legal_basis}。{consent}"),
        Pair(
            "Why this basis holds here; for legitimate interests, the balance against those of the people concerned.",
            "为何该依据在此成立；如以合法利益为依据，须说明其与数据主体利益的权衡。",
        ),
    ),
    Article(
        "GDPR", "7",
        Pair("Conditions for consent", "同意的条件"),
        Pair(
            "Be able to show that consent was given, and let it be withdrawn as easily as it was given.",
            "能够证明已取得同意，并使撤回与给予同样容易。",
        ),
        Pair(
            "{consent} Each device keeps a dated history of consent by notice version. One call withdraws: the examples"
            " and their key are erased at once, training that used them is cancelled, and unfinished uploads are"
            " dropped on both sides.",
            "{consent}每台设备按告知书版本保存带日期的同意记录。一次调用即可撤回："
            "样本及其密钥立即删除，使用它们的训练被取消，未完成的上传在两端均被丢弃。",
        ),
        Pair(
            "How people are asked, that refusing costs them nothing, and the wording of each notice version.",
            "如何征求同意、拒绝不会带来不利后果，以及各版本告知书的文本。",
        ),
    ),
    Article(
        "GDPR", "13, 14",
        Pair("Information to be given", "应提供的信息"),
        Pair(
            "Tell people who processes what, why, on what basis, for whom, for how long, and which rights they have.",
            "告知数据主体：由谁、处理什么、为何、依据什么、提供给谁、保存多久，以及其享有的权利。",
        ),
        Pair(
            "Every device writes a notice from the signed schema and the terms it verified (`edge-sdk explain`), in"
            " English and Chinese. Stated: controller {controller}; contact {contact}; recipients {recipients};"
            " retention {retention}.",
            "每台设备依据已签名的模式和经核验的条款生成中英文告知书（`edge-sdk explain`）。"
            "已说明：控制者 {controller}；联系方式 {contact}；接收方 {recipients}；保存期限 {retention}。",
        ),
        Pair(
            "That people are in fact shown the notice, and where; the data protection officer's contact.",
            "确实向数据主体展示了告知书及展示地点；数据保护官的联系方式。",
        ),
    ),
    Article(
        "GDPR", "15",
        Pair("Right of access", "查阅权"),
        Pair("Give a person a copy of what is held of them.", "向数据主体提供所持有数据的副本。"),
        Pair(
            "`edge-sdk export SUBJECT` gives all that a device holds of one person, with the consent history and the"
            " rounds that may have used it. The aggregator holds no example and no name: only masked sums, {opened} of"
            " them opened.",
            "`edge-sdk export SUBJECT` 导出设备所持有的某人全部数据，包括同意记录和可能使用过其数据的轮次。"
            "聚合方不持有样本和姓名，只有加掩码的总和，其中 {opened} 个已打开。",
        ),
        Pair("Who answers requests, and how a person is recognised.", "由谁答复请求，以及如何核实身份。"),
    ),
    Article(
        "GDPR", "17",
        Pair("Right to erasure", "删除权"),
        Pair("Erase a person's data on request, where the law gives that right.", "依法应请求删除个人数据。"),
        Pair(
            "`forget` deletes a person's rows and the key that alone opens them, in one transaction. What was summed"
            " before cannot be taken out again; its influence is bounded by the privacy spent: {privacy}",
            "`forget` 在一个事务中删除某人的记录及唯一能打开它们的密钥。"
            "此前已相加的部分无法取出，其影响由已消耗的隐私预算限定：{privacy}",
        ),
        Pair(
            "Backups of device disks, and whether the bounded remainder in a model is acceptable for the purpose.",
            "设备磁盘的备份，以及模型中受限的残余影响对该目的是否可以接受。",
        ),
    ),
    Article(
        "GDPR", "20",
        Pair("Data portability", "数据可携带权"),
        Pair(
            "Give people the data they provided in a common, machine-readable form.",
            "以通用、机器可读的格式提供数据主体所提供的数据。",
        ),
        Pair(
            "The export above is JSON. Free text is given as it is held: hashed features, unless the schema keeps it.",
            "上述导出为 JSON 格式。自由文本按其保存形式提供：除模式规定保留外，为散列特征。",
        ),
        Pair("Whether the right applies under the stated basis.", "在所说明的依据下该权利是否适用。"),
    ),
    Article(
        "GDPR", "21",
        Pair("Right to object", "反对权"),
        Pair("Let people object, and stop unless there are compelling grounds.", "允许数据主体反对；除非有令人信服的理由，否则应停止。"),
        Pair(
            "A withdrawal works as an objection also for tasks that ask nobody: from then on nothing of that person is"
            " recorded or learnt from. A device's owner stops all learning with `edge-sdk training off`.",
            "对不征求同意的任务，撤回同样具有反对的效力：此后不再记录或学习该人的任何数据。"
            "设备所有者可用 `edge-sdk training off` 停止一切学习。",
        ),
        Pair("How an objection reaches the device.", "反对意见如何传达到设备。"),
    ),
    Article(
        "GDPR", "22",
        Pair("Automated decisions", "自动化决策"),
        Pair(
            "Do not let a decision of weight rest on automation alone, but for narrow exceptions.",
            "除少数例外情形外，不得仅凭自动化作出有重大影响的决定。",
        ),
        Pair(
            "The model predicts on the device; an answer carries its score and the version and hash of the model, and"
            " every release has a signed card with its limits.",
            "模型在设备上预测；答案附有得分以及模型的版本和散列，每次发布都有写明局限的签名模型卡。",
        ),
        Pair("What is decided from a prediction, and by whom.", "根据预测决定什么事项，由谁决定。"),
    ),
    Article(
        "GDPR", "25",
        Pair("Data protection by design and by default", "设计保护与默认保护"),
        Pair(
            "Build data protection into the means of processing, and choose the most protective setting by default.",
            "将数据保护融入处理方式，并默认采用最具保护性的设置。",
        ),
        Pair(
            "Noise is on unless it is switched off by name. {privacy} {budget} {protections} Devices judge each offer"
            " by their own limits and refuse what exceeds them.",
            "除非以明示的名称关闭，否则始终加噪。{privacy}{budget}{protections}"
            "设备按自身限额判断每次邀请，超出即拒绝。",
        ),
        Pair("Why this epsilon and this unit suit the risk.", "该 ε 与该保护单元为何与风险相称。"),
    ),
    Article(
        "GDPR", "28",
        Pair("Processors", "受托处理者"),
        Pair(
            "Bind whoever processes on the controller's behalf by contract, and use only those with guarantees.",
            "以合同约束代表控制者处理数据者，且只选用能提供保障者。",
        ),
        Pair(
            "The broker carries sealed, signed messages and holds no key to them. Stated recipients: {recipients}.",
            "消息代理只传送经加密和签名的消息，不持有任何解密密钥。已说明的接收方：{recipients}。",
        ),
        Pair("The contracts with whoever runs broker, hosts and devices.", "与消息代理、主机和设备运营者签订的合同。"),
    ),
    Article(
        "GDPR", "30",
        Pair("Records of processing", "处理活动记录"),
        Pair("Keep a record of the processing activities.", "保存处理活动的记录。"),
        Pair(
            "This bundle holds purpose, fields, recipients, retention and measures. Since the task began: {offered}"
            " rounds offered, {opened} opened, {aborted} aborted. {releases} {audit}",
            "本材料载明目的、字段、接收方、保存期限和措施。任务开始以来：提出 {offered} 轮，打开 {opened} 轮，"
            "中止 {aborted} 轮。{releases}{audit}",
        ),
        Pair("Names of joint controllers, representative and officer.", "共同控制者、代表及保护官的名称。"),
    ),
    Article(
        "GDPR", "32",
        Pair("Security of processing", "处理安全"),
        Pair(
            "Take measures that fit the risk: encryption, resilience, recovery, and regular tests of all of it.",
            "采取与风险相称的措施：加密、韧性、恢复能力，并定期测试。",
        ),
        Pair(
            "Mutual TLS and one topic subtree a device; every message signed; uploads sealed to a round key (X-Wing,"
            " AES-256-GCM) and masked; examples encrypted under a key of each person. {round_keys} {devices} {tests}",
            "双向 TLS，每台设备一个主题子树；每条消息均签名；上传内容以轮次密钥封装（X-Wing、AES-256-GCM）并加掩码；"
            "样本以每人独立的密钥加密。{round_keys}{devices}{tests}",
        ),
        Pair(
            "Who may enter the host, where offline keys lie, backups, and when recovery was last tried.",
            "谁可进入主机、离线密钥存放何处、备份情况，以及上次演练恢复的时间。",
        ),
    ),
    Article(
        "GDPR", "33",
        Pair("Notification of a breach", "数据泄露通知"),
        Pair("Tell the authority of a personal data breach within 72 hours.", "在 72 小时内向监管机构报告个人数据泄露。"),
        Pair(
            "Alarms in the audit log: {alarms}. A revoked device is refused at its next message; devices revoked:"
            " {revoked}.",
            "审计日志中的警报：{alarms}。被吊销的设备在下一条消息即被拒绝；已吊销设备数：{revoked}。",
        ),
        Pair("Who watches the alarms, and who notifies.", "由谁监看警报，由谁通知。"),
    ),
    Article(
        "GDPR", "35",
        Pair("Data protection impact assessment", "数据保护影响评估"),
        Pair(
            "Before processing with high risk: describe it, weigh need and proportion, assess risks, name measures.",
            "在高风险处理之前：予以描述，权衡必要性与相称性，评估风险，并列明措施。",
        ),
        Pair(
            "Described, with measured figures, in this bundle; the risks that remain are under “Threats”. {privacy}"
            " {device_ledger}",
            "本材料以实测数字作出描述；剩余风险见“威胁”一节。{privacy}{device_ledger}",
        ),
        Pair(
            "The judgement itself, by {dpia_owner}, with the advice of the officer and the views of people concerned.",
            "评估结论本身，由 {dpia_owner} 在听取保护官及相关人员意见后作出。",
        ),
    ),
    Article(
        "PIPL", "6",
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
        "PIPL", "7",
        Pair("Openness", "公开透明"),
        Pair("Publish the rules, purpose, manner and scope of processing.", "公开处理规则，明示处理的目的、方式和范围。"),
        Pair(
            "The device's notice is written from what is signed, so it cannot promise what is not done; the signed model"
            " card goes with every release. {releases}",
            "设备上的告知书依据已签名的内容生成，不会承诺未做之事；每次发布均附签名的模型卡。{releases}",
        ),
        Pair("Where the rules are published.", "处理规则在何处公开。"),
    ),
    Article(
        "PIPL", "13",
        Pair("Legal basis", "合法性基础"),
        Pair("Have consent or another of the listed grounds.", "取得个人同意或符合法律所列其他情形之一。"),
        Pair("Stated basis: {legal_basis}. {consent}", "已说明的依据：{legal_basis}。{consent}"),
        Pair(
            "Why it applies. Legitimate interests are no ground under this law.",
            "适用理由。请注意“合法利益”不是本法规定的依据。",
        ),
    ),
    Article(
        "PIPL", "14",
        Pair("Valid consent", "有效同意"),
        Pair(
            "Consent is informed, free and explicit; ask again when purpose, manner or kind of data changes.",
            "同意应由个人在充分知情的前提下自愿、明确作出；目的、方式或种类变更的，应当重新取得同意。",
        ),
        Pair(
            "{consent} A higher notice version in the task makes every device leave out whoever has not agreed to it.",
            "{consent}任务提高告知书版本后，设备会自动排除尚未同意新版本的人。",
        ),
        Pair("The notices themselves, and separate consent where the law wants it.", "告知书文本，以及依法需要的单独同意。"),
    ),
    Article(
        "PIPL", "15, 16",
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
        "PIPL", "17",
        Pair("Notification", "告知义务"),
        Pair(
            "Tell people truly and plainly: name and contact, purpose, manner, kinds, retention, and how to use rights.",
            "真实、准确、完整地以清晰易懂的语言告知：名称和联系方式，处理目的、方式、种类、保存期限，及行使权利的方式。",
        ),
        Pair(
            "Stated: {controller}; contact {contact}; retention {retention}. `edge-sdk explain --language zh` writes the"
            " rest.",
            "已说明：{controller}；联系方式 {contact}；保存期限 {retention}。其余由 `edge-sdk explain --language zh` 生成。",
        ),
        Pair("Where the notice is shown.", "告知书的展示地点。"),
    ),
    Article(
        "PIPL", "24",
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
        Pair("What is decided, how it is explained, and a check for unfair differences.", "决定何事、如何说明，以及对不合理差别的检查。"),
    ),
    Article(
        "PIPL", "38–40",
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
        "PIPL", "44–47",
        Pair("Rights of individuals: to know, copy, correct, delete", "个人权利：知情、查阅复制、更正、删除"),
        Pair(
            "Let people know and decide, have copies and transfers, correct, and have data deleted, also when consent is"
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
        "PIPL", "51",
        Pair("Internal management and security", "内部管理与安全措施"),
        Pair(
            "Have rules, classification, encryption and de-identification, access rights, training and incident plans.",
            "制定制度和规程，分类管理，采取加密、去标识化等措施，确定操作权限，开展培训并制定应急预案。",
        ),
        Pair("{round_keys} {devices} {protections} {tests}", "{round_keys}{devices}{protections}{tests}"),
        Pair("Rules, training and the incident plan of the organisation.", "本组织的制度、培训和应急预案。"),
    ),
    Article(
        "PIPL", "54",
        Pair("Compliance audits", "合规审计"),
        Pair("Audit regularly whether processing follows the law.", "定期对处理活动的合规情况进行审计。"),
        Pair(
            "{audit} Heads of the log are witnessed by the devices, so that it cannot be cut or rewritten unnoticed.",
            "{audit}日志头由各设备见证，因此无法在不被察觉的情况下截断或改写。",
        ),
        Pair("Who audits, and when last.", "由谁审计，上次审计的时间。"),
    ),
    Article(
        "PIPL", "55",
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
        "PIPL", "56",
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
        "PIPL", "57",
        Pair("Leaks and remedies", "泄露事件的补救与通知"),
        Pair(
            "On a leak: remedy at once, and tell the authority and the people concerned what, why and what to do.",
            "发生或可能发生泄露的，应立即补救，并通知监管部门和个人。",
        ),
        Pair("Alarms in the audit log: {alarms}. Devices revoked: {revoked}.", "审计日志中的警报：{alarms}。已吊销设备数：{revoked}。"),
        Pair("Who watches the alarms, and who notifies.", "由谁监看警报，由谁通知。"),
    ),
)  # fmt: skip

MEASURES: Final[tuple[Pair, ...]] = (
    Pair(
        "Secure aggregation: uploads are masked; a committee opens nothing but a sum over at least n_min devices.",
        "安全聚合：上传内容加掩码；委员会只能打开至少 n_min 台设备的总和。",
    ),
    Pair(
        "Differential privacy, charged before an upload leaves, in the same transaction; devices and aggregator keep a"
        " ledger each and compare them.",
        "差分隐私：在上传离开之前的同一事务中记账；设备与聚合方各有账本并相互核对。",
    ),
    Pair(
        "Releases under TUF with offline root (2 of 3) and targets keys; the graph of a model is locked offline.",
        "按 TUF 发布，根密钥（三取二）与目标密钥离线保存；模型的计算图由离线密钥锁定。",
    ),
    Pair(
        "Mutual TLS, one topic subtree a device, every message signed and checked against the registry.",
        "双向 TLS，每台设备一个主题子树，每条消息均签名并与登记核对。",
    ),
    Pair(
        "Round keys are deleted after the round; committee keys change daily.",
        "轮次密钥在轮次结束后删除；委员会密钥每日更换。",
    ),
    Pair(
        "Examples encrypted at rest, a key for each person, erased by key and row.",
        "样本静态加密，每人一个密钥，按密钥和记录删除。",
    ),
    Pair(
        "An audit log that is hash-chained, signed, and witnessed by devices.",
        "审计日志采用散列链，经签名并由设备见证。",
    ),
)

THREATS: Final[tuple[Pair, ...]] = (
    Pair(
        "Broker and network may be malicious: they can drop messages, not read or forge them.",
        "消息代理和网络可能是恶意的：可丢弃消息，但不能读取或伪造。",
    ),
    Pair(
        "The aggregator may lie and collude with some committee members and devices; it learns sums alone, while the"
        " mask holds.",
        "聚合方可能说谎，并与部分委员会成员和设备合谋；只要掩码成立，它只能得知总和。",
    ),
    Pair(
        "Malicious devices can spoil a round or bend a model; groups with a robust average and the gate limit that.",
        "恶意设备可能破坏轮次或使模型偏移；分组稳健平均与门槛对此加以限制。",
    ),
    Pair(
        "A stolen device is revoked and refused at its next message; its encrypted examples are as safe as its disk.",
        "被盗设备经吊销后在下一条消息即被拒绝；其加密样本的安全取决于磁盘。",
    ),
    Pair(
        "Not covered: one person on several devices or in several tasks is counted by each on its own; traffic analysis;"
        " copies of a device's disk made earlier; fairness. Designed to resist a malicious server; not audited.",
        "未涵盖：同一人在多台设备或多个任务中由各处分别计算；流量分析；此前制作的设备磁盘副本；公平性。"
        "按抵御恶意服务器设计；未经第三方审计。",
    ),
)
