"""What a committee member is asked, and what its answer is worth (SPEC 7.5). Reads the store; writes and sends nothing.

The request follows from the accepted uploads alone, so a restart builds the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from aggregator.round_terms import RoundTerms
from aggregator.store.rows import UploadRow
from edge_sdk.protocol import codec
from edge_sdk.protocol.chunks import share_info
from edge_sdk.protocol.errors import MalformedMessage, UnexpectedMessage
from edge_sdk.protocol.messages import OpeningRequest, SealedShareEntry, Share, ShareBody
from edge_sdk.protocol.secagg.member import Answer, survivors_hash
from edge_sdk.protocol.secagg.residues import RunningSum
from edge_sdk.protocol.secagg.server import Opening, share_proofs
from edge_sdk.protocol.secagg.shamir import PRIME

SIGNATURE_BYTES: Final = 64


def requests_for(terms: RoundTerms, uploads: list[UploadRow]) -> list[bytes]:
    """The blobs `opening/<task>/<round>` of every member in order; uploads in increasing order of device.

    One pass over the uploads, each packed as it is read: the tree of an upload's shares serves all members.
    """
    packed: list[list[bytes]] = [[] for _ in range(terms.plan.m)]
    for upload in uploads:
        for entries, entry in zip(packed, _entries(terms, upload), strict=True):
            entries.append(codec.pack(entry))
    (task, number), empty = terms.name, ((),)
    frame = codec.pack(OpeningRequest(task, number, terms.offer_hash, empty))
    # The one empty group is the only difference to the frame wanted: its array header is the byte 0x90.
    at = frame.index(codec.pack("groups") + b"\x91\x90") + len(codec.pack("groups")) + 1
    header = _array_header(len(uploads))
    return [b"".join([frame[:at], header, *entries, frame[at + 1 :]]) for entries in packed]


def _array_header(count: int) -> bytes:
    """MessagePack's shortest header of an array."""
    if count < 16:
        return bytes([0x90 | count])
    return b"\xdc" + count.to_bytes(2, "big") if count < 65_536 else b"\xdd" + count.to_bytes(4, "big")


def _entries(terms: RoundTerms, upload: UploadRow) -> Iterator[SealedShareEntry]:
    assert upload.shares is not None
    size, signature = terms.share_bytes, upload.shares[:SIGNATURE_BYTES]
    sealed = [upload.shares[at : at + size] for at in range(SIGNATURE_BYTES, len(upload.shares), size)]
    for share, proof in zip(sealed, share_proofs(sealed), strict=True):
        yield SealedShareEntry(upload.device, signature, share, tuple(proof))


def expected_hash(terms: RoundTerms, devices: frozenset[str]) -> bytes:
    """The survivors hash that every honest answer carries."""
    return survivors_hash(terms.offer_hash, [sorted(devices)])


def read_answer(terms: RoundTerms, device: str, share: Share, devices: frozenset[str]) -> tuple[int, bytes]:
    """The member (from 1) and the canonical answer of a Share. Raises RemoteProtocolError with the reason."""
    member = terms.member(device)
    if not member:
        raise UnexpectedMessage(f"{device} is not in the committee", reason="not-member")
    plain = terms.key.open(share.sealed, share_info(terms.offer_hash, device))
    body = codec.unpack(plain, ShareBody)
    if body.offer_hash != terms.offer_hash or body.member != member:
        raise UnexpectedMessage("the answer is for another offer or member", reason="other-offer")
    if body.survivors_hash != expected_hash(terms, devices):
        raise UnexpectedMessage("the answer is for another list of devices", reason="other-survivors")
    _elements(terms, body)
    return member, plain


def _elements(terms: RoundTerms, body: ShareBody) -> npt.NDArray[np.uint16]:
    """The sum of shares of the one group, uint16 [N/rho]. Raises MalformedMessage."""
    width = terms.profile.degree // terms.plan.packing
    if len(body.sums) != 1 or len(body.sums[0]) != 2 * width:
        raise MalformedMessage("the answer has the wrong length", reason="share-range")
    elements = np.frombuffer(body.sums[0], "<u2").astype(np.uint16)
    if int(elements.max()) >= PRIME:
        raise MalformedMessage("an element of the answer is not below p", reason="share-range")
    return elements


def open_sum(
    terms: RoundTerms, devices: frozenset[str], answers: Mapping[int, bytes], total: RunningSum
) -> tuple[npt.NDArray[np.int64], list[int]]:
    """The sum of updates and noise, int64 [d] in steps, and the members (from 1) found wrong. Raises WrongSum."""
    survivors = expected_hash(terms, devices)
    opening = Opening(
        profile=terms.profile,
        plan=terms.plan,
        offer_hash=terms.offer_hash,
        survivors_hash=survivors,
        device_count=len(devices),
        length=terms.length,
    )
    for member, plain in answers.items():
        body = codec.unpack(plain, ShareBody)
        opening.receive(member - 1, Answer(body.survivors_hash, [_elements(terms, body)]))
    opened = opening.open(total)
    return opened, [member + 1 for member in opening.wrong_members]
