"""`EdgeClient`: what an app holds. After `init` nothing here raises into the app or blocks it.

Owns the process's clock, randomness and threads. Whatever the app passes in, an entry point answers: with a result,
or with a count of what was dropped, a line in the log and a call of `on_error`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from edge_sdk.answer import Answer
from edge_sdk.config import IDENTITY, Config, ConfigError, load
from edge_sdk.consent import Consent, checked_version
from edge_sdk.engine import Engine
from edge_sdk.governor import Governor

if TYPE_CHECKING:
    from edge_sdk.answering import Answers, Reply
    from edge_sdk.artifact.schema import Schema
    from edge_sdk.identity.enrolment import Identity
    from edge_sdk.inference import Answer as Prediction
    from edge_sdk.inference import Models, ServedModel
    from edge_sdk.recorder import Recorder
    from edge_sdk.surroundings import Surroundings
    from edge_sdk.transport.interface import Transport

OPENING_S: Final = 5.0
LOOK_S: Final = 0.02
REPEAT_S: Final = 10.0

log = logging.getLogger("edge_sdk")
F = TypeVar("F", bound=Callable[[], object])
A = TypeVar("A")
OnError = Callable[[BaseException], None]


class RateLimit(logging.Filter):
    """Lets one message of a kind through in ten seconds, with the number that was held back."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[object, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        at, held = self._last.get(record.msg, (-REPEAT_S, 0))
        if record.created - at < REPEAT_S:
            self._last[record.msg] = (at, held + 1)
            return False
        self._last[record.msg] = (record.created, 0)
        if held:
            record.msg = f"{record.msg} (and {held} more like it)"
        return True


class System:
    """The real surroundings: this machine's clock and randomness, the enrolled identity, MQTT."""

    def __init__(self, config: Config) -> None:
        self._home = config.home

    def clock(self) -> float:
        return time.time()

    def tick(self) -> float:
        return time.monotonic()

    def hour(self) -> int:
        return time.localtime().tm_hour

    def entropy(self, count: int) -> bytes:
        return os.urandom(count)

    def identity(self) -> Identity:
        from edge_sdk.identity.enrolment import load_identity

        return load_identity(self._home / IDENTITY)

    def connect(
        self, identity: Identity, last_words: Callable[[], tuple[str, bytes]], now: Callable[[], float]
    ) -> Transport:
        import random

        from edge_sdk.protocol.topics import device_filters
        from edge_sdk.transport.mqtt import MqttSettings, MqttTransport

        settings = MqttSettings(
            host=identity.bundle.broker_host,
            port=identity.bundle.broker_port,
            name=identity.device,
            ca_file=identity.ca_file,
            certificate_file=identity.certificate_file,
            key_file=identity.key_file,
            subscriptions=device_filters(identity.bundle.fleet, identity.device),
        )
        return MqttTransport(settings, rng=random.SystemRandom(), now=now, will=last_words)


class EdgeClient:
    """One device in this process. A context manager; `close` is also called at exit."""

    def __init__(
        self, config: Config, *, on_error: OnError | None = None, surroundings: Surroundings | None = None
    ) -> None:
        """Use `edge_sdk.init`. `surroundings` is for tests (`edge_sdk.testing`)."""
        self.config = config
        self.consent = Consent(self)
        self._governor = Governor(config.active_hours)
        self._on_error = on_error
        self._models: Models | None = None
        self._lock = threading.Lock()
        self._forked = False
        self._engine: Engine | None = None
        if config.enabled:
            self._engine = Engine(config, surroundings or System(config), self._governor, self._served, self._tell)
            self._engine.start()
            _clients.add(self)

    def __enter__(self) -> EdgeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"EdgeClient({str(self.config.home)!r})"

    def predict(self, task: str, fields: Mapping[str, Any], subject: str | None = None) -> Answer:
        """Answer with the last good model: local, offline, whatever else goes on. Never raises.

        Without a model, or where `fields` do not fit the model's schema, `Answer.available` is False. While the
        process starts it waits, at most 5 s, for a model that is on the disk. A window that `fields` leave out is
        filled with the labels recorded so far, those of `subject` alone where one is named.
        """
        try:
            _, kept, result = self._predicted(task, fields, subject)
        except Exception as error:
            return Answer(error=_said(error))
        return Answer(
            result.ranked,
            model_version=result.model_version,
            model_sha256=result.model_sha256,
            feedback=lambda label, whose, consent: self.record(
                task, kept, label, subject if whose is None else whose, consent
            ),
            interval=result.interval,
            pushes=result.pushes,
            personal=result.personal,
            calibrated=result.calibrated,
        )

    def answer(
        self, task: str, fields: Mapping[str, Any] | str, language: str = "en", subject: str | None = None
    ) -> Reply:
        """What to say: the operator's signed answer to the recognised intent, or that a person takes over.

        `fields`: the record, or the text alone where the task reads one. Local and offline as `predict`. Never raises:
        without a model or a list, and where something fails, `Reply.handed_over` is True and `text` says so politely.
        """
        from edge_sdk import answering

        try:
            model, record, result = self._predicted(task, fields, subject)
            return answering.reply(self._answers(task), model.schema, record, result.ranked, language)
        except Exception as error:
            return answering.failed(self._answers(task), language, _said(error))

    def _answers(self, task: str) -> Answers | None:
        """The operator's list; None without one, and for what cannot name a task."""
        with contextlib.suppress(Exception):
            return self._served().answers.get(task)
        return None

    def _predicted(
        self, task: str, fields: Mapping[str, Any] | str, subject: str | None
    ) -> tuple[ServedModel, dict[str, Any], Prediction]:
        """The model in service, the record as the app gave it, and what the model says. Raises whatever is wrong."""
        from edge_sdk.answering import record_of

        self._wait_for(task)
        model = self._served().current(task)
        record = record_of(model.schema, fields)
        filled = self._filled(task, model.schema, record, subject)
        (result,) = model.predict([filled], [self._widening(task, model.schema, record)])
        return model, record, result

    def _widening(self, task: str, schema: Schema, fields: Mapping[str, Any]) -> float | None:
        """How far the interval is moved; None where the model's own stays."""
        if self._engine is not None:
            with contextlib.suppress(Exception):  # an answer without it is better than none
                return self._engine.intervals.widening(task, schema, fields)
        return None

    def _filled(self, task: str, schema: Schema, fields: Mapping[str, Any], subject: str | None) -> Mapping[str, Any]:
        """The record with the windows that the app left out. Raises UnfitValue."""
        engine = self._engine
        if engine is None:
            return fields
        return engine.windows.for_prediction(task, schema, fields, None if subject is None else str(subject))

    def _wait_for(self, task: str) -> None:
        engine = self._engine
        if engine is None or engine.opened.is_set() or not (self.config.home / "models" / task).is_dir():
            return
        for _ in range(round(OPENING_S / LOOK_S)):  # another task's model may take longer
            if task in self._served().serving() or engine.opened.wait(LOOK_S):
                return

    def _served(self) -> Models:
        """Made with the first use: it brings numpy's weight, which importing this package must not."""
        with self._lock:
            if self._models is None:
                from edge_sdk.inference import Models

                self._models = Models()
            return self._models

    def record(
        self, task: str, fields: Mapping[str, Any], label: Any, subject: str | None = None, consent: int = 0
    ) -> None:
        """Keep a labelled example on this device, encrypted. Returns at once; a full queue drops and counts it.

        Fields that the task's signed schema does not name are left out. `consent`: the number of the notice that the
        subject agreed to, 0 where this call carries none; it never undoes a withdrawal.
        """
        engine = self._engine
        if engine is None:
            return
        try:
            if not isinstance(task, str) or not isinstance(fields, Mapping):
                raise TypeError(
                    "record takes a task's name (a text) and a mapping of field names to values, "
                    f"not {type(task).__name__} and {type(fields).__name__}"
                )
            carried = checked_version(consent) if consent else 0
            engine.record((task, dict(fields), label, None if subject is None else str(subject), carried))
        except Exception as error:
            engine.live.drop("record-invalid")
            self._fault(error)

    def busy(self, veto: F) -> F:
        """Decorator: while the function returns something true, this device does not train."""
        self._governor.veto = veto
        return veto

    def forget(self, subject: str) -> None:
        """Erase every example of a subject, those still queued included. Returns at once."""
        engine = self._engine
        if engine is None:
            return
        try:
            if not engine.forget(str(subject)):
                raise RuntimeError("forget was not queued: the queue is full; call it again")
        except Exception as error:
            self._fault(error)

    def export(self, subject: str, timeout: float = 5.0) -> dict[str, Any]:
        """Everything that this device holds of a subject, as plain data: for the subject itself.

        Examples opened, consent history, and the rounds that this device took part in while it held them. {} where it
        cannot be read within `timeout` seconds. Never raises.
        """
        from edge_sdk.disclosure import plain, rounds_of

        def collect(recorder: Recorder) -> dict[str, Any]:
            held = recorder.export(str(subject))
            told: dict[str, Any] = plain({**held, "rounds": rounds_of(self.config.home / "device.db", held["tasks"])})
            return told

        empty: dict[str, Any] = {}
        return self._asked(collect, timeout, empty)

    def explain(self, task: str, language: str = "en") -> str:
        """A notice for customers in plain words, "en" or "zh": what is kept, what leaves, how to withdraw.

        "" where it cannot be written, which is told to `on_error`. Never raises.
        """
        try:
            from edge_sdk.disclosure import notice

            return notice(self.config, str(task), language)
        except Exception as error:
            self._fault(error)
            return ""

    def _on_examples(self, action: Callable[[Recorder, int], object]) -> None:
        """Have the loop thread do something with the examples, in the order of the app's calls. Raises RuntimeError."""
        engine = self._engine
        if engine is not None and not engine.ask(lambda: _ignored(action(engine.recorder(), engine.time()))):
            raise RuntimeError("the request was not queued: the queue is full; call it again")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong inside is told, not raised."""
        try:
            yield
        except Exception as error:
            self._fault(error)

    def _asked(self, question: Callable[[Recorder], A], timeout: float, otherwise: A) -> A:
        """An answer from the loop thread; `otherwise` where it does not come in time."""
        engine = self._engine
        if engine is None:
            return otherwise
        answers: list[A] = []
        done = threading.Event()

        def answer() -> None:
            try:
                answers.append(question(engine.recorder()))
            finally:
                done.set()

        with self._told():
            if engine.ask(answer):
                done.wait(max(0.0, min(float(timeout), 60.0)))
        return answers[0] if answers else otherwise

    def status(self) -> dict[str, Any]:
        """A plain dict: phase, connection, models, privacy spent, examples, refusals, counters. Never raises."""
        try:
            return self._status()
        except Exception as error:
            self._fault(error)
            return {"phase": "unknown", "error": str(error)}

    def _status(self) -> dict[str, Any]:
        if self._forked:
            return {"phase": "disabled", "connected": False}
        from edge_sdk.device_status import read_status

        engine = self._engine
        status = read_status(self.config, time.time() if engine is None else engine.around.clock())
        if engine is None:
            return {"phase": "disabled", "connected": False, **status}
        live = engine.live
        served = {
            task: {"version": model.version, "sha256": model.sha256, "personal": model.personal}
            for task, model in self._served().serving().items()
        }
        return {
            "phase": engine.phase(),
            "connected": live.connected,
            "progress": live.progress,
            "waiting_for": live.objection,
            "dropped": dict(live.dropped),
            "examples_waiting": live.waiting,
            "rebuilt_connections": live.rebuilt,
            **status,
            "models": served or status["models"],
        }

    def flush(self, timeout: float = 2.0) -> bool:
        """Wait until what was recorded and forgotten so far is on the disk; False where the time ran out."""
        engine = self._engine
        if engine is None:
            return True
        try:
            done = threading.Event()
            return engine.ask(done.set) and done.wait(max(0.0, float(timeout)))
        except Exception as error:
            self._fault(error)
            return False

    def close(self) -> None:
        """End the threads in bounded time. What was recorded and what waits in the outbox stays for the next start."""
        engine, self._engine = self._engine, None
        _clients.discard(self)
        if engine is not None:
            try:
                engine.stop()
            except Exception as error:
                self._fault(error)

    def _fault(self, error: BaseException) -> None:
        log.error("%s: %s", type(error).__name__, error)
        self._tell(error)

    def _tell(self, error: BaseException) -> None:
        if self._on_error is not None:
            try:
                self._on_error(error)
            except Exception:
                log.exception("the function given as on_error failed")

    def _after_fork(self) -> None:
        """In a forked child the threads are gone: this client does nothing there until `init` makes a new one.

        It does not even read the database: a thread that the child lacks may hold a lock inside SQLite for ever.
        """
        self._lock = threading.Lock()
        self._forked = True
        self._engine = None


def _said(error: Exception) -> str:
    """What went wrong, whatever the app's own exception does when it is shown."""
    with contextlib.suppress(Exception):
        return f"{type(error).__name__}: {error}"[:500]
    return type(error).__name__


def _ignored(_: object) -> None:
    """The loop's actions give nothing back."""


_clients: weakref.WeakSet[EdgeClient] = weakref.WeakSet()


def _close_all() -> None:
    for client in list(_clients):
        client.close()


def _forget_threads() -> None:
    for client in list(_clients):
        client._after_fork()
    _clients.clear()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def init(config: Config | None = None, *, on_error: OnError | None = None, **settings: Any) -> EdgeClient:
    """Start this device and return at once; no network is waited for. The only call that may raise: ConfigError.

    Settings come from the arguments, then EDGE_* variables, then edge.toml in the home, then defaults.
    """
    if not any(isinstance(known, RateLimit) for known in log.filters):
        log.addFilter(RateLimit())
    config = config or load(**settings)
    if config.enabled:
        check_home(config.home)
    return EdgeClient(config, on_error=on_error)


def check_home(home: Path) -> None:
    """Raises ConfigError where no enrolled device lives in `home`, or where it cannot be written."""
    if not (home / IDENTITY / "device.crt").exists():
        raise ConfigError(f"{home} holds no enrolled device; run `edge-sdk enroll TOKEN --home {home}` once")
    if not os.access(home, os.W_OK):
        raise ConfigError(f"{home} cannot be written; give this user the directory")
