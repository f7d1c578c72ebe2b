"""The codec against arbitrary bytes: valid messages come back as they went, all else is refused with a reason."""

from __future__ import annotations

import types
import typing
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_sdk.protocol import codec, errors, messages, roster, topics
from edge_sdk.protocol.messages import ALL, DOWN, UP, Message

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
EVERYTHING = {**UP, **DOWN, **ALL}
BLOBS = (messages.OpeningRequest, messages.ShareBody, roster.SignedRoster, roster.Statement)
REASONS = {"size", "magic", "version", "kind", "truncated", "signature", "body", "not-canonical"}
FUZZ = settings(max_examples=150, derandomize=True, deadline=None, database=None)


# -- any valid message, from the types themselves ------------------------------------------------------------------


def numbers(kind: type, meta: dict[str, Any]) -> st.SearchStrategy[Any]:
    if kind is int:
        return st.integers(meta.get("ge", 0), meta.get("le", 2**40))
    low, high = meta.get("ge", meta.get("gt")), meta.get("le", meta.get("lt"))
    return st.floats(low, high, exclude_min="gt" in meta, exclude_max="lt" in meta, allow_nan=False)


def values(  # noqa: PLR0911  # one line a type
    hint: Any, meta: dict[str, Any] | None = None
) -> st.SearchStrategy[Any]:
    """Every value that the wire type allows, boundaries included."""
    meta = meta or {}
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        kept = {
            name: getattr(args[1], name) for name in ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")
        }
        return values(args[0], {name: value for name, value in kept.items() if value is not None})
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([values(arg) for arg in args])
    if hint is type(None):
        return st.none()
    if hint is bool:
        return st.booleans()
    if hint in (int, float):
        return numbers(hint, meta)
    least, most = meta.get("min_length", 0), min(meta.get("max_length", 40), max(40, meta.get("min_length", 0)))
    if hint is bytes:
        return st.binary(min_size=least, max_size=most)
    if hint is str:
        if "pattern" in meta:
            pattern = meta["pattern"].removeprefix("^").removesuffix("\\Z")
            return st.from_regex(pattern, fullmatch=True).filter(lambda text: least <= len(text) <= meta["max_length"])
        return st.text(st.characters(exclude_categories=["Cs"]), min_size=least, max_size=most)
    if origin is tuple:
        few = max(least, min(4, most))
        return st.lists(values(args[0]), min_size=least, max_size=few).map(tuple)
    if origin is dict:
        return st.dictionaries(values(args[0]), values(args[1]), max_size=3)
    return structs(hint)


def structs(cls: type[Any]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return st.builds(cls, **{name: values(hints[name]) for name in cls.__struct_fields__})


ANY_MESSAGE = st.one_of([structs(cls) for cls in EVERYTHING.values()])


def frame_of(message: Message) -> bytes:
    return codec.encode(message, fleet="f0", sender="d1", recipient="aggregator", sign=KEY.sign)


def decode(frame: bytes) -> Message:
    return codec.decode(
        frame, fleet="f0", sender="d1", recipient="aggregator", public_key=PUBLIC, accepted=EVERYTHING
    )  # fmt: skip


def refused(frame: bytes) -> str:
    """The reason, where the frame is refused by the one kind of error that a remote's bytes may raise; else ""."""
    try:
        decode(frame)
    except errors.RemoteProtocolError as error:
        return error.reason if error.reason in REASONS else pytest.fail(f"{error.reason} is not a reason of a frame")
    return ""


@given(ANY_MESSAGE)
@FUZZ
def test_a_valid_message_comes_back_as_it_went(message):
    frame = frame_of(message)
    assert len(frame) <= codec.MAX_FRAME_BYTES
    assert decode(frame) == message
    assert frame_of(decode(frame)) == frame


@pytest.mark.parametrize("cls", BLOBS, ids=lambda cls: cls.__name__)
def test_a_valid_blob_comes_back_as_it_went(cls):
    @given(structs(cls))
    @settings(FUZZ, max_examples=30)
    def check(blob: Any) -> None:
        assert codec.unpack(codec.pack(blob), cls) == blob

    check()


@given(st.binary(max_size=300))
@FUZZ
def test_arbitrary_bytes_are_refused(data):
    assert refused(data)


@given(st.sampled_from(sorted(EVERYTHING)), st.binary(max_size=200))
@FUZZ
def test_arbitrary_bodies_behind_a_good_head_and_signature_are_refused_or_mean_themselves(kind, body):
    head = b"Ch\x01" + bytes([kind])
    frame = head + KEY.sign(codec.prefixed("chorale/message/1", "f0", "d1", "aggregator") + head + body) + body
    assert refused(frame) in ("body", "not-canonical") or frame_of(decode(frame)) == frame


@given(ANY_MESSAGE, st.data())
@FUZZ
def test_a_frame_with_any_byte_changed_is_refused(message, data):
    frame = frame_of(message)
    at = data.draw(st.integers(0, len(frame) - 1))
    changed = frame[:at] + bytes([frame[at] ^ data.draw(st.integers(1, 255))]) + frame[at + 1 :]
    assert refused(changed)


@given(ANY_MESSAGE, st.data())
@FUZZ
def test_a_frame_cut_short_or_continued_is_refused(message, data):
    frame = frame_of(message)
    assert refused(frame[: data.draw(st.integers(0, len(frame) - 1))])
    assert refused(frame + data.draw(st.binary(min_size=1, max_size=40)))


@given(ANY_MESSAGE, st.data())
@FUZZ
def test_a_changed_body_that_is_signed_is_refused_or_is_the_canonical_form_of_another_message(message, data):
    """What a device with a good key and a bad mind can send."""
    body = frame_of(message)[68:]
    at = data.draw(st.integers(0, len(body) - 1))
    cut = data.draw(st.integers(at, min(len(body), at + 8)))
    body = body[:at] + data.draw(st.binary(max_size=9)) + body[cut:]
    head = b"Ch\x01" + bytes([message.kind])
    frame = head + KEY.sign(codec.prefixed("chorale/message/1", "f0", "d1", "aggregator") + head + body) + body
    if len(frame) > codec.MAX_FRAME_BYTES:
        assert refused(frame) == "size"
    else:
        assert refused(frame) in ("body", "not-canonical") or frame_of(decode(frame)) == frame


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5)
                    | st.binary(max_size=5), lambda inner: st.lists(inner, max_size=4)
                    | st.dictionaries(st.text(max_size=6), inner, max_size=4), max_leaves=12))  # fmt: skip
@FUZZ
def test_any_value_of_messagepack_in_place_of_a_body_is_refused(value):
    body = msgspec.msgpack.encode(value)
    for cls in (*EVERYTHING.values(), *BLOBS):
        with pytest.raises(errors.MalformedMessage) as refusal:
            codec.unpack(body, cls)
        assert refusal.value.reason in ("body", "not-canonical")


@given(st.binary(max_size=100) | st.binary(max_size=60).map(lambda rest: b"Ch\x01\x02" + rest))
@FUZZ
def test_arbitrary_bytes_are_a_chunk_or_refused(data):
    try:
        again = codec.encode_chunk(codec.decode_chunk(data))
    except errors.MalformedMessage as error:
        again = data if error.reason in REASONS else b""
    assert again == data


@given(
    st.text(max_size=60)
    | st.from_regex(r"fl/v1/[a-z]{1,3}/([0-9]{1,2}/d[0-9]/(up|down)|all)/[a-z]{1,4}", fullmatch=True)
)
@FUZZ
def test_arbitrary_text_is_a_topic_of_ours_or_refused(text):
    try:
        address = topics.parse(text)
    except errors.MalformedMessage:
        return
    if address.device is None:
        assert topics.to_all(address.fleet, address.kind) == text
    else:
        built = {"up": topics.up, "down": topics.down}[address.direction]
        assert built(address.fleet, address.device, address.kind) == text


@given(st.lists(st.binary(max_size=5), max_size=4), st.lists(st.binary(max_size=5), max_size=4))
@FUZZ
def test_no_two_lists_are_prefixed_to_the_same_bytes(left, right):
    assert (codec.prefixed(*left) == codec.prefixed(*right)) == (left == right)


def test_the_signature_is_checked_before_the_body_is_read():
    """A body that no parser likes and a signature that does not hold: the signature is what is refused."""
    head = b"Ch\x01" + bytes([messages.Done.kind])
    assert refused(head + bytes(64) + b"\xc1") == "signature"
    assert (
        refused(
            head + KEY.sign(codec.prefixed("chorale/message/1", "f0", "d1", "aggregator") + head + b"\xc1") + b"\xc1"
        )
        == "body"
    )


def test_a_message_too_large_to_send_is_our_own_fault():
    with pytest.raises(errors.LocalProtocolError) as refusal:
        frame_of(messages.State(bytes(8), 0, 0, tuple(bytes(6000) for _ in range(12)), (), None, 60))
    assert refusal.value.reason == "size"
