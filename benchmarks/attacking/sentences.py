"""What customers might write, made up for the attacks, and a vocabulary over it. Read third-party texts by a folder."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt

ENGLISH = (
    "please cancel my second card it was stolen in the hotel on friday",
    "my mother moved to elm street nine and still gets no bill",
    "the doctor says i must stop the contract because of my illness",
    "why was i charged twice for the trip to the clinic in march",
    "i lost my job and cannot pay before the tenth of june",
    "change the phone number of my account to the one of my wife",
    "the technician never came and i waited the whole morning at home",
    "is my daughter still insured when she studies in another country",
    "tell your manager that john at desk four was rude to me",
    "my card stopped working after i entered the wrong code three times",
    "i want the letters sent to the prison address from now on",
    "the heating failed again and my baby is ill because of it",
)
CHINESE = (
    "我的银行卡昨天在医院门口被偷了请马上帮我冻结",
    "上个月的话费多扣了两百元请尽快退给我母亲",
    "我下周要做手术想把套餐暂停三个月可以吗",
    "孩子的名字登记错了身份证后四位也不对",
    "我失业了能不能把贷款推迟到明年春天再还",
    "快递员把包裹放在邻居家结果东西不见了",
    "请把账单寄到我妻子的新地址不要再寄旧地址",
    "客服小王昨天骂了我请经理给我回电话",
    "空调修了四次还是不行我父亲热得住院了",
    "为什么我去诊所那天的车费被收了两遍",
)
VOCABULARY, LONGEST = 2000, 24
Texts = list[list[str]]


def built_in() -> dict[str, Texts]:
    """English in words, Chinese in characters."""
    return {"English": [line.split() for line in ENGLISH], "Chinese": [list(line) for line in CHINESE]}


def read(folder: Path, most: int) -> dict[str, Texts]:
    """Real ones: intents_banking77/banking77.csv.gz (text) and intents_crosswoz_zh/crosswoz.csv.gz (text)."""
    found = {}
    for name, file, cut in (
        ("English, banking77", "intents_banking77/banking77.csv.gz", str.split),
        ("Chinese, crosswoz", "intents_crosswoz_zh/crosswoz.csv.gz", list),
    ):
        with gzip.open(folder / file, "rt", encoding="utf-8") as lines:
            texts = [cut(row["text"].lower())[:LONGEST] for row in csv.DictReader(lines)]
        found[name] = [text for text in texts[:: max(1, len(texts) // most)][:most] if text]
    return found


class Vocabulary:
    """Numbers of words; 0 is padding, and numbers that no text uses are words too."""

    def __init__(self, texts: Texts) -> None:
        words = sorted({word for text in texts for word in text})[: VOCABULARY - 1]
        self._number = {word: place + 1 for place, word in enumerate(words)}
        self._word = {place: word for word, place in self._number.items()}

    def numbers(self, text: list[str]) -> npt.NDArray[np.int64]:
        """int64 [LONGEST]."""
        found = [self._number.get(word, 0) for word in text[:LONGEST]]
        return np.array(found + [0] * (LONGEST - len(found)), np.int64)

    def words(self, numbers: npt.NDArray[np.int64]) -> list[str]:
        """Padding is left out; a word of no text shows as its number."""
        return [self._word.get(int(number), f"<{number}>") for number in numbers if number]
