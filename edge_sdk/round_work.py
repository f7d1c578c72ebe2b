"""The slow half of a round: judge an offer, train, protect, release to the outbox. Blocks; runs on the work thread.

Reads no clock (the verified time is an argument) and draws no randomness (entropy is passed in). Refuses an offer by
SPEC 7.1 and by the device's own policy; a charge to the privacy ledger and the upload it pays for commit together.
"""

from __future__ import annotations

import hashlib
import logging
import math
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from edge_sdk import device_round
from edge_sdk.config import Config
from edge_sdk.device_db import TIME_FLOOR, TIME_LATEST, fact, raise_fact
from edge_sdk.device_round import OwnKeys
from edge_sdk.examples_store import Example, ExamplesStore
from edge_sdk.held_offers import HeldOffers
from edge_sdk.journal import Journal
from edge_sdk.kept_updates import KeptUpdates
from edge_sdk.outbox import Outbox, seal_upload
from edge_sdk.privacy import accounting, statement
from edge_sdk.privacy.charges import spend
from edge_sdk.privacy.ledger import BudgetSpent, Ledger, Under
from edge_sdk.privacy.protection import noise_share, quantised
from edge_sdk.protocol import codec, roster
from edge_sdk.protocol.errors import OfferRefused, RemoteProtocolError
from edge_sdk.protocol.messages import Offer
from edge_sdk.protocol.roster import Roster
from edge_sdk.protocol.secagg import client, committee, ring
from edge_sdk.protocol.secagg.keystream import Keystream
from edge_sdk.training.plans import training_plan

if TYPE_CHECKING:
    from edge_sdk.artifact.schema import Schema
    from edge_sdk.training.jobs import TrainingPlan, TrainResult

MAX_ROSTER_BYTES: Final = 32 * 2**20

log = logging.getLogger("edge_sdk")
Fetch = Callable[[str, int], bytes]  # path, most bytes -> the blob; raises BlobError
Train = Callable[["TrainingInput", Callable[[], bool]], "TrainResult"]  # raises TrainingFailed


class NotNow(Exception):
    """Nothing is wrong with the offer, but not at this moment; asked again while the round is open."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class TrainingInput:
    """A model (ONNX bytes), its inputs and targets, and how to train. `key`: 32 fresh bytes for this job only.

    `subjects`, int64[B]: equal numbers for examples of one customer; None for the other units.
    """

    model: bytes
    features: dict[str, npt.NDArray[Any]]
    labels: npt.NDArray[Any]
    plan: TrainingPlan
    key: bytes
    subjects: npt.NDArray[np.int64] | None = None

    def __repr__(self) -> str:
        return f"TrainingInput({len(self.labels)} examples, ...)"


@dataclass(frozen=True, slots=True)
class Device:
    """Who acts, and with what. `keys()` tells the public keys that the device holds at this moment."""

    fleet: str
    keys: Callable[[], OwnKeys]
    authority_key: bytes
    sign: Callable[[bytes], bytes]
    entropy: Callable[[int], bytes]


class RoundWork:
    """One device's work on offers. One thread owns it, with a database connection of its own."""

    def __init__(
        self,
        device: Device,
        config: Config,
        connection: sqlite3.Connection,
        examples: ExamplesStore,
        *,
        fetch: Fetch,
        train: Train,
        locked_graph: Callable[[str, bytes], bytes],
        journal: Journal | None = None,
    ) -> None:
        """`locked_graph(task, expected)`: the graph digest that the offline key signed. Raises OtaError."""
        self._device, self._config, self._db, self._examples = device, config, connection, examples
        self._journal = journal
        self._fetch, self._train, self._locked_graph = fetch, train, locked_graph
        self._held = HeldOffers(connection)
        self._ledger = Ledger(connection)
        self._kept = KeptUpdates(config.home)

    def judge(self, frame: bytes, offer: Offer, now: int) -> None:
        """Check what binds a committee member too, then keep the offer. Raises RemoteProtocolError, BlobError.

        The authority signed the roster's times: it is later than `issued_at`, whatever this device's clock says, and no
        time after `expires_at` is believed of the aggregator (SPEC 4.5).
        """
        digest = codec.offer_hash(frame)
        if self._held.find(digest) is not None:
            return
        seen = self._held.seen(offer.task, offer.round)
        fleet, least = self._device.fleet, self._config.min_cohort
        device_round.check_terms(offer, digest, fleet=fleet, min_cohort=least, seen=seen)
        blob, verified = self._roster(offer, now)
        device_round.check_open(offer, max(now, verified.issued_at))
        device_round.check_roster(offer, verified, self._device.keys())
        # First: a crash in between must not let an offer of an older epoch pass, whose key may be deleted by then.
        raise_fact(self._db, "epoch", verified.epoch)
        self._held.hold(frame, offer, blob)
        raise_fact(self._db, TIME_FLOOR, verified.issued_at)
        raise_fact(self._db, TIME_LATEST, verified.expires_at)

    def _roster(self, offer: Offer, now: int) -> tuple[bytes, Roster]:
        terms = offer.secagg
        blob = self._held.roster_blob(terms.statement_hash) or self._fetch(f"roster/{terms.epoch}", MAX_ROSTER_BYTES)
        try:
            signed = roster.from_blob(blob)
            verified = roster.verify(
                signed.statement,
                signed.signature,
                self._device.authority_key,
                fleet=self._device.fleet,
                entries=signed.entries,
                now=now,
                min_epoch=fact(self._db, "epoch"),
            )
        except RemoteProtocolError as error:
            raise OfferRefused(f"the roster does not hold: {error}", reason="roster") from error
        return blob, verified

    def take_part(
        self,
        frame: bytes,
        offer: Offer,
        cancelled: Callable[[], bool],
        superseded: Callable[[], bool] = lambda: False,
    ) -> int:
        """Train, protect and release one upload; returns its size in bytes.

        `superseded()`: a later round of the task is open, so this one is over: what was trained is kept for that one.
        Raises OfferRefused (final), NotNow (ask again), BlobError, TrainingFailed, OtaError, OSError (disk full).
        """
        digest = codec.offer_hash(frame)
        device_round.check_upload(offer, self._config, self._held.seen(offer.task, offer.round))
        erasures = self._examples.erasures(offer.task)
        examples = self._consented(offer)
        self._check_affordable(offer, examples)

        def void() -> bool:
            return self._examples.erasures(offer.task) != erasures

        _check_newest(offer, superseded)
        values = self._kept.find(offer, erasures) if offer.query is None else None
        if values is None:
            values = self._worked(offer, self._model(offer), examples, lambda: cancelled() or void())
            if superseded():
                self._set_aside(offer, values, erasures)
        _check_newest(offer, superseded)
        if offer.query is None:
            self._kept.forget(offer.task)  # before it leaves: a crash costs the work, never a second release
        plaintext = self._masked(offer, digest, values)
        upload = seal_upload(
            plaintext,
            task=offer.task,
            round_number=offer.round,
            closes_at=offer.closes_at,
            offer_hash=digest,
            device=self._device.keys().device,
            round_key=offer.round_key,
            consent=offer.consent,
            entropy=self._device.entropy,
        )
        Outbox.commit(self._db, self._config.home / "outbox", upload, lambda: self._release(offer, digest, void()))
        return len(plaintext)

    def _set_aside(self, offer: Offer, update: npt.NDArray[np.float32], erasures: int) -> None:
        """Keep a trained update, unless it holds what was erased while it trained."""
        if offer.query is not None:
            return
        self._kept.keep(offer, update, erasures)
        if self._examples.erasures(offer.task) != erasures:
            self._kept.forget(offer.task)

    def _consented(self, offer: Offer) -> list[Example]:
        """Examples that this offer may learn from (SPEC 6.7). Raises NotNow "consent" where that leaves too few."""
        examples = self._examples.read(offer.task, offer.consent)
        held = self._examples.count(offer.task)
        if len(examples) < self._config.min_examples <= held:
            what = f"{len(examples)} of {held} examples of {offer.task} have consent to notice {offer.consent}"
            raise NotNow(f"{what}; {self._config.min_examples} are needed", reason="consent")
        return examples

    def _release(self, offer: Offer, digest: bytes, void: bool) -> None:
        """Inside the transaction that releases the upload: nothing that holds what was erased since may leave."""
        if void:
            raise NotNow(f"examples of {offer.task} were erased while this round trained", reason="consent")
        self._charge(offer)
        terms = offer.privacy
        spent = self._ledger.epsilon(offer.task, terms.unit, terms.delta)
        facts: dict[str, Any] = {"unit": terms.unit, "placement": terms.placement, "delta": terms.delta}
        facts |= {"epsilon_after": spent, "without_noise": terms.insecure_without_noise}
        if not terms.insecure_without_noise:
            rounds, _ = self._ledger.counts(offer.task, terms.unit)
            said = statement.charged(terms, spent, rounds, offer.secagg.n_min)
            facts |= {"adjacency": said.adjacency, "accountant": said.accountant, "against": said.against}
        self._note("upload", offer, offer=digest.hex(), consent=offer.consent, **facts)

    def _note(self, kind: str, about: Offer, **data: Any) -> None:
        if self._journal is not None:
            self._journal.note(kind, about.task, about.round, **data)

    # -- privacy ---------------------------------------------------------------------------------------------------

    def _check_affordable(self, offer: Offer, examples: Sequence[Example]) -> None:
        """Enough examples (customers, where they are the unit) and budget left, before anything is fetched."""
        terms = offer.privacy
        by_customer = terms.unit == "customer"
        units = len(np.unique(subject_numbers(examples))) if by_customer else len(examples)
        if units < self._config.min_examples or units * terms.sample_rate < 1:
            least = max(self._config.min_examples, math.ceil(1 / terms.sample_rate))
            what = "customers with examples" if by_customer else "examples"
            raise NotNow(f"{units} {what} of {offer.task}, {least} are needed", reason="examples")
        try:
            self._check_budget(offer, spend(terms, offer.length))
        except BudgetSpent as error:
            raise OfferRefused(str(error), reason="privacy") from error

    def _check_budget(self, offer: Offer, cost: accounting.Spend) -> None:
        terms = offer.privacy
        if not terms.insecure_without_noise:
            basis = statement.basis(terms, offer.secagg.n_min)
            self._ledger.check(offer.task, terms.unit, cost, self._config.max_epsilon, terms.delta, basis=basis)

    def _charge(self, offer: Offer) -> None:
        """Inside the transaction that releases the upload."""
        terms = offer.privacy
        if terms.insecure_without_noise:
            log.warning(
                "round %d of %s: an update without noise is released, as the settings allow", offer.round, offer.task
            )
            return
        cost = spend(terms, offer.length)
        self._check_budget(offer, cost)
        self._ledger.charge(offer.task, terms.unit, offer.round, cost, Under(terms, offer.secagg.n_min))

    # -- training --------------------------------------------------------------------------------------------------

    def _model(self, offer: Offer) -> bytes:
        """The checkpoint to train on, checked as an artefact and against the locked graph."""
        from edge_sdk.artifact.errors import ArtifactError
        from edge_sdk.artifact.graph_lock import graph_digest
        from edge_sdk.artifact.safety import check_model

        if offer.graph_digest != self._locked_graph(offer.task, offer.graph_digest):
            raise OfferRefused("the graph is not the one that the offline key locked", reason="graph")
        limit = min(offer.model_bytes, self._config.max_model_mib * 2**20)
        data = self._checkpoint(offer.models[0], limit)
        try:
            check_model(data, limit)
            digest = graph_digest(data)
        except ArtifactError as error:
            raise OfferRefused(f"the checkpoint is not fit to train on: {error}", reason="model") from error
        if digest != offer.graph_digest:
            raise OfferRefused("the checkpoint has another graph than the offer says", reason="graph")
        return data

    def _checkpoint(self, sha256: bytes, limit: int) -> bytes:
        cached = self._config.home / "checkpoint.onnx"
        data = _read(cached)
        if hashlib.sha256(data).digest() == sha256:
            return data
        data = self._fetch(f"checkpoint/{sha256.hex()}", limit)
        if hashlib.sha256(data).digest() != sha256:
            raise OfferRefused("the checkpoint has another hash than the offer says", reason="model")
        partial = cached.with_suffix(".part")
        partial.write_bytes(data)
        partial.replace(cached)
        return data

    def _worked(
        self, offer: Offer, model: bytes, examples: Sequence[Example], cancelled: Callable[[], bool]
    ) -> npt.NDArray[np.float32]:
        """What the offer asks for, float32 [offer.length]: a trained update, or statistics of the examples."""
        if offer.query is not None:
            return self._answered(offer, model, examples)
        update = self._trained(offer, model, examples, cancelled).update
        self._note("trained", offer, model=offer.models[0].hex(), steps=offer.privacy.steps)
        return update

    def _answered(self, offer: Offer, model: bytes, examples: Sequence[Example]) -> npt.NDArray[np.float32]:
        """A query's statistics (SPEC 7.9). The journal names their kinds; the held offer names the fields."""
        from edge_sdk.analytics.layout import QueryRefused
        from edge_sdk.artifact.names import SCHEMA
        from edge_sdk.artifact.schema import Schema
        from edge_sdk.artifact.weights import metadata
        from edge_sdk.asked_round import answer

        assert offer.query is not None
        schema = Schema.from_json(metadata(model)[SCHEMA])
        fitting = [example for example in examples if fits(schema, example)]
        self._check_affordable(offer, fitting)
        try:
            values = answer(offer, model, schema, fitting, subject_numbers(fitting), entropy=self._device.entropy)
        except QueryRefused as error:
            raise OfferRefused(str(error), reason="query") from error
        kinds = dict.fromkeys(str(statistic.kind) for statistic in offer.query.statistics)
        self._note("asked", offer, query=offer.query.name, statistics=[*kinds])
        return values

    def _trained(
        self, offer: Offer, model: bytes, examples: Sequence[Example], cancelled: Callable[[], bool]
    ) -> TrainResult:
        from edge_sdk.artifact.features import features, labels
        from edge_sdk.artifact.names import SCHEMA
        from edge_sdk.artifact.schema import Schema
        from edge_sdk.artifact.weights import metadata

        schema = Schema.from_json(metadata(model)[SCHEMA])
        fitting = [example for example in examples if fits(schema, example)]
        if len(fitting) < len(examples):
            log.warning("%d examples of %s do not fit the model's schema", len(examples) - len(fitting), offer.task)
        self._check_affordable(offer, fitting)
        inputs = features(schema, [example.fields for example in fitting])
        targets = labels(schema, [example.label for example in fitting], [example.fields for example in fitting])
        plan = training_plan(offer.privacy, len(fitting))
        subjects = subject_numbers(fitting) if plan.unit == "customer" else None
        given = TrainingInput(model, inputs, targets, plan, self._device.entropy(32), subjects)
        result = self._train(given, cancelled)
        if len(result.update) != offer.length:
            raise OfferRefused(f"the update has {len(result.update)} values, the offer {offer.length}", reason="length")
        return result

    # -- protection ------------------------------------------------------------------------------------------------

    def _masked(self, offer: Offer, digest: bytes, update: npt.NDArray[np.float32]) -> bytes:
        """Clip, quantise, add the device's share of the noise, mask: the upload's plaintext (SPEC 6.1)."""
        terms, entropy = offer.privacy, self._device.entropy
        values = quantised(terms, update, Keystream(entropy(32)))
        noise = noise_share(terms, len(values), Keystream(entropy(32)))
        blob = self._held.roster_blob(offer.secagg.statement_hash)
        assert blob is not None, "judge keeps the roster before anything is trained"
        keys = {entry.device: entry.epoch_key for entry in roster.from_blob(blob).entries}
        upload = client.protect(
            profile=ring.profile(offer.secagg.profile),
            plan=committee.plan(len(offer.secagg.committee)),
            offer_hash=digest,
            device=self._device.keys().device,
            members=[client.Member(name, keys[name]) for name in offer.secagg.committee],
            values=values,
            noise=noise,
            sign=self._device.sign,
            entropy=entropy,
        )
        return upload.encode()


def _check_newest(offer: Offer, superseded: Callable[[], bool]) -> None:
    if superseded():
        raise NotNow(f"round {offer.round} of {offer.task} is over, a later one is open", reason="superseded")


def subject_numbers(examples: Sequence[Example]) -> npt.NDArray[np.int64]:
    """int64[B], the same number for examples of one customer; an example without a subject is a unit of its own."""
    known: dict[bytes | int, int] = {}
    owners: list[bytes | int] = [example.subject or place for place, example in enumerate(examples)]
    return np.array([known.setdefault(owner, len(known)) for owner in owners], np.int64)


def fits(schema: Schema, example: Example) -> bool:
    """Can a model of this schema read the example?"""
    from edge_sdk.artifact.errors import RecordError
    from edge_sdk.artifact.features import features, labels

    try:
        features(schema, [example.fields])
        labels(schema, [example.label], [example.fields])
    except RecordError:
        return False
    return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
