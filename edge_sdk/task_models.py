"""The models of every task on this device: slots on the disk, updates by TUF, the one in service. Reads no clock.

Refuses nothing itself; `edge_sdk.ota` does. The work thread owns it; predictions go through `inference.Models`, which
any thread may use. TUF is loaded with the first look for an update, not before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edge_sdk.blobs import BlobAbsent, BlobError
from edge_sdk.inference import Models
from edge_sdk.ota.slots import Model, Phase, Slots

if TYPE_CHECKING:
    from edge_sdk.ota.activation import Activation
    from edge_sdk.ota.fetcher import Block
    from edge_sdk.ota.rules import ReleaseFeed

Range = tuple[str, int, int]
FetchRanges = Callable[[Sequence[Range]], list[tuple[bytes, int]]]  # -> data and the blob's size; raises BlobError
TUF_PREFIX: Final = "tuf/"

log = logging.getLogger("edge_sdk")


class TaskModels:
    """Slots, feed and service of this device's tasks."""

    def __init__(self, home: Path, tuf_root: bytes, models: Models, fetch_ranges: FetchRanges) -> None:
        self._home, self._root, self._models, self._fetch = home, tuf_root, models, fetch_ranges
        self._slots: dict[str, Slots] = {}
        self._activations: dict[str, Activation] = {}
        self._feed: ReleaseFeed | None = None
        self._locked: dict[str, bytes] = {}
        self._files: dict[str, Path] = {}  # of the models in service

    def open(self) -> list[str]:
        """Put the last good model of every known task into service; returns the tasks."""
        folder = self._home / "models"
        folder.mkdir(exist_ok=True)
        tasks = sorted(path.name for path in folder.iterdir() if path.is_dir())
        for task in tasks:
            try:
                self._open_answers(task)  # first: whoever waits for the model finds them there
                self._open(task)
            except Exception:
                # One unreadable model must not keep the others from serving.
                log.exception("the model of %s could not be opened; it is fetched again at the next update", task)
        return tasks

    def _open(self, task: str) -> Slots:
        if task not in self._slots:
            self._slots[task] = slots = Slots(self._home / "models" / task)
            if slots.phase is Phase.IDLE:
                self._serve(task, slots.active())
            else:
                self._activation(task).start()
        return self._slots[task]

    def update(self, task: str, now: float) -> Model | None:
        """Look for a newer release; verify, install and serve it. None where nothing is newer. Raises OtaError."""
        self._open(task)
        return self._activation(task).update(now)

    def update_answers(self, task: str, now: float) -> int | None:
        """Look for a newer list of answers; verify, keep and serve it: its version. None where nothing is newer.

        Raises OtaError; the list in hand serves on.
        """
        from edge_sdk.answering import Answers
        from edge_sdk.stored_answers import store

        held = self._models.answers.get(task)
        found = self._release_feed().fetch_answers(task, held.version if held else 0, now)
        if found is None:
            return None
        version, data = found
        self._models.answers[task] = Answers(store(self._home, task, version, data))
        return version

    def _open_answers(self, task: str) -> None:
        from edge_sdk.answering import Answers
        from edge_sdk.stored_answers import load

        listed = load(self._home, task)
        if listed is not None:
            self._models.answers[task] = Answers(listed)

    def locked_graph(self, task: str, expected: bytes, now: float) -> bytes:
        """The graph digest (32 bytes) that the offline key locked; asked again only where it is not `expected`."""
        if self._locked.get(task) != expected:
            self._locked[task] = self._release_feed().locked_graph(task, now)
        return self._locked[task]

    def close(self) -> None:
        """The process ends in order: a model on trial is not blamed for it."""
        for slots in self._slots.values():
            slots.close()

    def _activation(self, task: str) -> Activation:
        from edge_sdk.ota.activation import Activation

        if task not in self._activations:
            serve = lambda model: self._serve(task, model)  # noqa: E731 - it binds this task
            self._activations[task] = Activation(task, self._release_feed(), self._slots[task], serve)
        return self._activations[task]

    def _release_feed(self) -> ReleaseFeed:
        from edge_sdk.ota.rules import ReleaseFeed

        if self._feed is None:
            self._feed = ReleaseFeed(self._home / "tuf", self._root, self._request, request_many=self._request_many)
        return self._feed

    def _serve(self, task: str, model: Model | None) -> None:
        if model is None:
            self._models.unload(task)
        else:
            self._models.load(task, model.path.read_bytes(), model.version)
            self._files[task] = model.path

    def release(self, task: str) -> bytes:
        """The ONNX bytes of the release in service. Raises KeyError without one, OSError."""
        return self._files[task].read_bytes()

    def _request(self, path: str, offset: int, length: int) -> Block:
        return self._request_many([(path, offset, length)])[0]

    def _request_many(self, ranges: Sequence[Range]) -> list[Block]:
        from edge_sdk.ota.fetcher import Block, NotFound, TimedOut

        try:
            answers = self._fetch([(TUF_PREFIX + path, offset, length) for path, offset, length in ranges])
        except BlobAbsent as error:
            raise NotFound(str(error)) from error
        except BlobError as error:
            raise TimedOut(str(error)) from error
        return [Block(total, data) for data, total in answers]
