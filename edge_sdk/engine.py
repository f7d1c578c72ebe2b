"""The two threads behind an `EdgeClient`: one speaks, one works. The third belongs to the transport.

The loop thread owns the conversation, the outbox and the recorder; the work thread fetches, trains,
protects and installs. Refuses to train when the known-answer test fails. Clock and entropy are passed in.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, TypeVar

from edge_sdk.config import IDENTITY, Config
from edge_sdk.governor import Governor
from edge_sdk.interval_scores import IntervalScores
from edge_sdk.surroundings import Live, OpenOffer, Record, Surroundings
from edge_sdk.windows import Windows
from edge_sdk.worker import Worker

if TYPE_CHECKING:
    from edge_sdk.conversation import Conversation
    from edge_sdk.device_round import OwnKeys
    from edge_sdk.identity.enrolment import Identity
    from edge_sdk.identity.epoch_keys import EpochKeys
    from edge_sdk.inference import Models
    from edge_sdk.journal import Journal, JournalSigner
    from edge_sdk.protocol.messages import Offer
    from edge_sdk.recorder import Recorder
    from edge_sdk.transport.interface import Transport

INBOX: Final = 4096
TURN_S: Final = 0.5
TRY_AGAIN_S: Final = 5.0
PERSONAL_LOOK_S: Final = 20.0  # between two looks after this device's own versions of the models
JOIN_S: Final = 10.0
KEPT_SWEEP_S: Final = 3600.0
MAX_OPEN_OFFERS: Final = 64
MAX_TASKS: Final = 64
TRAINING_OFF: Final = "training.off"  # a file in the home: the owner said no (`edge-sdk training off`)

log = logging.getLogger("edge_sdk")
T = TypeVar("T")


class Engine:
    """Runs one device. `start` returns at once; `stop` ends both threads in bounded time."""

    def __init__(
        self,
        config: Config,
        surroundings: Surroundings,
        governor: Governor,
        models: Callable[[], Models],
        on_error: Callable[[BaseException], None],
    ) -> None:
        """`models()` gives the models in service, which the app's threads share."""
        self.config, self.around, self.governor, self.models = config, surroundings, governor, models
        self.live = Live()
        self.windows = Windows()  # filled by the loop thread, read by the app's
        self.intervals = IntervalScores(self.windows)
        self.opened = threading.Event()  # every model on the disk is in service, or it failed
        self._on_error = on_error
        self._inbox: queue.Queue[tuple[str, bytes]] = queue.Queue(INBOX)
        # What the app asks for, numbered in one order over both queues.
        self._numbers = itertools.count()
        self._app: queue.Queue[tuple[int, Callable[[], None]]] = queue.Queue(INBOX)
        self._records: queue.Queue[tuple[int, Record]] = queue.Queue(INBOX)
        self._next_record: tuple[int, Record] | None = None
        self._internal: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake = threading.Event()
        self.stopping = threading.Event()
        self._offers: dict[bytes, OpenOffer] = {}
        self._updates: dict[str, float] = {}  # task -> when to look
        self._updating: set[str] = set()
        self._personal_at: float | None = 0.0 if config.personalise else None  # when to look; None: not now
        self._loop_thread = threading.Thread(target=self._loop, name="edge-loop", daemon=True)
        self._worker = Worker(self)
        self._conversation: Conversation | None = None
        self._transport: Transport | None = None
        self._recorder: Recorder | None = None
        self._db: sqlite3.Connection | None = None
        self._kept_swept: float | None = None
        self._journal: Journal | None = None
        self._signer: JournalSigner | None = None
        self._identity: Identity | None = None
        self._epoch_keys: EpochKeys | None = None

    # -- from the app's threads: never block, never raise ------------------------------------------------------------

    def start(self) -> None:
        self._loop_thread.start()

    def stop(self) -> None:
        """End both threads; what is durable stays for the next start."""
        self.stopping.set()
        self._wake.set()
        if self._loop_thread.is_alive() and self._loop_thread is not threading.current_thread():
            self._loop_thread.join(2 * JOIN_S)

    def record(self, example: Record) -> bool:
        """Queue an example; False, counted, when the queue is full."""
        try:
            self._records.put_nowait((next(self._numbers), example))
        except queue.Full:
            self.live.drop("record")
            return False
        self._wake.set()
        return True

    def ask(self, what: Callable[[], None]) -> bool:
        """Queue something for the loop thread, after all that was recorded before."""
        try:
            self._app.put_nowait((next(self._numbers), what))
        except queue.Full:
            self.live.drop("request")
            return False
        self._wake.set()
        return True

    def forget(self, subject: str) -> bool:
        return self.ask(lambda: self.recorder().forget(subject))

    def may_learn(self) -> bool:
        """False where the device's owner said no. From any thread."""
        return self.config.training and not (self.config.home / TRAINING_OFF).exists()

    # -- on the loop thread, for the client ----------------------------------------------------------------------------

    def recorder(self) -> Recorder:
        """The recorder. Raises RuntimeError where the examples could not be opened."""
        if self._recorder is None:
            raise RuntimeError("nothing was done: examples.db is not open; see the first error")
        return self._recorder

    def time(self) -> int:
        """The verified time, or the clock where this device has no identity. Seconds since 1970."""
        return int(self.around.clock()) if self._conversation is None else self.now()

    # -- the loop thread -------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            self._open_stores()
            self._open_identity()
        except Exception as error:
            self.live.phase = "failed"
            self.guarded(self._serve_offline)
            self.opened.set()
            self.failed(error)
        else:
            self._worker.start(self._identity)
            self._reconnect()
        while not self.stopping.is_set():
            self.guarded(self._turn)
            self._wake.wait(TURN_S)
            self._wake.clear()
        self.guarded(self._close)

    def _open_stores(self) -> None:
        from edge_sdk.device_db import open_device_db
        from edge_sdk.journal import Journal
        from edge_sdk.privacy.ledger import Ledger
        from edge_sdk.recorder import Recorder, open_examples

        home = self.config.home
        self._db = open_device_db(home / "device.db")
        Ledger(self._db)
        examples = open_examples(self.config, self.around.entropy)
        schemas = lambda: {task: model.schema for task, model in self.models().serving().items()}  # noqa: E731 - one line
        self._journal = Journal(self._db, self.time)
        self._recorder = Recorder(
            self.config, examples, schemas, self.live, self._journal, windows=self.windows,
            score=lambda *judged: self.models().score(*judged),
        )  # fmt: skip
        if examples.damage is not None:
            self.failed(examples.damage)

    def _open_identity(self) -> None:
        from edge_sdk.conversation import Conversation, Speaker
        from edge_sdk.device_db import transaction
        from edge_sdk.identity.epoch_keys import EpochKeys
        from edge_sdk.journal import JournalSigner
        from edge_sdk.privacy.ledger import Ledger

        assert self._db is not None
        who = self._identity = self.around.identity()
        with transaction(self._db):  # before anything can be charged
            Ledger(self._db).carry(who.spent)
        keys = self._epoch_keys = EpochKeys(self.config.home / IDENTITY, who.keys)
        speaker = Speaker(
            who.bundle.fleet, who.device, who.keys.sign, who.bundle.aggregator_key, keys, self.around.entropy
        )
        self._conversation = Conversation(
            speaker, self._db, self.config.home / "outbox", self,
            heartbeat_s=self.config.heartbeat_s, silence_s=self.config.silence_s, epoch_key_s=self.config.epoch_key_s,
            not_before=who.not_before, journal=self._journal,
        )  # fmt: skip
        assert self._journal is not None
        self._signer = JournalSigner(
            self._db, self._journal, self.config.home,
            fleet=who.bundle.fleet, device=who.device, key=who.keys.sign_public, sign=who.keys.sign,
        )  # fmt: skip
        self._sign_journal(start=True)

    def _sign_journal(self, *, start: bool = False, end: bool = False) -> None:
        if self._signer is None:
            return
        try:
            if start:
                self._signer.begin(self.time())
            self._signer.turn(self.time(), all_of_it=end)
        except (OSError, sqlite3.Error) as error:
            log.warning("the journal is not signed now, it is tried again: %s", error)

    def note(self, kind: str, task: str, number: int, /, **data: str | int) -> None:
        """Into the journal, from any thread; without the loop's turn it waits."""
        if self._journal is not None:
            self.on_loop(functools.partial(self._journal.note, kind, task, number, **data))

    def _serve_offline(self) -> None:
        """Without an identity there is no fleet, but the last good models still answer."""
        from edge_sdk.task_models import TaskModels

        TaskModels(self.config.home, b"", self.models(), lambda _: []).open()

    def _reconnect(self) -> None:
        """A fresh transport: at start, and when echoes stay away though it says that it is connected."""
        from edge_sdk.transport.interface import Callbacks

        if self._transport is not None:
            self._transport.stop()
            self.live.rebuilt += 1
        assert self._identity is not None
        assert self._conversation is not None
        self._transport = self.around.connect(self._identity, self._conversation.last_words, self.now)
        self._transport.start(Callbacks(self._arrived, self._connection, self._wake.set, self._publish_refused))

    def _turn(self) -> None:
        """Each part is guarded on its own: one that fails at every turn must not keep the others from theirs."""
        if self.opened.is_set():  # before, nobody can say which fields the models' schemas know
            self.guarded(self._take_requests)
            self.guarded(self._care_for_examples)
        for action in _drained(self._internal):
            self.guarded(action)
        talk = self._conversation
        if talk is None:
            return
        tick = self.around.tick()
        self.guarded(lambda: self._settle_withdrawals(talk))
        self._take_messages(talk)
        self.guarded(lambda: talk.turn(tick, self.around.clock()))
        self.guarded(self._sign_journal)
        self.guarded(lambda: self._end_silence(talk, tick))
        self.guarded(lambda: self._schedule(tick, talk.now(self.around.clock())))

    def _end_silence(self, talk: Conversation, tick: float) -> None:
        if talk.silent(tick):
            log.warning("no echo from the aggregator: the connection is built anew")
            talk.connection(False, tick)
            self._reconnect()

    def _take_requests(self) -> None:
        """What the app recorded and asked for, in its order."""
        for number, action in _drained(self._app):
            self.guarded(functools.partial(self._take_records, number))
            self.guarded(action)
        self._take_records()

    def _take_records(self, before: float = float("inf")) -> None:
        batch: list[Record] = []
        with contextlib.suppress(queue.Empty):
            while len(batch) < INBOX:
                item = self._next_record or self._records.get_nowait()
                self._next_record = item if item[0] > before else None
                if self._next_record is not None:
                    break
                batch.append(item[1])
        if not batch:
            return
        if self._recorder is None:
            self.live.drop("example", len(batch))
        else:
            self._recorder.take(batch, self.time())

    def _care_for_examples(self) -> None:
        from edge_sdk.device_db import TIME_LATEST, fact

        if self._recorder is not None and self._db is not None:
            self._recorder.turn(self.around.tick(), self.time(), fact(self._db, TIME_LATEST))
        self._sweep_kept()

    def _sweep_kept(self) -> None:
        from edge_sdk.kept_updates import KeptUpdates

        tick = self.around.tick()
        if self._kept_swept is None or tick - self._kept_swept >= KEPT_SWEEP_S:
            self._kept_swept = tick
            KeptUpdates(self.config.home).sweep(self.time())

    def _settle_withdrawals(self, talk: Conversation) -> None:
        """Uploads that may hold what was erased do not leave, even where the erasing process died, or was another."""
        from edge_sdk.kept_updates import KeptUpdates
        from edge_sdk.personal import PersonalWeights

        if self._recorder is not None:
            for task, erasures in self._recorder.examples.owed().items():
                talk.withdraw(task)
                KeptUpdates(self.config.home).forget(task)
                PersonalWeights(self.config.home).forget(task)
                self.models().drop_personal(task)
                self._recorder.examples.settled(task, erasures)
        if not self.may_learn():
            KeptUpdates(self.config.home).forget_all()
            if talk.outbox.pending():
                talk.withdraw(None)

    def _take_messages(self, talk: Conversation) -> None:
        for topic, payload in _drained(self._inbox):
            self.guarded(functools.partial(talk.message, topic, payload, self.around.tick(), self.around.clock()))

    def _close(self) -> None:
        self.guarded(self._leave)
        self.guarded(lambda: self._worker.stop(JOIN_S))
        if self._transport is not None:
            self.guarded(self._transport.stop)
        self.guarded(self._take_requests)
        if self._conversation is not None:
            self.guarded(functools.partial(self._settle_withdrawals, self._conversation))
        self.guarded(lambda: self._sign_journal(end=True))
        for store in (self._recorder, self._db):
            if store is not None:
                self.guarded(store.close)
        self.live.phase, self.live.connected = "closed", False

    def _leave(self) -> None:
        talk = self._conversation
        if talk is not None:
            talk.blobs.abandon()
            if self.live.connected:
                talk.say_goodbye()

    # -- from the transport's thread ---------------------------------------------------------------------------------

    def _arrived(self, topic: str, payload: bytes) -> None:
        try:
            self._inbox.put_nowait((topic, payload))
        except queue.Full:
            self.live.drop("message")
        self._wake.set()

    def _connection(self, up: bool, reason: str) -> None:
        log.info("connection %s: %s", "up" if up else "down", reason)
        self._internal.put(lambda: self._connected(up))
        self._wake.set()

    def _connected(self, up: bool) -> None:
        self.live.connected = up
        assert self._conversation is not None
        self._conversation.connection(up, self.around.tick())
        if up:
            for task in list(self._updates):
                self.hinted(task)

    def _publish_refused(self, topic: str, reason: str) -> None:
        self._internal.put(lambda: self._refusal_counted(topic, reason))

    def _refusal_counted(self, topic: str, reason: str) -> None:
        if self._conversation is not None:
            self._conversation.refuse("broker-refused", f"the broker refused our message on {topic}: {reason}")

    # -- the conversation's host -------------------------------------------------------------------------------------

    def publish(self, topic: str, payload: bytes, qos: int) -> bool:
        return self._transport is not None and self._transport.publish(topic, payload, 1 if qos else 0)

    def offered(self, frame: bytes, offer: Offer) -> None:
        from edge_sdk.protocol import codec

        digest = codec.offer_hash(frame)
        if digest not in self._offers:
            if len(self._offers) >= MAX_OPEN_OFFERS:
                self.live.drop("offer")
                return
            self._offers[digest] = OpenOffer(frame, offer, self.around.tick())
            self.hinted(offer.task)

    def later_round(self, offer: Offer) -> Offer | None:
        """The newest open offer of the same task, where it is of a later round. From any thread."""
        of_task = [entry.offer for entry in list(self._offers.values()) if entry.offer.task == offer.task]
        newest = max(of_task, key=lambda each: each.round, default=offer)
        return newest if newest.round > offer.round else None

    def hinted(self, task: str) -> None:
        if task in self._updates or len(self._updates) < MAX_TASKS:
            self._updates[task] = self.around.tick()

    def active_models(self) -> dict[str, bytes]:
        return {task: bytes.fromhex(model.sha256) for task, model in self.models().serving().items()}

    def phase(self) -> str:
        uploading = self._conversation is not None and self._conversation.outbox.sending
        return "uploading" if uploading and self.live.phase == "idle" else self.live.phase

    # -- what the worker asks of the loop -----------------------------------------------------------------------------

    def on_loop(self, action: Callable[[], None]) -> None:
        """Have the loop thread do something. From any thread."""
        self._internal.put(action)
        self._wake.set()

    def now(self) -> int:
        """The verified time, seconds since 1970."""
        assert self._conversation is not None
        return self._conversation.now(self.around.clock())

    def own_keys(self) -> OwnKeys:
        """The public keys that this device holds at this moment. From any thread."""
        from edge_sdk.device_round import OwnKeys

        assert self._identity is not None
        assert self._epoch_keys is not None
        return OwnKeys(self._identity.device, self._identity.keys.sign_public, self._epoch_keys.publics)

    def update_ended(self, task: str, again_s: float | None) -> None:
        """On the loop: a look for an update is over; look again after `again_s` seconds where it is not None."""
        self._updating.discard(task)
        if again_s is not None:
            self._updates[task] = min(self._updates.get(task, 1e18), self.around.tick() + again_s)

    def personalised(self) -> None:
        """On the loop: a look after this device's own versions of the models is over."""
        self._personal_at = self.around.tick() + PERSONAL_LOOK_S

    def talk(self) -> Conversation:
        """The conversation; for use on the loop thread."""
        assert self._conversation is not None
        return self._conversation

    def _schedule(self, tick: float, now: int) -> None:
        """Hand out what is due. An update goes before training: the device should predict with the newest model."""
        for task, at in self._updates.items():
            if tick >= at and task not in self._updating and self.live.connected:
                self._updating.add(task)
                self._updates[task] = tick + self.config.update_check_s
                self._worker.put(lambda task=task: self._worker.update(task))  # type: ignore[misc] # binds this task
        for digest, entry in list(self._offers.items()):
            # An aggregator is done with a round before it offers the next one of the task.
            if now >= entry.offer.closes_at or self.later_round(entry.offer) is not None:
                if not entry.working:
                    del self._offers[digest]
            elif not entry.working and not entry.final and tick >= entry.try_at:
                entry.working = True
                self._worker.put(lambda entry=entry: self._worker.take_part(entry))  # type: ignore[misc] # binds this offer
        if self._personal_at is not None and tick >= self._personal_at:
            self._personal_at = None
            self._worker.put(self._worker.personalise)

    # -- what goes wrong -----------------------------------------------------------------------------------------------

    def guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            self.failed(error)

    def failed(self, error: BaseException) -> None:
        log.error("%s: %s", type(error).__name__, error, exc_info=error)
        with contextlib.suppress(Exception):
            self._on_error(error)


def _drained(source: queue.Queue[T] | queue.SimpleQueue[T]) -> Iterator[T]:
    """What is in a queue now, at most INBOX items, so that a flood in one cannot starve the others."""
    with contextlib.suppress(queue.Empty):
        for _ in range(INBOX):
            yield source.get_nowait()
