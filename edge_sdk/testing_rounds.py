"""Rounds of a fake aggregator: four companions beside the device under test, so that its uploads can be opened.

The companions are members of the committee, upload zeros and add no noise: an opened sum is what the device under test
contributed, its noise included, and the five error floors (SPEC 7.4; a standard deviation of 4 steps each). A real
aggregator never opens one device's contribution: `n_min` devices that add up nothing of their own do not exist.
Offers every unit and placement. Refuses a task whose graph was not locked before the client started.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from msgspec.structs import replace

from edge_sdk.analytics import layout
from edge_sdk.privacy.charges import sensitivity
from edge_sdk.protocol import chunks, roster
from edge_sdk.protocol.messages import (
    Hello,
    Offer,
    Placement,
    PrivacyTerms,
    Query,
    SecAggTerms,
    Unit,
)
from edge_sdk.protocol.sealing import ROUND_SECRET_BYTES, ChunkSealer, RoundKey
from edge_sdk.protocol.secagg import client, committee, member, ring
from edge_sdk.protocol.secagg.residues import RunningSum
from edge_sdk.protocol.secagg.server import Opening, share_proofs

if TYPE_CHECKING:
    from edge_sdk.identity.keys import DeviceKeys

COMPANIONS: Final = 4
HONEST: Final = 4  # of the five: the device's default policy takes no more
_P24, _PLAN = ring.profile("P24"), committee.plan(COMPANIONS + 1)


class _Companion:
    """A member of the committee that uploads zeros."""

    def __init__(self, name: str) -> None:
        self.name, self.sign, self.epoch = name, Ed25519PrivateKey.generate(), X25519PrivateKey.generate()

    @property
    def entry(self) -> roster.RosterEntry:
        signing, epoch = self.sign.public_key().public_bytes_raw(), self.epoch.public_key().public_bytes_raw()
        return roster.RosterEntry(self.name, signing, epoch, False)


class FakeLocks:
    """The release repository of one key, which holds locked graphs and no release."""

    def __init__(self, now: float) -> None:
        from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]  # re-exported without __all__
        from tuf.api.metadata import Root, Targets  # type: ignore[attr-defined]  # re-exported without __all__

        self.files: dict[str, bytes] = {}
        self._signer, self._version = CryptoSigner.generate_ed25519(), 0
        self._expires = datetime.fromtimestamp(now, UTC).replace(microsecond=0) + timedelta(days=3650)
        root = Root(expires=self._expires, consistent_snapshot=True)
        for role in ("root", "timestamp", "snapshot", "targets"):
            root.add_key(self._signer.public_key, role)
        self.root = self.files["metadata/1.root.json"] = self._signed(root)
        self._targets = Targets(expires=self._expires)

    def lock(self, task: str, model: bytes) -> None:
        """Lock the graph of a task."""
        from tuf.api.metadata import TargetFile  # type: ignore[attr-defined]  # re-exported without __all__

        from edge_sdk.artifact.graph_lock import graph_digest

        data = json.dumps({"task": task, "graph_digest": graph_digest(model).hex(), "max_bytes": 1 << 24}).encode()
        path = f"graphs/{task}.json"
        self._targets.targets[path] = TargetFile.from_data(path, data, ["sha256"])
        self.files[f"targets/graphs/{hashlib.sha256(data).hexdigest()}.{task}.json"] = data
        self._publish()

    def _publish(self) -> None:
        from tuf.api.metadata import MetaFile, Snapshot, Timestamp  # type: ignore[attr-defined]  # as above

        self._version += 1
        version, until = self._version, self._expires
        self._targets.version = version
        snapshot = Snapshot(version=version, expires=until, meta={"targets.json": MetaFile(version)})
        self.files[f"metadata/{version}.targets.json"] = self._signed(self._targets)
        self.files[f"metadata/{version}.snapshot.json"] = self._signed(snapshot)
        self.files["metadata/timestamp.json"] = self._signed(
            Timestamp(version=version, expires=until, snapshot_meta=MetaFile(version))
        )

    def _signed(self, part: Any) -> bytes:
        from tuf.api.metadata import Metadata

        metadata: Metadata[Any] = Metadata(part)
        metadata.sign(self._signer)
        return bytes(metadata.to_bytes())


class FakeRounds:
    """What a fake aggregator offers, and how it opens what came back. `blobs`: path -> bytes, for the device."""

    def __init__(self, fleet: str, device: str, keys: DeviceKeys, authority: Ed25519PrivateKey, now: float) -> None:
        self._fleet, self._device, self._keys, self._authority = fleet, device, keys, authority
        self._companions = [_Companion(f"companion-{i}") for i in range(COMPANIONS)]
        self._round_key = RoundKey(os.urandom(ROUND_SECRET_BYTES))
        self._locks = FakeLocks(now)
        self._models: dict[str, bytes] = {}
        self.tuf_root = self._locks.root.decode()
        self.blobs: dict[str, bytes] = {}

    def lock(self, task: str, model: bytes) -> None:
        """Lock the graph of a task; its rounds train this model."""
        self._locks.lock(task, model)
        self._models[task] = model
        self.blobs |= {f"tuf/{path}": data for path, data in self._locks.files.items()}
        self.blobs[f"checkpoint/{hashlib.sha256(model).hexdigest()}"] = model

    def offer(
        self, task: str, number: int, terms: PrivacyTerms, *, now: int, consent: int = 0, query: Query | None = None
    ) -> Offer:
        """A round of ten minutes for the locked model of a task, or of a query to its devices."""
        from edge_sdk.artifact.graph_lock import graph_digest
        from edge_sdk.artifact.weights import read_vector

        model, known = self._models[task], self._roster(now)
        names = tuple(sorted(entry.device for entry in known.entries))
        length = len(read_vector(model)) if query is None else layout.length(query)
        secagg = SecAggTerms("P24", len(names), 100, known.epoch, known.statement_hash, False, names, 1)
        return Offer(
            self._fleet, task, number, now, now + 600, (hashlib.sha256(model).digest(),), len(model),
            graph_digest(model), length, secagg, terms, consent, self._round_key.public_bytes(), query,
        )  # fmt: skip

    def _roster(self, now: int) -> roster.Roster:
        own = roster.RosterEntry(self._device, self._keys.sign_public, self._keys.epoch_public, False)
        entries = roster.freeze([own, *(companion.entry for companion in self._companions)])
        signed = roster.sign(
            entries, self._authority, fleet=self._fleet, epoch=1, beacon=bytes(32), issued_at=now - 1,
            expires_at=now + 90_000,
        )  # fmt: skip
        self.blobs["roster/1"] = signed.to_blob()
        public = self._authority.public_key().public_bytes_raw()
        return roster.verify(
            signed.statement, signed.signature, public, fleet=self._fleet, entries=signed.entries, now=now, min_epoch=1
        )

    def opened(self, offer: Offer, hello: Hello, sealed: Mapping[int, bytes]) -> npt.NDArray[np.int64]:
        """int64[length], in steps: what the device's upload adds to a sum. Raises ProtocolError where it does not fit.

        `sealed`: the chunks that arrived, by index; all of them.
        """
        entries = {entry.device: entry for entry in roster.from_blob(self.blobs["roster/1"]).entries}
        members = [client.Member(name, entries[name].epoch_key) for name in offer.secagg.committee]
        length = client.masked_length(offer.length)
        uploads = {
            companion.name: client.protect(
                profile=_P24, plan=_PLAN, offer_hash=hello.offer_hash, device=companion.name, members=members,
                values=np.zeros(offer.length, np.int32), noise=None, sign=companion.sign.sign, entropy=os.urandom,
            )
            for companion in self._companions
        }  # fmt: skip
        plain = self._plain(hello, sealed)
        uploads[self._device] = client.MaskedUpload.decode(plain, profile=_P24, plan=_PLAN, length=length)
        client.verify_upload(uploads[self._device], hello.offer_hash, self._device, self._keys.sign_public)
        total = RunningSum(_P24, length)
        for upload in uploads.values():
            total.add(upload.residues)
        opening = Opening(
            profile=_P24, plan=_PLAN, offer_hash=hello.offer_hash, length=length, device_count=len(uploads),
            survivors_hash=member.survivors_hash(hello.offer_hash, [list(uploads)]),
        )  # fmt: skip
        for companion in self._companions:
            index = offer.secagg.committee.index(companion.name)
            opening.receive(index, self._answer(companion, index, hello.offer_hash, uploads, entries))
        return opening.open(total)

    def _answer(
        self,
        companion: _Companion,
        index: int,
        offer_hash: bytes,
        uploads: Mapping[str, client.MaskedUpload],
        entries: Mapping[str, roster.RosterEntry],
    ) -> member.Answer:
        shares = [
            member.SealedShare(
                name, upload.signature, bytes(upload.sealed_shares[index]), share_proofs(upload.sealed_shares)[index]
            )
            for name, upload in uploads.items()
        ]
        return member.answer(
            profile=_P24, plan=_PLAN, offer_hash=offer_hash, member=companion.name, index=index,
            secret=companion.epoch, n_min=len(uploads), groups=[shares], group_count=1,
            roster={name: entry.sign_key for name, entry in entries.items()},
        )  # fmt: skip

    def _plain(self, hello: Hello, sealed: Mapping[int, bytes]) -> bytes:
        info = chunks.hello_info(hello.offer_hash, self._device, hello.upload)
        key = self._round_key.open(hello.sealed_key, info)
        sealer = ChunkSealer(key, chunks.chunk_context(hello.offer_hash, self._device, hello.upload, hello.size))
        count = chunks.chunk_count(hello.size)
        return b"".join(sealer.open(index, index == count - 1, sealed[index]) for index in range(count))


def fake_terms(unit: Unit, placement: Placement, noise_multiplier: float = 1.0) -> PrivacyTerms:
    """Terms for a small model: one step a round, half of the units in it; 0 for no noise, if the device allows that."""
    return PrivacyTerms(
        unit=unit,
        placement=placement,
        noise_multiplier=noise_multiplier,
        max_grad_norm=1.0,
        per_customer=32,
        sample_rate=0.5,
        steps=1,
        learning_rate=0.1,
        delta=1e-5,
        honest=HONEST if placement == "shared" else 1,
        clip=1.0 if unit == "device" or placement == "local" else 64.0,
        step=0.004,
        insecure_without_noise=noise_multiplier == 0,
        expected_batch=32,
        proximal=0.0,
        weight_bound=0,
    )


def query_terms(unit: Unit, placement: Placement, noise_multiplier: float = 1.0) -> PrivacyTerms:
    """Terms for a query: every unit counts, some hundreds of them, and the steps are fine; else as `fake_terms`."""
    clip, step = (1.0, 2.0**-14) if unit == "device" else (512.0, 2.0**-7)
    return replace(fake_terms(unit, placement, noise_multiplier), sample_rate=1.0, clip=clip, step=step)


def sums(offer: Offer, opened: npt.NDArray[np.int64]) -> list[npt.NDArray[np.float64]]:
    """The opened values of each statistic of a query, in its order: sums over units (SPEC 7.9), noise included."""
    assert offer.query is not None
    parts = layout.parts(offer.query, sensitivity(offer.privacy))
    scale = offer.privacy.step / offer.privacy.sample_rate
    return [opened[part.columns].astype(np.float64) * (scale / part.weight) for part in parts]
