"""The signed bundle: writes it, and verifies every byte of one. Refuses a bundle that is not what was signed.

manifest.json names each file with its SHA-256; signature.json signs the manifest's bytes with the aggregator's key,
which every device has in its trust bundle: Ed25519 over "chorale/evidence/1", the fleet, the SHA-256 of the manifest.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator.errors import AggregatorError
from aggregator.evidence import phrases, render
from aggregator.evidence.phrases import LANGUAGES, MISSING, NOT_STATED, Facts, Language
from aggregator.releases.durable import write_durably
from edge_sdk.protocol import codec
from edge_sdk.protocol.errors import WrongSignature

MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "signature.json"
T = TypeVar("T")
PAGES: Final[dict[Language, str]] = {"en": "evidence.html", "zh": "evidence.zh.html"}


class BundleRefused(AggregatorError):
    """The bundle is not what was signed. `reason`: missing, added, changed, manifest, signature, other-key."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    bytes: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the signature covers."""

    fleet: str
    task: str
    made_at: int
    files: dict[str, _File]


class _Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    signature: str


def files(facts: Facts, card: bytes | None, languages: Sequence[Language]) -> dict[str, bytes]:
    """The bundle's files but manifest and signature. evidence.json always has the articles in both languages."""
    whole = {**facts, "articles": {language: _plain(facts, language) for language in LANGUAGES}}
    made = {"evidence.json": encoded(whole)}
    made |= {PAGES[language]: render.page(facts, language).encode() for language in languages}
    return made | ({"card.json": card} if card is not None else {})


def _plain(facts: Facts, language: Language) -> list[dict[str, str]]:
    marked = NOT_STATED[language]
    return [
        {name: text.replace(MISSING, marked) for name, text in article.items()}
        for article in phrases.articles(facts, language)
    ]


def encoded(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8, one line."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def write(directory: Path, made: dict[str, bytes], key: Ed25519PrivateKey, facts: Facts) -> Manifest:
    """Write the files, the manifest and the signature into `directory`, which is made. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    listed = {name: _File(hashlib.sha256(data).hexdigest(), len(data)) for name, data in sorted(made.items())}
    manifest = Manifest(facts["fleet"], facts["task"], facts["made_at"], listed)
    data = encoded(msgspec.to_builtins(manifest))
    signature = base64.b64encode(key.sign(_signed_bytes(manifest.fleet, data))).decode()
    public = key.public_key().public_bytes_raw().hex()
    for old in {MANIFEST, SIGNATURE, "card.json", *PAGES.values()} - set(made):
        (directory / old).unlink(missing_ok=True)
    for name, content in made.items():
        write_durably(directory / name, content)
    write_durably(directory / MANIFEST, data)
    write_durably(directory / SIGNATURE, encoded({"key": public, "signature": signature}))
    return manifest


def _signed_bytes(fleet: str, manifest: bytes) -> bytes:
    return codec.prefixed("chorale/evidence/1", fleet, hashlib.sha256(manifest).digest())


def verify(directory: Path, key: bytes | None = None) -> tuple[Manifest, str]:
    """Check every byte of a bundle: (manifest, hex of the key that signed it). Raises BundleRefused.

    `key`: 32 bytes that must have signed; without it the bundle's own key, to be compared by whoever asks.
    """
    data, signature = _read(directory, MANIFEST), _parsed(_read(directory, SIGNATURE), _Signature, SIGNATURE)
    manifest = _parsed(data, Manifest, MANIFEST)
    if key is not None and signature.key != key.hex():
        hint = "ask the operator for the key of this fleet; a device shows it in its trust bundle"
        raise BundleRefused(f"it is signed by another key, {signature.key[:16]}", hint, reason="other-key")
    try:
        raw = base64.b64decode(signature.signature, validate=True)
        codec.verify(bytes.fromhex(signature.key), raw, _signed_bytes(manifest.fleet, data))
    except (WrongSignature, ValueError) as error:
        raise BundleRefused("the manifest is not what was signed", _HINT, reason="signature") from error
    _check_files(directory, manifest)
    return manifest, signature.key


_HINT: Final = "keep it as it is, and have the bundle exported anew"


def _check_files(directory: Path, manifest: Manifest) -> None:
    for name, wanted in manifest.files.items():
        if Path(name).name != name:
            raise BundleRefused(f"{name!r} is not a file of a bundle", _HINT, reason="manifest")
        if hashlib.sha256(_read(directory, name)).hexdigest() != wanted.sha256:
            raise BundleRefused(f"{name} was changed after it was signed", _HINT, reason="changed")
    more = {file.name for file in directory.iterdir()} - set(manifest.files) - {MANIFEST, SIGNATURE}
    if more:
        hint = "move what does not belong to the bundle out of it"
        raise BundleRefused(f"{min(more)} is not covered by the signature", hint, reason="added")


def _read(directory: Path, name: str) -> bytes:
    try:
        return (directory / name).read_bytes()
    except OSError as error:
        raise BundleRefused(f"cannot read {directory / name}: {error.strerror}", "name the bundle's folder", reason="missing") from error  # fmt: skip # noqa: E501 - one sentence


def _parsed(data: bytes, kind: type[T], name: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise BundleRefused(f"{name} does not parse: {error}", _HINT, reason="manifest") from error
