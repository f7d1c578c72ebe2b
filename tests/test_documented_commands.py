"""Every command that README and docs show is one that the programs take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import aggregator.cli
import edge_sdk.cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PARSERS = {"aggregator": aggregator.cli._parser, "edge-sdk": edge_sdk.cli._parser}
ELIDED = "NAME --model FILE"


def words_of(line: str) -> list[str]:
    """As a shell would split it, without comment and redirection."""
    words = shlex.split(line.replace("…", ELIDED), comments=True)
    return words[: words.index(">")] if ">" in words else words


def shown() -> list[tuple[str, str]]:
    """(page, command): lines of blocks whole; a command in a sentence, if without options, may lack arguments."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        spans = re.findall(r"`((?:aggregator|edge-sdk) [^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
        found += [(page.name, line) for line in lines if line.split(" ")[0] in PARSERS]
        found += [(page.name, span if " --" in span else f"{span} --help") for span in spans]
    return found


def refused(line: str) -> str:
    """What the program says against it; empty where nothing."""
    program, *rest = words_of(line)
    try:
        PARSERS[program]().parse_args(rest)
    except SystemExit as left:
        return "" if left.code == 0 else f"exit {left.code}"
    except Exception as error:  # each program has its own error for wrong usage, and any other is a failure as well
        return str(error) or type(error).__name__
    return ""


def test_every_documented_command_parses(capsys: pytest.CaptureFixture[str]) -> None:
    commands = shown()
    assert len(commands) > 30
    assert {page for page, _ in commands} >= {"README.md", "operating.md", "audit.md", "evidence.md"}
    wrong = [f"{page}: {line}: {said}" for page, line in commands if (said := refused(line))]
    capsys.readouterr()
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        "aggregator task create churn --model m.onnx --target-epsilon 6",
        "aggregator frobnicate --help",
        "edge-sdk export",
    ],
)
def test_a_command_that_no_program_takes_is_noticed(line: str) -> None:
    assert refused(line)
