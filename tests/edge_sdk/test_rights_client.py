"""The customer's rights as an app exercises them: in order, at once, through restarts, and without ever raising."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk import journal
from edge_sdk.artifact.schema import CategoryField, Label, NumberField, Schema, TextField
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.cli import main
from edge_sdk.device_db import open_device_db
from edge_sdk.outbox import Outbox, seal_upload
from edge_sdk.privacy.ledger import Ledger
from edge_sdk.protocol import hashlog
from edge_sdk.protocol.messages import Hello, Withdraw
from edge_sdk.protocol.sealing import ROUND_SECRET_BYTES, RoundKey
from edge_sdk.recorder import MOST_WAITING
from edge_sdk.testing import FakeAggregator

SCHEMA = Schema(
    (NumberField("minutes", 100.0, 50.0), CategoryField("plan", ("gold", "silver")), TextField("asked", 32)),
    Label("churn", "binary", ("stays", "leaves")),
)
MODEL = tabular_classifier(SCHEMA, [4], seed=1)
RECORD = {"minutes": 120.0, "plan": "gold", "asked": "how do I cancel my contract"}
FIELDS = tuple(f"churn.{name}" for name in RECORD)


@pytest.fixture
def fake(tmp_path: Path):
    with FakeAggregator(tmp_path) as made:
        yield made


def on_disk(home: Path) -> bytes:
    return b"".join(path.read_bytes() for path in home.glob("examples.*"))


def in_the_journal(home: Path) -> list[hashlog.Entry]:
    return [hashlog.read(row.entry) for row in journal.rows(open_device_db(home / "device.db"))]


def upload_in_the_outbox(home: Path, closes_at: int) -> bytes:
    """As a round leaves it; the id."""
    database = open_device_db(home / "device.db")
    Ledger(database)
    (home / "outbox").mkdir(exist_ok=True)
    sealed = seal_upload(
        bytes(5000), task="churn", round_number=1, closes_at=closes_at, offer_hash=bytes(32), device="device-1",
        round_key=RoundKey(bytes(range(ROUND_SECRET_BYTES))).public_bytes(), consent=0, entropy=os.urandom,
    )  # fmt: skip
    Outbox.commit(database, home / "outbox", sealed, lambda: None)
    database.close()
    return sealed.hello.upload


# -- fields ----------------------------------------------------------------------------------------------------------


def test_a_field_that_the_signed_schema_does_not_name_never_touches_the_disk(fake):
    fake.install("churn", MODEL)
    with fake.client() as fl:
        for _ in range(3):
            fl.record("churn", {**RECORD, "iban": "NL91ABNA0417164300", "note": 7}, "stays", "a")
        fl.record("churn", {"iban": "NL91ABNA0417164300"}, "stays", "a")
        assert fl.flush(5.0)
        held = fl.export("a")["examples"]
        assert [sorted(example["fields"]) for example in held] == [["asked", "minutes", "plan"]] * 3
        assert fl.status()["fields_dropped"] == {"churn": {"iban": 4, "note": 3}}
        assert fl.status()["dropped"] == {"example": 1}
    with fake.client() as fl:
        assert fl.status()["fields_dropped"]["churn"]["iban"] == 4


def test_free_text_is_kept_as_features_that_predict_the_same(fake):
    fake.install("churn", MODEL)
    with fake.client() as fl:
        fl.record("churn", RECORD, "stays", "a")
        kept = fl.export("a", timeout=5.0)["examples"][0]["fields"]
        assert "cancel" not in json.dumps(kept)
        assert fl.predict("churn", kept).ranked == fl.predict("churn", RECORD).ranked


def test_before_a_model_the_owners_list_decides_and_the_schema_narrows_it_later(fake):
    with fake.client(fields=(*FIELDS, "churn.iban")) as fl:
        fl.record("churn", {**RECORD, "iban": "NL91", "other": 1}, "stays", "a")
        held = fl.export("a", timeout=5.0)["examples"][0]["fields"]
        assert sorted(held) == ["asked", "iban", "minutes", "plan"]
    fake.install("churn", MODEL)
    with fake.client(fields=(*FIELDS, "churn.iban")) as fl:
        fl.record("churn", RECORD, "stays", "a")
        held = [example["fields"] for example in fl.export("a", timeout=5.0)["examples"]]
        assert [sorted(fields) for fields in held] == [["asked", "minutes", "plan"]] * 2
        assert held[0] == held[1]


def test_of_an_unknown_task_nothing_is_written_until_its_schema_is_here(fake, tmp_path):
    with fake.client() as fl:
        for n in range(MOST_WAITING + 10):
            fl.record("churn", {**RECORD, "iban": "NL91"}, "stays", f"customer-{n % 2}")
        fl.forget("customer-1")
        assert fl.flush(5.0)
        status = fl.status()
        assert (status["examples"], status["examples_waiting"]) == ({}, MOST_WAITING // 2)
        assert status["dropped"] == {"example-waiting": 10}
        assert len(fl.export("customer-0")["waiting"]) == MOST_WAITING // 2
        fl._served().load("churn", MODEL, 1)  # as the update does
        assert fake.wait_for(lambda: fl.status()["examples"] == {"churn": MOST_WAITING // 2})
        assert fl.status()["examples_waiting"] == 0
        assert fl.export("customer-1")["examples"] == []


RAW = "my name is Eva, my card is 4111 1111 1111 1111"
UNFIT = {
    "a sentence for a number": ({**RECORD, "minutes": RAW}, "stays"),
    "an object for a number": ({**RECORD, "minutes": {"note": RAW}}, "stays"),
    "an object for a word": ({**RECORD, "plan": {"note": RAW}}, "stays"),
    "a text in a list": ({**RECORD, "asked": [RAW]}, "stays"),
    "bytes for a text": ({**RECORD, "asked": RAW.encode()}, "stays"),
    "a sentence for a label": (RECORD, RAW),
    "an object for a label": (RECORD, {"comment": RAW}),
}


def everything(fl) -> str:
    return repr(fl.export("eva", timeout=5.0)["examples"])


def test_raw_text_is_not_stored_where_the_schema_says_number_category_or_label(fake):
    fake.install("churn", MODEL)
    with fake.client() as fl:
        for fields, label in UNFIT.values():
            fl.record("churn", fields, label, "eva")
        fl.record("churn", {**RECORD, "plan": RAW}, "stays", "eva")
        assert "Eva" not in everything(fl)
        (kept,) = fl.export("eva", timeout=5.0)["examples"]
        assert fl.predict("churn", kept["fields"]).ranked == fl.predict("churn", {**RECORD, "plan": RAW}).ranked
        assert fl.status()["dropped"] == {"example": len(UNFIT)}


def test_what_was_kept_before_the_schema_is_narrowed_to_its_kinds_too(fake):
    with fake.client(fields=FIELDS) as fl:
        for fields, label in UNFIT.values():
            fl.record("churn", fields, label, "eva")
        fl.record("churn", {**RECORD, "plan": RAW}, "stays", "eva")
        assert "Eva" in everything(fl)
    fake.install("churn", MODEL)
    with fake.client(fields=FIELDS) as fl:
        fl.record("churn", RECORD, "stays")
        assert fl.flush(5.0)
        assert "Eva" not in everything(fl)
        assert fl.status()["examples"] == {"churn": 2}
        assert fl.status()["dropped"] == {"example": len(UNFIT)}


def test_a_subject_called_none_is_not_nobody(fake):
    with fake.client() as fl:
        fl.record("churn", RECORD, "stays")
        fl.record("churn", RECORD, "leaves", "None")
        assert [waits["label"] for waits in fl.export("None", timeout=5.0)["waiting"]] == ["leaves"]
        fl.forget("None")
        assert fl.flush(5.0)
        assert fl.status()["examples_waiting"] == 1


def test_a_word_about_many_tasks_with_long_names_is_noted(fake, tmp_path):
    tasks = [f"{n}" + "客户流失预测" * 60 for n in range(40)] + ["\U0001f4b3" * 500]
    with fake.client(fields=FIELDS) as fl:
        fl.consent.give("a", 3, tasks[::-1])
        fl.consent.withdraw("a", tasks)
        assert fl.flush(5.0)
    noted = [entry for entry in in_the_journal(tmp_path) if entry.kind.startswith("consent-")]
    assert [entry.kind for entry in noted] == ["consent-given", "consent-withdrawn"]
    assert noted[1].data["purposes"][0].startswith("0客户")
    assert noted[1].data["purposes"][-1] == "and 27 more"


# -- consent and its order -------------------------------------------------------------------------------------------


def test_calls_take_effect_in_their_order(fake):
    fake.install("churn", MODEL)
    with fake.client() as fl:
        fl.record("churn", RECORD, "stays", "a")
        fl.consent.withdraw("a")
        fl.record("churn", RECORD, "stays", "a", consent=3)  # withheld
        fl.consent.give("a", 4, ["churn"])
        fl.record("churn", RECORD, "leaves", "a")
        fl.predict("churn", RECORD).feedback("stays", subject="b", consent=2)
        assert fl.flush(5.0)
        assert [example["label"] for example in fl.export("a")["examples"]] == ["leaves"]
        assert [(entry["purpose"], entry.get("version")) for entry in fl.consent.of("a")] == [("*", None), ("churn", 4)]
        assert [entry["version"] for entry in fl.consent.of("b")] == [2]
        assert fl.status()["dropped"] == {"consent-withdrawn": 1}
        held = fl.status()["examples_held"]["churn"]
        assert (held["count"], held["subjects"], held["consented"]) == (2, 2, 2)
        assert held["bytes"] > 0
        assert abs(held["oldest"] - fake.clock()) < 60


def test_what_waits_in_memory_goes_with_a_withdrawal_and_does_not_come_back_with_a_consent(fake):
    with fake.client() as fl:
        fl.record("churn", RECORD, "stays", "a")
        fl.record("intent", RECORD, "stays", "a")
        fl.consent.withdraw("a", ["churn"])
        fl.consent.give("a", 3)
        assert fl.flush(5.0)
        assert [waits["task"] for waits in fl.export("a")["waiting"]] == ["intent"]
        assert fl.status()["examples_waiting"] == 1


def test_a_withdrawal_just_before_the_end_holds(fake):
    fake.install("churn", MODEL)
    with fake.client() as fl:
        fl.record("churn", RECORD, "stays", "a")
        fl.consent.withdraw("a")
    with fake.client() as fl:
        fl.record("churn", RECORD, "stays", "a")
        assert fl.flush(5.0)
        assert fl.status()["examples"] == {}


@pytest.mark.filterwarnings("ignore")
def test_a_consent_that_is_none_is_told_and_changes_nothing(fake):
    told: list[BaseException] = []
    with fake.client(on_error=told.append, fields=FIELDS) as fl:
        for version in (0, -1, True, 1.5, "2", None, 2**60):
            fl.consent.give("a", version)  # type: ignore[arg-type] # what an app may do
        fl.consent.give("a", 1, [])
        fl.record("churn", RECORD, "stays", "a", consent="x")  # type: ignore[arg-type] # what an app may do
        assert fl.flush(5.0)
        assert fl.consent.of("a") == []
        assert fl.status()["examples"] == {}
    assert len(told) == 9


# -- uploads that may hold what was erased ---------------------------------------------------------------------------


def withdrawals(fake: FakeAggregator) -> list[Withdraw]:
    return [message for message in fake.received if isinstance(message, Withdraw)]


def state_of(fl) -> list[str]:
    return [upload["state"] for upload in fl.status()["uploads"]]


@pytest.mark.parametrize("how", ["withdraw", "forget", "command line"])
def test_a_withdrawal_in_the_middle_of_an_upload_ends_it(fake, tmp_path, how, capsys):
    fake.install("churn", MODEL)
    fake._answer = lambda message: None  # the upload hangs after its hello
    upload = upload_in_the_outbox(tmp_path, int(fake.clock()) + 600)
    with fake.client() as fl:
        fl.record("churn", RECORD, "stays", "a")
        fl.record("churn", RECORD, "stays", "b")
        assert fl.flush(5.0)
        assert fake.wait_for(lambda: any(isinstance(message, Hello) for message in fake.received))
        if how == "withdraw":
            fl.consent.withdraw("a", ["churn"])
        elif how == "forget":
            fl.forget("a")
        else:
            assert main(["forget", "a", "--home", str(tmp_path)]) == 0
            assert "examples erased: 1;" in capsys.readouterr().out
        assert fake.wait_for(lambda: withdrawals(fake) == [Withdraw("churn", (upload,))])
        assert state_of(fl) == ["withdrawn"]
        assert list((tmp_path / "outbox").iterdir()) == []
        assert fl.status()["examples"] == {"churn": 1}


def test_what_was_erased_while_nothing_ran_is_never_announced(fake, tmp_path, capsys):
    fake.install("churn", MODEL)
    with fake.client() as fl:
        fl.record("churn", RECORD, "stays", "a")
    upload = upload_in_the_outbox(tmp_path, int(fake.clock()) + 600)
    assert main(["forget", "a", "--home", str(tmp_path)]) == 0
    for _ in range(2):  # told again at every connect: the first may have been lost
        fake.received.clear()
        with fake.client() as fl:
            assert fake.wait_for(lambda: withdrawals(fake) != [])
            assert set(withdrawals(fake)) == {Withdraw("churn", (upload,))}
    assert not any(isinstance(message, Hello) for message in fake.received)


@pytest.mark.parametrize("running", [True, False])
def test_forgetting_from_the_command_line_is_in_the_journal_and_it_holds(fake, tmp_path, running, capsys):
    fake.install("churn", MODEL)
    with fake.client() as fl:
        for subject in ("eva", "eva", "b"):
            fl.record("churn", RECORD, "stays", subject)
        assert fl.flush(5.0)
        if running:
            assert main(["forget", "eva", "--home", str(tmp_path)]) == 0
    if not running:
        assert main(["forget", "eva", "--home", str(tmp_path)]) == 0
    told = [entry for entry in in_the_journal(tmp_path) if entry.kind == "forgotten"]
    assert [entry.data for entry in told] == [{"examples": 2}]
    assert "eva" not in repr(told)
    rows = journal.rows(open_device_db(tmp_path / "device.db"))
    assert hashlog.check(rows, [], key=bytes(32), fleet="", who="").findings == ()


def test_somebody_of_whom_nothing_was_held_ends_no_upload(fake, tmp_path):
    fake.install("churn", MODEL)
    fake._answer = lambda message: None
    upload_in_the_outbox(tmp_path, int(fake.clock()) + 600)
    with fake.client() as fl:
        fl.record("churn", RECORD, "stays", "a")
        fl.consent.withdraw("never-seen")
        assert fl.flush(5.0)
        assert state_of(fl) == ["announced"]


def test_training_off_ends_what_waits_and_on_lets_the_device_learn_again(fake, tmp_path, capsys):
    fake.install("churn", MODEL)
    fake._answer = lambda message: None
    upload = upload_in_the_outbox(tmp_path, int(fake.clock()) + 600)
    with fake.client() as fl:
        assert fake.wait_for(lambda: any(isinstance(message, Hello) for message in fake.received))
        assert main(["training", "off", "--home", str(tmp_path)]) == 0
        assert fake.wait_for(lambda: withdrawals(fake) == [Withdraw("churn", (upload,))])
        assert fl.status()["training"] is False
        assert fl._engine is not None
        assert fl._engine._worker._objection() == "training-off"
        assert main(["training", "on", "--home", str(tmp_path)]) == 0
        assert fl._engine._worker._objection() == ""
    capsys.readouterr()
    assert main(["status", "--home", str(tmp_path)]) == 0
    assert "withdrawn" in capsys.readouterr().out


# -- what a person is told -------------------------------------------------------------------------------------------


def test_the_export_is_all_of_one_subject_and_nothing_of_another(fake, tmp_path, capsys):
    fake.install("churn", MODEL)
    fake._answer = lambda message: None
    upload_in_the_outbox(tmp_path, int(fake.clock()) + 600)
    with fake.client() as fl:
        fl.record("churn", RECORD, "stays", "客户-7", consent=2)
        fl.record("churn", {**RECORD, "minutes": 1.0}, "leaves", "other")
        held = fl.export("客户-7", timeout=5.0)
        assert fl.export("stranger")["examples"] == []
    assert main(["export", "客户-7", "--home", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {key: value for key, value in held.items() if key != "waiting"}
    (example,) = held["examples"]
    assert (example["fields"]["minutes"], example["label"], example["task"]) == (120.0, "stays", "churn")
    assert [entry["version"] for entry in held["consent"]] == [2]
    assert held["rounds"] == [{"task": "churn", "round": 1, "state": "announced"}]
    assert "leaves" not in json.dumps(held)


@pytest.mark.parametrize(("language", "words"), [("en", ["withdraw", "minutes", "90 days"]), ("zh", ["撤回", "90 天"])])
def test_the_notice_says_what_is_kept_and_how_to_withdraw(fake, tmp_path, capsys, language, words):
    fake.install("churn", MODEL)
    with fake.client() as fl:
        text = fl.explain("churn", language)
        for word in (*words, "plan", "asked"):
            assert word in text
        assert fl.explain("unknown-task", language)
    assert main(["explain", "--task", "churn", "--language", language, "--home", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == text


def test_a_language_that_is_not_spoken_is_told(fake):
    told: list[BaseException] = []
    with fake.client(on_error=told.append) as fl:
        assert fl.explain("churn", "tlh") == ""
    assert "en, zh" in str(told[0])


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20)
    | st.just(object()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_nothing_that_an_app_passes_in_raises(fake):
    fake.install("churn", MODEL)
    with fake.client(on_error=lambda error: None) as fl:

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(ANYTHING, ANYTHING, ANYTHING, ANYTHING)
        def anything(subject, version, purposes, fields):
            fl.consent.give(subject, version, purposes)
            fl.record("churn", fields, version, subject, purposes)
            fl.record("churn", {"minutes": fields, "plan": purposes, "asked": version}, version, subject, version)
            fl.consent.withdraw(subject, purposes)
            assert isinstance(fl.consent.of(subject, timeout=0.01), list)
            assert isinstance(fl.export(subject, timeout=0.01), dict)
            assert isinstance(fl.explain(fields, version), str)

        anything()
        assert fl.predict("churn", RECORD).available
        fl.record("churn", RECORD, "stays", "the-last")
        assert fl.flush(20.0)
        assert len(fl.export("the-last")["examples"]) == 1
