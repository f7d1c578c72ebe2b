"""Write the vectors of secure aggregation, good and bad: python tests/vectors/generate_secagg.py

Nothing here calls the arithmetic it is to check: products are schoolbook over Python integers, sharing is Lagrange's
formula, sealing is RFC 9180 step by step with fixed ephemeral keys; AES, SHA-256 and the curves are the library's.
Output is the same byte for byte on every run.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

HERE = Path(__file__).parent / "secagg"
PRIME = 65521
PROFILES = {"P16": (1024, 16), "P24": (1024, 24), "P32": (2048, 32)}
SEED = bytes(range(32))


def stream(key: bytes, count: int, offset: int = 0) -> bytes:
    """`count` bytes of AES-256-CTR, counter from zero, starting at byte `offset` (a multiple of 16)."""
    counter = (offset // 16).to_bytes(16, "big")
    return Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update(bytes(count))


def words(data: bytes, size: int) -> list[int]:
    return [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def binomial(key: bytes, count: int) -> list[int]:
    return [word.bit_count() - 32 for word in words(stream(key, 8 * count), 8)]


def block(name: str, seed: bytes, index: int) -> list[int]:
    """Public block `index` in pair order."""
    degree, bits = PROFILES[name]
    size = 2 if bits == 16 else 4
    data = words(stream(seed, degree * size, index * degree * size), size)
    return [signed(word >> (8 * size - bits), bits) for word in data]


def natural(pairs: list[int]) -> list[int]:
    """Pair order to coefficients of X^0, X^1 ..."""
    return pairs[0::2] + pairs[1::2]


def pair_order(natural_order: list[int]) -> list[int]:
    half = len(natural_order) // 2
    return [value for pair in zip(natural_order[:half], natural_order[half:], strict=True) for value in pair]


def product(left: list[int], right: list[int]) -> list[int]:
    """Schoolbook product modulo X^N + 1 of two polynomials in pair order, in pair order."""
    a, b = natural(left), natural(right)
    degree, shift = len(a), 96
    # Evaluating at 2^96 turns the schoolbook product into one product of integers: coefficients stay below 2^95.
    whole = sum(value << (shift * i) for i, value in enumerate(a)) * sum(
        value << (shift * i) for i, value in enumerate(b)
    )
    out = [0] * degree
    for index in range(2 * degree - 1):
        digit = signed(whole & ((1 << shift) - 1), shift)
        whole = (whole - digit) >> shift
        out[index % degree] += digit if index < degree else -digit
    assert whole == 0
    return pair_order(out)


def schoolbook(left: list[int], right: list[int]) -> list[int]:
    """The same by the definition, quadratic: what `product` is itself checked against."""
    a, b = natural(left), natural(right)
    degree, out = len(a), [0] * len(a)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            out[(i + j) % degree] += x * y if i + j < degree else -x * y
    return pair_order(out)


def wire(name: str, values: list[int]) -> bytes:
    """Planar residues."""
    _, bits = PROFILES[name]
    reduced = [value % (1 << bits) for value in values]
    if bits == 32:
        return b"".join(value.to_bytes(4, "little") for value in reduced)
    low = b"".join((value & 0xFFFF).to_bytes(2, "little") for value in reduced)
    return low + (bytes(value >> 16 for value in reduced) if bits == 24 else b"")


def interpolate(points: list[tuple[int, int]], at: int) -> int:
    """Value at `at` of the polynomial over F_p through the points, by Lagrange's formula."""
    total = 0
    for x, y in points:
        top = bottom = 1
        for other, _ in points:
            if other != x:
                top, bottom = top * (at - other) % PRIME, bottom * (x - other) % PRIME
        total += y * top * pow(bottom, -1, PRIME)
    return total % PRIME


def plan_of(m: int) -> dict[str, int]:
    tolerated = m // 4 if m >= 32 else max(1, m // 5)
    threshold = (m + tolerated) // 2
    packing = 1
    while 2 * packing <= m - tolerated - threshold:
        packing *= 2
    return {
        "m": m, "corrupt": tolerated, "silent": tolerated, "threshold": threshold, "packing": packing,
        "answers": threshold + packing,
    }  # fmt: skip


def shares_of(secret: list[int], plan: dict[str, int], key: bytes) -> list[list[int]]:
    """Member by member the shares, drawing the random ones from the stream of `key`."""
    m, threshold, packing = plan["m"], plan["threshold"], plan["packing"]
    columns = len(secret) // packing
    need = threshold * columns
    drawn = words(stream(key, 2 * (need + need // 512 + 16)), 2)
    free = [word for word in drawn if word < PRIME][:need]
    assert len(free) == need
    rows = [[0] * columns for _ in range(m)]
    for column in range(columns):
        points = [(i + 1, free[i * columns + column]) for i in range(threshold)]
        points += [(m + 1 + r, secret[r * columns + column] % PRIME) for r in range(packing)]
        for member in range(m):
            rows[member][column] = interpolate(points, member + 1)
    return rows


def self_test_digests() -> dict[str, list[str]]:
    out = {}
    for name, (degree, _) in PROFILES.items():
        small = binomial(SEED, degree)
        large = [-32760 if value < 0 else 32760 for value in small]
        digests = [hashlib.sha256(wire(name, product(block(name, SEED, 1), s))).hexdigest() for s in (small, large)]
        out[name] = digests
    return out


def ring_vectors() -> list[dict[str, Any]]:
    out = []
    for name, (degree, bits) in PROFILES.items():
        offer_hash = hashlib.sha256(f"offer {name}".encode()).digest()
        seed = hashlib.sha256(b"A" + offer_hash).digest()
        secret = binomial(hashlib.sha256(b"secret").digest(), degree)
        public = block(name, seed, 3)
        masked = product(public, secret)
        out.append({
            "name": f"{name}: block 3 of an offer times a binomial secret", "profile": name, "degree": degree,
            "modulus_bits": bits, "offer_hash": offer_hash.hex(), "public_seed": seed.hex(), "block": 3,
            "public_first_8": public[:8], "secret_key": hashlib.sha256(b"secret").hexdigest(),
            "secret_first_8": secret[:8], "product_wire_sha256": hashlib.sha256(wire(name, masked)).hexdigest(),
            "product_first_8": [value % (1 << bits) for value in masked[:8]],
            "expect": "accept",
        })  # fmt: skip
    return out


def wire_vectors() -> list[dict[str, Any]]:
    values = [0, 1, 255, 256, 65535, 65536, 0x123456, 0xFFFFFF, 0xFFFFFFFF]
    good = [
        {"name": f"{name}: planes", "profile": name, "residues": [v % (1 << bits) for v in values],
         "wire": wire(name, values).hex(), "expect": "accept"}
        for name, (_, bits) in PROFILES.items()
    ]  # fmt: skip
    bad = [
        {"name": f"{name}: {what}", "profile": name, "length": len(values), "wire": data.hex(),
         "expect": "MalformedMessage", "reason": "residue-length"}
        for name in PROFILES
        for what, data in (
            ("one byte short", wire(name, values)[:-1]),
            ("one byte more", wire(name, values) + b"\0"),
            ("empty", b""),
        )
    ]  # fmt: skip
    return good + bad


def committee_vectors() -> list[dict[str, Any]]:
    good: list[dict[str, Any]] = [
        {"name": f"plan of {m}", "plan": plan_of(m), "expect": "accept"} for m in (5, 8, 10, 31, 32, 64, 128)
    ]
    for eligible, m in ((8, 8), (40, 32), (600, 64)):
        names = [f"device-{i:04}" for i in range(eligible)]
        seed = hashlib.sha256(f"committee {eligible}".encode()).digest()
        good.append({
            "name": f"{m} drawn from {eligible}", "eligible": eligible, "members": m, "seed": seed.hex(),
            "drawn": drawn_names(seed, names, m), "expect": "accept",
        })  # fmt: skip
    honest, bad = plan_of(10), []
    for what, change, reason in (
        ("too few members", {"m": 4}, "members"),
        ("too many members", {"m": 129}, "members"),
        ("a threshold that allows two sets", {"threshold": 5, "answers": 7}, "two-sets"),
        ("packing that is no power of two", {"packing": 3, "answers": 9}, "packing"),
        ("answers that are not threshold and packing", {"answers": 7}, "packing"),
        ("more answers than members to be heard", {"packing": 4, "answers": 10}, "answers"),
    ):
        bad.append({"name": what, "plan": honest | change, "expect": "CommitteeRefused", "reason": reason})
    return good + bad


def drawn_names(seed: bytes, names: list[str], m: int) -> list[str]:
    if m == len(names):
        return sorted(names)
    pool, at = sorted(names), 0
    for index in range(m):
        limit = len(pool) - index
        while True:
            word = int.from_bytes(stream(seed, 8 * (at + 1))[8 * at :], "little")
            at += 1
            if word < (1 << 64) // limit * limit:
                break
        chosen = index + word % limit
        pool[index], pool[chosen] = pool[chosen], pool[index]
    return sorted(pool[:m])


def headroom_vectors() -> list[dict[str, Any]]:
    rows = [
        ("P24", 1000, 8387, 0.0, True), ("P24", 1000, 8388, 0.0, False), ("P24", 1000, 8000, 126.0, True),
        ("P16", 100, 256, 0.0, True), ("P16", 100, 512, 0.0, False), ("P32", 2000, 1_073_742, 0.0, False),
        ("P32", 2000, 1_073_741, 0.0, True), ("P24", 0, 10, 0.0, False), ("P32", 10, -1, 0.0, False),
    ]  # fmt: skip
    return [
        {"name": f"{name}, {n} devices of {bound}, sigma {sigma}", "profile": name, "devices": n, "bound": bound,
         "sigma_dp": sigma, "expect": "accept" if fits else "SizingRefused",
         **({} if fits else {"reason": "headroom"})}
        for name, n, bound, sigma, fits in rows
    ]  # fmt: skip


def shamir_vectors() -> list[dict[str, Any]]:
    plan, key = plan_of(10), hashlib.sha256(b"shares").digest()
    secret = binomial(hashlib.sha256(b"secret").digest(), 16)
    rows = shares_of(secret, plan, key)
    heard = {str(i): rows[i] for i in range(10)}

    def spoiled(*members: int) -> dict[str, list[int]]:
        return {i: [(v + 1 + int(i)) % PRIME for v in row] if int(i) in members else row for i, row in heard.items()}

    def only(count: int, answers: dict[str, list[int]]) -> dict[str, list[int]]:
        return {i: answers[i] for i in list(answers)[:count]}

    facts = {"plan": plan, "secret": secret}
    return [
        {"name": "shares of 16 secrets among 10", **facts, "key": key.hex(), "shares": rows, "expect": "accept"},
        {"name": "all answer", **facts, "answers": heard, "wrong": [], "expect": "accept"},
        {"name": "exactly enough answer", **facts, "answers": only(8, heard), "wrong": [], "expect": "accept"},
        {"name": "one of ten is wrong and left out", **facts, "answers": spoiled(4), "wrong": [4], "expect": "accept"},
        {"name": "one answer too few", **facts, "answers": only(7, heard), "expect": "WrongSum",
         "reason": "too-few-answers"},
        {"name": "one wrong, one to spare", **facts, "answers": only(9, spoiled(4)), "expect": "WrongSum",
         "reason": "wrong-share"},
        {"name": "two wrong, two to spare", **facts, "answers": spoiled(2, 7), "expect": "WrongSum",
         "reason": "wrong-share"},
    ]  # fmt: skip


def labeled_extract(suite: bytes, salt: bytes, label: bytes, material: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + material, "sha256")


def labeled_expand(suite: bytes, key: bytes, label: bytes, info: bytes, size: int) -> bytes:
    """One block of HKDF-Expand, which suffices for up to 32 bytes."""
    labeled = size.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(key, labeled + b"\x01", "sha256")[:size]


def hpke_seal(ephemeral: X25519PrivateKey, receiver: bytes, info: bytes, plaintext: bytes) -> bytes:
    """RFC 9180 base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM; encapsulated key, then ciphertext."""
    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x02"
    enc = ephemeral.public_key().public_bytes_raw()
    agreed = ephemeral.exchange(X25519PublicKey.from_public_bytes(receiver))
    shared = labeled_expand(kem, labeled_extract(kem, b"", b"eae_prk", agreed), b"shared_secret", enc + receiver, 32)
    psk_id = labeled_extract(suite, b"", b"psk_id_hash", b"")
    context = b"\x00" + psk_id + labeled_extract(suite, b"", b"info_hash", info)
    secret = labeled_extract(suite, shared, b"secret", b"")
    key = labeled_expand(suite, secret, b"key", context, 32)
    nonce = labeled_expand(suite, secret, b"base_nonce", context, 12)
    return enc + AESGCM(key).encrypt(nonce, plaintext, b"")


def tree(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, by its recursive definition."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while 2 * split < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + tree(leaves[:split]) + tree(leaves[split:])).digest()


def audit_path(leaves: list[bytes], index: int) -> list[bytes]:
    if len(leaves) == 1:
        return []
    split = 1
    while 2 * split < len(leaves):
        split *= 2
    if index < split:
        return [*audit_path(leaves[:split], index), tree(leaves[split:])]
    return [*audit_path(leaves[split:], index - split), tree(leaves[:split])]


def le(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")


def named(name: str) -> bytes:
    return le(len(name.encode()), 2) + name.encode()


def digest_of(*words_: object) -> bytes:
    return hashlib.sha256(" ".join(map(str, words_)).encode()).digest()


OFFER = digest_of("offer of the round")
DEVICES = [f"kiosk-{i}" for i in range(6)]
MEMBERS = DEVICES[:5]


def sign_key(device: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(digest_of("sign", device))


def epoch_key(device: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(digest_of("epoch", device))


def shares_for_members(device: str) -> list[bytes]:
    """Plain shares of a P24 secret for the committee of five."""
    secret = binomial(digest_of("secret", device), 1024)
    rows = shares_of(secret, plan_of(5), digest_of("shares", device))
    return [b"".join(le(value, 2) for value in row) for row in rows]


def sealed_by(device: str, plain: list[bytes], offer: bytes = OFFER) -> tuple[bytes, list[bytes]]:
    """Signature and sealed shares."""
    sealed = []
    for index, (member, row) in enumerate(zip(MEMBERS, plain, strict=True)):
        info = b"chorale/share/1" + offer + named(device) + named(member) + le(index, 2)
        ephemeral = X25519PrivateKey.from_private_bytes(digest_of("ephemeral", device, index, len(row), offer.hex()))
        sealed.append(hpke_seal(ephemeral, epoch_key(member).public_key().public_bytes_raw(), info, row))
    return sign_key(device).sign(b"chorale/upload/1" + offer + named(device) + tree(sealed)), sealed


def share_entry(device: str, plain: list[bytes], index: int, offer: bytes = OFFER) -> dict[str, Any]:
    signature, sealed = sealed_by(device, plain, offer)
    path = [step.hex() for step in audit_path(sealed, index)]
    return {"device": device, "signature": signature.hex(), "sealed": sealed[index].hex(), "proof": path}


def share_table(index: int, plain: dict[str, list[bytes]]) -> dict[str, Any]:
    """Sealed shares for the member at `index`: one of each device, and kiosk-0's in bad forms."""
    table = {device: share_entry(device, plain[device], index) for device in DEVICES}
    other = share_entry("kiosk-0", plain["kiosk-0"], index, digest_of("another offer"))
    table["other offer"] = other
    table["other offer, signed for this one"] = other | {"signature": resigned(other, index).hex()}
    table["share of kiosk-1 as kiosk-0"] = table["kiosk-1"] | {"device": "kiosk-0"}
    table["flipped share"] = table["kiosk-0"] | {"sealed": table["kiosk-0"]["sealed"][:-2] + "00"}
    table["short proof"] = table["kiosk-0"] | {"proof": table["kiosk-0"]["proof"][:-1]}
    table["long proof"] = table["kiosk-0"] | {"proof": table["kiosk-0"]["proof"] * 2}
    table["short share"] = share_entry("kiosk-0", [row[:-2] for row in plain["kiosk-0"]], index)
    table["share outside the field"] = share_entry(
        "kiosk-0", [b"\xf1\xff" + row[2:] for row in plain["kiosk-0"]], index
    )
    return table


def opening_vectors() -> list[dict[str, Any]]:
    """One table of sealed shares for member 1, then requests that name them."""
    index, plain = 1, {device: shares_for_members(device) for device in DEVICES}
    table = share_table(index, plain)
    honest = DEVICES[:5]
    facts = {
        "profile": "P24", "offer_hash": OFFER.hex(), "member": MEMBERS[index], "index": index, "n_min": 3,
        "epoch_secret": digest_of("epoch", MEMBERS[index]).hex(), "plan": plan_of(5),
        "roster": {d: sign_key(d).public_key().public_bytes_raw().hex() for d in DEVICES[:5]},
    }  # fmt: skip
    facts["group_count"] = 1
    good = [accepted(facts, plain, index, groups) for groups in ([honest], [DEVICES[2:5]])]
    three, two = settled(honest, 2)
    pairs = facts | {"n_min": 2, "group_count": 2}
    good += [accepted(pairs, plain, index, groups) for groups in ([three, two], [two, three[1:]], [three[:2]])]
    with_bad = ["kiosk-1", "kiosk-2", "kiosk-3"]
    bad = [
        ("no group", [], "empty"), ("an empty group", [honest, []], "empty"),
        ("a group below the minimum", [honest[:2]], "below-minimum"),
        ("one group of two below the minimum", [honest[:3], honest[3:]], "below-minimum"),
        ("a device listed twice", [[*honest[:3], "kiosk-0"]], "repeated-device"),
        ("a device in two groups", [honest[:3], honest[2:]], "repeated-device"),
        ("a device that is not on the roster", [[*honest[:3], "kiosk-5"]], "unknown-device"),
        ("a share of another offer", [["other offer", *with_bad]], "wrong-signature"),
        ("a share of another offer under a fresh signature", [["other offer, signed for this one", *with_bad]],
         "wrong-seal"),
        ("one device's share under another's name", [["share of kiosk-1 as kiosk-0", *with_bad]], "wrong-signature"),
        ("a flipped share", [["flipped share", *with_bad]], "wrong-signature"),
        ("a proof cut short", [["short proof", *with_bad]], "wrong-proof"),
        ("a proof too long", [["long proof", *with_bad]], "wrong-proof"),
        ("a share of the wrong length", [["short share", *with_bad]], "wrong-share"),
        ("a share outside the field", [["share outside the field", *with_bad]], "wrong-share"),
    ]  # fmt: skip
    requests = [{"name": w, "groups": g, "expect": "OpeningRefused", "reason": r, **facts} for w, g, r in bad]
    moved = [
        ("one group in two parts", {"n_min": 2}, [honest[:2], honest[2:]]),
        ("two groups in one", pairs, [honest]),
        ("a device moved to the other group", pairs, [three[1:], [*two, three[0]]]),
    ]
    requests += [
        {"name": word, "groups": groups, "expect": "OpeningRefused", "reason": "wrong-group", **facts, **changes}
        for word, changes, groups in moved
    ]
    single = {"name": "one device alone, whatever the offer's minimum", "groups": [["kiosk-0"]], **facts, "n_min": 1}
    requests.append(single | {"expect": "OpeningRefused", "reason": "below-minimum"})
    return [{"name": "shares", "shares": table, "expect": "table"}, *good, *requests]


def settled(devices: list[str], count: int) -> list[list[str]]:
    """SPEC 7.5.1, written a second time: the devices of each group, in the order of their hashes."""
    drawn = sorted((hashlib.sha256(b"chorale/group/1" + OFFER + named(d)).digest(), d) for d in devices)
    return [[device for _, device in drawn[group::count]] for group in range(count)]


def resigned(entry: dict[str, Any], index: int) -> bytes:
    """The device's signature for this offer over shares it sealed for another: only a faulty device makes one."""
    assert index == 1, "the root below is for the second of five leaves"
    path = [bytes.fromhex(step) for step in entry["proof"]]
    leaf = hashlib.sha256(b"\x00" + bytes.fromhex(entry["sealed"])).digest()
    left = hashlib.sha256(b"\x01" + path[0] + leaf).digest()
    root = hashlib.sha256(b"\x01" + hashlib.sha256(b"\x01" + left + path[1]).digest() + path[2]).digest()
    return sign_key(entry["device"]).sign(b"chorale/upload/1" + OFFER + named(entry["device"]) + root)


def accepted(
    facts: dict[str, Any], plain: dict[str, list[bytes]], index: int, groups: list[list[str]]
) -> dict[str, Any]:
    listed = b"".join(le(len(g), 4) + b"".join(named(d) for d in sorted(g)) for g in groups)
    survivors = hashlib.sha256(b"chorale/survivors/1" + OFFER + le(len(groups), 4) + listed).hexdigest()
    sums = []
    for group in groups:
        columns = zip(*(words(plain[device][index], 2) for device in group), strict=True)
        sums.append(hashlib.sha256(b"".join(le(sum(column) % PRIME, 2) for column in columns)).hexdigest())
    name = " and ".join(str(len(group)) for group in groups) + " devices"
    return {"name": name, "groups": groups, **facts, "survivors_hash": survivors, "sums_sha256": sums,
            "expect": "accept"}  # fmt: skip


def upload_vectors() -> list[dict[str, Any]]:
    """A whole upload of 100 values, one-hot, and what must not pass for it."""
    device, length = "kiosk-0", 164
    signature, sealed = sealed_by(device, shares_for_members(device))
    seed = hashlib.sha256(b"A" + OFFER).digest()
    masked = product(block("P24", seed, 0), binomial(digest_of("secret", device), 1024))[:length]
    floor = binomial(digest_of("floor", device), length)
    values = [value + noise + (index == 7) for index, (value, noise) in enumerate(zip(masked, floor, strict=True))]
    header = b"CHU1" + le(24, 2) + le(5, 2) + le(len(sealed[0]), 4) + le(length, 4)
    wire_form = header + signature + b"".join(sealed) + wire("P24", values)
    entropy = [digest_of(what, device).hex() for what in ("secret", "shares", "floor")]
    facts = {"profile": "P24", "plan": plan_of(5), "length": length, "offer_hash": OFFER.hex(), "device": device}
    key = sign_key(device).public_key().public_bytes_raw().hex()
    good = {"name": "an upload", **facts, "sign_key": key, "entropy": entropy, "one_hot": 7,
            "shares_root": tree(sealed).hex(), "residues_sha256": hashlib.sha256(wire("P24", values)).hexdigest(),
            "upload": wire_form.hex(), "expect": "accept"}  # fmt: skip
    edits: list[tuple[str, dict[str, Any], str, str]] = [
        ("empty", {"cut": len(wire_form)}, "MalformedMessage", "upload-length"),
        ("one byte short", {"cut": 1}, "MalformedMessage", "upload-length"),
        ("one byte more", {"append": "00"}, "MalformedMessage", "upload-length"),
        ("another magic", {"flip": 0}, "MalformedMessage", "upload-header"),
        ("another profile", {"flip": 4}, "MalformedMessage", "upload-header"),
        ("another number of members", {"flip": 6}, "MalformedMessage", "upload-header"),
        ("another share size", {"flip": 8}, "MalformedMessage", "upload-header"),
        ("another length", {"flip": 12}, "MalformedMessage", "upload-header"),
        ("a flipped signature", {"flip": 16}, "WrongSignature", "upload-signature"),
        ("a flipped share", {"flip": 16 + 64 + 40}, "WrongSignature", "upload-signature"),
    ]
    return [good, *({"name": w, "edit": e, "expect": c, "reason": r} for w, e, c, r in edits)]


def all_vectors() -> dict[str, str]:
    """File name -> text."""
    tables: dict[str, Any] = {
        "ring": ring_vectors(), "wire": wire_vectors(), "committee": committee_vectors(),
        "headroom": headroom_vectors(), "shamir": shamir_vectors(), "selftest": self_test_digests(),
        "upload": upload_vectors(), "opening": opening_vectors(),
    }  # fmt: skip
    return {f"{name}.json": json.dumps(table, indent=1) + "\n" for name, table in tables.items()}


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for file_name, text in all_vectors().items():
        (HERE / file_name).write_text(text)
