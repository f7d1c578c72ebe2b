"""Fakes for tests of apps: an aggregator in this process and a clock that the test moves. No socket, no broker.

`FakeAggregator` speaks the real protocol over the in-memory transport: it echoes heartbeats, answers Ask, serves
blobs, takes uploads and signs receipts. It averages nothing; it offers rounds of every privacy unit and placement for
a task whose graph it locked before the client started, asks queries (analytics) in them, and opens what the device
uploads.

    with FakeAggregator(tmp_path) as fake:
        fake.install("churn", model_bytes)
        with fake.client() as fl:
            assert fl.predict("churn", record).available

    with FakeAggregator(tmp_path) as fake:
        fake.lock("churn", model_bytes)
        with fake.client(max_epsilon=50.0) as fl:
            ...  # record examples
            offered = fake.offer_round("churn", unit="customer", placement="shared")
            assert fake.wait_for(lambda: fake.opened(offered) is not None)
            asked = fake.offer_query("churn", Statistic("moments", "minutes", 0.0, 400.0, 0, ()), number=2)
            assert fake.wait_for(lambda: fake.sums(asked) is not None)
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.client import EdgeClient
from edge_sdk.config import load
from edge_sdk.identity.enrolment import Identity
from edge_sdk.identity.keys import DeviceKeys
from edge_sdk.ota.slots import Slots
from edge_sdk.protocol import chunks, codec, topics
from edge_sdk.protocol.enrolment import TrustBundle
from edge_sdk.protocol.messages import (
    UP,
    Ack,
    Ask,
    Block,
    Done,
    Echo,
    Get,
    Grant,
    Heartbeat,
    Hello,
    Message,
    ModelHint,
    Offer,
    OpeningNotice,
    Placement,
    PrivacyTerms,
    Query,
    Receipt,
    Report,
    Share,
    State,
    Statistic,
    Unit,
)
from edge_sdk.testing_rounds import FakeRounds, fake_terms, query_terms, sums
from edge_sdk.transport.interface import Callbacks, QoS, Transport
from edge_sdk.transport.memory import MemoryBroker, MemoryTransport

PUMP_S: Final = 0.002


class ManualClock:
    """A wall clock that moves only when the test says so."""

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self._now = start

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move forward, or back."""
        self._now += seconds


class _SharedTransport:
    """A memory transport whose broker another thread steps: one lock for both."""

    def __init__(self, inner: MemoryTransport, lock: threading.RLock) -> None:
        self._inner, self._lock = inner, lock

    def start(self, callbacks: Callbacks) -> None:
        with self._lock:
            self._inner.start(callbacks)

    def stop(self) -> None:
        with self._lock:
            self._inner.stop()

    def publish(self, topic: str, payload: bytes, qos: QoS = 1) -> bool:
        with self._lock:
            return self._inner.publish(topic, payload, qos)

    @property
    def in_flight(self) -> int:
        return self._inner.in_flight

    @property
    def connected(self) -> bool:
        return self._inner.connected

    @property
    def counters(self) -> dict[str, int]:
        return self._inner.counters


class _Surroundings:
    """What the client under test is given."""

    def __init__(self, fake: FakeAggregator) -> None:
        self._fake = fake

    def clock(self) -> float:
        return self._fake.clock()

    def tick(self) -> float:
        return time.monotonic()

    def hour(self) -> int:
        return time.gmtime(self._fake.clock()).tm_hour

    def entropy(self, count: int) -> bytes:
        return os.urandom(count)

    def identity(self) -> Identity:
        return self._fake.identity()

    def connect(
        self, _identity: Identity, last_words: Callable[[], tuple[str, bytes]], _now: Callable[[], float]
    ) -> Transport:
        last_words()  # a real transport asks for it at this point
        return self._fake.device_transport()


class FakeAggregator:
    """An aggregator for one device. A context manager; what it was told is in its lists."""

    def __init__(
        self,
        home: Path,
        *,
        fleet: str = "test-fleet",
        device: str = "device-1",
        clock: Callable[[], float] | None = None,
        tuf_root: str = "",
        authority: Ed25519PrivateKey | None = None,
    ) -> None:
        """`home` is the device's; `tuf_root` the text of a root.json if the test serves a release repository."""
        self.home, self.fleet, self.device = home, fleet, device
        self.clock: Callable[[], float] = clock or ManualClock()
        self.keys = DeviceKeys.generate()
        self.signing_key, self.authority = Ed25519PrivateKey.generate(), authority or Ed25519PrivateKey.generate()
        self._tuf_root = tuf_root
        self.broker = MemoryBroker(fleet)
        self._lock = threading.RLock()
        self._transport = self.broker.transport("aggregator-1", topics.aggregator_filters(fleet))
        self._outgoing: deque[tuple[str, bytes]] = deque()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._pump, name="fake-aggregator", daemon=True)
        self.blobs: Callable[[str], bytes | None] = lambda path: None  # noqa: ARG005 - the test replaces it
        self.offers: list[bytes] = []
        self.openings: list[OpeningNotice] = []
        self.received: list[Message] = []
        self.uploads: dict[bytes, tuple[Hello, dict[int, bytes]]] = {}
        self._rounds: FakeRounds | None = None
        self._offered: dict[bytes, Offer] = {}
        self.accept = True
        self.silent = False

    def __enter__(self) -> Self:
        self._transport.start(Callbacks(on_message=self._receive))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    # -- for the test ----------------------------------------------------------------------------------------------

    def client(self, *, on_error: Callable[[BaseException], None] | None = None, **settings: Any) -> EdgeClient:
        """A client of this aggregator, as `edge_sdk.init` would make it; `settings` as there."""
        config = load({}, **{"home": self.home, **settings})
        return EdgeClient(config, on_error=on_error, surroundings=_Surroundings(self))

    def install(self, task: str, model: bytes, version: int = 1) -> str:
        """Put a model on the device's disk as if an update had installed it; before the client starts. Its SHA-256."""
        slots, sha256 = Slots(self.home / "models" / task), hashlib.sha256(model).hexdigest()
        slots.incoming().write_bytes(model)
        slots.stage(version, sha256)
        slots.begin_trial()
        slots.commit()
        slots.close()
        return sha256

    def put_answers(self, task: str, written: bytes, version: int = 1) -> None:
        """Put a list of answers (JSON as for `aggregator answers publish`) on the disk; before the client starts."""
        from edge_sdk import answer_list, stored_answers

        data = answer_list.sealed(answer_list.read_written(written), task, version)
        stored_answers.store(self.home, task, version, data)

    def lock(self, task: str, model: bytes) -> None:
        """Lock the graph of a task, as the offline key would, before the client starts; `offer_round` trains it."""
        if self._rounds is None:
            self._rounds = FakeRounds(self.fleet, self.device, self.keys, self.authority, self.clock())
            self._tuf_root = self._rounds.tuf_root
        self._rounds.lock(task, model)

    def offer_round(
        self,
        task: str,
        *,
        number: int = 1,
        unit: Unit = "record",
        placement: Placement = "local",
        noise_multiplier: float = 1.0,
        consent: int = 0,
        terms: PrivacyTerms | None = None,
    ) -> bytes:
        """Offer a round of a locked task; returns its hash H. `terms` says all of the privacy where it is given."""
        given = terms or fake_terms(unit, placement, noise_multiplier)
        return self._offer(task, number, given, consent)

    def offer_query(
        self,
        task: str,
        *statistics: Statistic,
        number: int = 1,
        unit: Unit = "record",
        placement: Placement = "local",
        noise_multiplier: float = 1.0,
        consent: int = 0,
    ) -> bytes:
        """Offer a round of a locked task that asks for these statistics of its examples; returns its hash H."""
        query, terms = Query("question", statistics), query_terms(unit, placement, noise_multiplier)
        return self._offer(task, number, terms, consent, query)

    def _offer(self, task: str, number: int, terms: PrivacyTerms, consent: int, query: Query | None = None) -> bytes:
        if self._rounds is None:
            raise LookupError(f"no graph of {task} is locked: call lock before the client starts")
        offer = self._rounds.offer(task, number, terms, now=int(self.clock()), consent=consent, query=query)
        digest = self.publish_offer(offer)
        self._offered[digest] = offer
        return digest

    def sums(self, digest: bytes) -> list[npt.NDArray[np.float64]] | None:
        """What the device answers to the query with hash H: the values of each statistic, in the order that they were
        asked in, as sums over its units with its noise in them; None until it is here. SPEC 7.9 says which values.
        """
        opened = self.opened(digest)
        return None if opened is None else sums(self._offered[digest], opened)

    def opened(self, digest: bytes) -> npt.NDArray[np.int64] | None:
        """What the device adds to the sum of the round with hash H, int64[length] in steps; None until it is here."""
        for hello, sealed in list(self.uploads.values()):
            if hello.offer_hash == digest and len(sealed) == chunks.chunk_count(hello.size):
                assert self._rounds is not None
                return self._rounds.opened(self._offered[digest], hello, sealed)
        return None

    def publish_offer(self, offer: Offer) -> bytes:
        """Sign and publish an offer; returns its hash H."""
        frame = self.sign(offer, codec.EVERYBODY)
        self.offers.append(frame)
        self._outgoing.append((topics.to_all(self.fleet, offer.topic), frame))
        return codec.offer_hash(frame)

    def hint(self, task: str) -> None:
        """Tell the device that there may be a new release."""
        hint = ModelHint(task)
        self._outgoing.append((topics.to_all(self.fleet, hint.topic), self.sign(hint, codec.EVERYBODY)))

    def ask_opening(self, notice: OpeningNotice) -> None:
        """Ask the device for its answer as a committee member."""
        self._send(notice)

    def receipts(self) -> int:
        """Uploads that arrived whole and were asked a receipt for."""
        finished = {message.upload for message in self.received if isinstance(message, Done)}
        return sum(upload in finished for upload in self.uploads)

    def reports(self) -> list[Report]:
        """What the device reported."""
        return [message for message in self.received if isinstance(message, Report)]

    def shares(self) -> list[Share]:
        """The device's answers as a committee member."""
        return [message for message in self.received if isinstance(message, Share)]

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
        """Wait until something holds; False where it does not in time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(0.01)
        return condition()

    def cut(self) -> None:
        """The broker dies with everything on its way."""
        with self._lock:
            self.broker.crash()

    def mend(self) -> None:
        """The broker is back."""
        with self._lock:
            self.broker.restart()

    # -- for the client under test ---------------------------------------------------------------------------------

    def identity(self) -> Identity:
        """The device's identity, trusting this aggregator."""
        public = self.signing_key.public_key().public_bytes_raw()
        authority = self.authority.public_key().public_bytes_raw()
        bundle = TrustBundle(self.fleet, public, authority, "", "localhost", 1, self._tuf_root)
        return Identity(self.device, self.keys, bundle, Path(), Path(), Path())

    def device_transport(self) -> Transport:
        """The device's way to this broker."""
        with self._lock:
            inner = self.broker.transport(self.device, topics.device_filters(self.fleet, self.device))
        return _SharedTransport(inner, self._lock)

    # -- the fake itself -------------------------------------------------------------------------------------------

    def sign(self, message: Message, recipient: str) -> bytes:
        """A frame of this aggregator."""
        return codec.encode(
            message, fleet=self.fleet, sender=codec.AGGREGATOR, recipient=recipient, sign=self.signing_key.sign
        )

    def _send(self, message: Message) -> None:
        topic = topics.down(self.fleet, self.device, message.topic)
        self._outgoing.append((topic, self.sign(message, self.device)))

    def _pump(self) -> None:
        while not self._stopping.wait(PUMP_S):
            with self._lock:
                self._flush()
                while self.broker.step():
                    self._flush()

    def _flush(self) -> None:
        while self._outgoing and self._transport.publish(*self._outgoing[0]):
            self._outgoing.popleft()

    def _receive(self, topic: str, payload: bytes) -> None:
        if self.silent:
            return
        if topics.parse(topic).kind == "data":
            self._take_chunk(codec.decode_chunk(payload))
            return
        message = codec.decode(
            payload,
            fleet=self.fleet,
            sender=self.device,
            recipient=codec.AGGREGATOR,
            public_key=self.keys.sign_public,
            accepted=UP,
        )
        self.received.append(message)
        self._answer(message)

    def _answer(self, message: Message) -> None:
        match message:
            case Ask():
                now = int(self.clock())
                self._send(State(message.nonce, now, 1, tuple(self.offers), tuple(self.openings), None, 60))
            case Heartbeat():
                self._send(Echo(message.nonce, int(self.clock())))
            case Hello():
                self.uploads.setdefault(message.upload, (message, {}))
                self._send(Grant(message.upload, 8, self._bitmap(message.upload)))
            case Done():
                self._send(Receipt(message.upload, self.accept, "" if self.accept else "refused-by-test"))
            case Get():
                self._serve(message)
            case _:
                pass

    def _serve(self, get: Get) -> None:
        blob = self.blobs(get.path)
        if blob is None and self._rounds is not None:
            blob = self._rounds.blobs.get(get.path)
        data = b"" if blob is None else blob[get.offset : get.offset + get.length]
        self._send(Block(get.request, get.path, get.offset, len(blob or b""), blob is not None, data))

    def _take_chunk(self, chunk: codec.Chunk) -> None:
        if chunk.upload in self.uploads:
            self.uploads[chunk.upload][1][chunk.index] = chunk.sealed
            self._send(Ack(chunk.upload, self._bitmap(chunk.upload)))

    def _bitmap(self, upload: bytes) -> bytes:
        hello, held = self.uploads[upload]
        return chunks.Bitmap(chunks.chunk_count(hello.size), held).encode()
