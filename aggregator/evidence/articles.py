"""What an article of the evidence is, and the texts about the whole: our own words, in English and in Chinese. Pure.

A help for an assessment, not legal advice. The articles are in `gdpr` and `pipl`. `does` is filled with measured
figures (`aggregator.evidence.phrases`); what a person has to state is in `remains` and is never answered here.
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
        "Not covered: one person on several devices or in several tasks is counted by each on its own"
        " (with shared noise, k devices of one person cost the epsilon of a noise k times smaller);"
        " traffic analysis;"
        " copies of a device's disk made earlier; fairness. Designed to resist a malicious server; not audited.",
        "未涵盖：同一人在多台设备或多个任务中由各处分别计算（分摊噪声下，同一人的 k 台设备相当于噪声缩小到 1/k）；"
        "流量分析；此前制作的设备磁盘副本；公平性。"
        "按抵御恶意服务器设计；未经第三方审计。",
    ),
)
