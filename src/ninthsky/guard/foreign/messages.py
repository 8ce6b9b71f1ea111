"""What a rank of a foreign script tells the guard of its host, over a Unix socket in a folder of mode 0700. Nothing comes back.

Frames as in guard/probe/messages.py: a 4-byte length and a msgpack body.
"""

from __future__ import annotations

import msgspec

SOCKET = "guard.sock"  # in the folder N9_RANKS
LONGEST_TEXT = 4_000  # characters of a traceback


class Adopt(msgspec.Struct, frozen=True, tag=True):
    """First message: who this is. `local_rank` is -1 where no launcher told it; Its record is PID.record in N9_RANKS."""

    pid: int
    rank: int
    world: int
    local_rank: int
    attempt: str
    torch: str
    began: int = -1  # as in Began, where it was said before


class Began(msgspec.Struct, frozen=True, tag=True):
    """Its first step of this start is done. `step`: its number from 0, a restored optimizer's own count goes on."""

    step: int


class Raised(msgspec.Struct, frozen=True, tag=True):
    """The script ends with an exception. `collective`: only because a collective failed, which is somebody else's fault."""

    error: str  # "ValueError: ..."
    where: str  # file:line of the innermost frame
    collective: bool
    traceback: str


class NotFinite(msgspec.Struct, frozen=True, tag=True):
    """A gradient of `step` was not finite. `before_reduce`: this rank's own, before it was added to the others'."""

    step: int
    before_reduce: bool


FromForeign = Adopt | Began | Raised | NotFinite
_decoder: msgspec.msgpack.Decoder[FromForeign] = msgspec.msgpack.Decoder(FromForeign)


def decode(body: bytes) -> FromForeign:
    """Raises msgspec.ValidationError or DecodeError for anything else."""
    return _decoder.decode(body)
