"""The articles of the GDPR, (EU) 2016/679, that an assessment of federated learning touches. Pure."""

from __future__ import annotations

from typing import Final

from aggregator.evidence.articles import Article, Pair

ARTICLES: Final[tuple[Article, ...]] = (
    Article(
        "GDPR",
        "5",
        Pair("Principles", "处理原则"),
        Pair(
            "Use data lawfully and openly, for stated purposes, as little as possible, correct, no longer than needed,"
            " securely, and be able to show it.",
            "合法、透明地处理数据，目的明确，数据最少、准确，保存不超过必要期限，确保安全，并能够予以证明。",
        ),
        Pair(
            "Stated purpose: {purpose} Only these fields may be stored on a device, by a schema signed offline:"
            " {fields}."
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
        "GDPR",
        "6",
        Pair("Lawfulness", "处理的合法性"),
        Pair("Have one of six legal bases for the processing.", "处理须具备六种合法性基础之一。"),
        Pair("Stated basis: {legal_basis}. {consent}", "已说明的依据：{legal_basis}。{consent}"),
        Pair(
            "Why this basis holds here; for legitimate interests, the balance against those of the people concerned.",
            "为何该依据在此成立；如以合法利益为依据，须说明其与数据主体利益的权衡。",
        ),
    ),
    Article(
        "GDPR",
        "7",
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
        "GDPR",
        "13, 14",
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
        "GDPR",
        "15",
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
        "GDPR",
        "17",
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
        "GDPR",
        "20",
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
        "GDPR",
        "21",
        Pair("Right to object", "反对权"),
        Pair(
            "Let people object, and stop unless there are compelling grounds.",
            "允许数据主体反对；除非有令人信服的理由，否则应停止。",
        ),
        Pair(
            "A withdrawal works as an objection also for tasks that ask nobody: from then on nothing of that person is"
            " recorded or learnt from. A device's owner stops all learning with `edge-sdk training off`.",
            "对不征求同意的任务，撤回同样具有反对的效力：此后不再记录或学习该人的任何数据。"
            "设备所有者可用 `edge-sdk training off` 停止一切学习。",
        ),
        Pair("How an objection reaches the device.", "反对意见如何传达到设备。"),
    ),
    Article(
        "GDPR",
        "22",
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
        "GDPR",
        "25",
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
        "GDPR",
        "28",
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
        "GDPR",
        "30",
        Pair("Records of processing", "处理活动记录"),
        Pair("Keep a record of the processing activities.", "保存处理活动的记录。"),
        Pair(
            "This bundle holds purpose, fields, recipients, retention and measures. Since the task began: {offered}"
            " rounds offered, {opened} opened, {aborted} aborted (a sum that was read and then refused is in both)."
            " {releases} {audit}",
            "本材料载明目的、字段、接收方、保存期限和措施。任务开始以来：提出 {offered} 轮，打开 {opened} 轮，"
            "中止 {aborted} 轮（已读取但随后被拒绝的总和同时计入两者）。{releases}{audit}",
        ),
        Pair("Names of joint controllers, representative and officer.", "共同控制者、代表及保护官的名称。"),
    ),
    Article(
        "GDPR",
        "32",
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
        "GDPR",
        "33",
        Pair("Notification of a breach", "数据泄露通知"),
        Pair(
            "Tell the authority of a personal data breach within 72 hours.", "在 72 小时内向监管机构报告个人数据泄露。"
        ),
        Pair(
            "Alarms in the audit log: {alarms}. A revoked device is refused at its next message; devices revoked:"
            " {revoked}.",
            "审计日志中的警报：{alarms}。被吊销的设备在下一条消息即被拒绝；已吊销设备数：{revoked}。",
        ),
        Pair("Who watches the alarms, and who notifies.", "由谁监看警报，由谁通知。"),
    ),
    Article(
        "GDPR",
        "35",
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
)
