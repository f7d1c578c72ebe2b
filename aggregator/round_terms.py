"""What a round's offer fixes for everyone, worked out once. Pure; the round key hides itself when printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aggregator.server_round import Phase
from aggregator.store.rows import RoundRow
from edge_sdk.protocol.codec import PREFIX_BYTES, SIGNATURE_BYTES, offer_hash, unpack
from edge_sdk.protocol.messages import Offer
from edge_sdk.protocol.sealing import RoundKey
from edge_sdk.protocol.secagg.client import masked_length, sealed_share_bytes, upload_bytes
from edge_sdk.protocol.secagg.committee import CommitteePlan, plan
from edge_sdk.protocol.secagg.ring import Profile, profile


@dataclass(frozen=True, slots=True)
class RoundTerms:
    """One round as offered. `roster`: device -> Ed25519 key (32 bytes); `length`: residues, canaries included."""

    offer: Offer
    frame: bytes
    offer_hash: bytes
    key: RoundKey
    roster: Mapping[str, bytes]
    profile: Profile
    plan: CommitteePlan
    length: int

    @classmethod
    def read(cls, frame: bytes, secret: bytes, roster: Mapping[str, bytes]) -> RoundTerms:
        """From the frame that was published and the round's secret key."""
        offer = unpack(frame[PREFIX_BYTES + SIGNATURE_BYTES :], Offer)
        ring = profile(offer.secagg.profile)
        members = plan(len(offer.secagg.committee))
        length = masked_length(offer.length)
        return cls(offer, frame, offer_hash(frame), RoundKey(secret), roster, ring, members, length)

    @property
    def name(self) -> tuple[str, int]:
        """(task, round)."""
        return self.offer.task, self.offer.round

    @property
    def upload_bytes(self) -> int:
        """Exact size of every upload's plaintext."""
        return upload_bytes(self.profile, self.plan, self.length)

    @property
    def share_bytes(self) -> int:
        """Exact size of one sealed share."""
        return sealed_share_bytes(self.profile, self.plan)

    def member(self, device: str) -> int:
        """The device's place in the committee, from 1; 0 for everybody else."""
        committee = self.offer.secagg.committee
        return committee.index(device) + 1 if device in committee else 0

    def first_row(self, secret: bytes, now: float) -> RoundRow:
        """The round as the tables hold it when its offer is about to go out."""
        each = {"upload_bytes_each": self.upload_bytes, "float32_bytes_each": 4 * self.offer.length}
        return RoundRow(
            task=self.offer.task,
            number=self.offer.round,
            phase=Phase.OFFERED.value,
            reason="",
            frame=self.frame,
            offer_hash=self.offer_hash,
            secret=secret,
            epoch=self.offer.secagg.epoch,
            opening_ends_at=0,
            phase_since=now,
            stats={**each, "seconds": {}},
            waiting="",
        )
