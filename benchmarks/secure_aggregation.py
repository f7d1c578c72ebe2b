"""Figures of secure aggregation, each a ratio against a named reference in the same run; process CPU time, medians.

    python benchmarks/secure_aggregation.py --json [--quick] [--flower-script PATH]

* server_over_unmasked: a masked upload (open the round key's seal, verify two signatures, unseal the chunks, decode,
  add; proofs for the committee and the opening shared over n = 256) against an unmasked float32 update through the
  same steps (open, verify, unseal, add; the average shared). d = 1M, P24.
* kernel_over_plain_sum: adding one masked vector against numpy's in-place uint32 addition of one vector. d = 1M.
* client_ns_per_coefficient: clip, round, Skellam noise of sigma 126, mask, shares to 64 members, sign, seal in chunks.
* upload_over_float32_*: hello, sealed chunks with their headers, shares to 64 members, against 4 bytes a value.
* flower_over_ours_*: Flower's SecAgg+ (package flwr, driven by --flower-script) at n = 64, d = 1M, 10 % vanishing after
  the keys are shared. Flower's script counts no transport encryption, and adds no privacy noise, so ours is
  counted without both; ours has, on the client, half a member's answer (32 of 64 are members). null without flwr.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edge_sdk.privacy.mechanism import SkellamSampler
from edge_sdk.protocol.quantize import dequantize, quantize
from edge_sdk.protocol.sealing import CONTENT_KEY_BYTES, ROUND_SECRET_BYTES, ChunkSealer, RoundKey, seal_to_round
from edge_sdk.protocol.secagg import client, committee
from edge_sdk.protocol.secagg.keystream import Keystream
from edge_sdk.protocol.secagg.member import Answer, SealedShare, answer, survivors_hash
from edge_sdk.protocol.secagg.residues import RunningSum
from edge_sdk.protocol.secagg.ring import profile
from edge_sdk.protocol.secagg.server import Opening, share_proofs
from edge_sdk.protocol.secagg.shamir import PRIME

CHUNK_BYTES = 48 << 10
CHUNK_OVERHEAD = 36
HELLO_BYTES = 1400
OFFER = bytes(range(32))
INFO = b"benchmark" + OFFER
P24 = profile("P24")
CLIP, STEP, SIGMA = 1.0, 2.5e-4, 126.0


def cpu_seconds(action: Callable[[], object]) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began


def median_seconds(action: Callable[[], object], runs: int) -> float:
    action()
    return statistics.median(cpu_seconds(action) for _ in range(runs))


@dataclass
class Device:
    """A device with its keys, and what its last protection took."""

    name: str
    sign_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    epoch_key: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)

    @property
    def verify_bytes(self) -> bytes:
        return self.sign_key.public_key().public_bytes_raw()


@dataclass
class Sent:
    """An upload on the wire: sealed content key, hello's signature, sealed chunks."""

    device: Device
    sealed_key: bytes
    signature: bytes
    chunks: list[bytes]


class Round:
    """One round's keys and committee for a fleet of n."""

    def __init__(self, n: int, values: int) -> None:
        self.n, self.values, self.length = n, values, client.masked_length(values)
        self.plan = committee.plan(committee.members_for(n))
        self.member_devices = [Device(f"member-{i:04}") for i in range(self.plan.m)]
        self.members = [client.Member(d.name, d.epoch_key.public_key().public_bytes_raw()) for d in self.member_devices]
        self.round_key = RoundKey(os.urandom(ROUND_SECRET_BYTES))
        self.sampler = SkellamSampler(SIGMA**2)
        # One buffer for every upload, as an ingest has: fresh megabytes each time would measure the allocator.
        self.buffer = memoryview(bytearray(4 * self.length + (1 << 16)))

    def protect(self, device: Device, update: np.ndarray, *, noisy: bool = True) -> client.MaskedUpload:
        rounded = quantize(update, CLIP, STEP, Keystream(os.urandom(32)))
        return client.protect(
            profile=P24,
            plan=self.plan,
            offer_hash=OFFER,
            device=device.name,
            members=self.members,
            values=rounded,
            noise=self.sampler.draw(len(rounded), Keystream(os.urandom(32))) if noisy else None,
            sign=device.sign_key.sign,
            entropy=os.urandom,
        )

    def send(self, device: Device, plaintext: bytes) -> Sent:
        content_key = os.urandom(CONTENT_KEY_BYTES)
        sealer, view = ChunkSealer(content_key, INFO), memoryview(plaintext)
        starts = range(0, len(view), CHUNK_BYTES)
        chunks = [sealer.seal(i, i == len(starts) - 1, view[at : at + CHUNK_BYTES]) for i, at in enumerate(starts)]
        sealed_key = seal_to_round(content_key, self.round_key.public_bytes(), INFO)
        return Sent(device, sealed_key, device.sign_key.sign(sealed_key), chunks)

    def receive(self, sent: Sent) -> memoryview:
        """What both pipelines share: verify the hello, open its key, unseal the chunks into one buffer."""
        client.verify_statement(sent.device.verify_bytes, sent.signature, sent.sealed_key)
        sealer = ChunkSealer(self.round_key.open(sent.sealed_key, INFO), INFO)
        last, end = len(sent.chunks) - 1, 0
        for index, chunk in enumerate(sent.chunks):
            opened = sealer.open(index, index == last, chunk)
            self.buffer[end : end + len(opened)] = opened
            end += len(opened)
        return self.buffer[:end]

    def take(self, device: Device, plaintext: bytes | memoryview, total: RunningSum) -> client.MaskedUpload:
        upload = client.MaskedUpload.decode(plaintext, profile=P24, plan=self.plan, length=self.length)
        client.verify_upload(upload, OFFER, device.name, device.verify_bytes)
        total.add(upload.residues)
        return upload


def update_of(values: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(values, dtype=np.float32)


def opening_of(session: Round, uploads: dict[str, client.MaskedUpload], keys: dict[str, bytes]) -> Opening:
    """An opening with exactly the answers needed."""
    names = sorted(uploads)
    opening = Opening(
        profile=P24,
        plan=session.plan,
        offer_hash=OFFER,
        survivors_hash=survivors_hash(OFFER, [names]),
        device_count=len(names),
        length=session.length,
    )
    for index in range(session.plan.answers):
        opening.receive(index, answer_of(session, uploads, keys, index))
    return opening


def answer_of(session: Round, uploads: dict[str, client.MaskedUpload], keys: dict[str, bytes], index: int) -> Answer:
    shares = [
        SealedShare(
            name, upload.signature, bytes(upload.sealed_shares[index]), share_proofs(upload.sealed_shares)[index]
        )
        for name, upload in sorted(uploads.items())
    ]
    return answer(
        profile=P24,
        plan=session.plan,
        offer_hash=OFFER,
        member=session.members[index].name,
        index=index,
        secret=session.member_devices[index].epoch_key,
        n_min=2,
        group_count=1,
        roster=keys,
        groups=[shares],
    )


def server_figures(n: int, values: int, runs: int) -> dict[str, float]:
    """CPU seconds per upload of both pipelines, from a handful of uploads used over again."""
    session, devices = Round(n, values), [Device(f"device-{i}") for i in range(4)]
    masked = [session.send(d, session.protect(d, update_of(values, i)).encode()) for i, d in enumerate(devices)]
    plain = [session.send(d, update_of(values, i).tobytes()) for i, d in enumerate(devices)]
    total, mean = RunningSum(P24, session.length), np.zeros(values, np.float32)

    def take_masked() -> None:
        for sent in masked:
            session.take(sent.device, session.receive(sent), total)

    def take_plain() -> None:
        for sent in plain:
            np.add(mean, np.frombuffer(session.receive(sent), np.float32), out=mean)

    # Interleaved, so that a disturbance of the machine meets both.
    take_masked()
    take_plain()
    pairs = [(cpu_seconds(take_masked), cpu_seconds(take_plain)) for _ in range(runs)]
    masked_s, plain_s = (statistics.median(column) / len(devices) for column in zip(*pairs, strict=True))
    opening_s, proof_s = opening_seconds(session, devices, masked, runs)
    average_s = median_seconds(lambda: mean / np.float32(n), runs)
    return {
        "masked": masked_s + proof_s + opening_s / n,
        "plain": plain_s + average_s / n,
        "receive_plain": median_seconds(lambda: session.receive(plain[0]), runs),
        "receive_masked": median_seconds(lambda: session.receive(masked[0]), runs),
        "opening": opening_s,
        "proofs": proof_s,
    }


def opening_seconds(session: Round, devices: list[Device], masked: list[Sent], runs: int) -> tuple[float, float]:
    """CPU seconds of one opening, average included, and of one upload's proofs."""
    total = RunningSum(P24, session.length)
    uploads = {sent.device.name: session.take(sent.device, bytes(session.receive(sent)), total) for sent in masked}
    keys = {device.name: device.verify_bytes for device in devices}
    opening = opening_of(session, uploads, keys)
    upload = next(iter(uploads.values()))
    return (
        median_seconds(lambda: dequantize(opening.open(total), STEP, len(devices)), runs),
        median_seconds(lambda: share_proofs(upload.sealed_shares), runs),
    )


def kernel_ratio(values: int, runs: int) -> float:
    rng = np.random.default_rng(0)
    payloads = [rng.bytes(3 * values) for _ in range(8)]
    vectors = [rng.integers(0, 1 << 24, values, dtype=np.uint32) for _ in range(8)]
    total, plain = RunningSum(P24, values), np.zeros(values, np.uint32)

    def ours() -> None:
        for payload in payloads:
            total.add(payload)

    def theirs() -> None:
        for vector in vectors:
            np.add(plain, vector, out=plain)

    ours()
    theirs()
    pairs = [(cpu_seconds(ours), cpu_seconds(theirs)) for _ in range(4 * runs)]
    return statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)


def client_seconds(n: int, values: int, runs: int, like_flower: bool) -> float:
    """CPU seconds of one device's protection. Flower adds no privacy noise and leaves sealing to its transport."""
    session, device, update = Round(n, values), Device("device"), update_of(values, 1)
    if like_flower:
        return median_seconds(lambda: session.protect(device, update, noisy=False).encode(), runs)
    return median_seconds(lambda: session.send(device, session.protect(device, update).encode()), runs)


def upload_ratio(n: int, values: int) -> float:
    session = Round(n, values)
    size = client.upload_bytes(P24, session.plan, session.length)
    chunks = -(-size // CHUNK_BYTES)
    return (HELLO_BYTES + size + chunks * CHUNK_OVERHEAD) / (4 * values)


def member_seconds(devices: int, runs: int) -> float:
    """CPU seconds of one member's answer for `devices` devices; small vectors, as a member never sees them."""
    session = Round(64, 1000)
    group = [Device(f"device-{i}") for i in range(devices)]
    uploads = {d.name: session.protect(d, update_of(1000, i)) for i, d in enumerate(group)}
    keys = {d.name: d.verify_bytes for d in group}
    proofs = {name: share_proofs(upload.sealed_shares)[0] for name, upload in uploads.items()}
    shares = [SealedShare(name, u.signature, bytes(u.sealed_shares[0]), proofs[name]) for name, u in uploads.items()]

    def reply() -> Answer:
        return answer(
            profile=P24,
            plan=session.plan,
            offer_hash=OFFER,
            member=session.members[0].name,
            index=0,
            secret=session.member_devices[0].epoch_key,
            n_min=2,
            group_count=1,
            roster=keys,
            groups=[shares],
        )

    assert int(reply().sums[0].max()) < PRIME
    return median_seconds(reply, runs)


def flower_row(script: str | None, values: int, runs: int) -> dict[str, float] | None:
    """Flower's own figures, or None with the reason on stderr."""
    if importlib.util.find_spec("flwr") is None:
        print("flower: the package flwr is not installed, so its ratios are null", file=sys.stderr)
        return None
    if script is None:
        print("flower: give --flower-script to drive flwr, else its ratios are null", file=sys.stderr)
        return None
    command = [sys.executable, script, "--n", "64", "--d", str(values), "--drop", "0.1", "--reps", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def flower_ratios(script: str | None, values: int, runs: int) -> dict[str, float | None]:
    row = flower_row(script, values, 1 if runs < 5 else 3)
    if row is None:
        return dict.fromkeys(("flower_over_ours_client_cpu", "flower_over_ours_server_cpu", "flower_over_ours_bytes"))
    server = server_figures(64, values, runs)
    survivors = 58
    ours_client = client_seconds(64, values, runs, like_flower=True) + member_seconds(survivors, runs) / 2
    ours_server = survivors * (server["masked"] - server["receive_masked"])
    return {
        "flower_over_ours_client_cpu": row["client_cpu_s"] / ours_client,
        "flower_over_ours_server_cpu": row["server_cpu_s"] / ours_server,
        "flower_over_ours_bytes": row["up_MB"] * 1e6 / (upload_ratio(64, values) * 4 * values),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object (the default output too)")
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    beside = Path(__file__).resolve().parents[2] / "shared" / "peers" / "flower_secagg_bench.py"
    parser.add_argument(
        "--flower-script",
        default=str(beside) if beside.exists() else None,
        help="path of the script that drives Flower's SecAgg+ (default: ../shared/peers beside the repository)",
    )
    options = parser.parse_args()
    runs, values = (3 if options.quick else 9), 1_000_000
    server = server_figures(256, values, runs)
    figures: dict[str, float | None] = {
        "server_over_unmasked": server["masked"] / server["plain"],
        "kernel_over_plain_sum": kernel_ratio(values, runs),
        "client_ns_per_coefficient": client_seconds(1000, values, runs, like_flower=False) / values * 1e9,
        "upload_over_float32_100k": upload_ratio(1000, 100_000),
        "upload_over_float32_1m": upload_ratio(1000, values),
        **flower_ratios(options.flower_script, values, runs),
    }
    if not options.json:
        for part, seconds in server.items():
            print(f"server, {part}: {1e3 * seconds:.3f} ms", file=sys.stderr)
    print(json.dumps({key: None if value is None else round(value, 4) for key, value in figures.items()}))


if __name__ == "__main__":
    main()
