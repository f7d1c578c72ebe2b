"""The TUF repository of a fleet: signs models, stores them, and serves byte ranges of its public files.

Roles: root (2 of 3) and targets are offline; `rounds` (models, cards, answers), snapshot and timestamp are online.
The offline targets role locks the graph of each task, so the online keys ship weights and never a new graph.
It refuses a model whose graph is not the locked one, a version that does not grow, another file under a version
already published, and any path outside its public files. A publish becomes visible in one rename, the timestamp's;
a crash before it leaves the old release, and the same call again is safe.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined] # re-exported without __all__
from tuf.api.metadata import (  # type: ignore[attr-defined] # re-exported without __all__
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from .durable import exclusive, write_durably
from .errors import ReleaseNotFound, ReleaseRefused
from .keys import (
    ONLINE_NAMES,
    ROOT_NAMES,
    ROOT_THRESHOLD,
    TARGETS_NAME,
    OnlineKeys,
    ensure_key,
    open_online_keys,
)

ROOT_LIFE = timedelta(days=365)
TARGETS_LIFE = timedelta(days=90)
ONLINE_LIFE = timedelta(days=14)
TIMESTAMP_LIFE = timedelta(days=3)
KEPT_RELEASES = 20
KEPT_METADATA = 8  # a device in the middle of a refresh still finds the files its timestamp named
MAX_READ = 256 * 1024
CARDS, ANSWERS = "cards/*/*.json", "answers/*/*.json"
ROUNDS_PATHS = ("models/*/*.onnx", CARDS, ANSWERS)  # all that the online role may sign
MAX_CARD = 64 * 1024
MAX_ANSWERS = 2**20
KEPT_ANSWERS = 5
SIGNED_AT = "x-signed-at"  # seconds since 1970 inside signed metadata: the device's floor of time

_TASK = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,160}\Z")
_S = TypeVar("_S", bound=Signed)


@dataclass(frozen=True)
class Release:
    """One published model. `sha256` is hex, `length` bytes, `custom` strings only (TUF metadata holds no floats)."""

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


class Repository:
    """`directory/public` is served to devices; `directory/online` holds the online keys and is never served."""

    def __init__(self, directory: Path) -> None:
        self._public = directory / "public"
        self._metadata = self._public / "metadata"
        self._targets = self._public / "targets"
        self._online = directory / "online"
        if not (self._metadata / "timestamp.json").exists():
            raise ReleaseNotFound(f"no repository in {directory}: run `aggregator init`", reason="no-repository")
        self._keys: OnlineKeys = open_online_keys(self._online)

    @classmethod
    def create(cls, directory: Path, offline_dir: Path, passphrase: bytes, now: float) -> Repository:
        """Make keys and first metadata; `now` is seconds since 1970. An interrupted call may be repeated."""
        metadata = directory / "public" / "metadata"
        if (metadata / "timestamp.json").exists():
            raise ReleaseRefused(f"{directory} holds a repository already: open it instead", reason="exists")
        metadata.mkdir(parents=True, exist_ok=True)
        (directory / "public" / "targets").mkdir(exist_ok=True)
        roots = [ensure_key(offline_dir, name, passphrase) for name in ROOT_NAMES]
        targets_key = ensure_key(offline_dir, TARGETS_NAME, passphrase)
        for name in ONLINE_NAMES:
            ensure_key(directory / "online", name, None)
        online = open_online_keys(directory / "online")
        _write_signed(metadata, "root", _first_root(roots, targets_key, online, now), roots)
        _write_signed(metadata, TARGETS_NAME, _first_targets(online, now), [targets_key])
        _write_signed(metadata, "rounds", Targets(expires=_after(now, ONLINE_LIFE)), [online.rounds])
        snapshot = Snapshot(expires=_after(now, ONLINE_LIFE), meta=_pins(metadata))
        pin = _write_signed(metadata, "snapshot", snapshot, [online.snapshot])
        _write_timestamp(metadata, Timestamp(snapshot_meta=pin), online, now)
        return cls(directory)

    def trusted_root(self) -> bytes:
        """The newest root metadata, for the trust bundle that a device is enrolled with."""
        return (self._metadata / f"{self._root_version()}.root.json").read_bytes()

    def lock_graph(self, task: str, graph_digest: str, max_bytes: int, key: CryptoSigner, now: float) -> None:
        """Let `task` ship models of exactly this graph (hex SHA-256) and size. `key` is the offline targets key."""
        _check_task(task)
        if not re.fullmatch(r"[0-9a-f]{64}", graph_digest) or max_bytes <= 0:
            raise ReleaseRefused("a lock wants a hex SHA-256 and a positive size in bytes", reason="bad-lock")
        lock = {"task": task, "graph_digest": graph_digest, "max_bytes": max_bytes}
        data = json.dumps(lock, sort_keys=True).encode()
        with exclusive(self._online / "lock"):
            if self.locked_graph(task) == lock:
                return
            target = TargetFile.from_data(f"graphs/{task}.json", data, ["sha256"])
            self._write_target(target, data)
            targets = self._load(Targets, TARGETS_NAME)
            targets.targets[target.path] = target
            _delegate_all(targets)
            self._commit({TARGETS_NAME: (targets, TARGETS_LIFE, [key])}, now)

    def locked_graph(self, task: str) -> dict[str, Any] | None:
        """The lock of this task: task, graph_digest (hex), max_bytes; None where no graph is locked yet."""
        target = self._load(Targets, TARGETS_NAME).targets.get(f"graphs/{task}.json")
        if target is None:
            return None
        lock: dict[str, Any] = json.loads(self._target_file(target).read_bytes())
        return lock

    def publish(
        self, task: str, version: int, model: bytes, custom: Mapping[str, str], now: float, *, card: bytes = b""
    ) -> Release:
        """Sign and store one model and its card. The same version with the same bytes again changes nothing.

        The card is a target of its own, and its hash stands beside the model's: one never goes without the other.
        Adds `version`, `graph_digest` and, unless given, `lineage` (SHA-256 of the release before) to `custom`.
        Raises ReleaseRefused.
        """
        _check_task(task)
        with exclusive(self._online / "lock"):
            digest = self._check_graph(task, model)
            latest = self.latest(task)
            known = self._published(task, version, model)
            if known is not None:
                return known
            if version <= (latest.version if latest else 0):
                raise ReleaseRefused(f"version {version} of {task} is not newer: publish a higher one", reason="old")
            words = {"lineage": latest.sha256 if latest else "", **custom, "version": str(version)}
            if card:
                words["card_sha256"] = hashlib.sha256(card).hexdigest()
            if len(card) > MAX_CARD:
                raise ReleaseRefused(f"a card of {len(card)} bytes: keep it below {MAX_CARD}", reason="card-too-large")
            release = Release(task, version, hashlib.sha256(model).hexdigest(), len(model), words | digest)
            self._publish(release, model, card, now)
        return release

    def publish_answers(self, task: str, version: int, data: bytes, now: float) -> None:
        """Sign and store one list of answers. The same version with the same bytes again changes nothing.

        Raises ReleaseRefused.
        """
        _check_task(task)
        if len(data) > MAX_ANSWERS:
            raise ReleaseRefused(f"{len(data)} bytes of answers: keep them below {MAX_ANSWERS}", reason="too-large")
        target = TargetFile.from_data(f"answers/{task}/{version}.json", data, ["sha256"])
        target.unrecognized_fields["custom"] = {"version": str(version)}
        with exclusive(self._online / "lock"):
            if not self._is_delegated(ANSWERS):
                raise ReleaseRefused("this repository is older than answers: run `aggregator renew`", reason="renew")
            known = self.answers(task)
            if known.get(version, b"") == data:
                return
            if version <= max(known, default=0):
                raise ReleaseRefused(f"answers {version} of {task} are not newer: publish a higher one", reason="old")
            self._write_target(target, data)
            rounds = self._load(Targets, "rounds")
            rounds.targets[target.path] = target
            for old in sorted(known)[: 1 - KEPT_ANSWERS]:
                del rounds.targets[f"answers/{task}/{old}.json"]
            self._commit({"rounds": (rounds, ONLINE_LIFE, [self._keys.rounds])}, now)
            self._sweep()

    def answers(self, task: str) -> dict[int, bytes]:
        """Every list of answers of a task still listed (at most 5), oldest first: version -> as it was signed."""
        prefix, targets = f"answers/{task}/", self._load(Targets, "rounds").targets
        listed = {
            int(path.removeprefix(prefix).split(".")[0]): t for path, t in targets.items() if path.startswith(prefix)
        }
        return {version: self._target_file(listed[version]).read_bytes() for version in sorted(listed)}

    def latest(self, task: str) -> Release | None:
        """The newest release of a task, or None before the first."""
        return max(self.releases(task), key=lambda release: release.version, default=None)

    def releases(self, task: str) -> list[Release]:
        """Every release still listed (at most 20), oldest first."""
        listed = [
            _release(t) for path, t in self._load(Targets, "rounds").targets.items() if path.startswith("models/")
        ]
        return sorted((r for r in listed if r.task == task), key=lambda release: release.version)

    def card(self, release: Release) -> bytes | None:
        """The card of a listed release as it was signed; None where it has none."""
        target = self._load(Targets, "rounds").targets.get(release.card_path)
        return None if target is None else self._target_file(target).read_bytes()

    def holds(self, release: Release) -> bool:
        """Is the file that devices fetch the one that was signed?"""
        target = self._load(Targets, "rounds").targets.get(release.path)
        data = self._target_file(target).read_bytes() if target is not None else b""
        return hashlib.sha256(data).hexdigest() == release.sha256

    def roles(self) -> dict[str, dict[str, Any]]:
        """Every role: ids of its keys, how many must sign, and until when its newest metadata holds (Unix seconds)."""
        root = Metadata[Root].from_bytes(self.trusted_root()).signed
        targets = self._load(Targets, TARGETS_NAME)
        signed: dict[str, Signed] = {
            "root": root, TARGETS_NAME: targets, "rounds": self._load(Targets, "rounds"),
            "snapshot": self._load_snapshot(), "timestamp": self._load_timestamp(),
        }  # fmt: skip
        delegated = targets.delegations.roles if targets.delegations and targets.delegations.roles else {}
        roles: dict[str, Any] = {**root.roles, **delegated}
        return {
            name: {
                "keys": list(roles[name].keyids), "threshold": roles[name].threshold, "version": one.version,
                "expires": int(one.expires.timestamp()),
            }
            for name, one in signed.items()
        }  # fmt: skip

    def release_keys(self) -> tuple[str, ...]:
        """The ids of the keys whose signature makes a release."""
        delegations = self._load(Targets, TARGETS_NAME).delegations
        roles = delegations.roles if delegations is not None else None
        return tuple(roles["rounds"].keyids) if roles else ()

    def refresh_timestamp(self, now: float) -> None:
        """Sign a new timestamp; once a day. Online roles in the second half of their life are signed again too."""
        with exclusive(self._online / "lock"):
            rounds = self._load(Targets, "rounds")
            half_life = _after(now, ONLINE_LIFE / 2)
            if min(rounds.expires, self._load_snapshot().expires) <= half_life:
                self._commit({"rounds": (rounds, ONLINE_LIFE, [self._keys.rounds])}, now)
            else:
                _write_timestamp(self._metadata, self._load_timestamp(), self._keys, now)

    def renew(self, root_keys: Sequence[CryptoSigner], targets_key: CryptoSigner, now: float) -> None:
        """Sign root (two keys at least) and targets for another life. Needed before root's year or targets' 90 days."""
        if len(root_keys) < ROOT_THRESHOLD:
            raise ReleaseRefused("root wants two of its three keys: mount another medium", reason="threshold")
        with exclusive(self._online / "lock"):
            root = Metadata[Root].from_bytes(self.trusted_root()).signed
            root.version, root.expires = root.version + 1, _after(now, ROOT_LIFE)
            root.unrecognized_fields[SIGNED_AT] = int(now)
            _write_signed(self._metadata, "root", root, root_keys)
            targets = self._load(Targets, TARGETS_NAME)
            _delegate_all(targets)
            self._commit({TARGETS_NAME: (targets, TARGETS_LIFE, [targets_key])}, now)

    def offline_expiry(self) -> dict[str, float]:
        """When the roles that `renew` signs run out, in seconds since 1970: "root" and "targets"."""
        root = Metadata[Root].from_bytes(self.trusted_root()).signed
        targets = self._load(Targets, TARGETS_NAME)
        return {"root": root.expires.timestamp(), TARGETS_NAME: targets.expires.timestamp()}

    def read(self, path: str, offset: int, length: int) -> tuple[int, bytes]:
        """One byte range of a public file: (whole size, bytes). Raises ReleaseNotFound for every other path."""
        parts = path.split("/")
        file = self._public.joinpath(*parts)
        if not all(_PART.fullmatch(part) for part in parts) or parts[0] not in ("metadata", "targets"):
            raise ReleaseNotFound("that path is not served", reason="bad-path")
        if file.suffix == ".tmp" or not file.is_file() or file.is_symlink() or offset < 0 or length <= 0:
            raise ReleaseNotFound(f"no such file or range: {path}", reason="absent")
        with file.open("rb") as opened:
            total = opened.seek(0, 2)
            opened.seek(min(offset, total))
            return total, opened.read(min(length, MAX_READ))

    # -- what a publish is made of

    def _check_graph(self, task: str, model: bytes) -> dict[str, str]:
        from edge_sdk.artifact.graph_lock import graph_digest
        from edge_sdk.artifact.safety import check_model

        lock = self.locked_graph(task)
        if lock is None:
            raise ReleaseRefused(f"no graph is locked for {task}: lock it with the offline key", reason="no-lock")
        if len(model) > lock["max_bytes"]:
            raise ReleaseRefused(f"{len(model)} bytes exceed the lock's {lock['max_bytes']}", reason="too-large")
        check_model(model, lock["max_bytes"])
        digest = graph_digest(model).hex()
        if digest != lock["graph_digest"]:
            raise ReleaseRefused(f"the graph of {task} is not the locked one: devices would refuse it", reason="graph")
        return {"graph_digest": digest}

    def _published(self, task: str, version: int, model: bytes) -> Release | None:
        for release in self.releases(task):
            if release.version == version:
                if release.sha256 != hashlib.sha256(model).hexdigest():
                    raise ReleaseRefused(f"version {version} of {task} is another file already", reason="conflict")
                return release
        return None

    def _publish(self, release: Release, model: bytes, card: bytes, now: float) -> None:
        target = TargetFile.from_data(release.path, model, ["sha256"])
        target.unrecognized_fields["custom"] = dict(release.custom)
        self._write_target(target, model)
        rounds = self._load(Targets, "rounds")
        rounds.targets[target.path] = target
        if card and self._is_delegated(CARDS):
            described = TargetFile.from_data(release.card_path, card, ["sha256"])
            self._write_target(described, card)
            rounds.targets[described.path] = described
        for old in self.releases(release.task)[: 1 - KEPT_RELEASES]:
            del rounds.targets[old.path]
            rounds.targets.pop(old.card_path, None)
        self._commit({"rounds": (rounds, ONLINE_LIFE, [self._keys.rounds])}, now)
        self._sweep()

    def _is_delegated(self, paths: str) -> bool:
        """A repository older than cards or answers gets the delegation with the next signature of the offline key."""
        delegations = self._load(Targets, TARGETS_NAME).delegations
        roles = delegations.roles if delegations is not None else None
        return roles is not None and paths in (roles["rounds"].paths or ())

    def _commit(self, roles: Mapping[str, tuple[Targets, timedelta, Sequence[CryptoSigner]]], now: float) -> None:
        snapshot, timestamp = self._load_snapshot(), self._load_timestamp()
        for name, (signed, life, signers) in roles.items():
            signed.version, signed.expires = signed.version + 1, _after(now, life)
            snapshot.meta[f"{name}.json"] = _write_signed(self._metadata, name, signed, signers)
        snapshot.version, snapshot.expires = snapshot.version + 1, _after(now, ONLINE_LIFE)
        timestamp.snapshot_meta = _write_signed(self._metadata, "snapshot", snapshot, [self._keys.snapshot])
        _write_timestamp(self._metadata, timestamp, self._keys, now)

    def _write_target(self, target: TargetFile, data: bytes) -> None:
        file = self._target_file(target)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_durably(file, data)

    def _target_file(self, target: TargetFile) -> Path:
        return self._targets / target.get_prefixed_paths()[0]

    def _sweep(self) -> None:
        """Remove targets no longer listed and metadata that no device can still be reading."""
        listed = {self._target_file(t) for t in self._load(Targets, "rounds").targets.values()}
        for file in (found for kind in ("models", "cards", "answers") for found in self._targets.glob(f"{kind}/*/*")):
            if file not in listed:
                file.unlink(missing_ok=True)
        for role in ("rounds", "snapshot"):
            files = sorted(self._metadata.glob(f"*.{role}.json"), key=lambda file: int(file.name.split(".")[0]))
            for file in files[:-KEPT_METADATA]:
                file.unlink(missing_ok=True)

    # -- the current state, read from the timestamp down

    def _root_version(self) -> int:
        return max(int(file.name.split(".")[0]) for file in self._metadata.glob("*.root.json"))

    def _load_timestamp(self) -> Timestamp:
        return Metadata[Timestamp].from_file(str(self._metadata / "timestamp.json")).signed

    def _load_snapshot(self) -> Snapshot:
        version = self._load_timestamp().snapshot_meta.version
        return Metadata[Snapshot].from_file(str(self._metadata / f"{version}.snapshot.json")).signed

    def _load(self, kind: type[_S], name: str) -> _S:
        version = self._load_snapshot().meta[f"{name}.json"].version
        signed = Metadata[Any].from_file(str(self._metadata / f"{version}.{name}.json")).signed
        assert isinstance(signed, kind)
        return signed


def _after(now: float, life: timedelta) -> datetime:
    return datetime.fromtimestamp(int(now), UTC) + life


def _check_task(task: str) -> None:
    if not _TASK.fullmatch(task):
        raise ReleaseRefused(f"{task!r} is no task name: use a-z, 0-9 and -", reason="bad-task")


def _release(target: TargetFile) -> Release:
    _, task, name = target.path.split("/")
    return Release(task, int(name.split(".")[0]), target.hashes["sha256"], target.length, target.custom)


def _first_root(roots: Sequence[CryptoSigner], targets: CryptoSigner, online: OnlineKeys, now: float) -> Root:
    root = Root(expires=_after(now, ROOT_LIFE), consistent_snapshot=True)
    for signer in roots:
        root.add_key(signer.public_key, "root")
    root.roles["root"].threshold = ROOT_THRESHOLD
    root.add_key(targets.public_key, "targets")
    root.add_key(online.snapshot.public_key, "snapshot")
    root.add_key(online.timestamp.public_key, "timestamp")
    root.unrecognized_fields[SIGNED_AT] = int(now)
    return root


def _first_targets(online: OnlineKeys, now: float) -> Targets:
    key: Key = online.rounds.public_key
    # A TUF pattern's star stays within one folder: every model, card and answers of every task, no more.
    role = DelegatedRole("rounds", [key.keyid], 1, terminating=True, paths=[*ROUNDS_PATHS])
    return Targets(expires=_after(now, TARGETS_LIFE), delegations=Delegations({key.keyid: key}, {"rounds": role}))


def _delegate_all(targets: Targets) -> None:
    """Bring an older repository's delegation up to date, where the offline key signs anyway."""
    if targets.delegations is not None and targets.delegations.roles:
        targets.delegations.roles["rounds"].paths = [*ROUNDS_PATHS]


def _pins(metadata: Path) -> dict[str, MetaFile]:
    names = (TARGETS_NAME, "rounds")
    return {f"{n}.json": MetaFile.from_data(1, (metadata / f"1.{n}.json").read_bytes(), ["sha256"]) for n in names}


def _write_signed(metadata: Path, name: str, signed: Signed, signers: Sequence[CryptoSigner]) -> MetaFile:
    data = _sign(signed, signers)
    write_durably(metadata / f"{signed.version}.{name}.json", data)
    return MetaFile.from_data(signed.version, data, ["sha256"])


def _write_timestamp(metadata: Path, timestamp: Timestamp, keys: OnlineKeys, now: float) -> None:
    if (metadata / "timestamp.json").exists():
        timestamp.version += 1
    timestamp.expires = _after(now, TIMESTAMP_LIFE)
    timestamp.unrecognized_fields[SIGNED_AT] = int(now)
    write_durably(metadata / "timestamp.json", _sign(timestamp, [keys.timestamp]))


def _sign(signed: Signed, signers: Sequence[CryptoSigner]) -> bytes:
    envelope: Metadata[Any] = Metadata(signed)
    for signer in signers:
        envelope.sign(signer, append=True)
    return envelope.to_bytes()
