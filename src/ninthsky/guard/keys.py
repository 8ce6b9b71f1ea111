"""CURVE keys of one job: one pair for each controller and one per host, each in a file that only its owner can read.

A participant's file holds its own secret and the public keys of all. Who is not in it is refused before a message is read.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import zmq

from ninthsky.errors import UserError

CONTROLLER = "controller"
STANDBY = "standby"


class Keyring(msgspec.Struct, frozen=True):
    """`secret` is this participant's; `public` has the key of every participant by name."""

    name: str
    secret: str
    public: dict[str, str]

    def __repr__(self) -> str:
        return f"Keyring({self.name!r})"  # a secret does not belong in a log


def forge(folder: Path, hosts: list[str], *, standby: bool = False) -> dict[str, Path]:
    """New keys for controller, standby and hosts. Returns the file of each; existing ones are replaced."""
    pairs = {name: zmq.curve_keypair() for name in (CONTROLLER, *([STANDBY] if standby else []), *hosts)}
    public = {name: pair[0].decode() for name, pair in pairs.items()}
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths = {}
    for name, (_, secret) in pairs.items():
        path = folder / f"{name}.json"
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(Keyring(name, secret.decode(), public)))
        paths[name] = path
    return paths


def load_keys(path: Path) -> Keyring:
    """Raises UserError when the file is missing, broken, or readable by others."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise UserError("N9-GRD-002", f"the key file can be read by others (mode {mode:o})", str(path), f"chmod 600 {path}")
        return msgspec.json.decode(path.read_bytes(), type=Keyring)
    except (OSError, msgspec.ValidationError, msgspec.DecodeError) as error:
        raise UserError(
            "N9-GRD-002", f"no usable key file: {error}", str(path), "the job writes keys/ when it starts"
        ) from error
