"""A privacy figure with all that it means nothing without. Every place that shows an epsilon shows it from here. Pure.

A figure alone is refused by having no way to print it: a sentence always names unit, adjacency, delta, accountant,
placement and against whom it holds. Without noise it says that there is no differential privacy.
"""

from __future__ import annotations

import math
from typing import Any, Final, Literal, NamedTuple

from edge_sdk.privacy import charges
from edge_sdk.privacy.accounting import ACCOUNTANT_VERSION
from edge_sdk.protocol.messages import PrivacyTerms

Language = Literal["en", "zh"]
Texts = tuple[str, ...]

OFF: Final = {
    "en": "no differential privacy: the task runs insecure_without_noise",
    "zh": "没有差分隐私：该任务以 insecure_without_noise 方式运行",
}
_UNIT_ZH: Final = {"record": "条记录", "customer": "位客户", "device": "台设备"}


class PrivacyStatement(NamedTuple):
    """What is promised to each unit, against whom, and what that rests on. `epsilon` None: nothing is promised."""

    epsilon: float | None
    delta: float
    unit: str
    adjacency: str
    placement: str
    accountant: str
    against: str
    assumptions: Texts
    rounds: int
    honest: int  # devices that are taken to add their noise; 0 where none need to
    chinese: tuple[str, str, Texts]  # adjacency, against, assumptions

    def sentence(self, language: Language = "en") -> str:
        """One sentence that may stand alone."""
        if self.epsilon is None:
            return OFF[language]
        if language == "zh":
            adjacency, against, _ = self.chinese
            return (
                f"经过 {self.rounds} 轮，对每{_UNIT_ZH[self.unit]}：ε = {self.epsilon:.4g}，δ = {self.delta:g}"
                f"（{adjacency}；{self.accountant}；{_PLACEMENT_ZH[self.placement]}），防范对象：{against}"
            )
        return (
            f"epsilon {self.epsilon:.4g} at delta {self.delta:g} for each {self.unit} after {self.rounds} rounds "
            f"({self.adjacency}; {self.accountant}; {self.placement} noise), against {self.against}"
        )

    def lines(self, language: Language = "en") -> list[str]:
        """The sentence, then one line for each assumption."""
        assumptions = self.chinese[2] if language == "zh" else self.assumptions
        return [self.sentence(language), *assumptions]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; epsilon to four digits after the point."""
        return {
            "epsilon": None if self.epsilon is None else round(self.epsilon, 4),
            "delta": self.delta,
            "unit": self.unit,
            "adjacency": self.adjacency,
            "placement": self.placement,
            "accountant": self.accountant,
            "against": self.against,
            "assumptions": list(self.assumptions),
            "rounds": self.rounds,
            "honest_devices_assumed": self.honest,
            "sentence": self.sentence(),
            "sentence_zh": self.sentence("zh"),
            "assumptions_zh": list(self.chinese[2]),
        }


_PLACEMENT_ZH: Final = {"local": "本地噪声", "shared": "分摊噪声"}


def state(terms: PrivacyTerms, length: int, rounds: int, n_min: int) -> PrivacyStatement:
    """What `rounds` rounds of these terms promise; `n_min`: the smallest cohort that may be opened."""
    twice = charges.epsilon_on_devices(terms, length, rounds, 2)
    return charged(terms, charges.epsilon(terms, length, rounds), rounds, n_min, twice=twice)


def charged(
    terms: PrivacyTerms, epsilon: float | None, rounds: int, n_min: int, *, twice: float | None = None
) -> PrivacyStatement:
    """As `state`, with an epsilon that a ledger has added up from rounds of these terms.

    `twice`: that of a person on two devices, where it is known (charges.epsilon_on_devices).
    """
    promised = epsilon is not None and math.isfinite(epsilon) and not terms.insecure_without_noise
    shared = terms.placement == "shared"
    english, chinese = _assumptions(terms, n_min, twice) if promised else ((), ())
    return PrivacyStatement(
        epsilon=epsilon if promised else None,
        delta=terms.delta,
        unit=terms.unit,
        adjacency=f"one {terms.unit} added or removed",
        placement=terms.placement,
        accountant=accountant(terms),
        against=_against(terms, n_min) if promised else "nobody",
        assumptions=english,
        rounds=rounds,
        honest=terms.honest if shared and promised else 0,
        chinese=(f"增加或删除一{_UNIT_ZH[terms.unit]}", _against_zh(terms, n_min), chinese),
    )


def unplaced(unit: str, delta: float, epsilon: float, rounds: int) -> dict[str, Any]:
    """What a ledger's figure says once the terms it was spent under are gone: no placement, so nobody is named."""
    said = (
        f"epsilon {epsilon:.4g} at delta {delta:g} for each {unit} in {rounds} rounds (one {unit} added or removed; "
        f"Renyi, version {ACCOUNTANT_VERSION}), against whom the offers of those rounds said"
    )
    adjacency, counted = f"one {unit} added or removed", f"Renyi, version {ACCOUNTANT_VERSION}"
    figure = {"epsilon": epsilon, "delta": delta, "unit": unit, "rounds": rounds, "sentence": said}
    return {**figure, "adjacency": adjacency, "accountant": counted, "against": "as the offers of those rounds said"}


def basis(terms: PrivacyTerms, n_min: int) -> str:
    """What must stand beside a figure of these terms, in few words: for texts that say more than one figure."""
    return (
        f"for each {terms.unit}, delta {terms.delta:g}, one {terms.unit} added or removed; {accountant(terms)}; "
        f"{terms.placement} noise, against {_against(terms, n_min)}"
    )


def accountant(terms: PrivacyTerms) -> str:
    """Name and version of what counted."""
    noise = "Skellam" if terms.placement == "shared" or terms.unit == "device" else "Gaussian"
    sampled = "" if terms.unit == "device" else "subsampled "
    return f"Renyi, {sampled}{noise}, version {ACCOUNTANT_VERSION}"


def _against(terms: PrivacyTerms, n_min: int) -> str:
    if terms.placement == "local":
        return "everyone, the aggregator included"
    return (
        "everyone who sees opened sums and models, the aggregator included, by secure aggregation, "
        f"if at least {terms.honest} of the {n_min} or more devices in each sum are honest"
    )


def _against_zh(terms: PrivacyTerms, n_min: int) -> str:
    if terms.placement == "local":
        return "所有人，包括聚合方"
    cohort = f"每次汇总的至少 {n_min} 台设备中至少 {terms.honest} 台诚实"
    return f"所有能看到汇总结果与模型的人，包括聚合方；依靠安全聚合，且{cohort}"


def _assumptions(terms: PrivacyTerms, n_min: int, twice: float | None) -> tuple[Texts, Texts]:
    pairs = [_sampling(terms), _carried(terms, n_min)]
    if terms.unit == "customer":
        pairs.append(
            (
                f"at most {terms.per_customer} examples of a customer enter a step on each device",
                f"每步每位客户在每台设备上最多使用 {terms.per_customer} 条样本",
            )
        )
    if terms.unit != "record":
        pairs.append(_several(terms, twice))
    if terms.unit == "record":
        pairs.append(
            (
                "a person with several records is protected for each of them, not for all together",
                "拥有多条记录的人按每条记录受到保护，而非按其全部记录",
            )
        )
    pairs.append(
        (
            "only rounds counted here used these data; predictions on the device and what its owner sees are outside",
            "只有此处计入的轮次使用了这些数据；设备上的预测及设备所有者所见不在范围内",
        )
    )
    return tuple(english for english, _ in pairs), tuple(chinese for _, chinese in pairs)


def _several(terms: PrivacyTerms, twice: float | None) -> tuple[str, str]:
    """What a person pays who is on more than one device: nobody but the devices could tell."""
    if terms.placement == "local":
        return (
            "a person who uses several devices is counted by each of them, and the epsilons add up",
            "在多台设备上的同一人由各设备分别计算，ε 相加",
        )
    english = chinese = ""
    if twice is not None:
        sound = math.isfinite(twice)
        english = f" (two devices: {f'epsilon {twice:.3g}' if sound else 'no bound'}, by the honest devices' noise)"
        chinese = f"（两台设备：{f'ε = {twice:.3g}' if sound else '没有界限'}，按诚实设备的噪声计算）"
    return (
        "a person who uses k devices adds to the same sum k times: its sensitivity is k-fold, and epsilon that of a "
        f"noise k times smaller, as a rule more than k times as large{english}",
        "使用 k 台设备的人向同一汇总贡献 k 次：灵敏度为 k 倍，"
        f"ε 相当于噪声缩小到 1/k 时的值，通常超过 ε 的 k 倍{chinese}",
    )


def _sampling(terms: PrivacyTerms) -> tuple[str, str]:
    if terms.unit == "device":
        return (
            "no amplification by sampling is claimed: every device may take part in every round",
            "不主张抽样放大：每台设备都可能参加每一轮",
        )
    return (
        f"each {terms.unit} is drawn into a step with probability {terms.sample_rate:g}, independently and with secret "
        "randomness of the device (Poisson sampling)",
        f"每{_UNIT_ZH[terms.unit]}以概率 {terms.sample_rate:g} 独立进入每一步，由设备的保密随机数决定（泊松抽样）",
    )


def _carried(terms: PrivacyTerms, n_min: int) -> tuple[str, str]:
    if terms.placement == "shared":
        return (
            f"the noise of {terms.honest} devices carries the whole guarantee: up to {n_min - terms.honest} of {n_min} "
            "may add none and tell what they know; the mask must hold until the sum is opened",
            f"{terms.honest} 台设备的噪声即可承担全部保证：{n_min} 台中至多 {n_min - terms.honest} 台可以不加噪声"
            "并泄露其所知；掩码须保持到汇总打开为止",
        )
    if terms.unit == "device":
        return (
            "the device adds the whole noise, in integers, before anything leaves it",
            "设备在任何数据离开之前以整数形式加入全部噪声",
        )
    return (
        "the device adds the whole noise in training; it is drawn in floating point and counted as if it were exact",
        "设备在训练中加入全部噪声；噪声以浮点数抽取，并按精确值计算",
    )
