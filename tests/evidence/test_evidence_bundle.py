"""The evidence is whole and signed, its figures are the ledger's, and what nobody stated is never made up."""

from __future__ import annotations

import json
import re
import shutil
import string
from pathlib import Path

import msgspec
import pytest
from evidence_home import STATED
from small_fleet import FLEET, SmallFleet, make_home, make_task

from aggregator import cli, model_card
from aggregator.about import About, missing
from aggregator.config import Config, ConfigError, load, save
from aggregator.errors import ModelRefused
from aggregator.evidence import bundle, junit, phrases
from aggregator.evidence.collect import Source, collect
from aggregator.fleet.authority import open_authority
from aggregator.ledger import Ledger
from aggregator.releases.repository import Repository
from aggregator.releasing import Releases
from aggregator.status import opened
from aggregator.store import audit_log
from edge_sdk.protocol import hashlog

JUNIT = (
    '<?xml version="1.0"?><testsuites><testsuite name="pytest" errors="0" failures="1" skipped="2" tests="40"'
    ' time="3.5" timestamp="2026-11-23T01:00:00"></testsuite></testsuites>'
)


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "home"
    shutil.copytree(trained, place)
    monkeypatch.setenv("AGGREGATOR_HOME", str(place))
    return place


def export(home: Path, *words: str) -> Path:
    out = home.parent / "out"
    assert cli.main(["evidence", "--task", "churn", "--out", str(out), *words]) == 0
    return out


def read(out: Path) -> dict:
    return json.loads((out / "evidence.json").read_bytes())


def test_a_bundle_verifies_and_any_changed_added_or_removed_file_fails(home: Path, tmp_path: Path, capsys) -> None:
    out = export(home)
    assert {file.name for file in out.iterdir()} == {
        "card.json", "evidence.html", "evidence.zh.html", "evidence.json", "manifest.json", "signature.json"
    }  # fmt: skip
    assert cli.main(["evidence", "verify", str(out)]) == 0
    assert "whole" in capsys.readouterr().out
    for name, reason in [
        ("card.json", "changed"), ("evidence.html", "changed"), ("evidence.zh.html", "changed"),
        ("evidence.json", "changed"), ("manifest.json", "signature"), ("signature.json", "signature"),
    ]:  # fmt: skip
        spoiled = tmp_path / f"spoiled-{name}"
        shutil.copytree(out, spoiled)
        data = (spoiled / name).read_bytes()
        at = data.index(b'"signature":"') + 20 if name == "signature.json" else data.index(b"churn")
        (spoiled / name).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(bundle.BundleRefused) as refused:
            bundle.verify(spoiled)
        assert refused.value.reason == reason
        assert cli.main(["evidence", "verify", str(spoiled)]) == 1
    (out / "more.txt").write_text("x")
    with pytest.raises(bundle.BundleRefused, match=r"more\.txt is not covered"):
        bundle.verify(out)
    (out / "more.txt").unlink()
    (out / "card.json").unlink()
    with pytest.raises(bundle.BundleRefused, match="cannot read"):
        bundle.verify(out)


def test_a_bundle_signed_by_somebody_else_is_refused(home: Path, capsys) -> None:
    out = export(home)
    assert cli.main(["evidence", "verify", str(out), "--key", "00" * 32]) == 1
    assert "another key" in capsys.readouterr().err
    assert cli.main(["evidence", "verify", str(out), "--key", "00"]) == 2


def test_the_figures_are_the_ledgers(home: Path) -> None:
    facts = read(export(home))
    with opened(home, load(home)) as (store, registry):
        ledger, of = Ledger(store.connection), facts["privacy"]
        assert of["spent"] == ledger.epsilon("churn") > 0
        assert of["by_round"][-1]["epsilon"] == pytest.approx(of["spent"])
        assert [entry["round"] for entry in of["by_round"]] == [1, 2]
        assert of["left"] == pytest.approx(6.0 - of["spent"])
        assert of["statement"]["epsilon"] == round(of["spent"], 4)
        assert facts["devices"]["active"] == len(registry.devices()) == 6
    charged = facts["devices"]["ledger"]
    assert (charged["devices_charged"], charged["at_limit"]) == (6, 6)  # the budget was made for these two rounds
    assert charged["largest"] == pytest.approx(of["spent"])
    assert facts["rounds"]["cohorts"]["smallest"] == facts["rounds"]["cohorts"]["median"] == 6
    assert (facts["rounds"]["opened"], facts["rounds"]["aborted"]) == (2, 0)
    assert facts["consent"]["offered"][0]["version"] == 3
    assert facts["consent"]["offered"][0]["rounds"] == 2
    assert facts["keys"]["round_keys"] == {"ended": 2, "deleted": 2, "open": 0}
    assert facts["keys"]["releases"]["root"]["threshold"] == 2
    assert all(check["passed"] for check in facts["tests"]["checks"])
    assert facts["audit"]["ok"]


def test_a_log_that_was_touched_and_a_model_that_was_swapped_are_in_the_evidence(home: Path) -> None:
    with opened(home, load(home)) as (store, _):
        store.connection.execute("DELETE FROM audit_log WHERE n = 2")
    for model in (home / "releases" / "public" / "targets" / "models" / "churn").iterdir():
        model.write_bytes(b"another")
    out = export(home)
    facts = read(out)
    assert not facts["audit"]["ok"]
    failed = [check["check"] for check in facts["tests"]["checks"] if not check["passed"]]
    assert failed == ["releases-are-what-was-signed"]
    assert "does not verify" in (out / "evidence.html").read_text()


def test_the_export_itself_is_in_the_log_that_it_reports(home: Path) -> None:
    facts = read(export(home, "--language", "zh"))
    with opened(home, load(home)) as (store, _):
        rows = list(audit_log.rows(store.connection))
    entries = [hashlog.read(row.entry) for row in rows]
    assert (entries[-1].kind, entries[-1].task) == ("evidence", "churn")
    assert facts["audit"]["head"] == rows[-1].head.hex()
    assert cli.main(["evidence", "--task", "nothing"]) == 2
    with opened(home, load(home)) as (store, _):
        assert audit_log.last(store.connection)[0] == len(rows)


def test_what_nobody_stated_is_shown_as_not_stated_in_both_languages(home: Path, tmp_path: Path) -> None:
    about = tmp_path / "about.json"
    about.write_text("{}")
    assert cli.main(["task", "describe", "churn", "--about", str(about)]) == 0
    out = export(home)
    facts = read(out)
    assert facts["stated"] == {}
    assert {"purpose", "legal_basis", "controller", "dpia_owner", "cross_border"} <= set(facts["not_stated"])
    english, chinese = (out / "evidence.html").read_text(), (out / "evidence.zh.html").read_text()
    assert english.count('<em class="missing">not stated</em>') > 12
    assert chinese.count('<em class="missing">未说明</em>') == english.count('<em class="missing">')
    said = " ".join(entry["does"] for entry in facts["articles"]["en"])
    assert "Stated basis: [not stated]." in said
    assert phrases.MISSING not in english + chinese + json.dumps(facts, ensure_ascii=False)


def test_describing_a_task_is_logged_and_an_unknown_field_is_refused(home: Path, tmp_path: Path, capsys) -> None:
    about = tmp_path / "about.json"
    about.write_bytes(msgspec.json.encode(msgspec.structs.replace(STATED, dpia_owner="Dr. Wu")))
    assert cli.main(["task", "describe", "churn", "--about", str(about)]) == 0
    assert "not stated: cross_border\n" in capsys.readouterr().out
    assert read(export(home))["stated"]["dpia_owner"] == "Dr. Wu"
    with opened(home, load(home)) as (store, _):
        kinds = [hashlog.read(row.entry).kind for row in audit_log.rows(store.connection)]
    assert "task-described" in kinds
    about.write_text('{"purpos": "x"}')
    assert cli.main(["task", "describe", "churn", "--about", str(about)]) == 2
    assert "purpos" in capsys.readouterr().err


def test_every_article_is_in_both_languages_with_the_same_figures() -> None:
    keys = [(article.law, article.number) for article in phrases.ARTICLES]
    assert len(set(keys)) == len(keys) >= 25
    for article in phrases.ARTICLES:
        for pair in (article.title, article.asks, article.does, article.remains):
            assert pair.en
            assert re.search(r"[\u4e00-\u9fff]|^(\{\w+\})+$", pair.zh)
            english, chinese = ({name for _, name, _, _ in string.Formatter().parse(text) if name} for text in pair)
            assert english == chinese


def test_words_from_outside_are_escaped_and_the_page_fetches_and_runs_nothing(home: Path) -> None:
    out = export(home)
    for name in ("evidence.html", "evidence.zh.html"):
        text = (out / name).read_text()
        assert "<script" not in text
        assert "Acme &lt;script&gt;alert(1)&lt;/script&gt; &amp; Sons" in text
        assert not re.search(r"(src|href)=|url\(|@import|https?:", text)
        assert text.count("<svg") == 2
        assert "{" not in text.split("</style>")[1]


def test_a_test_result_file_is_counted_and_pinned_by_its_digest(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    file.write_text(JUNIT)
    suite = read(export(home, "--tests", str(file)))["tests"]["suite"]
    assert (suite["tests"], suite["failures"], suite["errors"], suite["skipped"]) == (40, 1, 0, 2)
    assert len(suite["sha256"]) == 64
    file.write_text("no suite")
    assert cli.main(["evidence", "--task", "churn", "--tests", str(file)]) == 2


@pytest.mark.parametrize(
    "text",
    [
        '<testsuites><testsuite name="a > b" tests="3" failures="2" errors="0" skipped="1"/></testsuites>',
        "<testsuites><testsuite name='a' tests='3' failures='2' skipped='1'/></testsuites>",
        "<testsuite tests='3' failures='2' skipped='1'>"
        "<testsuite tests='1' skipped='1'/><testsuite tests='2' failures='2'/></testsuite>",
        "<testsuites tests='3'><testsuite tests='1' skipped='1'/><!-- <testsuite tests='9'> -->"
        "<testsuite tests='2' failures='2'><testcase><failure>&lt;testsuite tests='9'&gt;</failure></testcase>"
        "</testsuite></testsuites>",
    ],
    ids=["quoted >", "single quotes", "nested", "two"],
)
def test_every_way_to_write_a_suite_gives_its_counts_once(text: str, tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    file.write_text(text)
    counts = junit.read(file)
    assert [counts[name] for name in ("tests", "failures", "errors", "skipped")] == [3, 2, 0, 1]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<testsuites><testsuite name='a' failures='0'/></testsuites>", "'a' gives no count of its tests"),
        ("<testsuites><testsuite name='a' tests='3' failures='-1'/></testsuites>", "no count of its failures"),
        ("<testsuites><testsuite tests='0'/><testsuite tests='0'/></testsuites>", "counts no test"),
        ("<testsuites tests='4'></testsuites>", "holds no test suite"),
        ("<testsuites><testsuite tests='3'/>", "is no JUnit file"),
        ("<?xml version='1.0' encoding='none'?><testsuite tests='3'/>", "is no JUnit file"),
        ("<!DOCTYPE a [<!ENTITY n '3'>]><testsuite tests='&n;'/>", "document type"),
    ],
)
def test_a_file_that_counts_no_tests_is_refused_with_the_remedy(text: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=why) as refused:
        junit.read(file)
    assert "--junitxml" in refused.value.hint


def test_a_task_without_rounds_or_noise_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_home(tmp_path / "home")
    home = place.path
    make_task(place, noise_multiplier=None, insecure_without_noise=True, heldout=False)
    save(home, Config(fleet=FLEET))
    monkeypatch.setenv("AGGREGATOR_HOME", str(home))
    out = tmp_path / "all"
    assert cli.main(["evidence", "--all", "--out", str(out)]) == 0
    facts = read(out / "churn")
    assert facts["privacy"]["spent"] is None
    assert "insecure_without_noise" in facts["privacy"]["statement"]["sentence"]
    page = (out / "churn" / "evidence.html").read_text()
    assert "there is no differential privacy" in page
    assert "Nothing was released yet." in page
    assert not (out / "churn" / "card.json").exists()


def test_about_knows_what_is_missing() -> None:
    assert missing(STATED) == ["cross_border", "dpia_owner"]
    assert set(missing(About())) == set(About.__struct_fields__) - {"legal_basis_note", "limits"}


def refused_home(path: Path, monkeypatch: pytest.MonkeyPatch, **fields: object) -> SmallFleet:
    """One round whose sum was read and made no model, and was therefore aborted."""

    def no_model(*_: object) -> None:
        raise ModelRefused("a weight is not finite", "lower the learning rate", reason="not-finite")

    fleet = SmallFleet(path, count=7)
    with monkeypatch.context() as patch:
        patch.setattr(Releases, "average", no_model)
        fleet.task(rounds=1, **fields)
        fleet.hello_all()
        fleet.run(lambda: any(row.secret is None for row in fleet.rounds()))
    assert [(row.phase, row.reason) for row in fleet.rounds()] == [("aborted", "not-finite")]
    return fleet


def facts_of(fleet: SmallFleet) -> dict:
    service = fleet.service
    authority, repository = open_authority(fleet.home.authority, now=fleet.now), Repository(fleet.home.releases)
    source = Source(fleet.home, FLEET, service.store, service.registry, authority, repository)
    return collect(source, "churn", now=fleet.now)


@pytest.mark.parametrize(("groups", "sizes"), [(1, [7]), (2, [3, 4])])
def test_a_sum_that_was_read_and_refused_is_in_the_evidence_and_on_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: int, sizes: list[int]
) -> None:
    fleet = refused_home(tmp_path / "home", monkeypatch, groups=groups)
    facts = facts_of(fleet)
    assert facts["privacy"]["spent"] > 0
    assert [entry["round"] for entry in facts["privacy"]["by_round"]] == [1]
    assert (facts["rounds"]["opened"], facts["rounds"]["aborted"]) == (1, 1)
    assert sorted(entry["devices"] for entry in facts["rounds"]["cohorts"]["by_sum"]) == sizes
    assert facts["rounds"]["cohorts"]["smallest"] == sizes[0]
    assert f"smallest {sizes[0]}," in phrases.cohort(facts, "en")
    assert f"最小 {sizes[0]}" in phrases.cohort(facts, "zh")
    store = fleet.service.store
    task = store.task("churn")
    model = fleet.home.checkpoint_file(task.checkpoint).read_bytes()
    card = model_card.card(store, task, model, version=2, sha256="", number=0, metrics={}, now=fleet.now)
    assert (card["cohorts"]["sums"], card["cohorts"]["smallest"]) == (len(sizes), sizes[0])


def test_the_ledger_adds_up_only_with_every_sum_that_was_read_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = refused_home(tmp_path / "home", monkeypatch)
    fleet.run(lambda: any(row.number == 2 and row.secret is None for row in fleet.rounds()))

    def adds_up() -> bool:
        checks = {check["check"]: check["passed"] for check in facts_of(fleet)["tests"]["checks"]}
        return checks["ledger-adds-up"]

    assert [row.phase for row in fleet.rounds()] == ["aborted", "released"]
    assert adds_up()
    database = fleet.service.store.connection
    for number in (1, 2):
        (at,) = database.execute("SELECT opened_at FROM round_charges WHERE number = ?", (number,)).fetchone()
        database.execute("UPDATE round_charges SET opened_at = NULL WHERE number = ?", (number,))
        assert not adds_up()
        database.execute("UPDATE round_charges SET opened_at = ? WHERE number = ?", (at, number))
    assert adds_up()
    database.execute("UPDATE rounds SET phase = 'aborted' WHERE number = 2")  # charged, and nothing says what for
    assert not adds_up()
