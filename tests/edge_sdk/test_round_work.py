"""From an offer to a paid-for upload: what is released can be opened and was charged, what is refused left no trace."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import resource
import sqlite3
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fleet_of_eight import FLEET, LENGTH, MODEL, NOW, SCHEMA, TASK, FleetOfEight

from edge_sdk.artifact.graph_lock import graph_digest
from edge_sdk.artifact.starter import tabular_classifier
from edge_sdk.blobs import BlobAbsent
from edge_sdk.config import Config
from edge_sdk.device_db import TIME_FLOOR, TIME_LATEST, DiskFull, fact, open_device_db
from edge_sdk.device_round import OwnKeys
from edge_sdk.examples_store import ExamplesStore
from edge_sdk.journal import Journal
from edge_sdk.journal import rows as journal_rows
from edge_sdk.outbox import Outbox
from edge_sdk.privacy.accounting import ORDERS, epsilon
from edge_sdk.privacy.ledger import BudgetSpent, Ledger
from edge_sdk.privacy.protection import noise_share, quantised
from edge_sdk.protocol import chunks, codec, hashlog, roster
from edge_sdk.protocol.errors import LocalProtocolError, OfferRefused
from edge_sdk.protocol.messages import Offer
from edge_sdk.protocol.sealing import ChunkSealer
from edge_sdk.protocol.secagg import client, committee, ring
from edge_sdk.protocol.secagg.keystream import Keystream
from edge_sdk.round_work import (
    Device,
    NotNow,
    RoundWork,
    TrainingInput,
    spend,
)
from edge_sdk.training.jobs import Sampling, TrainResult, check_plan
from edge_sdk.training.plans import training_plan

ME = 3


class Bench:
    """One device of the fleet, with everything around its work given by the test."""

    def __init__(self, home: Path, **settings: object) -> None:
        self.fleet, self.home = FleetOfEight(), home
        self.me = self.fleet.members[ME]
        self.db = open_device_db(home / "device.db")
        self.examples = ExamplesStore(home / "examples.db", home / "examples.key", 1000, os.urandom)
        self.update = np.linspace(-0.1, 0.1, LENGTH, dtype=np.float32)
        self.given: list[TrainingInput] = []
        self.drawn: list[bytes] = []
        self.locked = graph_digest(MODEL)
        (home / "outbox").mkdir()
        config = Config(home=home, **{"max_epsilon": 100.0, **settings})
        keys = OwnKeys(self.me.name, self.me.entry.sign_key, (self.me.entry.epoch_key,))
        authority = self.fleet.authority.public_key().public_bytes_raw()
        device = Device(FLEET, lambda: keys, authority, self.me.sign.sign, self.entropy)
        self.work = RoundWork(
            device, config, self.db, self.examples,
            fetch=self.fetch, train=self.train, locked_graph=lambda task, expected: self.locked,
        )  # fmt: skip
        self.record(30)

    def record(self, count: int, customers: int = 0) -> None:
        """`count` examples, of so many customers in turn, or of nobody."""
        of = [f"customer {i % customers}" if customers else None for i in range(count)]
        rows = [(TASK, {"minutes": 90.0 + i, "calls": float(i)}, "yes" if i % 2 else "no", of[i]) for i in range(count)]
        self.examples.add_many(rows)

    def entropy(self, count: int) -> bytes:
        self.drawn.append(os.urandom(count))
        return self.drawn[-1]

    def fetch(self, path: str, limit: int) -> bytes:
        if path not in self.fleet.blobs:
            raise BlobAbsent(path, reason="absent")
        assert len(self.fleet.blobs[path]) <= limit
        return self.fleet.blobs[path]

    def train(self, given: TrainingInput, cancelled) -> TrainResult:
        assert not cancelled()
        self.given.append(given)
        return TrainResult(self.update, Sampling(0.5, given.plan.noise_multiplier, given.plan.steps), 0.7, 30)

    def take_part(self, offer: Offer) -> int:
        frame = self.fleet.frame(offer)
        self.work.judge(frame, offer, NOW)
        return self.work.take_part(frame, offer, lambda: False)

    def opened(self, offer: Offer, size: int) -> client.MaskedUpload:
        """The newest upload, opened with the round key."""
        upload, sealed_key = self.db.execute("SELECT upload, sealed_key FROM outbox ORDER BY rowid DESC").fetchone()
        digest = codec.offer_hash(self.fleet.frame(offer))
        key = self.fleet.round_key.open(sealed_key, chunks.hello_info(digest, self.me.name, upload))
        sealed = (self.home / "outbox" / f"{upload.hex()}.sealed").read_bytes()
        sealer = ChunkSealer(key, chunks.chunk_context(digest, self.me.name, upload, size))
        plain = b"".join(
            sealer.open(i, i == chunks.chunk_count(size) - 1, sealed[i * 49_168 : (i + 1) * 49_168])
            for i in range(chunks.chunk_count(size))
        )
        return client.MaskedUpload.decode(
            plain, profile=ring.profile("P24"), plan=committee.plan(8), length=LENGTH + 64
        )

    def trace(self) -> tuple[int, int, int]:
        """Rows in the outbox, files in it, rounds charged."""
        rows = self.db.execute("SELECT COUNT(*) FROM outbox").fetchone()[0]
        ledger = Ledger(self.db)
        charged = sum(len(ledger.rounds(TASK, unit)) for unit in ("device", "record", "customer"))
        return rows, len(list((self.home / "outbox").iterdir())), charged


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


EVERY = [(unit, placement) for unit in ("record", "customer", "device") for placement in ("local", "shared")]


@pytest.mark.parametrize(("unit", "placement"), EVERY)
def test_what_is_released_opens_under_the_round_key_and_is_signed_by_the_device(bench, unit, placement):
    offer = bench.fleet.offer(unit=unit, placement=placement, steps=1)
    size = bench.take_part(offer)
    assert size == client.upload_bytes(ring.profile("P24"), committee.plan(8), LENGTH + 64)
    masked, digest = bench.opened(offer, size), codec.offer_hash(bench.fleet.frame(offer))
    client.verify_upload(masked, digest, bench.me.name, bench.me.entry.sign_key)
    assert bench.trace() == (1, 1, 1)
    assert Ledger(bench.db).spent(TASK, unit) == pytest.approx(spend(offer.privacy, LENGTH))
    assert 0 < Ledger(bench.db).epsilon(TASK, unit, 1e-5) < math.inf


@pytest.mark.parametrize(("unit", "placement"), EVERY)
def test_training_rounding_and_noise_each_have_a_fresh_key_of_their_own(bench, unit, placement):
    offer = bench.fleet.offer(unit=unit, placement=placement, steps=1)
    masked = bench.opened(offer, bench.take_part(offer))
    training, rounding, noise, *rest = bench.drawn
    assert bench.given[0].key == training
    # The same upload again from what was drawn, so that a key that is not one of these shows.
    values = quantised(offer.privacy, bench.update, Keystream(rounding))
    entries = {member.name: member.entry for member in bench.fleet.members}
    draws = iter(rest)
    again = client.protect(
        profile=ring.profile("P24"), plan=committee.plan(8), offer_hash=codec.offer_hash(bench.fleet.frame(offer)),
        device=bench.me.name, values=values, noise=noise_share(offer.privacy, len(values), Keystream(noise)),
        members=[client.Member(name, entries[name].epoch_key) for name in offer.secagg.committee],
        sign=bench.me.sign.sign, entropy=lambda count: next(draws),
    )  # fmt: skip
    assert bytes(again.residues) == bytes(masked.residues)
    bench.take_part(bench.fleet.offer(2, unit=unit, placement=placement, steps=1))
    keys = [draw for draw in bench.drawn if len(draw) == 32]
    assert len(set(keys)) == len(keys) >= 12
    assert bench.given[1].key in keys[len(keys) // 2 :]


def test_the_training_is_what_the_offer_says_and_noise_of_the_record_unit_is_added_there(bench):
    bench.take_part(bench.fleet.offer(unit="record", placement="local", noise_multiplier=1.5, sample_rate=0.3))
    plan = bench.given[0].plan
    # Neither the rate nor the divisor may follow the number of examples: the update would betray it.
    assert (plan.unit, plan.noise_multiplier, plan.steps) == ("record", 1.5, 2)
    assert (plan.sample_rate, plan.batch_size) == (0.3, 50)
    assert bench.given[0].features["features"].shape == (30, 2)
    bench.take_part(bench.fleet.offer(2, unit="device"))
    assert (bench.given[1].plan.unit, bench.given[1].plan.noise_multiplier) == ("device", 0.0)


@pytest.mark.parametrize(("unit", "placement"), EVERY)
def test_noise_is_added_once_in_training_or_in_the_mask(bench, unit, placement):
    terms = bench.fleet.offer(unit=unit, placement=placement, steps=1, noise_multiplier=2.0, max_grad_norm=0.5).privacy
    plan, count = training_plan(terms, 40), 40_000
    check_plan(plan)
    noise = noise_share(terms, count, Keystream(bytes(32)))
    in_training = unit != "device" and placement == "local"
    assert (plan.noise_multiplier, noise is None) == ((2.0, True) if in_training else (0.0, False))
    if noise is not None:
        # In steps of 0.01: 2 times the clip of the unit (1.0, or 0.5 of a gradient), over the 4 honest where shared.
        expected = 2.0 * (1.0 if unit == "device" else 0.5) / 0.01 / math.sqrt(4 if placement == "shared" else 1)
        assert abs(noise.std() / expected - 1) < 5 / math.sqrt(2 * count)
    assert noise_share(msgspec.structs.replace(terms, insecure_without_noise=True), 9, Keystream(bytes(32))) is None


def test_a_sum_of_gradients_is_rounded_once_and_a_whole_update_within_its_norm(bench):
    """A vector whose rounding up leaves the norm that a whole update keeps tells the two apart."""

    class AllUp:
        def uint32(self, count: int) -> np.ndarray:
            return np.full(count, 2**32 - 1, np.uint32)

    update = np.full(4000, 0.001, np.float32)
    for unit, placement in EVERY:
        terms = bench.fleet.offer(unit=unit, placement=placement, clip=1.0, step=1.0).privacy
        assert quantised(terms, update, AllUp()).all() == (placement == "shared" and unit != "device")


def test_customers_are_told_apart_and_counted_as_units(tmp_path):
    bench = Bench(tmp_path, min_examples=36)
    terms = {"unit": "customer", "placement": "shared", "steps": 1}
    bench.record(60, customers=5)
    with pytest.raises(NotNow, match="35 customers") as refused:
        bench.take_part(bench.fleet.offer(**terms))
    assert refused.value.reason == "examples"
    assert bench.given == []
    bench.record(6, customers=6)
    bench.take_part(bench.fleet.offer(**terms))
    subjects = bench.given[0].subjects
    # 30 examples of nobody are units of their own; five customers have 13 each, the sixth one.
    assert sorted(np.unique(subjects, return_counts=True)[1]) == [1] * 31 + [13] * 5
    assert (subjects[30:35] == subjects[35:40]).all()
    bench.take_part(bench.fleet.offer(2, unit="record", placement="local"))
    assert bench.given[1].subjects is None


def test_an_owner_can_insist_on_local_noise(tmp_path):
    bench = Bench(tmp_path, placements=("local",))
    with pytest.raises(OfferRefused, match="shared noise is not allowed") as refused:
        bench.take_part(bench.fleet.offer())
    assert refused.value.reason == "privacy"
    assert bench.take_part(bench.fleet.offer(2, placement="local")) > 0


@pytest.mark.parametrize("unit", ["record", "customer"])
def test_noise_shared_by_sums_of_gradients_is_one_step_a_round(bench, unit):
    with pytest.raises(OfferRefused, match="one step") as refused:
        bench.take_part(bench.fleet.offer(unit=unit, placement="shared", steps=2))
    assert refused.value.reason == "privacy"
    assert bench.given == []


def test_a_round_is_worked_for_once(bench):
    bench.take_part(bench.fleet.offer(2))
    for number in (2, 1):
        with pytest.raises(OfferRefused) as refused:
            bench.take_part(bench.fleet.offer(number))
        assert refused.value.reason == "round"
    assert bench.trace() == (1, 1, 1)


def test_when_the_budget_is_spent_nothing_more_is_trained_or_released(tmp_path):
    bench = Bench(tmp_path, max_epsilon=3.0)
    released = 0

    def go_on() -> None:
        nonlocal released
        for number in range(1, 50):
            bench.take_part(bench.fleet.offer(number))
            released += 1

    with pytest.raises(OfferRefused) as refused:
        go_on()
    assert refused.value.reason == "privacy"
    for word in (
        "for each device",
        "delta 1e-05",
        "one device added or removed",
        "Skellam, version",
        "against everyone",
    ):
        assert word in str(refused.value)
    assert bench.trace() == (released, released, released)
    assert len(bench.given) == released > 1
    assert Ledger(bench.db).epsilon(TASK, "device", 1e-5) <= 3.0


def test_the_journal_says_what_the_figure_of_an_upload_means(tmp_path):
    bench = Bench(tmp_path)
    bench.work._journal = Journal(bench.db, lambda: NOW)
    bench.take_part(bench.fleet.offer(unit="record", placement="local"))
    said = hashlog.read(journal_rows(bench.db)[-1].entry).data
    assert (said["delta"], said["adjacency"]) == (1e-5, "one record added or removed")
    assert said["against"] == "everyone, the aggregator included"
    assert said["accountant"].startswith("Renyi, subsampled Gaussian, version")


def test_an_offer_of_another_unit_is_refused_where_the_task_has_spent_the_budget(tmp_path):
    bench = Bench(tmp_path, max_epsilon=1.01 * epsilon(spend(FleetOfEight().offer().privacy, LENGTH), 1e-5))
    bench.take_part(bench.fleet.offer())
    for number, unit in ((2, "record"), (3, "device")):
        with pytest.raises(OfferRefused, match="has spent epsilon"):
            bench.take_part(bench.fleet.offer(number, unit=unit, placement="local"))
    assert bench.trace() == (1, 1, 1)


def test_too_few_examples_mean_not_now(tmp_path):
    bench = Bench(tmp_path, min_examples=31)
    with pytest.raises(NotNow) as refused:
        bench.take_part(bench.fleet.offer())
    assert refused.value.reason == "examples"
    bench.record(1)
    assert bench.take_part(bench.fleet.offer()) > 0


def test_examples_that_do_not_fit_the_schema_are_left_out(bench):
    bench.examples.add(TASK, {"minutes": "many"}, "yes")
    bench.examples.add(TASK, {"minutes": 1.0, "calls": 1.0}, "perhaps")
    bench.take_part(bench.fleet.offer())
    assert len(bench.given[0].labels) == 30


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_neither_released_nor_charged(bench, value):
    bench.update[5] = value
    with pytest.raises(LocalProtocolError) as refused:
        bench.take_part(bench.fleet.offer())
    assert refused.value.reason == "not-finite"
    assert bench.trace() == (0, 0, 0)


def test_an_update_of_the_wrong_length_is_refused(bench):
    bench.update = bench.update[1:]
    with pytest.raises(OfferRefused) as refused:
        bench.take_part(bench.fleet.offer())
    assert refused.value.reason == "length"
    assert bench.trace() == (0, 0, 0)


def test_a_checkpoint_with_another_hash_or_graph_is_not_trained_on(bench):
    offer = bench.fleet.offer()
    path = f"checkpoint/{offer.models[0].hex()}"
    bench.fleet.blobs[path] = MODEL[:-1] + bytes([MODEL[-1] ^ 1])
    with pytest.raises(OfferRefused) as refused:
        bench.take_part(offer)
    assert refused.value.reason == "model"
    bench.locked = graph_digest(tabular_classifier(SCHEMA, [5], seed=1))
    with pytest.raises(OfferRefused) as refused:
        bench.take_part(offer)
    assert refused.value.reason == "graph"
    assert bench.given == []


def test_a_roster_of_another_authority_or_an_older_epoch_is_refused(bench):
    forged = bench.fleet.sign_roster(2, Ed25519PrivateKey.generate())
    with pytest.raises(OfferRefused) as refused:
        bench.take_part(bench.fleet.offer(1, forged))
    assert refused.value.reason == "roster"
    newer = bench.fleet.sign_roster(3, bench.fleet.authority)
    bench.take_part(bench.fleet.offer(2, newer))
    with pytest.raises(OfferRefused) as refused:
        bench.take_part(bench.fleet.offer(3))
    assert refused.value.reason == "roster"


def divergence(order: int, q: float, noise: float) -> float:
    """The closed sum of Mironov, Talwar, Zhang 2019, section 3.3, term by term."""
    terms = (
        math.comb(order, k) * (1 - q) ** (order - k) * q**k * math.exp(k * (k - 1) / (2 * noise**2))
        for k in range(order + 1)
    )
    return math.log(math.fsum(terms)) / (order - 1)


def test_the_record_unit_is_charged_for_what_was_sampled(bench):
    bench.take_part(bench.fleet.offer(unit="record", placement="local", noise_multiplier=1.5, steps=7))
    charged = dict(zip(ORDERS, Ledger(bench.db).spent(TASK, "record"), strict=True))
    small = [order for order in ORDERS if float(order).is_integer() and order <= 20]
    assert len(small) > 5
    for order in small:
        assert charged[order] == pytest.approx(7 * divergence(int(order), 0.5, 1.5), rel=1e-6)
    bound = min(charged[order] + math.log(1e5) / (order - 1) for order in small)
    assert 0.5 * bound < Ledger(bench.db).epsilon(TASK, "record", 1e-5) <= bound


def test_the_budget_is_looked_at_again_when_the_upload_is_released(tmp_path):
    bench = Bench(tmp_path, max_epsilon=3.0)
    offer = bench.fleet.offer()
    train = bench.work._train

    def meanwhile(given, cancelled):
        for number in range(50, 90):
            Ledger(bench.db).charge(TASK, "device", number, spend(offer.privacy, LENGTH))
        return train(given, cancelled)

    bench.work._train = meanwhile
    with pytest.raises(BudgetSpent):
        bench.take_part(offer)
    assert bench.trace() == (0, 0, 40)


def test_a_checkpoint_of_another_graph_than_the_offer_s_is_refused_though_the_offer_s_is_locked(bench):
    other = tabular_classifier(SCHEMA, [5], seed=1)
    digest = hashlib.sha256(other).digest()
    bench.fleet.blobs[f"checkpoint/{digest.hex()}"] = other
    offer = msgspec.structs.replace(bench.fleet.offer(), models=(digest,), model_bytes=len(other))
    assert bench.locked == offer.graph_digest != graph_digest(other)
    with pytest.raises(OfferRefused, match="another graph than the offer says") as refused:
        bench.take_part(offer)
    assert refused.value.reason == "graph"
    assert bench.given == []


LOW_ORDER = [bytes(32), b"\x01" + bytes(31)]


@pytest.mark.parametrize("curve", [*LOW_ORDER, None])
def test_a_round_key_that_nothing_seals_to_is_found_before_training(bench, curve):
    offer = bench.fleet.offer()
    bad = b"\xff" * 1216 if curve is None else offer.round_key[:1184] + curve
    with pytest.raises(OfferRefused) as refused:
        bench.take_part(msgspec.structs.replace(offer, round_key=bad))
    assert refused.value.reason == "round-key"
    assert bench.given == []
    assert bench.take_part(offer) > 0


@pytest.mark.parametrize("key", LOW_ORDER)
def test_a_member_key_that_nothing_seals_to_is_found_before_training(bench, key):
    entries = [m.entry for m in bench.fleet.members]
    entries[5] = msgspec.structs.replace(entries[5], epoch_key=key)
    signed = roster.sign(
        tuple(entries), bench.fleet.authority, fleet=FLEET, epoch=2, beacon=bytes(32), issued_at=NOW - 10,
        expires_at=NOW + 900,
    )  # fmt: skip
    bench.fleet.blobs["roster/2"] = signed.to_blob()
    offer = bench.fleet.offer()
    named = {"epoch": 2, "statement_hash": hashlib.sha256(signed.statement).digest()}
    with pytest.raises(OfferRefused) as refused:
        bench.take_part(msgspec.structs.replace(offer, secagg=msgspec.structs.replace(offer.secagg, **named)))
    assert refused.value.reason in ("member-key", "roster"), "by the member's key, or by the roster that names it"
    assert bench.given == []


def test_two_stories_about_one_round_are_refused(bench):
    frame = bench.fleet.frame(bench.fleet.offer())
    bench.work.judge(frame, bench.fleet.offer(), NOW)
    other = msgspec.structs.replace(bench.fleet.offer(), closes_at=NOW + 601)
    with pytest.raises(OfferRefused) as refused:
        bench.take_part(other)
    assert refused.value.reason == "equivocation"


def test_without_noise_nothing_leaves_unless_the_device_itself_allows_it(tmp_path, bench):
    bare = {"noise_multiplier": 0.0, "insecure_without_noise": True}
    with pytest.raises(OfferRefused) as refused:
        bench.take_part(bench.fleet.offer(**bare))
    assert refused.value.reason == "privacy"
    (tmp_path / "open").mkdir()
    willing = Bench(tmp_path / "open", insecure_without_noise=True)
    assert willing.take_part(willing.fleet.offer(**bare)) > 0


def test_a_full_disk_charges_nothing_and_the_round_can_be_tried_again(bench):
    bench.work.judge(bench.fleet.frame(bench.fleet.offer()), bench.fleet.offer(), NOW)
    (bench.home / "checkpoint.onnx").write_bytes(MODEL)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(OSError):
            bench.take_part(bench.fleet.offer())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert bench.trace() == (0, 0, 0)
    assert bench.take_part(bench.fleet.offer()) > 0
    assert Outbox(bench.db, bench.home / "outbox", lambda message: b"", 5.0).pending() == 1


def test_the_authority_tells_a_device_of_1970_the_time_and_how_late_it_may_be(bench):
    offer = bench.fleet.offer()
    bench.work.judge(bench.fleet.frame(offer), offer, 0)
    assert fact(bench.db, TIME_FLOOR) == NOW - 10
    assert fact(bench.db, TIME_LATEST) == NOW + 90_000
    late = msgspec.structs.replace(bench.fleet.offer(2), closes_at=NOW + 8 * 86_400)
    with pytest.raises(OfferRefused) as refused:
        bench.work.judge(bench.fleet.frame(late), late, 0)
    assert refused.value.reason == "closed"


def fill(db: sqlite3.Connection) -> None:
    """From now on SQLite finds no page more."""
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")


@pytest.mark.parametrize("when", ["judging", "releasing"])
def test_a_database_without_room_is_told_as_a_full_disk_and_the_round_can_be_tried_again(bench, when):
    offer = bench.fleet.offer()
    if when == "judging":
        fill(bench.db)
    else:
        train = bench.work._train
        bench.work._train = lambda given, cancelled: (fill(bench.db), train(given, cancelled))[1]
    with pytest.raises(DiskFull, match="free space") as refused:
        bench.take_part(offer)
    assert (refused.value.errno, refused.value.reason) == (errno.ENOSPC, "disk-full")
    assert bench.trace() == (0, 0, 0)
    assert not bench.db.in_transaction
    bench.work._train = bench.train
    bench.db.execute("PRAGMA max_page_count = 100000")
    assert bench.take_part(offer) > 0
    assert bench.trace() == (1, 1, 1)


def test_the_epoch_of_a_verified_roster_counts_even_where_a_crash_comes_before_the_offer_is_kept(tmp_path):
    bench = Bench(tmp_path)
    bench.db.execute("CREATE TRIGGER crash BEFORE INSERT ON offers BEGIN SELECT RAISE(ABORT, 'crash'); END")
    offer = bench.fleet.offer()
    with pytest.raises(sqlite3.IntegrityError, match="crash"):
        bench.work.judge(bench.fleet.frame(offer), offer, NOW)
    assert fact(bench.db, "epoch") == offer.secagg.epoch
