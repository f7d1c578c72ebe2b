"""Write the vectors of frames, chunks, sealing and rosters, good and bad: python tests/vectors/generate_messages.py

Nothing here calls the code it is to check: MessagePack is written by hand, sealing to a member follows RFC 9180.
Output is the same byte for byte on every run. What is sealed to a round key is an exception: the library draws the
randomness of ML-KEM itself, so `sealed_to_round.json` was made once, is read here, and serves for opening only.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from generate_secagg import audit_path, hpke_seal, le, named, tree

HERE = Path(__file__).parent / "messages"
FLEET, DEVICE, AGGREGATOR = "f0", "kiosk-1", "aggregator"
MAX_FRAME = 61_440


def fixed(words: str, size: int = 32) -> bytes:
    return hashlib.shake_256(words.encode()).digest(size)


def sign_key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(fixed(f"sign {name}"))


def public(name: str) -> bytes:
    return sign_key(name).public_key().public_bytes_raw()


def prefixed(*parts: bytes | str) -> bytes:
    """P(a, b, ...) of the specification."""
    data = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(len(part).to_bytes(2, "big") + part for part in data)


# -- MessagePack, canonical ----------------------------------------------------------------------------------------


def sized(short: int, most: int, codes: tuple[int, ...], size: int) -> bytes:
    """The head of a string, bytes, array or map: the short form up to `most`, else the shortest of the others."""
    if size <= most:
        return bytes([short | size])
    for width, code in zip((1, 2, 4) if len(codes) == 3 else (2, 4), codes, strict=True):
        if size < 1 << 8 * width:
            return bytes([code]) + size.to_bytes(width, "big")
    raise ValueError(size)


def integer(value: int) -> bytes:
    if 0 <= value < 128:
        return bytes([value])
    if value < 0:
        return struct.pack("b", value) if value >= -32 else b"\xd0" + struct.pack("b", value)
    for width, code in ((1, 0xCC), (2, 0xCD), (4, 0xCE), (8, 0xCF)):
        if value < 1 << 8 * width:
            return bytes([code]) + value.to_bytes(width, "big")
    raise ValueError(value)


def packed(value: Any) -> bytes:  # noqa: PLR0911  # one line a type
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return integer(value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        return sized(0xA0, 31, (0xD9, 0xDA, 0xDB), len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return sized(0, -1, (0xC4, 0xC5, 0xC6), len(value)) + value
    if isinstance(value, list):
        return sized(0x90, 15, (0xDC, 0xDD), len(value)) + b"".join(map(packed, value))
    # A message's fields stand in the order of messages.py, as they are written in this file.
    return sized(0x80, 15, (0xDE, 0xDF), len(value)) + b"".join(packed(k) + packed(v) for k, v in value.items())


def readable(value: Any) -> Any:
    """The value for JSON: bytes as "0x" and hexadecimal digits."""
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, list):
        return [readable(item) for item in value]
    if isinstance(value, dict):
        return {key: readable(item) for key, item in value.items()}
    return value


# -- frames ----------------------------------------------------------------------------------------------------------


def signed(kind: int, body: bytes, sender: str, recipient: str, *, fleet: str = FLEET, key: str = "") -> bytes:
    head = b"Ch\x01" + bytes([kind])
    statement = prefixed("chorale/message/1", fleet, sender, recipient) + head + body
    return head + sign_key(key or sender).sign(statement) + body


OFFER: dict[str, Any] = {
    "fleet": FLEET, "task": "churn", "round": 7, "issued_at": 1_800_000_000, "closes_at": 1_800_000_600,
    "models": [fixed("model"), fixed("older model")], "model_bytes": 70_000, "graph_digest": fixed("graph"),
    "length": 1000,
    "secagg": {
        "profile": "P24", "n_min": 5, "n_max": 200, "epoch": 3, "statement_hash": fixed("statement"),
        "stewards": False, "committee": [f"kiosk-{i}" for i in range(5)], "groups": 2,
    },
    "privacy": {
        "unit": "device", "placement": "shared", "noise_multiplier": 1.5, "max_grad_norm": 1.0,
        "per_customer": 8, "sample_rate": 0.25, "steps": 20,
        "learning_rate": 0.5, "delta": 1e-05, "honest": 4, "clip": 2.0, "step": 0.0009765625,
        "insecure_without_noise": False,
        "expected_batch": 50,
        "proximal": 0.0,
        "weight_bound": 0,
    },
    "consent": 2,
    "round_key": fixed("round key", 1216),
    "query": None,
}  # fmt: skip
NOTICE: dict[str, Any] = {"task": "churn", "round": 7, "size": 123_456, "digest": fixed("opening")}
HEAD: dict[str, Any] = {"size": 41, "head": fixed("log"), "time": 1_800_000_000, "signature": fixed("signature", 64)}
ID, NONCE = fixed("upload", 16), fixed("nonce", 8)

MESSAGES: dict[str, tuple[int, dict[str, Any]]] = {
    "Hello": (1, {"upload": ID, "task": "churn", "round": 7, "offer_hash": fixed("H"), "size": 3_145_728,
                  "consent": 2, "sealed_key": fixed("sealed key", 1168)}),
    "Done": (3, {"upload": ID}),
    "Get": (4, {"request": NONCE, "path": "tuf/metadata/1.root.json", "offset": 49_152, "length": 49_152}),
    "Heartbeat": (5, {"nonce": NONCE, "counter": 65_537, "phase": "training", "active": {"churn": fixed("model")}}),
    "Share": (6, {"task": "churn", "round": 7, "sealed": fixed("answer", 5000)}),
    "Ask": (7, {"nonce": NONCE, "witness": HEAD}),
    "Report": (8, {"counter": 4, "task": "churn", "round": 0, "event": "model", "reason": "graph",
                   "detail": "the graph is not the one that the offline key locked: 模型"}),
    "EpochKey": (9, {"epoch": 4, "key": fixed("epoch key")}),
    "Spent": (10, {"counter": 9, "entries": [{"task": "churn", "unit": "customer", "rounds": 6, "last_round": 7,
                                              "accountant": 1, "curve": fixed("curve", 24)}]}),
    "Withdraw": (11, {"task": "churn", "uploads": [ID]}),
    "Grant": (32, {"upload": ID, "window": 8, "received": b"\xff\x01"}),
    "Ack": (33, {"upload": ID, "received": b""}),
    "Receipt": (34, {"upload": ID, "accepted": False, "reason": "upload-signature"}),
    "Block": (35, {"request": NONCE, "path": "roster/3", "offset": 0, "total": 300, "found": True,
                   "data": fixed("block", 300)}),
    "State": (36, {"nonce": NONCE, "time": 1_800_000_001, "epoch": 3, "offers": [fixed("offer frame", 200)],
                   "openings": [NOTICE], "log": HEAD, "next_check_s": 60}),
    "OpeningNotice": (37, NOTICE),
    "Echo": (38, {"nonce": NONCE, "time": 1_800_000_002}),
    "Refusal": (39, {"about": "hello", "reason": "closed", "remedy": "wait for the next offer", "upload": None}),
    "Offer": (64, OFFER),
    "ModelHint": (65, {"task": "churn"}),
}  # fmt: skip


def parties(kind: int) -> tuple[str, str]:
    """Sender and recipient of a kind."""
    return (DEVICE, AGGREGATOR) if kind < 32 else (AGGREGATOR, DEVICE) if kind < 64 else (AGGREGATOR, "all")


def good_frame(name: str) -> dict[str, Any]:
    kind, fields = MESSAGES[name]
    sender, recipient = parties(kind)
    return {
        "name": name, "message": name, "fleet": FLEET, "sender": sender, "recipient": recipient,
        "public_key": public(sender).hex(), "frame": signed(kind, packed(fields), sender, recipient).hex(),
        "fields": readable(fields), "expect": "accept",
    }  # fmt: skip


def bad_frame(
    name: str, frame: bytes, reason: str, failure: str = "MalformedMessage", **changes: Any
) -> dict[str, Any]:
    where = {"fleet": FLEET, "sender": DEVICE, "recipient": AGGREGATOR, "public_key": public(DEVICE).hex()}
    return {"name": name, **where, "frame": frame.hex(), **changes, "expect": failure, "reason": reason}


def bodies() -> list[tuple[str, int, bytes, str]]:
    """Bodies that are refused although their signature holds."""
    done, offer = packed({"upload": ID}), OFFER

    def changed(name: str, **fields: Any) -> tuple[int, bytes]:
        kind, given = MESSAGES[name]
        return kind, packed({**given, **fields})

    terms, privacy = offer["secagg"], offer["privacy"]
    return [
        ("a trailing byte", 3, done + b"\x00", "body"),
        ("an unknown field", 3, packed({"upload": ID, "x": 1}), "body"),
        ("a missing field", 3, packed({}), "body"),
        ("a field twice", 3, b"\x82" + 2 * (packed("upload") + packed(ID)), "not-canonical"),
        ("no body", 3, b"", "body"),
        ("a body cut short", 3, done[:-1], "body"),
        ("an array for a map", 3, packed([ID]), "body"),
        ("text for bytes", 3, packed({"upload": "a" * 16}), "body"),
        ("an id of 15 bytes", 3, packed({"upload": ID[:-1]}), "body"),
        ("a name of bytes that are not UTF-8", 7, b"\x81\xa5nonc\xff\xc4\x08" + NONCE, "body"),
        ("fields out of order", 38, b"\x82" + packed("time") + integer(5) + packed("nonce") + packed(NONCE),
         "not-canonical"),
        ("an integer longer than it needs to be", 38,
         b"\x82" + packed("nonce") + packed(NONCE) + packed("time") + b"\xcf" + (5).to_bytes(8, "big"),
         "not-canonical"),
        ("bytes with a longer head than they need", 3, b"\x81" + packed("upload") + b"\xc5\x00\x10" + ID,
         "not-canonical"),
        ("an inner map out of order", *changed("Heartbeat", active={"b": bytes(32), "a": bytes(32)}), "not-canonical"),
        ("nesting without end", 3, b"\x91" * 3000, "body"),
        ("an extension type", 3, b"\x81" + packed("upload") + b"\xd8\x01" + ID, "body"),
        ("a round of 0", *changed("Hello", round=0), "body"),
        ("a negative size", *changed("Hello", size=-1), "body"),
        ("an upload above the limit", *changed("Hello", size=2**28 + 1), "body"),
        ("a task's name in capitals", *changed("Hello", task="Churn"), "body"),
        ("a task's name of 49 characters", *changed("Hello", task="a" * 49), "body"),
        ("a task's name that ends in a line feed", *changed("Hello", task="churn\n"), "body"),
        ("a path that climbs", *changed("Get", path="tuf//x"), "body"),
        ("a block above the limit", *changed("Get", length=49_153), "body"),
        ("a window of 0", *changed("Grant", window=0), "body"),
        ("a reason with spaces", *changed("Receipt", reason="not this"), "body"),
        ("a committee of four", *changed("Offer", secagg={**terms, "committee": terms["committee"][:4]}), "body"),
        ("a minimum of two", *changed("Offer", secagg={**terms, "n_min": 2}), "body"),
        ("a profile that is none", *changed("Offer", secagg={**terms, "profile": "P8"}), "body"),
        ("a clip that is not a number", *changed("Offer", privacy={**privacy, "clip": float("nan")}), "body"),
        ("an infinite clip", *changed("Offer", privacy={**privacy, "clip": float("inf")}), "body"),
        ("negative noise", *changed("Offer", privacy={**privacy, "noise_multiplier": -1.0}), "body"),
        ("an integer for a real number", *changed("Offer", privacy={**privacy, "clip": 2}), "not-canonical"),
        ("no model", *changed("Offer", models=[]), "body"),
        ("an update of no length", *changed("Offer", length=0), "body"),
        ("a round key of one byte less", *changed("Offer", round_key=OFFER["round_key"][:-1]), "body"),
    ]  # fmt: skip


def frame_vectors() -> list[dict[str, Any]]:
    done = packed({"upload": ID})
    frame = signed(3, done, DEVICE, AGGREGATOR)
    wrong = "WrongSignature"
    bad = [
        bad_frame("nothing", b"", "size"),
        bad_frame("the prefix alone", frame[:4], "size"),
        bad_frame("one byte of the signature", frame[:5], "truncated"),
        bad_frame("all but the end of the signature", frame[:67], "truncated"),
        bad_frame("one byte above the limit", frame, "size", zeros=MAX_FRAME + 1 - len(frame)),
        bad_frame("zeros up to the limit", frame, "signature", wrong, zeros=MAX_FRAME - len(frame)),
        bad_frame("another magic", b"ch" + frame[2:], "magic"),
        bad_frame("another version", frame[:2] + b"\x02" + frame[3:], "version"),
        bad_frame("a kind that is none", frame[:3] + b"\xc8" + frame[4:], "kind"),
        bad_frame("a chunk's kind", frame[:3] + b"\x02" + frame[4:], "kind"),
        bad_frame("a kind of the other direction", signed(33, packed(MESSAGES["Ack"][1]), DEVICE, AGGREGATOR), "kind"),
        bad_frame("another kind under the same signature", frame[:3] + b"\x07" + frame[4:], "signature", wrong),
        bad_frame("a flipped signature", frame[:4] + bytes([frame[4] ^ 1]) + frame[5:], "signature", wrong),
        bad_frame("a flipped body", frame[:-1] + bytes([frame[-1] ^ 1]), "signature", wrong),
        bad_frame("a body cut short after signing", frame[:-1], "signature", wrong),
        bad_frame("a byte added after signing", frame + b"\x00", "signature", wrong),
        bad_frame("a signature of zeros", frame[:4] + bytes(64) + frame[68:], "signature", wrong),
        bad_frame("for another recipient", signed(3, done, DEVICE, "all"), "signature", wrong),
        bad_frame("from another sender", signed(3, done, "kiosk-2", AGGREGATOR, key=DEVICE), "signature", wrong),
        bad_frame("of another fleet", signed(3, done, DEVICE, AGGREGATOR, fleet="f1"), "signature", wrong),
        bad_frame("under another key", signed(3, done, DEVICE, AGGREGATOR, key="kiosk-2"), "signature", wrong),
        bad_frame("names cut elsewhere", signed(3, done, "kiosk", "-1aggregator", key=DEVICE), "signature", wrong),
        bad_frame("a key that is no point", frame, "signature", wrong, public_key="02" + "00" * 31),
        bad_frame("a key of 31 bytes", frame, "signature", wrong, public_key=public(DEVICE)[:-1].hex()),
    ]  # fmt: skip
    for name, kind, body, reason in bodies():
        sender, recipient = parties(kind)
        where = {"sender": sender, "recipient": recipient, "public_key": public(sender).hex()}
        bad.append(bad_frame(name, signed(kind, body, sender, recipient), reason, **where))
    return [good_frame(name) for name in MESSAGES] + bad


# -- offer hash, chunks, bitmaps, trees --------------------------------------------------------------------------------


def offer_hash_vectors() -> list[dict[str, Any]]:
    out = []
    for what, fields in (("the offer", OFFER), ("another model", {**OFFER, "models": [fixed("evil")]})):
        body = packed(fields)
        digest = hashlib.sha256(b"chorale/offer/1\x00" + body).hexdigest()
        frame = signed(64, body, AGGREGATOR, "all").hex()
        out.append({"name": what, "frame": frame, "offer_hash": digest, "expect": "accept"})
    return out


def chunk_frame_vectors() -> list[dict[str, Any]]:
    frame = b"Ch\x01\x02" + ID + (3).to_bytes(4, "big") + b"sealed"
    rows = [
        ("a chunk's head alone", frame[:24], "truncated"), ("a cut head", frame[:23], "truncated"),
        ("another kind", frame[:3] + b"\x03" + frame[4:], "kind"), ("another magic", b"XX" + frame[2:], "magic"),
        ("another version", frame[:2] + b"\x00" + frame[3:], "version"), ("nothing", b"", "size"),
    ]  # fmt: skip
    bad = [{"name": n, "frame": f.hex(), "expect": "MalformedMessage", "reason": r} for n, f, r in rows]
    large = {"name": "one byte above the limit", "frame": frame.hex(), "zeros": MAX_FRAME + 1 - len(frame)}
    bad.append({**large, "expect": "MalformedMessage", "reason": "size"})
    good = {"name": "a chunk", "frame": frame.hex(), "upload": ID.hex(), "index": 3, "sealed": b"sealed".hex()}
    return [{**good, "expect": "accept"}, *bad]


def chunk_seal_vectors() -> list[dict[str, Any]]:
    """Three chunks of one upload, the first two shortened here: their length is the ingest's to check."""
    key, digest, size = fixed("content key"), fixed("H"), 100_000
    facts: dict[str, Any] = {
        "content_key": key.hex(), "offer_hash": digest.hex(), "device": DEVICE, "upload": ID.hex(), "size": size,
    }  # fmt: skip
    context = prefixed("chorale/chunk/1", digest, DEVICE, ID, size.to_bytes(8, "big"))

    def sealed(index: int, last: bool) -> bytes:
        nonce = bytes(7) + index.to_bytes(4, "big") + bytes([last])
        return AESGCM(key).encrypt(nonce, f"part {index}".encode(), context)

    out = []
    for index, last in ((0, False), (1, False), (2, True)):
        row = {"name": f"chunk {index}", **facts, "index": index, "last": last, "sealed": sealed(index, last).hex()}
        out.append({**row, "plaintext": f"part {index}".encode().hex(), "expect": "accept"})
    first = out[0]
    flipped = bytes([sealed(0, False)[0] ^ 1]) + sealed(0, False)[1:]
    for name, change in (
        ("in another place", {"index": 1}), ("as the last", {"last": True}),
        ("of another upload", {"upload": fixed("another", 16).hex()}), ("of another device", {"device": "kiosk-2"}),
        ("of another round", {"offer_hash": fixed("H2").hex()}), ("of another size", {"size": size + 1}),
        ("under another key", {"content_key": fixed("another key").hex()}), ("flipped", {"sealed": flipped.hex()}),
        ("cut short", {"sealed": sealed(0, False)[:-1].hex()}), ("empty", {"sealed": ""}),
        ("of fewer bytes than a tag", {"sealed": "00" * 15}),
    ):  # fmt: skip
        out.append({**first, "name": name, **change, "expect": "WrongSeal", "reason": "chunk-seal"})
    return out


def bitmap_vectors() -> list[dict[str, Any]]:
    good = [
        {"name": f"{held} of {count}", "count": count, "held": held, "bytes": data, "expect": "accept"}
        for count, held, data in (
            (1, [], "00"), (1, [0], "01"), (8, [0, 7], "81"), (9, [8], "0001"), (12, [1, 10], "0204"), (0, [], ""),
        )
    ]  # fmt: skip
    bad = [
        {"name": name, "count": count, "bytes": data, "expect": "MalformedMessage", "reason": "bitmap"}
        for name, count, data in (
            ("a bit past the end", 9, "0002"), ("the last bit past the end", 1, "80"), ("a byte too few", 9, "ff"),
            ("a byte too many", 8, "ff00"), ("nothing for one", 1, ""), ("something for nothing", 0, "00"),
        )
    ]  # fmt: skip
    return good + bad


def merkle_vectors() -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for size in (1, 2, 3, 5, 8, 13):
        leaves = [fixed(f"leaf {i}", 5 + i) for i in range(size)]
        index = size // 2
        path = audit_path(leaves, index)
        facts = {"size": size, "index": index, "leaf": leaves[index].hex(), "root": tree(leaves).hex()}
        good = {"name": f"leaf {index} of {size}", **facts, "leaves": [leaf.hex() for leaf in leaves]}
        out.append({**good, "proof": [step.hex() for step in path], "expect": "accept"})
        for name, change in (
            ("a step too many", {"proof": [*path, bytes(32)]}), ("a step too few", {"proof": path[:-1]}),
            ("an index past the end", {"proof": path, "index": size}),
            ("a negative index", {"proof": path, "index": -1}),
        ):  # fmt: skip
            if name == "a step too few" and not path:
                continue
            changed = {**facts, **change, "proof": [step.hex() for step in change["proof"]]}  # type: ignore[attr-defined]  # a list in each
            out.append({"name": f"{name}, {size} leaves", **changed, "expect": "no root"})
    return out


# -- sealing and rosters -----------------------------------------------------------------------------------------------


def share_seal_vectors() -> list[dict[str, Any]]:
    digest, member = fixed("H"), X25519PrivateKey.from_private_bytes(fixed("member"))
    info = b"chorale/share/1" + digest + named(DEVICE) + named("kiosk-4") + le(4, 2)
    ephemeral = X25519PrivateKey.from_private_bytes(fixed("ephemeral"))
    sealed = hpke_seal(ephemeral, member.public_key().public_bytes_raw(), info, b"a share")
    good: dict[str, Any] = {
        "name": "a share", "secret": fixed("member").hex(), "offer_hash": digest.hex(), "device": DEVICE,
        "member": "kiosk-4", "index": 4, "sealed": sealed.hex(), "plaintext": b"a share".hex(), "expect": "accept",
    }  # fmt: skip
    bad = [
        {**good, "name": name, **change, "expect": "WrongSeal", "reason": "share-seal"}
        for name, change in (
            ("of another device", {"device": "kiosk-2"}), ("for another member", {"member": "kiosk-5"}),
            ("for another place", {"index": 3}), ("of another round", {"offer_hash": fixed("H2").hex()}),
            ("under another key", {"secret": fixed("another member").hex()}),
            ("cut short", {"sealed": sealed[:-1].hex()}),
            ("shorter than a key", {"sealed": sealed[:31].hex()}), ("empty", {"sealed": ""}),
            ("with a key of zeros", {"sealed": (bytes(32) + sealed[32:]).hex()}),
            ("flipped", {"sealed": (sealed[:-1] + bytes([sealed[-1] ^ 1])).hex()}),
        )
    ]  # fmt: skip
    return [good, *bad]


def round_seal_vectors() -> list[dict[str, Any]]:
    """Opened with the round's secret key; what is sealed was drawn once."""
    once = json.loads((HERE / "sealed_to_round.json").read_text())
    good: dict[str, Any] = {"name": "a content key", **once, "expect": "accept"}
    sealed = bytes.fromhex(once["sealed"])
    bad = [
        {**good, "name": name, **change, "expect": "WrongSeal", "reason": "round-seal"}
        for name, change in (
            ("of another device", {"device": "kiosk-2"}), ("of another upload", {"upload": fixed("x", 16).hex()}),
            ("of another round", {"offer_hash": fixed("H2").hex()}),
            ("under another key", {"secret": fixed("y", 96).hex()}),
            ("flipped in the lattice part", {"sealed": (bytes([sealed[0] ^ 1]) + sealed[1:]).hex()}),
            ("flipped in the curve part", {"sealed": flip(sealed, 1100).hex()}),
            ("flipped in the tag", {"sealed": flip(sealed, len(sealed) - 1).hex()}),
            ("cut short", {"sealed": sealed[:-1].hex()}), ("shorter than a key", {"sealed": sealed[:100].hex()}),
            ("empty", {"sealed": ""}),
        )
    ]  # fmt: skip
    return [good, *bad]


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def roster_vectors() -> list[dict[str, Any]]:
    entries = [
        {"device": f"kiosk-{i}", "sign_key": public(f"kiosk-{i}"), "epoch_key": fixed(f"epoch {i}"), "steward": i == 2}
        for i in range(6)
    ]

    def leaf(entry: dict[str, Any]) -> bytes:
        return prefixed(entry["device"], entry["sign_key"], entry["epoch_key"], bytes([entry["steward"]]))

    fields: dict[str, Any] = {
        "fleet": FLEET, "epoch": 3, "size": 6, "root": tree([leaf(e) for e in entries]), "beacon": fixed("beacon"),
        "issued_at": 1_800_000_000, "expires_at": 1_800_600_000,
    }  # fmt: skip

    def stated(key: str = "authority", body: bytes = b"", **changes: Any) -> dict[str, str]:
        statement = body or packed({**fields, **changes})
        signature = sign_key(key).sign(prefixed("chorale/roster/1", statement))
        return {"statement": statement.hex(), "signature": signature.hex()}

    honest: dict[str, Any] = {
        **stated(), "entries": readable(entries), "authority_key": public("authority").hex(), "fleet": FLEET,
        "now": 1_800_000_100, "min_epoch": 3,
    }  # fmt: skip
    statement = packed(fields)
    signature = bytes.fromhex(honest["signature"])
    good = {
        "name": "a roster", **honest, "statement_hash": hashlib.sha256(statement).hexdigest(),
        "seed": hashlib.sha256(b"committee" + statement).hexdigest(),
        "blob": packed({"statement": statement, "signature": signature, "entries": entries}).hex(),
        "expect": "accept",
    }  # fmt: skip
    swapped = readable([entries[1], entries[0], *entries[2:]])
    stranger = readable([{**entries[0], "sign_key": public("stranger")}, *entries[1:]])
    rows: list[tuple[str, dict[str, Any], str, str]] = [
        ("signed by another key", stated("aggregator"), "WrongSignature", "signature"),
        ("a message's signature for a roster's", {"signature": sign_key("authority").sign(statement).hex()},
         "WrongSignature", "signature"),
        ("changed after signing", {"statement": packed({**fields, "beacon": fixed("mine")}).hex()},
         "WrongSignature", "signature"),
        ("of another fleet", stated(fleet="f1"), "OfferRefused", "roster"),
        ("of an epoch below the highest seen", {"min_epoch": 4}, "OfferRefused", "roster"),
        ("expired", {"now": 1_800_600_000}, "OfferRefused", "roster"),
        ("an entry with another key", {"entries": stranger}, "MalformedMessage", "entries"),
        ("an entry too few", {"entries": readable(entries[:-1])}, "MalformedMessage", "entries"),
        ("entries out of order", {"entries": swapped}, "MalformedMessage", "entries"),
        ("an entry twice", {"entries": readable([entries[0], *entries[:5]])}, "MalformedMessage", "entries"),
        ("another root", stated(root=bytes(32)), "MalformedMessage", "entries"),
        ("a field too many", stated(extra=1), "MalformedMessage", "body"),
        ("a trailing byte", stated(body=statement + b"\x00"), "MalformedMessage", "body"),
        ("an epoch of 0", stated(epoch=0), "MalformedMessage", "body"),
        ("a longer integer than it needs", stated(body=statement.replace(packed("epoch") + b"\x03",
         packed("epoch") + b"\xcc\x03")), "MalformedMessage", "not-canonical"),
    ]  # fmt: skip
    return [good, *({"name": n, **honest, **c, "expect": e, "reason": r} for n, c, e, r in rows)]


def all_vectors() -> dict[str, str]:
    """File name -> text."""
    tables: dict[str, Any] = {
        "frames": frame_vectors(), "offer_hash": offer_hash_vectors(), "chunk_frames": chunk_frame_vectors(),
        "chunk_seals": chunk_seal_vectors(), "bitmaps": bitmap_vectors(), "merkle": merkle_vectors(),
        "share_seals": share_seal_vectors(), "round_seals": round_seal_vectors(), "rosters": roster_vectors(),
    }  # fmt: skip
    return {f"{name}.json": json.dumps(table, indent=1) + "\n" for name, table in tables.items()}


if __name__ == "__main__":
    for file_name, text in all_vectors().items():
        (HERE / file_name).write_text(text)
