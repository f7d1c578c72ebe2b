"""What a committee member is asked, and what its answer is worth (SPEC 7.5). Reads the store; writes and sends nothing.

The request follows from the accepted uploads alone, so a restart builds the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def request_for(terms: RoundTerms, uploads: list[UploadRow], member: int) -> bytes:
    """The blob `opening/<task>/<round>` of one member (from 1); uploads in increasing order of device."""
    entries = tuple(_entry(terms, upload, member) for upload in uploads)
    task, number = terms.name
    return codec.pack(OpeningRequest(task, number, terms.offer_hash, (entries,)))


def _entry(terms: RoundTerms, upload: UploadRow, member: int) -> SealedShareEntry:
    assert upload.shares is not None
    size = terms.share_bytes
    sealed = [upload.shares[at : at + size] for at in range(SIGNATURE_BYTES, len(upload.shares), size)]
    proof = tuple(share_proofs(sealed)[member - 1])
    return SealedShareEntry(upload.device, upload.shares[:SIGNATURE_BYTES], sealed[member - 1], proof)


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
