"""A committee member's duty: one answer per (task, round), on the disk before it leaves (SPEC 7.5).

Refuses what SPEC 7.5 names: a second list for a round it answered, an offer it did not verify itself, a committee it
does not sit on, and every list from which one device could be learnt (secagg.member). Reads no clock.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_sdk.device_db import transaction
from edge_sdk.held_offers import HeldOffer
from edge_sdk.journal import Journal
from edge_sdk.protocol import chunks, codec
from edge_sdk.protocol.errors import OpeningRefused
from edge_sdk.protocol.messages import OpeningNotice, OpeningRequest, Share, ShareBody
from edge_sdk.protocol.roster import RosterEntry
from edge_sdk.protocol.sealing import seal_to_round

FRAMING_BYTES: Final = 1024
ENTRY_BYTES: Final = 48 + 64 + 8 * 34 + 64  # name, signature, inclusion proof, field names and lengths


def stored_answer(connection: sqlite3.Connection, notice: OpeningNotice) -> Share | None:
    """The answer this device gave for the (task, round), word for word; None if it gave none.

    Raises OpeningRefused ("answered") where the notice asks about another list than the one that was answered.
    """
    row = connection.execute(
        "SELECT digest, sealed FROM answers WHERE task = ? AND round = ?", (notice.task, notice.round)
    ).fetchone()
    if row is None:
        return None
    if row[0] != notice.digest:
        raise OpeningRefused(f"round {notice.round} of {notice.task} was answered for another list", reason="answered")
    return Share(notice.task, notice.round, bytes(row[1]))


def largest_request(held: HeldOffer, roster_size: int) -> int:
    """Bytes up to which an opening request is read: twice what this offer and a roster of so many devices lead to.

    Twice, so that a request that lists devices again is refused for that.
    """
    from edge_sdk.protocol.secagg import client, committee
    from edge_sdk.protocol.secagg.ring import profile

    terms = held.offer.secagg
    sealed = client.sealed_share_bytes(profile(terms.profile), committee.plan(len(terms.committee)))
    return FRAMING_BYTES + 2 * min(terms.n_max, roster_size) * (sealed + ENTRY_BYTES)


def secret_for(
    entries: Sequence[RosterEntry], device: str, find: Callable[[bytes], X25519PrivateKey | None]
) -> X25519PrivateKey:
    """The secret of the epoch key by which the offer's roster names the device; `find` as `EpochKeys.find`.

    Raises OpeningRefused ("wrong-seal") where it is deleted: nothing sealed to it can be opened any more.
    """
    named = next((entry.epoch_key for entry in entries if entry.device == device), b"")
    secret = find(named)
    if secret is None:
        raise OpeningRefused("the epoch key that this round was sealed to is deleted", reason="wrong-seal")
    return secret


def read_request(notice: OpeningNotice, blob: bytes) -> OpeningRequest:
    """The request whose digest the signed notice names. Raises RemoteProtocolError."""
    if len(blob) != notice.size or hashlib.sha256(blob).digest() != notice.digest:
        raise OpeningRefused("the opening request is not the one the notice names", reason="digest")
    request = codec.unpack(blob, OpeningRequest)
    if (request.task, request.round) != (notice.task, notice.round):
        raise OpeningRefused("the opening request is about another round", reason="round")
    return request


def answer(
    connection: sqlite3.Connection,
    notice: OpeningNotice,
    request: OpeningRequest,
    held: HeldOffer | None,
    *,
    device: str,
    secret: X25519PrivateKey,
    sign_keys: Mapping[str, bytes],
    journal: Journal | None = None,
) -> Share:
    """Check, add up, seal, store, and only then return the answer. Raises OpeningRefused.

    `held`: the offer with the request's H, as this device verified it; `secret`: `secret_for` the roster that the offer
    names; `sign_keys`: device name -> Ed25519 key of that roster.
    """
    if held is None:
        raise OpeningRefused("this device did not verify an offer with this hash", reason="unknown-offer")
    offer = held.offer
    if (offer.task, offer.round) != (request.task, request.round):
        raise OpeningRefused("the offer is about another round", reason="unknown-offer")
    if device not in offer.secagg.committee:
        raise OpeningRefused("this device is not in the committee of the offer", reason="not-member")
    body = _sums(held, request, device, secret, sign_keys)
    sealed = seal_to_round(codec.pack(body), offer.round_key, chunks.share_info(held.offer_hash, device))
    with transaction(connection):
        # A second thread or process that came first wins: its answer is the one that counts.
        if (earlier := stored_answer(connection, notice)) is not None:
            return earlier
        connection.execute(
            "INSERT INTO answers VALUES (?, ?, ?, ?)", (notice.task, notice.round, notice.digest, sealed)
        )
        if journal is not None:
            devices = sum(len(group) for group in request.groups)
            journal.note("answered", notice.task, notice.round, offer=held.offer_hash.hex(), devices=devices)
    return Share(notice.task, notice.round, sealed)


def _sums(
    held: HeldOffer, request: OpeningRequest, device: str, secret: X25519PrivateKey, sign_keys: Mapping[str, bytes]
) -> ShareBody:
    from edge_sdk.protocol.secagg import committee, member
    from edge_sdk.protocol.secagg.ring import profile

    terms = held.offer.secagg
    index = terms.committee.index(device)
    groups = [
        [member.SealedShare(entry.device, entry.signature, entry.sealed, entry.proof) for entry in group]
        for group in request.groups
    ]
    result = member.answer(
        profile=profile(terms.profile),
        plan=committee.plan(len(terms.committee)),
        offer_hash=held.offer_hash,
        member=device,
        index=index,
        secret=secret,
        n_min=terms.n_min,
        roster=sign_keys,
        groups=groups,
        group_count=terms.groups,
    )
    sums = tuple(total.astype("<u2").tobytes() for total in result.sums)
    return ShareBody(held.offer_hash, result.survivors_hash, index + 1, sums)
