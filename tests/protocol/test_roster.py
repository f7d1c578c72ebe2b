"""The roster: what the authority signed is what is believed, and nothing near it."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.protocol import codec, merkle, roster
from edge_sdk.protocol.errors import LocalProtocolError, MalformedMessage, OfferRefused, WrongSignature
from edge_sdk.protocol.roster import Roster, RosterEntry, SignedRoster

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()


def entry(name: str, steward: bool = False) -> RosterEntry:
    return RosterEntry(
        name, hashlib.sha256(name.encode()).digest(), hashlib.sha256(b"epoch" + name.encode()).digest(), steward
    )


ENTRIES = roster.freeze([entry("kiosk-c"), entry("kiosk-a"), entry("kiosk-b", steward=True)])


def signed(entries: tuple[RosterEntry, ...] = ENTRIES, **changes: object) -> SignedRoster:
    values = {"fleet": "f0", "epoch": 3, "beacon": b"b" * 32, "issued_at": 1000, "expires_at": 2000, **changes}
    return roster.sign(entries, KEY, **values)  # type: ignore[arg-type]


def verify(it: SignedRoster, **changes: object) -> Roster:
    values = {"fleet": "f0", "entries": it.entries, "now": 1500, "min_epoch": 3, **changes}
    return roster.verify(it.statement, it.signature, PUBLIC, **values)  # type: ignore[arg-type]


def test_a_signed_roster_is_believed_whole() -> None:
    believed = verify(roster.from_blob(signed().to_blob()))
    assert [e.device for e in believed.entries] == ["kiosk-a", "kiosk-b", "kiosk-c"]
    assert believed.epoch == 3
    assert believed.beacon == b"b" * 32
    assert believed.statement_hash == hashlib.sha256(signed().statement).digest()
    assert believed.seed == hashlib.sha256(b"committee" + signed().statement).digest()


def test_the_statement_is_the_specifications() -> None:
    """SPEC 7.3, written out by hand."""
    body = msgspec.msgpack.decode(signed().statement)
    leaves = [
        b"".join(
            len(p).to_bytes(2, "big") + p for p in (e.device.encode(), e.sign_key, e.epoch_key, bytes([e.steward]))
        )
        for e in ENTRIES
    ]
    assert body["root"] == merkle.root(leaves)
    assert set(body) == {"fleet", "epoch", "size", "root", "beacon", "issued_at", "expires_at"}
    prefix = b"".join(len(p).to_bytes(2, "big") + p for p in (b"chorale/roster/1", signed().statement))
    KEY.public_key().verify(signed().signature, prefix)


@given(st.data())
def test_a_changed_byte_is_refused(data: st.DataObject) -> None:
    it = signed()
    position = data.draw(st.integers(0, len(it.statement) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    broken = bytearray(it.statement)
    broken[position] ^= bit
    with pytest.raises(WrongSignature):
        verify(SignedRoster(bytes(broken), it.signature, it.entries))


@pytest.mark.parametrize(
    "entries",
    [
        ENTRIES[:2],
        ENTRIES[::-1],
        (*ENTRIES[:2], ENTRIES[1]),
        (*ENTRIES[:2], entry("kiosk-d")),
        (ENTRIES[0], entry("kiosk-b", steward=False), ENTRIES[2]),
        (),
    ],
    ids=["one missing", "other order", "one twice", "another device", "steward denied", "none"],
)
def test_other_entries_than_the_signed_are_refused(entries: tuple[RosterEntry, ...]) -> None:
    with pytest.raises(MalformedMessage) as refused:
        verify(signed(), entries=entries)
    assert refused.value.reason == "entries"


@pytest.mark.parametrize(
    "changes", [{"fleet": "f1"}, {"min_epoch": 4}, {"now": 2000}], ids=["fleet", "older epoch", "expired"]
)
def test_a_roster_of_another_fleet_or_time_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(OfferRefused) as refused:
        verify(signed(), **changes)
    assert refused.value.reason == "roster"


def test_another_authority_is_refused() -> None:
    it = signed()
    other = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()
    with pytest.raises(WrongSignature):
        roster.verify(it.statement, it.signature, other, fleet="f0", entries=ENTRIES, now=1500, min_epoch=0)


def test_a_correctly_signed_statement_with_an_unknown_field_is_refused() -> None:
    body = {**msgspec.msgpack.decode(signed().statement), "extra": 1}
    statement = codec.pack(body)
    it = SignedRoster(statement, KEY.sign(codec.prefixed("chorale/roster/1", statement)), ENTRIES)
    with pytest.raises(MalformedMessage):
        verify(it)


def test_a_device_cannot_stand_in_it_twice_and_an_empty_one_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="stands twice"):
        roster.freeze([entry("kiosk-a"), entry("kiosk-a", steward=True)])
    with pytest.raises(LocalProtocolError, match="enrol one"):
        roster.freeze([])


@given(st.binary(max_size=400))
def test_a_random_blob_is_refused(blob: bytes) -> None:
    with pytest.raises(MalformedMessage):
        roster.from_blob(blob)


P = 2**255 - 19
LOW_ORDER = [0, 1, P - 1, P, P + 1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823]  # fmt: skip


@pytest.mark.parametrize("point", LOW_ORDER)
@pytest.mark.parametrize("high_bit", [0, 1 << 255])
def test_a_key_of_low_order_is_refused_everywhere(point: int, high_bit: int) -> None:
    poor = msgspec.structs.replace(ENTRIES[1], epoch_key=(point | high_bit).to_bytes(32, "little"))
    entries = (ENTRIES[0], poor, ENTRIES[2])
    with pytest.raises(MalformedMessage) as refused:
        roster.check_epoch_key(poor.epoch_key)
    assert refused.value.reason == "key"
    with pytest.raises(LocalProtocolError) as frozen:
        roster.freeze(entries)
    assert frozen.value.reason == "key"
    with pytest.raises(MalformedMessage) as verified:
        verify(signed(entries))
    assert verified.value.reason == "key"


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(MalformedMessage):
        roster.check_epoch_key(b"\x09" * length)
