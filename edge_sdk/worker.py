"""The work thread: all that takes long. Fetches, trains, protects, installs; one thing after the other.

Refuses to train when the known-answer test fails. Whatever goes wrong is counted by its reason and ends with the job.
"""

from __future__ import annotations

import functools
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from edge_sdk.resident import give_back

if TYPE_CHECKING:
    from edge_sdk.blobs import BlobError
    from edge_sdk.engine import Engine
    from edge_sdk.examples_store import ExamplesStore
    from edge_sdk.identity.enrolment import Identity
    from edge_sdk.personal import Personalisation
    from edge_sdk.protocol.messages import Offer
    from edge_sdk.round_work import RoundWork, TrainingInput
    from edge_sdk.surroundings import OpenOffer
    from edge_sdk.task_models import TaskModels
    from edge_sdk.training.jobs import PersonalDone, PersonalJob, TrainResult
    from edge_sdk.training.runner import Trainer

TRY_AGAIN_S: Final = 5.0
BUSY_AGAIN_S: Final = 1.0
LOOK_AGAIN_S: Final = 20.0
PROBE_AGAIN_S: Final = 600.0  # a machine too loaded to probe a model needs longer than a lost message
PATIENCE_S: Final = 0.5
MAX_FILE_BYTES: Final = 2**31
JOURNALED: Final = {"offer-refused", "update-refused", "training-failed"}

log = logging.getLogger("edge_sdk")


class Worker:
    """Runs jobs for the engine on a thread of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="edge-work", daemon=True)
        self._identity: Identity | None = None
        self._db: sqlite3.Connection | None = None
        self._models: TaskModels | None = None
        self._rounds: RoundWork | None = None
        self._trainer: Trainer | None = None
        self._personal: Personalisation | None = None
        self._arithmetic_is_exact = False
        self._objected_at = 0.0

    def start(self, identity: Identity | None) -> None:
        self._identity = identity
        self._thread.start()

    def stop(self, wait_s: float) -> None:
        """End the thread; a job in hand is cancelled where it can be."""
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(wait_s)

    def put(self, job: Callable[[], None]) -> None:
        """Queue a job."""
        self._jobs.put(job)

    def _run(self) -> None:
        self._engine.guarded(self._open)
        self._engine.opened.set()
        self._engine.live.phase = "idle"
        give_back()
        while (job := self._jobs.get()) is not None and not self._engine.stopping.is_set():
            self._engine.guarded(job)
            if self._jobs.empty():
                give_back()
        self._engine.guarded(self._close)

    def _open(self) -> None:
        from edge_sdk.device_db import open_device_db
        from edge_sdk.protocol.secagg.selftest import known_answer_test
        from edge_sdk.recorder import open_examples
        from edge_sdk.task_models import TaskModels

        engine = self._engine
        assert self._identity is not None
        root = self._identity.bundle.tuf_root.encode()
        self._models = TaskModels(engine.config.home, root, engine.models(), self._fetch_ranges)
        for task in self._models.open():
            engine.on_loop(lambda task=task: engine.hinted(task))  # type: ignore[misc] # binds this task
        engine.opened.set()
        self._db = open_device_db(engine.config.home / "device.db")
        examples = open_examples(engine.config, engine.around.entropy)
        self._rounds = self._round_work(self._identity, self._db, examples)
        self._open_personal(self._models, examples)
        known_answer_test()
        self._arithmetic_is_exact = True

    def _open_personal(self, models: TaskModels, examples: ExamplesStore) -> None:
        """What an owner switched off again is deleted."""
        from edge_sdk.personal import Personalisation, PersonalWeights

        engine = self._engine
        if not engine.config.personalise:
            PersonalWeights(engine.config.home).forget_all()
            return
        self._personal = Personalisation(
            engine.config.home, engine.models(), examples, release=models.release, train=self._train_personal,
            least=engine.config.min_examples, entropy=engine.around.entropy, apart=engine.config.labels_apart,
        )  # fmt: skip

    def _round_work(self, who: Identity, connection: sqlite3.Connection, examples: ExamplesStore) -> RoundWork:
        from edge_sdk.journal import Journal
        from edge_sdk.round_work import Device, RoundWork

        config, entropy = self._engine.config, self._engine.around.entropy
        device = Device(who.bundle.fleet, self._engine.own_keys, who.bundle.authority_key, who.keys.sign, entropy)
        return RoundWork(
            device, config, connection, examples,
            fetch=self._fetch, train=self._train, locked_graph=self._locked_graph,
            journal=Journal(connection, self._engine.time),
        )  # fmt: skip

    def _close(self) -> None:
        if self._trainer is not None:
            self._trainer.close()
        if self._models is not None:
            self._models.close()
        if self._db is not None:
            self._db.close()

    # -- updates ---------------------------------------------------------------------------------------------------

    def update(self, task: str) -> None:
        """Look for a newer release of a task; install and serve it."""
        from edge_sdk.ota.errors import OtaError, UpdateUnavailable

        assert self._models is not None
        engine, again = self._engine, None
        engine.live.phase = "updating"
        try:
            model = self._models.update(task, engine.now())
            if model is not None:
                log.info("task %s: model version %d (%s) is in service", task, model.version, model.sha256[:12])
                self._report(task, "installed", f"version {model.version} {model.sha256}")
                self._engine.note("installed", task, 0, version=model.version, sha256=model.sha256)
            self._update_answers(task)
        except UpdateUnavailable as error:
            log.info("task %s: no update now: %s", task, error)
            again = PROBE_AGAIN_S if error.reason == "probe-timeout" else LOOK_AGAIN_S
        except OtaError as error:
            self._refuse(task, 0, "update-refused", f"ota-{error.reason}", error)
        finally:
            engine.live.phase = "idle"
            engine.on_loop(lambda: engine.update_ended(task, again))

    def _update_answers(self, task: str) -> None:
        """The operator's list of answers; one that is refused leaves the model that was just installed."""
        assert self._models is not None
        version = self._models.update_answers(task, self._engine.now())
        if version is not None:
            log.info("task %s: answers version %d are in service", task, version)
            self._report(task, "answers", f"version {version}")

    # -- rounds ----------------------------------------------------------------------------------------------------

    def take_part(self, entry: OpenOffer) -> None:
        """Judge, train, protect, release; whatever goes wrong is counted by its reason and ends here."""
        final = True
        try:
            final = self._attempt(entry)
        except Exception as error:
            reason = getattr(error, "reason", "internal")
            self._refuse(entry.offer.task, entry.offer.round, "round-failed", reason, error)
            if reason == "internal":
                self._engine.failed(error)
        finally:
            live = self._engine.live
            live.phase, live.progress = "idle", ""
            again = BUSY_AGAIN_S if live.objection in ("app-busy", "cancelled") else TRY_AGAIN_S
            entry.try_at = self._engine.around.tick() + again
            entry.final, entry.working = final, False
            self._engine.on_loop(lambda: None)  # the outbox may have something to send

    def _attempt(self, entry: OpenOffer) -> bool:
        """True when this device is done with the offer, False to try again while it is open."""
        from edge_sdk.blobs import BlobError
        from edge_sdk.ota.errors import UpdateUnavailable
        from edge_sdk.protocol.errors import OfferRefused
        from edge_sdk.round_work import NotNow
        from edge_sdk.training.jobs import TrainingFailed

        offer = entry.offer
        assert self._rounds is not None
        try:
            self._rounds.judge(entry.frame, offer, self._engine.now())
            self._engine.on_loop(lambda: self._engine.talk().judged(offer, self._engine.around.clock()))
            self._may_train()
            over = lambda: self._engine.later_round(offer) is not None  # noqa: E731 - one line
            size = self._rounds.take_part(entry.frame, offer, lambda: self._must_stop(offer), over)
        except OfferRefused as error:
            if error.reason != "round":  # not above the last upload: this device has done its part
                self._refuse(offer.task, offer.round, "offer-refused", error.reason, error)
        except NotNow as error:
            self._engine.live.objection = error.reason
            return False
        except (BlobError, UpdateUnavailable, OSError) as error:
            self._refuse(offer.task, offer.round, "round-delayed", getattr(error, "reason", "disk"), error)
            return False
        except TrainingFailed as error:
            if error.reason == "cancelled":
                return False
            self._refuse(offer.task, offer.round, "training-failed", error.reason, error)
        else:
            log.info("round %d of %s: an upload of %d bytes is released", offer.round, offer.task, size)
        return True

    # -- the device's own versions ---------------------------------------------------------------------------------

    def personalise(self) -> None:
        """Serve, void and train this device's own versions of the models (`edge_sdk.personal`)."""
        from edge_sdk.training.jobs import TrainingFailed

        engine = self._engine
        try:
            if self._personal is not None:
                self._personal.look(engine.time(), lambda: not self._objection(), self._must_pause)
        except TrainingFailed as error:
            if error.reason != "cancelled":
                self._refuse("", 0, "personal-failed", error.reason, error)
        finally:
            engine.live.phase, engine.live.progress = "idle", ""
            engine.on_loop(engine.personalised)

    def _train_personal(self, packed: PersonalJob, cancelled: Callable[[], bool]) -> PersonalDone:
        trainer = self._ready_trainer()
        return trainer.personalise(packed, self._progressed, cancelled)

    def _must_pause(self) -> bool:
        """As for a round, and a round goes first."""
        return self._engine.stopping.is_set() or not self._jobs.empty() or self._objected_long()

    def _objected_long(self) -> bool:
        tick, self._engine.live.objection = self._engine.around.tick(), self._objection()
        if not self._engine.live.objection:
            self._objected_at = tick
        return tick - self._objected_at > PATIENCE_S

    def _may_train(self) -> None:
        from edge_sdk.round_work import NotNow

        if not self._arithmetic_is_exact:
            raise NotNow("the known-answer test failed on this machine", reason="self-test")
        reason = self._objection()
        if reason:
            raise NotNow("not now", reason=reason)

    def _must_stop(self, offer: Offer) -> bool:
        """Closing, too late, or the app objects and goes on to. A moment's veto costs no training: it runs niced."""
        if self._engine.stopping.is_set() or self._engine.now() >= offer.closes_at:
            return True
        later = self._engine.later_round(offer)
        if later is not None and offer.models[0] not in later.models:
            return True  # nobody takes it any more
        return self._objected_long()

    def _objection(self) -> str:
        if not self._engine.may_learn():
            return "training-off"
        return self._engine.governor.objection(self._engine.around.hour())

    def _train(self, given: TrainingInput, cancelled: Callable[[], bool]) -> TrainResult:
        from edge_sdk.training.jobs import job

        trainer = self._ready_trainer()
        packed = job(given.model, given.features, given.labels, given.plan, given.key, subjects=given.subjects)
        return trainer.train(packed, self._progressed, cancelled)

    def _ready_trainer(self) -> Trainer:
        from edge_sdk.training.runner import Trainer

        if self._trainer is None:
            self._trainer = Trainer(
                memory_mib=self._engine.config.trainer_memory_mib,
                idle_s=self._engine.config.trainer_idle_s,
                timeout_s=self._engine.config.trainer_timeout_s,
            )
        live = self._engine.live
        live.phase, live.objection = "training", ""
        self._objected_at = self._engine.around.tick()
        return self._trainer

    def _progressed(self, step: int, steps: int) -> None:
        self._engine.live.progress = f"{step}/{steps}"

    def _locked_graph(self, task: str, expected: bytes) -> bytes:
        assert self._models is not None
        return self._models.locked_graph(task, expected, self._engine.now())

    # -- blobs -------------------------------------------------------------------------------------------------------

    def _fetch(self, path: str, limit: int) -> bytes:
        return self._fetch_all([(path, 0, None, limit)])[0][0]

    def _fetch_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[bytes, int]]:
        return self._fetch_all([(path, start, length, MAX_FILE_BYTES) for path, start, length in ranges])

    def _fetch_all(self, wanted: Sequence[tuple[str, int, int | None, int]]) -> list[tuple[bytes, int]]:
        """Have the loop fetch, and wait. Bounded: the reader gives up on silence, and closing abandons it."""
        from edge_sdk.blobs import BlobTimeout

        engine = self._engine
        results: dict[int, tuple[bytes, int, BlobError | None]] = {}
        done = threading.Event()

        def begin() -> None:
            reader, tick = engine.talk().blobs, engine.around.tick()
            for number, (path, start, length, limit) in enumerate(wanted):
                came = functools.partial(arrived, number)
                reader.fetch(path, came, tick, limit=limit, start=start, length=length)

        def arrived(number: int, data: bytes, total: int, error: BlobError | None) -> None:
            results[number] = (data, total, error)
            if len(results) == len(wanted):
                done.set()

        engine.on_loop(begin)
        while not done.wait(1.0):
            if engine.stopping.is_set():
                raise BlobTimeout("this device is closing", reason="closing")
        for _, _, error in results.values():
            if error is not None:
                raise error
        return [results[number][:2] for number in range(len(wanted))]

    # -- what is told ------------------------------------------------------------------------------------------------

    def _refuse(self, task: str, round_number: int, event: str, reason: str, error: BaseException) -> None:
        """Count, log and report why something was not done."""

        def tell() -> None:
            talk = self._engine.talk()
            talk.refuse(reason, f"{event} in round {round_number} of {task}: {error}")
            talk.report(task, round_number, event, reason, str(error))
            if event in JOURNALED:
                self._engine.note(event, task, round_number, reason=reason)

        self._engine.on_loop(tell)

    def _report(self, task: str, event: str, detail: str) -> None:
        self._engine.on_loop(lambda: self._engine.talk().report(task, 0, event, "", detail))
