"""A log that was touched in any way is found out, and the first entry in doubt is named."""

from __future__ import annotations

import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.protocol import hashlog
from edge_sdk.protocol.errors import LocalProtocolError, MalformedMessage, WrongSignature
from edge_sdk.protocol.hashlog import START, Evidence, Row
from edge_sdk.protocol.messages import LogHead

FLEET, WHO = "f0", "aggregator"
KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes_raw()


def written(count: int, word: str = "upload", start: tuple[int, bytes] = (0, START)) -> list[Row]:
    rows, last = [], start
    for number in range(start[0] + 1, count + 1):
        row = hashlog.following(last, at=1000 + number, kind=word, task="churn", number=number, data={"device": "d-1"})
        rows.append(row)
        last = (row.n, row.head)
    return rows


def head_of(rows: list[Row], size: int, key: Ed25519PrivateKey = KEY, fleet: str = FLEET) -> Evidence:
    head = rows[size - 1].head if size else START
    return Evidence(hashlog.sign_head((size, head), key, fleet=fleet, who=WHO, time=2000 + size), f"checkpoint {size}")


def check(rows, evidence=(), **changes):
    return hashlog.check(rows, evidence, **{"key": PUBLIC, "fleet": FLEET, "who": WHO, **changes})


def findings(rows, evidence=(), **changes) -> list[tuple[int, str]]:
    return [found[:2] for found in check(rows, evidence, **changes).findings]


def rechained(rows: list[Row]) -> list[Row]:
    """What somebody does who can write the table but not sign."""
    out, head = [], START
    for n, row in enumerate(rows, 1):
        entry = hashlog.read(row.entry)
        anew = hashlog.following((n - 1, head), at=entry.at, kind=entry.kind, task="churn", number=n, data=entry.data)
        out.append(anew)
        head = anew.head
    return out


def test_an_untouched_log_holds_as_far_as_it_is_signed():
    rows = written(10)
    checked = check(rows, [head_of(rows, 4), head_of(rows, 8)])
    assert (checked.size, checked.head, checked.signed, checked.findings) == (10, rows[-1].head, 8, ())
    assert findings([], [head_of([], 0)]) == []


def test_the_head_is_the_hash_of_the_head_before_and_the_entry():
    import hashlib

    rows = written(3)
    assert rows[2].head == hashlib.sha256(b"chorale/log/1" + rows[1].head + rows[2].entry).digest()


@given(st.integers(1, 10), st.sampled_from(["changed", "removed", "swapped", "head"]))
@settings(max_examples=40, deadline=None)
def test_the_first_touched_entry_is_named(n, how):
    rows = written(11)
    proofs = [head_of(rows, 11)]
    at = n - 1
    if how == "changed":
        rows[at] = rows[at]._replace(entry=rows[at].entry.replace(b"d-1", b"d-2"))
    elif how == "removed":
        del rows[at]
    elif how == "swapped":
        one, two = rows[at], rows[at + 1]
        rows[at], rows[at + 1] = two._replace(n=one.n), one._replace(n=two.n)
    else:
        rows[at] = rows[at]._replace(head=bytes(32))
    words = {"changed": "changed", "removed": "removed", "swapped": "moved", "head": "changed"}
    assert findings(rows, proofs) == [(n, words[how])]


def test_a_log_that_is_chained_anew_contradicts_the_next_signed_head():
    rows = written(12)
    proofs = [head_of(rows, 4), head_of(rows, 8), head_of(rows, 12)]
    rows[5] = rows[5]._replace(entry=rows[5].entry.replace(b"d-1", b"d-2"))
    assert findings(rechained(rows), proofs) == [(5, "rewritten"), (5, "rewritten")]
    del rows[5]
    assert findings(rechained(rows), proofs)[0] == (5, "rewritten")


def test_a_log_cut_short_is_found_by_any_larger_signed_head():
    rows = written(12)
    witness = head_of(rows, 12)
    assert findings(rows[:9], [head_of(rows, 8), witness]) == [(10, "cut")]
    assert findings(rows[:9], [head_of(rows, 8)]) == [], "without a witness nobody can know"
    assert findings([], [witness]) == [(1, "cut")]


def test_another_valid_log_is_not_this_one():
    rows, other = written(8), written(8, "release")
    assert findings(other, [head_of(rows, 8)]) == [(1, "rewritten")]


@pytest.mark.parametrize("changes", [{"key": OTHER}, {"fleet": "f1"}])
def test_a_head_signed_by_another_key_or_for_another_fleet_proves_nothing(changes):
    rows = written(8)
    assert findings(rows, [head_of(rows, 4), head_of(rows, 8, **changes)]) == [(5, "signature")]


def test_a_head_is_bound_to_its_time_and_size_and_speaker():
    head = head_of(written(3), 3).head
    for wrong in (LogHead(2, *changed(head)[1:]), LogHead(3, head.head, head.time + 1, head.signature)):
        with pytest.raises(WrongSignature):
            hashlog.verify_head(wrong, PUBLIC, fleet=FLEET, who=WHO)
    with pytest.raises(WrongSignature):
        hashlog.verify_head(head, PUBLIC, fleet=FLEET, who="d-1")
    hashlog.verify_head(head, PUBLIC, fleet=FLEET, who=WHO)


def changed(head: LogHead) -> tuple:
    return (head.size, head.head, head.time, head.signature)


def test_older_entries_may_go_up_to_a_signed_head():
    rows = written(12)
    base = rows[5]
    proofs = [head_of(rows, 6), head_of(rows, 12)]
    assert findings(rows[6:], proofs, start=(6, base.head)) == []
    assert findings(rows[7:], proofs, start=(6, base.head)) == [(7, "removed")]
    assert findings(rows[6:], proofs, start=(6, bytes(32)))[0] == (7, "changed")


def test_a_journal_follows_the_key_that_it_names():
    other = OTHER.public_key().public_bytes_raw()
    rows = written(4)
    named = hashlog.following((4, rows[3].head), at=1, kind="identity", task="", number=0, data={"key": other.hex()})
    rows = [*rows, named, *written(8, start=(5, named.head))]
    proofs = [head_of(rows, 4), head_of(rows, 8, OTHER)]
    assert findings(rows, proofs, follow_identity=True) == []
    assert findings(rows, proofs) == [(5, "signature")], "the aggregator's key never changes by an entry"


def test_a_smaller_or_another_head_contradicts_the_one_that_is_kept():
    rows, other = written(9), written(9, "release")
    kept = head_of(rows, 8).head
    assert hashlog.conflict(kept, head_of(rows, 9).head) == ""
    assert hashlog.conflict(kept, head_of(rows, 8).head) == ""
    assert "7 are shown" in hashlog.conflict(kept, head_of(rows, 7).head)
    assert "two different" in hashlog.conflict(kept, head_of(other, 8).head)


def test_entries_are_small_and_strict():
    many = {f"word-{i}": "x" * 300 for i in range(20)}
    with pytest.raises(LocalProtocolError):
        hashlog.following((0, START), at=1, kind="note", task="", number=0, data=many)
    with pytest.raises(MalformedMessage):
        hashlog.read(written(1)[0].entry + b"\x00")
    assert findings([Row(1, b"\x81\x00", hashlog.chained(START, b"\x81\x00"))]) == [(1, "changed")]


def test_long_words_and_lists_lose_their_ends():
    data = {"why": "x" * 5000, "devices": [f"d-{i}" for i in range(1000)]}
    entry = hashlog.read(hashlog.following((0, START), at=1, kind="note", task="", number=0, data=data).entry)
    assert len(entry.data["why"]) == 300
    assert entry.data["devices"][31:] == ["d-31", "and 968 more"]


def test_a_row_reads_as_a_line():
    assert hashlog.line(written(2)[1]) == "     2 1002 upload churn round 2 device d-1"


def test_twenty_two_thousand_entries_are_checked_in_a_second():
    rows = written(22_000)
    proofs = [head_of(rows, size) for size in range(64, 22_001, 64)]
    began = time.process_time()
    assert check(rows, proofs).findings == ()
    assert time.process_time() - began < 1.0
