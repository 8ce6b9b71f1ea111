"""CURVE keys of one job: one pair for each controller and one per host, each in a file that only its owner can read.

A participant's file holds its own secret; `public_keys.json` beside it holds the public keys of all, once for all of them. Who
is not in it is refused before a message is read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import zmq

from ninthsky.errors import UserError

CONTROLLER = "controller"
STANDBY = "standby"
PUBLIC = "public_keys.json"  # with a character that no host's name has


class Keyring(msgspec.Struct, frozen=True):
    """`secret` is this participant's; `public` has the key of every participant by name."""

    name: str
    secret: str
    public: dict[str, str]

    def __repr__(self) -> str:
        return f"Keyring({self.name!r})"  # a secret does not belong in a log


class _Own(msgspec.Struct, frozen=True):
    """What a participant's file holds."""

    name: str
    secret: str


def forge(folder: Path, hosts: list[str], *, standby: bool = False) -> dict[str, Path]:
    """New keys for controller, standby and hosts. Returns the file of each; existing ones are replaced."""
    pairs = {name: zmq.curve_keypair() for name in (CONTROLLER, *([STANDBY] if standby else []), *hosts)}
    keep_public(folder, {name: public.decode() for name, (public, _) in pairs.items()})
    return {name: keep_own(folder, name, secret.decode()) for name, (_, secret) in pairs.items()}


def keep_public(folder: Path, public: Mapping[str, str]) -> None:
    """Writes the public keys of all, by name."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write(folder / PUBLIC, public)


def keep_own(folder: Path, name: str, secret: str) -> Path:
    """Writes a participant's own file."""
    path = folder / f"{name}.json"
    _write(path, _Own(name, secret))
    return path


def load_keys(path: Path) -> Keyring:
    """`path`: a participant's file. Raises UserError when it or the public keys beside it are missing, broken, or to be read by
    others."""
    own, public = _read(path, _Own), _read(path.with_name(PUBLIC), dict[str, str])
    if own.name not in public:
        raise UserError("N9-GRD-002", f"{PUBLIC} has no {own.name}", str(path), "the job writes keys/ when it starts")
    return Keyring(own.name, own.secret, public)


def _write(path: Path, value: Any) -> None:
    """Replaces the file: who had the old one open does not get the new one's secret."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(value))


def _read(path: Path, kind: Any) -> Any:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise UserError("N9-GRD-002", f"the key file can be read by others (mode {mode:o})", str(path), f"chmod 600 {path}")
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.ValidationError, msgspec.DecodeError) as error:
        raise UserError(
            "N9-GRD-002", f"no usable key file: {error}", str(path), "the job writes keys/ when it starts"
        ) from error
