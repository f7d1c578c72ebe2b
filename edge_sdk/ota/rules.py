"""Which model may this device install? TUF's rules over our fetcher, with a floor under the clock and a locked graph.

It refuses expired, rolled back, mixed, unsigned or oversized files, a model of another graph than the offline key
locked, and a model that fails the checks before load. It never touches the active model: an expired timestamp blocks
installing and nothing else. Not thread-safe: one worker thread owns a feed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Metadata, TargetFile  # type: ignore[attr-defined] # re-exported without __all__
from tuf.ngclient import Updater, UpdaterConfig  # type: ignore[attr-defined] # re-exported without __all__

from .durable import flush, move_durably, named, removed_on_failure, write_durably
from .errors import ModelRefused, UpdateRefused, UpdateUnavailable
from .fetcher import BLOCK_BYTES, URL, WINDOW, BlockFetcher, Request, RequestMany

SIGNED_AT = "x-signed-at"
DAY_S = 86_400
_MAX_LOCK_BYTES = 16 * 1024
_MAX_CARD_BYTES = 64 * 1024
_MAX_ANSWERS_BYTES = 2**20


class GraphLock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the offline key allows for a task: the SHA-256 (hex) of the graph without weights, and a size in bytes."""

    task: str
    graph_digest: str
    max_bytes: int


@dataclass(frozen=True)
class Candidate:
    """A release newer than the active model. `sha256` is hex, `length` bytes; `custom` as the aggregator signed it."""

    task: str
    version: int
    sha256: str
    length: int
    custom: Mapping[str, str]

    @property
    def path(self) -> str:
        """The TUF target path."""
        return f"models/{self.task}/{self.version}.onnx"

    @property
    def card_path(self) -> str:
        """The TUF target path of its model card."""
        return f"cards/{self.task}/{self.version}.json"


class ReleaseFeed:
    """The device's side of one release repository. `trusted_root` is the root metadata of the trust bundle."""

    def __init__(
        self,
        directory: Path,
        trusted_root: bytes,
        request: Request,
        *,
        request_many: RequestMany | None = None,
        block_bytes: int = BLOCK_BYTES,
        window: int = WINDOW,
    ) -> None:
        self._metadata = directory / "metadata"
        self._locks = directory / "locks"
        self._metadata.mkdir(parents=True, exist_ok=True)
        self._locks.mkdir(exist_ok=True)
        self._root = trusted_root
        self._fetcher = BlockFetcher(
            request, directory / "partial", request_many=request_many, block_bytes=block_bytes, window=window
        )
        self._floor = TimeFloor(directory / "time-floor", _signed_at(trusted_root))

    def effective_time(self, now: float) -> float:
        """The clock, or the newest signed time seen where the clock is behind it (a clock in 1970)."""
        return max(now, self._floor.seconds)

    def clock_is_behind(self, now: float) -> bool:
        """True when the device's clock contradicts signed time; to be reported."""
        return now < self._floor.seconds

    def check_for_update(
        self, task: str, active_version: int, now: float, refused: Collection[str] = ()
    ) -> Candidate | None:
        """The newest release of `task` above `active_version` whose SHA-256 is not in `refused`, or None.

        `now` is seconds since 1970. Raises UpdateUnavailable (ask later), UpdateRefused (named reason), DiskFull.
        """
        with self._border(now):
            updater = self._refreshed(now)
            candidate = self._newest(updater, task, active_version, refused)
            if candidate is not None:
                _check_promise(candidate, self._lock(updater, task))
            return candidate

    def download(self, candidate: Candidate, destination: Path, now: float, *, card: Path | None = None) -> None:
        """Fetch, verify and check a candidate, then move it durably to `destination`; nothing is left on failure.

        Its model card, where the release has one, is verified first and lies at `card` from then on.

        Raises as `check_for_update`, and ModelRefused where signed bytes are unfit to run.
        """
        temporary = destination.with_name(destination.name + ".new")
        with self._border(now), removed_on_failure(temporary):
            updater = self._refreshed(now)
            target = updater.get_targetinfo(candidate.path)
            if target is None or target.hashes.get("sha256") != candidate.sha256:
                raise UpdateUnavailable("the release was withdrawn: check again", reason="withdrawn")
            lock = self._lock(updater, candidate.task)
            _check_promise(candidate, lock)
            if card is not None:
                self._fetch_card(updater, candidate, card)
            updater.download_target(target, str(temporary))
            check_content(temporary.read_bytes(), lock)
            flush(temporary)
            move_durably(temporary, destination)

    def fetch_answers(self, task: str, held: int, now: float) -> tuple[int, bytes] | None:
        """The newest list of answers of `task`: its version and its verified bytes; None where `held` is the newest.

        Raises as `check_for_update`; UpdateRefused ("rollback") where only older ones than `held` are listed.
        """
        with self._border(now):
            updater = self._refreshed(now)
            updater.get_targetinfo(f"answers/{task}/0.json")  # never published; makes TUF load the delegation
            version = max(self._listed("answers", task, "json"), default=0)
            if 0 < version < held:
                raise UpdateRefused(f"answers {version} of {task} are older than {held}", reason="rollback")
            target = updater.get_targetinfo(f"answers/{task}/{version}.json") if version > held else None
            if target is None:
                return None
            custom = target.custom if isinstance(target.custom, dict) else {}
            if target.length > _MAX_ANSWERS_BYTES or custom.get("version") != str(version):
                raise UpdateRefused(f"answers {version} of {task} do not describe themselves", reason="malformed")
            temporary = self._locks / f"{task}.answers.new"
            try:
                updater.download_target(target, str(temporary))
                return version, temporary.read_bytes()
            finally:
                temporary.unlink(missing_ok=True)

    def locked_graph(self, task: str, now: float) -> bytes:
        """The graph digest (32 bytes) that the offline key locked for `task`. Raises as `check_for_update`."""
        with self._border(now):
            return bytes.fromhex(self._lock(self._refreshed(now), task).graph_digest)

    def _refreshed(self, now: float) -> Updater:
        updater = Updater(
            str(self._metadata),
            URL + "metadata",
            target_base_url=URL + "targets",
            fetcher=self._fetcher,
            config=UpdaterConfig(max_delegations=4),
            bootstrap=self._root,
        )
        # TUF offers no way to pass the time in; a test with a clock in 1970 fails if this name ever changes.
        updater._trusted_set.reference_time = datetime.fromtimestamp(self.effective_time(now), UTC)
        updater.refresh()
        root = _parsed((self._metadata / "root.json").read_bytes())
        signed_at = _signed_at((self._metadata / "timestamp.json").read_bytes())
        self._floor.raise_to(signed_at, now, limit=root.signed.expires.timestamp())
        return updater

    def _newest(self, updater: Updater, task: str, above: int, refused: Collection[str]) -> Candidate | None:
        updater.get_targetinfo(f"models/{task}/0.onnx")  # never published; makes TUF load and verify the delegation
        for version in self._listed("models", task, "onnx"):
            target = updater.get_targetinfo(f"models/{task}/{version}.onnx") if version > above else None
            if target is not None and target.hashes.get("sha256") not in refused:
                return _candidate(task, version, target)
        return None

    def _listed(self, kind: str, task: str, ending: str) -> list[int]:
        """Versions named in the local copy of the delegated metadata; each is still asked of TUF by name."""
        file = self._metadata / "rounds.json"
        names = _parsed(file.read_bytes()).signed.targets if file.exists() else {}
        found = (re.fullmatch(rf"{kind}/{re.escape(task)}/([1-9][0-9]{{0,14}})\.{ending}", name) for name in names)
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def _fetch_card(self, updater: Updater, candidate: Candidate, destination: Path) -> None:
        """Store the card that was signed with the model; a release without one (an older aggregator's) has none."""
        target = updater.get_targetinfo(candidate.card_path)
        if target is None:
            return
        if target.length > _MAX_CARD_BYTES or target.hashes.get("sha256") != candidate.custom.get("card_sha256"):
            raise UpdateRefused("the model card is not the one that the release names", reason="card")
        temporary = destination.with_name(destination.name + ".new")
        with removed_on_failure(temporary):
            updater.download_target(target, str(temporary))
            if _described(temporary.read_bytes()) != (candidate.task, candidate.version, candidate.sha256):
                raise UpdateRefused("the model card is about another model", reason="card")
            flush(temporary)
            move_durably(temporary, destination)

    def _lock(self, updater: Updater, task: str) -> GraphLock:
        target = updater.get_targetinfo(f"graphs/{task}.json")
        if target is None or target.length > _MAX_LOCK_BYTES:
            raise UpdateRefused(
                f"no graph is locked for {task}: its owner signs one offline", reason="graph-not-locked"
            )
        path = str(self._locks / f"{task}.json")
        if updater.find_cached_target(target, path) is None:
            updater.download_target(target, path)
        lock = msgspec.json.decode(Path(path).read_bytes(), type=GraphLock)
        if lock.task != task:
            raise UpdateRefused(f"the lock of {task} names {lock.task}", reason="graph-not-locked")
        return lock

    @contextmanager
    def _border(self, now: float) -> Iterator[None]:
        """Map TUF's exceptions to ours, here and nowhere else."""
        try:
            yield
        except tuf_errors.DownloadLengthMismatchError as error:
            raise UpdateRefused(f"more bytes than were signed: {error}", reason="too-long") from error
        except tuf_errors.DownloadError as error:
            raise UpdateUnavailable(f"the repository does not answer: {error}", reason="silence") from error
        except tuf_errors.RepositoryError as error:
            raise UpdateRefused(self._explain(error, now), reason=_reason(error)) from error
        except (msgspec.MsgspecError, ValueError) as error:
            raise UpdateRefused(f"signed metadata that we cannot read: {error}", reason="malformed") from error
        except OSError as error:
            raise named(error) from error

    def _explain(self, error: Exception, now: float) -> str:
        if not isinstance(error, tuf_errors.ExpiredMetadataError):
            return f"not installed: {error}"
        day = datetime.fromtimestamp(self.effective_time(now), UTC).date()
        return f"{error} on {day}: nothing is installed until a fresh one arrives; if the date is wrong, set the clock"


class TimeFloor:
    """The newest signed time seen, kept across restarts, in seconds since 1970. It never falls."""

    def __init__(self, file: Path, at_least: float) -> None:
        self._file = file
        self.seconds = max(at_least, _stored(file))

    def raise_to(self, signed_at: float, now: float, limit: float) -> None:
        """Believe a signed time: up to a day past a plausible clock, or up to `limit` where the clock is behind.

        So a stolen timestamp key cannot push the floor into the far future and stop updates for good.
        """
        plausible = now >= self.seconds
        newest = min(signed_at, now + DAY_S if plausible else limit)
        if newest > self.seconds:
            self.seconds = newest
            write_durably(self._file, str(int(newest)).encode())


def check_content(data: bytes, lock: GraphLock) -> None:
    """Refuse signed bytes that are unfit to load: size, operators, weights, graph. Raises ModelRefused."""
    from edge_sdk.artifact.graph_lock import graph_digest
    from edge_sdk.artifact.safety import UnsafeModel, check_model

    try:
        check_model(data, lock.max_bytes)
        digest = graph_digest(data).hex()
    except UnsafeModel as error:
        raise ModelRefused(f"unsafe model: {error}", reason=f"unsafe-{error.reason}") from error
    if digest != lock.graph_digest:
        found = hashlib.sha256(data).hexdigest()
        raise ModelRefused(f"model {found[:12]} has another graph than the offline key locked", reason="graph-changed")


def _described(card: bytes) -> tuple[Any, ...]:
    """Task, version and SHA-256 of the model that a card is about. Raises ValueError."""
    read = msgspec.json.decode(card)
    model = read.get("model") if isinstance(read, dict) else None
    if not isinstance(model, dict):
        raise ValueError("the model card names no model")
    return model.get("task"), model.get("version"), model.get("sha256")


def _check_promise(candidate: Candidate, lock: GraphLock) -> None:
    if candidate.length > lock.max_bytes:
        raise UpdateRefused(f"{candidate.length} bytes exceed the lock's {lock.max_bytes}", reason="too-large")
    if candidate.custom.get("graph_digest", lock.graph_digest) != lock.graph_digest:
        raise UpdateRefused("the release names another graph than the offline key locked", reason="graph-changed")


def _candidate(task: str, version: int, target: TargetFile) -> Candidate:
    custom = target.custom if isinstance(target.custom, dict) else {}
    words = all(isinstance(value, str) for value in custom.values())
    sha256 = target.hashes.get("sha256")
    if not words or custom.get("version") != str(version) or sha256 is None:
        raise UpdateRefused(f"release {version} of {task} does not describe itself", reason="malformed")
    return Candidate(task, version, sha256, target.length, custom)


def _reason(error: Exception) -> str:
    for kind, reason in (
        (tuf_errors.ExpiredMetadataError, "expired"),
        (tuf_errors.BadVersionNumberError, "rollback"),
        (tuf_errors.LengthOrHashMismatchError, "wrong-hash"),
        (tuf_errors.UnsignedMetadataError, "wrong-signature"),
    ):
        if isinstance(error, kind):
            return reason
    return "malformed"


def _parsed(data: bytes) -> Metadata[Any]:
    return Metadata.from_bytes(data)


def _signed_at(data: bytes) -> float:
    value = _parsed(data).signed.unrecognized_fields.get(SIGNED_AT, 0)
    return float(value) if isinstance(value, int) and value >= 0 else 0.0


def _stored(file: Path) -> float:
    try:
        return float(int(file.read_bytes()))
    except (OSError, ValueError):
        return 0.0
