"""The ranks of a host that came to us: taken in over a Unix socket, looked at ten times a second, their ends seen by pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ninthsky.guard import protocol as p
from ninthsky.guard.agent.lines import body_of, peer_of
from ninthsky.guard.agent.looking import Looking
from ninthsky.guard.agent.spawner import oom_kills
from ninthsky.guard.foreign.messages import SOCKET, Adopt, FromForeign, decode
from ninthsky.guard.seen import Seen

STATUS_UNKNOWN = 256  # no process can end with it
_PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, struct pidfd_info of 64 bytes), Linux 6.13
_PIDFD_INFO_EXIT = 1 << 3  # Linux 6.15


@dataclass
class Adopted:
    """A process that told which rank it is. `slot`: its number on this host."""

    slot: int
    adopt: Adopt
    record: Path
    oom_before: int

    @property
    def pid(self) -> int:
        return self.adopt.pid


class Ranks:
    """`on_rank`, `on_message` and `on_end` are called in the event loop."""

    def __init__(
        self,
        folder: Path,
        looking: Looking,
        on_rank: Callable[[Adopted], None],
        on_message: Callable[[Adopted, FromForeign], None],
        on_end: Callable[[Adopted, p.Exited], None],
    ) -> None:
        self.folder = folder
        self.living: dict[int, Adopted] = {}  # by pid
        self.refused: Counter[str] = Counter()
        self._looking = looking
        self._on_rank, self._on_message, self._on_end = on_rank, on_message, on_end
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Raises OSError where the socket cannot be made."""
        path = self.folder / SOCKET
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, path)
        path.chmod(0o600)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def seen(self, now: float) -> list[Seen]:
        """Every rank's record, age of its heartbeat, and what the kernel says of it."""
        living = list(self.living.values())
        self._looking.look(living, now)
        return self._looking.seen(living, {}, now)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rank: Adopted | None = None
        pid, uid = peer_of(writer)
        try:
            while (body := await body_of(reader, self.refused)) is not None:
                message = decode(body)
                if isinstance(message, Adopt):
                    if uid != os.getuid() or message.pid != pid:
                        self.refused["unknown process"] += 1
                        return
                    rank = self._take_in(message)
                elif rank is not None:
                    self._on_message(rank, message)
        except (msgspec.ValidationError, msgspec.DecodeError):
            self.refused["malformed frame"] += 1
        except (ConnectionError, asyncio.CancelledError):
            pass  # its end is seen by its pidfd; or the guard ends
        finally:
            writer.close()

    def _take_in(self, adopt: Adopt) -> Adopted:
        known = self.living.get(adopt.pid)
        if known is not None:
            known.adopt = adopt
            return known
        taken = {rank.slot for rank in self.living.values()}
        slot = adopt.local_rank if adopt.local_rank >= 0 else next(n for n in range(len(taken) + 1) if n not in taken)
        rank = self.living[adopt.pid] = Adopted(slot, adopt, self.folder / f"{adopt.pid}.record", oom_kills())
        descriptor = os.pidfd_open(adopt.pid)
        asyncio.get_running_loop().add_reader(descriptor, self._ended, rank, descriptor)
        self._on_rank(rank)
        return rank

    def _ended(self, rank: Adopted, descriptor: int) -> None:
        status = _status(rank.pid, descriptor)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        del self.living[rank.pid]
        record = self._looking.forget(rank)
        rank.record.unlink(missing_ok=True)
        oom = oom_kills() - rank.oom_before
        self._on_end(rank, p.Exited(0, rank.slot, rank.pid, status, oom, "", "", record))


def _status(pid: int, descriptor: int) -> int:
    """Of a process that has ended and is somebody else's child: negative for a signal, STATUS_UNKNOWN where it cannot be told.

    Its parent may have collected it or not: before that /proc has its status, after it the pidfd (Linux 6.15).
    """
    code: int | None = None
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_bytes()
        fields = text[text.rindex(b")") + 2 :].split()
        if fields[0] in (b"Z", b"X"):
            code = int(fields[49])
    if code is None:
        info = bytearray(64)
        struct.pack_into("<Q", info, 0, _PIDFD_INFO_EXIT)
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, _PIDFD_GET_INFO, info)
            if struct.unpack_from("<Q", info)[0] & _PIDFD_INFO_EXIT:
                (code,) = struct.unpack_from("<i", info, 60)
    if code is None:
        return STATUS_UNKNOWN
    return -(code & 0x7F) if code & 0x7F else code >> 8
