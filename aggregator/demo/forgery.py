"""Two attacks on the release repository, for the demo: devices must refuse both and keep the model they have.

A stranger signs changed weights with keys of his own; then a thief of the online keys signs a graph that the offline
key never locked. Works on the repository's files alone, as an attacker with the server's disk would. Nothing in the
product imports this module.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper, load_from_string, numpy_helper
from tuf.api.metadata import (  # type: ignore[attr-defined] # re-exported without __all__
    Metadata,
    MetaFile,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from aggregator.releases.durable import exclusive, write_durably
from aggregator.releases.keys import ONLINE_NAMES, OnlineKeys, ensure_key, open_online_keys
from edge_sdk.artifact.weights import read_vector, write_vector

LIFE = timedelta(days=1)


def changed_weights(model: bytes) -> bytes:
    """The same graph with every weight's sign turned: it would predict the opposite."""
    return write_vector(model, -read_vector(model))


def new_graph(model: bytes) -> bytes:
    """The same weights in another graph: one more operation doubles the answer."""
    loaded = load_from_string(model)
    node, output = loaded.graph.node[-1], loaded.graph.output[0].name
    node.output[0] = "before"
    loaded.graph.initializer.append(numpy_helper.from_array(np.full(1, 2.0, np.float32), "two"))
    loaded.graph.node.append(helper.make_node("Mul", ["before", "two"], [output], name="added"))
    data: bytes = loaded.SerializeToString(deterministic=True)
    return data


@contextmanager
def offered_by_a_stranger(repository: Path, task: str, model: bytes, now: float) -> Iterator[int]:
    """Serve `model` under metadata that fresh keys signed; afterwards put every file back. Yields the version."""
    public = repository / "public"
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(public, Path(scratch) / "public")
        for name in ONLINE_NAMES:
            ensure_key(Path(scratch) / "keys", name, None)
        try:
            with exclusive(repository / "online" / "lock"):
                version = _publish(public, open_online_keys(Path(scratch) / "keys"), task, model, now)
            yield version
        finally:
            with exclusive(repository / "online" / "lock"):
                _put_back(Path(scratch) / "public", public)


def offer_with_stolen_keys(repository: Path, task: str, model: bytes, now: float) -> int:
    """Sign `model` with the repository's own online keys, as their thief could. Returns the version."""
    with exclusive(repository / "online" / "lock"):
        return _publish(repository / "public", open_online_keys(repository / "online"), task, model, now)


def withdraw(repository: Path, task: str, version: int, now: float) -> None:
    """Take a version off the list, by newer metadata: devices never go back to an older one."""
    public, keys = repository / "public", open_online_keys(repository / "online")
    with exclusive(repository / "online" / "lock"):
        rounds = _current(public, "rounds")
        rounds.targets.pop(f"models/{task}/{version}.onnx", None)
        _commit(public / "metadata", rounds, keys, now)


def _publish(public: Path, keys: OnlineKeys, task: str, model: bytes, now: float) -> int:
    rounds = _current(public, "rounds")
    newest = max(
        (t for path, t in rounds.targets.items() if path.startswith(f"models/{task}/")),
        key=lambda target: int(target.custom["version"]),
    )
    version = int(newest.custom["version"]) + 1
    target = TargetFile.from_data(f"models/{task}/{version}.onnx", model, ["sha256"])
    # It claims the digest that the offline key locked: a lie that the device has to find out.
    target.unrecognized_fields["custom"] = {**newest.custom, "version": str(version)}
    write_durably(public / "targets" / target.get_prefixed_paths()[0], model)
    rounds.targets[target.path] = target
    _commit(public / "metadata", rounds, keys, now)
    return version


def _commit(metadata: Path, rounds: Targets, keys: OnlineKeys, now: float) -> None:
    snapshot, timestamp = _current(metadata.parent, "snapshot"), _current(metadata.parent, "timestamp")
    expires = datetime.fromtimestamp(int(now), UTC) + LIFE
    for signed in (rounds, snapshot, timestamp):
        signed.version, signed.expires = signed.version + 1, expires
    timestamp.unrecognized_fields["x-signed-at"] = int(now)
    snapshot.meta["rounds.json"] = _write(metadata / f"{rounds.version}.rounds.json", rounds, keys.rounds)
    path = metadata / f"{snapshot.version}.snapshot.json"
    timestamp.snapshot_meta = _write(path, snapshot, keys.snapshot)
    _write(metadata / "timestamp.json", timestamp, keys.timestamp)


def _write(path: Path, signed: Targets | Snapshot | Timestamp, key: Any) -> MetaFile:
    envelope: Metadata[Any] = Metadata(signed)
    envelope.sign(key)
    data = envelope.to_bytes()
    write_durably(path, data)
    return MetaFile.from_data(signed.version, data, ["sha256"])


def _current(public: Path, role: str) -> Any:
    """The signed part of the newest metadata of a role, found from the timestamp down."""
    metadata = public / "metadata"
    timestamp: Any = Metadata.from_file(str(metadata / "timestamp.json")).signed
    if role == "timestamp":
        return timestamp
    snapshot: Any = Metadata.from_file(str(metadata / f"{timestamp.snapshot_meta.version}.snapshot.json")).signed
    if role == "snapshot":
        return snapshot
    return Metadata.from_file(str(metadata / f"{snapshot.meta[f'{role}.json'].version}.{role}.json")).signed


def _put_back(copy: Path, public: Path) -> None:
    """Write every file as it was, the timestamp last, and remove what the forger added."""
    kept = {file.relative_to(copy) for file in copy.rglob("*") if file.is_file()}
    for file in sorted(kept, key=lambda name: name.name == "timestamp.json"):
        write_durably(public / file, (copy / file).read_bytes())
    for file in list(public.rglob("*")):
        if file.is_file() and file.relative_to(public) not in kept:
            file.unlink()
