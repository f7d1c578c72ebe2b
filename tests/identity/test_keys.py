"""Keys on disk: readable by their owner, whole or not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography import x509

from edge_sdk.identity.keys import DeviceKeys, IdentityError, load_epoch_key, save_epoch_key, write_private


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


def test_keys_come_back_and_only_their_owner_can_read_them(tmp_path: Path) -> None:
    keys, home = DeviceKeys.generate(), tmp_path / "identity"
    old = os.umask(0)
    try:
        keys.save(home)
    finally:
        os.umask(old)
    assert modes(home) == {"tls.key": 0o600, "sign.key": 0o600, "epoch.key": 0o600}
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    again = DeviceKeys.load(home)
    assert (again.sign_public, again.epoch_public) == (keys.sign_public, keys.epoch_public)
    keys.signing.public_key().verify(again.sign(b"hello"), b"hello")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_key_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    DeviceKeys.generate().save(tmp_path)
    (tmp_path / "sign.key").chmod(mode)
    with pytest.raises(IdentityError, match=r"run `chmod 600 .*sign\.key`"):
        DeviceKeys.load(tmp_path)


def test_a_missing_or_damaged_key_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="edge-sdk enroll"):
        DeviceKeys.load(tmp_path)
    DeviceKeys.generate().save(tmp_path)
    write_private(tmp_path / "tls.key", b"rubbish")
    with pytest.raises(IdentityError, match="enrol again"):
        DeviceKeys.load(tmp_path)
    DeviceKeys.generate().save(tmp_path)
    write_private(tmp_path / "tls.key", (tmp_path / "sign.key").read_bytes())
    with pytest.raises(IdentityError, match="wrong type"):
        DeviceKeys.load(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    target = tmp_path / "secret"
    write_private(target, b"old")
    with pytest.raises(TypeError):
        write_private(target, "not bytes")  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_an_epoch_key_has_a_life_of_its_own(tmp_path: Path) -> None:
    keys = DeviceKeys.generate()
    save_epoch_key(tmp_path / "epoch-3.key", keys.epoch)
    assert load_epoch_key(tmp_path / "epoch-3.key").public_key().public_bytes_raw() == keys.epoch_public


def test_keys_hide_when_printed() -> None:
    assert repr(DeviceKeys.generate()) == "DeviceKeys(...)"


def test_the_request_names_the_device_and_is_signed_by_its_key() -> None:
    csr = x509.load_pem_x509_csr(DeviceKeys.generate().request("f0", "kiosk-a"))
    assert csr.is_signature_valid
    assert csr.subject.rfc4514_string() == "CN=kiosk-a"
    san = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.UniformResourceIdentifier) == ["fleet://f0/device/kiosk-a"]
