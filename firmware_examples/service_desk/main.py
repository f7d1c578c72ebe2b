"""A service desk: answers customers from the operator's signed list, or calls a colleague, and learns from that one.

python main.py --home DIR --task intents [--field text] [--subject WHO] [--json-lines]
A line on standard input is a question; "= INTENT" says what the last one was about.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

import edge_sdk

TAUGHT = "= "


def language_of(text: str) -> str:
    """Chinese where one of its characters is there, else English."""
    return "zh" if any("\u4e00" <= letter <= "\u9fff" for letter in text) else "en"


class Desk:
    """One conversation after the other."""

    def __init__(self, fl: edge_sdk.EdgeClient, chosen: argparse.Namespace) -> None:
        self.fl, self.chosen, self.last = fl, chosen, ""

    def hear(self, line: str) -> None:
        """A question, or what a colleague says of the last one."""
        if line.startswith(TAUGHT):
            self.learn(line.removeprefix(TAUGHT).strip())
        elif line:
            self.last = line
            self.answer(line)

    def answer(self, question: str) -> None:
        reply = self.fl.answer(self.chosen.task, question, language=language_of(question))
        if self.chosen.json_lines:
            said = {"question": question, **dataclasses.asdict(reply)}
            print(json.dumps(said, ensure_ascii=False), flush=True)
            return
        print(reply.text, flush=True)
        if reply.handed_over:
            print(f"   to a colleague: {reply.intent} ({reply.confidence:.0%}), {reply.reason}", flush=True)

    def learn(self, intent: str) -> None:
        """An example is kept, encrypted, on this device; the next round learns from it."""
        self.fl.record(self.chosen.task, {self.chosen.field: self.last}, intent, subject=self.chosen.subject)


def main() -> None:
    parser = argparse.ArgumentParser(description="A desk that answers from a signed list, or calls a colleague.")
    parser.add_argument("--home", help="the enrolled device's directory (default: EDGE_HOME)")
    parser.add_argument("--task", required=True)
    parser.add_argument("--field", default="text", help="the text field of the task's schema (default: text)")
    parser.add_argument("--subject", help="who is asking: whose the examples are")
    parser.add_argument("--json-lines", action="store_true")
    chosen = parser.parse_args()
    # Before the first signed model is here, this list says what may be kept; then its schema does.
    with edge_sdk.init(home=chosen.home, fields=(f"{chosen.task}.{chosen.field}",)) as fl:
        desk = Desk(fl, chosen)
        for line in sys.stdin:
            desk.hear(line.strip())
        fl.flush(10.0)


if __name__ == "__main__":
    main()
