"""Who is taken for a rank, what is refused, and how an end is read of a process that is somebody else's child."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from ninthsky.guard import protocol as p
from ninthsky.guard.agent.looking import Looking
from ninthsky.guard.foreign.messages import SOCKET, Adopt, Began
from ninthsky.guard.foreign.ranks import Adopted, Ranks

CHILD = """
import os, socket, struct, sys
line = socket.socket(socket.AF_UNIX); line.connect(sys.argv[1])
body = bytes.fromhex(sys.argv[2]).replace(b"PIDPID", b"\\xce" + struct.pack(">I", os.getpid()))
line.sendall(struct.pack("<I", len(body)) + body)
sys.stdin.read()
END
"""


class Heard:
    def __init__(self, folder: Path) -> None:
        self.ranks: list[Adopted] = []
        self.said: list[object] = []
        self.ends: list[p.Exited] = []
        looking = Looking(0.1, 2.5)
        self.door = Ranks(
            folder,
            looking,
            self.ranks.append,
            lambda rank, message: self.said.append(message),
            lambda rank, end: self.ends.append(end),
        )


def frame(message: msgspec.Struct | bytes) -> bytes:
    body = message if isinstance(message, bytes) else msgspec.msgpack.encode(message)
    return struct.pack("<I", len(body)) + body


async def until(test: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not test():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_only_frames_of_a_process_that_tells_its_own_number_count(tmp_path: Path) -> None:
    async def work() -> None:
        heard = Heard(tmp_path)
        await heard.door.listen()
        assert (tmp_path / SOCKET).stat().st_mode & 0o77 == 0
        good = frame(Adopt(os.getpid(), 3, 8, 3, "x-1", "2.13")) + frame(Began(7))
        for sent in (
            frame(Adopt(1, 3, 8, 3, "x-1", "2.13")),
            frame(b"\xc1garbage"),
            frame(Began(7)),
            struct.pack("<I", 1 << 30),
            good,
        ):
            _, writer = await asyncio.open_unix_connection(tmp_path / SOCKET)
            writer.write(sent)
            await writer.drain()
            if sent is not good:
                writer.close()
        await until(lambda: heard.said)
        await until(lambda: heard.door.refused.total() == 3)
        assert heard.said == [Began(7)] and [rank.slot for rank in heard.ranks] == [3]
        assert set(heard.door.refused) == {"unknown process", "malformed frame", "oversized frame"}
        heard.door.close()

    asyncio.run(work())


@pytest.mark.parametrize(("end", "status"), [("os.kill(os.getpid(), 9)", -signal.SIGKILL), ("os._exit(7)", 7)])
@pytest.mark.parametrize("collected", [True, False])
def test_an_end_is_read_before_and_after_its_parent_has_collected_it(
    tmp_path: Path, end: str, status: int, collected: bool
) -> None:
    async def work() -> None:
        heard = Heard(tmp_path)
        await heard.door.listen()
        # As msgspec packs a number of five bytes, so that the child can put its own in.
        body = msgspec.msgpack.encode(Adopt(0x7FFFFFFF, 0, 1, -1, "x", "")).replace(b"\xce\x7f\xff\xff\xff", b"PIDPID")
        command = [sys.executable, "-S", "-c", CHILD.replace("END", end), str(tmp_path / SOCKET), body.hex()]
        child = subprocess.Popen(command, stdin=subprocess.PIPE)
        await until(lambda: heard.ranks)
        assert child.stdin is not None
        child.stdin.close()
        if collected:
            child.wait()  # before the guard's loop has its turn
        await until(lambda: heard.ends)
        child.wait()
        if collected and heard.ends[0].status == 256:
            pytest.skip("this kernel tells no status of a process that was collected (before Linux 6.15)")
        assert heard.ends[0].status == status and not heard.door.living
        heard.door.close()

    asyncio.run(work())
