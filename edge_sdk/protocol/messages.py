"""Every message on the wire. Frozen, strict, few: an unknown field, a missing field or a value out of range is refused.

A message class states its `kind` (the byte in the frame, SPEC 4) and the topic kind it travels on (SPEC 3).
Times are whole seconds of Unix time; sizes are bytes.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta, Struct

Name = Annotated[str, Meta(min_length=1, max_length=48, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?\Z")]
Word = Annotated[str, Meta(max_length=64, pattern=r"^[a-z0-9-]*\Z")]
Text = Annotated[str, Meta(max_length=300)]
Path = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*\Z")]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Id = Annotated[bytes, Meta(min_length=16, max_length=16)]
Nonce = Annotated[bytes, Meta(min_length=8, max_length=8)]
Count = Annotated[int, Meta(ge=0, le=2**40)]
Round = Annotated[int, Meta(ge=1, le=2**40)]
Second = Annotated[int, Meta(ge=0, le=2**40)]
Positive = Annotated[float, Meta(gt=0.0, le=1e12)]
NotNegative = Annotated[float, Meta(ge=0.0, le=1e12)]

MAX_LENGTH: Final = 64_000_000  # coordinates of one update: 256 MB of float32
MAX_UPLOAD_BYTES: Final = 2**28
MAX_BLOCK_BYTES: Final = 49_152


class Message(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of everything signed. Subclasses set `kind` and `topic`."""

    kind: ClassVar[int]
    topic: ClassVar[str]


# Terms of a round -----------------------------------------------------------------------------------------------------


Unit = Literal["record", "customer", "device"]
Placement = Literal["local", "shared"]


class SecAggTerms(Struct, frozen=True, forbid_unknown_fields=True):
    """Secure aggregation: profile, cohort bounds and who may open the sum."""

    profile: Literal["P16", "P24", "P32"]
    n_min: Annotated[int, Meta(ge=3, le=65_535)]
    n_max: Annotated[int, Meta(ge=3, le=65_535)]
    epoch: Round
    statement_hash: Digest  # SHA-256 of the authority's signed roster statement
    stewards: bool  # True: the committee is drawn from the roster's stewards
    committee: Annotated[tuple[Name, ...], Meta(min_length=5, max_length=128)]
    groups: Annotated[int, Meta(ge=1, le=64)]  # each is opened by itself; who is in which is settled (SPEC 7.5.1)


class PrivacyTerms(Struct, frozen=True, forbid_unknown_fields=True):
    """What is protected, by how much noise, and what the device must charge."""

    unit: Unit
    placement: Placement
    noise_multiplier: NotNegative  # z: times the sensitivity of a step (local) or of the opened sum (shared)
    max_grad_norm: Positive  # record and customer: L2 clip of one unit's gradient
    per_customer: Annotated[int, Meta(ge=1, le=100_000)]  # customer: at most so many examples of one in a step
    sample_rate: Annotated[float, Meta(gt=0.0, le=1.0)]  # record and customer: Poisson rate of one step
    steps: Annotated[int, Meta(ge=1, le=100_000)]
    learning_rate: Positive
    delta: Annotated[float, Meta(gt=0.0, lt=1.0)]
    honest: Annotated[int, Meta(ge=1, le=65_535)]  # shared: the noise of so many devices carries the whole; local: 1
    clip: Positive  # L2 bound of the whole update
    step: Positive  # one quantisation step
    insecure_without_noise: bool
    # Record and customer: units expected in a step, which divide its sum. The offer fixes it, as a divisor of the
    # device's own would betray its count.
    expected_batch: Annotated[int, Meta(ge=1, le=1_000_000)]
    proximal: NotNegative  # FedProx: every local step also pulls by so much towards the offered weights; 0: not at all
    # Device unit: an update counts min(examples, weight_bound) / weight_bound; 0: every device counts alike.
    weight_bound: Annotated[int, Meta(ge=0, le=1_000_000)]


StatisticKind = Literal["moments", "histogram", "words", "model"]


class Statistic(Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that is counted over the units' examples (SPEC 7.9). `field` "" is the label.

    moments: count, sum and sum of squares of a number within [low, high]. histogram: so many in each of `bins` equal
    parts of [low, high]. words: so many of each of `words`, and of all others. model: count, summed loss, right
    answers, and a histogram of scores, of the offered checkpoint.
    """

    kind: StatisticKind
    field: Annotated[str, Meta(max_length=200)]
    low: float
    high: float
    bins: Annotated[int, Meta(ge=0, le=4096)]
    words: Annotated[tuple[Annotated[str, Meta(max_length=200)], ...], Meta(max_length=4096)]


class Query(Struct, frozen=True, forbid_unknown_fields=True):
    """What a round asks instead of training: sums over units, noised and masked like gradients."""

    name: Name
    statistics: Annotated[tuple[Statistic, ...], Meta(min_length=1, max_length=64)]


class Offer(Message, frozen=True):
    """One round of one task. `H = SHA-256("chorale/offer/1" || 0 || body)` binds all that follows (SPEC 7)."""

    kind: ClassVar[int] = 64
    topic: ClassVar[str] = "offer"

    fleet: Name
    task: Name
    round: Round
    issued_at: Second
    closes_at: Second
    models: Annotated[tuple[Digest, ...], Meta(min_length=1, max_length=16)]  # accepted checkpoints; train on the first
    model_bytes: Annotated[int, Meta(ge=1, le=2**31)]
    graph_digest: Digest
    length: Annotated[int, Meta(ge=1, le=MAX_LENGTH)]  # coordinates of the update, without canaries
    secagg: SecAggTerms
    privacy: PrivacyTerms
    consent: Count  # the notice that whoever is learnt from has agreed to, at least; 0: nobody is asked
    round_key: Annotated[bytes, Meta(min_length=1216, max_length=1216)]
    query: Query | None  # statistics of the examples in place of training (SPEC 7.9)


# From the device ------------------------------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """Announces an upload and carries its content key, sealed to the round key (SPEC 6.2)."""

    kind: ClassVar[int] = 1
    topic: ClassVar[str] = "hello"

    upload: Id
    task: Name
    round: Round
    offer_hash: Digest
    size: Annotated[int, Meta(ge=1, le=MAX_UPLOAD_BYTES)]
    consent: Count  # the notice that everybody it was learnt from has agreed to, at least
    sealed_key: Annotated[bytes, Meta(min_length=1000, max_length=1400)]


class Done(Message, frozen=True):
    """Every chunk was acknowledged: asks for the receipt."""

    kind: ClassVar[int] = 3
    topic: ClassVar[str] = "done"

    upload: Id


class Get(Message, frozen=True):
    """Asks for a range of a named blob (SPEC 8)."""

    kind: ClassVar[int] = 4
    topic: ClassVar[str] = "get"

    request: Nonce
    path: Path
    offset: Count
    length: Annotated[int, Meta(ge=1, le=MAX_BLOCK_BYTES)]


class Heartbeat(Message, frozen=True):
    """I am alive. The aggregator echoes the nonce, so silence on either side is noticed."""

    kind: ClassVar[int] = 5
    topic: ClassVar[str] = "hb"

    nonce: Nonce
    counter: Count
    phase: Word
    active: dict[Name, Digest]  # task -> SHA-256 of the model it predicts with


class Share(Message, frozen=True):
    """A committee member's one answer for a round; `sealed` holds a `ShareBody` (SPEC 7.5)."""

    kind: ClassVar[int] = 6
    topic: ClassVar[str] = "share"

    task: Name
    round: Round
    sealed: Annotated[bytes, Meta(min_length=1, max_length=60_000)]


class ShareBody(Struct, frozen=True, forbid_unknown_fields=True):
    """What a `Share` seals to the round key."""

    offer_hash: Digest
    survivors_hash: Digest
    member: Annotated[int, Meta(ge=1, le=128)]  # the member's point: its place in the offer's committee, plus 1
    sums: Annotated[tuple[bytes, ...], Meta(min_length=1, max_length=64)]  # little-endian uint16 elements of F_65521


class LogHead(Struct, frozen=True, forbid_unknown_fields=True):
    """A signed head of a hash-chained log: `size` entries end in `head` (SPEC 12)."""

    size: Count
    head: Digest
    time: Second
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class Ask(Message, frozen=True):
    """Asks for the signed current state; sent on every connect (SPEC 4.4)."""

    kind: ClassVar[int] = 7
    topic: ClassVar[str] = "ask"

    nonce: Nonce
    witness: LogHead | None  # the newest head of the aggregator's log that this device has seen


class Report(Message, frozen=True):
    """What the device did or refused: counted and logged, never trusted."""

    kind: ClassVar[int] = 8
    topic: ClassVar[str] = "report"

    counter: Count
    task: Name
    round: Count  # 0: not about a round
    event: Word
    reason: Word
    detail: Text


class EpochKey(Message, frozen=True):
    """The device's next X25519 epoch key, for the authority's next roster."""

    kind: ClassVar[int] = 9
    topic: ClassVar[str] = "key"

    epoch: Round
    key: Digest


class SpentEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """What one task has spent of one unit, as its ledger says."""

    task: Name
    unit: Unit
    rounds: Count  # charged so far
    last_round: Count
    accountant: Count  # version of the orders that `curve` is over
    curve: Annotated[bytes, Meta(max_length=4096)]  # Renyi divergences, little-endian float64


class Spent(Message, frozen=True):
    """The device's privacy ledger: compared with the aggregator's, and given back when the device is enrolled anew."""

    kind: ClassVar[int] = 10
    topic: ClassVar[str] = "spent"

    counter: Count
    entries: Annotated[tuple[SpentEntry, ...], Meta(max_length=24)]


class Withdraw(Message, frozen=True):
    """Consent was withdrawn: drop these uploads, or with none named every pending one of the task (SPEC 6.7)."""

    kind: ClassVar[int] = 11
    topic: ClassVar[str] = "withdraw"

    task: Name
    uploads: Annotated[tuple[Id, ...], Meta(max_length=64)]


# To the device --------------------------------------------------------------------------------------------------------


class Grant(Message, frozen=True):
    """A live aggregator will take this upload; `received` is the bitmap of what it already holds."""

    kind: ClassVar[int] = 32
    topic: ClassVar[str] = "grant"

    upload: Id
    window: Annotated[int, Meta(ge=1, le=64)]
    received: Annotated[bytes, Meta(max_length=1024)]


class Ack(Message, frozen=True):
    """The bitmap of chunks that are durable at the aggregator."""

    kind: ClassVar[int] = 33
    topic: ClassVar[str] = "ack"

    upload: Id
    received: Annotated[bytes, Meta(max_length=1024)]


class Receipt(Message, frozen=True):
    """The upload is durable and verified, or refused with the reason. Final."""

    kind: ClassVar[int] = 34
    topic: ClassVar[str] = "receipt"

    upload: Id
    accepted: bool
    reason: Word


class Block(Message, frozen=True):
    """A range of a blob; `total` is the blob's size, 0 with `found` false."""

    kind: ClassVar[int] = 35
    topic: ClassVar[str] = "blk"

    request: Nonce
    path: Path
    offset: Count
    total: Count
    found: bool
    data: Annotated[bytes, Meta(max_length=MAX_BLOCK_BYTES)]


class OpeningNotice(Message, frozen=True):
    """A committee member is asked for its answer; the request is the blob `opening/<task>/<round>`."""

    kind: ClassVar[int] = 37
    topic: ClassVar[str] = "opening"

    task: Name
    round: Round
    size: Count
    digest: Digest


class Echo(Message, frozen=True):
    """Answers a heartbeat with the aggregator's time."""

    kind: ClassVar[int] = 38
    topic: ClassVar[str] = "echo"

    nonce: Nonce
    time: Second


class State(Message, frozen=True):
    """All a device may have missed: open offers as signed frames, openings it still owes, and the time."""

    kind: ClassVar[int] = 36
    topic: ClassVar[str] = "state"

    nonce: Nonce
    time: Second
    epoch: Count  # the roster's, 0 before the first
    offers: Annotated[tuple[bytes, ...], Meta(max_length=12)]
    openings: Annotated[tuple[OpeningNotice, ...], Meta(max_length=64)]
    log: LogHead | None  # the newest head of the aggregator's log
    next_check_s: Annotated[int, Meta(ge=1, le=86_400)]


class Refusal(Message, frozen=True):
    """Your message was refused. Never for a message whose signature did not hold: that would tell a forger."""

    kind: ClassVar[int] = 39
    topic: ClassVar[str] = "refusal"

    about: Word  # topic kind of the refused message
    reason: Word
    remedy: Text
    upload: Id | None


class ModelHint(Message, frozen=True):
    """A new release may be there: look at the TUF repository. Carries nothing that needs to be trusted."""

    kind: ClassVar[int] = 65
    topic: ClassVar[str] = "model"

    task: Name


# Blobs ----------------------------------------------------------------------------------------------------------------


class SealedShareEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """One included device, as shown to one member."""

    device: Name
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
    sealed: Annotated[bytes, Meta(min_length=1, max_length=5000)]
    proof: Annotated[tuple[Digest, ...], Meta(max_length=8)]


class OpeningRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The blob `opening/<task>/<round>`: whose shares this member is asked to add up, group by group."""

    task: Name
    round: Round
    offer_hash: Digest
    groups: Annotated[tuple[tuple[SealedShareEntry, ...], ...], Meta(min_length=1, max_length=64)]


UP: Final[dict[int, type[Message]]] = {
    cls.kind: cls for cls in (Hello, Done, Get, Heartbeat, Share, Ask, Report, EpochKey, Spent, Withdraw)
}
DOWN: Final[dict[int, type[Message]]] = {
    cls.kind: cls for cls in (Grant, Ack, Receipt, Block, OpeningNotice, Echo, State, Refusal)
}
ALL: Final[dict[int, type[Message]]] = {cls.kind: cls for cls in (Offer, ModelHint)}
