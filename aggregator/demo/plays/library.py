"""What the operator of `intents` answers: a public library, made up, whose desk says where a question belongs.

Written for the demo, by topic, in English and Chinese; the corpus' own replies are to one question each and fit no
other. What cannot be known of a library that is none (shelves, floors, counters) is invented.
"""

from __future__ import annotations

from typing import Final

ANSWERS: Final = {
    "ai": (
        "I am a programme on this desk. I recognise what a question is about and answer from the library's own list. "
        "Books on artificial intelligence: shelf 006, second floor.",
        "我是这台服务台上的程序：识别您的问题属于哪一类，再按图书馆的答案回答。人工智能图书：二楼 TP18 架。",
    ),
    "botprofile": (
        "I am the library's desk. I have no age and no family; I know the shelves and the opening hours.",
        "我是图书馆的服务台，没有年龄，也没有家人；我熟悉书架和开放时间。",
    ),
    "coding": (
        "Programming books are on shelf 005, second floor. The code club helps on Wednesdays at 17:00, room 2.",
        "编程图书在二楼 TP31 架。编程小组每周三 17 点在 2 号室。",
    ),
    "conversations": (
        "Good day! What are you looking for: a book, a film, a room, or a colleague of mine?",
        "您好！您想找书、电影、自习室，还是找工作人员？",
    ),
    "emotion": (
        "I am a machine and feel nothing. If you would like to talk to somebody: a colleague is at counter 1.",
        "我是机器，没有感情。如果您想找人聊聊，1 号柜台有同事。",
    ),
    "literature": (
        "Novels stand by author on the first floor, poetry beside them. Reserve what is out at counter 2.",
        "小说在一楼，按作者排列，旁边是诗歌。已借出的书可在 2 号柜台预约。",
    ),
    "money": (
        "Books on money and business: shelf 332, second floor. A library card is free; what is late costs 1 a week.",
        "经济与理财图书：二楼 F 架。办证免费，逾期每周收 1 元。",
    ),
    "movies": (
        "Films are on the ground floor, sorted by title; two may be taken for a week. New ones are at the entrance.",
        "电影光盘在底层，按片名排列，可借两张，一周归还。新片在入口处。",
    ),
    "politics": (
        "Newspapers and books on politics and law: reading room, ground floor. The desk itself takes no side.",
        "报纸和政治、法律图书在底层阅览室。服务台本身不持立场。",
    ),
    "psychology": (
        "Books on psychology: shelf 150, second floor. If it was about me: counter 1 takes complaints.",
        "心理学图书：二楼 B84 架。如果您对我有意见，请找 1 号柜台的同事。",
    ),
    "science": (
        "Science is on the second floor, shelves 500 to 599; encyclopaedias may be read there and not taken home.",
        "自然科学在二楼 N 至 Q 架；百科全书仅供馆内阅览。",
    ),
    "sports": (
        "Books and magazines on sport: ground floor, shelf 796.",
        "体育图书和杂志：底层 G8 架。",
    ),
    "trivia": (
        "One for the encyclopaedias: second floor, shelf 030, or a computer beside it. Quiz night: Fridays, 19:00.",
        "这个问题请查百科全书：二楼 Z 架，或用旁边的电脑。知识竞赛：每周五 19 点。",
    ),
}  # fmt: skip
HANDOVER: Final = {
    "en": "One moment, please: a librarian will be with you.",
    "zh": "请稍候，图书馆员马上过来。",
}
