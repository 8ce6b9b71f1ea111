"""The agent's end of the Unix socket: accepts the processes that this agent started, nobody else; frames are bounded."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from ninthsky.guard.agent.spawner import Process, Spawner, descends_from
from ninthsky.guard.probe.messages import MAX_FRAME, Hello, ToAgent, ToRank, decode_to_agent, frame

_LENGTH = struct.Struct("<I")
_CREDENTIALS = struct.Struct("3i")


class Lines:
    """`on_message(process, message)` gets every message of a known process, its Hello first."""

    def __init__(self, spawner: Spawner, on_message: Callable[[Process, ToAgent], None]) -> None:
        self.refused: Counter[str] = Counter()
        self._spawner = spawner
        self._on_message = on_message
        self._server: asyncio.Server | None = None

    async def listen(self, path: Path) -> None:
        self._server = await asyncio.start_unix_server(self._serve, path)
        path.chmod(0o600)

    def send(self, process: Process, message: ToRank) -> bool:
        """Into the process's socket, which keeps it while the process is frozen. False where there is no connection."""
        if process.connection is None or process.connection.is_closing():
            return False
        process.connection.write(frame(message))
        return True

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        process: Process | None = None
        pid, _ = peer_of(writer)
        if not any(descends_from(pid, known.pid) for known in self._spawner.processes.values()):
            self.refused["unknown process"] += 1
            writer.close()
            return
        try:
            while (body := await body_of(reader, self.refused)) is not None:
                message = decode_to_agent(body)
                if process is None:
                    process = self._introduce(message, pid, writer)
                    if process is None:
                        return
                self._on_message(process, message)
        except (msgspec.ValidationError, msgspec.DecodeError):
            self.refused["malformed frame"] += 1
        except ConnectionError:
            pass  # the process is gone; its exit is seen by the spawner
        except asyncio.CancelledError:
            pass  # the agent ends; asyncio's stream server would report a cancelled connection as an error
        finally:
            if process is not None and process.connection is writer:
                process.connection = None
            writer.close()

    def _introduce(self, message: ToAgent, pid: int, writer: asyncio.StreamWriter) -> Process | None:
        process = self._spawner.processes.get(message.slot) if isinstance(message, Hello) else None
        if process is None or not descends_from(pid, process.pid):
            self.refused["unknown process"] += 1
            return None
        process.connection = writer
        return process


def peer_of(writer: asyncio.StreamWriter) -> tuple[int, int]:
    """Process and user at the other end of a Unix socket, as the kernel has it."""
    pid, uid, _ = _CREDENTIALS.unpack(
        writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return pid, uid


async def body_of(reader: asyncio.StreamReader, refused: Counter[str]) -> bytes | None:
    """The next frame's body. None at the end, and where it claims to be larger than a frame may be: that is counted."""
    try:
        (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if size > MAX_FRAME:
            refused["oversized frame"] += 1
            return None
        return await reader.readexactly(size)
    except asyncio.IncompleteReadError:
        return None
