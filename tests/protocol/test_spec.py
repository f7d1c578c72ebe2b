"""SPEC.md says what the code does: its tables and numbers are read and compared. Where they differ, the code is wrong.

The tables of 6.5 and 7.6 are compared beside the state machines, in test_device_round.py and test_server_round.py.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from aggregator.tasks import TaskSpec
from edge_sdk import device_round, held_offers, key_rotation, member_duty, round_work
from edge_sdk.blobs import WINDOW as BLOB_WINDOW
from edge_sdk.config import COHORT_FLOOR, Config
from edge_sdk.device_round import LONGEST_ROUND_S
from edge_sdk.outbox import WINDOW
from edge_sdk.privacy import charges
from edge_sdk.protocol import chunks, codec, messages, sealing, topics
from edge_sdk.protocol.errors import OfferRefused, SizingRefused
from edge_sdk.protocol.messages import ALL, DOWN, UP, Offer
from edge_sdk.protocol.quantize import SUM_SCALE
from edge_sdk.protocol.secagg import client, committee, groups, member
from edge_sdk.protocol.secagg.ring import Profile, profile

SPEC = (Path(codec.__file__).parent / "SPEC.md").read_text(encoding="utf-8")


def section(number: str) -> str:
    """The text below a heading, up to the next heading of any depth."""
    found = re.search(rf"^#+ {re.escape(number)}\.? .*?\n(.*?)(?=^#+ |\Z)", SPEC, re.M | re.S)
    assert found, f"SPEC has no section {number}"
    return found[1]


def table(number: str, first: str) -> list[list[str]]:
    """The rows of the table whose header begins with `first`."""
    lines = section(number).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} "))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def layout(number: str) -> dict[str, tuple[str, str]]:
    """Offset -> (size, what it says) of the fenced layout."""
    fenced = section(number).split("```")[1]
    rows = [line.split(None, 2) for line in fenced.strip().splitlines()[1:]]
    return {row[0]: (row[1], row[2]) for row in rows if len(row) == 3}


def test_every_topic_is_in_the_table_and_every_row_is_a_topic():
    stated = {tuple(row[:4]) for row in table("3", "kind") if row[0] != "data"}
    spoken = {
        (cls.topic, direction, cls.__name__, str(kind))
        for direction, kinds in (("up", UP), ("down", DOWN), ("all", ALL))
        for kind, cls in kinds.items()
    }
    assert stated == spoken
    assert ["data", "up", "chunk (6.3)", str(codec.CHUNK_KIND), "1"] in table("3", "kind")


def test_the_topics_are_built_as_they_are_drawn():
    drawn = [line.split()[0] for line in section("3").split("```")[1].strip().splitlines()]
    shown = [pattern.format(fleet="f0", shard=topics.shard("d1"), device="d1", kind="hb") for pattern in drawn]
    assert shown == [topics.up("f0", "d1", "hb"), topics.down("f0", "d1", "hb"), topics.to_all("f0", "hb")]
    modulus = re.search(r"mod (\d+)", section("2"))
    assert modulus
    assert int(modulus[1]) == topics.SHARDS


@pytest.mark.parametrize("name", ["a", "a" * 48, "a" * 49, "", "-a", "a-", "a-1", "A", "a\n", "ä", "a b"])
def test_names_are_those_of_section_2(name):
    pattern = re.search(r"match `([^`]+)`", section("2"))
    assert pattern
    stated = bool(re.fullmatch(pattern[1], name)) and 1 <= len(name) <= 48
    assert stated == topics.is_name(name)


def test_reserved_names_are_no_devices():
    for name in re.findall(r"`(\w+)` is not a device", section("2")):
        assert not topics.is_device_name(name)


def test_the_frame_is_laid_out_as_drawn():
    rows = layout("4.1")
    frame = codec.encode(
        messages.Done(bytes(16)), fleet="f0", sender="d1", recipient="aggregator", sign=lambda _: b"s" * 64
    )
    assert frame[:2] == b"Ch"
    assert (frame[2], frame[3]) == (1, messages.Done.kind)
    assert int(rows["4"][0]) == codec.SIGNATURE_BYTES
    assert "68" in rows
    assert codec.unpack(frame[68:], messages.Done) == messages.Done(bytes(16))


def test_the_signature_covers_what_section_4_1_says():
    covered: list[bytes] = []

    def sign(data: bytes) -> bytes:
        covered.append(data)
        return bytes(64)

    frame = codec.encode(messages.Done(bytes(16)), fleet="f0", sender="d1", recipient="aggregator", sign=sign)
    assert 'P("chorale/message/1", fleet, sender, recipient) || frame[0..4] || body' in section("4.1")
    label = b"".join(
        len(part).to_bytes(2, "big") + part for part in (b"chorale/message/1", b"f0", b"d1", b"aggregator")
    )
    assert covered == [label + frame[:4] + frame[68:]]


def test_fields_are_written_in_their_order_and_inner_maps_sorted():
    assert "fields in the order of `messages.py`, keys of inner maps sorted" in section("4.1")
    beat = messages.Heartbeat(bytes(8), 1, "idle", {"b": bytes(32), "a": bytes(32)})
    raw = msgspec.msgpack.decode(codec.pack(beat))
    assert list(raw) == list(messages.Heartbeat.__struct_fields__)
    assert list(raw["active"]) == ["a", "b"]


def test_sealing_is_bound_to_what_section_5_says():
    rows = {row[0]: row[2] for row in table("5", "Use")}
    little = lambda name: len(name).to_bytes(2, "little") + name.encode()  # noqa: E731  # p(name) of the specification
    digest, upload = bytes(range(32)), bytes(16)
    assert "chorale/share/1" in rows["mask shares to a member"]
    expected = b"chorale/share/1" + digest + little("d1") + little("d2") + (3).to_bytes(2, "little")
    assert client.share_info(digest, "d1", "d2", 3) == expected
    assert "chorale/hello/1" in rows["content key to the round"]
    assert chunks.hello_info(digest, "d1", upload) == codec.prefixed("chorale/hello/1", digest, "d1", upload)
    assert "chorale/answer/1" in rows["a member's answer to the round"]
    assert chunks.share_info(digest, "d2") == codec.prefixed("chorale/answer/1", digest, "d2")
    sizes = [int(number) for number in re.findall(r"key \((\d+)\)", section("5"))]
    assert sum(sizes) == sealing.ROUND_PUBLIC_BYTES


@pytest.mark.parametrize("name", ["P16", "P24", "P32"])
def test_an_upload_is_laid_out_as_drawn(name):
    ring, plan = profile(name), committee.plan(5)
    key = X25519PrivateKey.from_private_bytes(bytes([5] * 32)).public_key().public_bytes_raw()
    upload = client.protect(
        profile=ring, plan=plan, offer_hash=bytes(32), device="d1", noise=None, sign=lambda _: b"s" * 64,
        members=[client.Member(f"m{i}", key) for i in range(5)], values=np.zeros(10, np.int32),
        entropy=lambda size: bytes(range(size)),
    )  # fmt: skip
    data, rows = upload.encode(), layout("6.1")
    share_bytes = 2 * ring.degree // plan.packing + sealing.SHARE_SEAL_OVERHEAD
    expected = {"0": b"CHU1", "4": ring.modulus_bits, "6": 5, "8": share_bytes, "12": 10 + client.CANARIES}
    for offset, value in expected.items():
        at, size = int(offset), int(rows[offset][0])
        field = data[at : at + size]
        assert (field if isinstance(value, bytes) else int.from_bytes(field, "little")) == value
    signature_at, shares_at = sorted(int(offset) for offset in rows if offset.isdigit())[-2:]
    assert data[signature_at:shares_at] == b"s" * 64
    residues_at = shares_at + 5 * share_bytes
    assert data[shares_at:residues_at] == b"".join(bytes(share) for share in upload.sealed_shares)
    assert len(data) - residues_at == (10 + client.CANARIES) * {"P16": 2, "P24": 3, "P32": 4}[name]
    assert "the last 64 coordinates are canaries" in section("6.1")


def test_chunks_are_as_large_as_section_6_3_says():
    cut = re.search(r"cut every ([\d,]+) bytes", section("6.3"))
    assert cut
    assert int(cut[1].replace(",", "")) == chunks.CHUNK_BYTES
    frame = codec.encode_chunk(codec.Chunk(b"u" * 16, 258, b"sealed"))
    assert frame == b"Ch\x01\x02" + b"u" * 16 + b"\x00\x00\x01\x02" + b"sealed"
    assert len(frame) - 6 + chunks.SEALED_CHUNK_BYTES <= codec.MAX_FRAME_BYTES


def reasons_in(*modules: object) -> set[str]:
    """The reasons that the modules refuse an offer or an opening with."""
    text = "".join(Path(str(module.__file__)).read_text() for module in modules)  # type: ignore[attr-defined]  # modules have one
    return set(re.findall(r'(?:OfferRefused|OpeningRefused)\((?:[^()]|\([^()]*\))*?reason="([a-z-]+)"', text))


def test_every_reason_to_refuse_an_offer_is_in_the_table():
    stated = {word for row in table("7.1", "reason") for cell in row for word in re.findall(r"`([a-z-]+)`", cell)}
    given = reasons_in(device_round, round_work)
    assert {row[0].strip("`") for row in table("7.1", "reason")} <= given
    assert given <= stated


def test_every_reason_to_refuse_an_opening_is_in_the_table():
    stated = {word for row in table("7.5", "reason") for word in re.findall(r"`([a-z-]+)`", row[0])}
    assert stated <= reasons_in(member, member_duty, groups)


def test_the_states_of_an_epoch_key_and_its_times_are_those_of_the_code():
    assert {row[0] for row in table("7.3", "key")} == {"current", "next", "older"}
    text = section("7.3")
    assert f"default {Config().epoch_key_s:,.0f} s" in text
    assert f"every {key_rotation.TELL_AGAIN_S:.0f} s" in text
    assert f"at most a day ({held_offers.OPENING_S:,} s) after `closes_at`" in section("7.5")


def test_no_task_has_an_opening_deadline_beyond_the_time_that_members_keep_a_key_for():
    allowed = msgspec.json.schema(TaskSpec)["$defs"]["TaskSpec"]["properties"]["opening_s"]["maximum"]
    assert allowed <= held_offers.OPENING_S


def test_a_round_closes_within_seven_days():
    assert "more than 7 days ahead" in section("7.1")
    assert LONGEST_ROUND_S == 7 * 24 * 3600
    assert "default 5, never below 3" in section("7.1")
    assert (Config().min_cohort, COHORT_FLOOR) == (5, 3)


def offer_of(clip: float, step: float, n_max: int) -> Offer:
    terms = messages.PrivacyTerms(
        unit="record", placement="local", noise_multiplier=1.0, max_grad_norm=1.0, per_customer=8, sample_rate=0.1,
        steps=1, learning_rate=0.1,
        delta=1e-5, honest=1, clip=clip, step=step, insecure_without_noise=False, expected_batch=50,
        proximal=0.0, weight_bound=0,
    )  # fmt: skip
    secagg = messages.SecAggTerms("P24", 3, n_max, 1, bytes(32), False, tuple(f"d{i}" for i in range(5)), 1)
    return Offer("f0", "churn", 1, 0, 1, (bytes(32),), 1, bytes(32), 1, secagg, terms, 0, bytes(1216), None)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
@pytest.mark.parametrize("n_max", [10, 999])
def test_sizing_is_the_inequality_of_section_7_2_to_the_last_step(n_max, fraction):
    assert "B = floor(clip / step) + 1" in section("7.2")

    def fits(clip: float) -> bool:
        bound = math.floor(clip) + 1
        return n_max * bound + 6.5 * math.sqrt(n_max) * math.sqrt(16) < 2**23

    largest = max(steps for steps in range(2**23 // n_max - 10, 2**23 // n_max + 1) if fits(steps + fraction))
    device_round.check_sizing(offer_of(largest + fraction, 1.0, n_max))
    with pytest.raises(OfferRefused) as refusal:
        device_round.check_sizing(offer_of(largest + 1 + fraction, 1.0, n_max))
    assert refusal.value.reason == "sizing"


def test_sums_and_whole_updates_are_rounded_as_section_7_4_says():
    text = section("7.4")
    assert "multiplied by `1 - 2^-12`" in text
    assert SUM_SCALE == 1 - 2.0**-12
    assert "at most `r + sqrt(d)` in L2" in text
    shared = offer_of(4.0, 0.01, 10).privacy
    shared = msgspec.structs.replace(shared, placement="shared", max_grad_norm=0.5)
    assert charges.l2_steps(shared, 100) == pytest.approx(0.5 / 0.01 + math.sqrt(100))
    assert "`min(r + sqrt(d), sqrt(r² + d/4 + r + sqrt(d)/2))`" in text
    whole = msgspec.structs.replace(shared, unit="device")
    assert charges.l2_steps(whole, 100) == pytest.approx(min(400 + 10, math.sqrt(400**2 + 25 + 400 + 5)))


def test_a_ring_of_1024_is_not_paired_with_a_modulus_of_32_bits():
    assert "N = 1024 with q = 2^32 MUST be refused" in section("7.2")
    assert {name: (profile(name).degree, profile(name).modulus_bits) for name in ("P16", "P24", "P32")} == {
        "P16": (1024, 16),
        "P24": (1024, 24),
        "P32": (2048, 32),
    }
    with pytest.raises(SizingRefused):
        Profile("weak", 1024, 32, 4)


def test_the_committee_table_is_what_the_code_plans():
    rows = table("7.3", "m") if "| m |" in section("7.3") else table("7.3.1", "m")
    for row in rows:
        m, corrupt, silent, threshold, packing, answers = map(int, row)
        assert committee.plan(m) == committee.CommitteePlan(m, corrupt, silent, threshold, packing, answers)


def test_the_committee_has_the_sizes_of_section_7_3():
    assert "`m = n` for n ≤ 32, 32 for n < 512, 64 for n < 1500, else 128; at least 5" in section("7.3")
    sizes = {5: 5, 32: 32, 33: 32, 511: 32, 512: 64, 1499: 64, 1500: 128, 60_000: 128}
    assert {n: committee.members_for(n) for n in sizes} == sizes
    assert committee.SMALLEST == 5


def test_the_limits_are_those_of_section_9():
    text = section("9").replace(",", "")
    stated = {
        "Frame": codec.MAX_FRAME_BYTES,
        "window": WINDOW,
        "groups": 64,
    }
    for word, value in stated.items():
        found = re.search(rf"{word} (\d+)", text)
        assert found
        assert int(found[1]) == value
    assert f"{messages.MAX_LENGTH} coordinates" in text
    assert messages.MAX_UPLOAD_BYTES == 2**28
    assert f"committee {committee.SMALLEST} to {committee.LARGEST}" in text
    assert BLOB_WINDOW == 8
    assert "at most 49,152 bytes of a named blob" in section("8")
    assert messages.MAX_BLOCK_BYTES == 49_152
