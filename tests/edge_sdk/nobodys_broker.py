"""An enrolled device whose broker nobody runs: what it does, it does alone."""

from __future__ import annotations

from pathlib import Path

from aggregator.fleet.authority import create_authority
from edge_sdk.identity.keys import DeviceKeys, private_directory, write_private
from edge_sdk.identity.trust import save_bundle


def enrol(home: Path) -> Path:
    """Give the home an identity."""
    authority = create_authority(home / "authority", b"a long passphrase", fleet="f0", now=1_800_000_000.0)
    folder = private_directory(home / "identity")
    keys = DeviceKeys.generate()
    keys.save(folder)
    save_bundle(folder, authority.bundle(broker_host="localhost", broker_port=9, tuf_root=""))
    issued = authority.issue(keys.request("f0", "kiosk-1"), now=1_800_000_000.0)
    write_private(folder / "device.crt", issued.chain_pem.encode())
    return home
