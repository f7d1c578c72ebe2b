"""The bundle as one page of HTML a language: no script, nothing fetched, fit for print and for a phone. Pure.

Every word that comes from outside is escaped; what nobody stated is shown in red.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

from aggregator.evidence import phrases as say
from aggregator.evidence import plots
from aggregator.evidence.articles import DISCLAIMER, MEASURES, THREATS
from aggregator.evidence.page_words import STYLE, WORDS
from aggregator.evidence.phrases import MISSING, Facts, Language, day, figure, minute, pick

ROUNDS_SHOWN: Final = 60


def page(facts: Facts, language: Language) -> str:
    """The whole page."""
    return _Page(facts, language).text()


class _Page:
    def __init__(self, facts: Facts, language: Language) -> None:
        self.facts, self.language = facts, language
        self.said = say.phrases(facts, language)

    def text(self) -> str:
        facts = self.facts
        title = self.word("title", task=facts["task"])
        version = facts["software"]["version"] or facts["software"]["source_sha256"][:16]
        made = self.word("made", fleet=facts["fleet"], at=minute(facts["made_at"]), version=version)
        tag = {"en": "en", "zh": "zh-CN"}[self.language]
        parts = [
            f'<!doctype html>\n<html lang="{tag}"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{self.safe(title)}</title><style>{STYLE}</style></head><body>",
            f'<p class="soft">{self.safe(made)}</p><h1>{self.safe(title)}</h1>',
            f'<p class="note">{self.safe(getattr(DISCLAIMER, self.language))}</p>',
            self._figures(), self._stated(), self._data(), self._privacy(), self._rounds(), self._releases(),
            self._keys(), self._tests(), self._list("measures", MEASURES), self._list("threats", THREATS),
            self._articles(), f'<p class="soft">{self.safe(self.word("signature"))}</p></body></html>\n',
        ]  # fmt: skip
        return "\n".join(parts)

    # -- words

    def word(self, name: str, /, **values: Any) -> str:
        text = pick(WORDS[name], self.language)
        return text.format(**values) if values else text

    def safe(self, text: Any) -> str:
        """Escaped; what nobody stated in red, what stands in backquotes as code."""
        missing = escape(say.NOT_STATED[self.language].strip("[]"))
        coded = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(str(text)))
        return coded.replace(MISSING, f'<em class="missing">{missing}</em>')

    def heading(self, name: str) -> str:
        return f"<h2>{self.safe(self.word(name))}</h2>"

    def pairs(self, rows: Iterable[tuple[str, Any]]) -> str:
        body = "".join(f"<tr><th>{self.safe(name)}</th><td>{self.safe(value)}</td></tr>" for name, value in rows)
        return f'<table class="pairs">{body}</table>'

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
        """A table, wider than a phone where it must be."""
        head = "".join(f"<th>{self.safe(name)}</th>" for name in heads)
        body = "".join(f"<tr>{''.join(f'<td>{self.safe(value)}</td>' for value in row)}</tr>" for row in rows)
        return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

    # -- parts

    def _figures(self) -> str:
        rounds, of, ok = self.facts["rounds"], self.facts["privacy"], self.facts["audit"]["ok"]
        epsilon = "–" if of["insecure_without_noise"] else figure(of["spent"])
        shown = [
            (epsilon, "epsilon"), (figure(of["left"]), "left"), (rounds["opened"], "opened"),
            (rounds["aborted"], "aborted"), (figure(rounds["cohorts"]["smallest"]), "smallest"),
            (self.word("verifies" if ok else "broken"), "audit"),
        ]  # fmt: skip
        boxes = "".join(
            f"<div><b>{self.safe(value)}</b><span>{self.safe(self.word(name))}</span></div>" for value, name in shown
        )
        return f'<div class="figures">{boxes}</div>'

    def _stated(self) -> str:
        names = ("purpose", "legal_basis", "controller", "contact", "retention", "recipients", "cross_border")
        rows = [(self.word(name), self.said[name].removesuffix("。" if MISSING in self.said[name] else "\0")
                 .removesuffix("." if MISSING in self.said[name] else "\0"))
                for name in (*names, "dpia_owner")]  # fmt: skip
        if "limits" in self.facts["stated"]:
            rows.append((self.word("limits"), say.stated(self.facts, "limits", self.language)))
        return self.heading("stated") + self.pairs(rows)

    def _data(self) -> str:
        data, yes, no = self.facts["data"], self.word("yes"), self.word("no")
        rows = [
            (
                field["name"],
                say.field_kind(field, self.language),
                (yes if field["text_kept"] else no) if "text_kept" in field else "–",
            )
            for field in data["fields"]
        ]
        label = self.pairs([(self.word("label"), f"{data['label']['name']} ({', '.join(data['label']['names'])})")])
        heads = [self.word(name) for name in ("field", "kind", "raw")]
        return self.heading("data") + self.table(heads, rows) + label + self._paragraph(self.said["consent"])

    def _privacy(self) -> str:
        of = self.facts["privacy"]
        if of["insecure_without_noise"]:
            return self.heading("privacy") + f'<p class="bad">{self.safe(self.word("insecure"))}</p>'
        said = of["statement"]
        listed = said.get("assumptions_zh" if self.language == "zh" else "assumptions", [])
        assumptions = "".join(f"<li>{self.safe(line)}</li>" for line in listed)
        points = [(entry["round"], entry["epsilon"]) for entry in of["by_round"] if entry["epsilon"] is not None]
        plot = plots.spent(points, of["budget"], (self.word("round"), "ε", self.word("budget")))
        text = "".join(self._paragraph(self.said[name]) for name in ("privacy", "budget", "device_ledger"))
        because = f"<p>{self.safe(self.word('assumptions'))}</p><ul>{assumptions}</ul>" if listed else ""
        return self.heading("privacy") + text + plot + because

    def _rounds(self) -> str:
        rounds, spent = self.facts["rounds"], {e["round"]: e for e in self.facts["privacy"]["by_round"]}
        sums = rounds["cohorts"]["by_sum"]
        points = [(entry["round"], entry["devices"]) for entry in sums]
        plot = plots.sizes(points, rounds["n_min"], (self.word("round"), self.word("devices"), self.word("fewest")))
        none = {"opened_at": None, "epsilon": None}
        rows = [
            (entry["round"], entry["devices"], day(charge["opened_at"]), figure(charge["epsilon"]))
            for entry in sums[-ROUNDS_SHOWN:]
            for charge in [spent.get(entry["round"], none)]
        ]
        heads = [self.word("round"), self.word("devices"), self.word("opened_at"), "ε"]
        note = self._paragraph(self.word("shown_last", n=ROUNDS_SHOWN)) if len(sums) > ROUNDS_SHOWN else ""
        why = ", ".join(f"{reason} ({count})" for reason, count in rounds["aborted_why"].items())
        aborted = self.pairs([(self.word("aborted"), why)]) if why else ""
        table = self.table(heads, rows) if rows else self._paragraph(self.word("none"))
        protections = self._paragraph(self.said["protections"])
        return self.heading("rounds") + protections + plot + table + note + aborted + self._questions()

    def _questions(self) -> str:
        of, yes, no = self.facts["questions"], self.word("yes"), self.word("no")
        said = self.word("questions_said", asked=of["asked"], charged=of["charged"])
        if not of["all"]:
            return self.pairs([(self.word("questions"), self.word("no_questions"))])
        rows = [
            (one["round"], one["name"], self._asked(one), figure(one["epsilon"]), yes if one["charged"] else no)
            for one in of["all"][-ROUNDS_SHOWN:]
        ]
        heads = [self.word(name) for name in ("round", "question", "figures_asked", "epsilon_alone", "charged")]
        note = self._paragraph(self.word("shown_last", n=ROUNDS_SHOWN)) if of["asked"] > ROUNDS_SHOWN else ""
        return self.pairs([(self.word("questions"), said)]) + self.table(heads, rows) + note

    def _asked(self, question: Facts) -> str:
        label = self.facts["data"]["label"]["name"]
        said = (self.word(f"ask_{each['kind']}", of=each["field"] or label) for each in question["statistics"])
        return ("、" if self.language == "zh" else ", ").join(said)

    def _releases(self) -> str:
        of = self.facts["releases"]
        graph = self.word("no_graph")
        if of["graph"] is not None:
            keys = ", ".join(key[:16] for key in of["graph_locked_by"])
            graph = self.word("graph", digest=of["graph"]["digest"][:16], keys=keys)
        rows = [
            (one["version"], one["round"], minute(one["at"]), figure(one["metric"]), one["sha256"][:16],
             ", ".join(key[:16] for key in one["signed_by"] or ["–"]))
            for one in of["all"]
        ]  # fmt: skip
        heads = [
            self.word("version"),
            self.word("round"),
            self.word("when"),
            of["metric"],
            "SHA-256",
            self.word("signed_by"),
        ]
        table = self.table(heads, rows) if rows else self._paragraph(self.word("none"))
        return self.heading("releases") + table + self._paragraph(graph)

    def _keys(self) -> str:
        keys, devices = self.facts["keys"], self.facts["devices"]
        heads = [self.word("role"), self.word("needed"), self.word("until"), "TUF"]
        roles = [
            (name, f"{role['threshold']} / {len(role['keys'])}", day(role["expires"]), f"v{role['version']}")
            for name, role in keys["releases"].items()
        ]
        epoch, first = keys["epoch_keys"], devices["certificates_run_out_from"]
        out = devices["certificates_run_out"]
        epochs = {"epoch": epoch["roster_epoch"] or "–", "changes": epoch["changes_logged"]}
        rows = [
            (self.word("authority"), f"{keys['authority']['sha256'][:16]}, {day(keys['authority']['until'])}"),
            (self.word("issuing"), day(keys["authority"]["issuing_until"])),
            *((self.word("service", name=name), day(until)) for name, until in keys["services_until"].items()),
            (self.word("aggregator_key"), keys["aggregator_key"]),
            (self.word("roster_key"), keys["roster_key"]),
            (self.word("certs"), self.word("certs_said", active=devices["active"], first=day(first), out=out)),
            (self.word("epoch"), self.word("epoch_said", **epochs, last=day(epoch["last_change"]))),
        ]
        round_keys = self._paragraph(self.said["round_keys"])
        return self.heading("keys") + self.table(heads, roles) + self.pairs(rows) + round_keys

    def _tests(self) -> str:
        tests, log = self.facts["tests"], self.facts["audit"]
        rows = "".join(
            f"<tr><th>{self.safe(say.check_name(check['check'], self.language))}</th>"
            f"<td class={'good' if check['passed'] else 'bad'}>"
            f"{self.safe(self.word('passed' if check['passed'] else 'failed'))}</td></tr>"
            for check in tests["checks"]
        )
        suite = tests["suite"]
        said = (
            self.word("suite_missing")
            if suite is None
            else self.word("suite_said", **{**suite, "at": suite["at"] or "–"})
        )
        alarms = "; ".join(f"{minute(alarm['at'])} {alarm['reason']}" for alarm in log["alarms"][-10:]) or self.word(
            "none"
        )
        more = self.pairs(
            [(self.word("suite"), said), (self.word("log_head"), log["head"]), (self.word("alarms"), alarms)]
        )
        found = "".join(f'<p class="bad">{self.safe(finding)}</p>' for finding in log["findings"][:10])
        table = f'<table class="pairs">{rows}</table>'
        return self.heading("tests") + table + more + self._paragraph(self.said["audit"]) + found

    def _list(self, name: str, pairs: Sequence[Any]) -> str:
        items = "".join(f"<li>{self.safe(getattr(pair, self.language))}</li>" for pair in pairs)
        return f"{self.heading(name)}<ul>{items}</ul>"

    def _articles(self) -> str:
        text, law = self.heading("articles"), ""
        for entry in say.articles(self.facts, self.language):
            if entry["law"] != law:
                law = entry["law"]
                text += f"<p><b>{self.safe(self.word(law))}</b></p>"
            listed = entry["article"].replace(", ", "、") if self.language == "zh" else entry["article"]
            number = self.word("art", n=listed)
            rows = "".join(
                f"<dt>{self.safe(self.word(part))}</dt><dd>{self.safe(entry[part])}</dd>"
                for part in ("asks", "does", "remains")
            )
            text += f"<article><h3>{self.safe(number)} · {self.safe(entry['title'])}</h3><dl>{rows}</dl></article>"
        return text

    def _paragraph(self, text: str) -> str:
        return f"<p>{self.safe(text)}</p>"
