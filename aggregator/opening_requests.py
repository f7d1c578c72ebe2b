"""What a committee member is asked, and what its answer is worth (SPEC 7.5). Reads the store; writes and sends nothing.

The request follows from the accepted uploads and their groups alone, so a restart builds the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from aggregator.round_terms import RoundTerms
from aggregator.store.rows import UploadRow
from edge_sdk.protocol import codec
from edge_sdk.protocol.chunks import share_info
from edge_sdk.protocol.errors import MalformedMessage, UnexpectedMessage, WrongSum
from edge_sdk.protocol.messages import OpeningRequest, SealedShareEntry, Share, ShareBody
from edge_sdk.protocol.secagg.member import Answer, survivors_hash
from edge_sdk.protocol.secagg.residues import RunningSum
from edge_sdk.protocol.secagg.server import Opening, share_proofs
from edge_sdk.protocol.secagg.shamir import PRIME

SIGNATURE_BYTES: Final = 64
UNREADABLE: Final = "unreadable-shares"

Groups = Sequence[tuple[str, ...]]  # the devices of each group that is opened, in increasing order


def requests_for(terms: RoundTerms, uploads: list[UploadRow], groups: Groups) -> list[bytes]:
    """The blobs `opening/<task>/<round>` of every member in order; within a group in increasing order of device.

    One pass over the uploads, each packed as it is read: the tree of an upload's shares serves all members.
    """
    place = {device: index for index, group in enumerate(groups) for device in group}
    packed: list[list[list[bytes]]] = [[[] for _ in groups] for _ in range(terms.plan.m)]
    for upload in (each for each in uploads if each.device in place):
        for by_group, entry in zip(packed, _entries(terms, upload), strict=True):
            by_group[place[upload.device]].append(codec.pack(entry))
    (task, number), empty = terms.name, ((),)
    frame = codec.pack(OpeningRequest(task, number, terms.offer_hash, empty))
    # The groups are the only difference to the frame wanted: here they are one that is empty, 0x91 0x90.
    at = frame.index(codec.pack("groups") + b"\x91\x90") + len(codec.pack("groups"))
    return [b"".join([frame[:at], _packed_groups(by_group), frame[at + 2 :]]) for by_group in packed]


def _packed_groups(groups: list[list[bytes]]) -> bytes:
    parts = [_array_header(len(groups))]
    for entries in groups:
        parts += [_array_header(len(entries)), *entries]
    return b"".join(parts)


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


def expected_hash(terms: RoundTerms, groups: Groups) -> bytes:
    """The survivors hash that every honest answer carries."""
    return survivors_hash(terms.offer_hash, groups)


def read_answer(terms: RoundTerms, device: str, share: Share, groups: Groups) -> tuple[int, bytes]:
    """The member (from 1) and the canonical answer of a Share. Raises RemoteProtocolError with the reason."""
    member = terms.member(device)
    if not member:
        raise UnexpectedMessage(f"{device} is not in the committee", reason="not-member")
    plain = terms.key.open(share.sealed, share_info(terms.offer_hash, device))
    body = codec.unpack(plain, ShareBody)
    if body.offer_hash != terms.offer_hash or body.member != member:
        raise UnexpectedMessage("the answer is for another offer or member", reason="other-offer")
    if body.survivors_hash != expected_hash(terms, groups):
        raise UnexpectedMessage("the answer is for another list of devices", reason="other-survivors")
    _elements(terms, body, len(groups))
    return member, plain


def _elements(terms: RoundTerms, body: ShareBody, groups: int) -> list[npt.NDArray[np.uint16]]:
    """The sum of shares of each group, uint16 [N/rho]; [0] where the member could not read one. MalformedMessage."""
    sizes = {len(each) for each in body.sums}
    width = terms.profile.degree // terms.plan.packing
    if len(body.sums) != groups or not sizes <= {0, 2 * width} or sizes == {0}:
        raise MalformedMessage("the answer has the wrong length", reason="share-range")
    elements = [np.frombuffer(each, "<u2").astype(np.uint16) for each in body.sums]
    if any(int(each.max(initial=0)) >= PRIME for each in elements):
        raise MalformedMessage("an element of the answer is not below p", reason="share-range")
    return elements


class OpenedGroup(NamedTuple):
    """`total`: the sum of updates and noise, int64 [d] in steps; None where it does not hold, and `reason` says why."""

    devices: tuple[str, ...]
    total: npt.NDArray[np.int64] | None
    reason: str
    wrong_members: list[int]  # from 1


def open_sums(
    terms: RoundTerms, groups: Groups, answers: Mapping[int, bytes], totals: Iterable[RunningSum]
) -> Iterator[OpenedGroup]:
    """Every group in order, each by itself: one that does not hold spoils no other. Raises LocalProtocolError."""
    bodies = {member: codec.unpack(plain, ShareBody) for member, plain in answers.items()}
    read = {m: Answer(body.survivors_hash, _elements(terms, body, len(groups))) for m, body in bodies.items()}
    for index, (devices, total) in enumerate(zip(groups, totals, strict=True)):
        opening = Opening(
            profile=terms.profile,
            plan=terms.plan,
            offer_hash=terms.offer_hash,
            survivors_hash=expected_hash(terms, groups),
            device_count=len(devices),
            length=terms.length,
            group=index,
        )
        unread = [member for member, answer in read.items() if not len(answer.sums[index])]
        for member in read.keys() - set(unread):
            opening.receive(member - 1, read[member])
        lost = len(unread) > terms.plan.m - terms.plan.answers  # whatever the others answer
        yield OpenedGroup(devices, None, UNREADABLE, []) if lost else _open(opening, devices, total)


def _open(opening: Opening, devices: tuple[str, ...], total: RunningSum) -> OpenedGroup:
    try:
        opened = opening.open(total)
    except WrongSum as error:
        return OpenedGroup(devices, None, error.reason, [])
    return OpenedGroup(devices, opened, "", [member + 1 for member in opening.wrong_members])
