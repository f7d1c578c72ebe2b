"""The vectors of frames, chunks, sealing and rosters: the code gives what they say, the generator gives the vectors."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_sdk.protocol import chunks, codec, errors, merkle, messages, roster
from edge_sdk.protocol.sealing import ChunkSealer, RoundKey, open_share
from edge_sdk.protocol.secagg.client import share_info

VECTORS = Path(__file__).parents[1] / "vectors"
FOLDER = VECTORS / "messages"
Case = dict[str, Any]


def generator() -> ModuleType:
    """`tests` is a name that installed packages take, so the generator is loaded by its path."""
    spec = importlib.util.spec_from_file_location("generate_messages", VECTORS / "generate_messages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(VECTORS))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(VECTORS))
    return module


def load(name: str) -> list[Case]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def cases(name: str) -> Any:
    listed = load(name)
    return pytest.mark.parametrize("case", listed, ids=[case["name"] for case in listed])


def check(case: Case, action: Any) -> Any:
    """Run it: the result where the vector is good, else exactly the failure that the vector names."""
    if case["expect"] == "accept":
        return action()
    with pytest.raises(errors.RemoteProtocolError) as failure:
        action()
    assert type(failure.value).__name__ == case["expect"]
    assert failure.value.reason == case["reason"]
    return None


def given(case: Case, name: str) -> bytes:
    return bytes.fromhex(case[name]) + bytes(case.get("zeros", 0) if name == "frame" else 0)


def readable(value: Any) -> Any:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, list | tuple):
        return [readable(item) for item in value]
    if isinstance(value, dict):
        return {key: readable(item) for key, item in value.items()}
    if isinstance(value, msgspec.Struct):
        return {name: readable(getattr(value, name)) for name in value.__struct_fields__}
    return value


def test_the_generator_reproduces_the_vectors_byte_for_byte():
    written = {path.name: path.read_text() for path in FOLDER.glob("*.json") if path.name != "sealed_to_round.json"}
    assert written == generator().all_vectors()


def accepted_from(case: Case) -> Any:
    if case["recipient"] == codec.EVERYBODY:
        return messages.ALL
    return messages.DOWN if case["sender"] == codec.AGGREGATOR else messages.UP


@cases("frames")
def test_frame(case):
    message = check(
        case,
        lambda: codec.decode(
            given(case, "frame"),
            fleet=case["fleet"],
            sender=case["sender"],
            recipient=case["recipient"],
            public_key=given(case, "public_key"),
            accepted=accepted_from(case),
        ),
    )
    if message is not None:
        assert type(message).__name__ == case["message"]
        assert readable(message) == case["fields"]
        signature = given(case, "frame")[4:68]
        again = codec.encode(
            message, fleet=case["fleet"], sender=case["sender"], recipient=case["recipient"], sign=lambda _: signature
        )
        assert again == given(case, "frame")


def test_every_kind_of_message_has_a_vector():
    kinds = {**messages.UP, **messages.DOWN, **messages.ALL}
    shown = {case["message"] for case in load("frames") if case["expect"] == "accept"}
    assert shown == {cls.__name__ for cls in kinds.values()}


@cases("offer_hash")
def test_offer_hash(case):
    assert codec.offer_hash(given(case, "frame")).hex() == case["offer_hash"]


@cases("chunk_frames")
def test_chunk_frame(case):
    chunk = check(case, lambda: codec.decode_chunk(given(case, "frame")))
    if chunk is not None:
        assert chunk == codec.Chunk(given(case, "upload"), case["index"], given(case, "sealed"))
        assert codec.encode_chunk(chunk) == given(case, "frame")


@cases("chunk_seals")
def test_chunk_seal(case):
    context = chunks.chunk_context(given(case, "offer_hash"), case["device"], given(case, "upload"), case["size"])
    sealer = ChunkSealer(given(case, "content_key"), context)
    plain = check(case, lambda: sealer.open(case["index"], case["last"], given(case, "sealed")))
    if plain is not None:
        assert plain == given(case, "plaintext")
        assert sealer.seal(case["index"], case["last"], plain) == given(case, "sealed")


@cases("bitmaps")
def test_bitmap(case):
    bitmap = check(case, lambda: chunks.Bitmap.decode(given(case, "bytes"), case["count"]))
    if bitmap is not None:
        assert [i for i in range(case["count"]) if i in bitmap] == case["held"]
        assert chunks.Bitmap(case["count"], case["held"]).encode() == given(case, "bytes")


@cases("merkle")
def test_merkle(case):
    path = [bytes.fromhex(step) for step in case["proof"]]
    found = merkle.root_from_proof(given(case, "leaf"), case["index"], case["size"], path)
    if case["expect"] == "accept":
        leaves = [bytes.fromhex(leaf) for leaf in case["leaves"]]
        assert merkle.root(leaves) == found == given(case, "root")
        assert merkle.proof(leaves, case["index"]) == path
    else:
        assert found is None


@cases("share_seals")
def test_share_seal(case):
    info = share_info(given(case, "offer_hash"), case["device"], case["member"], case["index"])
    secret = X25519PrivateKey.from_private_bytes(given(case, "secret"))
    plain = check(case, lambda: open_share(given(case, "sealed"), secret, info))
    assert plain is None or plain == given(case, "plaintext")


@cases("round_seals")
def test_round_seal(case):
    key = RoundKey(given(case, "secret"))
    info = chunks.hello_info(given(case, "offer_hash"), case["device"], given(case, "upload"))
    plain = check(case, lambda: key.open(given(case, "sealed"), info))
    if plain is not None:
        assert plain == given(case, "plaintext")
        assert hashlib.sha256(key.public_bytes()).hexdigest() == case["public_sha256"]


def entry(row: Case) -> roster.RosterEntry:
    keys = {name: bytes.fromhex(row[name].removeprefix("0x")) for name in ("sign_key", "epoch_key")}
    return roster.RosterEntry(device=row["device"], steward=row["steward"], **keys)


@cases("rosters")
def test_roster(case):
    found = check(
        case,
        lambda: roster.verify(
            given(case, "statement"),
            given(case, "signature"),
            given(case, "authority_key"),
            fleet=case["fleet"],
            entries=[entry(row) for row in case["entries"]],
            now=case["now"],
            min_epoch=case["min_epoch"],
        ),
    )
    if found is not None:
        assert found.statement_hash.hex() == case["statement_hash"]
        assert found.seed.hex() == case["seed"]
        assert readable(list(found.entries)) == case["entries"]
        signed = roster.SignedRoster(given(case, "statement"), given(case, "signature"), found.entries)
        assert signed.to_blob().hex() == case["blob"]
