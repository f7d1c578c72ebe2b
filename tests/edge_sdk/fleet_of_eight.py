"""Eight devices of one fleet with all their keys, so that tests can make real offers, rosters and openings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_sdk.artifact.graph_lock import graph_digest
from edge_sdk.artifact.schema import Label, NumberField, Schema
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.artifact.weights import read_vector
from edge_sdk.protocol import codec, roster
from edge_sdk.protocol.messages import Offer, OpeningNotice, OpeningRequest, PrivacyTerms, SealedShareEntry, SecAggTerms
from edge_sdk.protocol.sealing import ROUND_SECRET_BYTES, RoundKey
from edge_sdk.protocol.secagg import client, committee, ring, server

NOW = 1_800_000_000
FLEET, TASK = "f0", "churn"
SCHEMA = Schema((NumberField("minutes", 100.0, 50.0), NumberField("calls")), Label("churn", "binary", ("no", "yes")))
MODEL = tabular_classifier(SCHEMA, [4], seed=1)
LENGTH = len(read_vector(MODEL))


@dataclass
class Member:
    """One device's keys."""

    name: str
    sign: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    epoch: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)

    @property
    def entry(self) -> roster.RosterEntry:
        signing, epoch = self.sign.public_key().public_bytes_raw(), self.epoch.public_key().public_bytes_raw()
        return roster.RosterEntry(self.name, signing, epoch, False)


class FleetOfEight:
    """An authority, an aggregator's keys and eight members."""

    def __init__(self) -> None:
        self.authority, self.aggregator = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        self.round_key = RoundKey(bytes(range(ROUND_SECRET_BYTES)))
        self.members = [Member(f"device-{i}") for i in range(8)]
        self.blobs: dict[str, bytes] = {f"checkpoint/{hashlib.sha256(MODEL).hexdigest()}": MODEL}
        self.roster = self.sign_roster(1, self.authority)

    def sign_roster(self, epoch: int, key: Ed25519PrivateKey) -> roster.Roster:
        """Sign, put it among the blobs, and give it back as the signer's own verification sees it."""
        signed = roster.sign(
            roster.freeze(m.entry for m in self.members), key, fleet=FLEET, epoch=epoch, beacon=bytes(32),
            issued_at=NOW - 10, expires_at=NOW + 90_000,
        )  # fmt: skip
        self.blobs[f"roster/{epoch}"] = signed.to_blob()
        return roster.verify(
            signed.statement, signed.signature, key.public_key().public_bytes_raw(), fleet=FLEET,
            entries=signed.entries, now=NOW, min_epoch=epoch,
        )  # fmt: skip

    def offer(self, number: int = 1, known: roster.Roster | None = None, **privacy: object) -> Offer:
        known = known or self.roster
        names = tuple(sorted(m.name for m in self.members))
        secagg = SecAggTerms("P24", 5, 8, known.epoch, known.statement_hash, False, names, 1)
        terms = PrivacyTerms("device", "shared", 4.0, 1.0, 8, 0.5, 2, 0.1, 1e-5, 4, 1.0, 0.01, False, 50, 0.0, 0)
        terms = msgspec.structs.replace(terms, **privacy)
        return Offer(
            FLEET, TASK, number, NOW - 5, NOW + 600, (hashlib.sha256(MODEL).digest(),), len(MODEL),
            graph_digest(MODEL), LENGTH, secagg, terms, 0, self.round_key.public_bytes(), None,
        )  # fmt: skip

    def frame(self, offer: Offer) -> bytes:
        return codec.encode(offer, fleet=FLEET, sender="aggregator", recipient="all", sign=self.aggregator.sign)

    def opening(self, offer: Offer, digest: bytes, member: str, devices: int = 6) -> tuple[OpeningNotice, bytes]:
        """A real opening request to one member about the first `devices` devices, and its notice."""
        plan, ours = committee.plan(8), ring.profile("P24")
        index = offer.secagg.committee.index(member)
        sealed_to = [client.Member(m.name, m.entry.epoch_key) for m in self.members]
        entries = []
        for device in self.members[:devices]:
            upload = client.protect(
                profile=ours, plan=plan, offer_hash=digest, device=device.name, members=sealed_to,
                values=np.zeros(LENGTH, np.int32), noise=None, sign=device.sign.sign,
                entropy=np.random.default_rng().bytes,
            )  # fmt: skip
            proof = tuple(server.share_proofs(upload.sealed_shares)[index])
            entries.append(SealedShareEntry(device.name, upload.signature, bytes(upload.sealed_shares[index]), proof))
        blob = codec.pack(OpeningRequest(TASK, offer.round, digest, (tuple(entries),)))
        return OpeningNotice(TASK, offer.round, len(blob), hashlib.sha256(blob).digest()), blob
